"""Everything that is printed: results on stdout, all else on stderr; errors become one line, a hint and an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from .. import limits
from ..errors import HdxError, Interrupted
from ..run_folder import Made


class Console:
    """What one command says. It is also the ``Progress`` that long work reports to.

    Args:
        json: print one JSON object instead of lines.
        quiet: print only the path of the result; no notes, no bars.
        verbose: show tracebacks and the warnings of libraries.
        bars: draw progress bars where stderr is a terminal.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False, bars: bool = True):
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.warnings: list[dict[str, str]] = []
        self._draws = bars and not quiet and sys.stderr.isatty()
        self._bars = None
        self._task = None
        # a path may hold any byte, and a terminal may not know every letter
        with contextlib.suppress(AttributeError):
            utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")

    def start(self, task: str, total: int | None = None) -> None:
        if self._draws:
            self._bar().update(self._task, visible=False) if self._task is not None else None
            self._task = self._bar().add_task(task, total=total)

    def advance(self, steps: int = 1) -> None:
        if self._task is not None:
            self._bar().advance(self._task, steps)

    def warn(self, code: str, message: str) -> None:
        self.warnings.append({"code": code, "message": message})
        self.note(f"warning {code}: {message}")

    def note(self, text: str) -> None:
        """A line for people, on stderr."""
        if not self.quiet:
            self.stop()
            _say(text)

    def stop(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None

    def result(self, payload: dict[str, Any], lines: list[str], short: str) -> None:
        """The result of the command: ``payload`` as JSON, or ``short`` when quiet, or else ``lines``."""
        self.stop()
        if self.json:
            if self.warnings:
                payload = {**payload, "warnings": self.warnings}
            print(json.dumps(payload, ensure_ascii=False, indent=None if self.quiet else 2))
        else:
            print(short if self.quiet else "\n".join(lines))
        sys.stdout.flush()

    def _bar(self):
        if self._bars is None:
            from rich.console import Console as Terminal
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Terminal(stderr=True), transient=True)
            self._bars.start()
        return self._bars


class _Stop(KeyboardInterrupt):
    """Ctrl-C. A plain KeyboardInterrupt that crosses ``exec`` of a string, as dataclasses and numba do, makes CPython
    end by the signal and not with the exit code asked for."""


def noted(console: Console, what: str, made: Made, avatar: str | None = None) -> None:
    """Say what a stage made, and of which avatar."""
    took = "done before" if made.reused else f"{made.seconds:.1f} s"
    console.note(f"{what}: {took}" + (f" (of the {avatar} avatar)" if avatar else ""))


@contextlib.contextmanager
def session(console: Console) -> Iterator[Console]:
    """Run a command's body: every way it can end becomes the right words and exit code.

    Raises:
        SystemExit: with the exit code of the error, whatever it was.
    """
    stopped: list[int] = []

    def on_interrupt(number, frame):
        stopped.append(number)
        raise _Stop

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        with warnings.catch_warnings():
            if not console.verbose:
                warnings.simplefilter("ignore")
            yield console
    except HdxError as error:
        _fail(console, Interrupted(_interrupted()) if stopped else error)
    except BaseException as error:  # noqa: BLE001 - the last line of defence: nobody above prints anything readable
        if isinstance(error, SystemExit):
            raise
        # a library may turn the interrupt into an error of its own
        _fail(console, Interrupted(_interrupted()) if stopped else _explained(error))
    finally:
        signal.signal(signal.SIGINT, previous)
        console.stop()


def _say(text: str) -> None:
    """A line on stderr; where that cannot be written, a full disk for example, silence from then on."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # or the interpreter complains at its end


def _fail(console: Console, error: HdxError) -> None:
    console.stop()
    if console.verbose and not isinstance(error, Interrupted):
        traceback.print_exc()
    code = "" if isinstance(error, Interrupted) else f" [{error.code}]"
    message = "".join(c if c.isprintable() else "?" for c in error.message)  # a path may hold anything
    _say(f"hdx: {message}{code}")
    if error.hint:
        _say(f"  try: {error.hint}")
    if console.json:
        facts = {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print(json.dumps({"error": facts, "warnings": console.warnings}, ensure_ascii=False))
        sys.stdout.flush()
    raise SystemExit(error.exit_code)


def _explained(error: BaseException) -> HdxError:
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return HdxError("the reader of the output went away", code="E_PIPE")
    said = limits.explained(error)
    if said.code == "E_UNEXPECTED":
        said.hint = "run again with -v for the traceback"
    return said


def _interrupted() -> str:
    again = shlex.join(word for word in sys.argv[1:] if word not in ("--force", "--overwrite"))  # they begin again
    return f"stopped; what was finished is kept. Continue with: hdx {again}"
