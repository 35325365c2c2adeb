"""Measure what the landmark detectors mean and how far they err: ``python -m hdx_cli.training.calibrate_body CASES``.

CASES holds photos of synthetic people with known bodies (``training.synthetic_people``). From them come, for the body
fit, the offset of every landmark from its key point in the frame of its bone, the detectors' 2D noise, and the bias and
noise of the 3D directions. Left and right are pooled by mirroring, which also makes the result symmetric.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..bodies import anny
from ..bodies.anny_rig import CALIBRATION, landmark_bases
from ..bodies.fit import body_axes, landmark_arrays, px_per_m, yaw_frame
from ..bodies.rig import (
    BODY_DIRECTIONS,
    DIRECTIONS,
    LANDMARKS,
    POSE_LANDMARKS,
    Calibration,
    direction_matrix,
    mirrored_directions,
    mirrored_landmarks,
)  # fmt: skip
from .synthetic_people import Case, load_case

MIRROR = np.array([-1.0, 1, 1])
BODY_RIDGE, FINE_RIDGE = 0.005, 0.02
ROBUST_SIGMA = 0.01  # share of the height beyond which a landmark counts as missed


def base_positions(model: anny.AnnyBody, case: Case) -> tuple[Float[np.ndarray, "L 3"], Float[np.ndarray, "L 3 3"]]:
    """In camera axes: where every landmark's base truly is, and the rotation of its bone."""
    vertices = np.zeros((len(model.template), 3))
    index = model.asset["base_index"].astype(int)
    known = index < len(case.base_vertices)
    vertices[known] = case.base_vertices[index[known]]
    keypoints = model.keypoints(vertices)
    at = {name: i for i, name in enumerate(model.joint_names)}
    positions = [keypoints[b] if b in keypoints else case.bone_positions[at[b]] for b, _ in landmark_bases()]
    rotations = case.viewmat[:3, :3] @ case.bone_rotations[[at[bone] for _, bone in landmark_bases()]]
    return case.in_camera(np.array(positions)), rotations


def measure(cases: list[Path]) -> dict[str, list]:
    """Offsets, directions and their noise over all cases, as the calibration file stores them."""
    model = anny.load()
    samples = []
    for path in cases:
        case = load_case(path)
        base, rotations = base_positions(model, case)
        pixels, points, confidence = landmark_arrays(case.keypoints)
        seen = confidence[:POSE_LANDMARKS] > 0.3
        height_px = 1.72 * px_per_m(case.keypoints.pixels[seen, :2], case.keypoints.world[seen, :2])
        samples.append((case, base, rotations, pixels, points, confidence, height_px))
    offsets = _offsets([s for s in samples if s[0].view == "front"])
    sigma = _landmark_sigma(samples, offsets)
    values = {"landmark_offset_m": offsets, "sigma": sigma} | _directions(samples, offsets)
    return {name: np.round(value, 5).tolist() for name, value in values.items()}


def _offsets(samples: list, steps: int = 15) -> Float[np.ndarray, "L 3"]:
    """Robust least squares for the offsets whose projections meet the landmarks found, left and right together."""
    offsets = np.zeros((LANDMARKS, 3))
    mirror = mirrored_landmarks()
    for _ in range(steps):
        normal = np.zeros((LANDMARKS, 3, 3)) + 30.0 * np.eye(3)  # a weak pull to zero where depth is never seen
        right = -30.0 * offsets
        for case, base, rotations, pixels, _, confidence, height_px in samples:
            points = base + np.einsum("lab,lb->la", rotations, offsets)
            projected = points @ case.K.T
            error = (pixels - projected[:, :2] / projected[:, 2:]) / height_px
            slope = np.zeros((LANDMARKS, 2, 3))
            slope[:, 0, 0] = slope[:, 1, 1] = 1
            slope[:, :, 2] = -points[:, :2] / points[:, 2:]
            slope *= case.K[0, 0] / points[:, 2, None, None] / height_px
            slope = slope @ rotations
            weight = (confidence > 0.5) / (1 + (error**2).sum(axis=1) / ROBUST_SIGMA**2) ** 2 / 0.006**2
            for side, flip in ((np.arange(LANDMARKS), np.ones(3)), (mirror, MIRROR)):
                mirrored = slope * flip
                normal[side] += np.einsum("l,lda,ldb->lab", weight, mirrored, mirrored)
                right[side] += np.einsum("l,lda,ld->la", weight, mirrored, error)
        offsets += np.linalg.solve(normal, right[..., None])[..., 0]
        offsets = (offsets + offsets[mirror] * MIRROR) / 2
    return offsets


