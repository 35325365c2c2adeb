"""The refined avatar A_r of HumanDreamer-X (arXiv 2504.03536): a coarse avatar fitted to its photo and restored views.

The photo is right about all it shows, the restored views are a guess about the rest. So what the photo saw keeps its
colours and moves along the photo's viewing rays only, which leaves the photo as it is; what it did not see takes after
the views. Geometry changes smoothly: joints turn, and a coarse graph over the body carries offsets; no Gaussian moves
by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from ..bodies.base import BodyPose, joint_transforms
from ..camera import Cameras
from ..gaussians import SH_C0, Gaussians
from ..losses import psnr, ssim
from ..progress import Progress, Silent
from ..rasterize import rasterize
from .base import Avatar, axes_of_factors, blend, inverse_matrices, inverse_transforms, posed, rotation_matrices
from .explicit import person_window, photo_scores
from .optimize import fit_image
from .turntable import samples_per_pixel

NEIGHBOURS = 8  # nodes that a Gaussian follows
SURROUNDINGS = 8  # Gaussians that tell how one is stretched
ROUND = 0.02  # differences of colour and alpha below which their squares count
SOFT_ROWS = 0.6  # standard deviation of the blur that takes away what a number of rows cannot show, in rows
PYRAMID_PX = (8, 24)  # sides of the blocks whose means are compared, too
# Limits of what a fit may do to one Gaussian: factors of its size, and of the stretch of its surroundings.
SMALLEST, LARGEST, STRETCH = 0.5, 1.6, 1.4
WARP_RATE, GAIN_RATE = 0.002, 0.005


@dataclass(frozen=True)
class RefineSettings:
    """How the rounds and the fit of each go, and what may change.

    Attributes:
        max_side_px: the photo's person is worked on at this many pixels at most.
        sigmas: noise to restore from, one per round; None is the restorer's own. Less noise changes less.
        bank: share of a view that a later round's restoration replaces.
        gain_db: a round that improves the views kept apart by less is undone and the last.
        loss_db: what the photo may lose to the coarse avatar before a round is undone.
        iterations: steps per round, each on one image; ``polish`` further ones on the photo alone.
        geometry_share: share of the steps that move geometry only.
        photo_share: share of the steps that look at the photo.
        photo_weight, round_weights: of the losses of the photo, and of the restored views by round.
        side_weights: factors of the restored views up to 60, up to 120 and beyond 120 degrees away from the photo.
        silhouette_doubt: how much less a pixel is trusted where the restored silhouette differs from the avatar's.
        seen_doubt: how little what the photo saw heeds the views when they want it thinner or smaller; 1 is not at all.
        ssim_weight, alpha_weight, pyramid_weight: of the parts of the loss; the pyramid pulls what lies apart.
        joint_share: joints that carry less than this share of the Gaussians keep their rotation.
        hold_behind: how strictly the far side of what the photo saw stays behind it.
        nodes, colour_nodes: about how many nodes carry offsets, and changes of colour.
        smooth_colours: what the photo did not see changes its colour smoothly over the surface, and what is sharp on it
            stays so; otherwise every Gaussian changes its own.
        joint_rate, offset_rate, colour_rate, opacity_rate, scale_rate: step sizes of Adam, in radians, metres, sRGB,
            logits and logarithms.
        joint_prior, offset_prior, smoothness: weights of squared angles, of squared offsets in m, and of squared
            differences of offsets between neighbouring nodes.
        residual_prior: weight of the squares of each view's own affine warp and gain, by which the fit may explain
            views that disagree and which it then forgets; None for no such freedom.
        follow_every: steps after which Gaussians turn and stretch with what surrounds them.
    """

    max_side_px: int = 1024
    sigmas: tuple[float | None, ...] = (None, 5.0, 2.3)
    bank: float = 0.7
    gain_db: float = 0.05
    loss_db: float = 0.3
    iterations: int = 200
    polish: int = 20
    geometry_share: float = 0.4
    photo_share: float = 0.3
    photo_weight: float = 2.0
    round_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    side_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    silhouette_doubt: float = 0.5
    seen_doubt: float = 0.7
    ssim_weight: float = 0.2
    alpha_weight: float = 0.5
    pyramid_weight: float = 2.0
    joint_share: float = 0.015
    hold_behind: float = 0.9
    nodes: int = 500
    colour_nodes: int = 3000
    smooth_colours: bool = True
    joint_rate: float = 0.006
    offset_rate: float = 0.0015
    colour_rate: float = 0.02
    opacity_rate: float = 0.03
    scale_rate: float = 0.01
    joint_prior: float = 0.02
    offset_prior: float = 0.5
    smoothness: float = 2.0
    residual_prior: float | None = 1.0
    follow_every: int = 30


@dataclass(frozen=True)
class Views:
    """Images of the person from C cameras.

    Attributes:
        rgb: straight colours, sRGB.
        confidence: how far each pixel is trusted, in [0, 1].
        softness_px: standard deviation of the blur the images are under; what is compared with them is blurred as much.
        supersample: how much finer what is compared with them is rendered (``rasterize``).
    """

    cameras: Cameras
    rgb: Float[Tensor, "C H W 3"]
    alpha: Float[Tensor, "C H W"]
    confidence: Float[Tensor, "C H W"]
    softness_px: float = 0.0
    supersample: int = 1

    def __len__(self) -> int:
        return len(self.cameras)

    def select(self, index: Int[Tensor, "K"]) -> Views:
        """Some of the views."""
        cameras = Cameras(self.cameras.viewmats[index], self.cameras.Ks[index], self.cameras.width, self.cameras.height)
        return Views(
            cameras, self.rgb[index], self.alpha[index], self.confidence[index], self.softness_px, self.supersample
        )


def photo_views(
    camera: Cameras, rgb: Float[np.ndarray, "H W 3"], alpha: Float[np.ndarray, "H W"], max_side_px: int
) -> Views:
    """The photo's person as the one image that is right."""
    window, rgb, alpha = person_window(camera, rgb, alpha, max_side_px)
    return Views(window, torch.from_numpy(rgb)[None], torch.from_numpy(alpha)[None], torch.ones(1, *alpha.shape))


