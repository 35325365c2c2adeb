"""The commands for body models of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as opt
from .console import Console, session

if TYPE_CHECKING:
    from ..bodies.store import Added

body = typer.Typer(
    help="Body models: Anny comes with hdx; SMPL and SMPL-X from files of your own.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@body.command()
def add(
    file: Annotated[Path, typer.Argument(help="SMPLX_NEUTRAL.npz, SMPL_FEMALE.pkl, ...", metavar="FILE")],
    gender: Annotated[
        str | None,
        typer.Option(
            "--gender", help="neutral, female or male, where the name of the file does not say.",
            callback=opt.one_of("neutral", "female", "male"),
        ),
    ] = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:  # fmt: skip
    """Check a model file of SMPL or SMPL-X and keep a copy as plain arrays; no pickle in it is run."""
    from ..bodies import store

    with session(Console(json=json, quiet=quiet, verbose=verbose)) as console:
        added = store.add(file, gender)
        console.warn("W_NON_COMMERCIAL", f"{added.name}: {store.LICENCE}; so is every avatar made with it")
        line = f"use it with: hdx create PHOTO --body {added.name}"
        console.result(_facts(added), [f"{added.name}: {added.path}", line], added.name)


@body.command("list")
def list_(json: opt.Json = False, quiet: opt.Quiet = False, verbose: opt.Verbose = False) -> None:
    """List the body models that --body can name."""
    from ..bodies import DEFAULT, store

    with session(Console(json=json, quiet=quiet, verbose=verbose)) as console:
        added = store.found()
        lines = [f"{DEFAULT:<14}  comes with hdx; commercial use allowed"]
        lines += [
            f"{one.name:<14}  {one.vertices} vertices, {one.joints} joints, {one.shapes} betas, of {one.source}; "
            "NO commercial use"
            for one in added
        ]
        facts = {"bodies": [{"name": DEFAULT, "commercial_use": True}, *map(_facts, added)]}
        console.result(facts, lines, "\n".join([DEFAULT, *(one.name for one in added)]))


def _facts(added: Added) -> dict[str, Any]:
    return {
        "name": added.name,
        "path": str(added.path),
        "sha256": added.sha256,
        "source": added.source,
        "source_sha256": added.source_sha256,
        "vertices": added.vertices,
        "joints": added.joints,
        "betas": added.shapes,
        "commercial_use": False,
    }
