"""A batch: plan, work, and after every photo write down what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__, limits
from ..errors import InputRejected, UsageError
from ..run_folder import disk_errors, sha256_of, write_atomically
from . import manifest
from .job import Outcome, Task, thumbnail_of
from .manifest import Entry
from .photos import in_shard, run_names

PARTIAL = 7  # exit code: some of the photos


@dataclass(frozen=True)
class Update:
    """Something happened: worker ``worker`` is at ``stage`` of ``task``, or has finished it with ``outcome``."""

    worker: int
    task: Task
    stage: str | None = None
    outcome: Outcome | None = None


Report = Callable[[Update], None]
# Does tasks by whatever means and gives each with its outcome once; closing it stops the work.
Engine = Callable[[list[Task], Report], Generator[tuple[Task, Outcome], None, None]]


@dataclass(frozen=True)
class Settings:
    """How a batch is made.

    Attributes:
        options: fields of ``stages.Options`` that are not None, for every photo; device: auto, cpu or cuda.
        overwrite: make everything again, whatever is done.
        fail_fast: stop at the first photo that is not done.
        limit: make at most so many photos now.
        shard: (i, n): only part i of n, i from 1.
        memory, memory_asked, vram: of one photo, as in ``Task``; they are no options: what is finished stays finished.
    """

    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    overwrite: bool = False
    fail_fast: bool = False
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    memory: int | None = None
    memory_asked: bool = False
    vram: int | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be made now, and of the other photos of this call how many are done, settled or left for later."""

    tasks: list[Task]
    photos: tuple[Path, ...]
    finished: int


