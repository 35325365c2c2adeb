"""How long work reports on itself without knowing who listens."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receives progress of one stage at a time; the command line draws it, a library ignores it."""

    def start(self, task: str, total: int | None = None) -> None:
        """A task begins; ``total`` steps, or None where that is not known."""

    def advance(self, steps: int = 1) -> None:
        """``steps`` more steps of the current task are done."""

    def warn(self, code: str, message: str) -> None:
        """Something a person should know but that does not stop the work."""


class Silent:
    """A progress that says nothing: the default of every function that takes one."""

    def start(self, task: str, total: int | None = None) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass

    def warn(self, code: str, message: str) -> None:
        pass
