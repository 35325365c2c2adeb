"""Skirts: how they are told from trousers, what they follow, and the legs beneath, which show once they move."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Integer

from ..bodies.base import PARTS, BodyModel, RestBody
from ..gaussians import Gaussians
from ..mesh import sample_surface, vertex_normals
from .base import axes_of_factors, strongest
from .surface import discs

LEGS = PARTS.index("upper_leg"), PARTS.index("lower_leg")
LEVEL_M = 0.01  # height of the slices in which a skirt is looked for
BRIDGED, SHORTEST = 0.55, 6  # of the gap between the legs, and over how many slices, for a skirt
BELOW_HEM = 0.3  # trousers end less suddenly: as much of the gap may be bridged below a skirt's hem
FADE_M = (0.08, -0.02)  # above the crotch, where the skirt's own weights begin and where they are all
BENEATH_M, LEG_DISC_M = 0.02, 0.006  # how far under the body's skin the hidden legs lie; standard deviation of a disc
SHOWN_LEG_M = 0.08  # below the hem, whence the hidden legs take their colour
FEW = 30  # Gaussians of that leg, fewer of which tell no colour


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