def restored_views(
    cameras: Cameras,
    pictures: UInt8[np.ndarray, "C H W 4"],
    avatar: Avatar,
    settings: RefineSettings,
    rows: int | None = None,
) -> Views:
    """Restored pictures (straight RGBA) of an avatar, trusted less round where they change its silhouette.

    Where only ``rows`` of their lines were restored and what is finer is the avatar's own, they are compared as softly:
    else an avatar could only lose by a change.
    """
    rgba = torch.from_numpy(pictures).float() / 255
    if rows is not None and rows < cameras.height:
        blur_px = SOFT_ROWS * cameras.height / rows
        covered = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1).permute(0, 3, 1, 2)
        soft = torch.stack([softened(planes, blur_px) for planes in covered]).permute(0, 2, 3, 1)
        rgba = torch.cat([(soft[..., :3] / soft[..., 3:].clamp(min=1e-4)).clamp(0, 1), soft[..., 3:]], -1)
    gaussians, samples = avatar.gaussians(), samples_per_pixel(cameras.height)
    with torch.no_grad():
        own = [rasterize(gaussians, cameras[index], supersample=samples) for index in range(len(cameras))]
    own_alpha, alpha = torch.cat([view.alpha for view in own]), rgba[..., 3].contiguous()
    softness = softness_px(
        torch.cat([torch.cat([view.rgb for view in own]), own_alpha[..., None]], -1)[1:],
        torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)[1:],
    )
    confidence = trust(own_alpha, alpha, settings.silhouette_doubt)
    return Views(cameras, rgba[..., :3].contiguous(), alpha, confidence, softness, samples)


def softness_px(sharp: Float[Tensor, "C H W D"], soft: Float[Tensor, "C H W D"]) -> float:
    """Standard deviation in px of the Gaussian blur after which ``sharp`` has as much gradient as ``soft``, all in all.

    0 where ``soft`` has no less. The two need not show the same thing at the same place.
    """

    def energy(images: np.ndarray) -> float:
        return float(np.square(np.diff(images, axis=1)).sum() + np.square(np.diff(images, axis=2)).sum())

    images, wanted = sharp.numpy(), energy(soft.numpy())
    low, high = 0.0, 0.02 * sharp.shape[1]
    if energy(images) <= wanted:
        return 0.0
    for _ in range(6):
        sigma = 0.5 * (low + high)
        blurred = np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in images])
        low, high = (sigma, high) if energy(blurred) > wanted else (low, sigma)
    return low


