"""Skirts on a body of two straight legs: found, held together, and with legs beneath."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hdx_cli.avatars.skirt import hem_of, legs_beneath, skirted
from hdx_cli.bodies.base import PARTS, RestBody
from hdx_cli.gaussians import Gaussians, sh_from_rgb

CROTCH_M, RADIUS_M, APART_M = 0.8, 0.07, 0.12  # the legs' axes lie at x = +-APART_M
UPPER_LEG, TORSO = PARTS.index("upper_leg"), PARTS.index("torso")
SKIN = [0.8, 0.6, 0.5]


@dataclass(frozen=True)
class TwoLegs:
    """Joints: pelvis, left leg, right leg; every leg a tube of squares."""

    name = "two-legs"
    parents = np.array([-1, 0, 0])
    joint_names = ("pelvis", "left", "right")

    def __post_init__(self) -> None:
        angles, heights = np.linspace(0, 2 * np.pi, 24, endpoint=False), np.linspace(0, CROTCH_M, 41)
        tube = np.stack(
            [
                np.tile(RADIUS_M * np.cos(angles), len(heights)),
                np.repeat(heights, len(angles)),
                np.tile(RADIUS_M * np.sin(angles), len(heights)),
            ],
            1,
        )
        row, column = np.divmod(np.arange((len(heights) - 1) * len(angles)), len(angles))
        a, b = row * len(angles) + column, row * len(angles) + (column + 1) % len(angles)
        faces = np.concatenate(
            [np.stack([a, a + len(angles), b], 1), np.stack([b, a + len(angles), b + len(angles)], 1)]
        )
        seat = np.array([[0, CROTCH_M, 0.05], [0, CROTCH_M, -0.05]])
        sides = [tube + [side * APART_M, 0, 0] for side in (1, -1)]
        vertices = np.concatenate([*sides, seat]).astype(np.float32)
        weights = np.zeros((len(vertices), 3), np.float32)
        weights[: len(tube), 1], weights[len(tube) : -2, 2], weights[-2:, 0] = 1, 1, 1
        parts = np.full(len(vertices), UPPER_LEG)
        parts[-2:] = TORSO
        values = {
            "vertices": vertices, "weights": weights, "parts": parts,
            "faces": np.concatenate([faces, faces + len(tube)]),
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def rest(self, shape: np.ndarray) -> RestBody:
        joints = np.array([[0, 1, 0], [APART_M, CROTCH_M, 0], [-APART_M, CROTCH_M, 0]], np.float32)
        return RestBody(self.vertices, joints)


BODY = TwoLegs()


def sheet(low_m: float, high_m: float, narrowing: float = 0.0) -> np.ndarray:
    """Points of cloth in front of the legs, 5 mm apart; with ``narrowing`` it shrinks to the legs downwards."""
    x, y = np.meshgrid(np.arange(-0.19, 0.191, 0.005), np.arange(low_m, high_m, 0.005))
    x, y = x.ravel(), y.ravel()
    gap = np.abs(x) < APART_M - RADIUS_M
    keep = ~gap | (np.abs(x) > narrowing * (high_m - y))
    return np.stack([x, y, np.full_like(x, RADIUS_M)], 1)[keep].astype(np.float32)


def following(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Everything follows the nearer leg."""
    indices, weights = np.zeros((len(means), 8), np.uint16), np.zeros((len(means), 8), np.float32)
    indices[:, 0], weights[:, 0] = np.where(means[:, 0] > 0, 1, 2), 1
    return indices, weights


@pytest.mark.parametrize("hem_m", [0.72, 0.5, 0.35])
def test_the_hem_is_found_to_a_slice(hem_m: float) -> None:
    crotch, hem = hem_of(sheet(hem_m, 0.9), BODY.vertices, BODY.parts)
    assert crotch == pytest.approx(CROTCH_M)
    assert hem == pytest.approx(hem_m, abs=0.015)


