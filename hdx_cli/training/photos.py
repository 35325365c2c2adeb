"""Photos of synthetic people together with everything that is true of them, one per person.

    python -m hdx_cli.training.photos --generator DIR --people PEOPLE/train --out PHOTOS --first 0 --count 400

``--generator`` and ``--people`` are as for ``synthetic_people``. Every person becomes one .npz: a photo over a random
background with what preprocessing makes of it, its camera and the true body; and the person from the 18 cameras of the
orbit through that photo with depth. A file that is there is left as it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8

from ..avatars.turntable import closed_in
from ..camera import Cameras, orbit_of
from ..errors import HdxError
from ..observation import Keypoints, Observation, Photo
from ..preprocess import observe
from ..run_folder import write_outside
from .synthetic_people import TO_WORLD, random_background, random_camera, truth

VIEWS, WIDTH, HEIGHT = 18, 320, 480
KNOWN_FOCAL = 0.7  # share of photos whose focal length EXIF tells


@dataclass(frozen=True)
class Snapshot:
    """One photo, its landmarks and its camera.

    Attributes:
        rgb: [H W 3] 8 bit; K [3 3], viewmat [4 4] (world to camera, the person's pelvis on the y axis).
        matte: the exact matte [H W] 8 bit.
        keypoints: landmarks found in the photo.
    """

    rgb: UInt8[np.ndarray, "H W 3"]
    matte: UInt8[np.ndarray, "H W"]
    K: Float[np.ndarray, "3 3"]
    viewmat: Float[np.ndarray, "4 4"]
    keypoints: Keypoints


@dataclass(frozen=True)
class Sitting:
    """A person's photo and the truth; the world has the pelvis on the y axis, +Y up.

    Attributes:
        photo: the photo; matte [H W] and foreground [H W 3] as preprocessing found them, 8 bit.
        focal_known: whether the fit may know the focal length.
        views: the person over nothing, straight RGBA [18 h w 4], through ``viewmats`` [18 4 4] and ``K`` [3 3]; view 0
            looks from the photo's camera.
        depth: along the optical axis, metres [18 h w], 0 where there is nothing.
        bone_rotations, bone_positions, base_vertices: as in ``synthetic_people.Case``.
    """

    photo: Snapshot
    matte: UInt8[np.ndarray, "H W"]
    foreground: UInt8[np.ndarray, "H W 3"]
    focal_known: bool
    views: UInt8[np.ndarray, "C h w 4"]
    depth: Float16[np.ndarray, "C h w"]
    viewmats: Float[np.ndarray, "C 4 4"]
    K: Float[np.ndarray, "3 3"]
    bone_rotations: Float[np.ndarray, "J 3 3"]
    bone_positions: Float[np.ndarray, "J 3"]
    base_vertices: Float[np.ndarray, "B 3"]

    def observation(self) -> Observation:
        """What preprocessing hands to the body fit."""
        rgb = self.photo.rgb.astype(np.float32) / 255
        focal = float(self.photo.K[0, 0]) if self.focal_known else None
        alpha, foreground = self.matte.astype(np.float32) / 255, self.foreground.astype(np.float32) / 255
        return Observation(Photo(rgb, None, focal), alpha, foreground, self.photo.keypoints)

    def cameras(self) -> Cameras:
        """The cameras of ``views``."""
        Ks = torch.from_numpy(self.K.astype(np.float32)).expand(len(self.viewmats), 3, 3).contiguous()
        return Cameras(torch.from_numpy(self.viewmats.astype(np.float32)), Ks, self.views.shape[2], self.views.shape[1])


def save_sitting(path: Path, sitting: Sitting) -> None:
    """Write one person, whole or not at all."""
    arrays = {name: value for name, value in vars(sitting).items() if name != "photo"}
    arrays |= {f"photo_{name}": value for name, value in vars(sitting.photo).items() if name != "keypoints"}
    found = asdict(sitting.photo.keypoints)
    arrays |= {f"keypoints_{name}": value for name, value in found.items() if value is not None}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_outside(path, write)


def load_sitting(path: Path) -> Sitting:
    """Read what ``save_sitting`` wrote."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}

    def taken(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}

    photo = Snapshot(**taken("photo_"), keypoints=Keypoints(**taken("keypoints_")))
    return Sitting(photo=photo, focal_known=bool(arrays.pop("focal_known")), **arrays)


def photograph(generator_folder: Path, person: Path, seed: int) -> Sitting | None:
    """Everything of one generated person, or None where preprocessing rejects the photo."""
    sys.path.insert(0, str(generator_folder))
    import make_humans
    import rast

    rng = np.random.default_rng(seed)
    parts = make_humans.read_glb(str(person / "scan.glb"))
    scene = rast.Scene(parts, ao_dirs=24)
    scene.light(*make_humans.light(np.random.RandomState(seed % 2**31)))
    rotations, positions, base_vertices = truth(person / "params.npz")
    to_axis = np.array([-positions[0, 0], 0.0, -positions[0, 2]])  # brings the pelvis to the y axis
    visible = np.concatenate([part["V"][np.unique(part["F"])] for part in parts]) @ TO_WORLD.T + to_axis

    def shot(K, viewmat, width, height, supersampling=2) -> tuple[np.ndarray, np.ndarray]:
        in_scene = viewmat[:3, :3] @ TO_WORLD
        translation = viewmat[:3, 3] + viewmat[:3, :3] @ to_axis
        made = scene.render(K, in_scene, translation, W=width, H=height, ss=supersampling, want_ids=True)
        inverse_depth = made["depth"][::supersampling, ::supersampling]
        depth = np.where(inverse_depth > 0, 1 / np.maximum(inverse_depth, 1e-6), 0)
        return made["rgba"], depth.astype(np.float16)

    def over_background(rgba: np.ndarray) -> np.ndarray:
        alpha = rgba[..., 3:].astype(np.float32) / 255
        background = random_background(rgba.shape[1], rgba.shape[0], rng)
        return np.round(255 * (rgba[..., :3] / np.float32(255) * alpha + background * (1 - alpha))).astype(np.uint8)

    K, viewmat, width, height = _uncropped_camera(visible, rng)
    rgba, _ = shot(K, viewmat, width, height)
    rgb = over_background(rgba)
    try:
        observation, _, _ = observe(Photo(rgb.astype(np.float32) / 255), name=person.name)
    except HdxError:
        return None
    photo = Snapshot(rgb, rgba[..., 3].copy(), K, viewmat, observation.keypoints)
    camera = Cameras(
        torch.from_numpy(viewmat.astype(np.float32)[None]), torch.from_numpy(K.astype(np.float32)[None]), width, height
    )
    cameras = orbit_of(closed_in(torch.from_numpy(visible.astype(np.float32)), camera, WIDTH, HEIGHT), VIEWS)
    viewmats = cameras.viewmats.double().numpy()
    pictures, depth = np.zeros((VIEWS, HEIGHT, WIDTH, 4), np.uint8), np.zeros((VIEWS, HEIGHT, WIDTH), np.float16)
    for index, viewmat in enumerate(viewmats):
        pictures[index], depth[index] = shot(cameras.Ks[0].double().numpy(), viewmat, WIDTH, HEIGHT)
    return Sitting(
        photo, np.round(observation.alpha * 255).astype(np.uint8),
        np.round(observation.foreground * 255).astype(np.uint8), bool(rng.random() < KNOWN_FOCAL),
        pictures, depth, viewmats, cameras.Ks[0].double().numpy(),
        rotations, positions + to_axis, base_vertices + to_axis,
    )  # fmt: skip


def _uncropped_camera(points: np.ndarray, rng: np.random.Generator):
    """A front camera that holds all of the person."""
    while True:
        K, viewmat, width, height = random_camera(points, "front", rng)
        pixels = (points @ viewmat[:3, :3].T + viewmat[:3, 3]) @ K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        if (pixels.min(0) > 4).all() and (pixels.max(0) < np.array([width, height]) - 4).all():
            return K, viewmat, width, height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1, help="take every n-th person only, to share work")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    people = sorted(arguments.people.iterdir(), key=lambda path: int(path.name))
    for person in people[arguments.first : arguments.first + arguments.count : arguments.every]:
        target = arguments.out / f"{person.name}.npz"
        if target.exists():
            continue
        started = time.perf_counter()
        sitting = photograph(arguments.generator, person, arguments.seed + int(person.name) * 1009)
        if sitting is not None:
            save_sitting(target, sitting)
        print(person.name, "rejected" if sitting is None else "", f"{time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
