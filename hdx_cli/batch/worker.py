"""One worker: a process that makes photo after photo and keeps what it has imported and compiled.

``python -m hdx_cli.batch.worker module:function`` reads a ``Task`` as a line of JSON on stdin and answers each on
stdout with ``{"stage": name}`` lines and one ``{"outcome": {...}}``. When stdin ends, by whatever end of the process
that started it, the worker drops what it is doing, tidies its run folder and goes: nobody is left to work for.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from .job import Task, attempt, job_named

PATIENCE_S = 3.0  # for the tidying; code that holds the interpreter longer is cut off


class _Stop(KeyboardInterrupt):
    """Nobody wants the result any more."""


def main() -> None:
    """Work until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print must not pass for an answer

    def reply(message: dict[str, Any]) -> None:
        try:
            replies.write(json.dumps(message) + "\n")
            replies.flush()
        except OSError:  # nobody reads
            os._exit(1)

    try:
        job = job_named(sys.argv[1])
    except Exception as error:  # noqa: BLE001 - said to whom it concerns
        reply({"broken": f"{type(error).__name__}: {error}"})
        return
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    at_work = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    signal.signal(signal.SIGTERM, lambda number, frame: _drop(at_work))
    threading.Thread(target=_listen, args=(tasks, at_work), daemon=True).start()
    reply({"ready": True})
    while True:
        task = Task(**json.loads(tasks.get()))
        at_work.set()
        try:
            outcome = attempt(job, task, lambda stage: reply({"stage": stage}))
        except _Stop:
            os._exit(1)
        at_work.clear()
        reply({"outcome": asdict(outcome)})


def _listen(tasks: queue.SimpleQueue[bytes], at_work: threading.Event) -> None:
    for line in sys.stdin.buffer:
        tasks.put(line)
    if at_work.is_set():
        if hasattr(signal, "pthread_kill"):  # wakes the main thread from whatever it waits for
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        else:
            signal.raise_signal(signal.SIGTERM)
        time.sleep(PATIENCE_S)
    os._exit(1)


def _drop(at_work: threading.Event) -> None:
    if at_work.is_set():
        raise _Stop
    os._exit(1)


if __name__ == "__main__":
    main()
