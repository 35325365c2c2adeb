"""Zip files from anywhere: what they would take is looked at before any of it is taken."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

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
    if sum(member.file_size for member in found) > max_bytes:
        raise InputRejected(f"{path}: unpacks to more than {max_bytes >> 20} MB", code="E_MOTION_SIZE")
    return found
