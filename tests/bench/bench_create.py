"""Stage times and peak memory of ``hdx create``, run as a user runs it.

    python tests/bench/bench_create.py [PHOTO ...] [--runs 2]

Each photo is made ``--runs`` times into a fresh folder in a process of its own; the sample photo is taken where none is given.
Wall and CPU seconds need a quiet machine; the first run of a fresh installation also pays for compiling the kernels.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def create(photo: str, folder: Path) -> tuple[dict, float, float, float]:
    """Facts of one run, wall seconds, CPU seconds, peak memory in GB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [sys.executable, "-m", "hdx_cli.cli.app", "create", photo, "-o", str(folder), "--json", "--no-progress"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak_kb = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak_kb = max(peak_kb, int(status.split("VmHWM:")[1].split()[0]))
        except (OSError, IndexError):
            pass
        time.sleep(0.2)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{photo}: hdx create ended with {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(process.stdout.read()), wall, cpu, peak_kb / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", default=["sample"])
    parser.add_argument("--runs", type=int, default=2)
    args = parser.parse_args()
    for photo in args.photos:
        for run in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                facts, wall, cpu, peak = create(photo, Path(folder) / "run")
            stages = ", ".join(f"{Path(name).name} {seconds:.1f}" for name, seconds in facts["seconds"].items())
            print(
                f"{Path(photo).name} run {run + 1}: {wall:.1f} s wall, {cpu:.1f} s CPU, {peak:.2f} GB peak ({stages})"
            )
        print("  " + ", ".join(f"{name} {value:.3g}" for name, value in facts["scores"].items()))


if __name__ == "__main__":
    main()
