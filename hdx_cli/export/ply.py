"""Gaussians as a .ply file in the layout that viewers of 3D Gaussian splatting read, and back.

Binary little-endian float32, one vertex per Gaussian: x y z nx ny nz f_dc_0..2 f_rest_* opacity scale_0..2 rot_0..3.
opacity is a logit, scale a natural logarithm, rot a quaternion wxyz; f_rest holds the higher harmonics channel by channel
(all red, all green, all blue). Colours are sRGB-encoded: 0.5 + SH_C0 * f_dc.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ..errors import InputRejected, UsageError
from ..gaussians import Gaussians

# exp(+-MAX_LOGIT) is opacity 0 or 1 to float32's 7 digits; a logit of exactly 0 or 1 would be infinite, and readers that
# drop rows with infinities would drop the Gaussian.
MAX_LOGIT = 15.0
# Rotations that take our axes (+Y up, facing +Z) to the ones asked for.
UP_AXES = {
    "y": np.eye(3),
    "z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),  # +Z up, facing -Y: Blender, Unreal, most engineering tools
    "-y": np.diag([1.0, -1, -1]),  # -Y up, facing -Z: raw captures, many splat viewers
}


def write_ply(path: Path, gaussians: Gaussians, *, sh_degree: int | None = None, up: str = "y") -> None:
    """Write Gaussians as a splatting .ply.

    Args:
        path: the file to write.
        gaussians: N Gaussians; means in metres.
        sh_degree: pad the harmonics with zeros up to this degree (some importers accept only 3); None writes them as they are.
        up: the axis that points up in the file, a key of ``UP_AXES``.

    Raises:
        UsageError: an unknown axis, or a degree below the Gaussians' own.
    """
    if up not in UP_AXES:
        raise UsageError(f"--up {up}: choose one of {', '.join(UP_AXES)}")
    means, quats, scales, opacities, sh = (
        getattr(gaussians, name).detach().cpu().double().numpy()
        for name in ("means", "quats", "scales", "opacities", "sh")
    )
    own_bases = sh.shape[1]
    bases = own_bases if sh_degree is None else (sh_degree + 1) ** 2
    if bases < own_bases:
        raise UsageError(
            f"--sh-pad {sh_degree}: the avatar has {own_bases} harmonics per colour, more than that degree holds"
        )
    if up != "y":
        if own_bases > 1:
            raise UsageError(f"--up {up}: view-dependent colours cannot be turned; export with --up y")
        means = means @ UP_AXES[up].T
        quats = _turned(quats, UP_AXES[up])

    rows = np.zeros(len(means), _row_type(bases))
    for name, column in zip("xyz", means.T, strict=True):
        rows[name] = column
    for channel in range(3):
        rows[f"f_dc_{channel}"] = sh[:, 0, channel]
        for basis in range(1, own_bases):
            rows[f"f_rest_{channel * (bases - 1) + basis - 1}"] = sh[:, basis, channel]
    with np.errstate(divide="ignore"):
        rows["opacity"] = np.clip(np.log(opacities) - np.log1p(-opacities), -MAX_LOGIT, MAX_LOGIT)
        for axis in range(3):
            rows[f"scale_{axis}"] = np.log(np.maximum(scales[:, axis], 1e-12))
    for part in range(4):
        rows[f"rot_{part}"] = quats[:, part]

    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property float {name}" for name in rows.dtype.names]
    header += ["end_header", ""]
    with open(path, "wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(rows.tobytes())


def read_ply(path: Path) -> Gaussians:
    """Gaussians of a splatting .ply (binary little-endian, float32 properties in any order), as they lie in the file.

    Raises:
        InputRejected: the file is not one, or is cut short.
    """
    with open(path, "rb") as file:
        count, properties = _read_header(file, path)
        layout = np.dtype([(name, "<f4") for name in properties])
        rows = np.frombuffer(file.read(count * layout.itemsize), layout) if count else np.zeros(0, layout)
    if len(rows) != count:
        raise InputRejected(f"{path}: cut short after {len(rows)} of {count} Gaussians", code="E_DECODE")
    rest = sum(name.startswith("f_rest_") for name in properties) // 3
    try:
        sh = np.zeros((count, rest + 1, 3), np.float32)
        for channel in range(3):
            sh[:, 0, channel] = rows[f"f_dc_{channel}"]
            for basis in range(rest):
                sh[:, basis + 1, channel] = rows[f"f_rest_{channel * rest + basis}"]
        columns = {
            "means": _columns(rows, ["x", "y", "z"]),
            "quats": _columns(rows, [f"rot_{part}" for part in range(4)]),
            "scales": np.exp(_columns(rows, [f"scale_{axis}" for axis in range(3)])),
            "opacities": 1.0 / (1.0 + np.exp(-rows["opacity"])),
        }
    except ValueError as error:
        raise InputRejected(f"{path}: not a Gaussian splatting .ply ({error})", code="E_DECODE") from None
    return Gaussians(**{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in columns.items()},
                     sh=torch.from_numpy(sh))  # fmt: skip


def _row_type(bases: int) -> np.dtype:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{index}" for index in range(3 * (bases - 1))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return np.dtype([(name, "<f4") for name in names])


def _columns(rows: np.ndarray, names: list[str]) -> Float[np.ndarray, "N C"]:
    return np.stack([rows[name] for name in names], axis=1)


def _read_header(file, path: Path) -> tuple[int, list[str]]:
    """Number of vertices and names of their properties; the file is left at the first row."""
    if file.readline().strip() != b"ply" or file.readline().split()[:2] != [b"format", b"binary_little_endian"]:
        raise InputRejected(f"{path}: not a binary little-endian .ply", code="E_DECODE")
    count, properties = None, []
    for line in file:
        words = line.decode("ascii", "replace").split()
        if words[:1] == ["end_header"]:
            break
        if words[:2] == ["element", "vertex"] and words[2].isdigit():
            count = int(words[2])
        elif words[:1] == ["element"]:
            raise InputRejected(f"{path}: has elements other than vertices", code="E_DECODE")
        elif words[:1] == ["property"]:
            if words[1] not in ("float", "float32"):
                raise InputRejected(f"{path}: property {words[-1]} is not float32", code="E_DECODE")
            properties.append(words[-1])
    if count is None or not properties:
        raise InputRejected(f"{path}: no vertices in the header", code="E_DECODE")
    return count, properties


def _turned(quats: Float[np.ndarray, "N 4"], rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "N 4"]:
    """Quaternions wxyz of ``rotation`` after each of ``quats``."""
    w = np.sqrt(max(0.0, 1.0 + np.trace(rotation))) / 2
    if w < 1e-6:  # half turns: the axis is the column of rotation + 1 that does not vanish
        axis = (rotation + np.eye(3))[:, np.argmax(np.diag(rotation))]
        a = np.array([0.0, *(axis / np.linalg.norm(axis))])
    else:
        skew = rotation - rotation.T
        a = np.array([w, *(np.array([skew[2, 1], skew[0, 2], skew[1, 0]]) / (4 * w))])
    b = quats.T
    return np.stack(
        [
            a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
            a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
            a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1],
            a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
        ],
        axis=1,
    )