def softened(planes: Float[Tensor, "D H W"], sigma_px: float) -> Float[Tensor, "D H W"]:
    """Planes under a Gaussian blur, their edges continued."""
    if sigma_px < 0.2:
        return planes
    reach = math.ceil(3 * sigma_px)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    padded = functional.pad(planes[:, None], (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel), kernel.mT)[:, 0]


@dataclass(frozen=True)
class Graph:
    """Nodes spread over a surface, and how much each of N points follows its nearest ones.

    Attributes:
        follow: [N K], sparse; rows sum to one.
        edges: pairs of neighbouring nodes [E 2].
    """

    follow: csr_matrix
    edges: Int[Tensor, "E 2"]

    def __len__(self) -> int:
        return self.follow.shape[1]

    def spread(self, values: Float[Tensor, "K D"]) -> Float[Tensor, "N D"]:
        """Values at the nodes, interpolated at the points."""
        return _Product.apply(values, self.follow)

    def gathered(self, values: Float[Tensor, "N"]) -> Float[Tensor, "K"]:
        """Means at the nodes of values at the points."""
        mass = np.maximum(np.asarray(self.follow.sum(0))[0], 1e-9)
        return torch.from_numpy((self.follow.T @ values.numpy() / mass).astype(np.float32))

    def roughness(self, values: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
        """Mean squared difference between neighbouring nodes."""
        return (values[self.edges[:, 0]] - values[self.edges[:, 1]]).square().sum() / max(1, len(self.edges))


class _Product(torch.autograd.Function):
    """A sparse matrix times a dense one, differentiable in the dense one; seven times as fast as indexing."""

    @staticmethod
    def forward(ctx, values, matrix):
        ctx.matrix = matrix
        return torch.from_numpy(matrix @ values.detach().numpy())

    @staticmethod
    def backward(ctx, v_out):
        return torch.from_numpy(ctx.matrix.T @ v_out.contiguous().numpy()), None


def graph_over(points: Float[Tensor, "N 3"], nodes: int) -> Graph:
    """A graph of about ``nodes`` nodes, evenly apart amidst the points."""
    positions = points.detach().double().numpy()
    centres = cell_centres(positions, nodes)
    tree = cKDTree(centres)
    k = min(NEIGHBOURS, len(centres))
    distances, indices = tree.query(positions, k=list(range(1, k + 1)))
    # vanishing at the last one: no jump where one node takes the place of another
    weights = np.maximum(1 - distances / np.maximum(1.001 * distances[:, -1:], 1e-9), 1e-6) ** 2
    weights /= weights.sum(1, keepdims=True)
    rows = np.arange(0, k * len(positions) + 1, k)
    follow = csr_matrix((weights.astype(np.float32).ravel(), indices.ravel(), rows), (len(positions), len(centres)))
    around = tree.query(centres, k=list(range(1, min(7, len(centres)) + 1)))[1]
    edges = np.stack([np.repeat(around[:, 0], around.shape[1] - 1), around[:, 1:].ravel()], 1)
    return Graph(follow, torch.from_numpy(edges.astype(np.int64)))


def cell_centres(points: Float[np.ndarray, "N 3"], count: int) -> Float[np.ndarray, "K 3"]:
    """Means of the points in every occupied cell of the finest cubic grid that has at most ``count`` of those."""
    low = points.min(0)

    def occupied(side: float) -> tuple[np.ndarray, np.ndarray]:
        cells = np.floor((points - low) / side).astype(np.int64) @ np.array([1, 1 << 20, 1 << 40])
        return np.unique(cells, return_inverse=True, return_counts=True)[1:]

    small, large = 1e-4, float((points.max(0) - low).max()) + 1e-3
    for _ in range(16):
        side = math.sqrt(small * large)
        small, large = (side, large) if len(occupied(side)[1]) > count else (small, side)
    owner, members = occupied(large)
    return np.stack([np.bincount(owner, points[:, axis]) / members for axis in range(3)], axis=1)


@dataclass(frozen=True)
class Deformation:
    """How the posed Gaussians of an avatar may move: M joints turn, a graph carries offsets, the photo's rays hold.

    Attributes:
        means: where the Gaussians are [N 3].
        joints: the joints that may turn [M], parents first; parents: the nearest such joint above, -1 for none [M].
        centres: their positions [M 3].
        followers: how much of each Gaussian hangs on each of them and on no other below [N M].
        graph: of offsets, over the rest pose, where limbs do not touch.
        rays: directions from the photo's camera [N 3]; held: share of a motion across them that is taken away [N].
    """

    means: Float[Tensor, "N 3"]
    joints: Int[np.ndarray, "M"]
    parents: Int[np.ndarray, "M"]
    centres: Float[Tensor, "M 3"]
    followers: Float[Tensor, "N M"]
    graph: Graph
    rays: Float[Tensor, "N 3"]
    held: Float[Tensor, "N"]

    def corrections(self, rotvecs: Float[Tensor, "M 3"]) -> Float[Tensor, "M 3 4"]:
        """Rigid motions [M 3 4] of what hangs on each joint when joints turn by rotation vectors in world axes."""
        turns = _rotations(rotvecs)
        made: list[tuple[Tensor, Tensor]] = []
        for joint, parent in enumerate(self.parents):
            linear, centre = turns[joint], self.centres[joint]
            shift = centre - linear @ centre
            if parent >= 0:
                above, above_shift = made[parent]
                linear, shift = above @ linear, above @ shift + above_shift
            made.append((linear, shift))
        return torch.stack([torch.cat([linear, shift[:, None]], 1) for linear, shift in made])

    def moved(self, rotvecs: Float[Tensor, "M 3"], offsets: Float[Tensor, "K 3"]) -> Float[Tensor, "N 3"]:
        """Means after the joints have turned and the nodes have moved by ``offsets`` in metres."""
        motion = self.graph.spread(offsets)
        if len(self.joints):
            # what hangs on no joint stays: its share of the identity is missing from the sum
            blended = (self.followers @ self.corrections(rotvecs).flatten(1)).view(-1, 3, 4)
            motion = motion + (blended[..., :3] * self.means[:, None]).sum(2) + blended[..., 3]
            motion = motion - self.followers.sum(1, keepdim=True) * self.means
        along = (motion * self.rays).sum(1, keepdim=True) * self.rays
        return self.means + along + (1 - self.held[:, None]) * (motion - along)


def deformation_of(avatar: Avatar, camera: Cameras, settings: RefineSettings) -> Deformation:
    """What may move in an avatar that was made from a photo taken by ``camera``."""
    pose, parents, count = avatar.photo_pose, np.asarray(avatar.parents), len(avatar.parents)
    transforms = joint_transforms(pose.rotations[0], avatar.rest.joints, parents, pose.translations[0])
    weights = np.zeros((len(avatar.canonical), count), np.float32)
    np.add.at(weights, (np.arange(len(weights))[:, None], avatar.joint_indices), avatar.joint_weights)
    carried = weights.sum(0)
    for joint in range(count - 1, -1, -1):
        if parents[joint] >= 0:
            carried[parents[joint]] += carried[joint]
    # not the root: the photo cannot tell its turns from the camera's
    joints = np.nonzero((carried >= settings.joint_share * len(weights)) & (parents >= 0))[0]
    leaders = _leaders(parents, joints)
    followers = np.zeros((len(weights), len(joints)), np.float32)
    for joint in np.nonzero(leaders >= 0)[0]:
        followers[:, leaders[joint]] += weights[:, joint]
    centres = np.einsum("jab,jb->ja", transforms[:, :3, :3], avatar.rest.joints) + transforms[:, :3, 3]
    means, seen = avatar.gaussians().means, torch.from_numpy(avatar.visibility.astype(np.float32))
    graph = graph_over(avatar.canonical.means, settings.nodes)
    # only what something else hides goes where it likes
    behind = (2 * graph.spread(graph.gathered(seen)[:, None])[:, 0]).clamp(max=1)
    return Deformation(
        means, joints, leaders[parents[joints]], torch.from_numpy(centres[joints].astype(np.float32)),
        torch.from_numpy(followers), graph, functional.normalize(means - camera.positions()[0], dim=1),
        torch.maximum(seen, settings.hold_behind * behind),
    )  # fmt: skip


def turned_pose(avatar: Avatar, deformation: Deformation, rotvecs: Float[Tensor, "M 3"]) -> BodyPose:
    """The avatar's photo pose after its joints have turned by rotation vectors in world axes."""
    if not len(deformation.joints):
        return avatar.photo_pose
    pose, parents = avatar.photo_pose, np.asarray(avatar.parents)
    linear = joint_transforms(pose.rotations[0], avatar.rest.joints, parents, pose.translations[0])[:, :3, :3]
    turns = deformation.corrections(rotvecs.detach())[:, :, :3].double().numpy()
    leaders = _leaders(parents, deformation.joints)
    linear = np.where((leaders >= 0)[:, None, None], turns[leaders] @ linear, linear)
    rotations = np.where((parents >= 0)[:, None, None], linear[parents].transpose(0, 2, 1) @ linear, linear)
    return BodyPose(rotations[None].astype(pose.rotations.dtype), pose.translations)


def refine(
    avatar: Avatar,
    photo: Views,
    views: Views,
    settings: RefineSettings = RefineSettings(),
    progress: Progress = Silent(),
    seed: int = 0,
    view_weight: float = 1.0,
) -> Avatar:
    """The avatar fitted to the photo and to restored views of it.

    Minimises weight * [(1 - w) L1 + w (1 - SSIM) + a L1 of alpha] (3DGS, Kerbl et al. 2023, Eq. 7) of one random image
    per step over a random grey, the same difference in coarser images, and priors on the motion; then the photo alone.

    Args:
        avatar: coarse, or of an earlier round; its photo pose may change.
        photo: the photo's window (C = 1).
        views: the restored views in the avatar's world, view 0 the photo's; it is not looked at.
    """
    coarse = avatar.gaussians()
    deformation = deformation_of(avatar, photo.cameras, settings)
    surroundings = _surroundings(avatar.canonical.means)
    seen = torch.from_numpy(avatar.visibility.astype(np.float32))
    tinted = graph_over(avatar.canonical.means, settings.colour_nodes) if settings.smooth_colours else None

    rotvecs = torch.zeros(len(deformation.joints), 3).requires_grad_()
    offsets = torch.zeros(len(deformation.graph), 3).requires_grad_()
    tints = torch.zeros(len(tinted) if tinted else 1, 3).requires_grad_()
    colours, log_scales = (torch.zeros(len(coarse), 3).requires_grad_() for _ in range(2))
    logits = torch.logit(coarse.opacities.clamp(0.01, 0.99)).requires_grad_()
    warps, gains = torch.zeros(len(views), 2, 3).requires_grad_(), torch.zeros(len(views), 3).requires_grad_()
    quats, scales = coarse.quats, coarse.scales

    def current() -> Gaussians:
        change = colours + (1 - seen[:, None]) * tinted.spread(tints) if tinted else colours
        sh = torch.cat([coarse.sh[:, :1] + change[:, None] / SH_C0, coarse.sh[:, 1:]], 1)
        factors = torch.exp(log_scales.clamp(math.log(SMALLEST), math.log(LARGEST)))
        return Gaussians(deformation.moved(rotvecs, offsets), quats, scales * factors, torch.sigmoid(logits), sh)

    early = round(settings.iterations * settings.geometry_share)
    geometry = [(rotvecs, settings.joint_rate), (offsets, settings.offset_rate)]
    looks = [(tints, settings.colour_rate), (colours, settings.colour_rate), (logits, settings.opacity_rate),
             (log_scales, settings.scale_rate)]  # fmt: skip
    if settings.residual_prior is not None:
        looks += [(warps, WARP_RATE), (gains, GAIN_RATE)]
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in geometry + looks]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    begins = [0] * len(geometry) + [early] * len(looks)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, [_rise_and_fall(settings.iterations, begin) for begin in begins]
    )

    chances = _shares(len(views), settings.side_weights) * (views.confidence.amax((1, 2)) > 0)
    chances *= (1 - settings.photo_share) / chances.sum().clamp(min=1e-9)
    chances[0] = settings.photo_share
    generator = torch.Generator().manual_seed(seed)
    progress.start("refine", settings.iterations + settings.polish)
    for step in range(settings.iterations):
        if step and step % settings.follow_every == 0:
            with torch.no_grad():
                quats, scales = stretched(coarse, deformation.moved(rotvecs, offsets), surroundings)
        index = int(torch.multinomial(chances, 1, generator=generator))
        background = torch.rand(1, generator=generator).expand(3).contiguous()
        images = views if index else photo
        rendered = rasterize(current(), images.cameras[index], background=background, supersample=images.supersample)
        rgb, alpha = images.rgb[index], images.alpha[index]
        if index and settings.residual_prior is not None:
            rgb, alpha = _as_seen(rgb, alpha, warps[index], gains[index])
        made = torch.cat([rendered.rgb[0], rendered.alpha[0][..., None]], -1)
        made = softened(made.permute(2, 0, 1), images.softness_px).permute(1, 2, 0)
        loss = image_loss(made, rgb, alpha, images.confidence[index], background, settings)
        loss = loss * (view_weight if index else settings.photo_weight)
        loss = loss + settings.joint_prior * rotvecs.square().sum() / max(1, len(rotvecs))
        loss = loss + settings.offset_prior * offsets.square().sum(1).mean()
        loss = loss + settings.smoothness * deformation.graph.roughness(offsets)
        if settings.residual_prior is not None:
            loss = loss + settings.residual_prior * (warps.square().sum() + gains.square().sum())
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        # each image teaches what it is right about: the photo what it saw, the views the rest
        taught = 1 - settings.seen_doubt * seen if index else seen
        logits.grad *= taught
        log_scales.grad *= taught[:, None]
        colours.grad *= (1 - seen[:, None]) * float(index > 0 and not settings.smooth_colours)
        optimizer.step()
        schedule.step()
        progress.advance()
    with torch.no_grad():
        quats, scales = stretched(coarse, deformation.moved(rotvecs, offsets), surroundings)
        fitted = current()
    fitted = fit_image(
        fitted, photo.cameras, photo.rgb[0], photo.alpha[0], settings.polish, generator, seen > 0.5, progress=progress
    )
    return carried_back(replace(avatar, photo_pose=turned_pose(avatar, deformation, rotvecs)), fitted)


