"""Modules that share a device too small for all of them: each is there only while it works."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def lent(device: torch.device | None, *modules: nn.Module) -> Iterator[None]:
    """Inside, modules are on ``device``; afterwards they are back where they were, after an error too.

    ``device`` None leaves them where they are. What a module computed stays on the device. Tested on CPUs only.
    """
    moved = []
    try:
        for module in modules if device is not None else ():
            first = next(itertools.chain(module.parameters(), module.buffers()), None)
            if first is not None:
                moved.append((module, first.device))
                module.to(device)
        yield
    finally:
        for module, home in moved:
            module.to(home)
        if moved and device.type == "cuda":
            torch.cuda.empty_cache()  # or what the part took stays reserved and the next one does not fit
