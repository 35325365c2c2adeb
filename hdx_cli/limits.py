"""What a machine can carry: its free memory and cores, what an avatar takes of them, and what is made smaller where
that is too much.

Peaks are measured (``tests/bench/bench_limits.py``) and interpolated between the points; nothing is imported or
allocated to plan. An avatar has three sizes that decide its peak (``Sizes``). Where they do not fit, ``LADDER`` says
which is made smaller first: Gaussians, then the photo's working size, then the restored rows.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import HdxError, ResourceError, UsageError
from .run_folder import DISK_ERRORS

SPARE_BYTES = 300_000_000  # left to the rest of the machine where nobody says how much may be taken
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
UNLIMITED = 1 << 60  # cgroups write "no limit" as a number of this order
DEEPEST = 64  # groups inside groups; deeper ones are not looked at


@dataclass(frozen=True)
class Sizes:
    """What decides how much memory an avatar takes.

    Attributes:
        gaussians: about how many.
        side_px: the photo's person is worked on at this many pixels at most, in the coarse fit and in refining.
        rows: of the views that are restored.
    """

    gaussians: int = 100_000
    side_px: int = 1024
    rows: int = 288

    def within(self, other: Sizes) -> Sizes:
        """The smaller of both in everything."""
        return Sizes(*(min(getattr(self, name), getattr(other, name)) for name in NAMES))

    def lower_than(self, other: Sizes) -> dict[str, int]:
        """Those sizes that are below those of ``other``, by name."""
        return {name: getattr(self, name) for name in NAMES if getattr(self, name) < getattr(other, name)}


NAMES = ("gaussians", "side_px", "rows")
WORDS = {"gaussians": "{:,} Gaussians", "side_px": "a photo of {} px", "rows": "restored views of {} rows"}
# From the largest down; the first steps touch Gaussians alone.
LADDER = (
    Sizes(2_000_000), Sizes(1_000_000), Sizes(500_000), Sizes(250_000), Sizes(100_000), Sizes(50_000),
    Sizes(50_000, 768), Sizes(20_000, 768), Sizes(20_000, 512), Sizes(20_000, 512, 192), Sizes(10_000, 384, 128),
)  # fmt: skip
# What is made smaller where memory runs out while a product is made; the rest was decided by earlier products.
STEPS = {"coarse": ("gaussians", "side_px"), "restored": ("rows",), "refined": ("side_px",)}

# Peak resident memory while a product is made, in MB by the number of Gaussians made, all else at its default (one
# thread, Linux, a photo of 720 x 960); beyond the points along the same line. Then: what its smaller size saves at most,
# along a line from the default to nothing; what is never saved, the libraries; what the largest photo (2048 px) adds; a
# factor for the rest.
PEAK_MB: dict[str, tuple[tuple[int, float], ...]] = {
    "coarse": ((22_505, 864), (112_175, 1082)),
    "restored": ((22_505, 1009), (112_175, 1136)),
    "refined": ((22_505, 1073), (112_175, 1254)),
}
SAVED_MB = {"coarse": ("side_px", 126.0), "restored": ("rows", 100.0), "refined": ("side_px", 290.0)}
FLOOR_MB = {"coarse": 792.0, "restored": 886.0, "refined": 886.0}
PHOTO_MB, MARGIN = 81.0, 1.03
# What a backbone that is a network takes more, whatever the sizes (tests/bench/bench_backbones.py).
NETWORK_MB = {"gaussian-avatar": 560.0, "animatable-gaussians": 120.0}


@dataclass(frozen=True)
class Plan:
    """Sizes and what they take in bytes at the peak."""

    sizes: Sizes
    bytes: int


@dataclass(frozen=True)
class Budget:
    """Bytes that one avatar may take; ``asked``: a person said so, else it is what was free."""

    bytes: int
    asked: bool = False


def parse_bytes(text: str) -> int:
    """``1.2GB``, ``900 MiB``, ``2g`` or a plain number of bytes.

    Raises:
        UsageError: it is none of these, or below a megabyte.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]i?|)b?\s*", text.lower())
    if found is None:
        raise UsageError(f"{text[:40]!r:.60} is no size", hint="write it as 1.2GB or 900MiB")
    count = round(float(found[1]) * UNITS[found[2]])
    if not 10**6 <= count < UNLIMITED:
        raise UsageError(f"{text[:40]!r:.60}: between 1MB and 1000000TB", hint="write it as 1.2GB or 900MiB")
    return count


