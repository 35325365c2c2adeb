"""What is known of every photo of a batch, in one file that any number of processes may change, one after the other.

``batch.json`` says which photo goes into which folder and what became of it. That a run is finished rests on three
things: the entry (state, options, version, size and time of the photo), the records in its ``run.json``, and that what
they name exists. What the files of a run hold is not read again; ``hdx create`` on the photo does that.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import ResourceError, UsageError
from ..run_folder import RECORDS, disk_errors, locked, write_atomically
from .job import THUMBNAILS

FORMAT = 1
MANIFEST, REPORT, GALLERY = "batch.json", "report.jsonl", "index.html"
STATES = ("waiting", "done", "rejected", "failed")
LARGEST_FILE = 256_000_000  # bytes; a hundred thousand photos take about a third
LOCK_PATIENCE_S = 60.0
# names in the folder of a batch that no run folder may take
RESERVED = {MANIFEST, REPORT, GALLERY, THUMBNAILS}


@dataclass(frozen=True)
class Entry:
    """One photo.

    Attributes:
        photo: absolute path; run: name of its folder in the folder of the batch.
        state: one of ``STATES``.
        force: a new beginning was asked for and is not finished.
        options: fields of ``stages.Options`` that it was, or is to be, made with; hdx: the version.
        sha256, size, mtime_ns: of the photo when it was last looked at; "" and -1 where it was not.
        code, reason, hint: why it is not done.
        scores, warnings, seconds, finished: as ``job.Outcome``, and when.
    """

    photo: str
    run: str
    state: str = "waiting"
    force: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    hdx: str = ""
    sha256: str = ""
    size: int = -1
    mtime_ns: int = -1
    code: str | None = None
    reason: str | None = None
    hint: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    warnings: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0
    finished: str | None = None


def read(out: Path) -> dict[Path, Entry]:
    """The entries by photo, in the order in which the photos were met; none where there is no manifest.

    Raises:
        UsageError: a file that is damaged, or not ours, or of a newer hdx.
    """
    path = out / MANIFEST
    try:
        with disk_errors(path):
            if path.stat().st_size > LARGEST_FILE:
                raise ValueError("larger than 256 MB")
            content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or not isinstance(content.get("photos"), list):
            raise ValueError("not the list of a batch")
        if not isinstance(content.get("format"), int) or content["format"] > FORMAT:
            raise UsageError(
                f"{path}: of a newer hdx ({str(content.get('hdx'))[:40]})",
                hint="pip install --upgrade hdx-cli",
                code="E_BATCH_FORMAT",
            )
        entries = [_entry(values) for values in content["photos"]]
        if len({entry.run for entry in entries}) < len(entries):
            raise ValueError("two photos in one run folder")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, IsADirectoryError) as error:
        raise UsageError(
            f"{path}: damaged ({' '.join(str(error).split())[:100]})",
            hint=f"remove it and run again: finished runs are found by their photos (rm {path})",
            code="E_BATCH_FORMAT",
        ) from None
    return {Path(entry.photo): entry for entry in entries}


@contextlib.contextmanager
def changing(out: Path) -> Iterator[dict[Path, Entry]]:
    """The entries, to be changed in place; written back in one step if they were. Other processes wait.

    Raises:
        UsageError: as ``read``.
        ResourceError: the folder cannot be written, or is held by another process for a minute.
    """
    with _held(out):
        entries = read(out)
        before = dict(entries)
        yield entries
        if entries != before:
            content = {"format": FORMAT, "photos": [asdict(entry) for entry in entries.values()]}
            with disk_errors(out / MANIFEST):
                # ascii: a path may hold bytes that are no text, which JSON keeps as \udcxx
                write_atomically(out / MANIFEST, json.dumps(content, separators=(",", ":")).encode("ascii"))


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(out))
                break
            except ResourceError as error:
                if error.code != "E_LOCKED" or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield


def is_whole(run: Path) -> bool:
    """Whether a run folder has records and everything that they name exists. Contents are not looked at."""
    try:
        path = run / RECORDS
        if path.stat().st_size > LARGEST_FILE:
            return False
        state = json.loads(path.read_bytes())
        names = [state["photo"], *state["products"]]
        return len(names) > 1 and all((run / str(name)).exists() for name in names)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def photo_of(run: Path) -> Path | None:
    """The copy of the photo that a run folder holds; None where it is no run folder."""
    try:
        path = run / RECORDS
        if path.stat().st_size > LARGEST_FILE:
            return None
        name = json.loads(path.read_bytes())["photo"]
        photo = run / name
        return photo if Path(name).name == name and photo.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _entry(values: dict[str, Any]) -> Entry:
    """An entry from JSON, every value of the type that it should be.

    Raises:
        ValueError: anything else.
    """
    kinds: dict[str, Any] = {
        "photo": str, "run": str, "state": str, "force": bool, "options": dict, "hdx": str, "sha256": str, "size": int,
        "mtime_ns": int, "code": str | None, "reason": str | None, "hint": str | None, "scores": dict, "warnings": list,
        "seconds": int | float, "finished": str | None,
    }  # fmt: skip
    known = {entry.name: values[entry.name] for entry in fields(Entry) if entry.name in values}
    for name, value in known.items():
        if not isinstance(value, kinds[name]):
            raise ValueError(f"{name} is a {type(value).__name__}")
    if isinstance(known.get("seconds"), int):
        known["seconds"] = float(known["seconds"])
    entry = Entry(**known)
    if entry.state not in STATES:
        raise ValueError(f"state {entry.state[:20]}")
    if not Path(entry.photo).is_absolute() or "\0" in entry.photo:
        raise ValueError("a photo without an absolute path")
    try:
        os.fsencode(entry.run)
    except UnicodeEncodeError:
        raise ValueError("a run folder whose name no file system has") from None
    if not entry.run.strip(" .") or any(letter in entry.run for letter in "/\\:\0") or entry.run in RESERVED:
        raise ValueError(f"run folder {entry.run[:40]!r}")
    if not all(
        isinstance(value, int | float) and math.isfinite(value) for value in [*entry.scores.values(), entry.seconds]
    ):
        raise ValueError("a score that is no number")
    if not all(isinstance(warning, list) and all(isinstance(text, str) for text in warning) and len(warning) == 2
               for warning in entry.warnings):  # fmt: skip
        raise ValueError("a warning of another form")
    scores = {name: float(value) for name, value in entry.scores.items()}
    return replace(entry, scores=scores)
