"""Where the Gaussians of an explicit avatar lie: a sheet through the photo's pixels, and the surface it cannot see."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as sparse_linalg
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from ..bodies.base import PARTS
from ..camera import Cameras
from ..errors import InputRejected
from ..mesh import DepthBuffer, depth_buffer, project, sample_surface, unproject

MATTE_FLOOR = 0.2  # pixels with less of the person in them make no Gaussian
STEEPEST = (
    3.0  # longest stretch of a Gaussian along the line of sight, in pixel sizes: steeper is a jump, not a surface
)
JUMP_M = 0.04  # neighbouring pixels further apart in depth belong to different limbs
FLATNESS = 0.25  # thickness of a Gaussian in pixel sizes
LIMBS_APART_M = 0.12  # what rides on surfaces this far apart in depth hangs together with neither: no ramp between them
SUNK_M = 0.08  # an arm behind one's back is further behind the belly than this
GRAZING_COSINE = 0.35  # the sheet has gaps where the surface turns further from the camera than this
RIM = 1.8  # standard deviations of a disc that end at the matte's edge
OVERHANG_M = 0.035  # the clothed body may miss the matte's edge by this much, at a jacket's hem for one
SIGMA_PX = 0.5  # standard deviation in pixel spacings: opaque at twice the photo's magnification, sharp at once


@dataclass(frozen=True)
class Points:
    """P oriented points in world coordinates and where on the body they belong.

    Attributes:
        means: [P 3] metres.
        factors: square roots M of the covariances M M^T, [P 3 3] metres.
        normals: outward unit normals [P 3].
        pixels: position in the photo [P 2] px.
        vertices, barycentric: the body triangle each point rides on: vertex indices [P 3] and weights [P 3].
    """

    means: Float[np.ndarray, "P 3"]
    factors: Float[np.ndarray, "P 3 3"]
    normals: Float[np.ndarray, "P 3"]
    pixels: Float[np.ndarray, "P 2"]
    vertices: Int[np.ndarray, "P 3"]
    barycentric: Float[np.ndarray, "P 3"]

    def __len__(self) -> int:
        return len(self.means)

    def select(self, index: np.ndarray) -> Points:
        return Points(*(array[index] for array in vars(self).values()))


@dataclass(frozen=True)
class Sheet:
    """The photo's pixels lifted to the clothed body.

    Attributes:
        depth: along the optical axis [H W] metres, NaN outside the matte.
        owner_y, owner_x: the pixel whose body triangle a pixel rides on [H W]: itself where the body covers it.
        on_body: pixels that the clothed body covers [H W].
    """

    depth: Float[np.ndarray, "H W"]
    owner_y: Int[np.ndarray, "H W"]
    owner_x: Int[np.ndarray, "H W"]
    on_body: np.ndarray


def arms_in_front(
    buffer: DepthBuffer,
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    parts: Int[np.ndarray, "V"],
    camera: Cameras,
) -> tuple[DepthBuffer, Bool[np.ndarray, "H W"]]:
    """The depth buffer with the arms in place of a trunk that hides them by less than ``SUNK_M``, and where that is.

    Clothes that reach the matte's edge beside an arm, and a pose that is some centimetres off, sink an arm into the
    flank; the photo would then paint the flank with the arm. ``unseen_points`` narrows the flank.
    """
    arms, trunk = (np.isin(parts, [PARTS.index(name) for name in names])
                   for names in (("upper_arm", "lower_arm", "hand"), ("torso", "upper_leg", "lower_leg")))  # fmt: skip
    index = np.nonzero(arms[faces].all(axis=1))[0]
    arm = depth_buffer(vertices, faces[index], camera)
    sunk = arm.covered & buffer.covered & trunk[faces[buffer.face, 0]] & (arm.depth < buffer.depth + SUNK_M)
    face = buffer.face.copy()
    face[sunk] = index[arm.face[sunk]]
    raised = DepthBuffer(
        np.where(sunk, arm.depth, buffer.depth), face, np.where(sunk[..., None], arm.barycentric, buffer.barycentric)
    )
    return raised, sunk


def lift(buffer: DepthBuffer, alpha: Float[np.ndarray, "H W"]) -> Sheet:
    """Depth for every pixel of the matte: the clothed body's where it covers the pixel, and its harmonic continuation
    (Laplace's equation, free at the matte's edge) over what sticks out: hems, hair, bags, hats. What is nearest to a
    limb in front continues that one, and not the trunk behind it too.

    Raises:
        InputRejected: the body covers nothing of the matte.
    """
    inside = alpha >= MATTE_FLOOR
    on_body = inside & buffer.covered
    if not on_body.any():
        raise InputRejected(
            "the body that was found does not lie on the person",
            hint="check with `hdx check PHOTO -o overlay.png`, and take a photo of somebody who stands upright",
            code="E_BODY",
        )
    depth = np.where(on_body, buffer.depth, np.nan)
    owner_y, owner_x = nearest_pixels(on_body)
    depth = _continue_harmonically(depth, inside, depth[owner_y, owner_x])
    return Sheet(depth, owner_y, owner_x, on_body)


def nearest_pixels(mask: Bool[np.ndarray, "H W"]) -> tuple[Int[np.ndarray, "H W"], Int[np.ndarray, "H W"]]:
    """Row and column of the pixel of ``mask`` that is nearest to every pixel."""
    _, labels = cv2.distanceTransformWithLabels(
        (~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, columns = np.nonzero(mask)
    by_label = np.zeros(labels.max() + 1, np.int64)
    by_label[labels[rows, columns]] = np.arange(len(rows))
    return rows[by_label[labels]], columns[by_label[labels]]


def _continue_harmonically(depth: np.ndarray, inside: np.ndarray, guess: np.ndarray) -> np.ndarray:
    unknown = inside & np.isnan(depth)
    count = int(unknown.sum())
    if count == 0:
        return depth
    number = np.full(depth.shape, -1, np.int64)
    number[unknown] = np.arange(count)
    rows, columns, values, right = [], [], [], np.zeros(count)
    degree = np.zeros(count)
    near = np.where(np.isnan(depth), guess, depth)
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        y, x = np.nonzero(unknown)
        ny, nx = np.clip(y + dy, 0, depth.shape[0] - 1), np.clip(x + dx, 0, depth.shape[1] - 1)
        me, neighbour = number[y, x], number[ny, nx]
        together = np.abs(near[y, x] - near[ny, nx]) < LIMBS_APART_M
        free = (neighbour >= 0) & together
        known = inside[ny, nx] & (neighbour < 0) & together
        np.add.at(degree, me[free | known], 1.0)
        rows.append(me[free])
        columns.append(neighbour[free])
        values.append(-np.ones(free.sum()))
        np.add.at(right, me[known], depth[ny[known], nx[known]])
    # islands that touch no known pixel keep their nearest neighbour's depth
    anchor = 1e-4
    rows.append(np.arange(count))
    columns.append(np.arange(count))
    values.append(degree + anchor)
    system = sp.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (count, count))
    start = guess[unknown]
    solution, _ = sparse_linalg.cg(
        system, right + anchor * start, x0=start, rtol=1e-6, maxiter=400, M=sp.diags(1 / system.diagonal())
    )
    filled = depth.copy()
    filled[unknown] = solution
    return filled


def pixel_tangents(
    depth: Float[np.ndarray, "H W"], camera: Cameras
) -> tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W 3"]]:
    """World vectors [H W 3] that one pixel right and one pixel down span on the sheet.

    At a jump in depth the gentler of the two one-sided differences is taken, and never more than ``STEEPEST`` pixel sizes.
    """
    height, width = depth.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    focal = camera.Ks[0, 0, 0].item()
    slopes = []
    for axis in (1, 0):
        ahead = np.diff(depth, axis=axis, append=np.nan)
        behind = np.diff(depth, axis=axis, prepend=np.nan)
        ahead_size, behind_size = np.nan_to_num(np.abs(ahead), nan=np.inf), np.nan_to_num(np.abs(behind), nan=np.inf)
        both = (ahead_size < JUMP_M) & (behind_size < JUMP_M)
        gentler = np.where(ahead_size < behind_size, ahead, behind)
        slope = np.where(both, 0.5 * (ahead + behind), gentler)
        slope = np.where(np.minimum(ahead_size, behind_size) < JUMP_M, slope, 0.0)
        slopes.append(np.nan_to_num(slope))
    here = unproject(x, y, depth, camera)
    limit = STEEPEST * depth / focal
    tangents = []
    for (dx, dy), slope in zip(((1.0, 0.0), (0.0, 1.0)), slopes, strict=True):
        tangents.append(unproject(x + dx, y + dy, depth + np.clip(slope, -limit, limit), camera) - here)
    return tangents[0], tangents[1]


def adaptive_cells(
    image: Float[np.ndarray, "H W 3"],
    depth: Float[np.ndarray, "H W"],
    alpha: Float[np.ndarray, "H W"],
    detail: Float[np.ndarray, "H W"],
    budget: int,
) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
    """Square cells of 4, 2 or 1 pixels that tile the matte: (row, column, size) of each, about ``budget`` of them.

    A cell is split where colour, matte or depth vary inside it; ``detail`` [H W] multiplies the variation, so that a face
    keeps its pixels. The threshold is found by bisection. Cells come in row-major order of their 4 x 4 blocks.
    """
    height, width = (side - side % 4 for side in alpha.shape)
    inside = alpha >= MATTE_FLOOR

    def variation(size: int) -> tuple[np.ndarray, np.ndarray]:
        def blocks(values: np.ndarray) -> np.ndarray:
            return values[:height, :width].reshape(height // size, size, width // size, size, -1).swapaxes(1, 2)

        whole = blocks(inside).all(axis=(2, 3, 4))
        colour, z, weight = blocks(image), blocks(np.nan_to_num(depth, nan=0.0)), blocks(detail).max(axis=(2, 3, 4))
        spread = (colour.max(axis=(2, 3)) - colour.min(axis=(2, 3))).max(axis=-1) * weight
        spread = np.maximum(spread, (blocks(alpha).max(axis=(2, 3, 4)) < 0.95) * 1.0)
        flat = (z.max(axis=(2, 3, 4)) - z.min(axis=(2, 3, 4))) < JUMP_M
        return np.where(whole & flat, spread, np.inf), whole

    spread_4, _ = variation(4)
    spread_2, _ = variation(2)

    def split(threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keep_4 = spread_4 < threshold
        keep_2 = (spread_2 < 0.6 * threshold) & ~np.repeat(np.repeat(keep_4, 2, 0), 2, 1)
        taken = np.zeros(alpha.shape, bool)
        taken[:height, :width] = np.repeat(np.repeat(keep_4, 4, 0), 4, 1) | np.repeat(np.repeat(keep_2, 2, 0), 2, 1)
        return keep_4, keep_2, inside & ~taken

    low, high = 0.0, 2.0
    for _ in range(18):
        middle = 0.5 * (low + high)
        if sum(int(level.sum()) for level in split(middle)) > budget:
            low = middle
        else:
            high = middle
    keep_4, keep_2, keep_1 = split(high)
    rows, columns, sizes = [], [], []
    for level, size in ((keep_4, 4), (keep_2, 2), (keep_1, 1)):
        row, column = np.nonzero(level)
        rows.append(row * size)
        columns.append(column * size)
        sizes.append(np.full(len(row), size))
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(sizes)


def seen_points(
    sheet: Sheet,
    buffer: DepthBuffer,
    faces: Int[np.ndarray, "F 3"],
    camera: Cameras,
    cells: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Points:
    """One Gaussian per cell, shaped like the patch of surface that the cell sees.

    Its covariance is (SIGMA_PX s)^2 (t_u t_u^T + t_v t_v^T) plus a thin normal part, with t the pixel tangents and s the cell size.
    """
    row, column, size = cells
    x, y = column + 0.5 * size, row + 0.5 * size
    # even cells have their centre on a pixel corner: the mean of the pixels round it
    low_y, low_x = row + (size - 1) // 2, column + (size - 1) // 2
    high_y, high_x = row + size // 2, column + size // 2
    depth = 0.25 * (
        sheet.depth[low_y, low_x]
        + sheet.depth[low_y, high_x]
        + sheet.depth[high_y, low_x]
        + sheet.depth[high_y, high_x]
    )
    right, down = pixel_tangents(sheet.depth, camera)
    right, down = right[low_y, low_x], down[low_y, low_x]
    normals = np.cross(down, right)
    pixel_m = depth / camera.Ks[0, 0, 0].item()
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    spread = SIGMA_PX * size[:, None]
    factors = np.stack([spread * right, spread * down, (FLATNESS * pixel_m)[:, None] * normals], axis=2)
    owner_y, owner_x = sheet.owner_y[low_y, low_x], sheet.owner_x[low_y, low_x]
    second_third = buffer.barycentric[owner_y, owner_x]
    barycentric = np.concatenate([1 - second_third.sum(1, keepdims=True), second_third], axis=1)
    triangles = faces[buffer.face[owner_y, owner_x]]
    means = unproject(x, y, depth, camera)
    return Points(means, factors, normals, np.stack([x, y], axis=1), triangles, barycentric)


def unseen_points(
    vertices: Float[np.ndarray, "V 3"],
    normals: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    buffer: DepthBuffer,
    sunk: Bool[np.ndarray, "H W"],
    alpha: Float[np.ndarray, "H W"],
    camera: Cameras,
    count: int,
    rng: np.random.Generator,
) -> tuple[Points, np.ndarray]:
    """About ``count`` Gaussians spread over the part of the clothed body that the photo shows not at all or too slantingly.

    Left out are points on the sheet, and points that would stick out of the matte in the photo. What lies before a
    ``sunk`` arm is moved sideways until it does not: the flank's curve becomes the trunk's side. Also returns which of
    the points are merely slanting [P] bool.
    """
    # half of a closed surface is seen, so twice as many candidates
    index, barycentric = sample_surface(vertices, faces, 2 * count, rng)
    triangles = faces[index]
    means = np.einsum("pk,pka->pa", barycentric, vertices[triangles])
    normals = np.einsum("pk,pka->pa", barycentric, normals[triangles])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    pixels, depth = project(means, camera)
    pixel_m = depth / camera.Ks[0, 0, 0].item()
    height, width = alpha.shape
    framed = (pixels[:, 0] >= 0) & (pixels[:, 1] >= 0) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    column, row = (np.clip(pixels[:, k].astype(int), 0, side - 1) for k, side in ((0, width), (1, height)))
    distance_px = signed_distance(alpha)
    inside_px = distance_px[row, column]
    outside = framed & (inside_px * pixel_m < -OVERHANG_M)
    shown = buffer.depth[row, column]
    before = framed & sunk[row, column] & (depth < shown - 0.01)
    if before.any() and (clear := buffer.covered & ~sunk).any():
        edge_row, edge_column = (nearest[row[before], column[before]] for nearest in nearest_pixels(clear))
        means[before] = unproject(edge_column + 0.5, edge_row + 0.5, depth[before], camera)
    rays = camera.positions()[0].double().numpy() - means
    cosine = np.einsum("pa,pa->p", normals, rays / np.linalg.norm(rays, axis=1, keepdims=True))
    hidden = (depth > shown + 0.01) | before | (cosine < 0) | ~framed
    unseen = ~outside & (hidden | (cosine < GRAZING_COSINE))

    corners = vertices[faces]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    radius = 0.7 * np.sqrt(area / (2 * count))
    # a disc across the outline would paint a rim round the person: move it inwards until it ends at the matte's edge
    move = np.clip(RIM * radius - inside_px * pixel_m, 0.0, OVERHANG_M + 2 * radius) * framed
    right, down = camera.viewmats[0, :2, :3].double().numpy()
    slope_y, slope_x = np.gradient(cv2.GaussianBlur(distance_px, (0, 0), 1.5))
    inwards = slope_x[row, column, None] * right + slope_y[row, column, None] * down
    means = means + move[:, None] * inwards / np.maximum(np.linalg.norm(inwards, axis=1, keepdims=True), 1e-6)
    factors = discs(normals, radius, 0.25 * radius)
    return Points(means, factors, normals, pixels, triangles, barycentric).select(unseen), ~hidden[unseen]


def signed_distance(alpha: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Distance to the matte's edge in pixels, positive inside [H W]."""
    inside = (alpha > 0.5).astype(np.uint8)
    return cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)


