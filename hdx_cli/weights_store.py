"""Weights besides the bundled ones: where they lie, what is locked about them, and whether that still holds.

Under the cache folder, for weights pulled from the Hub and for those brought along from a folder::

    hdx/OWNER--NAME/COMMIT/   hdx/OWNER--NAME/COMMIT.json
    hdx/NAME/imported/        hdx/NAME/imported.json

The .json beside a folder is its *lock*: repository, full commit, and size and sha256 of every file, computed here.
Nothing in this module uses the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ResourceError, UsageError, WeightsError
from .progress import Progress, Silent
from .run_folder import locked, sha256_of, write_atomically
from .weights import LOCK, REINSTALL

FORMAT = 1
BUNDLED, IMPORTED = "bundled", "imported"
MISSING, STRAY = "is missing", "is not in the lock"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_FILES, MAX_JSON = 10_000, 10_000_000
MAX_HEADER = 25_000_000  # of a safetensors file, as the Hub's own client has it
RESERVE = 100_000_000  # disk space that is left free, bytes
_PART = re.compile(r"[\w.,+()@=\- ]{1,200}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII)
_INDEX = re.compile(r"\.safetensors\.index(\.\w+)?\.json$", re.ASCII)  # of one precision: .index.fp16.json
_COMMIT, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Kept:
    """What is locked about one file: its size in bytes and its sha256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Stored:
    """Weights on this machine.

    Attributes:
        name: ``bundled``, OWNER/NAME of the Hub, or the name given on import.
        revision: what was asked for (a branch, tag or commit); None for weights not from the Hub.
        commit: the full commit, 40 hex digits; None for weights not from the Hub.
        include: patterns that the files were limited to; empty where all were taken.
        folder, lock: where the files and the lock lie.
        files: every file by its path inside the folder.
    """

    name: str
    revision: str | None
    commit: str | None
    include: tuple[str, ...]
    folder: Path
    lock: Path
    files: dict[str, Kept]

    @property
    def bytes(self) -> int:
        return sum(kept.size for kept in self.files.values())

    @property
    def pinned(self) -> str:
        """The name with its full commit, which always means these bytes."""
        return f"{self.name}@{self.commit}" if self.commit else self.name


def cache_folder(chosen: Path | None = None) -> Path:
    """The cache: as chosen, else HF_HOME, else where the Hub's tools keep theirs."""
    if chosen is not None:
        return chosen.expanduser().absolute()
    own = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or Path(own) / "huggingface").expanduser().absolute()


def option(cache: Path) -> str:
    """What a command needs besides to use this cache; empty if it is the usual one."""
    return "" if cache == cache_folder() else f" --cache-dir {shlex.quote(str(cache))}"


def is_commit(text: str) -> bool:
    """Whether a revision is a full commit."""
    return bool(_COMMIT.fullmatch(text))


def is_name(text: str) -> bool:
    """Whether a text can be one part of a repository's name, or the name of imported weights."""
    return bool(_NAME.fullmatch(text)) and "--" not in text and ".." not in text and text != BUNDLED


def place(cache: Path, name: str, commit: str | None) -> tuple[Path, Path]:
    """Folder and lock of weights of that name and commit."""
    home = cache / "hdx" / name.replace("/", "--")
    return home / (commit or IMPORTED), home / f"{commit or IMPORTED}.json"


def is_safe(path: str) -> bool:
    """Whether a file's name is a plain relative path, on every system."""
    parts = path.split("/")
    return len(path) <= 400 and all(
        _PART.fullmatch(part) and part == part.strip() and not part.endswith(".") and not part.startswith("~")
        for part in parts
    )


def is_taken(path: str) -> bool:
    """Whether a file is of a kind that is kept: safetensors, JSON, Markdown, licence."""
    name = path.rsplit("/", 1)[-1]
    return name.lower().endswith((".safetensors", ".json", ".md")) or bool(
        re.fullmatch(r"(LICEN[SC]E|NOTICE|COPYING)([.-]\w+)?", name, re.IGNORECASE | re.ASCII)
    )