def plan(out: Path, photos: Sequence[Path], settings: Settings) -> Plan:
    """Enter the photos in the manifest of ``out`` and find what is not finished.

    A photo is finished if it was made, or rejected, with the same options by the same version, has not changed since,
    and its run is whole (``manifest.is_whole``). Photos are read only where size or time changed.

    Args:
        out: the folder of the batch; made if it does not exist.
        photos: all photos of the call, also those of other shards: names must come out the same on every machine.

    Raises:
        UsageError: ``out`` is a file, or its manifest is damaged.
        ResourceError: it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, not a folder", hint="choose another place with -o", code="E_OUTPUT")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    tasks, finished, place = [], 0, out.absolute()
    mine = tuple(photo for photo in photos if in_shard(photo, settings.shard))
    with manifest.changing(out) as entries:
        held = {photo: entry.run for photo, entry in entries.items()}
        names = run_names(photos, held, lambda name, photo: _is_free(out, name, photo))
        for photo in photos:
            entries.setdefault(photo, Entry(str(photo), names[photo]))
        for photo in mine:
            entry = _looked_at(entries[photo], settings)
            if entry.state == "rejected" or (entry.state == "done" and manifest.is_whole(out / entry.run)):
                finished += 1
            else:
                entry = replace(entry, state="waiting", code=None, reason=None, hint=None, finished=None)
                if settings.limit is None or len(tasks) < settings.limit:
                    tasks.append(
                        Task(
                            entry.photo, str(place / entry.run), entry.options, settings.device, entry.force,
                            settings.memory, settings.memory_asked, settings.vram,
                        )
                    )  # fmt: skip
            entries[photo] = entry
    return Plan(tasks, mine, finished)


def run(
    out: Path, todo: Plan, settings: Settings, engine: Engine, report: Report = lambda update: None
) -> dict[Path, Entry]:
    """Make what is planned; every outcome is in the manifest before the next photo is handed out after it.

    However it ends, ``report.jsonl`` is written; ``index.html`` too, unless it is interrupted.

    Returns:
        The entries of the photos of this call.
    """
    try:
        with contextlib.closing(engine(todo.tasks, report)) as outcomes:
            for task, outcome in outcomes:
                entry = land(out, task, outcome)
                if settings.fail_fast and entry.state != "done":
                    break
    except BaseException:
        write_report(out)
        raise
    entries = write_report(out)
    if todo.tasks or not (out / manifest.GALLERY).is_file():
        write_gallery(out, entries)
    return {photo: entries[photo] for photo in todo.photos}


def land(out: Path, task: Task, outcome: Outcome) -> Entry:
    """Write an outcome into the manifest and return the entry.

    That another process holds the run folder is no outcome where that process has finished the photo meanwhile.
    """
    with manifest.changing(out) as entries:
        entry = entries[Path(task.photo)]
        if not (outcome.code == "E_LOCKED" and entry.state == "done"):
            values = asdict(outcome)
            entry = replace(
                entry, **values, hdx=__version__, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                force=entry.force and outcome.state != "done",
            )  # fmt: skip
            entries[Path(task.photo)] = entry
    return entry


def exit_code(states: Sequence[str]) -> int:
    """0 where all photos are done, 4 where all are rejected, else 7."""
    if all(state == "done" for state in states):
        return 0
    return InputRejected.exit_code if all(state == "rejected" for state in states) else PARTIAL


def write_report(out: Path) -> dict[Path, Entry]:
    """All entries -> ``report.jsonl``, one JSON object a line; returns them."""
    with manifest.changing(out) as entries:
        lines = [json.dumps(_line(out, entry)) for entry in entries.values()]
        with disk_errors(out / manifest.REPORT):
            write_atomically(out / manifest.REPORT, "".join(f"{line}\n" for line in lines).encode("ascii"))
    return dict(entries)


def write_gallery(out: Path, entries: dict[Path, Entry]) -> None:
    """All entries -> ``index.html``."""
    from ..export.gallery import Card, page_of
    from ..outputs import SCORES

    cards = []
    for photo, entry in entries.items():
        picture = thumbnail_of(out / entry.run)
        shown = [f"{label} {form.format(entry.scores[key])}" for label, key, form, _ in SCORES if key in entry.scores]
        said = (
            [message for _, message in entry.warnings]
            if entry.reason is None
            else [entry.reason.removeprefix(f"{photo}: ")]
        )
        cards.append(
            Card(
                title=entry.run,
                photo="/".join(photo.parts[-2:]),
                folder=entry.run if entry.state == "done" else None,
                picture=picture.read_bytes() if entry.state != "waiting" and picture.is_file() else None,
                state=entry.state,
                score=entry.scores.get("front_psnr_db"),
                scores=shown,
                notes=said,
                code=entry.code,
            )
        )
    page = page_of(out.resolve().name, cards, f"made by hdx {__version__}")
    with disk_errors(out / manifest.GALLERY):
        write_atomically(out / manifest.GALLERY, page.encode("utf-8", "replace"))


def worker_bytes(options: dict[str, Any]) -> int:
    """What one avatar of these ``stages.Options`` takes at its peak."""
    from ..stages import DEFAULT_RESTORER, Options

    chosen = Options(**options)
    return limits.cost(chosen.sizes, chosen.restorer or DEFAULT_RESTORER, chosen.backbone)


def time_left(took: Sequence[float], running: Sequence[float], waiting: int, jobs: int) -> float | None:
    """Seconds until all is done, if the photos to come take as long as those before on average; None before the first.

    Args:
        took: seconds of every photo finished in this call, good or bad.
        running: seconds that each photo at work has taken so far.
        waiting: photos not begun; jobs: workers.
    """
    if not took:
        return None
    mean = sum(took) / len(took)
    rest = waiting * mean + sum(max(mean - so_far, 0.0) for so_far in running)
    # the last photos leave workers idle: no end before the photo that is begun last
    return max(rest / jobs, mean if waiting else 0.0)


def _is_free(out: Path, name: str, photo: Path) -> bool:
    """Whether a folder name may be given to a photo: nothing is there, or a run of the very same photo."""
    if name.casefold() in manifest.RESERVED:
        return False
    folder = out / name
    if not os.path.lexists(folder):
        return True
    held = manifest.photo_of(folder)
    return held is not None and photo.is_file() and sha256_of(held) == sha256_of(photo)


def _looked_at(entry: Entry, settings: Settings) -> Entry:
    """The entry after a look at the photo: waiting if it or what is asked for has changed."""
    try:
        stat = os.stat(entry.photo)
        size, mtime_ns = stat.st_size, stat.st_mtime_ns
    except OSError:
        size = mtime_ns = -1
    options = {name: value for name, value in settings.options.items() if value is not None}
    is_other_photo = False
    if (size, mtime_ns) != (entry.size, entry.mtime_ns) and entry.sha256:
        is_other_photo = sha256_of(Path(entry.photo)) != entry.sha256
    is_stale = is_other_photo or size < 0 or options != entry.options or entry.hdx != __version__ or settings.overwrite
    return replace(
        entry, size=size, mtime_ns=mtime_ns, options=options,
        state="waiting" if is_stale else entry.state,
        force=entry.force or settings.overwrite or is_other_photo,
    )  # fmt: skip


def _line(out: Path, entry: Entry) -> dict[str, Any]:
    folder = out.absolute() / entry.run
    return {
        "photo": entry.photo,
        "run": str(folder) if folder.is_dir() else None,
        "state": entry.state,
        "code": entry.code,
        "reason": entry.reason,
        "hint": entry.hint,
        "scores": entry.scores,
        "warnings": entry.warnings,
        "seconds": round(entry.seconds, 3),
        "finished": entry.finished,
    }
