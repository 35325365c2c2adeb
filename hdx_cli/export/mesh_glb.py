"""The avatar as a skinned, textured triangle mesh in a .glb, for programs that know no splats: Blender, Unity, Unreal.

The mesh is the body model's surface in rest pose. ``clothed`` moves it out to where the Gaussians lie,
``baked_texture`` or ``vertex_colours`` paint it with them, ``write_mesh_glb`` adds the skeleton and clips of ``glb``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Integer, UInt8
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve
from scipy.spatial import cKDTree

from ..camera import Cameras
from ..errors import InputRejected, NothingToDo, UsageError
from ..gaussians import Gaussians
from ..geometry import quats_to_matrices
from ..mesh import depth_buffer, uniform_laplacian, vertex_normals
from .glb import INDICES, VERTICES, Animation, Document, Rig, linear_from_srgb, quantised

FARTHEST_M = 0.12  # clothes and hair farther from the body than this are not followed
SIDEWAYS_M = 0.03  # nor is what lies beside a vertex rather than above it
NEIGHBOURS = 24
SMOOTHNESS = 4.0  # of displacements against the Gaussians' own word
SEEN = 0.2  # weight of a Gaussian that the photo did not see, against 1 + SEEN for one that it did
SOFT_M = 0.003  # least standard deviation of a Gaussian when it gives its colour away: discs are thinner than that
OPAQUE = 0.1
CHUNK = 1 << 16


@dataclass(frozen=True)
class SkinnedMesh:
    """A surface in rest pose that follows a rig.

    Attributes:
        vertices: [V 3], metres.
        faces: [F 3], counter-clockwise from outside.
        joint_indices, joint_weights: up to 8 joints per vertex, rows of weights sum to one.
        uv, uv_faces: texture coordinates [U 2], v up, and their triangles [F 3]; None where the model has none.
    """

    vertices: Float[np.ndarray, "V 3"]
    faces: Integer[np.ndarray, "F 3"]
    joint_indices: Integer[np.ndarray, "V 8"]
    joint_weights: Float[np.ndarray, "V 8"]
    uv: Float[np.ndarray, "U 2"] | None = None
    uv_faces: Integer[np.ndarray, "F 3"] | None = None


def clothed(
    vertices: Float[np.ndarray, "V 3"],
    faces: Integer[np.ndarray, "F 3"],
    gaussians: Gaussians,
    visibility: Float[np.ndarray, "N"],
) -> Float[np.ndarray, "V 3"]:
    """Vertices moved along their normals to the median height of the Gaussians above them, smoothed over the surface.

    Every Gaussian stands above its nearest vertex of the largest connected piece; a vertex takes the median of the
    nearest of them, weighted by surface, opacity and ``visibility``. Heights h minimise sum c (h - median)^2 +
    SMOOTHNESS |L h|^2, with L the uniform Laplacian and c = 0 where there are no Gaussians (Sorkine et al. 2004).
    Smaller pieces (eyes, tongue) move as a whole with what is around them.
    """
    means, weights, _ = _painters(gaussians, visibility)
    vertices, faces = vertices.astype(np.float64), faces.astype(np.int64)
    normals = vertex_normals(vertices, faces)
    edges = sp.coo_matrix((np.ones(faces.size), (faces.ravel(), np.roll(faces, 1, 1).ravel())), (len(vertices),) * 2)
    _, piece = connected_components(edges, directed=False)
    skin = np.flatnonzero(piece == np.bincount(piece).argmax())
    _, nearest = cKDTree(vertices[skin]).query(means)
    nearest = skin[nearest]
    away = means - vertices[nearest]
    height = (away * normals[nearest]).sum(1)
    feet = means - height[:, None] * normals[nearest]
    good = (abs(height) < FARTHEST_M) & (np.linalg.norm(feet - vertices[nearest], axis=1) < SIDEWAYS_M)
    if not good.any():
        return vertices
    height, feet, weights = height[good], feet[good], weights[good]
    distance, near = cKDTree(feet).query(vertices[skin], k=min(NEIGHBOURS, len(feet)))
    distance, near = distance.reshape(len(skin), -1), near.reshape(len(skin), -1)
    shares = weights[near] * (distance < SIDEWAYS_M)
    known = shares.sum(1) > 0
    median = np.zeros(len(skin))
    median[known] = _weighted_medians(height[near[known]], shares[known])
    laplacian = uniform_laplacian(faces, len(vertices))[skin][:, skin]
    system = sp.diags(known + 1e-6) + SMOOTHNESS * laplacian.T @ laplacian
    moved = vertices.copy()
    moved[skin] += spsolve(system.tocsc(), known * median)[:, None] * normals[skin]
    for other in set(piece) - {piece[skin[0]]}:
        members = np.flatnonzero(piece == other)
        _, around = cKDTree(vertices[skin]).query(vertices[members])
        moved[members] += (moved - vertices)[skin[around]].mean(0)
    return moved


def vertex_colours(
    points: Float[np.ndarray, "P 3"], gaussians: Gaussians, visibility: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "P 3"]:
    """sRGB-encoded colours of the Gaussians around points, in [0, 1], by density, opacity and ``visibility``."""
    means, weights, inverse = _painters(gaussians, visibility)
    rgb = gaussians.rgb().detach().cpu().double().clamp(0, 1).numpy()[_opaque(gaussians)]
    tree, colours = cKDTree(means), np.empty((len(points), 3))
    for start in range(0, len(points), CHUNK):
        some = points[start : start + CHUNK]
        distance, near = tree.query(some, k=min(8, len(means)))
        distance, near = distance.reshape(len(some), -1), near.reshape(len(some), -1)
        local = np.einsum("pkab,pkb->pka", inverse[near], some[:, None] - means[near])
        # a point that every density is zero at takes the nearest
        density = np.exp(-0.5 * (local**2).sum(-1)) + 1e-9 / (1 + (distance / SOFT_M) ** 4)
        share = weights[near] * density
        colours[start : start + CHUNK] = (share[..., None] * rgb[near]).sum(1) / share.sum(1, keepdims=True)
    return colours


def baked_texture(
    mesh: SkinnedMesh, gaussians: Gaussians, visibility: Float[np.ndarray, "N"], size_px: int = 1024
) -> UInt8[np.ndarray, "S S 3"]:
    """A square texture of ``vertex_colours`` at every texel of the mesh's texture coordinates; v = 1 is the top row.

    Texels outside every triangle continue the nearest inside, so that filtering sees no seams.

    Raises:
        UsageError: the mesh has no texture coordinates.
    """
    if mesh.uv is None or mesh.uv_faces is None:
        raise UsageError("a mesh without texture coordinates can only have vertex colours")
    flat = np.stack([mesh.uv[:, 0] * size_px, (1 - mesh.uv[:, 1]) * size_px, np.ones(len(mesh.uv))], axis=1)
    camera = Cameras(
        torch.eye(4)[None], torch.eye(3)[None], size_px, size_px
    )  # looks at the plane z = 1: pixels are x, y
    buffer = depth_buffer(flat, mesh.uv_faces, camera)
    inside = buffer.covered
    if not inside.any():
        raise UsageError("texture coordinates that cover no texel")
    corners = mesh.vertices[mesh.faces[buffer.face[inside]]]
    second, third = buffer.barycentric[inside].T[..., None]
    points = (1 - second - third) * corners[:, 0] + second * corners[:, 1] + third * corners[:, 2]
    texture = np.zeros((size_px, size_px, 3), np.uint8)
    texture[inside] = np.round(vertex_colours(points, gaussians, visibility) * 255)
    rows, columns = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return texture[rows, columns]


def write_mesh_glb(
    path: Path,
    mesh: SkinnedMesh,
    rig: Rig,
    animations: Sequence[Animation] = (),
    *,
    texture: UInt8[np.ndarray, "S S 3"] | None = None,
    colours: Float[np.ndarray, "V 3"] | None = None,
    licences: Mapping[str, str] | None = None,
) -> None:
    """Write a skinned mesh with the skeleton and clips of ``write_glb``; colours carry their light, so it is unlit.

    Args:
        path: the file to write.
        mesh: the surface; its rest pose is moved to stand on y = 0.
        rig, animations: as in ``SkinnedGaussians``.
        texture: sRGB-encoded, laid out as ``baked_texture`` does; needs the mesh's texture coordinates.
        colours: sRGB-encoded colours per vertex [V 3] in [0, 1], where there is no texture.
        licences: as in ``write_glb``.

    Raises:
        NothingToDo: no triangles.
        InputRejected: values that are not finite, or triangles of vertices that do not exist.
        UsageError: a texture without coordinates; joints, weights or clips that do not fit the rig.
    """
    if not len(mesh.faces) or not len(mesh.vertices):
        raise NothingToDo(f"{path}: the mesh has no triangles")
    if not np.isfinite(mesh.vertices).all() or mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise InputRejected(f"{path}: vertices that are not finite, or that do not exist", code="E_NOT_FINITE")
    if texture is not None and (mesh.uv is None or mesh.uv_faces is None):
        raise UsageError(f"{path}: a texture needs a mesh with texture coordinates")
    shift = np.array([0.0, -float(mesh.vertices[:, 1].min()), 0.0])
    document = Document("hdx-skinned-mesh", shift, licences or {})
    if texture is not None:  # a vertex for every pair of a corner's position and its texture coordinates
        pairs = np.stack([mesh.faces.ravel(), mesh.uv_faces.ravel()], axis=1)
        pairs, corners = np.unique(pairs, axis=0, return_inverse=True)
        chosen, triangles = pairs[:, 0], corners.reshape(-1)
    else:
        chosen, triangles = np.arange(len(mesh.vertices)), mesh.faces.ravel()
    normals = vertex_normals(mesh.vertices.astype(np.float64), mesh.faces.astype(np.int64))
    normals[np.linalg.norm(normals, axis=1) < 0.5] = [0, 1, 0]  # vertices without a face
    attributes = {
        "POSITION": document.add((mesh.vertices[chosen] + shift).astype(np.float32), target=VERTICES, bounds=True),
        "NORMAL": document.add(normals[chosen].astype(np.float32), target=VERTICES),
    }
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    if texture is not None:
        uv = mesh.uv[pairs[:, 1]] * [1, -1] + [0, 1]
        attributes["TEXCOORD_0"] = document.add(uv.astype(np.float32), target=VERTICES)
        encoded = io.BytesIO()
        Image.fromarray(texture).save(encoded, "JPEG", quality=92, subsampling=0)
        document.json["images"] = [{"bufferView": document.add_view(encoded.getvalue()), "mimeType": "image/jpeg"}]
        document.json["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
        document.json["textures"] = [{"source": 0, "sampler": 0}]
        surface["baseColorTexture"] = {"index": 0}
    elif colours is not None:
        linear = linear_from_srgb(np.clip(np.nan_to_num(colours), 0, 1).astype(np.float64))
        linear = np.concatenate([linear, np.ones((len(linear), 1))], axis=1)
        attributes["COLOR_0"] = document.add(quantised(linear, np.uint8), target=VERTICES)
    attributes |= document.add_influences(mesh.joint_indices[chosen], mesh.joint_weights[chosen], rig, np.uint16)
    indices = triangles.astype(np.uint16 if len(chosen) < 65535 else np.uint32)[:, None]
    material = {"name": "avatar", "pbrMetallicRoughness": surface, "doubleSided": True}
    document.json["materials"] = [material | {"extensions": {"KHR_materials_unlit": {}}}]
    document.json["extensionsUsed"] = ["KHR_materials_unlit"]
    primitive = {"attributes": attributes, "indices": document.add(indices, target=INDICES), "material": 0}
    document.add_skinned_mesh(primitive, rig, animations)
    path.write_bytes(document.to_bytes())


def _opaque(gaussians: Gaussians) -> np.ndarray:
    arrays = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.sh)
    finite = torch.stack([array.isfinite().flatten(1).all(1) for array in arrays])
    return ((gaussians.opacities > OPAQUE) & finite.all(0)).detach().cpu().numpy()


def _painters(
    gaussians: Gaussians, visibility: Float[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "M 3"], Float[np.ndarray, "M"], Float[np.ndarray, "M 3 3"]]:
    """Means, weights and inverse square roots of covariances of the Gaussians that can be seen at all.

    Raises:
        NothingToDo: none can.
    """
    chosen = _opaque(gaussians)
    if not chosen.any():
        raise NothingToDo("the avatar has no Gaussian that can be seen")
    means, quats, scales, opacities = (
        getattr(gaussians, name).detach().cpu().double().numpy()[chosen]
        for name in ("means", "quats", "scales", "opacities")
    )
    widest = np.sort(scales, axis=1)
    weights = opacities * (SEEN + visibility[chosen]) * np.maximum(widest[:, 1] * widest[:, 2], 1e-8)
    rows = quats_to_matrices(quats).transpose(0, 2, 1) / np.maximum(scales, SOFT_M)[:, :, None]
    return means, weights, rows


def _weighted_medians(values: Float[np.ndarray, "P K"], weights: Float[np.ndarray, "P K"]) -> Float[np.ndarray, "P"]:
    """Of each row the smallest value at which half of the row's weight is reached."""
    order = np.argsort(values, axis=1)
    total = np.cumsum(np.take_along_axis(weights, order, 1), axis=1)
    at = (total >= 0.5 * total[:, -1:]).argmax(1)
    return np.take_along_axis(np.take_along_axis(values, order, 1), at[:, None], 1)[:, 0]