def refine_in_rounds(
    avatar: Avatar,
    photo: Views,
    restored: Callable[[Avatar, int], Views],
    settings: RefineSettings = RefineSettings(),
    progress: Progress = Silent(),
    seed: int = 0,
    fit: Callable[..., Avatar] = refine,
) -> tuple[Avatar, list[dict[str, float]]]:
    """The best avatar of several rounds of restoring its views and fitting to them, and what each round did.

    Every round keeps a sixth of the views apart, other ones each time, and counts as better where the avatar comes to
    agree with those it has not seen. A round that does not, or that harms the photo, is undone and the last.

    Args:
        restored: views of an avatar, restored for that round, from 0; always through the same cameras.
        fit: makes an avatar of the last one as ``refine`` does, with its arguments.
    """
    window = photo.cameras, photo.rgb[0], photo.alpha[0]
    first_db = photo_scores(avatar.gaussians(), *window)["front_psnr_db"]
    bank: Views | None = None
    rounds = []
    for turn in range(len(settings.sigmas)):
        found = restored(avatar, turn)
        bank = found if bank is None else mixed(bank, found, settings.bank)
        apart = torch.arange(len(bank)) % 6 == (3 + turn) % 6
        hidden = bank.select(torch.nonzero(apart)[:, 0])
        shown = replace(bank, confidence=bank.confidence * ~apart[:, None, None])
        weight = settings.round_weights[min(turn, len(settings.round_weights) - 1)]
        candidate = fit(avatar, photo, shown, settings, progress, seed + turn, weight)
        scores = photo_scores(candidate.gaussians(), *window)
        before_db, after_db = agreement(avatar, hidden), agreement(candidate, hidden)
        lost_db = first_db - scores["front_psnr_db"]
        better = after_db - before_db >= settings.gain_db and lost_db <= settings.loss_db
        rounds.append({"held_out_before_db": before_db, "held_out_after_db": after_db, "photo_lost_db": lost_db,
                       "kept": float(better)})  # fmt: skip
        if not better:
            break
        avatar = replace(candidate, scores={**candidate.scores, **scores})
    return avatar, rounds


