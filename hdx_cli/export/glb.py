"""Skinned Gaussians with clips as one .glb: KHR_gaussian_splatting for the looks, a glTF 2.0 skin for the motion.

The Gaussians are a POINTS primitive with JOINTS_0/WEIGHTS_0 and JOINTS_1/WEIGHTS_1, the skeleton one node per joint.
The extension does not say what a skin does to a covariance; ``asset.extras`` and ``FORMAT.md`` do: linear blend
skinning of the means, A Sigma A^T with the blended linear part A. A reader without skins shows the rest pose.

Rest rotations are identity, so a joint's node has the pose's own rotation R_j and the translation h_j - h_parent
(Khronos, glTF 2.0, "Skins"). The file's rest pose stands on y = 0: it is the avatar's, moved by ``rest_shift_m``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from .. import __version__
from ..bodies.base import BodyPose
from ..errors import InputRejected, NothingToDo, UsageError
from ..gaussians import SH_C0, Gaussians
from ..geometry import matrices_to_quats

SPLATTING = "KHR_gaussian_splatting"
# A channel keeps as few key frames as reproduce every frame this well (and 3e-5 rad of 16-bit rounding on top).
ROTATION_TOLERANCE_RAD = 3e-4
TRANSLATION_TOLERANCE_M = 1e-4
STRAY = 0.0005  # share of Gaussians that may lie below the ground
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
VERTICES, INDICES = 34962, 34963  # bufferView targets
CONVENTION = {
    "skinning": (
        "linear blend skinning over all sets: M = sum_k w_k G_k B_k, G_k the global transform of joint k's node, B_k "
        "its inverse bind matrix; mean' = M mean. A reader of JOINTS_0 alone has the 4 strongest: renormalise them"
    ),
    "covariance": "Sigma = R(ROTATION) diag(SCALE^2) R(ROTATION)^T; Sigma' = A Sigma A^T, A the upper left 3x3 of M",
    "colour": "sRGB-encoded rgb = 0.5 + 0.28209479177387814 * SH_DEGREE_0_COEF_0; the skin turns no higher degree",
    "units": {"length": "metre", "angle": "radian", "time": "second"},
    "axes": "right-handed; +Y up, the person faces +Z, +X is the person's left",
}


@dataclass(frozen=True)
class Rig:
    """J joints: rest positions [J 3] in metres, parents [J], names. Joint 0 is the root (-1); parents come first."""

    joints: Float[np.ndarray, "J 3"]
    parents: Int[np.ndarray, "J"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Animation:
    """A named clip: T frames at ``fps`` per second; where it ``loops``, frame 0 follows on frame T - 1."""

    name: str
    pose: BodyPose
    fps: float
    loops: bool = False


@dataclass(frozen=True)
class SkinnedGaussians:
    """N Gaussians in the rest pose of a rig, up to 8 joints each (rows of weights sum to one), and clips."""

    gaussians: Gaussians
    joint_indices: Integer[np.ndarray, "N 8"]
    joint_weights: Float[np.ndarray, "N 8"]
    rig: Rig
    animations: tuple[Animation, ...] = ()


def write_glb(path: Path, avatar: SkinnedGaussians, licences: Mapping[str, str] | None = None) -> None:
    """Write skinned Gaussians and their clips (``glb_bytes``)."""
    path.write_bytes(glb_bytes(avatar, licences, str(path)))


def glb_bytes(avatar: SkinnedGaussians, licences: Mapping[str, str] | None = None, file: str = "the file") -> bytes:
    """A binary glTF of skinned Gaussians and their clips.

    Rotations, scales (in steps of 15 micrometres) and opacities are stored in 16, weights in 8 bits; a scale above one
    metre makes all scales 32-bit. 64 bytes per Gaussian, and 36, 96 or 180 more for harmonics of degree 1, 2 or 3.

    Args:
        avatar: what to write.
        licences: the licence of each thing in the file, by name; goes into ``asset.extras``.
        file: its name, for messages.

    Raises:
        NothingToDo: there are no Gaussians.
        InputRejected: values that are not finite.
        UsageError: joints, weights or clips that do not fit the rig.
    """
    means, quats, scales, opacities, sh = (
        getattr(avatar.gaussians, name).detach().cpu().double().numpy()
        for name in ("means", "quats", "scales", "opacities", "sh")
    )
    if not len(means):
        raise NothingToDo(f"{file}: the avatar has no Gaussians")
    for name, values in (("means", means), ("quats", quats), ("scales", scales), ("opacities", opacities), ("sh", sh)):
        if not np.isfinite(values).all():
            raise InputRejected(f"{file}: {name} of the avatar hold values that are not finite", code="E_NOT_FINITE")
    shift = np.array([0.0, -float(np.quantile(means[:, 1], STRAY)), 0.0])
    document = Document("hdx-skinned-splat", shift, licences or {})
    quats = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    colour = np.clip(0.5 + SH_C0 * sh[:, 0], 0, 1)
    fallback = np.concatenate([linear_from_srgb(colour), np.clip(opacities, 0, 1)[:, None]], axis=1)
    if scales.max() > 1:
        packed_scales = scales.astype(np.float32)
    else:  # no scale becomes zero: its logarithm would be infinite
        packed_scales = np.maximum(quantised(scales, np.uint16), 1)
    attributes = {
        "POSITION": document.add((means + shift).astype(np.float32), target=VERTICES, bounds=True),
        "COLOR_0": document.add(quantised(fallback, np.uint8), target=VERTICES),
        f"{SPLATTING}:ROTATION": document.add(quantised(quats[:, [1, 2, 3, 0]], np.int16), target=VERTICES),
        f"{SPLATTING}:SCALE": document.add(packed_scales, target=VERTICES),
        f"{SPLATTING}:OPACITY": document.add(quantised(opacities[:, None], np.uint16), target=VERTICES),
    }
    for basis in range(sh.shape[1]):
        degree = int(np.sqrt(basis))
        name = f"{SPLATTING}:SH_DEGREE_{degree}_COEF_{basis - degree**2}"
        attributes[name] = document.add(sh[:, basis].astype(np.float32), target=VERTICES)
    attributes |= document.add_influences(avatar.joint_indices, avatar.joint_weights, avatar.rig, np.uint8)
    description = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    primitive = {"attributes": attributes, "mode": 0, "extensions": {SPLATTING: description}}
    document.json["extensionsUsed"] = [SPLATTING]
    document.add_skinned_mesh(primitive, avatar.rig, avatar.animations)
    return document.to_bytes()


class Document:
    """A glTF 2.0 document while it is put together: its JSON and the views of its one buffer."""

    def __init__(self, kind: str, rest_shift_m: Float[np.ndarray, "3"], licences: Mapping[str, str]) -> None:
        extras = {"format": kind, "version": "1.0", **CONVENTION, "rest_shift_m": np.round(rest_shift_m, 7).tolist()}
        asset = {"version": "2.0", "generator": f"hdx {__version__}"}
        asset["extras"] = {"hdx": extras | {"licences": dict(licences)}}
        self.json: dict[str, Any] = {"asset": asset, "scene": 0, "accessors": [], "bufferViews": []}
        self.shift = rest_shift_m
        self._views: list[bytearray] = []

    def add_view(self, content: bytes = b"", **properties: int) -> int:
        """A new view of the buffer, to which arrays may be added; returns its index."""
        self._views.append(bytearray(content))
        self.json["bufferViews"].append({"buffer": 0, **properties})
        return len(self._views) - 1

    def add(
        self,
        rows: np.ndarray,
        *,
        normalized: bool | None = None,
        target: int | None = None,
        bounds: bool = False,
        view: int | None = None,
    ) -> int:
        """An accessor over rows [N C] of one type; returns its index.

        Args:
            rows: matrices have 16 columns, column by column.
            normalized: whether integers stand for fractions; by default they do in vertices.
            target: ``VERTICES``, ``INDICES`` or None.
            bounds: write minima and maxima, which glTF wants for positions and times.
            view: the view to append to; a new one by default.
        """
        rows = np.ascontiguousarray(rows)
        width = rows.dtype.itemsize * rows.shape[1]
        stride = -(-width // 4) * 4 if target == VERTICES else width
        content = np.zeros((len(rows), stride), np.uint8)  # elements of vertex attributes start at multiples of 4 bytes
        content[:, :width] = rows.view(np.uint8).reshape(len(rows), width)
        if view is None:
            view = self.add_view(
                **({"target": target} if target else {}), **({"byteStride": stride} if stride != width else {})
            )
        start = len(self._views[view])
        accessor = {
            "bufferView": view,
            "componentType": next(code for code, kind in COMPONENTS.items() if np.dtype(kind) == rows.dtype),
            "count": len(rows),
            "type": next(name for name, size in WIDTHS.items() if size == rows.shape[1]),
        }
        if start:
            accessor["byteOffset"] = start
        if rows.dtype != np.float32 and (target == VERTICES if normalized is None else normalized):
            accessor["normalized"] = True
        if bounds:
            accessor |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self._views[view] += content.tobytes() + bytes(-content.size % 4)
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def add_influences(
        self, joint_indices: Integer[np.ndarray, "N 8"], joint_weights: Float[np.ndarray, "N 8"], rig: Rig, levels: type
    ) -> dict[str, int]:
        """Joints and weights as vertex attributes, strongest first; the weights of both sets together sum to one.

        Raises:
            UsageError: a joint that the rig lacks, or weights that are negative or all zero.
        """
        joints = len(rig.parents)
        bad = not np.isfinite(joint_weights).all() or (joint_weights < 0).any() or (joint_weights.sum(1) < 1e-6).any()
        if bad or joint_indices.min() < 0 or joint_indices.max() >= joints:
            raise UsageError(f"skinning weights that are no weights, or joints beyond the rig's {joints}")
        order = np.argsort(-joint_weights, axis=1, kind="stable")
        weights = quantised_weights(np.take_along_axis(joint_weights, order, 1).astype(np.float64), levels)
        indices = np.where(weights > 0, np.take_along_axis(joint_indices, order, 1), 0)  # glTF: joint 0 where unused
        indices = indices.astype(np.uint8 if joints <= 256 else np.uint16)
        attributes = {}
        for part in range(2 if weights[:, 4:].any() else 1):
            chosen = slice(4 * part, 4 * part + 4)
            attributes[f"JOINTS_{part}"] = self.add(indices[:, chosen], normalized=False, target=VERTICES)
            attributes[f"WEIGHTS_{part}"] = self.add(weights[:, chosen], target=VERTICES)
        return attributes

    def add_skinned_mesh(self, primitive: dict[str, Any], rig: Rig, animations: Sequence[Animation]) -> None:
        """The scene: one mesh of one primitive in node 0, joint j in node 1 + j, and the clips.

        Raises:
            UsageError: a rig or clips that do not fit together.
        """
        joints = len(rig.parents)
        earlier = (rig.parents[1:] >= 0) & (rig.parents[1:] < np.arange(1, joints))
        if not joints or rig.parents[0] != -1 or not earlier.all():
            raise UsageError("a rig needs one root, joint 0, and parents before their children")
        if len(rig.names) != joints or rig.joints.shape != (joints, 3) or not np.isfinite(rig.joints).all():
            raise UsageError(f"{len(rig.names)} names and {len(rig.joints)} positions for {joints} joints")
        places = rig.joints.astype(np.float64) + self.shift
        nodes: list[dict[str, Any]] = [{"name": "avatar", "mesh": 0, "skin": 0}]
        for joint, parent in enumerate(rig.parents):
            local = places[joint] - (places[parent] if parent >= 0 else 0)
            children = [1 + int(child) for child in np.flatnonzero(rig.parents == joint)]
            node = {"name": rig.names[joint], "translation": np.round(local, 8).tolist()}
            nodes.append(node | ({"children": children} if children else {}))
        binds = np.tile(np.eye(4), (joints, 1, 1))
        binds[:, 3, :3] = -places  # column by column
        matrices = self.add(binds.reshape(joints, 16).astype(np.float32))
        self.json |= {
            "scenes": [{"nodes": [0, 1]}],
            "nodes": nodes,
            "meshes": [{"name": "avatar", "primitives": [primitive]}],
            "skins": [{"joints": list(range(1, joints + 1)), "skeleton": 1, "inverseBindMatrices": matrices}],
        }
        if animations:
            views = {name: self.add_view() for name in ("times", "rotations", "translations")}
            self.json["animations"] = [self._animation(rig, animation, views) for animation in animations]

    def _animation(self, rig: Rig, animation: Animation, views: dict[str, int]) -> dict[str, Any]:
        rotations = np.asarray(animation.pose.rotations, np.float64)
        translations = np.asarray(animation.pose.translations, np.float64)
        frames = len(rotations)
        if not frames or rotations.shape[1] != len(rig.parents) or len(translations) != frames:
            raise UsageError(f"clip {animation.name}: {rotations.shape[:2]} rotations for {len(rig.parents)} joints")
        if not (np.isfinite(rotations).all() and np.isfinite(translations).all() and 0 < animation.fps < 1e4):
            raise UsageError(f"clip {animation.name}: values that are not finite, or {animation.fps} frames per second")
        if animation.loops and frames > 1:
            rotations, translations = (np.concatenate([a, a[:1]]) for a in (rotations, translations))
        quats = continuous(matrices_to_quats(rotations))
        places = translations + rig.joints[0]
        times: dict[bytes, int] = {}
        samplers, channels = [], []

        def add_channel(joint: int, path: str, kept: np.ndarray, rows: np.ndarray) -> None:
            moments = (np.flatnonzero(kept) / animation.fps).astype(np.float32)[:, None]
            if moments.tobytes() not in times:
                times[moments.tobytes()] = self.add(moments, bounds=True, view=views["times"])
            output = self.add(rows[kept], normalized=True, view=views[f"{path}s"])
            samplers.append({"input": times[moments.tobytes()], "output": output})
            channels.append({"sampler": len(samplers) - 1, "target": {"node": 1 + joint, "path": path}})

        kept = key_frames(quats, ROTATION_TOLERANCE_RAD)
        kept[[0, -1], 0] = True  # the root's channel tells how long the clip is
        resting = _distances(quats[:1], np.array([1.0, 0, 0, 0]).reshape(1, 1, 4).repeat(quats.shape[1], 1))[0]
        for joint in range(len(rig.parents)):
            if joint == 0 or kept[:, joint].sum() > 1 or resting[joint] > ROTATION_TOLERANCE_RAD:
                packed = quantised(quats[:, joint][:, [1, 2, 3, 0]], np.int16)
                add_channel(joint, "rotation", kept[:, joint], packed)
        kept = key_frames(places[:, None], TRANSLATION_TOLERANCE_M)[:, 0]
        if kept.sum() > 1 or abs(translations[0] - self.shift).max() > TRANSLATION_TOLERANCE_M:
            add_channel(0, "translation", kept, places.astype(np.float32))
        extras = {"hdx": {"fps": animation.fps, "frames": frames, "loops": animation.loops}}
        return {"name": animation.name, "samplers": samplers, "channels": channels, "extras": extras}

    def to_bytes(self) -> bytes:
        """The .glb: header, JSON chunk, binary chunk (glTF 2.0, "GLB File Format Specification")."""
        offset = 0
        for view, content in zip(self.json["bufferViews"], self._views, strict=True):
            view |= {"byteOffset": offset, "byteLength": len(content)}
            content += bytes(-len(content) % 4)
            offset += len(content)
        self.json["buffers"] = [{"byteLength": offset}]
        text = json.dumps(self.json, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        binary = b"".join(self._views)
        header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
        return b"".join(
            [header, struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", offset, b"BIN\0"), binary]
        )


def quantised(values: Float[np.ndarray, "N C"], kind: type) -> np.ndarray:
    """Fractions in [0, 1], or [-1, 1] where the numpy type ``kind`` is signed, as glTF's normalized integers."""
    top = np.iinfo(kind).max
    return np.round(np.clip(values, -1 if np.iinfo(kind).min else 0, 1) * top).astype(kind)


