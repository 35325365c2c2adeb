"""Backbone ``gaussian-avatar``: round Gaussians on a UV map, made from a learnable feature map (Hu et al. 2024).

Written from the paper (GaussianAvatar, arXiv 2312.02134, Sec. 4) alone. What one photo changes: there is one pose, so
the pose encoder and its second stage are left out; scales and colours are learned as differences, in front of the
sigmoid, from base values that the completed photo gives, as the network alone would leave the unseen side at its first
colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..bodies.base import BodyFit, BodyModel
from ..camera import Cameras
from ..gaussians import Gaussians, sh_from_rgb
from ..mesh import depth_buffer
from ..observation import Observation
from ..progress import Progress, Silent
from . import explicit
from .base import strongest
from .binding import loosened
from .canonical import layout
from .neural import Network, NeuralAvatar, Plan, fitted_to_photo, gaussians_of, lent, logit, no_gaussians, spacing

SIGMA = 0.45  # base size of a Gaussian, in distances between them: opaque without blurring its neighbours away
SEAM_M = 0.03  # neighbours in the map that lie further apart are on two sides of a seam
LAYERS = 5  # of the trunk; the input comes in again at the last


@dataclass(frozen=True)
class Profile:
    """Sizes of the network.

    Attributes:
        side: texels of the UV map, each way; every one on the body is a Gaussian.
        feature_side, channels: of the learnable feature map.
        width: of the shared MLP.
        smooth: softplus between layers, as published; SiLU otherwise, which costs a tenth of it on a CPU.
        offset_m: metres per unit of the offsets' output.
    """

    side: int = 256
    feature_side: int = 64
    channels: int = 32
    width: int = 48
    smooth: bool = False
    offset_m: float = 0.02


PAPER = Profile(side=512, feature_side=128, channels=64, width=128, smooth=True)
PROFILES = {"cpu": Profile(), "paper": PAPER}
PLANS = {"cpu": Plan(), "paper": Plan(coarse_steps=4000, refine_steps=8000, views_per_step=2, max_side_px=1024,
                                      rate=3e-3, latent_rate=5e-4)}  # fmt: skip


class Layer(nn.Module):
    """Linear, batch normalisation over the points, and a smooth rectifier.

    All points of the one person are the batch, at any time: there are no running statistics.
    """

    def __init__(self, incoming: int, outgoing: int, smooth: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(incoming, outgoing)
        self.norm = nn.BatchNorm1d(outgoing, track_running_stats=False)
        self.smooth = smooth

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        x = self.norm(self.linear(x))
        return functional.softplus(x) if self.smooth else functional.silu(x)


class Head(nn.Module):
    """Two layers and an output that begins at zero."""

    def __init__(self, width: int, outgoing: int, smooth: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(Layer(width, width, smooth), Layer(width, width, smooth))
        self.out = nn.Linear(width, outgoing)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
        return self.out(self.layers(x))


class ShapeDecoder(nn.Module):
    """The MLP that all points share: features and UV in; offset [N 3], scale [N 1] and colour [N 3] out."""

    def __init__(self, incoming: int, width: int, smooth: bool) -> None:
        super().__init__()
        inputs = [incoming, *[width] * (LAYERS - 2), width + incoming]
        self.trunk = nn.ModuleList(Layer(size, width, smooth) for size in inputs)
        self.offset, self.scale, self.colour = (Head(width, size, smooth) for size in (3, 1, 3))

    def forward(
        self, x: Float[Tensor, "N C"]
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 1"], Float[Tensor, "N 3"]]:
        made = x
        for index, layer in enumerate(self.trunk):
            made = layer(torch.cat([made, x], 1) if index == LAYERS - 1 else made)
        return self.offset(made), self.scale(made), self.colour(made)


class GaussianAvatarNet(Network):
    """Feature map -> three 5 x 5 convolutions -> features at the points' UV -> MLP -> Gaussians.

    Args:
        base: round Gaussians at the texels; texels: places in the UV map, row by row [N].
        rows, columns: of the UV map.
    """

    def __init__(self, profile: Profile, base: Gaussians, texels: Int[Tensor, "N"], rows: int, columns: int) -> None:
        super().__init__(base, texels)
        self.profile, self.map_size = profile, (rows, columns)
        side, channels = profile.feature_side, profile.channels
        self.geo_feature = nn.Parameter(0.01 * torch.randn(1, channels, side, side))
        self.geom_conv = nn.Sequential(*(nn.Conv2d(channels, channels, 5, padding=2, bias=False) for _ in range(3)))
        self.decoder = ShapeDecoder(channels + 2, profile.width, profile.smooth)

    def uv(self) -> Float[Tensor, "N 2"]:
        """Where the points lie in the map, (x, y) in [0, 1]."""
        rows, columns = self.map_size
        row = torch.div(self.texels, columns, rounding_mode="floor")
        return torch.stack([(self.texels % columns + 0.5) / columns, (row + 0.5) / rows], 1).to(self.means)

    def forward(self) -> Gaussians:
        uv = self.uv()
        features = self.geom_conv(self.geo_feature)
        # at the points' places only: the paper enlarges the whole map, which is the same
        at = functional.grid_sample(features, (2 * uv - 1)[None, None], align_corners=False, padding_mode="border")
        offset, scale, colour = self.decoder(torch.cat([at[0, :, 0].T, uv], 1))
        size = torch.sigmoid(logit(self.scales[:, :1]) + scale)
        return Gaussians(
            self.means + self.profile.offset_m * offset,
            self.quats,
            size.expand(-1, 3),
            self.opacities,
            sh_from_rgb(torch.sigmoid(logit(self.rgb) + colour)),
        )

    def penalty(self, made: Gaussians) -> Float[Tensor, ""]:
        """Squared offsets and features, and sizes, weighted as in the released training."""
        offsets = (made.means - self.means).square().mean()
        return 10 * offsets + self.geo_feature.square().mean() + 0.03 * made.scales[:, 0].mean()

    def latents(self) -> list[nn.Parameter]:
        return [self.geo_feature]


@dataclass(frozen=True)
class Atlas:
    """Which place of a body each texel of a map is: flat index [N], triangle's vertices [N 3] and weights [N 3]."""

    rows: int
    columns: int
    texels: Int[np.ndarray, "N"]
    vertices: Int[np.ndarray, "N 3"]
    barycentric: Float[np.ndarray, "N 3"]


