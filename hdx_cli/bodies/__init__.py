"""Body models: Anny, which comes with hdx, and SMPL and SMPL-X from a user's own files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import BodyModel

DEFAULT = "anny"
NAMES = ("anny", "smplx", "smpl")


def load(name: str | None = None, gender: str | None = None) -> BodyModel:
    """A body model by the name that ``--body`` or an avatar has: ``anny``, ``smplx``, ``smplx-female``, ``smpl``, ...

    Args:
        name: ``anny`` where None.
        gender: which of several added files a name without a gender means; the neutral one unless told.

    Raises:
        UsageError: there is no such body, or its file was not added.
        InputRejected: its file is damaged.
    """
    if name in (None, DEFAULT):
        from . import anny

        return anny.load()
    from ..errors import UsageError

    if name.split("-")[0] not in NAMES:
        raise UsageError(f"--body {name[:100]}: there are {', '.join(NAMES)}")
    from . import smpl_body, store

    return smpl_body.load(store.wanted(name, gender))
