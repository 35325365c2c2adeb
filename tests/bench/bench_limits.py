"""Peak memory of ``hdx create`` by what drives it: the table that ``hdx_cli.limits`` interpolates. Linux only.

    python tests/bench/bench_limits.py [--photo PHOTO] [--points 100000:1024:288:humanfixer ...]

A point is GAUSSIANS:SIDE_PX:ROWS:RESTORER. Each is made in a process of its own with one thread; the peak of every
product is told apart by resetting the kernel's high-water mark between them. Memory does not depend on how busy the
machine is, and hardly on the number of steps: ``--iterations 10`` makes large avatars quick.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POINTS = (
    "20000:1024:288:humanfixer", "100000:1024:288:humanfixer", "300000:1024:288:humanfixer",
    "100000:512:192:humanfixer", "10000:384:128:humanfixer",
    "20000:1024:288:completion", "100000:1024:288:completion", "1000000:1024:288:completion",
    "100000:1024:288:none",
)  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def peak_mb() -> float:
    """The high-water mark of this process's resident memory, which is reset."""
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    Path("/proc/self/clear_refs").write_text("5")
    return peak


def measure(photo: Path, point: str, iterations: int | None) -> dict[str, float]:
    """Peak in MB by product, in this process."""
    from hdx_cli import outputs, stages
    from hdx_cli.run_folder import RunFolder

    gaussians, side_px, rows, restorer = point.split(":")
    asked = stages.Options(gaussians=int(gaussians), iterations=iterations, restorer=restorer)
    sizes = stages.Sizes(int(gaussians), int(side_px), int(rows))
    peaks = {}
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(Path(folder) / "run", photo) as run:
        peak_mb()
        for product, _ in outputs.everything(run, asked.with_caps(sizes)):
            peaks[product] = peak_mb()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--points", nargs="+", default=POINTS)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--here", action="store_true", help="measure the first point in this process")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.photo, args.points[0], args.iterations)))
        return
    from hdx_cli import limits
    from hdx_cli.cli.app import SAMPLE

    photo = args.photo or SAMPLE
    print(f"{'gaussians:side:rows:restorer':<34}{'peak MB':>8}{'planned':>9}  by product")
    for point in args.points:
        command = [sys.executable, __file__, "--here", "--photo", str(photo), "--points", point]
        command += ["--iterations", str(args.iterations)] if args.iterations is not None else []
        start = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, text=True, check=True)
        peaks = json.loads(done.stdout.splitlines()[-1])
        *sizes, restorer = point.split(":")
        planned = limits.cost(limits.Sizes(*map(int, sizes)), restorer) / 1e6
        shown = ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items())
        seconds = time.perf_counter() - start
        print(f"{point:<34}{max(peaks.values()):8.0f}{planned:9.0f}  {shown} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
