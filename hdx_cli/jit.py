"""Compiling with numba, machine code kept on disk where that can be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable, **options: Any) -> Callable:
    """``numba.njit`` with a cache, and without one where it cannot be written.

    Args:
        function: what to compile, at its first call.
        options: of ``numba.njit``.
    """
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no place for the cache
        return numba.njit(**options)(function)
    save = compiled._cache.save_overload

    def save_where_there_is_room(signature: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk; what was compiled is good all the same
            save(signature, data)

    compiled._cache.save_overload = save_where_there_is_room
    return compiled
