"""From a bare body to a clothed one: a displacement along the body's normals that meets the photo's silhouette."""

from __future__ import annotations

import cv2
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as sparse_linalg
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from ..bodies.base import PARTS
from ..camera import Cameras
from ..mesh import depth_buffer, project, uniform_laplacian, vertex_normals

INWARD_M, OUTWARD_M = -0.03, 0.13  # a fitted body is at most this much too fat; a coat or a hairdo sticks out this far
SHOE_M = 0.035  # a shoe is this much larger than its foot
MATCH_M = 0.12  # an outline further away than this belongs to something else: a bag, a wide skirt
CLAIM_M = 0.02
STIFFNESS = (300.0, 30.0)  # weight of the bending energy, first and last round: smooth first, detail later
RIGID = 30.0  # pull to zero of hands and face, which clothes do not cover
LOOSE = 2e-3  # pull to zero elsewhere
ROUNDS = 6
WORKING_PX_PER_M = 260.0


def displacement(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    parts: Int[np.ndarray, "V"],
    facing: Float[np.ndarray, "V"],
    camera: Cameras,
    alpha: Float[np.ndarray, "H W"],
) -> Float[np.ndarray, "V"]:
    """Outward displacement in metres of every vertex of a posed body [V], along its vertex normals.

    Minimises sum over outline matches of (n_2d . m delta_v - e)^2 + stiffness |L delta|^2 + anchors |delta|^2, where e is the
    distance between the body's outline and the matte's, m the matte's normal and L the mesh Laplacian: what the outline
    says about a sleeve's width is carried round the arm. Matches are renewed ``ROUNDS`` times.

    Args:
        vertices: posed body, world metres [V 3].
        facing: z component of the rest body's normals [V]: 1 is the front of the face.
        camera: the photo's camera (C = 1), of the matte's size.
        alpha: matte [H W] in [0, 1].
    """
    depth_m = float(np.median((vertices @ camera.viewmats[0, 2, :3].numpy()) + camera.viewmats[0, 2, 3].item()))
    scale = WORKING_PX_PER_M / (camera.Ks[0, 0, 0].item() / depth_m)
    if scale < 1.0:
        width, height = max(8, round(alpha.shape[1] * scale)), max(8, round(alpha.shape[0] * scale))
        camera = camera.resampled(scale, 0.0, 0.0, width, height)
        alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)
    matte_outline = _outline(alpha > 0.5)
    border = 2.0
    inside_frame = (
        (matte_outline[:, 0] > border)
        & (matte_outline[:, 1] > border)
        & (matte_outline[:, 0] < camera.width - border)
        & (matte_outline[:, 1] < camera.height - border)
    )
    matte_outline = matte_outline[inside_frame]
    delta = np.zeros(len(vertices))
    if len(matte_outline) < 16:
        return delta

    normals = vertex_normals(vertices, faces)
    start_px, start_depth = project(vertices, camera)
    # pixels that one metre along the normal moves a vertex in the image
    normals_px = (project(vertices + 1e-3 * normals, camera)[0] - start_px) / 1e-3
    px_per_m = camera.Ks[0, 0, 0].item() / start_depth

    face_front = (parts == PARTS.index("head")) & (facing > 0.1)
    hands = parts == PARTS.index("hand")
    outward_limit = np.where(parts == PARTS.index("foot"), SHOE_M, OUTWARD_M)
    anchors = np.where(face_front | hands, RIGID, LOOSE)
    laplacian = uniform_laplacian(faces, len(vertices))
    bending = (laplacian.T @ laplacian).tocsc()
    matte_tree = cKDTree(matte_outline[:, :2])
    for step in range(ROUNDS):
        moved = vertices + delta[:, None] * normals
        buffer = depth_buffer(moved, faces, camera)
        body_outline = _outline(buffer.covered)
        if len(body_outline) < 16:
            break
        moved_px, _ = project(moved, camera)
        visible = np.unique(faces[np.unique(buffer.face[buffer.covered])])
        distance, nearest = cKDTree(moved_px[visible]).query(body_outline[:, :2])
        keep = distance < 4.0
        body_outline, owner = body_outline[keep], visible[nearest[keep]]
        reach_px = MATCH_M * float(np.median(px_per_m))
        to_matte, found = _match(body_outline, matte_outline, matte_tree, reach_px)
        to_body, claimed = _match(matte_outline, body_outline, cKDTree(body_outline[:, :2]), reach_px)
        # a flank must not reach past an arm: what another limb is much nearer to belongs to that limb
        claimant = body_outline[to_body[to_matte], :2]
        target_px = matte_outline[to_matte, :2]
        mine_px = np.linalg.norm(body_outline[:, :2] - target_px, axis=1)
        others_px = np.linalg.norm(claimant - target_px, axis=1)
        found &= ~claimed[to_matte] | (mine_px < others_px + CLAIM_M * float(np.median(px_per_m)))
        vertex = np.concatenate([owner[found], owner[to_body[claimed]]])
        target = np.concatenate([matte_outline[to_matte[found]], matte_outline[claimed]])

        along = np.sum(normals_px[vertex] * target[:, 2:], axis=1) / px_per_m[vertex]
        error_m = np.sum((target[:, :2] - start_px[vertex]) * target[:, 2:], axis=1) / px_per_m[vertex]
        useful = along > 0.3
        vertex, along, error_m = vertex[useful], along[useful], error_m[useful]
        diagonal = np.bincount(vertex, along**2, len(vertices))
        right = np.bincount(vertex, along * error_m, len(vertices))
        stiffness = STIFFNESS[0] * (STIFFNESS[1] / STIFFNESS[0]) ** (step / (ROUNDS - 1))
        system = (sp.diags(diagonal + anchors) + stiffness * bending).tocsc()
        delta = sparse_linalg.spsolve(system, right, permc_spec="MMD_AT_PLUS_A")
        delta = np.clip(delta, INWARD_M, outward_limit)
    return delta


def _outline(mask: np.ndarray) -> np.ndarray:
    """Outline points with outward normals [P 4] (x px, y px, nx, ny)."""
    padded = np.pad(mask.astype(np.uint8), 1)
    contours, _ = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    smooth = cv2.GaussianBlur(padded.astype(np.float32), (0, 0), 2.0)
    slope_y, slope_x = np.gradient(smooth)
    points = []
    for contour in contours:
        contour = contour[:, 0]
        if len(contour) < 20:
            continue
        normals = -np.stack([slope_x[contour[:, 1], contour[:, 0]], slope_y[contour[:, 1], contour[:, 0]]], axis=1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        # a contour runs through pixel centres of the mask's last pixels; the edge is half a pixel further out
        points.append(np.concatenate([contour - 1 + 0.5 + 0.5 * normals, normals], axis=1))
    return np.concatenate(points) if points else np.zeros((0, 4))


def _match(source: np.ndarray, target: np.ndarray, tree: cKDTree, reach_px: float) -> tuple[np.ndarray, np.ndarray]:
    """For every source outline point the nearest target point whose normal agrees, and whether there is one."""
    distance, index = tree.query(source[:, :2], k=16, distance_upper_bound=reach_px)
    missing = ~np.isfinite(distance)
    index = np.where(missing, 0, index)
    agreement = np.sum(target[index, 2:] * source[:, None, 2:], axis=-1)
    cost = np.where(missing | (agreement < 0.4), np.inf, distance * (2.0 - agreement))
    best = cost.argmin(axis=1)
    rows = np.arange(len(source))
    return index[rows, best], np.isfinite(cost[rows, best])