def quantised_weights(weights: Float[np.ndarray, "N K"], kind: type) -> np.ndarray:
    """Weights as integers whose rows sum to exactly the largest value of unsigned ``kind`` (largest remainders)."""
    top = np.iinfo(kind).max
    exact = weights / weights.sum(1, keepdims=True) * top
    floor = np.floor(exact + 1e-9)
    missing = top - floor.sum(1, keepdims=True)
    rank = np.argsort(np.argsort(floor - exact, axis=1, kind="stable"), axis=1, kind="stable")
    return (floor + (rank < missing)).astype(kind)


def linear_from_srgb(rgb: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N 3"]:
    """sRGB-encoded colours in [0, 1] to linear ones (IEC 61966-2-1)."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4)


def continuous(quats: Float[np.ndarray, "T J 4"]) -> Float[np.ndarray, "T J 4"]:
    """The same rotations, each quaternion on the side of the one before it."""
    signs = np.where((quats[1:] * quats[:-1]).sum(-1) < 0, -1.0, 1.0)
    return quats * np.cumprod(np.concatenate([np.ones((1, quats.shape[1])), signs]), axis=0)[..., None]


def interpolated(
    first: Float[np.ndarray, "*N C"], last: Float[np.ndarray, "*N C"], share: Float[np.ndarray, "*N 1"]
) -> Float[np.ndarray, "*N C"]:
    """Between values: linear, or for quaternions (C = 4) spherical along the shorter arc (Shoemake 1985)."""
    if first.shape[-1] != 4:
        return first + share * (last - first)
    cosine = (first * last).sum(-1, keepdims=True)
    last, cosine = np.where(cosine < 0, -last, last), np.minimum(np.abs(cosine), 1)
    angle = np.arccos(cosine)
    small = angle < 1e-4
    sine = np.where(small, 1, np.sin(angle))
    value = np.where(small, 1 - share, np.sin((1 - share) * angle) / sine) * first
    value = value + np.where(small, share, np.sin(share * angle) / sine) * last
    return value / np.linalg.norm(value, axis=-1, keepdims=True)


def key_frames(values: Float[np.ndarray, "T J C"], tolerance: float) -> Bool[np.ndarray, "T J"]:
    """For each of J tracks the frames between which ``interpolated`` gives every frame to the tolerance.

    Only frame 0 where all frames are alike. C = 4: unit quaternions and an angle in radians; otherwise a distance. In
    every gap the frame that is furthest off is kept until none is too far off (Ramer 1972, Douglas and Peucker 1973).
    """
    frames = np.arange(len(values))[:, None]
    kept = np.zeros(values.shape[:2], bool)
    kept[[0, -1]] = True
    still = _distances(values, values[:1]).max(0) <= tolerance
    while True:
        start = np.maximum.accumulate(np.where(kept, frames, 0))
        end = np.minimum.accumulate(np.where(kept, frames, len(values))[::-1])[::-1]
        share = (frames - start) / np.maximum(end - start, 1)
        first, last = (np.take_along_axis(values, index[..., None], 0) for index in (start, end))
        errors = _distances(values, interpolated(first, last, share[..., None]))
        flat = np.where(kept | still, 0, errors).T.reshape(-1)  # track by track; gaps begin at frames that are kept
        gaps = np.flatnonzero(kept.T.reshape(-1))
        worst = np.repeat(np.maximum.reduceat(flat, gaps), np.diff(np.append(gaps, flat.size)))
        found = (flat > tolerance) & (flat == worst)
        if not found.any():
            break
        kept |= found.reshape(kept.shape[::-1]).T
    kept[1:, still] = False
    return kept


def _distances(a: Float[np.ndarray, "T J C"], b: Float[np.ndarray, "_ J C"]) -> Float[np.ndarray, "T J"]:
    """Euclidean, or for quaternions (C = 4) twice the chord, which is the angle where that is small."""
    if a.shape[-1] != 4:
        return np.linalg.norm(a - b, axis=-1)
    return 2 * np.minimum(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))