def back_of_sheet(sheet: Sheet, seen: Points, camera: Cameras) -> tuple[Points, Int[np.ndarray, "Q"]]:
    """A second sheet behind what sticks out of the body, so that hems, hair and bags have a far side.

    It lies as far behind as a round thing of that outline would: the thickness grows with the distance to the nearest edge.
    Returns the points and the index of the seen point each one lies behind.
    """
    row, column = seen.pixels[:, 1].astype(int), seen.pixels[:, 0].astype(int)
    loose = ~np.isnan(sheet.depth) & ~sheet.on_body
    # one pixel of margin: the last pixels before the body are closed by the body itself
    edge_px = cv2.distanceTransform(loose.astype(np.uint8), cv2.DIST_L2, 3)
    behind = np.nonzero(loose[row, column] & (edge_px[row, column] > 1.5))[0]
    points = seen.select(behind)
    pixel_m = sheet.depth[row[behind], column[behind]] / camera.Ks[0, 0, 0].item()
    thickness = np.minimum(1.0 * edge_px[row[behind], column[behind]] * pixel_m, 0.06)
    rays = points.means - camera.positions()[0].double().numpy()
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    moved = points.means + thickness[:, None] * rays
    return Points(moved, points.factors, -points.normals, points.pixels, points.vertices, points.barycentric), behind


def discs(normals: Float[np.ndarray, "P 3"], radius: float, thickness: float) -> Float[np.ndarray, "P 3 3"]:
    """Covariance factors [P 3 3] of round flat Gaussians across ``normals``, standard deviations in metres."""
    helper = np.where(np.abs(normals[:, :1]) < 0.8, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(normals, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(normals, first)
    return np.stack([radius * first, radius * second, thickness * normals], axis=2)


STRAY_M, SPARSE, CROWD = 0.03, 4.0, 8


def strays(means: Float[np.ndarray, "N 3"], vertices: Float[np.ndarray, "V 3"]) -> Bool[np.ndarray, "N"]:
    """Which Gaussians float alone in the air: chains of them join limbs that touch in the photo and are apart in depth.

    They lie more than ``STRAY_M`` from the clothed body, and their ``CROWD``-th neighbour is ``SPARSE`` times as far as is
    usual. Cloth, hair and bags are dense and stay.
    """
    if len(means) <= CROWD:
        return np.zeros(len(means), bool)
    gap = cKDTree(means).query(means, k=[CROWD + 1])[0][:, 0]
    alone = gap > SPARSE * np.median(gap)
    alone[alone] = cKDTree(vertices).query(means[alone])[0] > STRAY_M
    return alone