def shown(count: int) -> str:
    """Bytes for people: ``1.08 GB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processors' worth this process may use, at least 1: those it is bound to, and what its groups allow."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(proc, cgroups)
    return count if quota is None else max(1, min(count, math.floor(quota + 0.5)))


def cpu_quota(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors' worth of time that the control groups (v1 or v2) of this process allow; None for no limit."""
    found = []
    for group in _groups(proc, cgroups, "cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (group / "cpu.max").is_file():
                most, period = (group / "cpu.max").read_text().split()
            else:
                most, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if float(most) > 0:
                found.append(float(most) / float(period))
    return min(found, default=None)


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may still take: what the machine has and its control groups leave; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        found.append(int((proc / "meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024)
    found += [most - held for most, held in _memory_groups(proc, cgroups)]
    return max(0, min(found)) if found else None


def memory_limit(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The lowest memory limit of the control groups of this process in bytes; None for none."""
    return min((most for most, _ in _memory_groups(proc, cgroups)), default=None)


def _memory_groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Limit, and bytes held that cannot simply be dropped, of every group that has a limit."""
    for group in _groups(proc, cgroups, "memory"):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):
                most, held = int((group / limit).read_text()), int((group / usage).read_text())
                with contextlib.suppress(OSError, ValueError, IndexError):  # files read before are let go on demand
                    held -= int((group / "memory.stat").read_text().split(f"\n{cached} ")[1].split()[0])
                if most < UNLIMITED:
                    yield most, max(0, held)


def _groups(proc: Path, cgroups: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups that may limit ``controller``, each with all above it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            mounts = [cgroups, cgroups / "unified"]
        elif controller in names.split(","):
            mounts = [cgroups / controller, cgroups / names]
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            if ".." not in group.parts and len(group.parts) < DEEPEST and mount.is_dir():
                # inside a container the path is the host's, and what holds for it lies at the mount itself
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def budget(max_memory: str | int | None) -> Budget | None:
    """What one avatar may take: as asked, else what is free now less ``SPARE_BYTES``; None where that is unknown.

    Raises:
        UsageError: ``max_memory`` is no size.
    """
    if max_memory is not None:
        return Budget(parse_bytes(str(max_memory)), asked=True)
    free = free_memory()
    return None if free is None else Budget(max(0, free - SPARE_BYTES))


def cost(sizes: Sizes, restorer: str, backbone: str | None = None) -> int:
    """Peak memory of one avatar in bytes, with a margin.

    Args:
        restorer: one of ``stages.RESTORERS``; backbone: one of ``avatars.backbones.NAMES``, None is the explicit one.
    """
    default, peaks = Sizes(), []
    for product in PEAK_MB if restorer == "humanfixer" else ["coarse"]:
        name, saved = SAVED_MB[product]
        share = 1 - min(getattr(sizes, name) / getattr(default, name), 1)
        peaks.append(max(FLOOR_MB[product], _interpolated(PEAK_MB[product], sizes.gaussians) - saved * share))
    return round(MARGIN * 1e6 * (PHOTO_MB + max(peaks) + NETWORK_MB.get(backbone or "", 0.0)))


def fitted(asked: Sizes, restorer: str, most_bytes: int, backbone: str | None = None) -> Plan | None:
    """The largest sizes of the ladder, none above ``asked``, that fit into that many bytes; None where none do."""
    for rung in (asked, *LADDER):
        sizes = asked.within(rung)
        if cost(sizes, restorer, backbone) <= most_bytes:
            return Plan(sizes, cost(sizes, restorer, backbone))
    return None


def least(asked: Sizes, restorer: str, backbone: str | None = None) -> Plan:
    """The bottom of the ladder."""
    sizes = asked.within(LADDER[-1])
    return Plan(sizes, cost(sizes, restorer, backbone))


def require(asked: Sizes, restorer: str, given: Budget, backbone: str | None = None) -> Plan:
    """The largest sizes that fit into a budget; of one that nobody asked for, which may be wrong, the least at worst.

    Raises:
        ResourceError: a person's budget does not suffice for the least avatar.
    """
    plan, bottom = fitted(asked, restorer, given.bytes, backbone), least(asked, restorer, backbone)
    if plan is None and given.asked:
        raise ResourceError(
            f"{shown(given.bytes)} of memory do not suffice: the least avatar takes {shown(bottom.bytes)}",
            hint=f"--max-memory {-(-bottom.bytes // 10**6)}MB" + ("" if restorer == "none" else ", or --restorer none"),
            code="E_MEMORY",
        )
    return plan or bottom


def smaller(sizes: Sizes, product: str) -> Sizes | None:
    """One step down for a product that did not fit: the next rung that changes what it depends on; None at the end."""
    for rung in LADDER:
        lower = sizes.within(rung)
        if any(name in STEPS[product] for name in lower.lower_than(sizes)):
            return replace(sizes, **{name: getattr(lower, name) for name in STEPS[product]})
    return None


def words(sizes: dict[str, int]) -> str:
    """Sizes for people."""
    return ", ".join(WORDS[name].format(value) for name, value in sizes.items())


def jobs_for(cores: int, most_bytes: int, each_bytes: int) -> int:
    """How many workers a machine carries: one a core, as far as the memory reaches; at least one."""
    return max(1, min(cores, most_bytes // each_bytes))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, numpy's and numba's MemoryError, ENOMEM, and the words of torch and OpenCV."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch.cuda's, known without torch
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (
            isinstance(error, RuntimeError)
            and any(said in text for said in ("out of memory", "not enough memory", "can't allocate memory"))
        )
        or (type(error).__module__.split(".")[0] == "cv2" and "insufficient memory" in text)
    )


def explained(error: BaseException) -> HdxError:
    """Any error as one of ours: memory, disk, or unexpected in one line."""
    if isinstance(error, HdxError):
        return error
    if is_out_of_memory(error):
        return ResourceError(
            "out of memory",
            hint="close other programs, or ask for less: --gaussians 50000 --max-memory 1GB (in a batch: --jobs 1)",
            code="E_MEMORY",
        )
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # tempfile's words
        return ResourceError("no folder for temporary files", hint="export TMPDIR=FOLDER, a free one", code="E_DISK")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return ResourceError(f"{where}{os.strerror(error.errno)}", code="E_DISK")
    text = " ".join(str(error).split()) or "no message"
    return HdxError(f"unexpected {type(error).__name__}: {text[:300]}", code="E_UNEXPECTED")


def trim() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc keeps it otherwise)."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _interpolated(points: tuple[tuple[int, float], ...], at: float) -> float:
    """A value between measured points; beyond the ends along the nearest segment."""
    pairs = list(zip(points, points[1:], strict=False))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if at <= pair[1][0]), pairs[-1])
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
