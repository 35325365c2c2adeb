"""How the results between the stages lie in a run folder: an Observation, a BodyFit, and the plain values beside them.

Images are PNG so that a person can look at them; arrays are .npz without pickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from .bodies.base import Body, BodyFit, BodyPose
from .camera import Cameras
from .errors import InputRejected
from .images import save_image
from .observation import Keypoints, Observation, Photo
from .progress import Progress


def save_observation(folder: Path, observation: Observation) -> None:
    """``photo.png`` at working size, ``cutout.png`` (foreground and matte), ``keypoints.npz`` and ``photo.json``.

    Colours and matte are rounded to 8 bits.
    """
    save_image(folder / "photo.png", observation.photo.rgb)
    save_image(folder / "cutout.png", np.concatenate([observation.foreground, observation.alpha[..., None]], axis=2))
    found = {name: value for name, value in vars(observation.keypoints).items() if value is not None}
    with (folder / "keypoints.npz").open("wb") as file:
        np.savez(file, **found)
    (folder / "photo.json").write_text(json.dumps({"focal_px": observation.photo.focal_px}) + "\n", encoding="utf-8")


def load_observation(folder: Path) -> Observation:
    """What ``save_observation`` wrote; the photo's own alpha, which the matte has replaced, is None.

    Raises:
        InputRejected: a file is missing or damaged.
    """
    try:
        rgb = _pixels(folder / "photo.png")
        cutout = _pixels(folder / "cutout.png")
        focal_px = json.loads((folder / "photo.json").read_bytes())["focal_px"]
        with np.load(folder / "keypoints.npz", allow_pickle=False) as found:
            keypoints = Keypoints(**{name: found[name] for name in found.files})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None
    if cutout.shape != (*rgb.shape[:2], 4):
        raise InputRejected(f"{folder / 'cutout.png'}: is not RGBA of the photo's size", code="E_DAMAGED")
    alpha, foreground = np.ascontiguousarray(cutout[..., 3]), np.ascontiguousarray(cutout[..., :3])
    return Observation(Photo(rgb, None, focal_px), alpha, foreground, keypoints)


def save_body_fit(path: Path, fit: BodyFit) -> None:
    """One .npz: shape, pose (T = 1), camera and scores."""
    with path.open("wb") as file:
        np.savez(
            file,
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


def load_body_fit(path: Path) -> BodyFit:
    """What ``save_body_fit`` wrote.

    Raises:
        InputRejected: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            width, height = (int(side) for side in saved["size"])
            return BodyFit(
                Body(str(saved["model"]), saved["shape"]),
                BodyPose(saved["rotations"], saved["translations"]),
                Cameras(torch.from_numpy(saved["viewmats"]), torch.from_numpy(saved["Ks"]), width, height),
                {str(name): float(value) for name, value in zip(saved["score_names"], saved["scores"], strict=True)},
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
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
        described = json.loads((folder / "cameras.json").read_bytes())
        cameras = Cameras(
            torch.tensor(described["viewmats"]), torch.tensor(described["Ks"]), described["width"], described["height"]
        )
        pictures = []
        for index in range(len(cameras)):
            with Image.open(folder / f"{index:02d}.png") as picture:
                pictures.append(np.asarray(picture))
            if pictures[-1].shape != (cameras.height, cameras.width, 4):
                raise ValueError(f"{index:02d}.png is not RGBA of {cameras.width} x {cameras.height}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None
    return cameras, np.stack(pictures)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, np.float32) / np.float32(255)


def _damaged(path: Path, error: Exception) -> InputRejected:
    reason = " ".join(str(error).split())
    return InputRejected(
        f"{path}: missing or damaged ({reason})", hint="run `hdx create` again with --force", code="E_DAMAGED"
    )
