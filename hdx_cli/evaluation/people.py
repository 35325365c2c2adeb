"""People whose true views are known, and avatars of them seen through the true cameras."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ..avatars.avatar_file import read_avatar
from ..avatars.base import Avatar
from ..avatars.turntable import samples_per_pixel
from ..bodies import load as load_body
from ..bodies.base import BodyFit, posed_vertices
from ..camera import Cameras
from ..errors import InputRejected, NothingToDo
from ..images import resize
from ..progress import Silent
from ..rasterize import rasterize
from ..run_files import load_body_fit
from .folders import MOST_BYTES, Picture, read_picture, size_of
from .metrics import blurred, true_cameras_in_avatar_world

TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # the world of cams.npz has +Z up
BLUR_HEIGHT = 960  # sigmas are px of pictures so high


@dataclass(frozen=True)
class Person:
    """One person: where photo and truth lie, and the cameras.

    Attributes:
        source: a .npz of ``hdx_cli.training.photos``, or a folder with 00.png, 01.png, ... and cams.npz or
            cameras.json.
        cameras: of the true views [V]; view 0 looks from the photo's camera. The person stands on the world's y axis.
        photo_K: intrinsics of the photo [3 3] px, which is ``photo_width`` px wide.
        focal_is_known: whether the avatar may be told the focal length.
        pelvis: height of the pelvis, which is on the axis of the orbit, metres; None where the axis goes through the
            mean of the body's vertices.
    """

    name: str
    source: Path
    cameras: Cameras
    photo_K: Float[np.ndarray, "3 3"]
    photo_width: int
    focal_is_known: bool
    pelvis: float | None

    def photo(self) -> UInt8[np.ndarray, "H W 3"]:
        """The photo: the file's own, or view 0 over a plain grey wall."""
        if self.source.suffix == ".npz":
            from ..training.photos import load_sitting

            return load_sitting(self.source).photo.rgb
        picture = read_picture(_view_files(self.source)[0])
        rgb, alpha = picture.rgb.numpy(), picture.alpha.numpy()[..., None]
        wall = np.linspace(0.72, 0.82, rgb.shape[0], dtype=np.float32)[:, None, None]
        return np.round(np.clip(rgb - (1 - wall) * (1 - alpha), 0, 1) * 255).astype(np.uint8)

    def truth(self, height: int) -> list[Picture]:
        """The true views at a height in px."""
        if self.source.suffix == ".npz":
            from ..training.photos import load_sitting

            views = load_sitting(self.source).views.astype(np.float32) / np.float32(255)
            alphas = views[..., 3:]
            pictures = views[..., :3] * alphas + 1 - alphas
            return [_at_height(rgb, alpha[..., 0], height) for rgb, alpha in zip(pictures, alphas, strict=True)]
        found = []
        for path in _view_files(self.source):
            picture = read_picture(path)
            found.append(_at_height(picture.rgb.numpy(), picture.alpha.numpy(), height))
        return found


def load_people(folder: Path, limit: int | None = None) -> list[Person]:
    """The people in a folder: .npz files of ``hdx_cli.training.photos``, and folders of views with their cameras.

    Raises:
        NothingToDo: there are none.
        InputRejected: one of them is damaged.
    """
    if not folder.is_dir():
        raise NothingToDo(f"{folder}: no such folder", code="E_NO_FILE")
    found = [
        entry
        for entry in sorted(folder.iterdir())
        if (entry.suffix == ".npz" and entry.is_file())
        or any((entry / name).is_file() for name in ("cams.npz", "cameras.json"))
    ]
    if not found:
        raise NothingToDo(f"{folder}: holds no .npz of hdx_cli.training.photos and no folder of views with cameras")
    return [_sitting(entry) if entry.suffix == ".npz" else _folder(entry) for entry in found[:limit]]


def kept_avatars(run: Path) -> list[str]:
    """Names of the avatars in a run folder, in the order in which they are made: coarse, others, refined."""
    names = sorted(path.parent.name for path in run.glob("*/avatar.json") if path.with_suffix(".safetensors").exists())
    return sorted(names, key=lambda name: {"coarse": 0, "refined": 2}.get(name, 1))


def read_kept(run: Path, name: str) -> tuple[Avatar, BodyFit]:
    """One avatar of a run folder and the body fit that it was made with, its own or that of the folder."""
    own = run / name / "body.npz"
    return read_avatar(run / name), load_body_fit(own if own.exists() else run / "body.npz")


def true_cameras(person: Person, fit: BodyFit, height: int) -> Cameras:
    """The true cameras at a height in px, in the world of an avatar with this body fit."""
    truth, photo_K = person.cameras, person.photo_K
    # the fit's camera sees the photo at working size; through the window of the true views both show the same picture
    shrunk = fit.camera.width / person.photo_width
    scale = float(truth.Ks[0, 0, 0]) / (float(photo_K[0, 0]) * shrunk)
    x0, y0 = (shrunk * float(photo_K[axis, 2]) - float(truth.Ks[0, axis, 2]) / scale for axis in (0, 1))
    window = fit.camera.resampled(scale, x0, y0, truth.width, truth.height)
    model = load_body(fit.body.model)
    if person.pelvis is None:
        centre = posed_vertices(model, fit.body, fit.pose).mean(0)
    else:
        centre = model.rest(fit.body.shape).joints[0] + fit.pose.translations[0]
    true_centre = torch.tensor([0.0, float(centre[1]) if person.pelvis is None else person.pelvis, 0.0])
    cameras = true_cameras_in_avatar_world(truth, window, true_centre, torch.from_numpy(centre).float())
    size = height / cameras.height
    return cameras if size == 1 else cameras.resampled(size, 0, 0, round(cameras.width * size), height)


