"""The command that makes many avatars."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import NothingToDo
from . import options as opt
from .console import Console, session

if TYPE_CHECKING:
    from ..batch.core import Plan, Update


def _shard(value: str) -> str:
    """Check i/n, i from 1 to n."""
    first, _, second = value.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second) <= 100_000):
        raise typer.BadParameter("write it as i/n with i from 1 to n, for example 3/8")
    return value


def batch(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Photos, folders and globs; - reads a list from stdin, one path a line.",
            metavar="PHOTO...",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for all avatars.", metavar="DIR")] = Path(
        "avatars"
    ),
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into folders inside folders too.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", help="Photos at once; as many as cores and memory allow unless told.", min=1, max=512),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make everything again, whatever is done.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first photo that fails.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", help="Make at most so many photos now.", min=1)] = None,
    shard: Annotated[
        str,
        typer.Option("--shard", help="Only part i of n, i from 1: for arrays of jobs.", metavar="i/n", callback=_shard),
    ] = "1/1",
    ray: Annotated[
        str | None, typer.Option("--ray", help="Work on a Ray cluster: auto, or its address.", metavar="ADDRESS")
    ] = None,
    matting: opt.Matting = None,
    gender: opt.Gender = None,
    height_m: opt.HeightM = None,
    build: opt.Build = None,
    age: opt.Age = None,
    focal_px: opt.FocalPx = None,
    focal_mm35: opt.FocalMm = None,
    gaussians: opt.Count = None,
    iterations: opt.Iterations = None,
    backbone: opt.Backbone = None,
    restorer: opt.Restorer = None,
    rounds: opt.Rounds = None,
    device: opt.Device = "auto",
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            help="Memory for all photos at once, as 8GB; on a cluster for each.",
            metavar="SIZE",
            show_default=False,
        ),
    ] = None,
    vram: opt.Vram = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Make an avatar from every photo of folders, globs or a list.

    Every photo gets a folder of its own inside the folder of -o, as `hdx create` makes it; report.jsonl and index.html
    say what became of each. What fails does not stop the rest. The same command continues where it was stopped.
    Ends with 0 where all are done, 7 where some are, 4 where every photo was rejected.
    """
    from .. import limits, stages
    from ..batch import core, job, on_ray, processes
    from ..batch.photos import find, read_list
    from ..devices import choose

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        named = [word for word in photos or [] if word != "-"]
        listed = read_list(sys.stdin.buffer) if len(named) < len(photos or []) else []
        found = find(named, listed, recursive=recursive, avoid=output)
        if found.skipped:
            counted = ", ".join(f"{count} {reason}" for reason, count in sorted(found.skipped.items()))
            console.note(f"passed over: {counted}")
        if not found.photos:
            hint = None if recursive else "add --recursive to look into folders inside folders"
            raise NothingToDo(
                "no photos found", hint=hint if named else "hdx batch FOLDER -o avatars", code="E_NO_PHOTO"
            )
        options = dict(
            matting=matting, gender=gender, height_m=height_m, build=build, age=age, focal_px=focal_px,
            focal_mm35=focal_mm35, gaussians=gaussians, iterations=iterations, backbone=backbone, restorer=restorer,
            rounds=rounds, seed=seed,
        )  # fmt: skip
        asked = stages.Options(**options)
        if asked.refines:
            stages.require_restorer()
        if device == "cuda" and ray is None:
            choose(device)  # says at once where it cannot be had; auto is decided by the workers
        options = {name: value for name, value in options.items() if value is not None}
        budget, workers = limits.budget(max_memory), 1
        if ray is not None:
            budget = budget if max_memory else None  # the cluster knows what its machines have free
        elif budget is not None:
            workers = jobs or limits.jobs_for(limits.cores(), budget.bytes, core.worker_bytes(options))
            workers = min(workers, len(found.photos))
            budget = limits.Budget(budget.bytes // workers, budget.asked)
        else:
            workers = jobs or limits.cores()
        if budget is not None:
            limits.require(asked.sizes, asked.restorer or stages.DEFAULT_RESTORER, budget, asked.backbone)
        index, _, count = shard.partition("/")
        settings = core.Settings(
            options, device, overwrite, fail_fast, limit, (int(index), int(count)),
            None if budget is None else budget.bytes, bool(budget and budget.asked), vram and limits.parse_bytes(vram),
        )  # fmt: skip
        start = time.monotonic()
        todo = core.plan(output, found.photos, settings)
        if not todo.photos:
            raise NothingToDo(f"--shard {shard}: none of the {len(found.photos)} photos", code="E_NO_PHOTO")
        if ray is not None:
            on_ray.connect(ray)
            engine, workers = partial(on_ray.outcomes, job=job.create_avatar, address=ray, jobs=jobs), None
        else:
            workers = min(workers, max(1, len(todo.tasks)))
            engine = partial(processes.outcomes, job=job.create_avatar, jobs=workers, verbose=verbose)
        console.note(
            f"{len(todo.photos)} photos, {todo.finished} finished before, {len(todo.tasks)} to make"
            + (f", {workers} at once" if todo.tasks and workers else "")
        )
        board = _Board(console, todo, draws=not no_progress and not quiet and sys.stderr.isatty())
        with board:
            entries = core.run(output, todo, settings, engine, board.tell)
        _print_batch(output, entries, found.skipped, time.monotonic() - start, console)
        if code := core.exit_code([entry.state for entry in entries.values()]):
            raise SystemExit(code)


def _print_batch(
    output: Path, entries: dict[Path, Any], skipped: dict[str, int], seconds: float, console: Console
) -> None:
    from ..batch import manifest

    counts = {state: sum(entry.state == state for entry in entries.values()) for state in manifest.STATES}
    files = {"report": str(output / manifest.REPORT), "gallery": str(output / manifest.GALLERY)}
    facts = {
        "output": str(output), "photos": len(entries), **counts, "skipped": skipped, "seconds": round(seconds, 1),
        **files,
    }  # fmt: skip
    names = {"done": "done", "rejected": "rejected", "failed": "failed", "waiting": "not begun"}
    console.note(", ".join(f"{counts[state]} {names[state]}" for state in names if counts[state]))
    console.result(facts, [f"{name:<10}{path}" for name, path in files.items()], str(output))


class _Board:
    """What is going on: a table that is drawn anew where stderr is a terminal, else a line for every photo."""

    def __init__(self, console: Console, todo: Plan, draws: bool):
        self._console, self._draws = console, draws
        self._total = len(todo.tasks)
        self._took: list[float] = []
        self._counts = {"done": 0, "rejected": 0, "failed": 0}
        self._at: dict[int, tuple[str, str, float]] = {}  # by worker: photo, stage, since when
        self._workers = 1  # the most that were seen at work
        self._live: Any = None

    def __enter__(self) -> _Board:
        if self._draws and self._total:
            from rich.console import Console as Terminal
            from rich.live import Live

            self._live = Live(
                get_renderable=self._table, console=Terminal(stderr=True), refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def tell(self, update: Update) -> None:
        """Take in what a worker reports."""
        name = _shown(Path(update.task.run).name)
        if update.outcome is None:
            now = time.monotonic()
            begun = now if update.stage == "begin" else self._at.get(update.worker, (name, "", now))[2]
            self._at[update.worker] = (name, update.stage or "", begun)
            self._workers = max(self._workers, len(self._at))
            return
        self._at.pop(update.worker, None)
        outcome = update.outcome
        self._took.append(outcome.seconds)
        self._counts[outcome.state] += 1
        words = f"{outcome.seconds:.1f} s" if outcome.state == "done" else f"{outcome.reason} [{outcome.code}]"
        line = f"[{len(self._took)}/{self._total}] {outcome.state} {name}: {_shown(words)}"
        if self._live is None:
            left = self._left()
            self._console.note(line + (f"; {left}" if len(self._took) < self._total else ""))
        elif outcome.state != "done":
            self._live.console.print(line, markup=False, highlight=False)

    def _left(self) -> str:
        from ..batch.core import time_left

        now = time.monotonic()
        waiting = self._total - len(self._took) - len(self._at)
        left = time_left(self._took, [now - since for *_, since in self._at.values()], waiting, self._workers)
        return "time left not known yet" if left is None else f"about {duration(left)} left"

    def _table(self):
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        made = ", ".join(f"{count} {state}" for state, count in self._counts.items() if count) or "none finished"
        table.add_row(Text(f"{len(self._took)} of {self._total}"), Text(made), Text(self._left()))
        for _, (name, stage, since) in sorted(self._at.items()):
            table.add_row(Text(name[:40]), Text(stage), Text(f"{time.monotonic() - since:.0f} s"))
        return table


def duration(seconds: float) -> str:
    """A time to come, no more exact than it can be known: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _shown(text: str) -> str:
    """A file's name for a terminal: no control characters, no bytes that are no text."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
