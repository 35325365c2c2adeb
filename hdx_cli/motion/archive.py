"""Zip files from anywhere, and NumPy's among them: what they would take is looked at before any of it is taken."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import InputRejected

MAX_DIRECTORY = 2**20


def members(path: Path, max_bytes: int) -> list[zipfile.ZipInfo]:
    """The members of a zip file whose unpacked sizes, as it states them, add up to at most ``max_bytes``.

    Raises:
        InputRejected: it is not a zip file, damaged or too large.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 65_557))  # the end record and the longest comment
            tail = file.read()
        end = tail.rfind(b"PK\5\6")
        # the size of the directory: zipfile makes an object of half a kilobyte of every 46 bytes
        if end < 0 or len(tail) < end + 22 or struct.unpack_from("<I", tail, end + 12)[0] > MAX_DIRECTORY:
            raise InputRejected(f"{path}: not a zip file, cut short, or with too many members", code="E_MOTION_FORMAT")
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise InputRejected(f"{path}: a damaged zip file ({error})", code="E_MOTION_FORMAT") from None
    # other kinds ask for a dictionary of any size before the first byte, and no program of the field writes them
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in found):
        raise InputRejected(f"{path}: packed in a way that is not read here", code="E_MOTION_FORMAT")
    if sum(member.file_size for member in found) > max_bytes:
        raise InputRejected(f"{path}: unpacks to more than {max_bytes >> 20} MB", code="E_MOTION_SIZE")
    return found


def read_npz(path: Path, wanted: Callable[[str], bool], max_bytes: int, kinds: str = "fiub") -> dict[str, np.ndarray]:
    """The arrays of an .npz by name; their headers are believed only as far as there are bytes.

    Args:
        path: the file; nothing of it is unpickled.
        wanted: whether the array of a name is taken.
        max_bytes: what all of them may take, unpacked and as float64.
        kinds: NumPy's letters of the types that may be in it: numbers by default.

    Raises:
        InputRejected: it is not one, damaged or too large, or an array is of another type.
    """
    found: dict[str, np.ndarray] = {}
    chosen = [member for member in members(path, 2**40) if wanted(member.filename.removesuffix(".npy"))]
    too_large = InputRejected(f"{path}: unpacks to more than {max_bytes >> 20} MB", code="E_MOTION_SIZE")
    if sum(member.file_size for member in chosen) > max_bytes:
        raise too_large
    left = max_bytes
    try:
        with zipfile.ZipFile(path) as archive:
            for member in chosen:
                name, content = member.filename.removesuffix(".npy"), archive.read(member)
                stream = io.BytesIO(content)
                version = np.lib.format.read_magic(stream)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(stream)
                if dtype.hasobject:
                    raise InputRejected(f"{path}: {name} is a pickled object, not numbers", code="E_PICKLE")
                if dtype.kind not in kinds or min(shape, default=0) < 0:
                    raise ValueError(f"{name} is not an array of numbers")
                count = math.prod(int(n) for n in shape)
                if count * dtype.itemsize > len(content):
                    raise ValueError(f"{name} is cut short")
                left -= count * max(dtype.itemsize, 8)
                if left < 0:
                    raise too_large
                found[name] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except InputRejected:
        raise
    except Exception as error:  # zlib, tokenize, ast and numpy each have errors of their own for damaged files
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        reason = "".join(letter if letter.isprintable() else "?" for letter in reason)
        raise InputRejected(f"{path}: not an .npz, or damaged ({reason})", code="E_MOTION_FORMAT") from None
    return found
