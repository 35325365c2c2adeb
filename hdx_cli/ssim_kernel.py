"""Kernel of the structural similarity and its gradient: one sweep over the rows that keeps eleven of them at a time."""

from __future__ import annotations

import numpy as np

from .simd import WIDTH, f4, fma, get, hsum, kernel, load, put, splat, store

TAPS = 11
RADIUS = 5
_C1, _C2 = f4(0.01**2), f4(0.03**2)


@kernel
def _filter_row(row, x, channels, window):
    """Eight values of a row filtered along it; row[x] is the leftmost tap of the first."""
    total = splat(f4(0))
    for k in range(TAPS):
        total = fma(load(row, x + k * channels), get(window, k), total)
    return total


@kernel
def _filter_column(ring, plane, planes, length, first, last, y, x, window):
    """Eight values filtered along columns: rows y - 5 .. y + 5 of the ring, those outside [first, last) being zero."""
    total = splat(f4(0))
    for row in range(max(first, y - RADIUS), min(last, y + RADIUS + 1)):
        total = fma(load(ring, ((row % TAPS) * planes + plane) * length + x), get(window, row - y + RADIUS), total)
    return total


@kernel
def ssim_rows(image, target, height, width, channels, window, first, last, wanted, scale, gradient, row_sums):
    """Sums of the similarity over rows [first, last), and there ``scale`` times the gradient of the sum over all rows.

    Rows are ``width`` floats, ``channels`` interleaved; ``gradient`` is left alone unless ``wanted``. With the window's
    means m, the similarity is a function of m(x), m(y), m(xx), m(yy), m(xy); its derivatives with respect to the three
    that hold x, filtered once more, make the gradient: f(d_x) + 2 x f(d_xx) + y f(d_xy).
    """
    length = (width + WIDTH - 1) // WIDTH * WIDTH
    margin = RADIUS * channels
    size = length + 2 * margin
    x_row, y_row, xx_row, yy_row, xy_row = (np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32),
                                            np.zeros(size, np.float32), np.zeros(size, np.float32))  # fmt: skip
    means = np.zeros(TAPS * 5 * length, np.float32)
    slopes = np.zeros(TAPS * 3 * length, np.float32)
    out = np.empty(length, np.float32)
    one, two = f4(1), f4(2)
    halo = RADIUS if wanted else 0
    similar_first, similar_last = max(0, first - halo), min(height, last + halo)
    for y in range(max(0, similar_first - RADIUS), last + RADIUS + halo):
        if y < height:
            for x in range(width):
                a, b = get(image, y * width + x), get(target, y * width + x)
                put(x_row, margin + x, a)
                put(y_row, margin + x, b)
                put(xx_row, margin + x, a * a)
                put(yy_row, margin + x, b * b)
                put(xy_row, margin + x, a * b)
            base = (y % TAPS) * 5 * length
            for x in range(0, length, WIDTH):
                store(means, base + x, _filter_row(x_row, x, channels, window))
                store(means, base + length + x, _filter_row(y_row, x, channels, window))
                store(means, base + 2 * length + x, _filter_row(xx_row, x, channels, window))
                store(means, base + 3 * length + x, _filter_row(yy_row, x, channels, window))
                store(means, base + 4 * length + x, _filter_row(xy_row, x, channels, window))
        middle = y - RADIUS
        if similar_first <= middle < similar_last:
            base = (middle % TAPS) * 3 * length
            row_sum = 0.0
            for x in range(0, length, WIDTH):
                mx = _filter_column(means, 0, 5, length, 0, height, middle, x, window)
                my = _filter_column(means, 1, 5, length, 0, height, middle, x, window)
                mxx = _filter_column(means, 2, 5, length, 0, height, middle, x, window)
                myy = _filter_column(means, 3, 5, length, 0, height, middle, x, window)
                mxy = _filter_column(means, 4, 5, length, 0, height, middle, x, window)
                a1, a2 = two * mx * my + _C1, two * (mxy - mx * my) + _C2
                b1, b2 = one / (mx * mx + my * my + _C1), one / ((mxx - mx * mx) + (myy - my * my) + _C2)
                ab = b1 * b2
                similarity = a1 * a2 * ab
                store(out, x, similarity)
                store(slopes, base + x, two * (my * (a2 - a1) * ab + mx * similarity * (b2 - b1)))
                store(slopes, base + length + x, f4(0) - similarity * b2)
                store(slopes, base + 2 * length + x, two * a1 * ab)
            for x in range(width):
                row_sum += get(out, x)
            if first <= middle < last:
                row_sums[middle] = row_sum
            if wanted:
                for plane in range(3):
                    for x in range(width, length):  # lanes beyond the row are not part of the image
                        put(slopes, base + plane * length + x, f4(0))
        done = y - 2 * RADIUS
        if wanted and first <= done < last:
            for x in range(0, length, WIDTH):
                store(x_row, margin + x, _filter_column(slopes, 0, 3, length, 0, height, done, x, window))
                store(xx_row, margin + x, _filter_column(slopes, 1, 3, length, 0, height, done, x, window))
                store(xy_row, margin + x, _filter_column(slopes, 2, 3, length, 0, height, done, x, window))
            for x in range(0, length, WIDTH):
                store(out, x, _filter_row(x_row, x, channels, window))
                store(y_row, margin + x, _filter_row(xx_row, x, channels, window))
                store(yy_row, margin + x, _filter_row(xy_row, x, channels, window))
            for x in range(width):
                value = get(out, x) + two * get(image, done * width + x) * get(y_row, margin + x)
                value += get(target, done * width + x) * get(yy_row, margin + x)
                put(gradient, done * width + x, value * scale)
            for x in range(width, length):  # what the next row of statistics does not overwrite
                put(x_row, margin + x, f4(0))
                put(y_row, margin + x, f4(0))
                put(xx_row, margin + x, f4(0))
                put(yy_row, margin + x, f4(0))
                put(xy_row, margin + x, f4(0))
