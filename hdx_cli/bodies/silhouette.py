"""Outlines of a mask and of a posed body, and which of their points belong together."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from ..camera import Cameras
from ..mesh import depth_buffer

MARGIN = 24  # empty px round the mask, so that a body may leave the photo
BORDER = 3  # outline points nearer than this to the photo's border are its crop, not the person's outline
REACH = 0.15  # farthest match, as a share of the body height


@dataclass(frozen=True)
class Outline:
    """Points along the boundary of a region in px [P 2], their outward unit normals [P 2], and which may be trusted."""

    points: Float[np.ndarray, "P 2"]
    normals: Float[np.ndarray, "P 2"]
    trusted: Bool[np.ndarray, "P"]

    def __getitem__(self, index) -> Outline:
        return Outline(self.points[index], self.normals[index], self.trusted[index])


@dataclass(frozen=True)
class Silhouette:
    """A person's mask at working size.

    Attributes:
        mask: [h w] with ``MARGIN`` px on all sides.
        inside: which of these pixels lie in the photo.
        scale: working px per photo px.
        height_px: the body height in working px.
        outline: of the largest region of the mask and its holes.
    """

    mask: Bool[np.ndarray, "h w"]
    inside: Bool[np.ndarray, "h w"]
    scale: float
    height_px: float
    outline: Outline

    def camera(self, focal_px: float, cx: float, cy: float) -> Cameras:
        """The photo's camera in front of the working-size mask; the world is the camera's frame."""
        f = focal_px * self.scale
        K = [[f, 0, cx * self.scale + MARGIN], [0, f, cy * self.scale + MARGIN], [0, 0, 1]]
        height, width = self.mask.shape
        return Cameras(torch.eye(4)[None], torch.tensor([K], dtype=torch.float32), width, height)


def silhouette_of(alpha: Float[np.ndarray, "H W"], height_px: float, working_height_px: float = 384) -> Silhouette:
    """Scale a matte so that the body measures ``working_height_px`` and trace it."""
    scale = working_height_px / height_px
    size = max(1, round(alpha.shape[1] * scale)), max(1, round(alpha.shape[0] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(alpha.astype(np.float32), size, interpolation=interpolation)
    mask = np.pad(small > 0.5, MARGIN)
    inside = np.pad(np.ones(small.shape, bool), MARGIN)
    outline = trace(_largest_region(mask))
    x, y = outline.points.T
    edge = MARGIN + BORDER
    trusted = (x > edge) & (x < mask.shape[1] - edge) & (y > edge) & (y < mask.shape[0] - edge)
    return Silhouette(mask, inside, scale, working_height_px, Outline(outline.points, outline.normals, trusted))


def _largest_region(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask if count <= 2 else labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def trace(mask: Bool[np.ndarray, "h w"], step: int = 2, half_window: int = 4) -> Outline:
    """Every ``step``-th pixel along all boundaries of a region, holes included."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    points, normals = [np.zeros((0, 2))], [np.zeros((0, 2))]
    for contour in contours:
        contour = contour[:, 0].astype(float)
        if len(contour) < 20:
            continue
        tangent = np.roll(contour, -half_window, axis=0) - np.roll(contour, half_window, axis=0)
        normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
        x, y = np.round(contour + 2.5 * normal).astype(int).T
        within = mask[y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1)]
        normals.append((normal * np.where(within, -1, 1)[:, None])[::step])
        points.append((contour + 0.5)[::step])
    points, normals = np.concatenate(points), np.concatenate(normals)
    return Outline(points, normals, np.ones(len(points), bool))


@dataclass(frozen=True)
class Rendered:
    """A body seen by the working camera: where it covers the image, its outline, the vertex at every outline point."""

    mask: Bool[np.ndarray, "h w"]
    outline: Outline
    vertices: Int[np.ndarray, "P"]


def render_outline(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], camera: Cameras) -> Rendered:
    """Render a body given in camera axes and trace it; outline points farther than 3 px from any vertex are dropped."""
    buffer = depth_buffer(vertices, faces, camera)
    K = camera.Ks[0].double().numpy()
    outline = trace(buffer.covered)
    visible = np.unique(faces[np.unique(buffer.face[buffer.covered])])
    if not len(outline.points) or not len(visible):
        return Rendered(buffer.covered, outline[:0], np.zeros(0, int))
    seen = vertices[visible]
    pixels = seen[:, :2] / seen[:, 2:] * K[0, 0] + K[:2, 2]
    distance, nearest = cKDTree(pixels).query(outline.points)
    near = distance < 3
    return Rendered(buffer.covered, outline[near], visible[nearest[near]])


def match(rendered: Rendered, target: Outline, height_px: float) -> tuple[Int[np.ndarray, "M"], Outline]:
    """Pairs of body vertices and target points [M], found both ways.

    Every point takes the nearest partner whose normal agrees, with a distance that grows up to threefold with the angle
    between the normals; target points on the photo's border are left out.
    """
    every_second = target[::2]
    every_second = every_second[every_second.trusted]
    if not len(rendered.vertices) or not len(every_second.points):
        return np.zeros(0, int), target[:0]
    forward, found = _nearest_compatible(rendered.outline, target, REACH * height_px)
    found &= target.trusted[forward]
    backward, found_back = _nearest_compatible(every_second, rendered.outline, REACH * height_px)
    vertices = np.concatenate([rendered.vertices[found], rendered.vertices[backward[found_back]]])
    first, second = target[forward[found]], every_second[found_back]
    pairs = Outline(
        np.concatenate([first.points, second.points]),
        np.concatenate([first.normals, second.normals]),
        np.concatenate([first.trusted, second.trusted]),
    )
    return vertices, pairs


def _nearest_compatible(
    points: Outline, candidates: Outline, reach_px: float, neighbours: int = 12
) -> tuple[Int[np.ndarray, "P"], Bool[np.ndarray, "P"]]:
    distance, index = cKDTree(candidates.points).query(points.points, k=neighbours, distance_upper_bound=reach_px)
    missing = ~np.isfinite(distance)
    index = np.where(missing, 0, index)
    agreement = (candidates.normals[index] * points.normals[:, None]).sum(axis=-1)
    cost = np.where(missing | (agreement < 0.5), np.inf, distance * (2 - agreement))
    best = cost.argmin(axis=1)
    rows = np.arange(len(best))
    return index[rows, best], np.isfinite(cost[rows, best])
