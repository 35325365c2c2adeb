"""Which device computes. One is chosen in the command line and passed down."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

from .errors import ResourceError

# gsplat compiles its kernels on first use where its wheel brought none; a probe must not wait for that.
PROBE_SECONDS = 60
_PROBE = "from gsplat.cuda._backend import _C; raise SystemExit(_C is None)"


def choose(device: str) -> str:
    """``cpu`` or ``cuda`` for what a person asked for: auto, cpu or cuda.

    auto takes CUDA only where torch sees a device and gsplat's kernels load.

    Raises:
        ResourceError: cuda was asked for and cannot be had.
    """
    if device == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        if device == "cuda":
            built = torch.version.cuda
            reason = (
                f"torch {torch.__version__} was built without CUDA" if built is None else "torch finds no CUDA device"
            )
            raise ResourceError(
                f"--device cuda: {reason}", hint="use --device cpu, or see hdx doctor", code="E_NO_CUDA"
            )
        return "cpu"
    if gsplat_works():
        return "cuda"
    if device == "cuda":
        raise ResourceError(
            "--device cuda: gsplat has no CUDA kernels that load here",
            hint="use --device cpu, or see hdx doctor",
            code="E_NO_GSPLAT",
        )
    return "cpu"


@cache
def gsplat_works() -> bool:
    """Whether gsplat's compiled kernels load, tried in a process of its own: a broken build can take its process down."""
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0