def mixed(bank: Views, views: Views, share: float) -> Views:
    """``bank`` with that share of every view replaced, as covered colour."""
    alpha = torch.lerp(bank.alpha, views.alpha, share)
    rgb = torch.lerp(bank.rgb * bank.alpha[..., None], views.rgb * views.alpha[..., None], share)
    return Views(
        views.cameras, rgb / alpha.clamp(min=1e-4)[..., None], alpha,
        torch.lerp(bank.confidence, views.confidence, share), max(bank.softness_px, views.softness_px),
        views.supersample,
    )  # fmt: skip


def trust(
    alpha: Float[Tensor, "C H W"], restored_alpha: Float[Tensor, "C H W"], doubt: float, reach_px: int = 5
) -> Float[Tensor, "C H W"]:
    """Confidence of restored pixels: 1, less up to ``doubt`` within ``reach_px`` of where the silhouettes differ."""
    different = (alpha - restored_alpha).abs().numpy()
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1, 2 * reach_px + 1))
    widened = np.stack([cv2.dilate(plane, disc) for plane in different])
    return torch.from_numpy(1 - doubt * np.clip(widened, 0, 1))


def carried_back(avatar: Avatar, gaussians: Gaussians) -> Avatar:
    """The avatar whose Gaussians, posed as in its photo, are ``gaussians``."""
    pose = avatar.photo_pose
    transforms = joint_transforms(pose.rotations[0], avatar.rest.joints, avatar.parents, pose.translations[0])
    to_photo = blend(avatar.joint_indices, avatar.joint_weights, transforms)
    return replace(avatar, canonical=posed(gaussians.detach(), inverse_transforms(to_photo)))