def seen(avatar: Avatar, cameras: Cameras) -> Iterator[Picture]:
    """The avatar through each camera, over white."""
    gaussians, samples = avatar.gaussians(), samples_per_pixel(cameras.height)
    for view in range(len(cameras)):
        with torch.no_grad():
            image = rasterize(gaussians, cameras[view], background=torch.ones(3), supersample=samples)
        yield Picture(image.rgb[0].clamp(0, 1), image.alpha[0].clamp(0, 1), True)


def restored(run: Path, avatar: Avatar, fit: BodyFit, cameras: Cameras, seed: int = 0) -> list[Picture]:
    """What HumanFixer makes of an avatar's views through these cameras; view 0 is the photo itself.

    Raises:
        InputRejected: the views are not two thirds as wide as high, which HumanFixer needs.
        WeightsError: its weights are missing or damaged.
    """
    from .. import stages
    from ..run_files import load_observation

    rows = stages.RESTORED_HEIGHT
    if round(cameras.width * rows / cameras.height) != 2 * rows // 3:
        raise InputRejected(f"{run}: views of {cameras.width} x {cameras.height} px cannot be restored; 2:3 is needed")
    small = cameras.resampled(rows / cameras.height, 0, 0, 2 * rows // 3, rows)
    pictures = stages.restored_pictures(
        stages.restorer_of(), avatar, load_observation(run / "observation"), fit.camera, small, None, seed, Silent()
    )
    straight = pictures.astype(np.float32) / np.float32(255)
    alphas = straight[..., 3:]
    over = straight[..., :3] * alphas + 1 - alphas
    return [_at_height(rgb, alpha[..., 0], cameras.height) for rgb, alpha in zip(over, alphas, strict=True)]


def blurred_views(pictures: list[Picture], sigma_px: float) -> Iterator[Picture]:
    """The views under a Gaussian of ``sigma_px`` px of pictures 960 px high: what averaging alone gains."""
    for picture in pictures:
        yield Picture(*blurred(picture.rgb, picture.alpha, sigma_px * picture.rgb.shape[0] / BLUR_HEIGHT), True)


def _at_height(rgb: Float[np.ndarray, "H W 3"], alpha: Float[np.ndarray, "H W"], height: int) -> Picture:
    """Colours over white and alpha at another height; both are sums of what covers a pixel, so they may be averaged."""
    width = round(rgb.shape[1] * height / rgb.shape[0])
    colours, cover = resize(rgb, height, width), resize(alpha, height, width)
    return Picture(torch.from_numpy(np.ascontiguousarray(colours)), torch.from_numpy(np.ascontiguousarray(cover)), True)


def _view_files(folder: Path) -> list[Path]:
    """00.png, 01.png, ... as far as they go."""
    files = []
    while (path := folder / f"{len(files):02d}.png").is_file() and len(files) < 100:
        files.append(path)
    return files


def _sitting(path: Path) -> Person:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("viewmats", "K", "0_K", "focal_known", "bone_positions")}
            height, width = archive["views"].shape[1:3]
            photo_width = archive["0_rgb"].shape[1]
        if not all(np.isfinite(value).all() for value in arrays.values()):
            raise ValueError("not finite")
        if len(arrays["viewmats"]) < 3:
            raise ValueError("fewer than 3 views")
        Ks = torch.from_numpy(arrays["K"].astype(np.float32)).expand(len(arrays["viewmats"]), 3, 3).contiguous()
        cameras = Cameras(torch.from_numpy(arrays["viewmats"].astype(np.float32)), Ks, width, height)
        pelvis = float(arrays["bone_positions"][0, 1])
    except Exception as error:  # a damaged archive raises nearly anything
        raise _damaged(path, error) from None
    photo_K, focal_is_known = arrays["0_K"].astype(np.float64), bool(arrays["focal_known"])
    return Person(path.stem, path, cameras, photo_K, photo_width, focal_is_known, pelvis)


def _folder(folder: Path) -> Person:
    try:
        path = folder / "cams.npz"
        files = _view_files(folder)
        if len(files) < 3:
            raise ValueError("00.png, 01.png, ... are missing")
        width, height = size_of(files[0])
        viewmats = np.tile(np.eye(4), (len(files), 1, 1))
        if path.is_file():
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES} bytes")
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                Ks = arrays["K"].astype(np.float64)
                viewmats[:, :3, :3], viewmats[:, :3, 3] = arrays["R"] @ TO_Y_UP.T, arrays["t"]
        else:
            path = folder / "cameras.json"
            described = json.loads(path.read_bytes())
            Ks, viewmats = np.asarray(described["Ks"], np.float64), np.asarray(described["viewmats"], np.float64)
        if Ks.shape != (len(files), 3, 3) or viewmats.shape != (len(files), 4, 4):
            raise ValueError(f"cameras for {len(files)} views are needed")
        if not (np.isfinite(Ks).all() and np.isfinite(viewmats).all() and Ks[0, 0, 0] > 0):
            raise ValueError("not finite")
        cameras = Cameras(*(torch.from_numpy(value.astype(np.float32)) for value in (viewmats, Ks)), width, height)
    except InputRejected:
        raise
    except Exception as error:  # a damaged archive raises nearly anything
        raise _damaged(path, error) from None
    return Person(folder.name, folder, cameras, Ks[0], width, True, None)


def _damaged(path: Path, error: Exception) -> InputRejected:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputRejected(f"{path}: not a person with true views ({reason[:200]})", code="E_DAMAGED")
