"""The one error family of the package: a message, a hint to paste, a reason code, an exit code."""

from __future__ import annotations


class HdxError(Exception):
    """Something a person can act on.

    Args:
        message: one line that names the subject (file, option) and the reason.
        hint: a command to paste or a short next step, or None.
        code: stable reason code for scripts, for example ``E_NO_PERSON``.
    """

    exit_code = 1
    default_code = "E_FAILED"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code


class UsageError(HdxError):
    """An option or argument that cannot be meant."""

    exit_code = 2
    default_code = "E_USAGE"


class NothingToDo(HdxError):
    """There is nothing to process."""

    exit_code = 3
    default_code = "E_NOTHING"


class InputRejected(HdxError):
    """A photo or file that cannot become an avatar: unreadable, no person, ..."""

    exit_code = 4
    default_code = "E_INPUT"


class WeightsError(HdxError):
    """Weights, licence or authorisation that are missing or do not verify."""

    exit_code = 5
    default_code = "E_WEIGHTS"


class ResourceError(HdxError):
    """Device, memory or disk that does not suffice."""

    exit_code = 6
    default_code = "E_RESOURCE"


class Interrupted(HdxError):
    """Stopped by the user; what was finished is kept."""

    exit_code = 130
    default_code = "E_INTERRUPTED"