def image_loss(
    made: Float[Tensor, "H W 4"],
    rgb: Float[Tensor, "H W 3"],
    alpha: Float[Tensor, "H W"],
    confidence: Float[Tensor, "H W"],
    background: Float[Tensor, "3"],
    settings: RefineSettings,
) -> Float[Tensor, ""]:
    """How far a render over ``background``, with alpha, is from an image of straight colours, where that is trusted."""
    target = torch.cat([rgb * alpha[..., None] + background * (1 - alpha[..., None]), alpha[..., None]], -1)
    image, trusted = made[..., :3].contiguous(), confidence[..., None]
    difference = (made - target) * trusted
    # round at zero (Huber 1964), or equal images would still shake what makes them
    sizes = functional.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=ROUND)
    loss = (1 - settings.ssim_weight) * sizes[..., :3].mean() + settings.alpha_weight * sizes[..., 3].mean()
    # where nothing is known the target is the render itself, so that nothing is asked for there
    known = torch.lerp(image.detach(), target[..., :3].detach(), trusted)
    loss = loss + settings.ssim_weight * (1 - ssim(image, known))
    planes = difference.permute(2, 0, 1)[None]
    for side in PYRAMID_PX:
        if min(planes.shape[-2:]) >= side:
            loss = loss + settings.pyramid_weight * functional.avg_pool2d(planes, side).square().mean()
    return loss


