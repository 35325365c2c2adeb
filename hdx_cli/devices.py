"""Which device computes. One is chosen in the command line and passed down."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

from .errors import ResourceError
from .limits import shown
from .progress import Progress, Silent

# gsplat compiles its kernels on first use where its wheel brought none; a probe must not wait for that.
PROBE_SECONDS = 60
# Of the frames of a film on a GPU, from the sizes of gsplat's arrays; never measured: the context of CUDA and torch,
# what a Gaussian takes (its values, their projection, about four tiles), and what a pixel takes.
CONTEXT_BYTES, GAUSSIAN_BYTES, PIXEL_BYTES = 700_000_000, 400, 100
FRAME_PX = 640 * 960
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


def vram_cost(gaussians: int, pixels: int = FRAME_PX) -> int:
    """GPU memory in bytes that frames of so many pixels take, rendered one by one; estimated from the arrays' sizes."""
    return CONTEXT_BYTES + GAUSSIAN_BYTES * gaussians + PIXEL_BYTES * pixels


def within_vram(device: str, gaussians: int, progress: Progress = Silent(), most_bytes: int | None = None) -> str:
    """The device, or ``cpu`` where the GPU's memory does not reach for so many Gaussians, which is told.

    Args:
        most_bytes: what may be taken; what the GPU has free where it is None.
    """
    if device == "cpu":
        return device
    if most_bytes is None:
        import torch

        most_bytes = torch.cuda.mem_get_info()[0]
    needed = vram_cost(gaussians)
    if needed <= most_bytes:
        return device
    progress.warn(
        "W_LESS_MEMORY",
        f"{gaussians:,} Gaussians take {shown(needed)} on the GPU and {shown(most_bytes)} are there; the CPU renders",
    )
    return "cpu"
