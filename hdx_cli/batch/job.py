"""What is done for one photo, and what became of it: the same on this machine and on a cluster."""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputRejected
from ..limits import Budget, explained
from ..progress import Progress
from ..run_folder import RunFolder, sha256_of, write_atomically

THUMBNAILS, THUMBNAIL_PX = ".thumbnails", (520, 300)


@dataclass(frozen=True)
class Task:
    """One photo to be made: plain values, so that any process can be told.

    Attributes:
        photo, run: absolute paths of the photo and of its run folder.
        options: fields of ``stages.Options``.
        device: auto, cpu or cuda; auto is decided where the work is done.
        force: make everything again, also where the folder holds another photo.
        memory: bytes that it may take, None for no limit; memory_asked: a person said so.
        vram: the same of the GPU's memory.
    """

    photo: str
    run: str
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    force: bool = False
    memory: int | None = None
    memory_asked: bool = False
    vram: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one photo.

    Attributes:
        state: done, rejected (the photo is at fault) or failed.
        code, reason, hint: of what went wrong, else None.
        scores: of the avatar; finite numbers by name.
        warnings: code and message.
        seconds: how long it took.
        sha256: of the photo, or "missing".
    """

    state: str
    code: str | None = None
    reason: str | None = None
    hint: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    warnings: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0
    sha256: str = ""


# Makes one photo, reports on the way, returns the scores; raises HdxError. A function of a module, found by its name.
Job = Callable[[Task, Progress], dict[str, Any]]


class _Noted:
    """Passes on what stage is at work and keeps the warnings."""

    def __init__(self, on_stage: Callable[[str], None]):
        self.on_stage = on_stage
        self.warnings: list[list[str]] = []

    def start(self, task: str, total: int | None = None) -> None:
        self.on_stage(task)

    def advance(self, steps: int = 1) -> None:
        pass

    def warn(self, code: str, message: str) -> None:
        self.warnings.append([code, message])


def create_avatar(task: Task, progress: Progress) -> dict[str, Any]:
    """Photo -> run folder, as ``hdx create`` makes it; continues where one was cut off. Returns the avatar's scores.

    A small picture for the contact sheet is left in ``.thumbnails`` beside the run folder.

    Raises:
        HdxError: as the stages.
    """
    from .. import outputs, stages
    from ..devices import choose, within_vram

    photo, folder = Path(task.photo), Path(task.run)
    options = stages.Options(**task.options)
    device = choose(task.device)
    try:
        with RunFolder.create(folder, photo, seed=options.seed, force=task.force) as run:
            budget = None if task.memory is None else Budget(task.memory, task.memory_asked)
            options = stages.within(run, options, progress, budget)
            device = within_vram(device, options.capped.gaussians, progress, task.vram)
            for _ in outputs.everything(run, options, progress, device, photo):
                pass
            scores = run.record(stages.best_avatar(run)).get("scores", {})
    except InputRejected:
        with contextlib.suppress(Exception):  # the sheet shows it where it can be decoded at all
            _keep_thumbnail(folder, _of_photo(photo))
        raise
    with contextlib.suppress(ValueError, SyntaxError):
        _keep_thumbnail(folder, _of_preview(folder / outputs.PREVIEW))
    return scores


def attempt(job: Job, task: Task, on_stage: Callable[[str], None]) -> Outcome:
    """Do a job; whatever it raises becomes an outcome. Interrupts pass."""
    start = time.perf_counter()
    progress = _Noted(on_stage)
    sha256 = ""
    try:
        sha256 = sha256_of(Path(task.photo))
        scores = job(task, progress)
    except Exception as error:  # noqa: BLE001 - one photo must not take the others along
        said = explained(error)
        return Outcome(
            "rejected" if isinstance(said, InputRejected) else "failed", said.code, said.message, said.hint, {},
            progress.warnings, time.perf_counter() - start, sha256,
        )  # fmt: skip
    numbers = {
        str(name): float(value)
        for name, value in scores.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    seconds = time.perf_counter() - start
    return Outcome("done", scores=numbers, warnings=progress.warnings, seconds=seconds, sha256=sha256)


def name_of(job: Job) -> str:
    """``module:function``, by which another process finds it."""
    return f"{job.__module__}:{job.__qualname__}"


def job_named(name: str) -> Job:
    """The function that ``name_of`` named."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def thumbnail_of(run: Path) -> Path:
    """Where the small picture of a run lies."""
    return run.parent / THUMBNAILS / f"{run.name}.jpg"


def _of_preview(path: Path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.convert("RGB")


def _of_photo(path: Path):
    import numpy as np
    from PIL import Image

    from ..images import load_photo

    return Image.fromarray(np.round(load_photo(path, max_side=THUMBNAIL_PX[1]).rgb * 255).astype(np.uint8))


def _keep_thumbnail(run: Path, picture: Any) -> None:
    import io

    from PIL import Image

    picture.thumbnail(THUMBNAIL_PX, Image.Resampling.LANCZOS)
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=82)
    path = thumbnail_of(run)
    path.parent.mkdir(exist_ok=True, parents=True)
    write_atomically(path, held.getvalue())
