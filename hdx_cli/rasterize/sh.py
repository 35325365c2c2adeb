"""Kernels for the colours of Gaussians from real spherical harmonics of degree 0 to 3, seen from a point.

Harmonics in Cartesian form with the signs of 3D Gaussian Splatting (Sloan 2013, "Efficient Spherical Harmonic
Evaluation", appendix A2); the colour is half plus the sum, cut off below zero by those who use it.
"""

from __future__ import annotations

import numpy as np

from ..simd import WIDTH, f4, gather, get, keep, kernel, load, maximum, scatter, splat, sqrt, store

_C0 = f4(0.28209479177387814)
_C1 = f4(0.4886025119029199)
_C2_XY, _C2_Z, _C2_XX = f4(1.0925484305920792), f4(0.31539156525252005), f4(0.5462742152960396)
_C3_XXX, _C3_XYZ, _C3_XZZ = f4(0.5900435899266435), f4(2.890611442640554), f4(0.4570457994644658)
_C3_ZZZ, _C3_XXZ = f4(0.3731763325901154), f4(1.445305721320277)


@kernel
def _directions(means, eye, i):
    """Unit vectors from the eye to eight Gaussians, and the inverse distances."""
    x = gather(means, 3 * i, 3) - get(eye, 0)
    y = gather(means, 3 * i + 1, 3) - get(eye, 1)
    z = gather(means, 3 * i + 2, 3) - get(eye, 2)
    inverse = f4(1) / sqrt(maximum(x * x + y * y + z * z, f4(1e-24)))
    return x * inverse, y * inverse, z * inverse, inverse


@kernel
def _harmonics(x, y, z, bases, values):
    """The first ``bases`` harmonics at directions (x, y, z): values [bases * 8]."""
    zero = f4(0)
    store(values, 0, splat(_C0))
    if bases > 1:
        store(values, 8, zero - _C1 * y)
        store(values, 16, _C1 * z)
        store(values, 24, zero - _C1 * x)
    if bases > 4:
        store(values, 32, _C2_XY * x * y)
        store(values, 40, zero - _C2_XY * y * z)
        store(values, 48, _C2_Z * (f4(3) * z * z - f4(1)))
        store(values, 56, zero - _C2_XY * x * z)
        store(values, 64, _C2_XX * (x * x - y * y))
    if bases > 9:
        store(values, 72, zero - _C3_XXX * y * (f4(3) * x * x - y * y))
        store(values, 80, _C3_XYZ * x * y * z)
        store(values, 88, zero - _C3_XZZ * y * (f4(5) * z * z - f4(1)))
        store(values, 96, _C3_ZZZ * z * (f4(5) * z * z - f4(3)))
        store(values, 104, zero - _C3_XZZ * x * (f4(5) * z * z - f4(1)))
        store(values, 112, _C3_XXZ * z * (x * x - y * y))
        store(values, 120, zero - _C3_XXX * x * (x * x - f4(3) * y * y))


@kernel
def _direction_gradients(x, y, z, bases, v):
    """Gradients of sum_k v[k] * harmonic k with respect to x, y and z; ``v`` [bases * 8]."""
    two, three, five, six, ten = f4(2), f4(3), f4(5), f4(6), f4(10)
    v_x, v_y, v_z = splat(f4(0)) - _C1 * load(v, 24), splat(f4(0)) - _C1 * load(v, 8), _C1 * load(v, 16)
    if bases > 4:
        v_x = v_x + _C2_XY * (y * load(v, 32) - z * load(v, 56)) + two * _C2_XX * x * load(v, 64)
        v_y = v_y + _C2_XY * (x * load(v, 32) - z * load(v, 40)) - two * _C2_XX * y * load(v, 64)
        v_z = v_z - _C2_XY * (y * load(v, 40) + x * load(v, 56)) + six * _C2_Z * z * load(v, 48)
    if bases > 9:
        xx, yy, zz = x * x, y * y, z * z
        v9, v10, v11, v12 = load(v, 72), load(v, 80), load(v, 88), load(v, 96)
        v13, v14, v15 = load(v, 104), load(v, 112), load(v, 120)
        v_x = v_x + _C3_XYZ * y * z * v10 + two * _C3_XXZ * x * z * v14 - _C3_XZZ * (five * zz - f4(1)) * v13
        v_x = v_x - _C3_XXX * (six * x * y * v9 + three * (xx - yy) * v15)
        v_y = v_y + _C3_XYZ * x * z * v10 - two * _C3_XXZ * y * z * v14 - _C3_XZZ * (five * zz - f4(1)) * v11
        v_y = v_y - _C3_XXX * (three * (xx - yy) * v9 - six * x * y * v15)
        v_z = v_z + _C3_XYZ * x * y * v10 + _C3_XXZ * (xx - yy) * v14 + _C3_ZZZ * (f4(15) * zz - three) * v12
        v_z = v_z - ten * _C3_XZZ * z * (y * v11 + x * v13)
    return v_x, v_y, v_z