def stretched(
    before: Gaussians, means: Float[Tensor, "N 3"], surroundings: Int[Tensor, "N k"]
) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "N 3"]]:
    """Rotations and scales of Gaussians whose means have moved: covariances A Sigma A^T.

    A is the linear map that best takes the offsets to the surrounding means from where they were to where they are,
    drawn to the identity where those lie in a plane and leave it open.
    """
    was = before.means[surroundings] - before.means[:, None]
    now = means[surroundings] - means[:, None]
    ridge = (0.02 * was.square().sum((1, 2)) + 1e-12)[:, None, None] * torch.eye(3)
    linear = (inverse_matrices(was.mT @ was + ridge) @ (was.mT @ now + ridge)).mT
    factors = linear @ (rotation_matrices(before.quats) * before.scales[:, None, :])
    quats, scales = axes_of_factors(factors.double().numpy())
    largest = before.scales.max(1, keepdim=True).values * STRETCH
    return torch.from_numpy(quats), torch.minimum(torch.from_numpy(scales), largest)


def agreement(avatar: Avatar, views: Views) -> float:
    """PSNR in dB of the avatar over white against views, inside the union of both masks, weighted by confidence."""
    gaussians, white = avatar.gaussians(), torch.ones(3)
    squared, total = 0.0, 0.0
    for index in range(len(views)):
        with torch.no_grad():
            rendered = rasterize(gaussians, views.cameras[index], background=white, supersample=views.supersample)
        alpha = views.alpha[index]
        target = views.rgb[index] * alpha[..., None] + 1 - alpha[..., None]
        weight = ((rendered.alpha[0] > 0.5) | (alpha > 0.5)) * views.confidence[index]
        share = float(weight.sum())
        if share > 0:
            image = softened(rendered.rgb[0].permute(2, 0, 1), views.softness_px).permute(1, 2, 0)
            squared += share * 10 ** (-0.1 * float(psnr(image, target, weight)))
            total += share
    return -10 * math.log10(max(squared / max(total, 1e-9), 1e-10))


