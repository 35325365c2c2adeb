"""Kernel of the structural similarity and its gradient: one sweep over the rows that keeps eleven of them at a time.

Where both images are equal all over a window the similarity is one and adds nothing to any gradient, so only the
columns between the first and the last difference of nearby rows are computed: renders of a person are mostly
background.
"""

from __future__ import annotations

import numpy as np

from .simd import WIDTH, f4, fma, get, hsum, kernel, load, put, splat, store

TAPS = 11
RADIUS = TAPS // 2
_ZERO_ROW = TAPS  # the ring's twelfth slot stands for every row outside of the image
_C1, _C2 = f4(0.01**2), f4(0.03**2)


@kernel
def _ring_offsets(middle, height, slot_size, offsets):
    """Where the rows middle - 5 .. middle + 5 begin in a ring."""
    for k in range(TAPS):
        row = middle - RADIUS + k
        offsets[k] = (row % TAPS if 0 <= row < height else _ZERO_ROW) * slot_size


@kernel
def _differing_columns(image, target, width, row):
    """First and one past the last column in which a row differs; (width, 0) if it does not."""
    first, last = 0, width
    start = row * width
    while first < width and get(image, start + first) == get(target, start + first):
        first += 1
    if first == width:
        return width, 0
    while get(image, start + last - 1) == get(target, start + last - 1):
        last -= 1
    return first, last


@kernel
def _columns(differing, rows, middle, radius, margin, length):
    """Whole vectors of columns within ``margin`` of a difference in the rows ``middle`` - radius ... + radius."""
    first, last = length, 0
    for row in range(max(rows[0], middle - radius), min(rows[1], middle + radius + 1)):
        first, last = min(first, differing[row, 0]), max(last, differing[row, 1])
    if last == 0:
        return 0, 0
    return max(0, first - margin) // WIDTH * WIDTH, min(length, (last + margin + WIDTH - 1) // WIDTH * WIDTH)


