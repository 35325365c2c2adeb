"""The folder of one avatar: what lies where, what is done, and writes that leave nothing half finished.

A *product* is one file or folder that a stage makes, named by its path inside the run folder (``observation``, ``body.npz``,
``exports/avatar.ply``). It is written beside its place under a ``.partial`` name, renamed, and only then recorded in
``run.json``. A product is done as long as its record's configuration and the sha256 of everything it was made from still
match; so every stage runs alone from the files, and a run that was cut off continues at the first product that is not done.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from . import __version__
from .errors import NothingToDo, ResourceError, UsageError

FORMAT = 1
RECORDS = "run.json"
LOCK = ".lock"
# a record is a kilobyte, and a film of every motion that a person has makes hundreds
MOST_BYTES, MOST_NAMES = 10_000_000, 10_000
# The machine, not the program, is at fault: no space, quota, file-size limit, rights, read-only or failing disk.
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG,
    errno.EMFILE, errno.ENFILE, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What became of a product: its path, whether it was there already, and how long making it took."""

    path: Path
    reused: bool
    seconds: float


class RunFolder:
    """One run folder, locked for this process. Use :meth:`create` or :meth:`open`, both as context managers."""

    def __init__(self, path: Path, state: dict[str, Any], force: bool = False):
        self.path = path
        self.state = state
        self.force = force

    @classmethod
    @contextlib.contextmanager
    def create(cls, path: Path, photo: Path, *, seed: int = 0, force: bool = False) -> Iterator[RunFolder]:
        """The run folder of ``photo`` at ``path``: a new one, or the one that is there to be continued.

        Args:
            path: the folder; made if it does not exist.
            photo: the photo, copied into the folder as ``photo.<its suffix>``.
            seed: written down for the stages.
            force: ignore every record, and replace the photo where the folder holds another one.

        Raises:
            UsageError: the photo does not exist, the path is no run folder, or it belongs to another photo.
            ResourceError: the folder cannot be written or another process works in it.

        A folder that this call made is taken away again if nothing in it was finished.
        """
        if not photo.is_file():
            what = "is a folder, not a photo" if photo.is_dir() else "no such file"
            raise UsageError(f"{photo}: {what}", code="E_NO_FILE")
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path}: is a file, not a folder", hint="choose another place with -o", code="E_OUTPUT")
        is_new = not (path / RECORDS).exists()
        if is_new and path.is_dir() and not _only_begun(path, photo):
            raise UsageError(
                f"{path}: exists, is not empty and is not a run folder",
                hint="choose another place with -o",
                code="E_OUTPUT",
            )
        made_here = _missing_parents(path)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            run = cls(path, {}, force)
            try:
                run.state = {} if is_new else _read_state(path)
                run._take_photo(photo, seed)
                yield run
            finally:
                remove_partials(path)
                if is_new and not run_has_records(path):
                    # a product may be in its place and its record not: the disk was full by then
                    taken = (entry.name for kind in ("photo.*", "mask.*") for entry in path.glob(kind))
                    for name in (*run.state.get("products", {}), *taken, RECORDS, LOCK):
                        with contextlib.suppress(OSError):
                            _remove(path / name)
                    for folder in made_here:
                        with contextlib.suppress(OSError):
                            folder.rmdir()

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, *, force: bool = False) -> Iterator[RunFolder]:
        """The existing run folder at ``path``.

        Raises:
            NothingToDo: there is no run folder.
            ResourceError: it cannot be written or another process works in it.
        """
        if not (path / RECORDS).is_file():
            raise NothingToDo(
                f"{path}: not a run folder (no {RECORDS} in it)", hint=f"hdx create PHOTO -o {path}", code="E_NO_RUN"
            )
        with locked(path):
            try:
                yield cls(path, _read_state(path), force)
            finally:
                remove_partials(path)

    @property
    def photo(self) -> Path:
        """The copy of the photo inside the folder."""
        return self.path / self.state["photo"]

    @property
    def seed(self) -> int:
        return self.state["seed"]

    @property
    def options(self) -> dict[str, Any]:
        """What the stages were last asked for; free for the stages to fill, see :meth:`remember`."""
        return self.state.get("options", {})

    def remember(self, options: dict[str, Any], seed: int | None = None) -> None:
        """Keep ``options`` (and the seed) for later runs of single stages."""
        new = {"options": _as_json(options), "seed": self.seed if seed is None else seed}
        if any(self.state.get(name) != value for name, value in new.items()):  # what is finished needs no room
            self.state |= new
            self._save()

    def record(self, product: str) -> dict[str, Any]:
        """The record of a finished product; empty where there is none."""
        return self.state["products"].get(product, {})

    def require(self, product: str, command: str) -> Path:
        """The path of a finished product.

        Raises:
            NothingToDo: it has not been made; the hint is ``command``.
        """
        path = self.path / product
        if not self.record(product) or not path.exists():
            raise NothingToDo(f"{self.path}: {product} has not been made yet", hint=command, code="E_NOT_MADE")
        return path

    def is_current(self, product: str) -> bool:
        """True where the product exists and what it was made from has not changed since."""
        record = self.record(product)
        return (
            bool(record) and (self.path / product).exists() and record["inputs"] == self._hashes(list(record["inputs"]))
        )

    def is_done(self, product: str, config: dict[str, Any], inputs: list[str]) -> bool:
        """True where the product exists and its record matches ``config`` and the present sha256 of ``inputs``."""
        record = self.record(product)
        return (
            not self.force
            and bool(record)
            and (self.path / product).exists()
            and record["hdx"] == __version__
            and record["config"] == _as_json(config)
            and record["inputs"] == self._hashes(inputs)
        )

    def make(
        self,
        product: str,
        config: dict[str, Any],
        inputs: list[str],
        write: Callable[[Path], dict[str, Any] | None],
        device: str = "cpu",
    ) -> Made:
        """Make a product unless it is done.

        Args:
            product: its path inside the folder; a suffix makes it a file, none a folder.
            config: everything that decides its content besides the inputs; must survive JSON.
            inputs: paths inside the folder it is made from.
            write: makes the product at the path it is given (a folder exists already); what it returns is recorded too.
            device: written down.
        """
        path = self.path / product
        if not is_inside(self.path, product):
            raise UsageError(f"{path}: lies outside of the run folder", hint="remove that link", code="E_OUTPUT")
        if self.is_done(product, config, inputs):
            return Made(path, True, self.record(product)["seconds"])
        is_file = bool(path.suffix)
        partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        start = time.perf_counter()
        with disk_errors(path):
            hashes = self._hashes(inputs)
            _remove(partial)
            (partial.parent if is_file else partial).mkdir(parents=True, exist_ok=True)
            try:
                extra = write(partial) or {}
                for file in [partial] if is_file else _files(partial):
                    _sync(file)
                outputs = {file.name if is_file else str(file.relative_to(partial)): sha256_of(file)
                           for file in ([partial] if is_file else _files(partial))}  # fmt: skip
                if is_file:
                    outputs = {path.name: next(iter(outputs.values()))}
                # the record goes first: between removal and rename there must be no record of what is not there
                if self.state["products"].pop(product, None):
                    self._save()
                if not is_file:
                    _remove(path)
                os.replace(partial, path)
                _sync(path.parent)
            finally:
                _remove(partial)
            seconds = time.perf_counter() - start
            if self.force:  # what was made from the old one must not pass as done in a later run either
                for later in self._made_from(product):
                    self.state["products"].pop(later, None)
            self.state["products"][product] = {
                "hdx": __version__,
                "config": _as_json(config),
                "inputs": hashes,
                "outputs": outputs,
                "seconds": round(seconds, 3),
                "device": device,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                **_as_json(extra),
            }
            self._save()
        return Made(path, False, seconds)

    def adopt(self, file: Path, name: str) -> str:
        """Copy a file of the user into the folder as ``name`` (with its suffix), so that later runs need only the folder."""
        name += file.suffix.lower()
        with disk_errors(self.path):
            if not file.is_file():
                raise UsageError(f"{file}: no such file", code="E_NO_FILE")
            if not (self.path / name).exists() or sha256_of(self.path / name) != sha256_of(file):
                _copy(file, self.path / name)
        return name

    def _take_photo(self, photo: Path, seed: int) -> None:
        held = self.state.get("photo")
        if held and (self.path / held).is_file() and sha256_of(self.path / held) == sha256_of(photo):
            return
        if held and not self.force:
            raise UsageError(
                f"{self.path}: holds the avatar of another photo ({_short(self.state.get('photo_name', held))})",
                hint="choose another place with -o, or replace it with --force",
                code="E_OTHER_PHOTO",
            )
        if held:
            for product in self.state["products"]:
                _remove(self.path / product)
            _remove(self.path / held)
        name = "photo" + photo.suffix.lower()
        with disk_errors(self.path):
            _copy(photo, self.path / name)
        self.state = {
            "format": FORMAT, "hdx": __version__, "photo": name, "photo_name": photo.name, "seed": seed, "products": {},
        }  # fmt: skip
        self._save()

    def _made_from(self, product: str) -> list[str]:
        """The recorded products that were made from ``product``, directly or not."""
        found, new = {product}, [product]
        while new:
            new = [
                name
                for name, record in self.state["products"].items()
                if name not in found and any(one in record.get("inputs", {}) for one in new)
            ]
            found.update(new)
        return sorted(found - {product})

    def _hashes(self, inputs: list[str]) -> dict[str, str]:
        return {name: sha256_of(self.path / name) for name in inputs}

    def _save(self) -> None:
        with disk_errors(self.path):
            text = json.dumps(self.state, indent=2, ensure_ascii=False) + "\n"
            # bytes of a file name that are no text become \udcxx, which is also how JSON writes them
            write_atomically(self.path / RECORDS, text.encode("utf-8", "backslashreplace"))


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step: readers see the old content or the new, also after a power cut."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        partial.unlink(missing_ok=True)  # a link left there would be written through
        partial.write_bytes(content)
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_outside(path: Path, write: Callable[[Path], Any]) -> Made:
    """Make a file or folder at a place of the user's own choice: beside it first, then renamed over it."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    start = time.perf_counter()
    with disk_errors(path):
        if path.is_dir() and path.suffix:
            raise UsageError(f"{path}: is a folder", code="E_OUTPUT")
        made_here = _missing_parents(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _remove(partial)
            write(partial)
            if path.is_dir():
                raise UsageError(f"{path}: exists already", hint="choose another place with -o", code="E_OUTPUT")
            os.replace(partial, path)
        finally:
            _remove(partial)
            for folder in made_here:
                with contextlib.suppress(OSError):  # not empty: the result is in it
                    folder.rmdir()
    return Made(path, False, time.perf_counter() - start)


def sha256_of(path: Path) -> str:
    """sha256 of a file, or of the names and contents of all files in a folder; "missing" where there is nothing."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in _files(path):
            whole.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode(errors="surrogateescape"))
        return whole.hexdigest()
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_has_records(path: Path) -> bool:
    """True where a run folder has at least one finished product."""
    try:
        return bool(json.loads((path / RECORDS).read_bytes())["products"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def remove_partials(path: Path) -> None:
    """Take away what an interrupted write left in a run folder."""
    with contextlib.suppress(OSError):
        for folder in (path, path / "exports"):
            for entry in [
                e for e in folder.glob("*.partial*") if e.suffix == ".partial" or e.stem.endswith(".partial")
            ]:
                _remove(entry)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process out of a run folder. The system releases the lock when the process ends, however it ends.

    Raises:
        ResourceError: another process holds it.
    """
    file = None
    with disk_errors(path):
        if (path / LOCK).is_symlink():
            raise UsageError(f"{path / LOCK}: is a link", hint=f"rm {path / LOCK}", code="E_RUN_FORMAT")
        try:
            file = open(path / LOCK, "a+b")  # noqa: SIM115 - closed below, after the body
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
    if file is None:  # nothing can change on a disk that is read-only; what is to be written there fails by itself
        yield
        return
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            raise ResourceError(
                f"{path}: another hdx is working in this folder",
                hint="wait until it has finished, or choose another place with -o",
                code="E_LOCKED",
            ) from None
        yield


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, missing rights and the like into a ResourceError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        # of a copy or a renaming the second name is what could not be written
        where = next((name for name in (error.filename2, error.filename) if isinstance(name, (str, bytes))), path)
        raise ResourceError(
            f"{os.fsdecode(where)}: {os.strerror(error.errno)}",
            hint="free some space, or choose another place with -o",
            code="E_DISK",
        ) from error


def is_inside(folder: Path, name: str) -> bool:
    """Whether a name that stands in a file means something below ``folder``, on every system and through every link."""
    # Windows takes both slashes, drives (C:x) and shares (//host/share); what it takes for such is refused everywhere
    parts = PureWindowsPath(name).parts
    if not parts or PureWindowsPath(name).anchor or ".." in parts or "\0" in name or len(name) > 1000:
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve() / Path(name).parts[0])
    except (OSError, ValueError, RuntimeError):  # too long, bytes that no name has, links in a circle
        return False


def _read_state(path: Path) -> dict[str, Any]:
    """The content of ``run.json``; what the stages take from it is of the right type and inside the folder.

    Raises:
        UsageError: it is damaged, or of a newer hdx.
        ResourceError: it cannot be read.
    """
    hint = "choose another place with -o"
    try:
        with disk_errors(path):
            if (path / RECORDS).stat().st_size > MOST_BYTES:
                raise ValueError("far too long")
            state = json.loads((path / RECORDS).read_bytes())
        form = state["format"]
        if not isinstance(form, int):
            raise ValueError("a format that is no number")
        if form <= FORMAT:
            _check_state(path, state)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path / RECORDS}: damaged ({_short(error)})", hint=hint, code="E_RUN_FORMAT") from None
    if form > FORMAT:
        version, form = _short(state.get("hdx", "unknown")), _short(min(form, 10**9))
        raise UsageError(
            f"{path}: made by a newer hdx ({version}, run format {form}; this one reads up to {FORMAT})",
            hint="pip install --upgrade hdx-cli",
            code="E_RUN_FORMAT",
        )
    return state


def _check_state(path: Path, state: dict[str, Any]) -> None:
    """See that the records can be relied on.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: they cannot.
    """
    photo, products, options = state["photo"], state["products"], state.get("options", {})
    if not isinstance(photo, str) or Path(photo).name != photo or not isinstance(state.get("photo_name", ""), str):
        raise ValueError("a photo without a plain name")
    if type(state["seed"]) is not int or abs(state["seed"]) >= 2**63:
        raise ValueError("a seed that is no number")
    if not isinstance(options, dict) or not all(_is_plain(value) for value in options.values()):
        raise ValueError("options that are none")
    names = {photo, *products} | ({options["mask"]} if options.get("mask") is not None else set())
    for product, record in products.items():
        if not isinstance(record, dict):
            raise ValueError(f"the record of {_short(product)} is none")
        names |= {*record.get("inputs", {})}
        if len(names) > MOST_NAMES:
            raise ValueError("far too many names")
        if record:
            _check_record(product, record)
    for name in names:
        if not isinstance(name, str) or name in (RECORDS, LOCK) or not is_inside(path, name):
            raise ValueError(f"{_short(name)!r} is no place in this folder")


def _check_record(product: str, record: dict[str, Any]) -> None:
    """As ``_check_state``, for the record of one product."""
    right = (
        isinstance(record["hdx"], str)
        and isinstance(record["config"], dict)
        and all(isinstance(digest, str) for digest in record["inputs"].values())
        and isinstance(record.get("outputs", {}), dict)
        and 0 <= float(record["seconds"]) < 1e9
        # what is shown of a product
        and all(isinstance(float(number), float) and not isinstance(number, str)
                for kind in ("scores", "confidence") for number in record.get(kind, {}).values())
        and all(isinstance(finding[part], str)
                for finding in record.get("findings", []) for part in ("code", "message"))
    )  # fmt: skip
    if not right or isinstance(record["seconds"], str):
        raise ValueError(f"the record of {_short(product)} is incomplete")


def _is_plain(value: Any) -> bool:
    """Whether an option is nothing, a switch, a finite number or a short text."""
    return value is None or (isinstance(value, str) and len(value) <= 1000) or (
        isinstance(value, int | float) and abs(value) < 1e18
    )  # fmt: skip


def _short(value: object) -> str:
    """A value of the file, or an error about one, as a short printable line."""
    text = " ".join(str(value).split()) or type(value).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:150])


def _missing_parents(path: Path) -> list[Path]:
    """``path`` and those of its parents that do not exist yet, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))


def _only_begun(path: Path, photo: Path) -> bool:
    """Whether a folder without records holds no more than a start that was killed: a lock, partial files, this photo."""
    for entry in path.iterdir():
        begun = entry.name == LOCK or ".partial" in entry.name
        same = entry.stem == "photo" and entry.is_file() and entry.stat().st_size == photo.stat().st_size
        if not begun and not (same and sha256_of(entry) == sha256_of(photo)):
            return False
    return True


def _files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.rglob("*") if entry.is_file())


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(f"{target.stem}.partial{target.suffix}")
    try:
        partial.unlink(missing_ok=True)
        shutil.copyfile(source, partial)
        _sync(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the system write a file or folder entry to the disk. Windows has no such call for folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(handle)


def _lock(file) -> None:
    """Lock an open file or raise BlockingIOError; file systems without locks are let through."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError from None
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