def choose(paths: Iterable[str], subject: str) -> tuple[list[str], list[str]]:
    """Which files to keep, and the pickles that are left behind; other files are passed over.

    Raises:
        WeightsError: a name that leaves its folder, too many files, no safetensors file, or a folder whose weights are
            pickles only.
    """
    paths = sorted(paths)
    unsafe = [path for path in paths if not is_safe(path)]
    kept = [path for path in paths if is_taken(path)]
    # names with letters from elsewhere are harmless where they are not taken, names that climb are not
    if climbing := [path for path in unsafe if path in kept or ".." in re.split(r"[/\\]", path) or path[:1] in "/\\"]:
        raise WeightsError(f"{subject}: the file name {climbing[0][:100]!r} is refused", code="E_WEIGHTS_PATH")
    if len(paths) > MAX_FILES:
        raise WeightsError(f"{subject}: more than {MAX_FILES} files", code="E_WEIGHTS_LAYOUT")
    pickles = [path for path in paths if path.lower().endswith(PICKLES)]
    safe = {path.rpartition("/")[0] for path in kept if path.endswith(".safetensors")}
    if only := [path for path in pickles if path.rpartition("/")[0] not in safe]:
        more = f" and {len(only) - 1} more" if len(only) > 1 else ""
        raise WeightsError(
            f"{subject}: {only[0]}{more} is a pickle, which can run code, and there are no safetensors beside it",
            hint="pip install safetensors, convert the file where you trust it, then: hdx weights import FOLDER NAME",
            code="E_WEIGHTS_PICKLE",
        )
    if not safe:
        raise WeightsError(f"{subject}: no .safetensors file in it", code="E_WEIGHTS_LAYOUT")
    return kept, pickles


