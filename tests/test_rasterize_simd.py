"""The vector type that the kernels are written in."""

from __future__ import annotations

import numpy as np
import pytest

from hdx_cli import simd
from hdx_cli.simd import f4, i4, kernel, load, store


@kernel
def _arithmetic(a, b, out):
    x, y = load(a, 0), load(b, 0)
    store(out, 0, x + y)
    store(out, 8, f4(2) - x)
    store(out, 16, x * y)
    store(out, 24, x / y)
    store(out, 32, simd.fma(x, y, f4(1)))
    store(out, 40, simd.fnma(x, y, x))
    store(out, 48, simd.select((x > y) & (x >= f4(0)), x, f4(-1)))
    store(out, 56, simd.keep((x < y) | (x <= f4(-3)), x))
    store(out, 64, simd.floor(x))
    store(out, 72, simd.ceil(x))
    store(out, 80, simd.minimum(x, y))
    store(out, 88, simd.maximum(x, f4(0)))


def test_arithmetic_comparisons_and_choices():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 3, 8).astype(np.float32) for _ in range(2))
    out = np.empty(96, np.float32)
    _arithmetic(a, b, out)
    expected = [
        a + b, 2 - a, a * b, a / b, a * b + 1, a - a * b, np.where((a > b) & (a >= 0), a, -1),
        np.where((a < b) | (a <= -3), a, 0), np.floor(a), np.ceil(a), np.minimum(a, b), np.maximum(a, 0),
    ]  # fmt: skip
    np.testing.assert_allclose(out.reshape(12, 8), expected, rtol=1e-6, atol=1e-6)  # fused operations round once


@kernel
def _across_lanes(a, out):
    v = (load(a, 0), load(a, 8), load(a, 16), load(a, 24), load(a, 32), load(a, 40), load(a, 48), load(a, 56))
    simd.store_transposed(out, 0, 8, *v)
    store(out, 64, simd.hsum8(*v))
    out[72] = simd.hsum(v[3])
    simd.store_triples(out, 80, v[0], v[1], v[2])
    store(out, 104, simd.load_red(out, 80))
    store(out, 112, simd.load_green(out, 80))
    store(out, 120, simd.load_blue(out, 80))
    store(out, 128, simd.gather(a, 2, 5))
    simd.scatter(out, 136, 2, v[7])


def test_sums_and_permutations_of_lanes():
    a = np.arange(64, dtype=np.float32)
    rows, out = a.reshape(8, 8), np.zeros(152, np.float32)
    _across_lanes(a, out)
    assert np.array_equal(out[:64].reshape(8, 8), rows.T)
    assert np.array_equal(out[64:72], rows.sum(1)) and out[72] == rows[3].sum()
    assert np.array_equal(out[80:104].reshape(8, 3), rows[:3].T)
    assert np.array_equal(out[104:128], a[:24])
    assert np.array_equal(out[128:136], a[2:42:5]) and np.array_equal(out[136:152:2], rows[7])


@kernel
def _exponential_and_logarithm(x, table, powers, logarithms):
    for k in range(0, x.size, 8):
        power = simd.exp2(load(x, k), table)
        store(powers, k, power)
        store(logarithms, k, simd.log2(power))


def test_exp2_and_log2_are_right_to_float_precision():
    x = np.linspace(-100, 100, 8000, dtype=np.float32)
    powers, logarithms = np.empty_like(x), np.empty_like(x)
    _exponential_and_logarithm(x, np.repeat(np.float32(simd.EXP2_COEFFICIENTS), 8), powers, logarithms)
    np.testing.assert_allclose(powers, np.exp2(x.astype(np.float64)), rtol=4e-7)  # polynomial 2e-7 and rounding
    np.testing.assert_allclose(logarithms, np.log2(powers.astype(np.float64)), rtol=2e-7, atol=2e-7)


@kernel
def _bits(a, numbers):
    values = load(a, 0)
    numbers[0] = simd.lane_bits(simd.is_finite(values))
    numbers[1] = simd.lane_bits(simd.maximum(values, f4(0)) > f4(-1))
    numbers[2] = simd.first_lane(i4(40))
    store(numbers, 8, simd.to_i32(simd.keep(simd.is_finite(values), values)) + i4(1))


def test_nan_and_infinity_are_seen_and_stopped():
    a = np.array([1, np.nan, -2, np.inf, -np.inf, 3.9, -3.9, 0], np.float32)
    numbers = np.zeros(16, np.int32)
    _bits(a, numbers)
    assert numbers[0] == 0b11100101
    assert numbers[1] == 255  # maximum(NaN, 0) is 0
    assert numbers[2] == 3
    assert numbers[8:].tolist() == [2, 1, -1, 1, 1, 4, -2, 1]


def test_kernels_work_where_no_machine_code_can_be_kept():
    scope: dict = {}
    exec("def double(x):\n    return 2 * x", scope)  # numba finds no file next to which it could write
    assert kernel(scope["double"])(21) == 42


@pytest.mark.parametrize("count", [1, 3])
def test_threads_cover_a_range_once(count):
    from hdx_cli.threads import Threads

    with Threads(count) as threads:
        for n in (8, 9, 17, 100):
            ranges = threads.ranges(n, 8)
            assert ranges[0][0] == 0 and ranges[-1][1] == n and len(ranges) <= count
            assert all(a[1] == b[0] for a, b in zip(ranges, ranges[1:], strict=False))
            assert all(last - first >= 8 and first % 8 == 0 for first, last in ranges)