def _leaders(parents: Int[np.ndarray, "J"], joints: Int[np.ndarray, "M"]) -> Int[np.ndarray, "J"]:
    """For every joint the place in ``joints`` of itself or the nearest one above it, -1 for none."""
    leaders = np.full(len(parents), -1, np.int64)
    leaders[joints] = np.arange(len(joints))
    for joint, parent in enumerate(parents):
        if leaders[joint] < 0 and parent >= 0:
            leaders[joint] = leaders[parent]
    return leaders


def _rotations(rotvecs: Float[Tensor, "M 3"]) -> Float[Tensor, "M 3 3"]:
    """exp of rotation vectors, differentiable at zero too."""
    x, y, z = rotvecs.unbind(1)
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3))


def _surroundings(points: Float[Tensor, "N 3"]) -> Int[Tensor, "N k"]:
    """Indices of the nearest other points."""
    k = min(SURROUNDINGS, len(points) - 1)
    return torch.from_numpy(cKDTree(points.numpy()).query(points.numpy(), k=list(range(2, k + 2)))[1].astype(np.int64))


def _shares(count: int, side_weights: tuple[float, float, float]) -> Float[Tensor, "C"]:
    """Factors of the chances of an even orbit's views, by how far from the photo they look; 0 for view 0."""
    away = ((torch.arange(count) * 360.0 / count + 180.0) % 360.0 - 180.0).abs()
    near, side, far = side_weights
    chances = torch.where(away <= 60, near, torch.where(away <= 120, side, far)).float()
    chances[0] = 0.0
    return chances


def _rise_and_fall(steps: int, start: int) -> Callable[[int], float]:
    """A factor of step sizes: 0 before ``start``, 1 within 10 steps from there, then down to 0 along a cosine."""

    def factor(step: int) -> float:
        if not start <= step < steps:
            return 0.0
        return min(1.0, (step - start + 1) / 10) * 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))

    return factor


def _as_seen(
    rgb: Float[Tensor, "H W 3"], alpha: Float[Tensor, "H W"], warp: Float[Tensor, "2 3"], gain: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W"]]:
    """A view after an affine warp, whose unit is half the image, and a gain."""
    image = torch.cat([rgb * alpha[..., None], alpha[..., None]], -1).permute(2, 0, 1)[None]
    grid = functional.affine_grid((torch.eye(2, 3) + warp)[None], list(image.shape), align_corners=False)
    moved = functional.grid_sample(image, grid, align_corners=False, padding_mode="border")[0].permute(1, 2, 0)
    return moved[..., :3] / moved[..., 3:].clamp(min=1e-4) * (1 + gain), moved[..., 3]
