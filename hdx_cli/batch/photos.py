"""Which photos are meant, each once, and the name of the run folder of each."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputRejected, UsageError
from ..run_folder import RECORDS

# What a folder is searched for. A file that is named itself is taken whatever its suffix, and judged by its content.
SUFFIXES = {
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".gif", ".bmp",
}  # fmt: skip
LONGEST_LIST = 64_000_000  # bytes of a list of photos
LONGEST_NAME = 100  # characters of a folder name before a number; file systems take 255 bytes
_UNWANTED = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file may be called so on Windows


@dataclass(frozen=True)
class Found:
    """The photos to be made: absolute paths, links followed, each once; how many files were passed over, by reason."""

    photos: tuple[Path, ...]
    skipped: dict[str, int]


def find(
    named: Sequence[str], listed: Sequence[str] = (), *, recursive: bool = False, avoid: Path | None = None
) -> Found:
    """Files, folders and globs -> photos, in the order given, sorted within a folder.

    Args:
        named: what a person wrote: a file, a folder or a glob (``*``, ``?``, ``[]``, ``**``).
        listed: paths of a list; one that does not exist stays, so that its absence is reported.
        recursive: look into folders inside folders too; hidden folders, run folders and ``avoid`` are never entered.
        avoid: the folder of the results.

    Raises:
        UsageError: something named does not exist, or a glob matches nothing.
    """
    skipped: Counter[str] = Counter()
    photos: dict[Path, None] = {}
    for path in [*_expanded(named), *map(Path, listed)]:
        for photo in _inside(path, recursive, avoid, skipped) if path.is_dir() else [path]:
            photo = _resolved(photo)
            if photo in photos:
                skipped["named twice"] += 1
            photos[photo] = None
    return Found(tuple(photos), dict(skipped))


def read_list(stream: io.BufferedIOBase) -> list[str]:
    """One path a line; empty lines do not count.

    Raises:
        InputRejected: longer than 64 MB, or a line that is no path.
    """
    content = stream.read(LONGEST_LIST + 1)
    if len(content) > LONGEST_LIST:
        raise InputRejected("the list of photos is longer than 64 MB", code="E_LIST")
    if b"\0" in content:
        raise InputRejected("the list of photos holds a zero byte; write one path a line", code="E_LIST")
    return [os.fsdecode(line) for line in content.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]


def in_shard(photo: Path, shard: tuple[int, int]) -> bool:
    """Whether a photo belongs to part i of n, (i, n) with i from 1: by its path alone, so that all machines agree."""
    index, count = shard
    return int.from_bytes(hashlib.sha256(os.fsencode(photo)).digest()[:8], "big") % count == index - 1


def run_names(
    photos: Iterable[Path], held: Mapping[Path, str], is_free: Callable[[str, Path], bool]
) -> dict[Path, str]:
    """A folder name for every photo; those of ``held`` stay, and no two differ only by case or the coding of accents.

    A photo is named by its stem (``IMG``), else with its folder (``b-IMG``), its suffix (``IMG-png``) or a number.

    Args:
        photos: absolute paths.
        held: the names given before.
        is_free: whether a name may be given to a photo, as far as the disk is concerned.
    """
    names = dict(held)
    taken = {_alike(name): photo for photo, name in held.items()}
    for photo in sorted(set(photos) - set(held)):
        holder = taken.get(_alike(_safe(photo.stem)))
        proposals = _proposals(photo, beside=holder is not None and holder.parent == photo.parent)
        name = next(name for name in proposals if _alike(name) not in taken and is_free(name, photo))
        taken[_alike(name)] = photo
        names[photo] = name
    return names


def _proposals(photo: Path, beside: bool) -> Iterator[str]:
    """``beside``: the stem is that of another photo in the same folder, so that the folder tells nothing."""
    stem = _safe(photo.stem)
    yield stem
    yield _safe(f"{photo.stem}-{photo.suffix[1:].lower()}" if beside else f"{photo.parent.name}-{photo.stem}")
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


def _safe(text: str) -> str:
    """A part of a folder name that every file system takes, that leads nowhere else, and that hides nothing."""
    text = _UNWANTED.sub("_", text).replace(".partial", "_partial")  # the ending of what is half written
    text = text.strip(" .")[:LONGEST_NAME].strip(" .")
    while len(os.fsencode(text)) > 2 * LONGEST_NAME:
        text = text[:-1]
    return f"photo-{text}".rstrip("-") if not text or _DEVICES.fullmatch(text) else text


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _expanded(named: Sequence[str]) -> Iterator[Path]:
    for word in named:
        if "\0" in word:
            raise UsageError("a path cannot hold a zero byte")
        path = Path(word).expanduser()
        if os.path.lexists(path):
            yield path
            continue
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(word) else []
        if not matches:
            what = "matches nothing" if glob.has_magic(word) else "no such file or folder"
            raise UsageError(f"{word}: {what}", code="E_NO_FILE")
        yield from map(Path, matches)


def _inside(folder: Path, recursive: bool, avoid: Path | None, skipped: Counter[str]) -> Iterator[Path]:
    kept_out = _resolved(avoid) if avoid else None
    for place, folders, files in os.walk(folder):
        if (Path(place) / RECORDS).is_file():
            skipped["run folder"] += 1
            folders.clear()
            continue
        for name in sorted(files):
            if name.startswith("."):
                skipped["hidden"] += 1
            elif Path(name).suffix.lower() not in SUFFIXES:
                skipped["not an image"] += 1
            else:
                yield Path(place) / name
        within = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in within if recursive and _resolved(Path(place) / name) != kept_out]


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a ring of links
        return Path(os.path.abspath(path))
