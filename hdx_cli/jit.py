"""Compiling with numba, machine code kept on disk where that can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable, **options: Any) -> Callable:
    """``numba.njit`` with a cache, and without one where neither the package nor the user's cache folder can be written.

    Args:
        function: what to compile, at its first call.
        options: of ``numba.njit``.
    """
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no place for the cache
        return numba.njit(**options)(function)
