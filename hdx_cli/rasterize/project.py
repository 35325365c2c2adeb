"""Kernels that project 3D Gaussians into one image, eight at a time, and carry the gradients back.

The formulas are EWA splatting (Zwicker et al. 2001, eq. 24-31) as 3D Gaussian Splatting uses it (Kerbl et al. 2023,
eq. 5-6), in the variant that gsplat 1.5 computes: a low-pass of 0.3 px^2 on the projected covariance, the
linearisation point held to 1.3 times the field of view, opacities corrected for the low-pass where antialiased.
The gradients are those of Ye et al. 2024 (gsplat, appendix).

What one camera is to these kernels: 20 floats, see ``camera_numbers``.
What one projected Gaussian is to the others: RECORD floats in ``records``

    0, 1   centre, px
    2, 3, 4, 5, 6   the ellipse on which its alpha falls to 1/255: rows at column offset x from the centre are
                    -x * [2] +- sqrt([3] - [4] x^2); topmost and bottommost at x = -+[5]; half its width is [6]
    7..10  log2 of alpha at pixel offset (x, y) is [7] + [8] x^2 + [9] x y + [10] y^2
    11..13 colour     14 depth along the optical axis, m     15 free

and CONIC floats in ``conics``: the inverse covariance (xx, xy, yy), the opacity, the depth, the opacity's factor.
"""

from __future__ import annotations

import numpy as np

from ..simd import (
    WIDTH,
    ceil,
    f4,
    floor,
    gather,
    get,
    i4,
    is_finite,
    keep,
    kernel,
    load,
    log2,
    maximum,
    minimum,
    put,
    scatter,
    select,
    splat,
    sqrt,
    store,
    store_transposed,
    to_i32,
)

RECORD = 16
CONIC = 8
PAIR = 10  # what one Gaussian and one tile have to say to each other in the backward pass, see blend.blend_backward
TILE_WIDTH, TILE_HEIGHT = 64, 32  # px

LOW_PASS_PX2 = f4(0.3)
MIN_ALPHA = f4(1 / 255)
MIN_SQUARED_QUATERNION = f4(1e-24)  # a shorter one has no direction
LOG2_E = f4(1.4426950408889634)


def camera_numbers(viewmat: np.ndarray, K: np.ndarray, width: int, height: int) -> np.ndarray:
    """Rotation (9, by rows), translation (3), fx, fy, cx, cy, and the four limits of x/z and y/z: float32 [20].

    The limits keep the Jacobian sane for Gaussians far outside the image: 30 % of the field of view beyond the border.
    """
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.3 * 0.5 * width / fx, 0.3 * 0.5 * height / fy
    limits = [-cx / fx - margin_x, (width - cx) / fx + margin_x, -cy / fy - margin_y, (height - cy) / fy + margin_y]
    numbers = np.concatenate([viewmat[:3, :3].ravel(), viewmat[:3, 3], [fx, fy, cx, cy], limits])
    return np.ascontiguousarray(numbers, np.float32)


@kernel
def _in_camera(camera, means, i):
    """Positions x, y, z of eight Gaussians in camera axes."""
    a, b, c = gather(means, 3 * i, 3), gather(means, 3 * i + 1, 3), gather(means, 3 * i + 2, 3)
    x = get(camera, 0) * a + get(camera, 1) * b + get(camera, 2) * c + get(camera, 9)
    y = get(camera, 3) * a + get(camera, 4) * b + get(camera, 5) * c + get(camera, 10)
    z = get(camera, 6) * a + get(camera, 7) * b + get(camera, 8) * c + get(camera, 11)
    return x, y, z


@kernel
def _unit_quaternions(quats, i):
    """w, x, y, z of unit length, what they were multiplied with, and their squared length before."""
    w, x, y, z = (
        gather(quats, 4 * i, 4),
        gather(quats, 4 * i + 1, 4),
        gather(quats, 4 * i + 2, 4),
        gather(quats, 4 * i + 3, 4),
    )
    squared = w * w + x * x + y * y + z * z
    inverse = f4(1) / sqrt(maximum(squared, MIN_SQUARED_QUATERNION))
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse, squared


@kernel
def _rotations(w, x, y, z):
    one, two = f4(1), f4(2)
    return (
        one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y),
        two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x),
        two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y),
    )  # fmt: skip


