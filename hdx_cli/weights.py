"""Weights that come with the package: safetensors files, each verified by its sha256 before it is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .errors import WeightsError

PACKAGE = Path(__file__).resolve().parent
LOCK = PACKAGE / "weights.json"
REINSTALL = "pip install --force-reinstall --no-deps hdx-cli"


def read_weights(path: Path, lock: Path | None = LOCK) -> tuple[bytes, dict[str, str]]:
    """The content of a safetensors file and the metadata in its header.

    Args:
        path: the file.
        lock: JSON file {path relative to the package: sha256} that must name the file; None for weights of one's own.

    Raises:
        WeightsError: the file is missing or no safetensors file, or it is not what the lock says.
    """
    hint = REINSTALL if lock == LOCK else "get the file of weights again"
    try:
        content = path.read_bytes()
        known = {} if lock is None else json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: weights cannot be read ({error})", hint=hint) from None
    if lock is not None:
        name = path.relative_to(lock.parent).as_posix() if path.is_relative_to(lock.parent) else path.name
        if hashlib.sha256(content).hexdigest() != known.get(name):
            raise WeightsError(f"{path}: not the weights that {lock.name} names (sha256 differs)", hint=hint)
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        return content, dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError):
        raise WeightsError(f"{path}: not a safetensors file", hint=hint) from None


def write_lock(folder: Path = PACKAGE, lock: Path = LOCK) -> None:
    """Write down the sha256 of every safetensors file under a folder, for ``read_weights``."""
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }
    lock.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
