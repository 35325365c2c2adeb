"""What backbones that are networks share: how they are posed, fitted to images and kept.

Such a network makes the Gaussians of one person in the rest pose; it has no input that changes. So one pass serves all
images of a step, and what leaves it is an ordinary avatar. Its last layers begin at zero, where it makes its base
Gaussians, which stand for the base values that GaussianAvatar and Animatable Gaussians are trained towards first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional

from ..bodies.base import joint_transforms
from ..camera import Cameras
from ..gaussians import Gaussians, sh_from_rgb
from ..observation import Observation
from ..progress import Progress, Silent
from ..rasterize import rasterize
from .base import Avatar, axes_of_factors, blend, inverse_matrices, inverse_transforms, moved
from .explicit import SHOWN, photo_scores, shown_share
from .refine import RefineSettings, Views, deformation_of, image_loss, photo_views, softened, turned_pose


@dataclass(frozen=True)
class Plan:
    """How a network is fitted.

    Attributes:
        coarse_steps, refine_steps: steps on the photo alone, and per round on photo and restored views.
        views_per_step: images that share one pass of the network.
        max_side_px: the photo's person is looked at with this many pixels at most.
        rate, latent_rate: step sizes of Adam for weights, and for a feature map that is learned itself.
        last_rate: share of them that is left at the end, along a cosine.
        keep: weight of squared differences from the base values (colours, means in decimetres, logarithms of scales) where
            the photo shows nothing, in the coarse fit.
        bends: whether joints may turn when the avatar is refined.
    """

    coarse_steps: int = 150
    refine_steps: int = 150
    views_per_step: int = 3
    max_side_px: int = 768
    rate: float = 3e-3
    latent_rate: float = 5e-3
    last_rate: float = 0.05
    keep: float = 2.0
    bends: bool = True

    def __post_init__(self) -> None:
        limits = {"coarse_steps": 10**6, "refine_steps": 10**6, "views_per_step": 64, "max_side_px": 16_384,
                  "rate": 1.0, "latent_rate": 1.0, "last_rate": 1.0, "keep": 10**6, "bends": 1}  # fmt: skip
        for name, most in limits.items():
            value = getattr(self, name)
            kind = int if type(getattr(Plan, name)) is not float else (int, float)
            if not isinstance(value, kind) or not 0 <= value <= most:
                raise ValueError(f"{name} is {value!r}, not between 0 and {most}")


class Network(nn.Module):
    """Canonical Gaussians of one person as a network, over N texels of maps [H W] or of more maps of that size.

    Buffers: ``texels`` [N], places in the flattened maps; base Gaussians ``means`` [N 3] metres, ``quats`` [N 4],
    ``scales`` [N 3] metres, ``opacities`` [N] and ``rgb`` [N 3], what it makes as long as its last layers are zero.

    Attributes:
        maps: how many maps there are; map_size: rows and columns of each.
        profile: the backbone's own sizes, a dataclass.
    """

    maps = 1
    map_size: tuple[int, int]
    profile: Any

    def __init__(self, base: Gaussians, texels: Int[Tensor, "N"]) -> None:
        super().__init__()
        self.register_buffer("texels", texels)
        for name, value in (("means", base.means), ("quats", base.quats), ("scales", base.scales),
                            ("opacities", base.opacities), ("rgb", base.rgb())):  # fmt: skip
            self.register_buffer(name, value.detach().clone())

    def forward(self) -> Gaussians:
        """The Gaussians in the rest pose."""
        raise NotImplementedError

    def penalty(self, made: Gaussians) -> Float[Tensor, ""]:
        """Regulariser of the backbone's own paper, of what ``forward`` made."""
        raise NotImplementedError

    def latents(self) -> list[nn.Parameter]:
        """Parameters that are features, not weights."""
        return []


@dataclass(frozen=True)
class NeuralAvatar(Avatar):
    """An avatar whose canonical Gaussians are what ``network`` makes, so that refining goes on from its weights.

    ``plan`` is how the network is fitted.
    """

    network: Network | None = None
    plan: Plan = Plan()


