"""Motion files by their ending."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputRejected
from . import bvh, smpl
from .retarget import Motion

MAX_BYTES, MAX_TEXT = 128 * 2**20, 64 * 2**20


def read(path: Path, allow_pickle: bool = False) -> Motion:
    """The motion in a file, or in a folder of one .json per frame.

    Raises:
        InputRejected: it is of no known kind, too large, damaged, or needs ``allow_pickle``.
    """
    if path.is_dir():
        try:
            return smpl.read_folder(path)
        except OSError as error:
            raise InputRejected(f"{path}: cannot be read ({error.strerror or error})", code="E_READ") from None
    kind = path.suffix.lower()
    readers = {".bvh": bvh.read, ".npz": smpl.read_npz, ".smpl": smpl.read_npz, ".json": smpl.read_json}
    pickles = (".pkl", ".pickle", ".pt", ".pth")
    if kind in pickles and not allow_pickle:
        raise InputRejected(
            f"{path}: a pickle can hold more than numbers and is not read unasked",
            hint=f"--motion {path} --allow-pickle",
            code="E_PICKLE",
        )
    if kind not in readers and kind not in pickles:
        hint = (
            "convert it to .bvh, for example with Blender"
            if kind in (".fbx", ".glb", ".gltf", ".vmd", ".c3d")
            else None
        )
        raise InputRejected(f"{path}: not a motion file that is read here", hint=hint, code="E_MOTION_FORMAT")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputRejected(f"{path}: cannot be read ({error.strerror})", code="E_READ") from None
    limit = MAX_TEXT if kind == ".bvh" else MAX_BYTES
    if not path.is_file() or size > limit:
        raise InputRejected(f"{path}: larger than {limit >> 20} MB, or no plain file", code="E_MOTION_SIZE")
    try:
        return readers[kind](path) if kind in readers else smpl.read_pickle(path)
    except OSError as error:
        raise InputRejected(f"{path}: cannot be read ({error.strerror or error})", code="E_READ") from None