def test_trousers_are_none() -> None:
    bare = sheet(0.0, 0.9)
    assert hem_of(bare[np.abs(bare[:, 0]) > APART_M - RADIUS_M], BODY.vertices, BODY.parts)[1] is None
    # a low crotch fills less and less of the gap
    baggy = np.concatenate([sheet(0.2, 0.9, narrowing=0.1), bare[np.abs(bare[:, 0]) > 0.06]])
    assert hem_of(baggy, BODY.vertices, BODY.parts)[1] is None


def test_cloth_stays_together_when_the_legs_part() -> None:
    means = sheet(0.45, 0.8)
    before = following(means)
    after = skirted(means, BODY.vertices, BODY.parts, *before, np.full(len(means), UPPER_LEG))
    np.testing.assert_allclose(after[1].sum(1), 1, atol=1e-6)

    def torn_m(indices: np.ndarray, weights: np.ndarray) -> float:
        """The widest gap between neighbours along the hem once each leg has turned 25 degrees outwards."""
        places = np.zeros_like(means, dtype=float)
        for joint, side in ((1, 1), (2, -1)):
            turn, pivot = np.radians(25) * side, BODY.rest(np.zeros(0)).joints[joint]
            rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
            share = (weights * (indices == joint)).sum(1)[:, None]
            places += share * ((means - pivot) @ rotation.T + pivot)
        hem = means[:, 1] < means[:, 1].min() + 0.002
        return float(np.linalg.norm(np.diff(places[hem][np.argsort(means[hem, 0])], axis=0), axis=1).max())

    assert torn_m(*before) > 0.1 and torn_m(*after) < 0.015
    # the outer edges still follow their legs
    edge = means[:, 0] > 0.185
    np.testing.assert_allclose((after[1] * (after[0] == 1)).sum(1)[edge & (means[:, 1] < 0.75)], 1, atol=0.02)


def test_without_a_skirt_nothing_changes() -> None:
    means = sheet(0.0, 0.9)
    means = means[np.abs(means[:, 0]) > APART_M - RADIUS_M]
    before = following(means)
    after = skirted(means, BODY.vertices, BODY.parts, *before, np.full(len(means), UPPER_LEG))
    assert after[0] is before[0] and after[1] is before[1]


def test_legs_beneath_are_inside_the_body_and_of_the_leg_s_colour() -> None:
    cloth, skin = sheet(0.5, 0.9), BODY.vertices[BODY.vertices[:, 1] < 0.5]
    means = torch.from_numpy(np.concatenate([cloth, skin]))
    rgb = torch.tensor([0.1, 0.1, 0.7]).repeat(len(means), 1)
    rgb[len(cloth) :] = torch.tensor(SKIN)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(len(means), 1)
    gaussians = Gaussians(means, quats, torch.full((len(means), 3), 0.004), torch.ones(len(means)), sh_from_rgb(rgb))
    parts = np.full(len(means), UPPER_LEG)
    made = legs_beneath(
        gaussians, np.ones(len(means), np.float32), parts, BODY.rest(np.zeros(0)), BODY, np.random.default_rng(0)
    )
    assert made is not None
    legs, indices, weights, made_parts = made
    x, y, z = legs.means.numpy().T
    assert np.hypot(np.abs(x) - APART_M, z).max() < RADIUS_M - 0.015
    assert y.min() < 0.51 and y.max() > CROTCH_M - 0.03
    torch.testing.assert_close(legs.sh, sh_from_rgb(torch.tensor([SKIN])).expand(len(legs), -1, -1))
    assert (made_parts == UPPER_LEG).all()
    np.testing.assert_array_equal(indices[np.arange(len(x)), weights.argmax(1)], np.where(x > 0, 1, 2))
    # enough to look solid: a disc of 6 mm for every 6 mm of surface
    area_m2 = 2 * 2 * np.pi * RADIUS_M * (CROTCH_M - 0.5)
    assert len(legs) == pytest.approx(area_m2 / 0.006**2, rel=0.15)
    assert legs_beneath(gaussians, np.zeros(len(means), np.float32), parts, BODY.rest(np.zeros(0)), BODY,
                        np.random.default_rng(0)) is None  # fmt: skip
