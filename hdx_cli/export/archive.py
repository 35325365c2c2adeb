"""Plain files that need no reader of ours: a NumPy archive of all that animates an avatar, and posed .ply by frame."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import UsageError
from ..gaussians import Gaussians
from .glb import SkinnedGaussians
from .ply import write_ply


def write_archive(path: Path, avatar: SkinnedGaussians) -> None:
    """Write a compressed .npz: the Gaussians in rest pose, the rig, and the clips; ``FORMAT.md`` says how to pose it.

    Arrays, float32 unless stated: means [N 3], quats [N 4] wxyz of unit length, scales [N 3], opacities [N],
    sh [N K 3], joint_indices [N 8] uint16, joint_weights [N 8], rest_joints [J 3], parents [J] int64, joint_names [J]
    text, clips [C] text, and for clip c rotations_c [T J 3 3], translations_c [T 3], fps_c, loops_c. Metres, +Y up, the
    person faces +Z. Nothing is pickled.

    Raises:
        UsageError: a clip that does not fit the rig.
    """
    arrays = {
        name: getattr(avatar.gaussians, name).detach().cpu().numpy().astype(np.float32)
        for name in ("means", "quats", "scales", "opacities", "sh")
    }
    arrays["quats"] /= np.maximum(np.linalg.norm(arrays["quats"], axis=1, keepdims=True), 1e-12)
    arrays |= {
        "joint_indices": avatar.joint_indices.astype(np.uint16),
        "joint_weights": avatar.joint_weights.astype(np.float32),
        "rest_joints": avatar.rig.joints.astype(np.float32),
        "parents": avatar.rig.parents.astype(np.int64),
        "joint_names": np.array(avatar.rig.names),
        "clips": np.array([animation.name for animation in avatar.animations], dtype=np.str_),
        "generator": np.array(f"hdx {__version__}"),
    }
    for index, animation in enumerate(avatar.animations):
        rotations = animation.pose.rotations.astype(np.float32)
        if rotations.shape[1] != len(avatar.rig.parents) or len(rotations) != len(animation.pose.translations):
            raise UsageError(
                f"clip {animation.name}: {rotations.shape[:2]} rotations for {len(avatar.rig.parents)} joints"
            )
        arrays |= {
            f"rotations_{index}": rotations,
            f"translations_{index}": animation.pose.translations.astype(np.float32),
            f"fps_{index}": np.float32(animation.fps),
            f"loops_{index}": np.bool_(animation.loops),
        }
    held = io.BytesIO()  # where the disk is full, a half written zip file complains once more when it is collected
    np.savez_compressed(held, **arrays)
    path.write_bytes(held.getvalue())


def write_sequence(folder: Path, frames: Iterable[Gaussians], *, sh_degree: int | None = None, up: str = "y") -> int:
    """Write posed Gaussians as ``00000.ply``, ``00001.ply``, ... and return how many; one frame is in memory at a time.

    Index i is the same Gaussian in every file. ``sh_degree`` and ``up`` are those of ``write_ply``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for frame in frames:
        write_ply(folder / f"{count:05d}.ply", frame, sh_degree=sh_degree, up=up)
        count += 1
    return count
