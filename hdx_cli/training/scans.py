"""Scans of people on the disk: finding them in any of several layouts, and reading them as one textured surface.

Layouts (what tells them apart is the names of files):

- THuman2.1: ``0000/0000.obj`` with ``material0.jpeg``; SMPL-X parameters as ``smplx_param.pkl|json|npz`` beside it or
  in a sibling tree, for example ``smplx/0000/smplx_param.pkl``.
- CustomHumans: ``mesh-f00011.obj`` with its texture; ``mesh-f00011_smplx.json`` or ``smplx.json`` beside it or in a
  folder ``smplx``. Frames of one subject are one person.
- Anny: ``scan.glb`` with ``params.npz`` beside it.
- Any other .glb, .gltf, .obj or .ply is a scan by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from ..errors import HdxError, InputRejected, UsageError

UPS = ("auto", "y", "z", "-y")
SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
PARAMETERS = ("smplx_param.pkl", "smplx_param.json", "smplx_param.npz", "smplx.json", "smplx.pkl", "smplx.npz")
MAX_BYTES, MAX_FACES, MAX_TEXTURE_PX = 2 * 10**9, 20_000_000, 2**28
MAX_SCANS = 100_000
HEIGHT_M = 1.8  # that every scan is brought to
STRAY = 0.0005  # share of the vertices at each end that may be specks off the person
_UP = {
    "y": np.eye(3),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "-y": np.diag([1.0, -1.0, -1.0]),
}


@dataclass(frozen=True)
class Scan:
    """Where a scan lies.

    Attributes:
        name: of files made from it, unlike any other's; person: whose it is.
        mesh: its file; layout: "thuman", "customhumans", "anny" or "mesh".
        registration: file with a body's parameters, if there is one.
        texture: image for a mesh whose material names none.
    """

    name: str
    person: str
    mesh: Path
    layout: str
    registration: Path | None = None
    texture: Path | None = None


@dataclass(frozen=True)
class Surface:
    """A textured triangle mesh. A point's colour is that of its texture times that of its corners.

    Attributes:
        vertices: [V 3]; faces: [F 3]; uv: of every corner, (0, 0) the lower left of the image [F 3 2].
        texture: of every face, -1 for none [F]; textures: straight RGBA images, first row on top.
        colours: straight RGBA of every vertex in [0, 1], sRGB [V 4].
    """

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    uv: Float[np.ndarray, "F 3 2"]
    texture: Int[np.ndarray, "F"]
    textures: tuple[UInt8[np.ndarray, "h w 4"], ...]
    colours: Float[np.ndarray, "V 4"]

    def moved(self, transform: Float[np.ndarray, "4 4"]) -> Surface:
        """The surface under an affine map."""
        vertices = self.vertices @ transform[:3, :3].T + transform[:3, 3]
        return Surface(vertices, self.faces, self.uv, self.texture, self.textures, self.colours)


def find_scans(folder: Path) -> list[Scan]:
    """All scans under a folder, in the order of their names; meshes of fitted bodies are none.

    Raises:
        UsageError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", code="E_NO_FILE")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
        and "smpl" not in path.name.lower()
    )[:MAX_SCANS]  # fmt: skip
    parameters: dict[str, Path] = {}
    for path in sorted(folder.rglob("smplx_param.*")):
        if path.suffix in (".pkl", ".json", ".npz"):
            parameters.setdefault(path.parent.name, path)
    found = [_scan(path, folder, parameters) for path in files]
    if not found:
        raise UsageError(f"{folder}: no .glb, .gltf, .obj or .ply in it", code="E_NO_SCANS")
    taken: dict[str, int] = {}
    unique = []
    for scan in found:
        count = taken[scan.name] = taken.get(scan.name, 0) + 1
        name = scan.name if count == 1 else f"{scan.name}-{count}"
        unique.append(Scan(name, scan.person, scan.mesh, scan.layout, scan.registration, scan.texture))
    return unique


