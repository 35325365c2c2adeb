"""Skirts: how they are told from trousers, their round shape, what they follow, and the legs beneath, which show once
they move."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from ..bodies.base import PARTS, BodyModel, RestBody
from ..camera import Cameras
from ..gaussians import Gaussians
from ..mesh import depth_buffer, project, sample_surface, unproject, vertex_normals
from .base import axes_of_factors, strongest
from .surface import Points, Sheet, discs

LEGS = PARTS.index("upper_leg"), PARTS.index("lower_leg")
LEVEL_M = 0.01  # height of the slices in which a skirt is looked for
BRIDGED, SHORTEST = 0.55, 6  # of the gap between the legs, and over how many slices, for a skirt
BELOW_HEM = 0.3  # trousers end less suddenly: as much of the gap may be bridged below a skirt's hem
FADE_M = (0.08, -0.02)  # above the crotch, where the skirt's own weights begin and where they are all
BENEATH_M, LEG_DISC_M = 0.02, 0.006  # how far under the body's skin the hidden legs lie; standard deviation of a disc
SHOWN_LEG_M = 0.08  # below the hem, whence the hidden legs take their colour
FEW = 30  # Gaussians of that leg, fewer of which tell no colour
# In the photo: what of the gap between the legs is filled in a row of a skirt, how many centimetres of such rows make one,
# above which it begins to be round, and how deep it is for its width.
FILLED, SHORTEST_M, FLARE_M, DEEP = 0.9, 0.06, 0.2, 0.6
HOLDS = 0.9  # of those rows hold both bare legs
# Spacing of the far side's discs, the outermost of the photo's columns that lends colour, and from what share
# and half width on a row has a far side of its own.
SHELL_M, EDGE, ROUND_ENOUGH, NARROWEST_M = 0.007, 0.96, 0.5, 0.02


def skirted(
    means: Float[np.ndarray, "N 3"],
    vertices: Float[np.ndarray, "V 3"],
    vertex_parts: Integer[np.ndarray, "V"],
    joint_indices: Integer[np.ndarray, "N 8"],
    joint_weights: Float[np.ndarray, "N 8"],
    parts: Integer[np.ndarray, "N"],
) -> tuple[Integer[np.ndarray, "N 8"], Float[np.ndarray, "N 8"]]:
    """Weights of a skirt that goes from one leg to the other instead of following both, which tears it like shorts.

    At every height the outer edges follow their legs, and what lies between is blended smoothly across. Without a skirt
    (``hem_of``) nothing changes.

    Args:
        means: Gaussians in the rest pose, metres; vertices, vertex_parts: the body's, likewise.
        joint_indices, joint_weights: what each follows now; parts: indices into ``PARTS``.
    """
    crotch, hem = hem_of(means, vertices, vertex_parts)
    if hem is None:
        return joint_indices, joint_weights
    cloth = np.flatnonzero(
        np.isin(parts, [PARTS.index("torso"), *LEGS])
        & (means[:, 1] < crotch + FADE_M[0])
        & (means[:, 1] > hem - LEVEL_M)
    )
    joints, columns = np.unique(joint_indices[cloth], return_inverse=True)
    weights = np.zeros((len(cloth), len(joints)), np.float32)
    np.add.at(weights, (np.arange(len(cloth))[:, None], columns.reshape(len(cloth), -1)), joint_weights[cloth])
    level = np.floor((means[cloth, 1] - hem) / LEVEL_M).astype(int) + 1
    across = np.empty(len(cloth), np.float32)
    left, right = np.zeros((2, level.max() + 1, len(joints)), np.float32)
    for index in range(level.max() + 1):
        here = np.flatnonzero(level == index)
        if not len(here):
            continue
        x = means[cloth[here], 0]
        low, high = np.quantile(x, [0.02, 0.98])
        share = np.clip((x - low) / max(high - low, 1e-6), 0, 1)
        across[here] = share * share * (3 - 2 * share)
        for side, edge in ((right, share <= 0.25), (left, share >= 0.75)):
            side[index] = weights[here[edge]].mean(0)
    blended = left[level] * across[:, None] + right[level] * (1 - across[:, None])
    share = np.clip((crotch + FADE_M[0] - means[cloth, 1]) / (FADE_M[0] - FADE_M[1]), 0, 1).astype(np.float32)[:, None]
    indices, values = strongest((1 - share) * weights + share * blended)
    joint_indices, joint_weights = joint_indices.copy(), joint_weights.copy()
    joint_indices[cloth], joint_weights[cloth] = joints[indices].astype(joint_indices.dtype), values
    return joint_indices, joint_weights


def hem_of(
    means: Float[np.ndarray, "N 3"], vertices: Float[np.ndarray, "V 3"], vertex_parts: Integer[np.ndarray, "V"]
) -> tuple[float, float | None]:
    """Height of the crotch of a body at rest, and of a skirt's hem: None where no cloth bridges the legs below it.

    The body stands with its legs apart, its middle at x = 0. A skirt fills the gap between them down to where it ends at
    once; trousers with a low crotch fill less and less of it.
    """
    middle = vertices[np.abs(vertices[:, 0]) < 0.02, 1]
    if not len(middle):
        return 0.0, None
    crotch = float(middle.min())
    legs = np.isin(vertex_parts, LEGS)
    filled = []
    for y in crotch - LEVEL_M * np.arange(60):
        x = vertices[legs & (np.abs(vertices[:, 1] - y) < 2 * LEVEL_M), 0]
        if not (x > 0).any() or not (x < 0).any():
            break
        low, high = x[x < 0].max(), x[x > 0].min()
        edges = np.linspace(low, high, max(3, int((high - low) / LEVEL_M)) + 1)
        near = np.abs(means[:, 1] - y) < 0.6 * LEVEL_M
        filled.append(float((np.histogram(means[near, 0], edges)[0] > 0).mean()))
    share = np.array([*filled, 0.0, 0.0, 0.0, 0.0])
    bridged = share >= BRIDGED
    ends = np.flatnonzero(~bridged[:-1] & ~bridged[1:])
    end = int(ends[0]) if len(ends) else 0
    if end < SHORTEST or share[end + 1 : end + 4].mean() > BELOW_HEM:
        return crotch, None
    return crotch, crotch - LEVEL_M * end


def legs_beneath(
    gaussians: Gaussians,
    visibility: Float[np.ndarray, "N"],
    parts: Integer[np.ndarray, "N"],
    rest: RestBody,
    model: BodyModel,
    rng: np.random.Generator,
) -> tuple[Gaussians, Integer[np.ndarray, "P 8"], Float[np.ndarray, "P 8"], Integer[np.ndarray, "P"]] | None:
    """Legs under a skirt, in rest pose, with their weights and parts; None where there is no skirt or no leg shows below.

    They lie inside the body, where neither the photo nor the avatar at rest shows them, and have the colour of the leg
    just below the hem.

    Args:
        gaussians: the avatar in rest pose; visibility: how much of each the photo shows; parts: indices into ``PARTS``.
    """
    means = gaussians.means.numpy()
    crotch, hem = hem_of(means, rest.vertices, model.parts)
    if hem is None:
        return None
    bare = np.isin(parts, LEGS) & (visibility > 0.5) & (means[:, 1] < hem) & (means[:, 1] > hem - SHOWN_LEG_M)
    if bare.sum() < FEW:
        return None
    faces = model.faces[np.isin(model.parts[model.faces], LEGS).all(1)]
    heights = rest.vertices[faces, 1]
    faces = faces[(heights.max(1) > hem - LEVEL_M) & (heights.min(1) < crotch + FADE_M[0])]
    corners = rest.vertices[faces]
    area_m2 = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    index, barycentric = sample_surface(rest.vertices, faces, round(area_m2 / LEG_DISC_M**2), rng)
    triangles = faces[index]
    normals = np.einsum("pk,pka->pa", barycentric, vertex_normals(rest.vertices, model.faces)[triangles])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    places = np.einsum("pk,pka->pa", barycentric, rest.vertices[triangles]) - BENEATH_M * normals
    quats, scales = axes_of_factors(discs(normals, LEG_DISC_M, 0.25 * LEG_DISC_M))
    colour = gaussians.sh[torch.from_numpy(bare)].median(0, keepdim=True).values
    made = Gaussians(
        torch.from_numpy(places.astype(np.float32)), torch.from_numpy(quats), torch.from_numpy(scales),
        torch.full((len(places),), 0.95), colour.expand(len(places), -1, -1).contiguous(),
    )  # fmt: skip
    weights = np.einsum("pk,pkj->pj", barycentric.astype(np.float32), model.weights[triangles])
    nearest = triangles[np.arange(len(triangles)), barycentric.argmax(1)]
    return made, *strongest(weights), model.parts[nearest].astype(parts.dtype)


@dataclass(frozen=True)
class Bell:
    """A skirt in a photo, every row an ellipse round the legs.

    Attributes:
        first: its topmost row; left, right: its edges in each of R rows, px.
        depth: of its axis along the optical axis; half_depth: of the ellipse along it, metres [R].
        share: how far each row is an ellipse already and no longer the body's, in [0, 1].
    """

    first: int
    left: Float[np.ndarray, "R"]
    right: Float[np.ndarray, "R"]
    depth: Float[np.ndarray, "R"]
    half_depth: Float[np.ndarray, "R"]
    share: Float[np.ndarray, "R"]


def bell_of(
    alpha: Float[np.ndarray, "H W"], vertices: Float[np.ndarray, "V 3"], model: BodyModel, camera: Cameras
) -> Bell | None:
    """The skirt that a matte shows round the legs of a bare body ``vertices`` (world, metres), or None.

    It fills the gap between the legs from the crotch downwards without a break, holds both legs, and ends at once. Where
    the frame cuts the legs off nothing is known of it.
    """
    on_legs = np.isin(model.parts, LEGS)
    if not on_legs.any():
        return None
    buffer = depth_buffer(vertices, model.faces, camera)
    part = np.where(buffer.covered, model.parts[model.faces[buffer.face, 0]], -1)
    legs = np.isin(part, LEGS)
    inside = (alpha >= 0.5) & ~(buffer.covered & ~legs & (part != PARTS.index("torso")))
    _, depths = project(vertices, camera)
    pixel_m = float(np.median(depths[on_legs])) / camera.Ks[0, 0, 0].item()
    rows = np.flatnonzero(legs.any(1))
    filled = np.full(len(alpha), np.nan)
    for row in rows:
        columns = np.flatnonzero(legs[row])
        gap = ~buffer.covered[row, columns[0] : columns[-1] + 1]
        if gap.sum() * pixel_m > LEVEL_M:
            filled[row] = inside[row, columns[0] : columns[-1] + 1][gap].mean()
    open_rows = np.flatnonzero(~np.isnan(filled))
    if not len(open_rows):
        return None
    crotch = open_rows[0]
    below = open_rows[filled[open_rows] < FILLED]
    patient = max(1, round(LEVEL_M / pixel_m))
    ends = [row for row in below if (filled[row : row + patient] < FILLED).all()]
    hem = int(ends[0]) if ends else int(rows[-1]) + 1
    after = filled[hem : hem + max(1, round(0.04 / pixel_m))]
    after = after if len(after) else np.zeros(1)
    if (hem - crotch) * pixel_m < SHORTEST_M or np.nan_to_num(after).mean() > BELOW_HEM:
        return None
    first = max(int(crotch - FLARE_M / pixel_m), 0)
    middle = 0.5 * (np.flatnonzero(legs[crotch])[[0, -1]].sum())
    left, right = np.zeros((2, hem - first))
    for index, row in enumerate(range(first, hem)):
        outside = np.flatnonzero(~inside[row])
        left[index] = outside[outside < middle].max(initial=-1) + 1
        right[index] = outside[outside > middle].min(initial=alpha.shape[1])
    held = [left[row - first] <= columns[0] + patient and right[row - first] >= columns[-1] + 1 - patient
            for row in range(crotch, hem) if len(columns := np.flatnonzero(legs[row]))]  # fmt: skip
    if np.mean(held) < HOLDS or rows[-1] >= len(alpha) - 1 or hem >= len(alpha) - 1:
        return None
    pixels, _ = project(vertices[on_legs], camera)
    axis = np.array([_mean_near(depths[on_legs], pixels[:, 1], row, 0.03 / pixel_m) for row in range(first, hem)])
    axis = np.where(np.isnan(axis), np.nanmean(axis), axis)
    smooth = 0.03 / pixel_m
    half_depth = DEEP * gaussian_filter1d(0.5 * (right - left), smooth, mode="nearest") * pixel_m
    share = np.clip((np.arange(first, hem) - first) * pixel_m / FLARE_M, 0, 1)
    return Bell(first, left, right, gaussian_filter1d(axis, smooth, mode="nearest"), half_depth, share)


def _mean_near(values: np.ndarray, places: np.ndarray, at: float, reach: float) -> float:
    near = np.abs(places - at) < reach
    return float(values[near].mean()) if near.any() else float("nan")


def bulged(sheet: Sheet, bell: Bell) -> Sheet:
    """The photo's sheet with the skirt's front bulged out to its ellipse, never in; its far side is ``bell_back``'s."""
    depth, on_body = sheet.depth.copy(), sheet.on_body.copy()
    rows = slice(bell.first, bell.first + len(bell.left))
    x = np.arange(depth.shape[1]) + 0.5
    across = (2 * x - bell.left[:, None] - bell.right[:, None]) / np.maximum(bell.right - bell.left, 1)[:, None]
    front = bell.depth[:, None] - bell.half_depth[:, None] * np.sqrt(np.clip(1 - across**2, 0, 1))
    cloth = (np.abs(across) < 1) & ~np.isnan(depth[rows])
    front = np.minimum(depth[rows], depth[rows] + bell.share[:, None] * (front - depth[rows]))
    depth[rows] = np.where(cloth, front, depth[rows])
    on_body[rows] |= cloth & (bell.share[:, None] >= ROUND_ENOUGH)
    return replace(sheet, depth=depth, on_body=on_body)