def empty(profile: Profile, count: int, rows: int, columns: int) -> GaussianAvatarNet:
    """The network for ``count`` Gaussians without any values, on the device "meta"."""
    with torch.device("meta"):
        return GaussianAvatarNet(profile, no_gaussians(count), torch.zeros(count, dtype=torch.long), rows, columns)


def atlas_of(model: BodyModel, template: Float[np.ndarray, "V 3"], side: int) -> Atlas:
    """The body's own texture coordinates as a map of ``side`` x ``side`` texels, or, of a body without them, the front
    and back maps of ``canonical.layout`` side by side, whose size is their own.

    Args:
        template: the rest body, metres.
    """
    uv, uv_faces = getattr(model, "uv", None), getattr(model, "uv_faces", None)
    if uv is None or uv_faces is None:
        maps = layout(template, model.faces)
        joined, weights, covered = (np.concatenate([*maps_of], axis=1)
                                    for maps_of in (maps.vertices, maps.barycentric, maps.covered))  # fmt: skip
        return Atlas(*covered.shape, np.flatnonzero(covered), joined[covered], weights[covered])
    eye = torch.eye(4)[None]
    # a camera of focal length one at depth one: pixels are what they were
    camera = Cameras(eye, eye[:, :3, :3].contiguous(), side, side)
    flat = np.stack([uv[:, 0] * side, (1 - uv[:, 1]) * side, np.ones(len(uv))], axis=1)
    buffer = depth_buffer(flat, uv_faces, camera)
    second_third = buffer.barycentric[buffer.covered]
    weights = np.concatenate([1 - second_third.sum(1, keepdims=True), second_third], axis=1)
    return Atlas(side, side, np.flatnonzero(buffer.covered), model.faces[buffer.face[buffer.covered]], weights)


def strides(atlas: Atlas, means: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N"]:
    """How far apart neighbours in the map lie on the body [N] metres, the further way: where a map is stretched, round
    Gaussians as small as the shorter way asks for would leave gaps. 0 across seams."""
    grid = np.full((atlas.rows * atlas.columns, 3), np.nan, np.float32)
    grid[atlas.texels] = means
    grid = grid.reshape(atlas.rows, atlas.columns, 3)
    furthest = np.zeros((atlas.rows, atlas.columns), np.float32)
    for axis in (0, 1):
        step = np.nan_to_num(np.linalg.norm(np.diff(grid, axis=axis), axis=2), nan=0.0)
        step[step > SEAM_M] = 0.0
        before, after = ([(1, 0), (0, 0)], [(0, 1), (0, 0)]) if axis == 0 else ([(0, 0), (1, 0)], [(0, 0), (0, 1)])
        furthest = np.maximum(furthest, np.maximum(np.pad(step, before), np.pad(step, after)))
    return furthest.ravel()[atlas.texels]


def fit_coarse(
    observation: Observation,
    fit: BodyFit,
    model: BodyModel,
    settings: explicit.Settings = explicit.Settings(),
    progress: Progress = Silent(),
    seed: int = 0,
    profile: Profile = Profile(),
    plan: Plan = Plan(),
) -> NeuralAvatar:
    """The coarse avatar of one photo: base Gaussians on the clothed body, in the colours of the explicit avatar, then
    the network fitted to the photo.

    ``settings.gaussians`` and ``settings.iterations`` are those of the explicit avatar that lends the colours.
    """
    draft = explicit.lay_on_body(observation, fit, model, settings, progress)
    prior = explicit.fit_coarse(observation, fit, model, settings, progress, seed, draft)
    atlas = atlas_of(model, draft.rest.vertices, profile.side)
    clothed = draft.rest.vertices + draft.outward[:, None] * draft.rest_normals
    means = np.einsum("pk,pka->pa", atlas.barycentric, clothed[atlas.vertices]).astype(np.float32)
    apart = np.maximum(spacing(means), strides(atlas, means))
    base = gaussians_of(means, None, SIGMA * apart, 1.0, lent(means, apart, prior))
    weights = np.einsum("pk,pkj->pj", atlas.barycentric.astype(np.float32), model.weights[atlas.vertices])
    nearest = atlas.vertices[np.arange(len(means)), atlas.barycentric.argmax(1)]
    parts = model.parts[nearest].astype(np.uint8)
    joint_indices, joint_weights = loosened(means, draft.rest.vertices, *strongest(weights), parts)
    torch.manual_seed(seed)
    network = GaussianAvatarNet(profile, base, torch.from_numpy(atlas.texels), atlas.rows, atlas.columns)
    avatar = NeuralAvatar(
        base, joint_indices, joint_weights, fit.body, draft.rest, model.parents, model.joint_names, fit.pose,
        np.zeros(len(means), np.float32), parts, dict(prior.scores), network, plan,
    )  # fmt: skip
    return fitted_to_photo(avatar, observation, fit.camera, progress, seed)