def _scan(path: Path, root: Path, parameters: dict[str, Path]) -> Scan:
    beside = [path.with_name(f"{path.stem}_{name}") for name in PARAMETERS[-3:]]
    beside += [path.with_name(name) for name in PARAMETERS]
    beside += [path.parent / "smplx" / f"{path.stem}_{name}" for name in PARAMETERS[-3:]]
    registration = next((file for file in beside if file.is_file()), None)
    parts = path.relative_to(root).with_suffix("").parts
    if path.name == "scan.glb" and (path.parent / "params.npz").is_file():
        name = _name(parts[:-1] or parts)
        return Scan(name, name, path, "anny", path.parent / "params.npz")
    if path.stem.startswith("mesh-f") and path.suffix.lower() == ".obj":
        subject = re.match(r"\d+", path.parent.name)
        person = _name((*parts[:-2], subject[0])) if subject else _name(parts[:-1] or parts)
        return Scan(_name(parts), person, path, "customhumans", registration, _image(path))
    if path.suffix.lower() == ".obj" and path.stem == path.parent.name:
        registration = registration or parameters.get(path.stem)
        if registration is not None or (path.parent / "material0.jpeg").is_file():
            name = _name(parts[:-1])
            return Scan(name, name, path, "thuman", registration, _image(path))
    return Scan(_name(parts), _name(parts), path, "mesh", registration, _image(path))


def _name(parts: tuple[str, ...]) -> str:
    return re.sub(r"[^\w.-]+", "_", "-".join(parts), flags=re.ASCII)[-150:] or "scan"


def _image(path: Path) -> Path | None:
    """The image that belongs to a mesh by its name, or the only one beside it."""
    images = [p for p in path.parent.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg")] if path.parent else []
    named = [image for image in images if image.stem in (path.stem, "material0")]
    return named[0] if named else images[0] if len(images) == 1 else None


def read_surface(scan: Scan) -> Surface:
    """The mesh of a scan, all its parts together.

    Raises:
        InputRejected: it is damaged, too large, holds no triangles, no finite numbers, or no colours at all.
    """
    path = scan.mesh
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputRejected(f"{path}: larger than {MAX_BYTES // 10**9} GB", code="E_SCAN_SIZE")
        import trimesh

        loaded = trimesh.load(path, process=False)
        scene = loaded if isinstance(loaded, trimesh.Scene) else trimesh.Scene(loaded)
        meshes = [mesh for mesh in scene.dump() if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
        if not meshes:
            raise InputRejected(f"{path}: no triangles in it", code="E_SCAN")
        if sum(len(mesh.faces) for mesh in meshes) > MAX_FACES:
            raise InputRejected(f"{path}: more than {MAX_FACES} triangles", code="E_SCAN_SIZE")
        return _joined([_part(mesh, scan) for mesh in meshes], path)
    except (HdxError, MemoryError):
        raise
    except Exception as error:  # the readers of many formats raise errors of many kinds for damaged files
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputRejected(f"{path}: cannot be read as a mesh ({reason})", code="E_SCAN") from None


def _part(mesh, scan: Scan) -> Surface:
    vertices, faces = np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64)
    corners = np.zeros((len(faces), 3, 2))
    colours, image = np.ones((len(vertices), 4)), None
    uv = getattr(mesh.visual, "uv", None)
    if uv is not None and len(uv) == len(vertices):
        image, factor = _material(mesh.visual.material)
        lost = image is None or (image.shape == (2, 2, 4) and (image[..., :3] == 100).all())  # what trimesh puts there
        if lost and scan.texture is not None:
            image, factor = _read_image(scan.texture), np.ones(4)
        elif lost and image is not None:
            raise InputRejected(f"{scan.mesh}: its material or texture is missing", code="E_SCAN_COLOUR")
        colours = colours * factor
        corners = np.asarray(uv, float)[faces]
    elif mesh.visual.kind == "vertex":
        colours = np.asarray(mesh.visual.vertex_colors, float) / 255
    elif mesh.visual.kind == "face":  # a vertex of its own for every corner
        colours = np.repeat(np.asarray(mesh.visual.face_colors, float) / 255, 3, axis=0)
        vertices, faces = vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3)
    elif uv is None or image is None:
        raise InputRejected(f"{scan.mesh}: has neither texture nor colours", code="E_SCAN_COLOUR")
    if not np.isfinite(corners).all():
        raise InputRejected(f"{scan.mesh}: texture coordinates that are not finite", code="E_SCAN")
    textures = () if image is None else (image,)
    return Surface(vertices, faces, corners, np.full(len(faces), len(textures) - 1), textures, colours)


