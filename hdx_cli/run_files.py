"""How the results between the stages lie in a run folder: an Observation, a BodyFit, and the plain values beside them.

Images are PNG so that a person can look at them; arrays are .npz without pickles.
"""

from __future__ import annotations

import io
import json
import math
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from .bodies.base import Body, BodyFit, BodyPose
from .camera import Cameras
from .errors import InputRejected
from .images import save_image
from .motion.archive import read_npz
from .observation import Keypoints, Observation, Photo
from .progress import Progress

# What is read back: a photo at working size has 4 megapixels, and what is restored 18 views of 0.1.
MOST_PIXELS, MOST_VIEW_BYTES, MOST_ARRAY_BYTES, MOST_JSON_BYTES = 8_500_000, 256 * 2**20, 16 * 2**20, 2**20
# what Pillow, json and NumPy say of damaged files; SyntaxError is Pillow's word for a PNG whose chunks make no sense
_BROKEN = (
    OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, SyntaxError, EOFError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def save_observation(folder: Path, observation: Observation) -> None:
    """``photo.png`` at working size, ``cutout.png`` (foreground and matte), ``keypoints.npz`` and ``photo.json``.

    Colours and matte are rounded to 8 bits.
    """
    save_image(folder / "photo.png", observation.photo.rgb)
    save_image(folder / "cutout.png", np.concatenate([observation.foreground, observation.alpha[..., None]], axis=2))
    found = {name: value for name, value in vars(observation.keypoints).items() if value is not None}
    _write_arrays(folder / "keypoints.npz", **found)
    (folder / "photo.json").write_text(json.dumps({"focal_px": observation.photo.focal_px}) + "\n", encoding="utf-8")


def load_observation(folder: Path) -> Observation:
    """What ``save_observation`` wrote; the photo's own alpha, which the matte has replaced, is None.

    Raises:
        InputRejected: a file is missing or damaged.
    """
    try:
        rgb = _pixels(folder / "photo.png", "RGB").astype(np.float32) / np.float32(255)
        cutout = _pixels(folder / "cutout.png", "RGBA").astype(np.float32) / np.float32(255)
        if cutout.shape[:2] != rgb.shape[:2]:
            raise ValueError("cutout.png is not of the photo's size")
        focal_px = _described(folder / "photo.json")["focal_px"]
        if focal_px is not None and not (isinstance(focal_px, int | float) and 1 <= focal_px < 1e6):
            raise ValueError("photo.json has a focal length that is none")
        focal_px = None if focal_px is None else float(focal_px)
    except _BROKEN as error:
        raise _damaged(folder, error) from None
    keypoints = _keypoints(folder / "keypoints.npz")
    alpha, foreground = np.ascontiguousarray(cutout[..., 3]), np.ascontiguousarray(cutout[..., :3])
    return Observation(Photo(rgb, None, focal_px), alpha, foreground, keypoints)


def _keypoints(path: Path) -> Keypoints:
    counts = {"pixels": 33, "world": 33, "left_hand": 21, "right_hand": 21, "face": 468}
    found = _arrays(path)
    try:
        for name, points in found.items():
            if points.dtype != np.float32 or points.shape != (counts[name], 3) or not (np.abs(points) < 1e6).all():
                raise ValueError(f"{name} is not {counts[name]} landmarks")
        return Keypoints(**found)
    except _BROKEN as error:
        raise _damaged(path, error) from None


def save_body_fit(path: Path, fit: BodyFit) -> None:
    """One .npz: shape, pose (T = 1), camera and scores."""
    _write_arrays(
        path,
        model=np.array(fit.body.model),
        shape=fit.body.shape,
        rotations=fit.pose.rotations,
        translations=fit.pose.translations,
        viewmats=fit.camera.viewmats.numpy(),
        Ks=fit.camera.Ks.numpy(),
        size=np.array([fit.camera.width, fit.camera.height]),
        score_names=np.array(list(fit.scores), dtype=np.str_),
        scores=np.array(list(fit.scores.values()), np.float64),
    )


def _write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An .npz. Bytes first: on a full disk a half written zip file complains once more when it is collected."""
    held = io.BytesIO()
    np.savez(held, **arrays)
    path.write_bytes(held.getvalue())


def load_body_fit(path: Path) -> BodyFit:
    """What ``save_body_fit`` wrote.

    Raises:
        InputRejected: the file is missing or damaged.
    """
    saved = _arrays(path, "fiubU")
    try:
        rotations, translations, shape = (
            _finite(saved[name], rank) for name, rank in (("rotations", 4), ("translations", 2), ("shape", 1))
        )
        joints = rotations.shape[1]
        if rotations.shape != (1, joints, 3, 3) or translations.shape != (1, 3) or not 0 < joints <= 1000:
            raise ValueError("rotations and translations are not those of one pose")
        # estimated in float32, which turns ten joints one after the other
        if np.abs(rotations @ np.swapaxes(rotations, -1, -2) - np.eye(3)).max() > 1e-2:
            raise ValueError("rotations that are none")
        model, names, scores = saved["model"], saved["score_names"], saved["scores"]
        if (
            model.dtype.kind != "U"
            or model.shape
            or names.dtype.kind not in "Uf"
            or names.ndim != 1
            or scores.ndim != 1
        ):
            raise ValueError("no model or no scores")
        width, height = (int(side) for side in saved["size"])
        camera = _cameras(saved["viewmats"], saved["Ks"], width, height)
        if len(camera) != 1:
            raise ValueError("not one camera")
        named = {str(name): float(value) for name, value in zip(names, scores, strict=True)}
        if not all(math.isfinite(score) for score in named.values()):
            raise ValueError("scores that are not finite")
        return BodyFit(Body(str(model)[:100], shape), BodyPose(rotations, translations), camera, named)
    except _BROKEN as error:
        raise _damaged(path, error) from None


def save_views(
    folder: Path, cameras: Cameras, pictures: Iterable[UInt8[np.ndarray, "H W 4"]], progress: Progress
) -> None:
    """``00.png``, ``01.png``, ... (straight RGBA) and ``cameras.json`` with viewmats (world to camera), Ks and size."""
    folder.mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index:02d}.png", compress_level=3)
        progress.advance()
    described = {
        "viewmats": cameras.viewmats.tolist(), "Ks": cameras.Ks.tolist(), "width": cameras.width, "height": cameras.height,
    }  # fmt: skip
    (folder / "cameras.json").write_text(json.dumps(described) + "\n", encoding="utf-8")


def load_views(folder: Path) -> tuple[Cameras, UInt8[np.ndarray, "C H W 4"]]:
    """What ``save_views`` wrote.

    Raises:
        InputRejected: a file is missing, damaged or of another size.
    """
    try:
        described = _described(folder / "cameras.json")
        matrices = [np.asarray(described[name], np.float32) for name in ("viewmats", "Ks")]
        cameras = _cameras(*matrices, described["width"], described["height"])
        shape = (len(cameras), cameras.height, cameras.width, 4)
        if math.prod(shape) > MOST_VIEW_BYTES:
            raise ValueError(f"views of more than {MOST_VIEW_BYTES >> 20} MB")
        pictures = np.empty(shape, np.uint8)
        for index in range(len(cameras)):
            picture = _pixels(folder / f"{index:02d}.png", "RGBA")
            if picture.shape != shape[1:]:
                raise ValueError(f"{index:02d}.png is not RGBA of {cameras.width} x {cameras.height}")
            pictures[index] = picture
    except _BROKEN as error:
        raise _damaged(folder, error) from None
    return cameras, pictures


def _pixels(path: Path, mode: str) -> UInt8[np.ndarray, "H W C"]:
    """A PNG of ours [H W 3] or [H W 4]; its size is judged before it is decoded.

    Raises:
        OSError, ValueError, SyntaxError: Pillow's, or it is of another mode, or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remark on sizes that are judged here
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode != mode or image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{path.name} is not {mode} of at most {MOST_PIXELS // 10**6} megapixels")
            return np.array(image)


def _described(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MOST_JSON_BYTES:
        raise ValueError(f"{path.name} is far too long")
    return json.loads(path.read_bytes())


def _arrays(path: Path, kinds: str = "fiub") -> dict[str, np.ndarray]:
    """Every array of an .npz of ours.

    Raises:
        InputRejected: it is missing or damaged.
    """
    try:
        return read_npz(path, lambda name: True, MOST_ARRAY_BYTES, kinds)
    except OSError as error:
        raise _damaged(path, error) from None
    except InputRejected as error:
        raise _damaged(path, error.message.removeprefix(f"{path}: ")) from None


def _finite(values: np.ndarray, rank: int) -> np.ndarray:
    if values.dtype.kind != "f" or values.ndim != rank or not (np.abs(values) < 1e6).all():
        raise ValueError(
            f"an array of {values.dtype} {values.shape[:6]} with values that are not finite, or beyond reason"
        )
    return values


def _cameras(viewmats: np.ndarray, Ks: np.ndarray, width: Any, height: Any) -> Cameras:
    """Cameras of matrices from a file.

    Raises:
        ValueError, TypeError: they are none.
    """
    viewmats, Ks = _finite(viewmats, 3), _finite(Ks, 3)
    if viewmats.shape[1:] != (4, 4) or Ks.shape[1:] != (3, 3) or not 0 < len(viewmats) == len(Ks) <= 1000:
        raise ValueError("cameras without matrices")
    # rigid, and with a focal length: what is divided by, and what the inverse of a view is made with
    turns = viewmats[:, :3, :3]
    if np.abs(turns @ np.swapaxes(turns, -1, -2) - np.eye(3)).max() > 1e-2 or not (Ks[:, [0, 1], [0, 1]] > 0).all():
        raise ValueError("cameras that turn by no rotation, or without a focal length")
    if np.abs(Ks[:, 2] - [0, 0, 1]).max() > 1e-6 or np.abs(viewmats[:, 3] - [0, 0, 0, 1]).max() > 1e-6:
        raise ValueError("cameras with another last row than 0 0 0 1")
    if type(width) is not int or type(height) is not int or not (0 < width <= 30_000 and 0 < height <= 30_000):
        raise ValueError("a size that is none")
    return Cameras(
        torch.from_numpy(viewmats.astype(np.float32)), torch.from_numpy(Ks.astype(np.float32)), width, height
    )


def _damaged(path: Path, error: Exception | str) -> InputRejected:
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = "".join(letter if letter.isprintable() else "?" for letter in reason[:200])
    return InputRejected(
        f"{path}: missing or damaged ({reason})", hint="run `hdx create` again with --force", code="E_DAMAGED"
    )