@dataclass(frozen=True)
class Posing:
    """One affine transform per Gaussian, differentiable in the Gaussians.

    Means move by the blended transform; rotations are composed with its rotation, as in Animatable Gaussians (Li et al.
    2024). Scales stay: ``avatars.base.posed``, which stretches covariances, has no gradient.
    """

    linear: Float[Tensor, "N 3 3"]
    shift: Float[Tensor, "N 3"]
    turns: Float[Tensor, "N 4"]

    @classmethod
    def of(cls, transforms: Float[np.ndarray, "N 3 4"]) -> Posing:
        """Of blended skinning transforms [N 3 4]."""
        linear = torch.from_numpy(np.ascontiguousarray(transforms[:, :, :3], np.float32))
        shift = torch.from_numpy(np.ascontiguousarray(transforms[:, :, 3], np.float32))
        # columns of unlike length: what comes back are the columns themselves, in their order
        factors = nearest_rotations(linear).double().numpy() * np.array([3.0, 2.0, 1.0])
        return cls(linear, shift, torch.from_numpy(axes_of_factors(factors)[0]))

    def __call__(self, gaussians: Gaussians) -> Gaussians:
        means = (self.linear * gaussians.means[:, None]).sum(2) + self.shift
        return replace(gaussians, means=means, quats=composed(self.turns, gaussians.quats))


def nearest_rotations(linear: Float[Tensor, "N 3 3"]) -> Float[Tensor, "N 3 3"]:
    """Orthogonal polar factors by Newton's iteration R <- (R + R^-T) / 2 (Higham 1986)."""
    rotations = linear
    for _ in range(8):
        rotations = 0.5 * (rotations + inverse_matrices(rotations).mT)
    return rotations


