"""Weights from the Hugging Face Hub: one commit of a repository, its safetensors only, every byte checked.

The Hub's own client does the talking; it compares no checksums of plain downloads, so that is done here: against the
sha256 (large files) or git's sha1 (small ones) that the server lists, and against the lock of an earlier pull of the
same commit. There is no default repository: what hdx uses unless told otherwise is bundled.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import os
import re
import shlex
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import weights_store as store
from .errors import HdxError, ResourceError, UsageError, WeightsError
from .progress import Progress, Silent
from .run_folder import DISK_ERRORS, sha256_of
from .weights_store import Kept, Stored

DEFAULT_REVISION = "main"
TIMEOUT_S = 10.0
_REVISION = re.compile(r"[\w.][\w./-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """What a person names: repository OWNER/NAME and a revision (branch, tag or full commit)."""

    repo: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Settings:
    """How the Hub is reached.

    Raises:
        UsageError: the mirror is no http(s) address.

    Attributes:
        cache: folder for everything that is written.
        mirror: address that serves the Hub's routes; no token is sent to it.
        offline: use no network at all.
        bars: let the client draw its progress bars.
    """

    cache: Path
    mirror: str | None = None
    offline: bool = False
    bars: bool = False

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.mirror or "https://huggingface.co")
            fit = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:
            fit = False
        if not fit:
            raise UsageError(f"--mirror {self.mirror}: not an address", hint="--mirror https://HOST")

    @property
    def endpoint(self) -> str:
        return (self.mirror or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the server lists it: size in bytes, sha256 if it is a large one, and else git's sha1 of its content."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    """One commit of a repository: the files that would be taken, and the pickles that would be left there."""

    reference: Reference
    commit: str
    include: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    pickles: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Pulled:
    """What a pull left: the weights, and the paths that were downloaded by it (none if all was here)."""

    stored: Stored
    downloaded: tuple[str, ...]


def parse(text: str) -> Reference:
    """OWNER/NAME or OWNER/NAME@REVISION.

    Raises:
        UsageError: the text is neither.
    """
    repo, at, revision = text.partition("@")
    parts = repo.split("/")
    if not (len(parts) == 2 and all(map(store.is_name, parts)) and not repo.endswith(".git")):
        raise UsageError(f"{text[:200]!r}: not a repository of the Hub", hint="hdx weights pull OWNER/NAME@REVISION")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{text[:200]!r}: not a revision", hint=f"hdx weights pull {repo}@{DEFAULT_REVISION}")
    return Reference(repo, revision or DEFAULT_REVISION)


def command_of(reference: Reference, settings: Settings) -> str:
    """The command that pulls, to paste."""
    mirror = f" --mirror {shlex.quote(settings.mirror)}" if settings.mirror else ""
    return f"hdx weights pull {reference}{mirror}{store.option(settings.cache)}"


@contextlib.contextmanager
def environment(settings: Settings) -> Iterator[None]:
    """Variables that ``huggingface_hub`` reads once, when it is imported; afterwards they are as before.

    The token of ``hf auth login`` stays where it was, whatever the cache.
    """
    wanted = {
        "HF_TOKEN_PATH": os.environ.get("HF_TOKEN_PATH") or str(store.cache_folder() / "token"),
        "HF_HOME": str(settings.cache),
        "HF_ENDPOINT": settings.endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_HUB_OFFLINE": "1"} if settings.offline else {}),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def look_up(reference: Reference, settings: Settings, include: tuple[str, ...] = ()) -> Listing:
    """Resolve a revision to its commit and list the files with their sizes; nothing is downloaded.

    Args:
        include: patterns such as ``unet/*``; only files that match one are looked at. Empty for all.

    Raises:
        WeightsError, ResourceError, UsageError: see ``pull``.
    """
    if settings.offline:
        raise _not_here(reference, settings)
    client = _client(settings)
    with explained(reference, settings):
        api = client.HfApi(endpoint=settings.endpoint, token=_token(settings))
        commit = api.model_info(reference.repo, revision=reference.revision, timeout=TIMEOUT_S).sha
        if not store.is_commit(str(commit)):
            raise ValueError("it gives no full commit")
        tree = api.list_repo_tree(reference.repo, recursive=True, revision=commit)
        listed = list(itertools.islice(tree, 2 * store.MAX_FILES))
        entries = {entry.path: entry for entry in listed if hasattr(entry, "size")}
        found = {path: _remote(entry) for path, entry in entries.items()}
    wanted = [path for path in found if not include or any(fnmatch.fnmatchcase(path, each) for each in include)]
    if include and not wanted:
        raise UsageError(
            f"{reference}: no file matches {', '.join(include)}", hint=f"{command_of(reference, settings)} --dry-run"
        )
    taken, pickles = store.choose(wanted, str(reference))
    return Listing(reference, commit, include, tuple(found[path] for path in taken), tuple(pickles))


def held(reference: Reference, settings: Settings, include: tuple[str, ...] = ()) -> Stored | None:
    """What is on this machine already and needs no network: a full commit, or offline whatever was pulled by that name.

    Every byte is verified. None where something is missing or damaged, or where the revision must be looked up.

    Raises:
        WeightsError: offline, and the weights are not here or damaged.
    """
    if not settings.offline and not store.is_commit(reference.revision):
        return None
    try:
        found = store.find(settings.cache, str(reference))[0]
    except WeightsError as error:
        if not settings.offline:
            return None  # a damaged lock is told where the new one would be written
        raise _not_here(reference, settings) if error.code == "E_WEIGHTS_NOT_HERE" else error from None
    if found.include and not (include and set(include) <= set(found.include)):
        if settings.offline:
            raise _not_here(reference, settings)
        return None
    wrong = store.problems(found)
    if wrong and settings.offline:
        raise store.damage(found, wrong)
    return None if wrong else found


def pull(
    reference: Reference,
    settings: Settings,
    include: tuple[str, ...] = (),
    progress: Progress = Silent(),
    announce: Callable[[Listing, int], None] = lambda listing, missing: None,
) -> Pulled:
    """Have one commit of a repository on this machine, verified and locked.

    Args:
        include: as for ``look_up``; files of earlier pulls of the commit stay.
        announce: called before anything is downloaded, with what was found and how many bytes are missing.

    Raises:
        UsageError: nothing matches ``include``.
        WeightsError: gated, missing, refused, damaged, no network or no Hub at the address; ``code`` says which.
        ResourceError: the disk is too small or fails, or another process fetches the same.
    """
    if (found := held(reference, settings, include)) is not None:
        return Pulled(found, ())
    listing = look_up(reference, settings, include)
    folder, lock = store.place(settings.cache, reference.repo, listing.commit)
    with store.disk_faults(settings.cache), store.hold(folder.parent):
        known = store.read_lock(lock) if lock.is_file() else None
        before = known.files if known else {}
        progress.start("verify", None)
        missing = [
            file
            for file in listing.files
            if file.path not in before or store.fault_of(folder / file.path, before[file.path])
        ]
        partial = folder.with_name(f"{folder.name}.partial")
        needed = sum(file.size for file in missing if not (partial / file.path).is_file())
        announce(listing, needed)
        store.require_space(settings.cache, needed, str(reference))
        # a name like main stays known for offline use when its commit is fetched again by number
        revision = known.revision if known and store.is_commit(reference.revision) else reference.revision
        all_here = not include or (known is not None and not known.include)
        limits = () if all_here else tuple(sorted({*include, *(known.include if known else ())}))
        try:
            fetched = {file.path: _fetch(file, listing, settings, partial, before.get(file.path)) for file in missing}
            stored = Stored(reference.repo, revision, listing.commit, limits, folder, lock, before | fetched)
            if all_here:
                _check_whole(stored, partial, str(reference))
        except WeightsError as error:
            if error.code in ("E_WEIGHTS_FORMAT", "E_WEIGHTS_LAYOUT"):  # no later pull can make use of it
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if fetched or known is None or (known.include, known.revision) != (limits, revision):
            store.settle(stored, partial)
        for path in store.strays(stored):  # a file in no lock lies there only where somebody put it
            progress.warn("W_WEIGHTS_STRAY", f"{folder / path}: does not belong to these weights")
    return Pulled(stored, tuple(fetched))


def _fetch(file: RemoteFile, listing: Listing, settings: Settings, partial: Path, before: Kept | None) -> Kept:
    """Download one file into the partial folder and compare it with everything that is known of it."""
    client, reference = _client(settings), listing.reference
    where = dict(endpoint=settings.endpoint, token=_token(settings))
    target = partial / file.path
    for again in (False, True):  # the first copy may come from the client's own cache, which it does not verify
        with explained(reference, settings):
            url = client.hf_hub_url(reference.repo, file.path, revision=listing.commit, endpoint=settings.endpoint)
            told = client.get_hf_file_metadata(url, **where)
            client.hf_hub_download(
                reference.repo, file.path, revision=listing.commit, local_dir=partial, force_download=again, **where
            )
        kept = Kept(target.stat().st_size, sha256_of(target))
        large = told.etag if re.fullmatch("[0-9a-f]{64}", told.etag or "") else None
        if told.commit_hash not in (None, listing.commit):
            fault = f"comes from the commit {told.commit_hash}"
        elif kept.size != file.size:
            fault = f"has {kept.size} bytes, and the Hub lists {file.size}"
        elif {file.sha256, large} - {None, kept.sha256}:
            fault = "is not what the Hub lists (sha256 differs)"
        elif file.git_sha1 and store.git_blob_sha1(target) != file.git_sha1:
            fault = "is not what the Hub lists (git's sha1 differs)"
        elif before is not None and kept != before:
            fault = "is not what this commit held when it was first pulled (sha256 differs from the lock)"
        else:
            if file.path.endswith(".safetensors"):
                store.check_safetensors(target, f"{reference}: {file.path}")
            return kept
        target.unlink(missing_ok=True)
    raise WeightsError(
        f"{reference}: {file.path} {fault}", hint=command_of(reference, settings), code="E_WEIGHTS_TAMPERED"
    )


def _check_whole(stored: Stored, partial: Path, subject: str) -> None:
    """See that a pull of everything gives a usable layout; its JSON files may lie in either folder."""
    for path in stored.files:
        if path.endswith(".json") and not (partial / path).exists():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stored.folder / path, partial / path)
    store.check_layout(partial, stored.files, subject)


def _client(settings: Settings) -> Any:
    """The Hub's client, imported only after its environment has been set."""
    with environment(settings):
        import huggingface_hub
        from huggingface_hub import constants  # noqa: F401 - here it reads the variables

    huggingface_hub.logging.set_verbosity_error()
    if not settings.bars:
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


def _token(settings: Settings) -> bool | None:
    return False if settings.mirror else None  # None: the one of `hf auth login` or HF_TOKEN, if there is one


def _remote(entry: Any) -> RemoteFile:
    """A file of the client's listing, whose fields come from the server.

    Raises:
        ValueError: they are none.
    """
    large, small = entry.lfs, entry.blob_id
    size = entry.size if large is None else large.size
    if type(size) is not int or size < 0 or not isinstance(entry.path, str):
        raise ValueError("impossible size or name of a file")
    sha256 = None if large is None else str(large.sha256)
    git_sha1 = small if large is None and isinstance(small, str) and store.is_commit(small) else None
    return RemoteFile(entry.path, size, sha256, git_sha1)


@contextlib.contextmanager
def explained(reference: Reference, settings: Settings) -> Iterator[None]:
    """Turn everything that the client raises into one line, a code and a hint."""
    try:
        yield
    except HdxError:
        raise
    except Exception as error:  # noqa: BLE001 - the client and its libraries raise types of many families
        raise explain(error, reference, settings) from error


def explain(error: BaseException, reference: Reference, settings: Settings) -> HdxError:
    """The words for an error of the client. Types are told by their names, for its HTTP library has changed before."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
    response = next((each.response for each in chain if getattr(each, "response", None) is not None), None)
    status = getattr(response, "status_code", None)
    text = " ".join(" ".join(str(each) for each in chain).split())
    repo, host = reference.repo, urlsplit(settings.endpoint).netloc.rpartition("@")[2]
    # no token goes to a mirror, so where one is needed the command is without
    command, bare = command_of(reference, settings), command_of(reference, replace(settings, mirror=None))

    def weights(words: str, hint: str, code: str) -> WeightsError:
        return WeightsError(words, hint=hint, code=f"E_WEIGHTS_{code}")

    if "GatedRepoError" in kinds:
        page = f"https://huggingface.co/{repo}" if settings.mirror else f"{settings.endpoint}/{repo}"
        return weights(f"{repo}: gated; its authors ask you to accept their terms on {page}",
                       f"hf auth login && {bare}  (after accepting them there)", "GATED")  # fmt: skip
    if "RevisionNotFoundError" in kinds:
        return weights(f"{repo}: has no revision {reference.revision!r} (a commit must be given in full)",
                       command_of(Reference(repo), settings), "REVISION")  # fmt: skip
    if "RemoteEntryNotFoundError" in kinds:
        return weights(f"{reference}: {host} lists a file that it does not serve", command, "FILE")
    if status == 401 and "authorization" not in getattr(getattr(response, "request", None), "headers", {}):
        kinds.add("RepositoryNotFoundError")  # the Hub says 401 for a missing repository too, so as not to tell
    if status in (401, 403) and "RepositoryNotFoundError" not in kinds:
        return weights(f"{repo}: {host} refuses access with your token ({status})", f"hf auth login && {bare}",
                       "AUTH")  # fmt: skip
    if "RepositoryNotFoundError" in kinds:
        return weights(f"{repo}: no such repository on {host}, or a private one",
                       f"hf auth login && {bare}  (if it is private; else check the name)", "REPO")  # fmt: skip
    if "certificate" in text.lower() and "ConnectError" in kinds:
        return weights(f"{reference}: the certificate of {host} cannot be verified",
                       f"SSL_CERT_FILE=/path/to/your-ca.pem {command}", "TLS")  # fmt: skip
    if status == 407 or "ProxyError" in kinds or ("ConnectError" in kinds and _proxy(settings)):
        return weights(f"{reference}: the proxy {_proxy(settings) or ''} does not let us through".replace("  ", " "),
                       f"env -u HTTPS_PROXY -u HTTP_PROXY -u ALL_PROXY {command}  (or correct the proxy)",
                       "PROXY")  # fmt: skip
    if status == 429 or (status or 0) >= 500:
        return weights(f"{reference}: {host} cannot answer now (status {status})", command, "SERVER")
    if "Consistency check failed" in text or kinds & {"RemoteProtocolError", "ReadError"}:
        return weights(f"{reference}: the download was cut off", command, "TRUNCATED")
    if "OfflineModeIsEnabled" in kinds:
        return _not_here(reference, settings)
    if kinds & {"TransportError", "TimeoutError"}:
        return weights(f"{reference}: {host} cannot be reached",
                       f"{bare} --mirror https://HOST, or bring a folder: hdx weights import FOLDER NAME",
                       "NETWORK")  # fmt: skip
    number = next((each.errno for each in chain if isinstance(each, OSError) and each.errno in DISK_ERRORS), None)
    if number is not None:
        return ResourceError(f"{settings.cache}: {os.strerror(number)}",
                             hint=f"hdx weights pull {reference} --cache-dir FOLDER", code="E_DISK")  # fmt: skip
    reason = next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)
    return weights(f"{reference}: {host} does not answer as a Hub does ({reason[:120]})",
                   bare if settings.mirror else f"{bare} --mirror https://HOST", "MIRROR")  # fmt: skip


def _proxy(settings: Settings) -> str | None:
    """The proxy that the environment names for the Hub, without the password in it."""
    address = urlsplit(settings.endpoint)
    proxies = urllib.request.getproxies()
    chosen = proxies.get(address.scheme) or proxies.get("all")
    if not chosen or urllib.request.proxy_bypass(address.hostname or ""):
        return None
    return urlsplit(chosen).netloc.rpartition("@")[2] or None


def _not_here(reference: Reference, settings: Settings) -> WeightsError:
    return WeightsError(
        f"{reference}: not on this machine, and --offline forbids fetching it",
        hint=f"{command_of(reference, settings)}  (without --offline, or HF_HUB_OFFLINE)",
        code="E_WEIGHTS_OFFLINE",
    )
