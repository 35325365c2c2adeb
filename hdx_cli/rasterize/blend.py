"""Kernels that blend the Gaussians of each tile from front to back, and carry the gradients from back to front.

Volume rendering as in 3D Gaussian Splatting (Kerbl et al. 2023, eq. 2-3): alpha = min(0.999, opacity * exp(-sigma)),
skipped below 1/255; a pixel is done before its transmittance would fall to 1e-4. The backward pass restores the
transmittance by division, as gsplat (Ye et al. 2024) does.

A tile is cut into strips eight pixels wide. Where a Gaussian's ellipse enters and leaves each strip is known in closed
form for all strips at once; the inner loop then walks down the rows of one strip, eight pixels per step: the column
offsets are constant and the exponent costs two FMAs. A tile's pixels lie in memory strip by strip and row by row, the
planes of eight pixels (transmittance, red, ...) side by side: one pointer and neighbouring cache lines serve them all.
"""

from __future__ import annotations

import numpy as np

from ..simd import (
    EXP2_COEFFICIENTS,
    WIDTH,
    ceil,
    exp2,
    f4,
    fetch_add,
    first_lane,
    floor,
    fma,
    fnma,
    get,
    hsum,
    hsum8,
    i4,
    keep,
    kernel,
    lane_bits,
    lanes,
    load,
    load_blue,
    load_green,
    load_red,
    maximum,
    minimum,
    prefetch,
    put,
    select,
    splat,
    sqrt,
    store,
    store_triples,
    to_i32,
)
from .project import PAIR, RECORD, TILE_HEIGHT, TILE_WIDTH

STRIPS = TILE_WIDTH // WIDTH
ROWS = STRIPS * TILE_HEIGHT  # of eight pixels, in a tile
BATCH = 64  # Gaussians whose spans are computed before they are blended
LOOK_AHEAD = 12
TILES_AT_ONCE = 2  # taken from the queue by a thread
NO_ROW = f4(1e6)
SPAN_SLACK_PX = f4(0.002)  # spans may be this much too long: alpha decides per pixel anyway

# Planes of a row of eight pixels: forward, then backward.
_T, _RED, _GREEN, _BLUE, _DEPTH, _END, _FORWARD = range(0, 7 * WIDTH, WIDTH)
_S, _V_RED, _V_GREEN, _V_BLUE, _V_DEPTH, _V_END, _BACKWARD = range(WIDTH, 8 * WIDTH, WIDTH)

# Offsets into the table of constants; exp2 has the first ones.
_LEAST_EXPONENT, _MAX_ALPHA, _MIN_TRANSMITTANCE, _ONE = (WIDTH * (len(EXP2_COEFFICIENTS) + k) for k in range(4))


def constants() -> np.ndarray:
    """Numbers of the inner loops, each eight times: read from memory they fold into the arithmetic."""
    values = [*EXP2_COEFFICIENTS, -np.log2(255), 0.999, 1e-4, 1.0]
    return np.repeat(np.array(values, np.float32), WIDTH)