@kernel
def _jacobians(camera, x, y, z):
    """Rows a, b of the Jacobian of the projection times the camera's rotation, and where it was taken (x, y)."""
    fx, fy = get(camera, 12), get(camera, 13)
    inverse_z = f4(1) / z
    x = z * minimum(maximum(x * inverse_z, get(camera, 16)), get(camera, 17))
    y = z * minimum(maximum(y * inverse_z, get(camera, 18)), get(camera, 19))
    xx, yy = fx * inverse_z, fy * inverse_z
    xz, yz = f4(0) - xx * x * inverse_z, f4(0) - yy * y * inverse_z
    a0 = xx * get(camera, 0) + xz * get(camera, 6)
    a1 = xx * get(camera, 1) + xz * get(camera, 7)
    a2 = xx * get(camera, 2) + xz * get(camera, 8)
    b0 = yy * get(camera, 3) + yz * get(camera, 6)
    b1 = yy * get(camera, 4) + yz * get(camera, 7)
    b2 = yy * get(camera, 5) + yz * get(camera, 8)
    return a0, a1, a2, b0, b1, b2, x, y


@kernel
def project(means, quats, scales, opacities, colors, camera, width, height, antialiased, near_m, first, last,
            tile_columns, tile_rows, conics, visible, records, rects, tile_counts):  # fmt: skip
    """Projects Gaussians [first, last), at least eight of them; all arrays are flat.

    Writes ``conics`` and ``records`` (see above), ``visible`` (uint8), the rectangle of tiles that each one may touch
    (``rects``, four 16-bit fields x0 x1 y0 y1 of an int64) and how many these are. Gaussians with anything that is not
    finite, in front of the near plane, or below alpha 1/255 everywhere are not visible.
    """
    half, zero, one = f4(0.5), splat(f4(0)), f4(1)
    fx, fy, cx, cy = get(camera, 12), get(camera, 13), get(camera, 14), get(camera, 15)
    x_end, y_end = f4(width) - one, f4(height) - one
    last_column, last_row = f4(tile_columns - 1), f4(tile_rows - 1)
    box = np.empty(5 * WIDTH, np.int32)
    i = first
    while i < last:
        if i + WIDTH > last:
            i = last - WIDTH  # the last few share lanes with the ones before: same inputs, same results
        x, y, z = _in_camera(camera, means, i)
        seen = z > near_m
        z = maximum(z, near_m)
        qw, qx, qy, qz, _, squared_quat = _unit_quaternions(quats, i)
        seen = seen & (squared_quat >= MIN_SQUARED_QUATERNION)
        r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotations(qw, qx, qy, qz)
        s0, s1, s2 = gather(scales, 3 * i, 3), gather(scales, 3 * i + 1, 3), gather(scales, 3 * i + 2, 3)
        a0, a1, a2, b0, b1, b2, _, _ = _jacobians(camera, x, y, z)
        # The projected covariance is U U^T with rows u, v of U = J R_camera R S.
        u0, v0 = (a0 * r00 + a1 * r10 + a2 * r20) * s0, (b0 * r00 + b1 * r10 + b2 * r20) * s0
        u1, v1 = (a0 * r01 + a1 * r11 + a2 * r21) * s1, (b0 * r01 + b1 * r11 + b2 * r21) * s1
        u2, v2 = (a0 * r02 + a1 * r12 + a2 * r22) * s2, (b0 * r02 + b1 * r12 + b2 * r22) * s2
        xx, xy, yy = u0 * u0 + u1 * u1 + u2 * u2, u0 * v0 + u1 * v1 + u2 * v2, v0 * v0 + v1 * v1 + v2 * v2
        # xx yy - xy^2 as |u x v|^2 (Lagrange): needle-like Gaussians lose no digits to the subtraction.
        n0, n1, n2 = u1 * v2 - u2 * v1, u2 * v0 - u0 * v2, u0 * v1 - u1 * v0
        sharp_determinant = n0 * n0 + n1 * n1 + n2 * n2
        determinant = sharp_determinant + LOW_PASS_PX2 * (xx + yy) + LOW_PASS_PX2 * LOW_PASS_PX2
        xx, yy = xx + LOW_PASS_PX2, yy + LOW_PASS_PX2
        opacity, factor = gather(opacities, i, 1), splat(one)
        if antialiased:
            factor = sqrt(sharp_determinant / determinant)
        opacity = opacity * factor
        red, green, blue = gather(colors, 3 * i, 3), gather(colors, 3 * i + 1, 3), gather(colors, 3 * i + 2, 3)
        seen = seen & (opacity >= MIN_ALPHA)
        opacity = maximum(opacity, MIN_ALPHA)
        inverse = one / determinant
        A, B, C = yy * inverse, zero - xy * inverse, xx * inverse
        mean_x, mean_y = fx * x / z + cx, fy * y / z + cy
        store_transposed(conics, CONIC * i, CONIC, A, B, C, opacity, z, factor, zero, zero)

        peak = log2(opacity)
        drop = maximum(peak - log2(splat(MIN_ALPHA)), f4(0))
        square = f4(2) / LOG2_E * drop
        half_width, half_height = sqrt(square * xx), sqrt(square * yy)
        a, b, c = half * LOG2_E * A, LOG2_E * B, half * LOG2_E * C
        inverse_c = one / c
        slope, height2 = half * b * inverse_c, drop * inverse_c
        curve = half * LOG2_E / xx * inverse_c  # (a - b^2 / 4c) / c, without the subtraction
        top = slope * sqrt(height2 / (curve * (curve + slope * slope)))
        store_transposed(records, RECORD * i, RECORD, mean_x, mean_y, slope, height2, curve, top, half_width, peak)
        store_transposed(
            records,
            RECORD * i + 8,
            RECORD,
            zero - a,
            zero - b,
            zero - c,
            select(red < zero, zero, red),
            select(green < zero, zero, green),
            select(blue < zero, zero, blue),
            z,
            zero,
        )
        inputs = x + y + z + squared_quat + s0 + s1 + s2 + opacity + red + green + blue
        results = A + B + C + slope + height2 + curve + top + half_width + half_height + mean_x + mean_y
        seen = seen & is_finite(inputs) & is_finite(results)

        # Half a thousandth of a pixel pays for the rounding of the extents.
        x0, x1 = ceil(mean_x - half_width - f4(0.501)), floor(mean_x + half_width - f4(0.499))
        y0, y1 = ceil(mean_y - half_height - f4(0.501)), floor(mean_y + half_height - f4(0.499))
        seen = seen & (x1 >= x0) & (y1 >= y0) & (x1 >= zero) & (y1 >= zero) & (x0 <= x_end) & (y0 <= y_end)
        per_width, per_height = f4(1 / TILE_WIDTH), f4(1 / TILE_HEIGHT)
        store(box, 0, to_i32(keep(seen, maximum(floor(x0 * per_width), zero))))
        store(box, 8, to_i32(keep(seen, minimum(floor(x1 * per_width), splat(last_column)))))
        store(box, 16, to_i32(keep(seen, maximum(floor(y0 * per_height), zero))))
        store(box, 24, to_i32(keep(seen, minimum(floor(y1 * per_height), splat(last_row)))))
        store(box, 32, to_i32(keep(seen, splat(one))))
        for lane in range(WIDTH):
            tx0, tx1 = np.int64(get(box, lane)), np.int64(get(box, 8 + lane))
            ty0, ty1 = np.int64(get(box, 16 + lane)), np.int64(get(box, 24 + lane))
            shown = get(box, 32 + lane)
            put(rects, i + lane, tx0 | (tx1 << 16) | (ty0 << 32) | (ty1 << 48))
            put(visible, i + lane, np.uint8(shown))
            put(tile_counts, i + lane, i4((tx1 - tx0 + 1) * (ty1 - ty0 + 1) * shown))
        i += WIDTH