def check_safetensors(path: Path, name: str | None = None) -> None:
    """See that the header of a safetensors file fits the file (huggingface.co/docs/safetensors, "Format").

    Raises:
        WeightsError: it does not.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        ends = [int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"]
        if max(ends, default=0) != size - 8 - length:
            raise ValueError("its length is not what the header says")
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise WeightsError(
            f"{name or path}: not a whole safetensors file ({_line(error)})", code="E_WEIGHTS_FORMAT"
        ) from None


def check_layout(folder: Path, names: Iterable[str], subject: str) -> None:
    """See that the parts that ``model_index.json`` and the index of split weights name are there (diffusers' layout).

    Folders without a ``model_index.json`` pass: a single network needs none.

    Raises:
        WeightsError: a part, its configuration or its weights are missing, or a JSON file is none.
    """
    names = set(names)

    def read(name: str) -> dict[str, Any]:
        try:
            return read_json(folder / name)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{subject}: {name}: {_line(error)}", code="E_WEIGHTS_LAYOUT") from None

    def missing(what: str) -> WeightsError:
        return WeightsError(f"{subject}: {what} is missing", code="E_WEIGHTS_LAYOUT")

    for part, value in (read("model_index.json") if "model_index.json" in names else {}).items():
        if part.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        inside = [name for name in names if name.startswith(f"{part}/")]
        if not any(name.endswith(".json") for name in inside):
            raise missing(f"the configuration of {part[:60]!r}, which model_index.json names,")
        if f"{part}/config.json" in names and not any(name.endswith(".safetensors") for name in inside):
            raise missing(f"a .safetensors file of {part!r}, which model_index.json names,")
    for index in sorted(name for name in names if _INDEX.search(name)):
        parts = read(index).get("weight_map")
        home = index.rpartition("/")[0]
        for file in sorted({str(file) for file in parts.values()}) if isinstance(parts, dict) else []:
            if f"{home}/{file}".lstrip("/") not in names:
                raise missing(f"{file[:100]!r}, which {index} names,")


def require_space(folder: Path, needed: int, subject: str) -> None:
    """See that a disk has room before anything is written to it.

    Raises:
        ResourceError: it has not.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE:
        raise ResourceError(
            f"{subject}: needs {human(needed)}, and {folder} has {human(free)} free",
            hint="add --cache-dir FOLDER with a folder on a larger disk",
            code="E_DISK",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JSON object, or longer than any that belongs to weights.
    """
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"longer than {human(MAX_JSON)}")
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def read_lock(lock: Path) -> Stored:
    """The weights that a lock describes.

    Raises:
        WeightsError: it cannot be read, is damaged or written by a newer hdx.
    """
    try:
        facts = read_json(lock)
        if facts["format"] != FORMAT:
            raise ValueError(f"lock format {facts['format']}")
        name, commit, revision = facts["name"], facts["commit"], facts["revision"]
        files = {path: Kept(entry["size"], entry["sha256"]) for path, entry in facts["files"].items()}
        if not (
            all(is_name(part) for part in name.split("/")) and name.count("/") == (commit is not None)
            and (commit is None or (is_commit(commit) and isinstance(revision, str)))
            and isinstance(facts["include"], list) and all(isinstance(pattern, str) for pattern in facts["include"])
            and all(is_safe(path) and type(kept.size) is int and kept.size >= 0 and _SHA256.fullmatch(kept.sha256)
                    for path, kept in files.items())
        ):  # fmt: skip
            raise ValueError("impossible values")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{lock}: damaged lock ({_line(error)})",
            hint="take that file away, then pull or import the weights again",
            code="E_WEIGHTS_LOCK",
        ) from None
    return Stored(name, revision, commit, tuple(facts["include"]), lock.with_suffix(""), lock, files)


def write_lock(stored: Stored) -> None:
    """Write down what the files are, in one step."""
    facts = {
        "format": FORMAT, "name": stored.name, "revision": stored.revision, "commit": stored.commit,
        "include": list(stored.include),
        "files": {path: vars(kept) for path, kept in sorted(stored.files.items())},
    }  # fmt: skip
    write_atomically(stored.lock, (json.dumps(facts, indent=2) + "\n").encode())


def bundled(lock: Path = LOCK) -> Stored:
    """The weights that come with the package; a missing file has size 0.

    Raises:
        WeightsError: the lock of the package cannot be read.
    """
    try:
        known = read_json(lock)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{lock}: {_line(error)}", hint=REINSTALL, code="E_WEIGHTS_LOCK") from None
    files = {name: Kept(_size(lock.parent / name), str(digest)) for name, digest in known.items()}
    return Stored(BUNDLED, None, None, (), lock.parent, lock, files)


def locks(cache: Path) -> list[Path]:
    """The lock of everything pulled and imported, the newest first."""
    try:
        found = [lock for lock in (cache / "hdx").glob("*/*.json") if is_commit(lock.stem) or lock.stem == IMPORTED]
        return sorted(found, key=lambda lock: lock.stat().st_mtime_ns, reverse=True)
    except OSError as error:
        raise ResourceError(f"{cache}: {error.strerror}", hint="add --cache-dir FOLDER", code="E_DISK") from None


def state_of(stored: Stored) -> str:
    """``complete``, or ``incomplete`` where a file is missing or of another size; reads no content."""
    paths = [(stored.folder / path, kept) for path, kept in stored.files.items()]
    whole = all(path.is_file() and path.stat().st_size == kept.size for path, kept in paths)
    return "complete" if whole and paths else "incomplete"


def problems(stored: Stored, progress: Progress = Silent()) -> list[tuple[str, str]]:
    """Read every byte: (file, what is wrong with it) for all that are not as locked; empty where all is well."""
    wrong = []
    progress.start(f"verify {stored.name}", len(stored.files))
    for path, kept in stored.files.items():
        if fault := fault_of(stored.folder / path, kept):
            wrong.append((path, fault))
        progress.advance()
    return wrong + [(path, STRAY) for path in strays(stored)]


def strays(stored: Stored) -> list[str]:
    """Files beside the weights that are in no lock. Beside the bundled ones lies the package, which does not count."""
    if stored.name == BUNDLED:
        return []
    return [path for path in _paths_in(stored.folder) if path not in stored.files]


def fault_of(path: Path, kept: Kept) -> str | None:
    """What is wrong with a file, or None."""
    try:
        if not path.is_file():
            return MISSING
        if path.stat().st_size != kept.size:
            return f"has {path.stat().st_size} bytes, not {kept.size}"
        return None if sha256_of(path) == kept.sha256 else "holds other bytes (sha256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def find(cache: Path, text: str) -> list[Stored]:
    """The weights of that name on this machine, the newest first: ``bundled``, NAME, OWNER/NAME or OWNER/NAME@REVISION.

    Raises:
        WeightsError: there are none, or their lock is damaged.
    """
    if text == BUNDLED:
        return [bundled()]
    name, _, revision = text.partition("@")
    home = name.replace("/", "--")
    found = [read_lock(lock) for lock in locks(cache) if lock.parent.name == home]
    found = [one for one in found if one.name == name and revision in ("", one.commit, one.revision)]
    if not found:
        command = (f"hdx weights pull {text}" if "/" in text else "hdx weights list") + option(cache)
        raise WeightsError(f"{text}: not among the weights in {cache}", hint=command, code="E_WEIGHTS_NOT_HERE")
    return found


def require(cache: Path, text: str) -> Path:
    """The folder of weights by name, every byte verified: what code that loads weights calls.

    Raises:
        WeightsError: they are not here, or a file is not as its lock says.
    """
    stored = find(cache, text)[0]
    if wrong := problems(stored):
        raise damage(stored, wrong)
    return stored.folder


def damage(stored: Stored, wrong: list[tuple[str, str]]) -> WeightsError:
    """The error for what ``problems`` found, with the command that mends the first of it."""
    path, fault = wrong[0]
    if fault == STRAY:
        hint = f"rm {shlex.quote(str(stored.folder / path))}"
    elif stored.name == BUNDLED:
        hint = REINSTALL
    elif stored.commit:
        hint = f"hdx weights pull {stored.pinned}{option(stored.lock.parents[2])}"
    else:
        hint = f"hdx weights import FOLDER {stored.name}{option(stored.lock.parents[2])}  (FOLDER as the first time)"
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    code = "E_WEIGHTS_MISSING" if fault == MISSING else "E_WEIGHTS_TAMPERED"
    return WeightsError(f"{stored.folder / path}: {fault}{more}", hint=hint, code=code)


def import_folder(source: Path, name: str, cache: Path, progress: Progress = Silent()) -> tuple[Stored, list[str]]:
    """Copy a local folder into the cache and lock it; the pickles left behind are named.

    Args:
        source: a folder of safetensors, single or in diffusers' layout. Where the lock of an earlier pull lies beside
            it (COMMIT.json), every byte is compared with that.
        name: a new name; or OWNER/NAME, if the lock beside the folder says so.

    Raises:
        UsageError: no such folder, or the name cannot be taken.
        WeightsError: the files are not usable weights, or not what the lock beside them says.
        ResourceError: the disk is too small, or another process works there.
    """
    source = source.expanduser().absolute()
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder", code="E_NO_FILE")
    beside = source.with_name(source.name + ".json")
    known = read_lock(beside) if is_commit(source.name) and beside.is_file() else None
    if not (is_name(name) or (known and known.name == name)):
        raise UsageError(
            f"{name}: not a name for imported weights; use letters, digits, '.', '_' and single '-'",
            hint=f"hdx weights import {source} my-weights",
        )
    with disk_faults(source):
        paths, pickles = choose(_paths_in(source), str(source))
        check_layout(source, paths, str(source))
        commit = known.commit if known and known.name == name else None
        folder, lock = place(cache, name, commit)
        sizes = {path: _size(source / path) for path in paths}
    with disk_faults(cache), hold(folder.parent):
        progress.start(f"read {source.name}", len(paths))
        files = {}
        for path in paths:
            if path.endswith(".safetensors"):
                check_safetensors(source / path)
            files[path] = Kept(sizes[path], sha256_of(source / path))
            progress.advance()
        for path, kept in known.files.items() if known else ():
            if fault := fault_of(source / path, kept):
                raise WeightsError(f"{source / path}: {fault}", code="E_WEIGHTS_TAMPERED")
        stored = Stored(name, known.revision if commit else None, commit, known.include if commit else (), folder, lock,
                        files)  # fmt: skip
        if lock.is_file() and read_lock(lock).files != files:
            raise UsageError(
                f"{name}: the cache holds other weights of that name, in {folder}",
                hint=f"hdx weights import {source} {name.rpartition('/')[2]}-2",
                code="E_OUTPUT",
            )
        if lock.is_file() and not problems(stored):
            return stored, pickles
        require_space(cache, stored.bytes, str(source))
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for path in files:
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, partial / path)
        settle(stored, partial)
        return stored, pickles


def settle(stored: Stored, partial: Path) -> None:
    """Verify finished files in a partial folder, write the lock, and move them to their place.

    Raises:
        WeightsError: what lies on the disk is not what was read; nothing has been locked then.
    """
    moved = [path for path in stored.files if (partial / path).is_file()]
    for path in moved:
        if fault := fault_of(partial / path, stored.files[path]):
            raise WeightsError(f"{partial / path}: {fault}", code="E_WEIGHTS_TAMPERED")
    write_lock(stored)  # first: files that are in no lock would pass for somebody else's
    for path in moved:
        (stored.folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / path, stored.folder / path)
    shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def hold(home: Path) -> Iterator[None]:
    """Keep other processes away from the weights of one name.

    Raises:
        ResourceError: one is at work there, or the folder cannot be written.
    """
    home.mkdir(parents=True, exist_ok=True)
    try:
        with locked(home):
            yield
    except ResourceError as error:
        if error.code == "E_LOCKED":
            message, hint = f"{home}: another hdx is fetching these weights", "wait until it has finished"
        else:
            message, hint = error.message, "add --cache-dir FOLDER"
        raise ResourceError(message, hint=hint, code=error.code) from None


@contextlib.contextmanager
def disk_faults(place: Path) -> Iterator[None]:
    """Turn a full disk, missing rights and the like into a ResourceError that names the path."""
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else place
        raise ResourceError(
            f"{where}: {error.strerror or _line(error)}",
            hint="free some space, or add --cache-dir FOLDER",
            code="E_DISK",
        ) from error


def human(size: int) -> str:
    """Bytes for people, in powers of ten."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} B"


def git_blob_sha1(path: Path) -> str:
    """The name git gives a file's content: sha1 of "blob SIZE\\0" and the bytes (git-scm.com, Git Objects)."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _paths_in(folder: Path) -> list[str]:
    """Regular files in a folder, links to files among them, links to folders not followed; at most MAX_FILES + 1."""
    found = []
    for home, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(home) / name
            if not name.startswith(".") and path.is_file():
                found.append(path.relative_to(folder).as_posix())
            if len(found) > MAX_FILES:
                return found
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
