"""Seconds per picture of a scan: ``python tests/bench/bench_scan_views.py SCANS``, of the first scan found there."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch

from hdx_cli.training.scan_pairs import around
from hdx_cli.training.scan_views import EmbreeScene
from hdx_cli.training.scans import find_scans, normalising, read_surface


def main() -> None:
    surface = read_surface(find_scans(Path(sys.argv[1]))[0])
    surface = surface.moved(normalising(surface.vertices)[0])
    began = time.process_time()
    scene = EmbreeScene(surface)
    print(f"{len(surface.faces)} triangles, scene {time.process_time() - began:.2f} s of CPU")
    for width, height in ((320, 480), (640, 960)):
        cameras = around(torch.arange(6) * (math.pi / 3), width, height)
        for supersampling in (1, 2):
            began, wall = time.process_time(), time.perf_counter()
            for index in range(len(cameras)):
                scene.render(cameras[index], supersampling)
            cpu, wall = ((now - before) / len(cameras) for now, before in
                         ((time.process_time(), began), (time.perf_counter(), wall)))  # fmt: skip
            print(f"{width} x {height}, {supersampling}^2 rays a pixel: {cpu:.2f} s of CPU, {wall:.2f} s by the clock")


if __name__ == "__main__":
    main()
