"""Skirts on a body of two straight legs: found, held together, and with legs beneath."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hdx_cli.avatars.skirt import bell_back, bell_of, bulged, hem_of, legs_beneath, skirted
from hdx_cli.avatars.surface import Sheet
from hdx_cli.bodies.base import PARTS, RestBody
from hdx_cli.camera import Cameras, look_at
from hdx_cli.gaussians import Gaussians, sh_from_rgb
from hdx_cli.mesh import depth_buffer, project

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


# ------------------------------------------------------------------------------------------------------- in a photo

WIDE_M, HEM_M = 0.35, 0.3  # half the skirt's width at the hem; it narrows to 0.2 m at the crotch


@pytest.fixture(scope="module")
def camera() -> Cameras:
    """4 m in front of the legs' axis, 5 mm a pixel there."""
    viewmats = look_at(torch.tensor([[0.0, 0.5, 4.0]]), torch.tensor([0.0, 0.5, 0.0]))
    return Cameras(viewmats, torch.tensor([[[800.0, 0, 100], [0, 800, 120], [0, 0, 1]]]), 200, 240)


def matte(camera: Cameras, skirt: bool) -> np.ndarray:
    covered = depth_buffer(BODY.vertices.astype(float), BODY.faces, camera).covered
    y = 0.5 - (np.arange(camera.height) + 0.5 - 120) / 200
    x = (np.arange(camera.width) + 0.5 - 100) / 200
    half = 0.2 + (WIDE_M - 0.2) * np.clip((CROTCH_M - y) / (CROTCH_M - HEM_M), 0, 1)
    cloth = (np.abs(x) < half[:, None]) & (y > HEM_M)[:, None] & (y < 0.95)[:, None]
    return (covered | (cloth & skirt)).astype(np.float32)


def test_a_skirt_in_a_photo_is_round_the_legs(camera) -> None:
    vertices = BODY.vertices.astype(float)
    assert bell_of(matte(camera, False), vertices, BODY, camera) is None
    bell = bell_of(matte(camera, True), vertices, BODY, camera)
    assert bell is not None
    hem_row = 120 - (HEM_M - 0.5) * 200
    assert bell.first + len(bell.left) == pytest.approx(hem_row, abs=2)
    assert (bell.right - bell.left)[-1] == pytest.approx(2 * WIDE_M * 200, abs=3)
    np.testing.assert_allclose(bell.depth, 4.0, atol=0.01)
    assert bell.share[0] == 0 and bell.share[-1] == 1

    depth = np.where(matte(camera, True) > 0, 4.0 - RADIUS_M, np.nan)
    nothing = np.zeros(depth.shape, int)
    sheet = bulged(Sheet(depth, nothing, nothing, ~np.isnan(depth) & False), bell)
    last = bell.first + len(bell.left) - 1
    assert sheet.depth[last, 100] == pytest.approx(4.0 - bell.half_depth[-1], abs=1e-3)
    assert 0.15 < bell.half_depth[-1] < WIDE_M
    # never behind what was there, and nothing changes off the skirt
    assert np.nanmax(sheet.depth - depth) <= 0
    below = slice(last + 1, None)
    np.testing.assert_array_equal(sheet.depth[below], depth[below])


def test_the_skirt_s_far_side_closes_it_behind_the_matte(camera) -> None:
    alpha, vertices = matte(camera, True), BODY.vertices.astype(float)
    bell = bell_of(alpha, vertices, BODY, camera)
    points, lenders = bell_back(bell, vertices, BODY, camera)
    pixels, depth = project(points.means, camera)
    column, row = pixels.astype(int).T
    # a row of discs may stand half a pixel over the edge
    assert (alpha[row, np.clip(column, 0, 199)] > 0).mean() > 0.95 and (alpha[lenders[:, 0], lenders[:, 1]] > 0).all()
    away = points.means[:, 2] < -0.02
    assert away.mean() > 0.5 and (points.normals[away, 2] < 0).all()
    # as far behind the legs as the front is before them
    low = points.means[:, 1] < HEM_M + 0.02
    assert points.means[low, 2].min() == pytest.approx(-bell.half_depth[-1], abs=0.01)
    # what carries a point is a leg on its own side
    carried = BODY.vertices[points.vertices[points.barycentric > 0.5]]
    sideways = np.abs(points.means[:, 0]) > 0.1
    assert (np.sign(carried[sideways, 0]) == np.sign(points.means[sideways, 0])).all()
