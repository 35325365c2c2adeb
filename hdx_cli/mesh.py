"""Plain triangle-mesh maths: depth buffer, normals, Laplacian, surface sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from .camera import Cameras
from .jit import jit

NEAR_M = 1e-3


@dataclass(frozen=True)
class DepthBuffer:
    """The nearest surface of a mesh in every pixel of one view.

    Attributes:
        depth: along the optical axis in metres, inf where nothing was hit, [H W].
        face: index of the triangle hit, -1 where none, [H W].
        barycentric: weights of the triangle's second and third corner, [H W 2], screen-space linear.
    """

    depth: Float[np.ndarray, "H W"]
    face: Int[np.ndarray, "H W"]
    barycentric: Float[np.ndarray, "H W 2"]

    @property
    def covered(self) -> np.ndarray:
        return self.face >= 0


@jit
def _fill(pixels, depths, faces, depth, face, barycentric):
    height, width = depth.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        if depths[a] <= NEAR_M or depths[b] <= NEAR_M or depths[c] <= NEAR_M:
            continue
        ax, ay = pixels[a, 0], pixels[a, 1]
        ux, uy = pixels[b, 0] - ax, pixels[b, 1] - ay
        vx, vy = pixels[c, 0] - ax, pixels[c, 1] - ay
        area = ux * vy - uy * vx
        if abs(area) < 1e-12:
            continue
        x_first = max(0, int(np.floor(min(0.0, ux, vx) + ax - 0.5)))
        x_last = min(width - 1, int(np.ceil(max(0.0, ux, vx) + ax)))
        y_first = max(0, int(np.floor(min(0.0, uy, vy) + ay - 0.5)))
        y_last = min(height - 1, int(np.ceil(max(0.0, uy, vy) + ay)))
        for y in range(y_first, y_last + 1):
            for x in range(x_first, x_last + 1):
                px, py = x + 0.5 - ax, y + 0.5 - ay
                second = (px * vy - py * vx) / area
                third = (ux * py - uy * px) / area
                # a hair of overlap, so that shared edges leave no pinholes
                if second < -1e-4 or third < -1e-4 or second + third > 1.0001:
                    continue
                z = depths[a] * (1.0 - second - third) + depths[b] * second + depths[c] * third
                if z < depth[y, x]:
                    depth[y, x] = z
                    face[y, x] = f
                    barycentric[y, x, 0] = second
                    barycentric[y, x, 1] = third


def depth_buffer(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], camera: Cameras) -> DepthBuffer:
    """Rasterise a mesh in world coordinates (metres) into one camera (C = 1); both sides of a triangle count."""
    pixels, depths = project(vertices, camera)
    shape = (camera.height, camera.width)
    buffer = DepthBuffer(np.full(shape, np.inf), np.full(shape, -1, np.int32), np.zeros((*shape, 2)))
    _fill(pixels, depths, faces, buffer.depth, buffer.face, buffer.barycentric)
    return buffer


def project(
    points: Float[np.ndarray, "P 3"], camera: Cameras
) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "P"]]:
    """World points to pixels [P 2] and depths along the optical axis [P] in metres of one camera (C = 1), in float64.

    Points nearer than ``NEAR_M``, or behind the camera, are projected as if they were that far.
    """
    viewmat, K = camera.viewmats[0].double().numpy(), camera.Ks[0].double().numpy()
    in_camera = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    homogeneous = in_camera @ K.T
    return homogeneous[:, :2] / np.maximum(homogeneous[:, 2:], NEAR_M), in_camera[:, 2]


def unproject(
    x_px: Float[np.ndarray, "*P"], y_px: Float[np.ndarray, "*P"], depth: Float[np.ndarray, "*P"], camera: Cameras
) -> Float[np.ndarray, "*P 3"]:
    """World points at pixel positions and depths along the optical axis (metres) of one camera (C = 1)."""
    viewmat, K = camera.viewmats[0].double().numpy(), camera.Ks[0].double().numpy()
    in_camera = np.stack([(x_px - K[0, 2]) / K[0, 0] * depth, (y_px - K[1, 2]) / K[1, 1] * depth, depth], axis=-1)
    return (in_camera - viewmat[:3, 3]) @ viewmat[:3, :3]


def vertex_normals(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 3"]:
    """Area-weighted unit normals [V 3]; zero for vertices without a face."""
    corners = vertices[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(faces[:, corner], face_normals[:, axis], len(vertices))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def uniform_laplacian(faces: Int[np.ndarray, "F 3"], vertex_count: int) -> sp.csr_matrix:
    """I - D^-1 A over the mesh's edges, [V V]; zero rows for vertices without a face."""
    i = faces[:, [0, 1, 2, 1, 2, 0]].reshape(-1)
    j = faces[:, [1, 2, 0, 0, 1, 2]].reshape(-1)
    adjacency = sp.csr_matrix((np.ones(len(i)), (i, j)), (vertex_count, vertex_count))
    adjacency.data[:] = 1.0
    degree = np.asarray(adjacency.sum(1)).ravel()
    return (sp.diags((degree > 0).astype(float)) - sp.diags(1.0 / np.maximum(degree, 1)) @ adjacency).tocsr()


def sample_surface(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], count: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "P"], Float[np.ndarray, "P 3"]]:
    """Points spread evenly over a surface: triangle indices [P] and barycentric weights [P 3].

    Every triangle gets its area's share, rounded at random, so P is ``count`` only on average.
    """
    corners = vertices[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    expected = count * areas / areas.sum()
    per_face = np.floor(expected + rng.random(len(faces))).astype(int)
    index = np.repeat(np.arange(len(faces)), per_face)
    root, along = np.sqrt(rng.random(len(index))), rng.random(len(index))
    return index, np.stack([1 - root, root * (1 - along), root * along], axis=1)
