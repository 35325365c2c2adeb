"""The blending of hdx_cli.rasterize.blend written as plain scalar numba loops: the peer of the benchmark.

Same tile lists, same records, same exact ellipse spans (by rows instead of by strips), fastmath; what is left is the
difference that vectors make. Projection, sorting and listing are the package's own.
"""

from __future__ import annotations

import math
import time

import numba
import numpy as np
import torch

from hdx_cli.camera import Cameras
from hdx_cli.gaussians import Gaussians
from hdx_cli.rasterize import cpu, project
from hdx_cli.threads import Threads

TW, TH, RECORD, PAIR = project.TILE_WIDTH, project.TILE_HEIGHT, project.RECORD, project.PAIR
LN2 = np.float32(math.log(2))
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
MAX_ALPHA, MIN_ALPHA, MIN_T = np.float32(0.999), np.float32(1 / 255), np.float32(1e-4)


@numba.njit(inline="always")
def row_span(records, b, y, x0, x1):
    """Columns of row y inside the ellipse, from the same closed form with x and y exchanged."""
    dy = np.float32(y) + HALF - records[b + 1]
    a, h, c = records[b + 8], records[b + 9], records[b + 10]
    level = -(records[b + 7] + np.float32(math.log2(255.0)))
    # a x^2 + h dy x + (c dy^2 - level) = 0, all coefficients negative
    discriminant = h * h * dy * dy - np.float32(4) * a * (c * dy * dy - level)
    if discriminant < ZERO:
        return 1, 0
    root = math.sqrt(discriminant)
    left, right = (-h * dy + root) / (np.float32(2) * a), (-h * dy - root) / (np.float32(2) * a)
    mean = records[b] - HALF
    return max(x0, math.ceil(mean + left)), min(x1 - 1, math.floor(mean + right))


@numba.njit(fastmath=True, nogil=True, error_model="numpy")
def blend(records, starts, ids, width, height, columns, background, rgb, alpha, depth, transmittance, ends):
    T, done = np.empty((TH, TW), np.float32), np.empty((TH, TW), np.int32)
    C = np.empty((TH, TW, 4), np.float32)
    for tile in range(len(starts) - 1):
        x0, y0 = tile % columns * TW, tile // columns * TH
        x1, y1 = min(width, x0 + TW), min(height, y0 + TH)
        T[:], C[:], done[:] = ONE, ZERO, starts[tile + 1] - starts[tile]
        open_pixels = (x1 - x0) * (y1 - y0)
        for entry in range(starts[tile], starts[tile + 1]):
            if open_pixels == 0:
                break
            b = ids[entry] * RECORD
            mx, my = records[b] - HALF, records[b + 1] - HALF
            reach = math.sqrt(records[b + 3] * (ONE + records[b + 2] ** 2 / records[b + 4]))
            for y in range(max(y0, math.ceil(my - reach)), min(y1 - 1, math.floor(my + reach)) + 1):
                first, last = row_span(records, b, y, x0, x1)
                dy = np.float32(y) - my
                for x in range(first, last + 1):
                    t = T[y - y0, x - x0]
                    if t < ZERO:
                        continue
                    dx = np.float32(x) - mx
                    power = (
                        records[b + 7] + records[b + 8] * dx * dx + records[b + 9] * dx * dy + records[b + 10] * dy * dy
                    )
                    a = min(MAX_ALPHA, math.exp(power * LN2))
                    if a < MIN_ALPHA:
                        continue
                    after = t - a * t
                    if after <= MIN_T:
                        T[y - y0, x - x0] = -t
                        done[y - y0, x - x0] = entry - starts[tile]
                        open_pixels -= 1
                        continue
                    for k in range(4):
                        C[y - y0, x - x0, k] += a * t * records[b + 11 + k]
                    T[y - y0, x - x0] = after
        for y in range(y0, y1):
            for x in range(x0, x1):
                t = abs(T[y - y0, x - x0])
                p = y * width + x
                for k in range(3):
                    rgb[3 * p + k] = C[y - y0, x - x0, k] + t * background[k]
                alpha[p] = ONE - t
                depth[p] = C[y - y0, x - x0, 3] / max(ONE - t, np.float32(1e-10))
                transmittance[p] = t
                ends[p] = done[y - y0, x - x0]