def _joined(parts: list[Surface], path: Path) -> Surface:
    vertices = np.concatenate([part.vertices for part in parts])
    if not (np.abs(vertices) < 1e9).all():
        raise InputRejected(f"{path}: vertices that are not finite", code="E_SCAN")
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    firsts = np.cumsum([0, *(len(part.textures) for part in parts)])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputRejected(f"{path}: triangles of vertices that do not exist", code="E_SCAN")
    texture = np.concatenate(
        [np.where(part.texture < 0, -1, part.texture + first) for part, first in zip(parts, firsts, strict=False)]
    )
    return Surface(
        vertices, faces, np.concatenate([part.uv for part in parts]), texture,
        tuple(image for part in parts for image in part.textures), np.concatenate([part.colours for part in parts]),
    )  # fmt: skip


def _material(material) -> tuple[UInt8[np.ndarray, "h w 4"] | None, Float[np.ndarray, "4"]]:
    """Image and factor of a material; alpha counts only where glTF says that it does."""
    image = getattr(material, "baseColorTexture", None)
    factor, mode = np.ones(4), getattr(material, "alphaMode", None)
    if hasattr(material, "baseColorFactor"):
        if material.baseColorFactor is not None:
            linear = np.asarray(material.baseColorFactor, float)
            factor[: len(linear)] = linear / (255 if linear.max() > 1 else 1)
            factor[:3] = np.clip(factor[:3], 0, 1) ** (1 / 2.2)  # glTF's factors are linear
    else:
        image = getattr(material, "image", None)
        if image is None and getattr(material, "diffuse", None) is not None:
            factor[:3] = np.asarray(material.diffuse, float)[:3] / 255
    if image is None:
        return None, factor
    rgba = _pixels(image)
    if mode == "MASK":
        cutoff = 0.5 if material.alphaCutoff is None else float(material.alphaCutoff)
        rgba[..., 3] = np.where(rgba[..., 3] >= 255 * cutoff, 255, 0)
    elif mode != "BLEND":
        rgba[..., 3], factor[3] = 255, 1.0
    return rgba, factor


def _read_image(path: Path) -> UInt8[np.ndarray, "h w 4"]:
    from PIL import Image

    with Image.open(path) as image:
        return _pixels(image)


def _pixels(image) -> UInt8[np.ndarray, "h w 4"]:
    if image.width * image.height > MAX_TEXTURE_PX:
        raise InputRejected(f"a texture of {image.width} x {image.height} pixels", code="E_SCAN_SIZE")
    return np.array(image.convert("RGBA"))


def normalising(
    vertices: Float[np.ndarray, "V 3"], up: str = "auto"
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "3"]]:
    """The similarity that makes a scan stand on y = 0, ``HEIGHT_M`` tall, about the y axis; and its size then [3].

    Args:
        up: axis of the scan that points up; "auto" takes z where the scan is tallest along it, else y.

    Raises:
        InputRejected: it has no height.
    """
    low, high = np.quantile(vertices, [STRAY, 1 - STRAY], axis=0)
    size = high - low
    if up == "auto":
        up = "z" if size[2] > 1.1 * max(size[0], size[1]) else "y"
    turn = _UP[up]
    corners = np.stack([low, high]) @ turn.T
    low, high = corners.min(0), corners.max(0)
    tall = high[1] - low[1]
    if not tall > 1e-9 * max(1.0, float(np.abs(vertices).max())):
        raise InputRejected("has no height", code="E_SCAN")
    scale = HEIGHT_M / tall
    transform = np.eye(4)
    transform[:3, :3] = scale * turn
    transform[:3, 3] = -scale * np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    return transform, scale * (high - low)


def pyramid(image: UInt8[np.ndarray, "h w 4"], levels: int) -> UInt8[np.ndarray, "h w 4"]:
    """A texture halved ``levels`` times, colours weighted by alpha."""
    for _ in range(levels):
        if min(image.shape[:2]) < 4:
            break
        size = (image.shape[1] // 2, image.shape[0] // 2)
        alpha = image[..., 3:].astype(np.float32) / 255
        small = cv2.resize(np.concatenate([image[..., :3] * alpha, alpha], 2), size, interpolation=cv2.INTER_AREA)
        plain = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        colour = np.where(small[..., 3:] > 1e-3, small[..., :3] / np.maximum(small[..., 3:], 1e-3), plain[..., :3])
        image = np.concatenate([np.rint(colour), np.rint(255 * small[..., 3:])], 2).clip(0, 255).astype(np.uint8)
    return image
