"""Workers as processes of this machine. One that dies loses the photo it is at, which is tried once more."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ..errors import HdxError
from .core import Report, Update
from .job import Job, Outcome, Task, name_of
from .worker import PATIENCE_S

TRIES = 2
# One thread a worker: the work is a pool of photos, and OpenMP's threads burn a core while they wait for one another.
THREADS = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip
PULSE_S = 0.25  # how often the wait for workers gives way to signals


class _Worker:
    """A process, the thread that listens to it, and its task. Its messages go to ``inbox``; None at its end."""

    def __init__(self, number: int, job: Job, inbox: queue.SimpleQueue[tuple[_Worker, Any]], verbose: bool):
        self.number = number
        self.task: Task | None = None
        self.tries = 0
        self.ready = False
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hdx_cli.batch.worker", name_of(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if verbose else subprocess.DEVNULL,
            env={**os.environ, **THREADS, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C in the terminal is for this process, which tells the workers
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def _listen(self, inbox: queue.SimpleQueue[tuple[_Worker, Any]]) -> None:
        with self.process.stdout as answers:
            for line in answers:
                try:
                    inbox.put((self, json.loads(line)))
                except ValueError:  # cut off by its death
                    break
        self.process.wait()
        inbox.put((self, None))

    def give(self, task: Task, tries: int) -> None:
        self.task, self.tries = task, tries
        try:
            self.process.stdin.write(json.dumps(vars(task)).encode("ascii") + b"\n")
            self.process.stdin.flush()
        except OSError:  # dead; its listener says so
            pass

    def dismiss(self) -> None:
        """Let it go: a worker whose stdin ends tidies up and leaves."""
        try:
            self.process.stdin.close()
        except OSError:
            pass

    def is_gone(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def outcomes(
    tasks: list[Task], report: Report, *, job: Job, jobs: int, verbose: bool = False
) -> Generator[tuple[Task, Outcome], None, None]:
    """Do tasks in ``jobs`` processes; each task comes back once, with its outcome, in the order in which they end.

    Args:
        report: told what every worker is at.
        job: a function of a module that the workers can import.
        verbose: let the workers write to stderr.

    Raises:
        HdxError: workers do not start at all.
    """
    waiting = deque((task, 1) for task in tasks)
    inbox: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()
    workers: dict[int, _Worker] = {}
    reason = None
    try:
        for number in range(min(jobs, len(tasks))):
            workers[number] = _Worker(number, job, inbox, verbose)
        while workers:
            try:
                worker, message = inbox.get(timeout=PULSE_S)
            except queue.Empty:
                continue
            if message is None:
                worker.dismiss()
                del workers[worker.number]
                if not worker.ready:
                    raise HdxError(
                        f"a worker does not start: {reason or _ending(worker.process.returncode)}",
                        hint="hdx doctor",
                        code="E_WORKER",
                    )
                if worker.task is not None and worker.tries < TRIES:
                    waiting.append((worker.task, worker.tries + 1))
                if waiting:
                    workers[worker.number] = _Worker(worker.number, job, inbox, verbose)
                if worker.task is not None and worker.tries >= TRIES:
                    outcome = lost(worker.task, f"the worker {_ending(worker.process.returncode)}, {TRIES} times")
                    report(Update(worker.number, worker.task, outcome=outcome))
                    yield worker.task, outcome
                continue
            if "broken" in message:
                reason = message["broken"]
            if "stage" in message and worker.task is not None:
                report(Update(worker.number, worker.task, message["stage"]))
            if "outcome" in message and worker.task is not None:
                task, worker.task = worker.task, None
                outcome = Outcome(**message["outcome"])
                report(Update(worker.number, task, outcome=outcome))
                yield task, outcome
            if "ready" in message:
                worker.ready = True
            if worker.ready and worker.task is None:
                if waiting:
                    worker.give(*waiting.popleft())
                    report(Update(worker.number, worker.task, "begin"))
                else:  # if a neighbour dies, a new one takes its photo
                    worker.dismiss()
    finally:
        for worker in workers.values():
            worker.dismiss()
        for worker in workers.values():
            if not worker.is_gone(PATIENCE_S + 1):
                worker.process.kill()
                worker.process.wait()


def lost(task: Task, what: str) -> Outcome:
    """The outcome of a photo that took its workers down."""
    return Outcome(
        "failed",
        "E_WORKER_DIED",
        f"{Path(task.photo).name}: {what}",
        "out of memory is the usual cause: use fewer workers (--jobs), or --gaussians 50000",
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed ({signal.Signals(-code).name})"
    except ValueError:
        return f"was killed (signal {-code})"
