"""Backbone ``animatable-gaussians``: StyleUNets that paint Gaussians on front and back maps (Li et al. 2024).

Written from the papers alone: Animatable Gaussians (arXiv 2311.16096, Sec. 4) for the maps and what is predicted;
StyleAvatar (Wang et al. 2023, arXiv 2305.00942) for the StyleUNet; StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) for
modulated convolutions; SWAGAN (Gal et al. 2021, arXiv 2102.06108) for the wavelets.

What one photo changes: the pose is always the same, so the networks are a deep image prior on a fixed input, and
colours do not depend on the view. Base Gaussians lie along the surface in the colours of the completed photo; the
paper's are round, and its networks are trained towards them first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional

from ..bodies.base import BodyFit, BodyModel, joint_transforms
from ..camera import Cameras
from ..gaussians import Gaussians, sh_from_rgb
from ..mesh import unproject
from ..observation import Observation
from ..progress import Progress, Silent
from ..rasterize import rasterize
from . import explicit, surface
from .base import Avatar, blend, moved
from .neural import Network, NeuralAvatar, Plan, fitted_to_photo, gaussians_of, logit, no_gaussians, spacing, unit

FAR_M = 200.0  # a camera this far sees almost in parallel: two metres of depth change the scale by one in a hundred
MARGIN = 0.02  # of the maps' height, free on every side
SOLID = 0.5  # texels that are covered less make no Gaussian
# texels further from any Gaussian, in metres and in distances between those, lie between two surfaces
STRAY_M, STRAY = 0.012, 2.0
THICKEST_M, HEM = 0.08, 0.15  # what a map's edge may close at most, and a standard deviation as a share of that
SPREAD = 0.55  # base standard deviation along the surface, in texels
OFFSET_M = 0.05  # metres per unit of the position map
SLOPE, GAIN = 0.2, math.sqrt(2.0)  # leaky rectifier of StyleGAN2


@dataclass(frozen=True)
class Profile:
    """Sizes of the maps and networks.

    Attributes:
        rows, columns: of each of the two maps of Gaussians; the input has half as many.
        channels: per resolution, from half the maps' on down to the bottleneck, each half of the one before.
        style: length of the style vector.
        opacity: of the base Gaussians.
    """

    rows: int = 384
    columns: int = 256
    channels: tuple[int, ...] = (8, 16, 32, 32, 32, 32)
    style: int = 64
    opacity: float = 0.95

    def __post_init__(self) -> None:
        unit = 2 ** len(self.channels)
        if self.rows % unit or self.columns % unit:
            raise ValueError(
                f"maps of {self.rows} x {self.columns}: {len(self.channels)} levels need multiples of {unit}"
            )


PAPER = Profile(1024, 1024, (64, 128, 256, 512, 512, 512, 512), 512, 0.1)
PROFILES = {"cpu": Profile(), "paper": PAPER}
PLANS = {
    "cpu": Plan(rate=2e-3),
    "paper": Plan(coarse_steps=20_000, refine_steps=80_000, views_per_step=2, max_side_px=1024, rate=5e-4),
}


class ModulatedConv(nn.Module):
    """Convolution whose inputs are scaled by the style, and whose outputs have unit variance again (StyleGAN2)."""

    def __init__(self, incoming: int, outgoing: int, side: int, style: int, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outgoing, incoming, side, side))
        self.scale = 1 / math.sqrt(incoming * side * side)
        self.modulation = nn.Linear(style, incoming)
        nn.init.normal_(self.modulation.weight, std=1 / math.sqrt(style))
        nn.init.ones_(self.modulation.bias)
        self.demodulate = demodulate

    def forward(self, x: Float[Tensor, "1 C H W"], style: Float[Tensor, "S"]) -> Float[Tensor, "1 D H W"]:
        weight = self.scale * self.weight * self.modulation(style)[None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2)


class StyledConv(nn.Module):
    """Modulated 3 x 3 convolution, after doubling the resolution or not, bias and rectifier."""

    def __init__(self, incoming: int, outgoing: int, style: int, enlarges: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(incoming, outgoing, 3, style)
        self.bias = nn.Parameter(torch.zeros(outgoing))
        self.enlarges = enlarges

    def forward(self, x: Float[Tensor, "1 C H W"], style: Float[Tensor, "S"]) -> Float[Tensor, "1 D h w"]:
        if self.enlarges:
            x = enlarged(x)
        return rectified(self.conv(x, style) + self.bias[:, None, None])


class ToMaps(nn.Module):
    """Wavelet bands of the output maps at one resolution, added to those of the coarser one; begins at zero."""

    def __init__(self, incoming: int, maps: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(incoming, 4 * maps, 1, style, demodulate=False)
        nn.init.zeros_(self.conv.weight)
        self.bias = nn.Parameter(torch.zeros(4 * maps))

    def forward(
        self, x: Float[Tensor, "1 C H W"], style: Float[Tensor, "S"], coarser: Float[Tensor, "1 M h w"] | None
    ) -> Float[Tensor, "1 M H W"]:
        bands = self.conv(x, style) + self.bias[:, None, None]
        return bands if coarser is None else bands + haar(enlarged(from_haar(coarser)))


class Down(nn.Module):
    """Two 3 x 3 convolutions, the second at half the resolution."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(incoming, incoming, 3, padding=1)
        self.second = nn.Conv2d(incoming, outgoing, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 D h w"]:
        return rectified(self.second(rectified(self.first(x))))


class Decoder(nn.Module):
    """Pairs of styled convolutions from the bottleneck to half the maps' resolution, with the encoder's features."""

    def __init__(self, channels: tuple[int, ...], maps: int, style: int) -> None:
        super().__init__()
        self.pairs, self.outputs = nn.ModuleList(), nn.ModuleList()
        for level in range(len(channels) - 2, -1, -1):
            width = channels[level]
            beside = width if level else 0  # the finest resolution is beyond the encoder's
            self.pairs.append(
                nn.ModuleList(
                    [
                        StyledConv(channels[level + 1], width, style, enlarges=True),
                        StyledConv(width + beside, width, style),
                    ]
                )
            )
            self.outputs.append(ToMaps(width, maps, style))

    def forward(self, features: list[Tensor], style: Float[Tensor, "S"]) -> Float[Tensor, "1 M H W"]:
        x, bands = features[-1], None
        for step, ((up, conv), output) in enumerate(zip(self.pairs, self.outputs, strict=True)):
            x = up(x, style)
            beside = len(features) - 2 - step
            x = conv(torch.cat([x, features[beside]], 1) if beside >= 0 else x, style)
            bands = output(x, style, bands)
        return from_haar(bands)


class DualStyleUNet(nn.Module):
    """One encoder of a position map and two decoders, for front and back maps of ``maps`` channels.

    Args:
        channels: as in ``Profile``.
    """

    def __init__(self, channels: tuple[int, ...], maps: int, style: int) -> None:
        super().__init__()
        self.register_buffer("style", torch.full((style,), 1 / math.sqrt(style)))
        self.mapping = nn.Sequential(
            *(layer for _ in range(2) for layer in (nn.Linear(style, style), nn.LeakyReLU(SLOPE)))
        )
        self.first = nn.Conv2d(12, channels[1], 1)
        self.encoder = nn.ModuleList(Down(*pair) for pair in zip(channels[1:-1], channels[2:], strict=True))
        self.front, self.back = (Decoder(channels, maps, style) for _ in range(2))

    def forward(self, positions: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "M 2 H W"]:
        style = self.mapping(self.style)
        features = [rectified(self.first(haar(positions)))]
        for down in self.encoder:
            features.append(down(features[-1]))
        return torch.stack([self.front(features, style)[0], self.back(features, style)[0]], 1)


def rectified(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SLOPE) * GAIN


def enlarged(x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C h w"]:
    """Twice the resolution, bilinear."""
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def haar(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
    """Orthonormal Haar bands, four channels for one at half the resolution: mean, columns, rows, diagonal."""
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return 0.5 * torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], 1)


def from_haar(bands: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
    """Inverse of ``haar``."""
    mean, columns, rows, diagonal = bands.chunk(4, 1)
    corners = [
        mean + columns + rows + diagonal, mean - columns + rows - diagonal,
        mean + columns - rows - diagonal, mean - columns - rows + diagonal,
    ]  # fmt: skip
    batch, count, height, width = mean.shape
    cells = 0.5 * torch.stack(corners, -1).view(batch, count, height, width, 2, 2)
    return cells.permute(0, 1, 2, 4, 3, 5).reshape(batch, count, 2 * height, 2 * width)


class AnimatableGaussiansNet(Network):
    """Three StyleUNets, for colours, positions and all else, read out at the texels of front and back map.

    Args:
        base: Gaussians at the texels; texels: places in [front, back] maps one after the other, row by row [N].
        positions: the posed front map, half as large as the maps.
    """

    maps = 2

    def __init__(
        self, profile: Profile, base: Gaussians, texels: Int[Tensor, "N"], positions: Float[Tensor, "3 h w"]
    ) -> None:
        super().__init__(base, texels)
        self.profile, self.map_size = profile, (profile.rows, profile.columns)
        self.register_buffer("positions", positions)
        self.colour, self.position, self.other = (
            DualStyleUNet(profile.channels, maps, profile.style) for maps in (3, 3, 8)
        )

    def forward(self) -> Gaussians:
        colour, offset, other = (
            net(self.positions[None]).flatten(1)[:, self.texels].T for net in (self.colour, self.position, self.other)
        )
        return Gaussians(
            self.means + OFFSET_M * offset,
            unit(self.quats + other[:, 4:]),
            torch.exp(torch.log(self.scales) + other[:, 1:4].clamp(-3, 3)),
            torch.sigmoid(logit(self.opacities) + other[:, 0]),
            sh_from_rgb(self.rgb + colour),
        )

    def penalty(self, made: Gaussians) -> Float[Tensor, ""]:
        """Mean length of the offsets."""
        return 0.005 * ((made.means - self.means).square().sum(1) + 1e-12).sqrt().mean()


def empty(profile: Profile, count: int, rows: int, columns: int) -> AnimatableGaussiansNet:
    """The network for ``count`` Gaussians without any values, on the device "meta"."""
    with torch.device("meta"):
        positions = torch.zeros(3, rows // 2, columns // 2)
        return AnimatableGaussiansNet(profile, no_gaussians(count), torch.zeros(count, dtype=torch.long), positions)


@dataclass(frozen=True)
class CanonicalViews:
    """A finished avatar in rest pose, seen from front and back in parallel; in both maps the person's left is right.

    Attributes:
        texels: covered ones, places in the two flattened maps [N].
        means, factors: their surface points [N 3] metres and the covariance factors of the patches they see [N 3 3].
        rgb: their colours [N 3].
        nearest: the avatar's nearest Gaussian [N].
    """

    texels: Int[np.ndarray, "N"]
    means: Float[np.ndarray, "N 3"]
    factors: Float[np.ndarray, "N 3 3"]
    rgb: Float[np.ndarray, "N 3"]
    nearest: Int[np.ndarray, "N"]


def canonical_views(prior: Avatar, rows: int, columns: int) -> CanonicalViews:
    """Front and back maps of an avatar's Gaussians."""
    means = prior.canonical.means.double().numpy()
    tree = cKDTree(means)
    low, high = np.quantile(means, [0.0005, 0.9995], axis=0)
    middle, extent = 0.5 * (low + high), high - low
    texel_m = max(extent[1] / (rows * (1 - 2 * MARGIN)), extent[0] / (columns - 2 * MARGIN * rows))
    stray_m = max(STRAY_M, STRAY * float(np.median(spacing(means))))
    found = []
    for side, sign in enumerate((1.0, -1.0)):
        camera = parallel(middle, texel_m, rows, columns, sign)
        # colours at twice the resolution and averaged: one sample a texel would shimmer
        fine = camera.resampled(2.0, 0, 0, 2 * columns, 2 * rows)
        with torch.no_grad():
            seen, seen_fine = rasterize(prior.canonical, camera), rasterize(prior.canonical, fine)
        covered = seen.alpha[0].numpy() > SOLID
        depth = np.where(covered, seen.depth[0].double().numpy(), np.nan)
        pooled = functional.avg_pool2d(
            torch.cat([seen_fine.rgb, seen_fine.alpha[..., None]], -1).permute(0, 3, 1, 2), 2
        )
        pooled = pooled[0].permute(1, 2, 0).numpy()
        row, column = np.nonzero(covered)
        points = unproject(column + 0.5, row + 0.5, depth[row, column], camera)
        gap, nearest = tree.query(points)
        right, down = surface.pixel_tangents(depth, camera)
        normal = np.cross(down, right)
        normal *= surface.FLATNESS * texel_m / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-20)
        factors = np.stack([SPREAD * right, SPREAD * down, normal], axis=-1)[row, column]
        colours = pooled[row, column, :3] / np.maximum(pooled[row, column, 3:], 1e-3)
        # the back is stored as a mirror would show it, so that one place has one column in both maps
        place = side * rows * columns + row * columns + (column if side == 0 else columns - 1 - column)
        order = np.argsort(place)
        order = order[gap[order] < stray_m]
        found.append([values[order] for values in (place, points, factors, colours, nearest)])
    texels, means, factors, rgb, nearest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    means, factors = hemmed(texels, means, factors, rows, columns)
    return CanonicalViews(texels, means, factors, rgb, nearest)


def hemmed(
    texels: Int[np.ndarray, "N"],
    means: Float[np.ndarray, "N 3"],
    factors: Float[np.ndarray, "N 3 3"],
    rows: int,
    columns: int,
) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3 3"]]:
    """Means and factors, of which those at the maps' edges reach inwards half the way to the other map: no gap is left.

    Args:
        texels, means, factors, rows, columns: as in ``CanonicalViews``.
    """
    z = np.full(2 * rows * columns, np.nan)
    z[texels] = means[:, 2]
    z = z.reshape(2, rows, columns)
    covered = (~np.isnan(z).any(0)).astype(np.uint8)
    edge = covered > cv2.erode(covered, np.ones((3, 3), np.uint8))
    inwards = np.where(edge & (np.abs(z[0] - z[1]) < THICKEST_M), z[::-1] - z, 0.0).ravel()[texels]
    means, factors, chosen = means.copy(), factors.copy(), inwards != 0
    means[:, 2] += 0.25 * inwards
    factors[chosen, :, 2] = HEM * inwards[chosen, None] * np.array([0.0, 0.0, 1.0])
    return means, factors


def parallel(middle: Float[np.ndarray, "3"], texel_m: float, rows: int, columns: int, sign: float) -> Cameras:
    """A camera so far along ``sign`` times +Z from ``middle`` that it sees in parallel, ``texel_m`` metres a pixel."""
    turn = np.diag([sign, -1.0, -sign])
    viewmat = np.eye(4)
    viewmat[:3, :3] = turn
    viewmat[:3, 3] = -turn @ (middle + [0.0, 0.0, sign * FAR_M])
    focal = FAR_M / texel_m
    K = np.array([[focal, 0, columns / 2], [0, focal, rows / 2], [0, 0, 1]])
    return Cameras(torch.from_numpy(viewmat[None]).float(), torch.from_numpy(K[None]).float(), columns, rows)


def position_map(
    points: Float[np.ndarray, "N 3"], texels: Int[np.ndarray, "N"], rows: int, columns: int
) -> Float[Tensor, "3 h w"]:
    """The front map of points at half its size, every second texel; in units of a standard deviation, 0 where empty."""
    front: Bool[np.ndarray, "N"] = texels < rows * columns
    values = np.zeros((rows * columns, 3), np.float32)
    centred = points[front] - points[front].mean(0)
    values[texels[front]] = centred / max(1e-6, float(centred.std()))
    return torch.from_numpy(values.reshape(rows, columns, 3)[::2, ::2].transpose(2, 0, 1).copy())


def fit_coarse(
    observation: Observation,
    fit: BodyFit,
    model: BodyModel,
    settings: explicit.Settings = explicit.Settings(),
    progress: Progress = Silent(),
    seed: int = 0,
    profile: Profile = Profile(),
    plan: Plan = PLANS["cpu"],
) -> NeuralAvatar:
    """The coarse avatar of one photo: the explicit avatar is the character template whose front and back maps are the
    base; the networks are fitted to the photo.

    ``settings`` are those of the explicit avatar.
    """
    prior = explicit.fit_coarse(observation, fit, model, settings, progress, seed)
    maps = canonical_views(prior, profile.rows, profile.columns)
    base = gaussians_of(maps.means, maps.factors, None, profile.opacity, maps.rgb)
    indices, weights = prior.joint_indices[maps.nearest], prior.joint_weights[maps.nearest]
    pose = prior.photo_pose
    transforms = joint_transforms(pose.rotations[0], prior.rest.joints, prior.parents, pose.translations[0])
    there = moved(maps.means, blend(indices, weights, transforms)).astype(np.float32)
    torch.manual_seed(seed)
    positions = position_map(there, maps.texels, profile.rows, profile.columns)
    network = AnimatableGaussiansNet(profile, base, torch.from_numpy(maps.texels), positions)
    avatar = NeuralAvatar(
        base, indices, weights, prior.body, prior.rest, prior.parents, prior.joint_names, pose,
        np.zeros(len(base), np.float32), prior.parts[maps.nearest], dict(prior.scores), network, plan,
    )  # fmt: skip
    return fitted_to_photo(avatar, observation, fit.camera, progress, seed)
