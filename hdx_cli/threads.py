"""Threads for kernels that hold no GIL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager


class Threads(AbstractContextManager):
    """Runs a kernel on several ranges at once; lives for one operation, so that a fork never finds a dead pool."""

    def __init__(self, count: int):
        self.count = max(1, count)
        self._pool = ThreadPoolExecutor(self.count - 1) if self.count > 1 else None

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def ranges(self, n: int, unit: int) -> list[tuple[int, int]]:
        """[0, n) in at most one part per thread; parts begin at multiples of ``unit`` and are no smaller than it."""
        step = max(unit, -(-n // (self.count * unit)) * unit)
        starts = [s for s in range(0, n, step) if n - s >= unit]
        return list(zip(starts, [*starts[1:], n], strict=True))

    def run(self, kernel: Callable, calls: list[tuple]) -> None:
        """kernel(*call) for every call, all at once; at most one call per thread."""
        futures = [self._pool.submit(kernel, *call) for call in calls[1:]]
        kernel(*calls[0])
        for future in futures:
            future.result()