@kernel
def _spans(records, gaussian, tile_x, tile_y, strips, slot, spans, span_ints):
    """Rows of every strip of a tile that one Gaussian covers, as a bit per strip that it touches.

    ``strips``: first column of each strip, first and last row still open to blending [3 * 8]. Writes, at lane
    ``slot`` + strip, the offset from the Gaussian's centre to the first pixel (``spans``: x, y) and that row's number
    in the tile and the number of rows (``span_ints``).
    """
    size = BATCH * WIDTH
    base = gaussian * RECORD
    slope, height2, curve = (
        splat(get(records, base + 2)),
        splat(get(records, base + 3)),
        splat(f4(0) - get(records, base + 4)),
    )
    top, half_width = get(records, base + 5), get(records, base + 6)
    centre_x = get(records, base) - tile_x - f4(0.5)
    centre_y = get(records, base + 1) - tile_y - f4(0.5)
    zero = splat(f4(0))
    left = load(strips, 0) - centre_x
    right = left + f4(7)
    at_bottom = minimum(maximum(splat(f4(0) - top), left), right)
    at_top = minimum(maximum(splat(top), left), right)
    bottom = sqrt(maximum(fma(at_bottom * at_bottom, curve, height2), zero)) - slope * at_bottom
    up = zero - slope * at_top - sqrt(maximum(fma(at_top * at_top, curve, height2), zero))
    first = minimum(maximum(ceil(up + (centre_y - SPAN_SLACK_PX)), load(strips, 8)), splat(NO_ROW))
    last = maximum(minimum(floor(bottom + (centre_y + SPAN_SLACK_PX)), load(strips, 16)), f4(-1))
    reach = half_width + SPAN_SLACK_PX
    covered = (last >= first) & (right >= f4(0) - reach) & (left <= reach)
    store(spans, slot, left)
    store(spans, size + slot, first - centre_y)
    store(span_ints, slot, to_i32(load(strips, 0) * f4(TILE_HEIGHT // WIDTH) + first))
    store(span_ints, size + slot, to_i32(last - first + f4(1)))
    return lane_bits(covered)


@kernel
def blend(queue, records, tile_starts, tile_ids, width, height, tile_columns, background, table, rgb, alpha, depth,
          transmittance, ends, tile_ends):  # fmt: skip
    """Renders tiles from the queue until it is empty. ``width`` is a multiple of 8.

    Writes rgb [H W 3] over ``background`` [3], alpha and expected depth [H W]; and for the backward pass, in tiles
    with any entries, the remaining transmittance [H W] and how many entries of the tile's list could contribute, per
    pixel (``ends`` [H W]) and per tile.
    """
    pixels = np.empty(ROWS * _FORWARD, np.float32)
    pixel_ints = pixels.view(np.int32)
    strips, bits = np.empty(3 * WIDTH, np.float32), np.empty(BATCH, np.int32)
    spans, span_ints = np.empty(2 * BATCH * WIDTH, np.float32), np.empty(2 * BATCH * WIDTH, np.int32)
    local = np.empty(table.size, np.float32)
    for k in range(table.size):
        local[k] = table[k]
    zero, one, column = splat(f4(0)), splat(f4(1)), lanes()
    bg_r, bg_g, bg_b = splat(get(background, 0)), splat(get(background, 1)), splat(get(background, 2))
    tiles = len(tile_starts) - 1
    while True:
        drawn = fetch_add(queue, 0, TILES_AT_ONCE)
        if drawn >= tiles:
            break
        for tile in range(drawn, min(drawn + TILES_AT_ONCE, tiles)):
            row = tile // tile_columns
            x0, y0 = (tile - row * tile_columns) * TILE_WIDTH, row * TILE_HEIGHT
            rows = min(TILE_HEIGHT, height - y0)
            open_strips = min(TILE_WIDTH, width - x0) // WIDTH
            start, end = tile_starts[tile], tile_starts[tile + 1]
            if start == end:
                for y in range(y0, y0 + rows):
                    for pixel in range(y * width + x0, y * width + x0 + open_strips * WIDTH, WIDTH):
                        store_triples(rgb, 3 * pixel, bg_r, bg_g, bg_b)
                        store(alpha, pixel, zero)
                        store(depth, pixel, zero)
                continue
            for o in range(0, ROWS * _FORWARD, _FORWARD):
                store(pixels, o + _T, one)
                store(pixels, o + _RED, zero)
                store(pixels, o + _GREEN, zero)
                store(pixels, o + _BLUE, zero)
                store(pixels, o + _DEPTH, zero)
                store(pixel_ints, o + _END, splat(i4(end - start)))
            for k in range(WIDTH):
                strips[k] = f4(WIDTH * k)
                strips[8 + k] = f4(0) if k < open_strips else NO_ROW
                strips[16 + k] = f4(rows - 1)
            for batch in range(start, end, BATCH):
                batch_end = min(batch + BATCH, end)
                for entry in range(batch, batch_end):
                    prefetch(records, np.intp(get(tile_ids, entry + LOOK_AHEAD)) * RECORD)
                    k = entry - batch
                    bits[k] = _spans(
                        records, np.intp(get(tile_ids, entry)), f4(x0), f4(y0), strips, k * WIDTH, spans, span_ints
                    )
                for entry in range(batch, batch_end):
                    base = np.intp(get(tile_ids, entry)) * RECORD
                    peak, a = splat(get(records, base + 7)), splat(get(records, base + 8))
                    b, c = splat(get(records, base + 9)), splat(get(records, base + 10))
                    red, green = splat(get(records, base + 11)), splat(get(records, base + 12))
                    blue, z = splat(get(records, base + 13)), splat(get(records, base + 14))
                    left_bits = get(bits, entry - batch)
                    while left_bits != 0:
                        span = (entry - batch) * WIDTH + np.intp(first_lane(left_bits))
                        left_bits &= left_bits - i4(1)
                        dx = column + get(spans, span)
                        dy = splat(get(spans, BATCH * WIDTH + span))
                        constant, linear = fma(a * dx, dx, peak), b * dx
                        o = np.intp(get(span_ints, span)) * _FORWARD
                        stop = o + np.intp(get(span_ints, BATCH * WIDTH + span)) * _FORWARD
                        while o < stop:
                            exponent = fma(dy, fma(c, dy, linear), constant)
                            shows = exponent >= load(local, _LEAST_EXPONENT)
                            opaque = minimum(exp2(exponent, local), load(local, _MAX_ALPHA))
                            # A finished pixel has its transmittance negated and takes no more weight.
                            t = load(pixels, o + _T)
                            weight = keep(shows & (t > zero), opaque * t)
                            t_next = t - weight
                            finishes = (t_next <= load(local, _MIN_TRANSMITTANCE)) & (weight > zero)
                            if lane_bits(finishes) != 0:
                                weight = select(finishes, zero, weight)
                                t_next = select(finishes, zero - t, t_next)
                                ended = select(finishes, splat(i4(entry - start)), load(pixel_ints, o + _END))
                                store(pixel_ints, o + _END, ended)
                            store(pixels, o + _T, t_next)
                            store(pixels, o + _RED, fma(weight, red, load(pixels, o + _RED)))
                            store(pixels, o + _GREEN, fma(weight, green, load(pixels, o + _GREEN)))
                            store(pixels, o + _BLUE, fma(weight, blue, load(pixels, o + _BLUE)))
                            store(pixels, o + _DEPTH, fma(weight, z, load(pixels, o + _DEPTH)))
                            dy = dy + load(local, _ONE)
                            o += _FORWARD
                if batch_end < end and not _narrow_open_rows(pixels, strips, open_strips):
                    break
            most = splat(i4(0))
            for y in range(rows):
                for strip in range(open_strips):
                    o, pixel = (strip * TILE_HEIGHT + y) * _FORWARD, (y0 + y) * width + x0 + strip * WIDTH
                    t = load(pixels, o + _T)
                    t = maximum(t, zero - t)
                    covered = f4(1) - t
                    store_triples(
                        rgb,
                        3 * pixel,
                        fma(t, bg_r, load(pixels, o + _RED)),
                        fma(t, bg_g, load(pixels, o + _GREEN)),
                        fma(t, bg_b, load(pixels, o + _BLUE)),
                    )
                    store(alpha, pixel, covered)
                    store(depth, pixel, load(pixels, o + _DEPTH) / maximum(covered, f4(1e-10)))
                    store(transmittance, pixel, t)
                    store(ends, pixel, load(pixel_ints, o + _END))
                    most = maximum(load(pixel_ints, o + _END), most)
            store(span_ints, 0, most)
            tile_end = i4(0)
            for k in range(WIDTH):
                tile_end = max(tile_end, span_ints[k])
            tile_ends[tile] = tile_end


@kernel
def _narrow_open_rows(pixels, strips, open_strips):
    """Shrinks every strip's rows to those with an unfinished pixel; false where none is left in the tile."""
    any_open = False
    for strip in range(open_strips):
        if strips[8 + strip] == NO_ROW:
            continue
        base = strip * TILE_HEIGHT * _FORWARD + _T
        first, last = np.intp(strips[8 + strip]), np.intp(strips[16 + strip])
        while first <= last and lane_bits(load(pixels, base + first * _FORWARD) > f4(0)) == 0:
            first += 1
        while last > first and lane_bits(load(pixels, base + last * _FORWARD) > f4(0)) == 0:
            last -= 1
        strips[16 + strip] = f4(last)
        if first > last:
            strips[8 + strip] = NO_ROW
        else:
            strips[8 + strip] = f4(first)
            any_open = True
    return any_open


@kernel
def blend_backward(queue, records, tile_starts, tile_ids, tile_pairs, width, height, tile_columns, background, table,
                   alpha, depth, transmittance, ends, tile_ends, v_rgb, v_alpha, v_depth, pairs):  # fmt: skip
    """What each Gaussian owes to each tile, for tiles from the queue; the arrays are those of ``blend``.

    With g = dLoss/d(log alpha) summed over pixels at offset (x, y) from the centre, a pair receives the sums of g, g x,
    g y, g x^2, g x y, g y^2, then the gradients of red, green, blue and depth. Every pair's slot is written by the one
    thread that has its tile, so the sums do not depend on the number of threads.
    """
    pixels = np.zeros(ROWS * _BACKWARD, np.float32)
    pixel_ints = pixels.view(np.int32)
    strips, bits = np.empty(3 * WIDTH, np.float32), np.empty(BATCH, np.int32)
    spans, span_ints = np.empty(2 * BATCH * WIDTH, np.float32), np.empty(2 * BATCH * WIDTH, np.int32)
    local = np.empty(table.size, np.float32)
    for k in range(table.size):
        local[k] = table[k]
    # One Gaussian's numbers, each eight times, so that they come as memory operands instead of filling registers.
    red, green, blue, z, c, constant, linear = 0, 8, 16, 24, 32, 40, 48
    own, own_number = np.empty(56, np.float32), np.empty(WIDTH, np.int32)
    zero, column = splat(f4(0)), lanes()
    bg_r, bg_g, bg_b = splat(get(background, 0)), splat(get(background, 1)), splat(get(background, 2))
    tiles = len(tile_starts) - 1
    while True:
        drawn = fetch_add(queue, 0, TILES_AT_ONCE)
        if drawn >= tiles:
            break
        for tile in range(drawn, min(drawn + TILES_AT_ONCE, tiles)):
            row = tile // tile_columns
            x0, y0 = (tile - row * tile_columns) * TILE_WIDTH, row * TILE_HEIGHT
            rows = min(TILE_HEIGHT, height - y0)
            open_strips = min(TILE_WIDTH, width - x0) // WIDTH
            start, end = tile_starts[tile], tile_starts[tile + 1]
            if start == end:
                continue
            last = start + tile_ends[tile]
            for entry in range(last, end):
                slot = np.intp(get(tile_pairs, entry)) * PAIR
                for k in range(PAIR):
                    put(pairs, slot + k, f4(0))
            for k in range(WIDTH):
                strips[k] = f4(WIDTH * k)
            for y in range(rows):
                for strip in range(open_strips):
                    o, pixel = (strip * TILE_HEIGHT + y) * _BACKWARD, (y0 + y) * width + x0 + strip * WIDTH
                    vr, vg, vb = load_red(v_rgb, 3 * pixel), load_green(v_rgb, 3 * pixel), load_blue(v_rgb, 3 * pixel)
                    t, covered = load(transmittance, pixel), load(alpha, pixel)
                    # depth = sum(w z) / alpha where alpha is not tiny
                    vz = load(v_depth, pixel) / maximum(covered, f4(1e-10))
                    va = load(v_alpha, pixel) - keep(covered > f4(1e-10), vz * load(depth, pixel))
                    store(pixels, o + _T, t)
                    store(pixels, o + _V_RED, vr)
                    store(pixels, o + _V_GREEN, vg)
                    store(pixels, o + _V_BLUE, vb)
                    store(pixels, o + _V_DEPTH, vz)
                    store(pixels, o + _S, t * (bg_r * vr + bg_g * vg + bg_b * vb - va))
                    store(pixel_ints, o + _V_END, load(ends, pixel))
            for batch in range(start + (last - start - 1) // BATCH * BATCH, start - 1, -BATCH):
                batch_end = min(batch + BATCH, last)
                _rows_with_more_entries(pixel_ints, i4(batch - start), strips, open_strips, rows)
                for entry in range(batch, batch_end):
                    prefetch(records, np.intp(get(tile_ids, entry + LOOK_AHEAD)) * RECORD)
                    k = entry - batch
                    bits[k] = _spans(
                        records, np.intp(get(tile_ids, entry)), f4(x0), f4(y0), strips, k * WIDTH, spans, span_ints
                    )
                for entry in range(batch_end - 1, batch - 1, -1):
                    base = np.intp(get(tile_ids, entry)) * RECORD
                    peak, a = splat(get(records, base + 7)), splat(get(records, base + 8))
                    b = splat(get(records, base + 9))
                    store(own, c, splat(get(records, base + 10)))
                    store(own, red, splat(get(records, base + 11)))
                    store(own, green, splat(get(records, base + 12)))
                    store(own, blue, splat(get(records, base + 13)))
                    store(own, z, splat(get(records, base + 14)))
                    store(own_number, 0, splat(i4(entry - start)))
                    m1, mx, my, mxx, mxy, myy = zero, zero, zero, zero, zero, zero
                    v_red, v_green, v_blue, v_z = zero, zero, zero, zero
                    left_bits = get(bits, entry - batch)
                    while left_bits != 0:
                        span = (entry - batch) * WIDTH + np.intp(first_lane(left_bits))
                        left_bits &= left_bits - i4(1)
                        dx = column + get(spans, span)
                        dy = splat(get(spans, BATCH * WIDTH + span))
                        store(own, constant, fma(a * dx, dx, peak))
                        store(own, linear, b * dx)
                        o = np.intp(get(span_ints, span)) * _BACKWARD
                        stop = o + np.intp(get(span_ints, BATCH * WIDTH + span)) * _BACKWARD
                        n1, ny = zero, zero
                        while o < stop:
                            exponent = fma(dy, fma(dy, load(own, c), load(own, linear)), load(own, constant))
                            added = (exponent >= load(local, _LEAST_EXPONENT)) & (
                                load(pixel_ints, o + _V_END) > load(own_number, 0)
                            )
                            raw = keep(added, exp2(exponent, local))
                            opaque = minimum(raw, load(local, _MAX_ALPHA))
                            vr, vg = load(pixels, o + _V_RED), load(pixels, o + _V_GREEN)
                            vb, vz = load(pixels, o + _V_BLUE), load(pixels, o + _V_DEPTH)
                            behind = load(pixels, o + _S)
                            restore = load(local, _ONE) / (load(local, _ONE) - opaque)
                            t = load(pixels, o + _T) * restore
                            shade = fma(
                                vr,
                                load(own, red),
                                fma(vg, load(own, green), fma(vb, load(own, blue), vz * load(own, z))),
                            )
                            weight = opaque * t
                            v_opaque = fnma(behind, restore, t * shade)
                            g = keep(raw <= load(local, _MAX_ALPHA), raw * v_opaque)
                            store(pixels, o + _T, t)
                            store(pixels, o + _S, fma(weight, shade, behind))
                            v_red, v_green = fma(weight, vr, v_red), fma(weight, vg, v_green)
                            v_blue, v_z = fma(weight, vb, v_blue), fma(weight, vz, v_z)
                            gy = g * dy
                            n1 = n1 + g
                            ny = ny + gy
                            myy = fma(gy, dy, myy)
                            dy = dy + load(local, _ONE)
                            o += _BACKWARD
                        nx = n1 * dx
                        m1, mx, my = m1 + n1, mx + nx, my + ny
                        mxx, mxy = fma(nx, dx, mxx), fma(ny, dx, mxy)
                    slot = np.intp(get(tile_pairs, entry)) * PAIR
                    store(pairs, slot, hsum8(m1, mx, my, mxx, mxy, myy, v_red, v_green))
                    put(pairs, slot + 8, hsum(v_blue))
                    put(pairs, slot + 9, hsum(v_z))


@kernel
def _rows_with_more_entries(pixel_ints, number, strips, open_strips, rows):
    """Sets every strip's rows to those with a pixel that more than ``number`` entries could contribute to."""
    for strip in range(WIDTH):
        strips[8 + strip] = NO_ROW
        strips[16 + strip] = f4(-1)
        if strip >= open_strips:
            continue
        base, first, last = strip * TILE_HEIGHT * _BACKWARD + _V_END, 0, rows - 1
        while first <= last and lane_bits(load(pixel_ints, base + first * _BACKWARD) > number) == 0:
            first += 1
        while last > first and lane_bits(load(pixel_ints, base + last * _BACKWARD) > number) == 0:
            last -= 1
        if first <= last:
            strips[8 + strip] = f4(first)
            strips[16 + strip] = f4(last)