@numba.njit(fastmath=True, nogil=True, error_model="numpy")
def blend_backward(records, starts, ids, tile_pairs, width, height, columns, background, alpha, depth, transmittance,
                   ends, v_rgb, v_alpha, v_depth, pairs):  # fmt: skip
    T, S = np.empty((TH, TW), np.float32), np.empty((TH, TW), np.float32)
    V, sums = np.empty((TH, TW, 4), np.float32), np.empty(PAIR, np.float32)
    for tile in range(len(starts) - 1):
        x0, y0 = tile % columns * TW, tile // columns * TH
        x1, y1 = min(width, x0 + TW), min(height, y0 + TH)
        start = starts[tile]
        if start == starts[tile + 1]:
            continue
        for y in range(y0, y1):
            for x in range(x0, x1):
                p = y * width + x
                t, shade = transmittance[p], ZERO
                for k in range(3):
                    V[y - y0, x - x0, k] = v_rgb[3 * p + k]
                    shade += v_rgb[3 * p + k] * background[k]
                vz = v_depth[p] / max(alpha[p], np.float32(1e-10))
                V[y - y0, x - x0, 3] = vz
                T[y - y0, x - x0] = t
                S[y - y0, x - x0] = t * (shade - v_alpha[p] + vz * depth[p])
        for entry in range(starts[tile + 1] - 1, start - 1, -1):
            b = ids[entry] * RECORD
            mx, my = records[b] - HALF, records[b + 1] - HALF
            reach = math.sqrt(records[b + 3] * (ONE + records[b + 2] ** 2 / records[b + 4]))
            sums[:] = ZERO
            for y in range(max(y0, math.ceil(my - reach)), min(y1 - 1, math.floor(my + reach)) + 1):
                first, last = row_span(records, b, y, x0, x1)
                dy = np.float32(y) - my
                for x in range(first, last + 1):
                    if ends[y * width + x] <= entry - start:
                        continue
                    dx = np.float32(x) - mx
                    power = (
                        records[b + 7] + records[b + 8] * dx * dx + records[b + 9] * dx * dy + records[b + 10] * dy * dy
                    )
                    raw = math.exp(power * LN2)
                    a = min(MAX_ALPHA, raw)
                    if a < MIN_ALPHA:
                        continue
                    restore = ONE / (ONE - a)
                    t = T[y - y0, x - x0] * restore
                    shade = ZERO
                    for k in range(4):
                        shade += V[y - y0, x - x0, k] * records[b + 11 + k]
                        sums[6 + k] += a * t * V[y - y0, x - x0, k]
                    behind = S[y - y0, x - x0]
                    if raw <= MAX_ALPHA:
                        g = raw * (t * shade - behind * restore)
                        sums[0] += g
                        sums[1] += g * dx
                        sums[2] += g * dy
                        sums[3] += g * dx * dx
                        sums[4] += g * dx * dy
                        sums[5] += g * dy * dy
                    T[y - y0, x - x0] = t
                    S[y - y0, x - x0] = behind + a * t * shade
            for k in range(PAIR):
                pairs[tile_pairs[entry] * PAIR + k] = sums[k]


def peer_times(gaussians: Gaussians, views: Cameras, repeats: int = 3) -> tuple[float, float, float]:
    """CPU ms of the vector and of the scalar forward+backward pass, and how far their pair gradients are apart."""
    background, table = np.ones(3, np.float32), cpu.blend.constants()
    inputs = [t.contiguous().reshape(-1).numpy() for t in vars(gaussians).values()]
    width, height = views.width, views.height
    rng = np.random.default_rng(0)
    v = [rng.normal(size=height * width * c).astype(np.float32) for c in (3, 1, 1)]
    vector_ms, scalar_ms, difference = [], [], 0.0
    with Threads(1) as threads:
        for c in range(len(views)):
            images = [torch.empty(height * width * k).numpy() for k in (3, 1, 1)]
            view = cpu._render_view(
                inputs,
                gaussians.sh.shape[1],
                views.viewmats[c].numpy(),
                views.Ks[c].numpy(),
                width,
                width,
                height,
                background,
                False,
                0.01,
                images,
                threads,
            )
            lists = (view.records, view.tile_starts, view.tile_ids)
            pairs, scalar_pairs = (np.empty(PAIR * len(view.tile_pairs), np.float32) for _ in range(2))
            copies = [x.copy() for x in (*images, view.transmittance, view.ends)]

            def vector(view=view, lists=lists, images=images, pairs=pairs):
                size = (width, height, view.tile_columns, background, table)
                saved = (view.transmittance, view.ends, view.tile_ends)
                cpu.blend.blend(np.zeros(1, np.int64), *lists, *size, *images, *saved)
                cpu.blend.blend_backward(
                    np.zeros(1, np.int64), *lists, view.tile_pairs, *size, *images[1:], *saved, *v, pairs
                )

            def scalar(view=view, lists=lists, copies=copies, scalar_pairs=scalar_pairs):
                size = (width, height, view.tile_columns, background)
                blend(*lists, *size, *copies)
                blend_backward(*lists, view.tile_pairs, *size, *copies[1:], *v, scalar_pairs)

            for function, times in ((vector, vector_ms), (scalar, scalar_ms)):
                function()
                laps = []
                for _ in range(repeats):
                    begin = time.process_time()
                    function()
                    laps.append(time.process_time() - begin)
                times.append(1e3 * min(laps))
            difference = max(difference, float(np.linalg.norm(pairs - scalar_pairs) / np.linalg.norm(pairs)))
    return float(np.mean(vector_ms)), float(np.mean(scalar_ms)), difference