@kernel
def colors_from_sh(sh, bases, means, eye, first, last, colors):
    """colors [N 3] of Gaussians [first, last), at least eight of them, not yet cut off at zero; ``sh`` [N bases 3]."""
    values = np.empty(16 * WIDTH, np.float32)
    stride = 3 * bases
    i = first
    while i < last:
        if i + WIDTH > last:
            i = last - WIDTH
        if bases > 1:
            x, y, z, _ = _directions(means, eye, i)
            _harmonics(x, y, z, bases, values)
        else:
            store(values, 0, splat(_C0))
        for channel in range(3):
            color = splat(f4(0.5))
            for k in range(bases):
                color = color + load(values, WIDTH * k) * gather(sh, stride * i + 3 * k + channel, stride)
            scatter(colors, 3 * i + channel, 3, color)
        i += WIDTH


@kernel
def colors_from_sh_backward(sh, bases, means, eye, colors, visible, v_colors, first, last, v_sh, v_means):
    """Gradients of the coefficients, and for more than one basis of the means; those of invisible Gaussians are 0.

    ``v_colors`` are gradients of the colours after they were cut off at zero.
    """
    zero = splat(f4(0))
    values, v_values, seen_lanes = (
        np.empty(16 * WIDTH, np.float32),
        np.empty(16 * WIDTH, np.float32),
        np.empty(WIDTH, np.float32),
    )
    stride = 3 * bases
    i = first
    while i < last:
        if i + WIDTH > last:
            i = last - WIDTH
        for lane in range(WIDTH):
            seen_lanes[lane] = f4(visible[i + lane])
        seen = load(seen_lanes, 0) > zero
        x, y, z, inverse = zero, zero, zero, zero
        if bases > 1:
            x, y, z, inverse = _directions(means, eye, i)
            _harmonics(x, y, z, bases, values)
        else:
            store(values, 0, splat(_C0))
        for k in range(bases):
            store(v_values, WIDTH * k, zero)
        for channel in range(3):
            shows = seen & (gather(colors, 3 * i + channel, 3) >= zero)
            v_color = keep(shows, gather(v_colors, 3 * i + channel, 3))
            for k in range(bases):
                position = stride * i + 3 * k + channel
                scatter(v_sh, position, stride, keep(shows, v_color * load(values, WIDTH * k)))
                if bases > 1:
                    store(v_values, WIDTH * k, load(v_values, WIDTH * k) + v_color * gather(sh, position, stride))
        if bases > 1:
            v_x, v_y, v_z = _direction_gradients(x, y, z, bases, v_values)
            along = v_x * x + v_y * y + v_z * z
            scatter(v_means, 3 * i, 3, keep(seen, (v_x - along * x) * inverse))
            scatter(v_means, 3 * i + 1, 3, keep(seen, (v_y - along * y) * inverse))
            scatter(v_means, 3 * i + 2, 3, keep(seen, (v_z - along * z) * inverse))
        i += WIDTH
