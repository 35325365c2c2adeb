"""Jobs for the tests of batches: they make real run folders, quickly, and fail as a photo's content asks for."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from hdx_cli.batch.job import Task
from hdx_cli.errors import InputRejected, ResourceError
from hdx_cli.progress import Progress
from hdx_cli.run_folder import RunFolder


def by_content(task: Task, progress: Progress) -> dict[str, Any]:
    """Photo -> a run folder with one product, its bytes reversed; the photo's first letters say what happens instead.

    ``bad``: rejected. ``full``: no disk. ``bug``: an error of Python. ``kill``: the worker dies, every time. ``once``:
    it dies the first time. ``slow``: takes until somebody stops it. ``nap``: takes a moment.
    """
    photo = Path(task.photo)
    with RunFolder.create(Path(task.run), photo, force=task.force) as run:
        progress.start("reverse")
        content = photo.read_bytes()
        if content.startswith(b"bad"):
            raise InputRejected(f"{photo}: bad", code="E_BAD")
        if content.startswith(b"full"):
            raise ResourceError(f"{photo}: disk full", code="E_DISK")
        if content.startswith(b"bug"):
            raise KeyError("bug")
        mark = photo.with_suffix(".died")
        if content.startswith(b"kill") or (content.startswith(b"once") and not mark.exists()):
            mark.write_bytes(b"")
            os.kill(os.getpid(), signal.SIGKILL)
        if content.startswith(b"nap"):
            time.sleep(0.08)
        if content.startswith(b"slow"):
            time.sleep(600)
        config = dict(task.options)
        made = run.make("a.txt", config, [run.photo.name], lambda path: path.write_bytes(content[::-1]) and None)
        progress.warn("W_PID", str(os.getpid()))
        with (Path(task.run).parent / "made.log").open("a") as log:
            log.write(f"{Path(task.run).name} {'again' if made.reused else 'new'}\n")
    return {"front_psnr_db": float(len(content)), "broken": float("nan"), "words": "many"}