@kernel
def project_backward(means, quats, scales, opacities, camera, antialiased, first, last, conics, visible, pair_starts,
                     pairs, v_means, v_quats, v_scales, v_opacities, v_colors):  # fmt: skip
    """Gradients of Gaussians [first, last), at least eight of them, from what their pairs with tiles gathered.

    Gaussian i owns the PAIR floats each of pairs [pair_starts[i], pair_starts[i + 1]). Rows of invisible ones become 0.
    """
    half, zero, one, two = f4(0.5), splat(f4(0)), f4(1), f4(2)
    fx, fy = get(camera, 12), get(camera, 13)
    sums, moments, extra = np.empty(64, np.float32), np.empty(64, np.float32), np.empty(24, np.float32)
    i = first
    while i < last:
        if i + WIDTH > last:
            i = last - WIDTH
        for lane in range(WIDTH):
            total, blue, depth = zero, f4(0), f4(0)
            for pair in range(get(pair_starts, i + lane), get(pair_starts, i + lane + 1)):
                slot = np.intp(pair) * PAIR
                total = total + load(pairs, slot)
                blue += get(pairs, slot + 8)
                depth += get(pairs, slot + 9)
            store(sums, 8 * lane, total)
            put(extra, lane, blue)
            put(extra, 8 + lane, depth)
            put(extra, 16 + lane, f4(get(visible, i + lane)))
        store_transposed(moments, 0, 8, load(sums, 0), load(sums, 8), load(sums, 16), load(sums, 24),
                         load(sums, 32), load(sums, 40), load(sums, 48), load(sums, 56))  # fmt: skip
        seen = load(extra, 16) > zero
        m1, mx, my = load(moments, 0), load(moments, 8), load(moments, 16)
        mxx, mxy, myy = load(moments, 24), load(moments, 32), load(moments, 40)
        scatter(v_colors, 3 * i, 3, load(moments, 48))
        scatter(v_colors, 3 * i + 1, 3, load(moments, 56))
        scatter(v_colors, 3 * i + 2, 3, load(extra, 0))

        A, B, C = (
            gather(conics, CONIC * i, CONIC),
            gather(conics, CONIC * i + 1, CONIC),
            gather(conics, CONIC * i + 2, CONIC),
        )
        factor = gather(conics, CONIC * i + 5, CONIC)
        v_opacity = m1 / gather(conics, CONIC * i + 3, CONIC)
        scatter(v_opacities, i, 1, keep(seen, v_opacity * factor))
        v_mean_x, v_mean_y = A * mx + B * my, B * mx + C * my
        # With Q the conic and V its gradient, the covariance's gradient G is -Q V Q.
        v_a, v_b, v_c = (f4(0) - half) * mxx, (f4(0) - half) * mxy, (f4(0) - half) * myy
        p0, p1, p2, p3 = A * v_a + B * v_b, A * v_b + B * v_c, B * v_a + C * v_b, B * v_b + C * v_c
        g_xx, g_xy, g_yy = zero - (p0 * A + p1 * B), zero - (p0 * B + p1 * C), zero - (p2 * B + p3 * C)

        x, y, z = _in_camera(camera, means, i)
        z = maximum(z, f4(1e-6))  # only invisible ones are nearer
        qw, qx, qy, qz, inverse_length, _ = _unit_quaternions(quats, i)
        r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotations(qw, qx, qy, qz)
        s0, s1, s2 = gather(scales, 3 * i, 3), gather(scales, 3 * i + 1, 3), gather(scales, 3 * i + 2, 3)
        a0, a1, a2, b0, b1, b2, x_at, y_at = _jacobians(camera, x, y, z)
        m00, m01, m02, m10, m11, m12, m20, m21, m22 = (
            r00 * s0, r01 * s1, r02 * s2, r10 * s0, r11 * s1, r12 * s2, r20 * s0, r21 * s1, r22 * s2,
        )  # fmt: skip
        u0, v0 = a0 * m00 + a1 * m10 + a2 * m20, b0 * m00 + b1 * m10 + b2 * m20
        u1, v1 = a0 * m01 + a1 * m11 + a2 * m21, b0 * m01 + b1 * m11 + b2 * m21
        u2, v2 = a0 * m02 + a1 * m12 + a2 * m22, b0 * m02 + b1 * m12 + b2 * m22
        if antialiased:
            # factor^2 = sharp / blurred determinant; d(determinant)/d(covariance) is its adjugate.
            xx, xy, yy = u0 * u0 + u1 * u1 + u2 * u2, u0 * v0 + u1 * v1 + u2 * v2, v0 * v0 + v1 * v1 + v2 * v2
            n0, n1, n2 = u1 * v2 - u2 * v1, u2 * v0 - u0 * v2, u0 * v1 - u1 * v0
            sharp = n0 * n0 + n1 * n1 + n2 * n2
            blurred = sharp + LOW_PASS_PX2 * (xx + yy) + LOW_PASS_PX2 * LOW_PASS_PX2
            v_log = half * factor * v_opacity * gather(opacities, i, 1)
            over_sharp, over_blurred = v_log / maximum(sharp, f4(1e-30)), v_log / blurred
            flat = sharp <= zero  # the factor's slope is infinite there, its own value is zero
            over_sharp = select(flat, zero, over_sharp)
            over_blurred = select(flat, zero, over_blurred)
            g_xx = g_xx + yy * over_sharp - (yy + LOW_PASS_PX2) * over_blurred
            g_yy = g_yy + xx * over_sharp - (xx + LOW_PASS_PX2) * over_blurred
            g_xy = g_xy - xy * (over_sharp - over_blurred)
        v_u0, v_v0 = two * (g_xx * u0 + g_xy * v0), two * (g_xy * u0 + g_yy * v0)
        v_u1, v_v1 = two * (g_xx * u1 + g_xy * v1), two * (g_xy * u1 + g_yy * v1)
        v_u2, v_v2 = two * (g_xx * u2 + g_xy * v2), two * (g_xy * u2 + g_yy * v2)

        n00, n01, n02 = a0 * v_u0 + b0 * v_v0, a0 * v_u1 + b0 * v_v1, a0 * v_u2 + b0 * v_v2
        n10, n11, n12 = a1 * v_u0 + b1 * v_v0, a1 * v_u1 + b1 * v_v1, a1 * v_u2 + b1 * v_v2
        n20, n21, n22 = a2 * v_u0 + b2 * v_v0, a2 * v_u1 + b2 * v_v1, a2 * v_u2 + b2 * v_v2
        scatter(v_scales, 3 * i, 3, keep(seen, n00 * r00 + n10 * r10 + n20 * r20))
        scatter(v_scales, 3 * i + 1, 3, keep(seen, n01 * r01 + n11 * r11 + n21 * r21))
        scatter(v_scales, 3 * i + 2, 3, keep(seen, n02 * r02 + n12 * r12 + n22 * r22))

        n00, n10, n20 = n00 * s0, n10 * s0, n20 * s0
        n01, n11, n21 = n01 * s1, n11 * s1, n21 * s1
        n02, n12, n22 = n02 * s2, n12 * s2, n22 * s2
        v_w = two * (qx * (n21 - n12) + qy * (n02 - n20) + qz * (n10 - n01))
        v_x = two * (qy * (n01 + n10) + qz * (n02 + n20) + qw * (n21 - n12) - two * qx * (n11 + n22))
        v_y = two * (qx * (n01 + n10) + qz * (n12 + n21) + qw * (n02 - n20) - two * qy * (n00 + n22))
        v_z = two * (qx * (n02 + n20) + qy * (n12 + n21) + qw * (n10 - n01) - two * qz * (n00 + n11))
        along = v_w * qw + v_x * qx + v_y * qy + v_z * qz
        scatter(v_quats, 4 * i, 4, keep(seen, (v_w - along * qw) * inverse_length))
        scatter(v_quats, 4 * i + 1, 4, keep(seen, (v_x - along * qx) * inverse_length))
        scatter(v_quats, 4 * i + 2, 4, keep(seen, (v_y - along * qy) * inverse_length))
        scatter(v_quats, 4 * i + 3, 4, keep(seen, (v_z - along * qz) * inverse_length))

        v_a0 = v_u0 * m00 + v_u1 * m01 + v_u2 * m02
        v_a1 = v_u0 * m10 + v_u1 * m11 + v_u2 * m12
        v_a2 = v_u0 * m20 + v_u1 * m21 + v_u2 * m22
        v_b0 = v_v0 * m00 + v_v1 * m01 + v_v2 * m02
        v_b1 = v_v0 * m10 + v_v1 * m11 + v_v2 * m12
        v_b2 = v_v0 * m20 + v_v1 * m21 + v_v2 * m22
        v_jxx = v_a0 * get(camera, 0) + v_a1 * get(camera, 1) + v_a2 * get(camera, 2)
        v_jxz = v_a0 * get(camera, 6) + v_a1 * get(camera, 7) + v_a2 * get(camera, 8)
        v_jyy = v_b0 * get(camera, 3) + v_b1 * get(camera, 4) + v_b2 * get(camera, 5)
        v_jyz = v_b0 * get(camera, 6) + v_b1 * get(camera, 7) + v_b2 * get(camera, 8)
        inverse_z = one / z
        inverse_z2 = inverse_z * inverse_z
        v_x_at, v_y_at = zero - fx * inverse_z2 * v_jxz, zero - fy * inverse_z2 * v_jyz
        inside_x = (x * inverse_z >= get(camera, 16)) & (x * inverse_z <= get(camera, 17))
        inside_y = (y * inverse_z >= get(camera, 18)) & (y * inverse_z <= get(camera, 19))
        v_px = fx * inverse_z * v_mean_x + keep(inside_x, v_x_at)
        v_py = fy * inverse_z * v_mean_y + keep(inside_y, v_y_at)
        v_pz = two * inverse_z2 * inverse_z * (fx * x_at * v_jxz + fy * y_at * v_jyz)
        v_pz = v_pz - inverse_z2 * (fx * v_jxx + fy * v_jyy + fx * x * v_mean_x + fy * y * v_mean_y)
        v_pz = (
            v_pz + select(inside_x, zero, v_x_at * x_at * inverse_z) + select(inside_y, zero, v_y_at * y_at * inverse_z)
        )
        v_pz = v_pz + load(extra, 8)
        for axis in range(3):
            world = get(camera, axis) * v_px + get(camera, 3 + axis) * v_py + get(camera, 6 + axis) * v_pz
            scatter(v_means, 3 * i + axis, 3, keep(seen, world))
        i += WIDTH