def composed(first: Float[Tensor, "N 4"], second: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Products of quaternions wxyz: the rotation ``second``, then ``first``."""
    aw, ax, ay, az = first.unbind(1)
    bw, bx, by, bz = second.unbind(1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        1,
    )


def fitted(
    avatar: NeuralAvatar,
    photo: Views,
    views: Views | None,
    settings: RefineSettings = RefineSettings(),
    progress: Progress = Silent(),
    seed: int = 0,
    view_weight: float = 1.0,
) -> NeuralAvatar:
    """The avatar whose network has been fitted to the photo, and to restored views of it where there are any.

    Takes the place of ``refine.refine``.

    Every step makes the Gaussians once and compares them with several images by ``refine.image_loss``, over a random
    grey. Where joints turned, the base moves so that the network makes what was seen in the new pose.

    Args:
        photo: the photo's window (C = 1); views: as for ``refine.refine``.
        settings: weights and shares of the images; step sizes and priors of joints.
    """
    network, plan = copy.deepcopy(avatar.network), avatar.plan
    photo = at_most(photo, plan.max_side_px)
    posing = Posing.of(_to_photo(avatar))
    steps = plan.coarse_steps if views is None else plan.refine_steps
    latents = network.latents()
    held = {id(latent) for latent in latents}
    groups = [{"params": [p for p in network.parameters() if id(p) not in held], "lr": plan.rate}]
    if latents:
        groups.append({"params": latents, "lr": plan.latent_rate})
    deformation = None
    if views is not None and plan.bends:
        deformation = deformation_of(avatar, photo.cameras, settings)
        rotvecs = torch.zeros(len(deformation.joints), 3).requires_grad_()
        nodes = torch.zeros(len(deformation.graph), 3)
        groups.append({"params": [rotvecs], "lr": settings.joint_rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _falling(steps, plan.last_rate))

    def seen_from(made: Gaussians) -> Gaussians:
        there = posing(made)
        if deformation is None:
            return there
        return replace(there, means=replace(deformation, means=there.means).moved(rotvecs, nodes))

    seen = torch.from_numpy(avatar.visibility.astype(np.float32))
    unseen = 1 - seen[:, None]
    generator = torch.Generator().manual_seed(seed)
    progress.start("fit the network" if views is None else "refine", steps)
    for _ in range(steps):
        made = network()
        loss = network.penalty(made)
        if views is None:
            # what the photo does not show has no gradient of its own, yet shares the weights of what it shows
            loss = loss + plan.keep * (unseen * (made.rgb() - network.rgb).square()).mean()
            loss = loss + plan.keep * 100 * (unseen * (made.means - network.means).square()).mean()
            # or the flanks, which share weights with sharp pixels, become as small as these and show gaps
            loss = loss + plan.keep * (unseen * torch.log(made.scales / network.scales).square()).mean()
        elif deformation is not None:
            loss = loss + settings.joint_prior * rotvecs.square().sum() / max(1, len(rotvecs))
        by_photo = seen_from(made)
        by_views = by_photo if views is None else seen_from(doubted(made, seen, settings.seen_doubt))
        for index in _chosen(views, settings, plan.views_per_step, generator):
            images, weight = (views, view_weight) if index else (photo, settings.photo_weight)
            background = torch.rand(1, generator=generator).expand(3).contiguous()
            rendered = rasterize(
                by_views if index else by_photo,
                images.cameras[index],
                background=background,
                supersample=images.supersample,
            )
            picture = torch.cat([rendered.rgb[0], rendered.alpha[0][..., None]], -1)
            picture = softened(picture.permute(2, 0, 1), images.softness_px).permute(1, 2, 0)
            loss = loss + weight / plan.views_per_step * image_loss(
                picture, images.rgb[index], images.alpha[index], images.confidence[index], background, settings
            )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.advance()
    with torch.no_grad():
        made = network()
        there = seen_from(made)
    result = replace(avatar, network=network, canonical=made)
    if deformation is None:
        return result
    result = replace(result, photo_pose=turned_pose(avatar, deformation, rotvecs))
    at_rest = moved(there.means.numpy(), inverse_transforms(_to_photo(result)))
    network.means += torch.from_numpy(at_rest) - made.means
    with torch.no_grad():
        return replace(result, canonical=network())


def doubted(gaussians: Gaussians, seen: Float[Tensor, "N"], doubt: float) -> Gaussians:
    """The same Gaussians, of whose gradients less comes through the more the photo saw of them: nothing of those of
    colours, and all but ``doubt`` of the others. Restored views are a guess where the photo is not."""

    def heard(values: Tensor, share: Float[Tensor, "N"]) -> Tensor:
        return torch.lerp(values.detach(), values, share.view(-1, *[1] * (values.ndim - 1)))

    return Gaussians(
        *(heard(getattr(gaussians, name), 1 - doubt * seen) for name in ("means", "quats", "scales", "opacities")),
        heard(gaussians.sh, 1 - seen),
    )


def fitted_to_photo(
    avatar: NeuralAvatar, observation: Observation, camera: Cameras, progress: Progress = Silent(), seed: int = 0
) -> NeuralAvatar:
    """The coarse avatar from one whose network is new: fitted to the photo, with visibility and scores.

    Args:
        camera: the photo's, at full size (C = 1).
    """
    photo = photo_views(camera, observation.foreground, observation.alpha, avatar.plan.max_side_px)
    avatar = replace(avatar, visibility=seen_share(avatar, photo.cameras))
    avatar = fitted(avatar, photo, None, progress=progress, seed=seed)
    avatar = replace(avatar, visibility=seen_share(avatar, photo.cameras))
    scores = photo_scores(avatar.gaussians(), photo.cameras, photo.rgb[0], photo.alpha[0])
    scores["seen_gaussians"] = float(avatar.visibility.mean())
    return replace(avatar, scores=avatar.scores | scores)


def at_most(photo: Views, side_px: int) -> Views:
    """The same images with no side longer than that, as area averages."""
    cameras = photo.cameras
    scale = side_px / max(cameras.width, cameras.height)
    if scale >= 1:
        return photo
    width, height = round(scale * cameras.width), round(scale * cameras.height)
    covered = torch.cat([photo.rgb * photo.alpha[..., None], photo.alpha[..., None], photo.confidence[..., None]], -1)
    small = functional.interpolate(covered.permute(0, 3, 1, 2), (height, width), mode="area").permute(0, 2, 3, 1)
    alpha = small[..., 3].contiguous()
    return Views(
        cameras.resampled(scale, 0, 0, width, height), small[..., :3] / alpha.clamp(min=1e-4)[..., None], alpha,
        small[..., 4].contiguous(), scale * photo.softness_px, photo.supersample,
    )  # fmt: skip


def seen_share(avatar: Avatar, camera: Cameras) -> Float[np.ndarray, "N"]:
    """How much of the photo each Gaussian makes [N] in [0, 1]; 0 where hardly any of it shows."""
    share = shown_share(avatar.gaussians(), camera).numpy()
    return np.where(share > SHOWN, share, 0.0).astype(np.float32)


def spacing(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N"]:
    """Root mean square distance to the three nearest other points [N] metres (3DGS, Kerbl et al. 2023, Sec. 5.1)."""
    nearest = cKDTree(points).query(points, k=list(range(2, min(4, len(points)) + 1)))[0]
    return np.sqrt(np.square(nearest).mean(1) + 1e-12).astype(np.float32)


def lent(
    points: Float[np.ndarray, "P 3"],
    reach_m: Float[np.ndarray, "P"],
    prior: Avatar,
    neighbours: int = 12,
) -> Float[np.ndarray, "P 3"]:
    """Colours [P 3] for points of the rest pose, from the Gaussians of a finished avatar near them.

    A mean under a Gaussian window of standard deviation ``reach_m``, measured from the nearest one on.
    """
    tree = cKDTree(prior.canonical.means.numpy())
    distance, index = tree.query(points, k=list(range(1, min(neighbours, len(prior.canonical)) + 1)))
    excess = np.square(distance) - np.square(distance[:, :1])
    weight = np.exp(-0.5 * excess / np.square(np.maximum(reach_m, 1e-4))[:, None])
    weight /= weight.sum(1, keepdims=True)
    return np.einsum("pk,pka->pa", weight, prior.canonical.rgb().numpy()[index]).astype(np.float32)


def gaussians_of(
    means: Float[np.ndarray, "N 3"],
    factors: Float[np.ndarray, "N 3 3"] | None,
    scales: Float[np.ndarray, "N"] | None,
    opacity: float,
    rgb: Float[np.ndarray, "N 3"],
) -> Gaussians:
    """Base Gaussians: of covariances M M^T of ``factors`` in metres, or else round ones of ``scales`` in metres."""
    if factors is None:
        quats = np.tile(np.array([1, 0, 0, 0], np.float32), (len(means), 1))
        sizes = np.repeat(scales[:, None], 3, axis=1).astype(np.float32)
    else:
        quats, sizes = axes_of_factors(factors)
    return Gaussians(
        torch.from_numpy(means.astype(np.float32)), torch.from_numpy(quats), torch.from_numpy(sizes),
        torch.full((len(means),), opacity), sh_from_rgb(torch.from_numpy(rgb.astype(np.float32))),
    )  # fmt: skip


def no_gaussians(count: int) -> Gaussians:
    """Zeros in the place of ``count`` Gaussians."""
    return Gaussians(*(torch.zeros(count, *shape) for shape in ((3,), (4,), (3,), (), (1, 3))))


def logit(values: Tensor) -> Tensor:
    """Inverse of the sigmoid, finite at 0 and 1."""
    return torch.logit(values.clamp(1e-4, 1 - 1e-4))


def unit(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Quaternions of length one."""
    return functional.normalize(quats, dim=1)


def _to_photo(avatar: Avatar) -> Float[np.ndarray, "N 3 4"]:
    pose = avatar.photo_pose
    transforms = joint_transforms(pose.rotations[0], avatar.rest.joints, avatar.parents, pose.translations[0])
    return blend(avatar.joint_indices, avatar.joint_weights, transforms)


def _chosen(views: Views | None, settings: RefineSettings, count: int, generator: torch.Generator) -> list[int]:
    """Which images a step looks at: 0 is the photo, at least once in every step."""
    if views is None:
        return [0]
    trusted = torch.nonzero(views.confidence.amax((1, 2)) > 0)[:, 0]
    trusted = trusted[trusted > 0]
    if not len(trusted):
        return [0]
    drawn = trusted[torch.randperm(len(trusted), generator=generator)[: max(1, count - 1)]]
    return [0, *drawn.tolist()]


def _falling(steps: int, last: float) -> Callable[[int], float]:
    """A factor of step sizes: from 1 down to ``last`` along a cosine."""

    def factor(step: int) -> float:
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / max(1, steps)))

    return factor
