"""Reading back a .glb of Gaussians, skinned or not; files of strangers may be damaged or hostile."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bodies.base import BodyPose
from ..errors import InputRejected
from ..gaussians import Gaussians
from ..geometry import quats_to_matrices
from .glb import (
    COMPONENTS,
    SPLATTING,
    WIDTHS,
    Animation,
    Rig,
    SkinnedGaussians,
    interpolated,
)

# What a reader takes on: an avatar has 10^5 Gaussians, its clips 10^4 frames; hostile files may claim anything.
MOST_BYTES, MOST_JSON_BYTES = 256 * 2**20, 16 * 2**20
MOST_GAUSSIANS, MOST_POSE_BYTES, MOST_CHANNELS, MOST_KEYS = 10**6, 256 * 2**20, 20_000, 4 * 10**6


def read_glb(path: Path) -> SkinnedGaussians:
    """Skinned Gaussians of a .glb as ``write_glb`` makes it, or of one with ``KHR_gaussian_splatting`` and no skin.

    Gaussians and joints are in the file's rest pose, which stands on y = 0; posed, they are where the avatar would be.
    Clips come at their own frame rate. A file without a skin has one joint, at the origin.

    Raises:
        InputRejected: the file is not one, is damaged or too large, or its skeleton has rest rotations or scales.
    """
    try:
        return _Reader(path).avatar()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputRejected(f"{path}: not an avatar in a .glb ({str(error)[:200]!r})", code="E_DECODE") from None


class _Reader:
    """One file; every method raises a plain Python error, named by ``read_glb``, for what the file lacks."""

    def __init__(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            content = path.read_bytes() if size <= MOST_BYTES else b""
        except FileNotFoundError:
            raise InputRejected(f"{path}: no such file", code="E_MISSING") from None
        if size > MOST_BYTES:
            raise InputRejected(f"{path}: larger than {MOST_BYTES // 2**20} MiB", code="E_TOO_LARGE")
        if len(content) < 20 or content[:4] != b"glTF" or content[4:8] != struct.pack("<I", 2):
            raise ValueError("no glTF 2.0 header")
        length, kind = struct.unpack("<I4s", content[12:20])
        if kind != b"JSON" or length > min(MOST_JSON_BYTES, len(content) - 20):
            raise ValueError("the JSON chunk is cut short or too large")
        self.json = json.loads(content[20 : 20 + length])
        rest = content[20 + length :]
        size, kind = struct.unpack("<I4s", rest[:8]) if len(rest) >= 8 else (0, b"BIN\0")
        if kind != b"BIN\0" or size > len(rest) - 8 + 8 * (not rest):
            raise ValueError("the binary chunk is cut short")
        self.binary = rest[8 : 8 + size]
        if not isinstance(self.json, dict):
            raise ValueError("the JSON chunk is no object")

    def entry(self, name: str, index: Any) -> dict[str, Any]:
        entries = self.json[name]
        if not isinstance(index, int) or not 0 <= index < len(entries) or not isinstance(entries[index], dict):
            raise ValueError(f"{name} has no entry {str(index)[:20]}")
        return entries[index]

    def array(self, index: Any, kind: str | None = None) -> np.ndarray:
        """Rows [N C] of an accessor as float32 where they are fractions, as they lie in the file otherwise."""
        accessor = self.entry("accessors", index)
        view = self.entry("bufferViews", accessor["bufferView"])
        dtype, width = np.dtype(COMPONENTS[accessor["componentType"]]), WIDTHS[accessor["type"]]
        count, start = accessor["count"], accessor.get("byteOffset", 0)
        view_start, view_length = view.get("byteOffset", 0), view["byteLength"]
        stride = view.get("byteStride", dtype.itemsize * width)
        for number in (count, start, view_start, view_length, stride, view.get("buffer", 0)):
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"accessor {index}: sizes that are no sizes")
        end = start + stride * (count - 1) + dtype.itemsize * width
        if "sparse" in accessor or kind not in (None, accessor["type"]) or view.get("buffer", 0) != 0 or count < 1:
            raise ValueError(f"accessor {index}: sparse, empty, elsewhere or not {kind}")
        if stride < dtype.itemsize * width or end > view_length or view_start + view_length > len(self.binary):
            raise ValueError(f"accessor {index}: beyond its buffer")
        shape, strides = (count, width), (stride, dtype.itemsize)
        rows = np.ndarray(shape, dtype, self.binary, view_start + start, strides).copy()
        if accessor.get("normalized") and dtype.kind != "f":
            rows = np.maximum(rows.astype(np.float32) / np.float32(np.iinfo(dtype).max), -1)
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise ValueError(f"accessor {index}: values that are not finite")
        return rows

    def avatar(self) -> SkinnedGaussians:
        meshes = [(mesh, part) for mesh, entry in enumerate(self.json["meshes"]) for part in entry["primitives"]]
        found = [(mesh, part) for mesh, part in meshes if SPLATTING in part.get("extensions", {})]
        if len(found) != 1:
            raise ValueError(f"{len(found)} primitives with {SPLATTING}, not one")
        mesh, primitive = found[0]
        attributes = primitive["attributes"]
        if self.entry("accessors", attributes["POSITION"])["count"] > MOST_GAUSSIANS:
            raise ValueError(f"more than {MOST_GAUSSIANS} Gaussians")
        splat = {
            name: self.array(attributes[f"{SPLATTING}:{name}"], kind)
            for name, kind in (("ROTATION", "VEC4"), ("SCALE", "VEC3"), ("OPACITY", "SCALAR"))
        }
        names = [f"SH_DEGREE_{degree}_COEF_{basis}" for degree in range(4) for basis in range(2 * degree + 1)]
        present = [name for name in names if f"{SPLATTING}:{name}" in attributes]
        if present != names[: len(present)] or len(present) not in (1, 4, 9, 16):
            raise ValueError("harmonics of an incomplete degree")
        sh = np.stack([self.array(attributes[f"{SPLATTING}:{name}"], "VEC3") for name in present], axis=1)
        means = self.array(attributes["POSITION"], "VEC3")
        if {len(rows) for rows in (means, sh, *splat.values())} != {len(means)}:
            raise ValueError("attributes of different lengths")
        values = [means, splat["ROTATION"][:, [3, 0, 1, 2]], splat["SCALE"], splat["OPACITY"][:, 0], sh]
        gaussians = Gaussians(*(torch.from_numpy(np.ascontiguousarray(value, np.float32)) for value in values))
        if (gaussians.scales < 0).any() or (gaussians.opacities < 0).any() or (gaussians.opacities > 1).any():
            raise ValueError("scales below zero or opacities outside [0, 1]")
        holders = [node for node in self.json["nodes"] if node.get("mesh") == mesh]
        if len(holders) != 1:
            raise ValueError("the Gaussians are in no scene, or in several places")
        if "skin" not in holders[0]:
            moved = ("matrix", "rotation", "scale", "translation")
            if any(key in node for node in self.json["nodes"] for key in moved):
                raise ValueError("Gaussians that a node moves")
            indices, weights = (
                np.zeros((len(means), 8), np.uint16),
                np.eye(1, 8, dtype=np.float32).repeat(len(means), 0),
            )
            return SkinnedGaussians(gaussians, indices, weights, Rig(np.zeros((1, 3)), np.array([-1]), ("root",)))
        rig, joint_nodes = self.rig(self.entry("skins", holders[0]["skin"]))
        indices, weights = np.zeros((len(means), 8), np.uint16), np.zeros((len(means), 8), np.float32)
        for part in range(1 + ("JOINTS_1" in attributes)):
            indices[:, 4 * part : 4 * part + 4] = self.array(attributes[f"JOINTS_{part}"], "VEC4")
            weights[:, 4 * part : 4 * part + 4] = self.array(attributes[f"WEIGHTS_{part}"], "VEC4")
        total = weights.sum(1, keepdims=True)
        if indices.max() >= len(rig.names) or (weights < 0).any() or (abs(total - 1) > 0.1).any():
            raise ValueError("skinning weights that are no weights, or joints beyond the skin's")
        return SkinnedGaussians(gaussians, indices, weights / total, rig, self.animations(rig, joint_nodes))

    def rig(self, skin: dict[str, Any]) -> tuple[Rig, dict[int, int]]:
        """The rig, and the joint of every joint's node."""
        joints = {node: joint for joint, node in enumerate(skin["joints"])}
        if not joints or len(joints) != len(skin["joints"]) or len(joints) > 65535:
            raise ValueError("a skin with joints twice, too many or none")
        parents = np.full(len(joints), -1)
        for node, content in enumerate(self.json["nodes"]):
            for child in content.get("children", []):
                if child in joints:
                    parents[joints[child]] = joints[node]
        if parents[0] != -1 or (parents[1:] < 0).any() or (parents >= np.arange(len(parents))).any():
            raise ValueError("a skeleton whose joints are not in order under one root")
        nodes = [self.entry("nodes", node) for node in joints]
        if any(key in node for node in nodes for key in ("rotation", "scale", "matrix")):
            raise ValueError("a skeleton with rest rotations or scales")
        binds = self.array(skin["inverseBindMatrices"], "MAT4").reshape(-1, 4, 4).transpose(0, 2, 1)
        if len(binds) < len(joints) or abs(binds[:, :3, :3] - np.eye(3)).max() > 1e-4:
            raise ValueError("a skeleton with rest rotations or scales")
        names = tuple(str(node.get("name", f"joint{joint}")) for joint, node in enumerate(nodes))
        return Rig(-binds[: len(joints), :3, 3].astype(np.float64), parents, names), joints

    def animations(self, rig: Rig, joints: dict[int, int]) -> tuple[Animation, ...]:
        clips, budget, keys = [], MOST_POSE_BYTES, MOST_KEYS
        kinds = {"rotation": "VEC4", "translation": "VEC3"}
        if sum(len(clip["channels"]) for clip in self.json.get("animations", [])) > MOST_CHANNELS:
            raise ValueError(f"clips of more than {MOST_CHANNELS} channels")
        for clip in self.json.get("animations", []):
            about = clip.get("extras", {}).get("hdx", {})
            fps, loops = float(about.get("fps", 30.0)), bool(about.get("loops", False))
            tracks = []
            for channel in clip["channels"]:
                sampler, target = clip["samplers"][channel["sampler"]], channel["target"]
                joint, path = joints[target["node"]], target["path"]
                keys -= sum(self.entry("accessors", sampler[side])["count"] for side in ("input", "output")) // 2
                if keys < 0:
                    raise ValueError(f"clips of more than {MOST_KEYS} key frames")
                times = self.array(sampler["input"], "SCALAR")[:, 0].astype(np.float64)
                values = self.array(sampler["output"], kinds[path]).astype(np.float64)
                if sampler.get("interpolation", "LINEAR") != "LINEAR" or len(values) != len(times):
                    raise ValueError("key frames that are not linear, or without values")
                if times[0] < 0 or (np.diff(times) <= 0).any() or (path == "translation" and joint):
                    raise ValueError("times out of order, or a joint that stretches")
                if path == "rotation":
                    length = np.linalg.norm(values, axis=1, keepdims=True)
                    if length.min() < 0.5:
                        raise ValueError("rotations that are none")
                    values = (values / length)[:, [3, 0, 1, 2]]
                tracks.append((joint, path, times, values))
            if not (0 < fps < 1e4) or not tracks:
                raise ValueError("a clip without frames")
            length = max(times[-1] for _, _, times, _ in tracks) * fps
            budget -= (length + 2) * (len(rig.names) * 72 + 100) + 1000
            if budget < 0:
                raise ValueError(f"clips of more than {MOST_POSE_BYTES // 2**20} MiB")
            frames = round(length) + 1
            if loops and frames > 1:
                frames -= 1  # the last key is frame 0 again
            rotations = np.tile(np.eye(3), (frames, len(rig.names), 1, 1))
            translations = np.zeros((frames, 3))
            for joint, path, times, values in tracks:
                at = np.clip(np.arange(frames) / fps, times[0], times[-1])
                after = np.clip(np.searchsorted(times, at, side="right"), 1, max(1, len(times) - 1))
                before = after - 1
                after = np.minimum(after, len(times) - 1)
                share = (at - times[before]) / np.where(after > before, times[after] - times[before], 1)
                between = interpolated(values[before], values[after], share[:, None])
                if path == "rotation":
                    rotations[:, joint] = quats_to_matrices(between)
                else:
                    translations = between - rig.joints[0]
            clips.append(Animation(str(clip.get("name", "")), BodyPose(rotations, translations), fps, loops))
        return tuple(clips)