def bell_back(
    bell: Bell, vertices: Float[np.ndarray, "V 3"], model: BodyModel, camera: Cameras
) -> tuple[Points, Int[np.ndarray, "P 2"]]:
    """The sides and back of the skirt, and the pixels (row, column) of the photo that lend each point its colour.

    Args:
        vertices: of the clothed body, world, metres; the nearest one of the legs carries a point.
    """
    pixel_m = float(np.median(bell.depth)) / camera.Ks[0, 0, 0].item()
    parts: list[np.ndarray] = []
    for index in range(0, len(bell.left), max(1, round(SHELL_M / pixel_m))):
        half_m = 0.5 * (bell.right[index] - bell.left[index]) * pixel_m
        if bell.share[index] < ROUND_ENOUGH or half_m < NARROWEST_M:
            continue
        count = max(8, round(np.pi * (half_m + bell.half_depth[index]) / SHELL_M))
        angles = np.arange(count) * (2 * np.pi / count)
        angles = angles[np.cos(angles) < 0.5]
        row = np.full(len(angles), bell.first + index + 0.5)
        x = 0.5 * (bell.left[index] + bell.right[index] + np.sin(angles) * (bell.right[index] - bell.left[index]))
        z = bell.depth[index] - bell.half_depth[index] * np.cos(angles)
        # a row is a ray fan: the far side of the ellipse must not grow with its distance
        x = camera.Ks[0, 0, 2].item() + (x - camera.Ks[0, 0, 2].item()) * bell.depth[index] / z
        lender = 0.5 * (
            bell.left[index] + bell.right[index] + EDGE * np.sin(angles) * (bell.right[index] - bell.left[index])
        )
        normal = np.stack([np.sin(angles) / half_m, np.zeros(len(angles)), -np.cos(angles) / bell.half_depth[index]], 1)
        parts.append(np.concatenate([np.stack([x, row, z, lender], 1), normal], 1))
    made = np.concatenate(parts) if parts else np.zeros((0, 7))
    means = unproject(made[:, 0], made[:, 1], made[:, 2], camera)
    normals = made[:, 4:] @ camera.viewmats[0, :3, :3].double().numpy()
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    faces = model.faces[np.isin(model.parts[model.faces], LEGS).all(1)]
    corners = np.unique(faces)
    face_of = np.zeros(len(vertices), np.int64)
    face_of[faces[:, 0]], face_of[faces[:, 1]], face_of[faces[:, 2]] = (np.arange(len(faces)),) * 3
    nearest = corners[cKDTree(vertices[corners]).query(means)[1]] if len(means) else np.zeros(0, np.int64)
    triangles = faces[face_of[nearest]]
    barycentric = (triangles == nearest[:, None]).astype(float)
    points = Points(
        means, discs(normals, 0.9 * SHELL_M, 0.25 * SHELL_M), normals, project(means, camera)[0], triangles, barycentric
    )
    last = np.array([camera.height - 1, camera.width - 1])
    return points, np.clip(np.stack([made[:, 1], made[:, 3]], 1).astype(np.int64), 0, last)