@kernel
def _statistics_row(image, target, start, width, length, columns, channels, window, rows, means, base):
    """Filters x, y, x^2, y^2 and x y along ``columns`` of one row of the images and puts the results into the ring.

    ``rows``: five rows of ``length`` with a zero margin of 5 * channels before and after.
    """
    margin = RADIUS * channels
    size = length + 2 * margin
    whole = min(width // WIDTH * WIDTH, columns[1] + (margin + WIDTH - 1) // WIDTH * WIDTH)
    for x in range(max(0, columns[0] - margin) // WIDTH * WIDTH, whole, WIDTH):
        a, b = load(image, start + x), load(target, start + x)
        store(rows, margin + x, a)
        store(rows, size + margin + x, b)
        store(rows, 2 * size + margin + x, a * a)
        store(rows, 3 * size + margin + x, b * b)
        store(rows, 4 * size + margin + x, a * b)
    for x in range(width // WIDTH * WIDTH, width):
        a, b = get(image, start + x), get(target, start + x)
        put(rows, margin + x, a)
        put(rows, size + margin + x, b)
        put(rows, 2 * size + margin + x, a * a)
        put(rows, 3 * size + margin + x, b * b)
        put(rows, 4 * size + margin + x, a * b)
    zero = splat(f4(0))
    for x in range(columns[0], columns[1], WIDTH):
        mx, my, mxx, myy, mxy = zero, zero, zero, zero, zero
        for k in range(TAPS):
            weight, tap = splat(get(window, k)), x + k * channels
            mx = fma(load(rows, tap), weight, mx)
            my = fma(load(rows, size + tap), weight, my)
            mxx = fma(load(rows, 2 * size + tap), weight, mxx)
            myy = fma(load(rows, 3 * size + tap), weight, myy)
            mxy = fma(load(rows, 4 * size + tap), weight, mxy)
        store(means, base + x, mx)
        store(means, base + length + x, my)
        store(means, base + 2 * length + x, mxx)
        store(means, base + 3 * length + x, myy)
        store(means, base + 4 * length + x, mxy)


@kernel
def _similarity_row(means, offsets, width, length, columns, window, slopes, base, lane_values):
    """Sum of the similarities of one row; their derivatives with respect to m(x), m(xx) and m(xy) go into the ring.

    Outside of ``columns`` the similarity is one. The derivatives are not zero there but they cancel.
    """
    one, two, zero = f4(1), f4(2), splat(f4(0))
    for x in range(0, 3 * length, WIDTH):
        store(slopes, base + x, zero)
    total = float(width - min(width, columns[1]) + columns[0])
    for x in range(columns[0], columns[1], WIDTH):
        mx, my, mxx, myy, mxy = zero, zero, zero, zero, zero
        for k in range(TAPS):
            weight, tap = splat(get(window, k)), get(offsets, k) + x
            mx = fma(load(means, tap), weight, mx)
            my = fma(load(means, length + tap), weight, my)
            mxx = fma(load(means, 2 * length + tap), weight, mxx)
            myy = fma(load(means, 3 * length + tap), weight, myy)
            mxy = fma(load(means, 4 * length + tap), weight, mxy)
        a1, a2 = two * mx * my + _C1, two * (mxy - mx * my) + _C2
        b1, b2 = one / (mx * mx + my * my + _C1), one / ((mxx - mx * mx) + (myy - my * my) + _C2)
        both = b1 * b2
        similarity = a1 * a2 * both
        if x + WIDTH <= width:
            total += hsum(similarity)
        else:
            store(lane_values, 0, similarity)
            for k in range(width - x):
                total += get(lane_values, k)
        store(slopes, base + x, two * (my * (a2 - a1) * both + mx * similarity * (b2 - b1)))
        store(slopes, base + length + x, zero - similarity * b2)
        store(slopes, base + 2 * length + x, two * a1 * both)
    return total


@kernel
def _gradient_row(
    slopes, offsets, image, target, start, width, length, columns, channels, window, rows, lane_values, scale, gradient
):
    """Filters the three derivatives of one row and joins them to the gradient, zero outside of ``columns``."""
    margin = RADIUS * channels
    size = length + 2 * margin
    zero, two = splat(f4(0)), f4(2)
    for x in range(width):
        put(gradient, start + x, f4(0))
    last = min(length, columns[1] + (margin + WIDTH - 1) // WIDTH * WIDTH)
    for x in range(max(0, columns[0] - margin) // WIDTH * WIDTH, last, WIDTH):
        d, dxx, dxy = zero, zero, zero
        for k in range(TAPS):
            weight, tap = splat(get(window, k)), get(offsets, k) + x
            d = fma(load(slopes, tap), weight, d)
            dxx = fma(load(slopes, length + tap), weight, dxx)
            dxy = fma(load(slopes, 2 * length + tap), weight, dxy)
        store(rows, margin + x, d)
        store(rows, size + margin + x, dxx)
        store(rows, 2 * size + margin + x, dxy)
    for plane in range(3):  # lanes behind the end of the row are not part of the image
        for x in range(width, length):
            put(rows, plane * size + margin + x, f4(0))
    whole = width // WIDTH * WIDTH
    for x in range(columns[0], columns[1], WIDTH):
        d, dxx, dxy = zero, zero, zero
        for k in range(TAPS):
            weight, tap = splat(get(window, k)), x + k * channels
            d = fma(load(rows, tap), weight, d)
            dxx = fma(load(rows, size + tap), weight, dxx)
            dxy = fma(load(rows, 2 * size + tap), weight, dxy)
        if x < whole:
            value = d + two * load(image, start + x) * dxx + load(target, start + x) * dxy
            store(gradient, start + x, scale * value)
        else:
            store(lane_values, 0, d)
            store(lane_values, 8, dxx)
            store(lane_values, 16, dxy)
            for k in range(width - x):
                value = (
                    lane_values[k]
                    + two * get(image, start + x + k) * lane_values[8 + k]
                    + get(target, start + x + k) * lane_values[16 + k]
                )
                put(gradient, start + x + k, scale * value)


@kernel
def ssim_rows(image, target, height, width, channels, window, first, last, wanted, scale, gradient, row_sums):
    """Sums of the similarity over rows [first, last), and there ``scale`` times the gradient of the sum over all rows.

    Rows are ``width`` floats, ``channels`` interleaved; ``gradient`` is left alone unless ``wanted``. With the window's
    means m, the similarity is a function of m(x), m(y), m(xx), m(yy), m(xy); its derivatives with respect to the three
    that hold x, filtered once more, make the gradient: f(d_x) + 2 x f(d_xx) + y f(d_xy).
    """
    length = (width + WIDTH - 1) // WIDTH * WIDTH
    rows = np.zeros(5 * (length + 2 * RADIUS * channels), np.float32)
    gradient_rows = np.zeros(3 * (length + 2 * RADIUS * channels), np.float32)
    means = np.zeros((TAPS + 1) * 5 * length, np.float32)
    slopes = np.zeros((TAPS + 1) * 3 * length, np.float32)
    lane_values, offsets = np.empty(3 * WIDTH, np.float32), np.empty(TAPS, np.int64)
    halo = RADIUS if wanted else 0
    similar_first, similar_last = max(0, first - halo), min(height, last + halo)
    margin = RADIUS * channels
    differing = np.empty((height, 2), np.int64)
    used = (max(0, similar_first - RADIUS), min(height, similar_last + RADIUS))
    for row in range(used[0], used[1]):
        differing[row, 0], differing[row, 1] = _differing_columns(image, target, width, row)
    for y in range(used[0], last + RADIUS + halo):
        if y < used[1]:
            columns = _columns(differing, used, y, 2 * RADIUS, margin, length)
            _statistics_row(image, target, y * width, width, length, columns, channels, window, rows, means,
                            (y % TAPS) * 5 * length)  # fmt: skip
        middle = y - RADIUS
        if similar_first <= middle < similar_last:
            _ring_offsets(middle, height, 5 * length, offsets)
            columns = _columns(differing, used, middle, RADIUS, margin, length)
            base = (middle % TAPS) * 3 * length
            row_sum = _similarity_row(means, offsets, width, length, columns, window, slopes, base, lane_values)
            if first <= middle < last:
                row_sums[middle] = row_sum
        done = y - 2 * RADIUS
        if wanted and first <= done < last:
            _ring_offsets(done, height, 3 * length, offsets)
            columns = _columns(differing, used, done, 2 * RADIUS, 2 * margin, length)
            _gradient_row(slopes, offsets, image, target, done * width, width, length, columns, channels, window,
                          gradient_rows, lane_values, scale, gradient)  # fmt: skip
