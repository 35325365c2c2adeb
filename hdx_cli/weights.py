"""Weights that come with the package: safetensors files, each verified by its sha256 before it is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .errors import WeightsError

PACKAGE = Path(__file__).resolve().parent
LOCK = PACKAGE / "weights.json"
MOST_HEADER_BYTES = 25_000_000  # of a safetensors file, as the Hub's own client has it
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
        if not isinstance(known, dict):
            raise ValueError(f"{lock} is no list of weights")
    except (OSError, ValueError, RecursionError) as error:
        reason = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:300])
        raise WeightsError(f"{path}: weights cannot be read ({reason})", hint=hint) from None
    if lock is not None:
        name = path.relative_to(lock.parent).as_posix() if path.is_relative_to(lock.parent) else path.name
        if hashlib.sha256(content).hexdigest() != known.get(name):
            raise WeightsError(f"{path}: not the weights that {lock.name} names (sha256 differs)", hint=hint)
    try:
        length = int.from_bytes(content[:8], "little")
        if length > MOST_HEADER_BYTES:
            raise ValueError
        notes = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        if not all(isinstance(value, str) for value in notes.values()):
            raise ValueError
        return content, dict(notes)
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise WeightsError(f"{path}: not a safetensors file", hint=hint) from None


def write_lock(folder: Path = PACKAGE, lock: Path = LOCK) -> None:
    """Write down the sha256 of every safetensors file under a folder, for ``read_weights``."""
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }
    lock.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
