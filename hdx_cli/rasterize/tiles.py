"""Kernels that sort Gaussians by depth and list, for every tile of the image, those that may touch it."""

from __future__ import annotations

import numpy as np

from ..simd import get, i4, kernel, prefetch, put
from .project import CONIC

AHEAD = 16  # elements whose data is fetched early; lists are padded by twice as many
PADDING = 2 * AHEAD
_DIGITS = 2048


@kernel
def sort_by_depth(conic_bits, visible, tile_counts, pair_starts, keys, ids, other_keys, order):
    """Stable radix sort (three digits of 11 bits) of the visible Gaussians by depth.

    Positive floats order like their bits. Returns how many are visible and how many (Gaussian, tile) pairs there are;
    ``order`` holds the former, ``pair_starts`` where each Gaussian's pairs begin.
    """
    histogram = np.zeros(3 * _DIGITS, np.int32)
    count, pairs = 0, np.int64(0)
    n = len(visible)
    for i in range(n):
        put(pair_starts, i, i4(pairs))
        pairs += get(tile_counts, i)
        if get(visible, i):
            key = get(conic_bits, CONIC * i + 4)
            keys[count] = key
            ids[count] = i4(i)
            count += 1
            histogram[key & 2047] += 1
            histogram[_DIGITS + ((key >> 11) & 2047)] += 1
            histogram[2 * _DIGITS + (key >> 22)] += 1
    put(pair_starts, n, i4(pairs))
    for digit in range(3):
        total = 0
        for j in range(digit * _DIGITS, (digit + 1) * _DIGITS):
            here = histogram[j]
            histogram[j] = total
            total += here
    for i in range(count):
        key = keys[i]
        place = histogram[key & 2047]
        histogram[key & 2047] = place + 1
        other_keys[place] = key
        order[place] = ids[i]
    for i in range(count):
        key = other_keys[i]
        bucket = _DIGITS + ((key >> 11) & 2047)
        place = histogram[bucket]
        histogram[bucket] = place + 1
        keys[place] = key
        ids[place] = order[i]
    for i in range(count):
        bucket = 2 * _DIGITS + (keys[i] >> 22)
        place = histogram[bucket]
        histogram[bucket] = place + 1
        order[place] = ids[i]
    for i in range(count, count + PADDING):
        order[i] = 0
    return count, pairs


@kernel
def list_tiles(rects, order, count, tile_columns, pair_starts, tile_starts, tile_ids, tile_pairs):
    """Counting sort of all pairs by tile; within a tile they stay in order of depth.

    Tile t gets the entries [tile_starts[t], tile_starts[t + 1]): the Gaussian and its pair's number.
    """
    tiles = len(tile_starts) - 1
    cursor = np.zeros(tiles, np.int64)
    for j in range(count):
        prefetch(rects, np.intp(get(order, j + AHEAD)))
        rect = get(rects, np.intp(get(order, j)))
        for row in range((rect >> 32) & 0xFFFF, ((rect >> 48) & 0xFFFF) + 1):
            for column in range(rect & 0xFFFF, ((rect >> 16) & 0xFFFF) + 1):
                cursor[row * tile_columns + column] += 1
    total = 0
    for tile in range(tiles):
        tile_starts[tile] = total
        total += cursor[tile]
        cursor[tile] = tile_starts[tile]
    tile_starts[tiles] = total
    for j in range(count):
        ahead = np.intp(get(order, j + AHEAD))
        prefetch(rects, ahead)
        prefetch(pair_starts, ahead)
        i = get(order, j)
        rect = get(rects, np.intp(i))
        pair = get(pair_starts, np.intp(i))
        for row in range((rect >> 32) & 0xFFFF, ((rect >> 48) & 0xFFFF) + 1):
            for column in range(rect & 0xFFFF, ((rect >> 16) & 0xFFFF) + 1):
                tile = row * tile_columns + column
                place = cursor[tile]
                cursor[tile] = place + 1
                put(tile_ids, place, i)
                put(tile_pairs, place, pair)
                pair += i4(1)
    for place in range(total, total + PADDING):
        put(tile_ids, place, i4(0))
