"""The commands for weights, and for what an avatar was made with."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import WeightsError
from . import options as opt
from .console import Console, session

if TYPE_CHECKING:
    from ..hub import Listing, Settings
    from ..weights_store import Stored

weights = typer.Typer(
    help="Weights: the bundled ones, and others from the Hugging Face Hub or a folder.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where weights are kept; HF_HOME unless told.", metavar="DIR", show_default=False),
]
Name = Annotated[
    str, typer.Argument(help="bundled, a name of `hdx weights list`, or OWNER/NAME@REVISION.", metavar="NAME")
]


@weights.command("list")
def list_(
    cache_dir: CacheDir = None, json: opt.Json = False, quiet: opt.Quiet = False, verbose: opt.Verbose = False
) -> None:
    """List the weights on this machine with size, commit and state; reads no content, see `verify`."""
    from .. import weights_store as store

    with session(Console(json=json, quiet=quiet, verbose=verbose)) as console:
        cache = store.cache_folder(cache_dir)
        found = [store.bundled()]
        for lock in store.locks(cache):
            try:
                found.append(store.read_lock(lock))
            except WeightsError as error:
                console.warn(error.code, error.message)
        facts = [_facts(stored) for stored in found]
        width = max(len(stored.name) for stored in found)
        lines = [
            f"{one['name']:<{width}}  {store.human(one['bytes']):>9}  {one['commit'] or '-':<40}  {one['state']}"
            for one in facts
        ]
        payload = {"cache": str(cache), "weights": facts}
        console.result(payload, lines, "\n".join(stored.pinned for stored in found))


@weights.command()
def pull(
    reference: Annotated[
        str, typer.Argument(help="A repository and a branch, tag or full commit.", metavar="OWNER/NAME@REVISION")
    ],
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="Only files that match, such as 'unet/*'; may be repeated.", metavar="PATTERN"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be downloaded.")] = False,
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", help="Another address with the Hub's routes; gets no token.", metavar="URL"),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use no network; verify what is here.")] = False,
    cache_dir: CacheDir = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Fetch weights from the Hugging Face Hub, pinned to a commit and verified; safetensors only, never pickles."""
    import sys

    from .. import hub
    from .. import weights_store as store

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        asked, patterns = hub.parse(reference), tuple(include or ())
        no_network = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        bars = not (no_progress or quiet) and sys.stderr.isatty()
        settings = hub.Settings(store.cache_folder(cache_dir), mirror, no_network, bars)
        if dry_run:
            return _show(console, hub.look_up(asked, settings, patterns), settings)

        def announce(listing: Listing, missing: int) -> None:
            for line in [*_lines(listing), f"to download: {store.human(missing)} into {settings.cache}"]:
                console.note(line)
            console.stop()

        pulled = hub.pull(asked, settings, patterns, console, announce)
        stored = pulled.stored
        how = f"{len(pulled.downloaded)} files downloaded" if pulled.downloaded else "was here already"
        command = f"hdx weights pull {stored.pinned}{store.option(settings.cache)}"
        console.note(f"{how}; every byte verified. The same again, always: {command}")
        facts = _facts(stored) | {"downloaded": list(pulled.downloaded)}
        console.result(facts, [str(stored.folder)], str(stored.folder))


@weights.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Which ones; everything unless told.", metavar="NAME...", show_default=False),
    ] = None,
    cache_dir: CacheDir = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Read every byte of the weights on this machine and compare it with their locks."""
    from .. import weights_store as store

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        cache = store.cache_folder(cache_dir)
        chosen = [stored for name in names for stored in store.find(cache, name)] if names else [store.bundled()]
        if not names:
            chosen += [store.read_lock(lock) for lock in store.locks(cache)]
        results, lines, first = [], [], None
        for stored in chosen:
            wrong = store.problems(stored, console)
            first = first or (store.damage(stored, wrong) if wrong else None)
            results.append(_facts(stored) | {"ok": not wrong, "problems": [list(each) for each in wrong]})
            lines.append(f"{'damaged' if wrong else 'ok':<9}{stored.pinned}")
            lines += [f"{'':<9}{path}: {fault}" for path, fault in wrong]
        console.result({"ok": first is None, "weights": results}, lines, "damaged" if first else "ok")
        if first is not None:
            console.note(f"hdx: {first.message} [{first.code}]\n  try: {first.hint}")
            raise SystemExit(first.exit_code)


@weights.command()
def where(
    name: Name, cache_dir: CacheDir = None, json: opt.Json = False, quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:  # fmt: skip
    """Print the folder of weights; the newest one where there are several commits."""
    from .. import weights_store as store

    with session(Console(json=json, quiet=quiet, verbose=verbose)) as console:
        stored = store.find(store.cache_folder(cache_dir), name)[0]
        console.result(_facts(stored), [str(stored.folder)], str(stored.folder))


@weights.command("import")
def import_(
    folder: Annotated[
        Path, typer.Argument(help="Safetensors, single or in diffusers' layout.", metavar="FOLDER", show_default=False)
    ],
    name: Annotated[str, typer.Argument(help="What to call them.", metavar="NAME", show_default=False)],
    cache_dir: CacheDir = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Copy a folder of weights into the cache and lock it, for example one that was pulled on another machine."""
    from .. import weights_store as store

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        stored, pickles = store.import_folder(folder, name, store.cache_folder(cache_dir), console)
        for path in pickles:
            console.warn("W_PICKLE", f"{path}: left behind; a pickle can run code")
        console.result(_facts(stored), [str(stored.folder)], str(stored.folder))


def licenses(run: opt.Run, json: opt.Json = False, quiet: opt.Quiet = False, verbose: opt.Verbose = False) -> None:
    """List what an avatar was made with, the terms of each, and whether commercial use is allowed."""
    from .. import licences

    with session(Console(json=json, quiet=quiet, verbose=verbose)) as console:
        parts = licences.parts_of(licences.read_records(run))
        answer = {True: "yes", False: "no", None: "unknown"}[licences.commercial_use(parts)]
        console.result({"run": str(run), **licences.block(parts)}, licences.lines(parts), answer)


def _facts(stored: Stored) -> dict[str, Any]:
    from ..weights_store import state_of

    return {
        "name": stored.name,
        "pinned": stored.pinned,
        "revision": stored.revision,
        "commit": stored.commit,
        "include": list(stored.include),
        "folder": str(stored.folder),
        "lock": str(stored.lock),
        "bytes": stored.bytes,
        "state": state_of(stored),
        "files": {path: vars(kept) for path, kept in stored.files.items()},
    }


def _lines(listing: Listing) -> list[str]:
    from ..weights_store import human

    lines = [f"{listing.reference.repo} at {listing.commit}"]
    lines += [f"  {human(file.size):>9}  {file.path}" for file in listing.files]
    lines += [f"  {'refused':>9}  {path}  (a pickle can run code)" for path in listing.pickles]
    return [*lines, f"  {human(listing.bytes):>9}  in all"]


def _show(console: Console, listing: Listing, settings: Settings) -> None:
    facts = {
        "repo": listing.reference.repo,
        "revision": listing.reference.revision,
        "commit": listing.commit,
        "bytes": listing.bytes,
        "files": {file.path: file.size for file in listing.files},
        "refused": list(listing.pickles),
    }
    from ..hub import Reference, command_of

    pinned = Reference(listing.reference.repo, listing.commit)
    limits = "".join(f" --include {shlex.quote(pattern)}" for pattern in listing.include)
    lines = [*_lines(listing), f"fetch them with: {command_of(pinned, settings)}{limits}"]
    console.result(facts, lines, str(pinned))
