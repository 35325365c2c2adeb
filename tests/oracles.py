"""Slow, obvious implementations that tests compare the package against. Nothing here is fast on purpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def real_harmonics(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics [N (degree + 1)^2] of unit vectors [N 3], from their definition.

    N_nm P_nm(z) times the real or imaginary part of (x + iy)^m with the Condon-Shortley phase; P_nm without its factor
    sin(theta)^m, by the usual recurrence in n.
    """
    x, y, z = directions.unbind(-1)
    values = [[None] * (2 * n + 1) for n in range(degree + 1)]
    cosine, sine = torch.ones_like(x), torch.zeros_like(x)  # of m phi, times sin(theta)^m
    for m in range(degree + 1):
        before, here = torch.zeros_like(x), torch.full_like(x, float(math.prod(range(1, 2 * m, 2))))
        for n in range(m, degree + 1):
            norm = math.sqrt((2 * n + 1) / (4 * math.pi) * math.factorial(n - m) / math.factorial(n + m))
            norm *= (-1) ** m * (math.sqrt(2) if m else 1)
            values[n][n + m] = norm * here * cosine
            if m:
                values[n][n - m] = norm * here * sine
            before, here = here, ((2 * n + 1) * z * here - (n + m) * before) / (n + 1 - m)
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
    return torch.stack([v for row in values for v in row], -1)


def rotation_matrices(quats: Tensor) -> Tensor:
    """[N 3 3] from quaternions wxyz [N 4] of any length, by v -> q v q*."""
    w, xyz = (q := torch.nn.functional.normalize(quats, dim=-1))[:, 0], q[:, 1:]
    columns = []
    for axis in torch.eye(3, dtype=quats.dtype):
        v = axis.expand_as(xyz)
        t = 2 * torch.linalg.cross(xyz, v)
        columns.append(v + w[:, None] * t + torch.linalg.cross(xyz, t))
    return torch.stack(columns, -1)


def project(means, quats, scales, opacities, viewmat, K, width, height, antialiased=False):
    """EWA projection of N Gaussians into one camera: centres [N 2], conics [N 2 2], depths [N], opacities [N]."""
    in_camera = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    x, y, z = in_camera.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    x_at = z * torch.clamp(x / z, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    y_at = z * torch.clamp(y / z, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * x_at / z**2, zero, fy / z, -fy * y_at / z**2], -1).reshape(-1, 2, 3)
    axes = jacobian @ viewmat[:3, :3] @ rotation_matrices(quats) @ torch.diag_embed(scales)
    covariance = axes @ axes.transpose(1, 2)
    blurred = covariance + 0.3 * torch.eye(2, dtype=means.dtype)
    if antialiased:
        opacities = opacities * torch.sqrt(torch.clamp(torch.det(covariance) / torch.det(blurred), min=0))
    centres = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    return centres, torch.linalg.inv(blurred), z, opacities


def rasterize(gaussians, cameras, background, antialiased=False, near_m=0.01):
    """rgb [C H W 3], alpha [C H W], depth [C H W] of every Gaussian at every pixel, differentiable by autograd."""
    means, quats, scales, opacities, coefficients = (
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh,
    )  # fmt: skip
    dtype = means.dtype
    images = []
    for viewmat, K, back in zip(cameras.viewmats.to(dtype), cameras.Ks.to(dtype), background, strict=True):
        eye = torch.linalg.inv(viewmat)[:3, 3]
        harmonics = real_harmonics(
            torch.nn.functional.normalize(means - eye, dim=-1), math.isqrt(coefficients.shape[1]) - 1
        )
        colors = torch.clamp_min((harmonics[..., None] * coefficients).sum(1) + 0.5, 0.0)
        depths = means @ viewmat[2, :3] + viewmat[2, 3]
        front = torch.nonzero(depths > near_m)[:, 0]
        order = front[torch.argsort(depths[front].float(), stable=True)]
        centres, conics, z, alphas = project(
            means[order],
            quats[order],
            scales[order],
            opacities[order],
            viewmat,
            K,
            cameras.width,
            cameras.height,
            antialiased,
        )
        ys, xs = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
        pixels = torch.stack([xs, ys], -1).reshape(-1, 2).to(dtype) + 0.5
        d = pixels[None] - centres[:, None]
        sigma = 0.5 * torch.einsum("npi,nij,npj->np", d, conics, d)
        alpha = torch.clamp_max(alphas[:, None] * torch.exp(-sigma), 0.999)
        alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
        with torch.no_grad():
            open_after = torch.cumprod(1 - alpha, 0) > 1e-4
            counts = torch.cumprod(open_after.to(torch.int32), 0) > 0  # closed pixels stay closed
        alpha = alpha * counts
        after = torch.cumprod(1 - alpha, 0)
        before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
        weights = (alpha * before).T
        left = after[-1] if len(after) else torch.ones(len(pixels), dtype=dtype)
        covered = 1 - left
        rgb = weights @ colors[order] + left[:, None] * back
        depth = weights @ z / torch.clamp_min(covered, 1e-10)
        images.append([t.reshape(cameras.height, cameras.width, *t.shape[1:]) for t in (rgb, covered, depth)])
    return tuple(torch.stack(channel) for channel in zip(*images, strict=True))
