"""Gaussians as .spz, .splat or .sog: small files for the web, in one pose. Needs the optional library gaussforge.

.spz keeps positions on a grid of 0.24 mm, .splat has no harmonics, .sog orders the Gaussians anew; none holds a
skeleton.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import NothingToDo, ResourceError, UsageError
from ..gaussians import Gaussians
from .ply import write_ply

PACKED = ("spz", "splat", "sog")
TIMEOUT_S = 600
# gaussforge prints to the C library's stdout, is young and native code: a process of its own keeps its words and its
# mishaps away from ours.
CONVERT = """
import sys
from gaussforge import GaussForge
source, target, kind = sys.argv[1:]
with open(source, "rb") as file:
    converted = GaussForge().convert(file.read(), "ply", kind)
if "error" in converted:
    sys.exit(converted["error"])
with open(target, "wb") as file:
    file.write(converted["data"])
"""


def write_packed(path: Path, gaussians: Gaussians, *, format: str | None = None, up: str = "y") -> None:
    """Write Gaussians in a packed format.

    Args:
        path: the file to write.
        gaussians: N Gaussians; means in metres.
        format: one of ``PACKED``; the suffix of ``path`` by default.
        up: the axis that points up in the file, a key of ``ply.UP_AXES``.

    Raises:
        UsageError: an unknown format, or gaussforge is not installed.
        NothingToDo: there are no Gaussians.
        ResourceError: the conversion failed, or there is no room for temporary files.
    """
    format = format or path.suffix.removeprefix(".").lower()
    if format not in PACKED:
        raise UsageError(f"{path}: {format or 'no suffix'} is none of {', '.join(PACKED)}", hint="hdx export --list")
    if importlib.util.find_spec("gaussforge") is None:
        raise UsageError(
            f".{format} files need the library gaussforge, which is not installed",
            hint="pip install 'hdx-cli[formats]'",
            code="E_MISSING_LIBRARY",
        )
    if not len(gaussians):
        raise NothingToDo(f"{path}: the avatar has no Gaussians")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.ply", Path(folder) / "out"
        try:
            write_ply(source, gaussians, up=up)
        except OSError as error:  # else the output would be blamed
            raise ResourceError(
                f"{folder}: {error.strerror or error}", hint="export TMPDIR=FOLDER, one with room", code="E_DISK"
            ) from None
        command = [sys.executable, "-c", CONVERT, str(source), str(target), format]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ResourceError(f"{path}: gaussforge took more than {TIMEOUT_S} s", code="E_ENCODE") from None
        if done.returncode or not target.is_file():
            words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ResourceError(f"{path}: gaussforge could not write ({words[-1]})", code="E_ENCODE")
        path.write_bytes(target.read_bytes())