def _landmark_sigma(samples: list, offsets: Float[np.ndarray, "L 3"]) -> Float[np.ndarray, "L"]:
    """Robust spread (1.48 median absolute deviation over x and y) as a share of the height."""
    errors = np.full((len(samples), LANDMARKS, 2), np.nan)
    for row, (case, base, rotations, pixels, _, confidence, height_px) in zip(errors, samples, strict=True):
        projected = (base + np.einsum("lab,lb->la", rotations, offsets)) @ case.K.T
        row[:] = (pixels - projected[:, :2] / projected[:, 2:]) / height_px
        row[confidence <= 0.5] = np.nan
    both = np.concatenate([errors, errors[:, mirrored_landmarks()]])
    return np.maximum(1.4826 * np.nanmedian(np.abs(both), axis=(0, 2)), 0.002)


def _directions(samples: list, offsets: Float[np.ndarray, "L 3"]) -> dict[str, np.ndarray]:
    """Robust ridge regression of what measured directions lack, in yaw axes, and the noise that remains.

    A body direction is corrected from all body directions (across people this halves the trunk's error that a bias of
    its own leaves), those of hands and face from themselves.
    """
    mirror, sign = mirrored_directions()
    matrix = direction_matrix()
    measured, true, turns, counted = [], [], [], []
    for case, base, rotations, _, points, confidence, _ in samples:
        turn = yaw_frame(body_axes(case.keypoints.world.astype(float)))
        actual = _units(matrix @ (base + np.einsum("lab,lb->la", rotations, offsets))) @ turn
        found = _units(matrix @ points) @ turn
        known = np.array([confidence[[*a, *b]].min() > 0.3 for _, a, b in DIRECTIONS])
        measured += [found, found[mirror] * sign[:, None] * MIRROR]
        true += [actual, actual[mirror] * sign[:, None] * MIRROR]
        turns += [turn, turn * np.outer(MIRROR, MIRROR)]
        counted += [known, known[mirror]]
    measured, true, turns, counted = map(np.array, (measured, true, turns, counted))
    body = measured[:, :BODY_DIRECTIONS].reshape(len(measured), -1)
    body_mean = body.mean(axis=0)
    away = np.linalg.norm(body - body_mean, axis=1)
    rows = 3 * BODY_DIRECTIONS
    fine = len(DIRECTIONS) - BODY_DIRECTIONS
    values = {
        "body_mean": body_mean,
        "body_reach": np.quantile(away, 0.98),
        "body_gain": np.zeros((rows, rows)),
        "body_bias": np.zeros(rows),
        "fine_gain": np.zeros((fine, 3, 3)),
        "fine_bias": np.zeros((fine, 3)),
    }
    for n in range(len(DIRECTIONS)):
        known = counted[:, n]
        of_body = n < BODY_DIRECTIONS
        features = (body - body_mean)[known] if of_body else measured[known, n]
        gain, bias = _robust_ridge(features, (true - measured)[known, n], BODY_RIDGE if of_body else FINE_RIDGE)
        if of_body:
            values["body_gain"][3 * n : 3 * n + 3], values["body_bias"][3 * n : 3 * n + 3] = gain, bias
        else:
            values["fine_gain"][n - BODY_DIRECTIONS], values["fine_bias"][n - BODY_DIRECTIONS] = gain, bias
    calibration = Calibration(sigma=np.zeros(0), direction_sigma=np.zeros(0), **values)
    rest = true - np.array([calibration.corrected(directions) for directions in measured])
    along_camera = np.abs(np.einsum("inab,inb->ina", np.repeat(turns[:, None], len(DIRECTIONS), axis=1), rest))
    along_camera[~counted] = np.nan
    values["direction_sigma"] = np.maximum(1.4826 * np.nanmedian(along_camera, axis=0), 0.02)
    return values


def _robust_ridge(
    features: Float[np.ndarray, "I F"], targets: Float[np.ndarray, "I 3"], ridge: float
) -> tuple[Float[np.ndarray, "3 F"], Float[np.ndarray, "3"]]:
    """Gain and bias of a linear regression that few gross errors do not sway; the bias is free of the ridge."""
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    penalty = np.eye(features.shape[1]) * ridge * len(features)
    penalty[-1, -1] = 1e-6
    weight = np.ones(len(features))
    for _ in range(5):
        normal = (features.T * weight) @ features + penalty
        solution = np.linalg.solve(normal, (features.T * weight) @ targets)
        error = targets - features @ solution
        weight = 1 / (1 + (error**2).sum(axis=1) / 0.3**2) ** 2
    return solution[:-1].T, solution[-1]


def _units(vectors: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--out", type=Path, default=CALIBRATION)
    arguments = parser.parse_args()
    values = measure(sorted(arguments.cases.glob("*.npz")))
    arguments.out.write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main()
