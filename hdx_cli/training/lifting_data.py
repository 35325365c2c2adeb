"""What the lifting network learns from: synthetic people, each in a few small photos, as the network sees them.

    python -m hdx_cli.training.lifting_data --generator DIR --out SAMPLES --first 0 --count 2000

``--generator`` is the folder of a generator of clothed people on the Anny skeleton (``make_humans.py``, ``rast.py``,
``body.py``); people are made in memory, one to two seconds each. Every person becomes one .npz of arrays over their photos;
a file that is there is left as it is. ``train_lifting`` reads them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from ..bodies import anny, lifting
from ..bodies.anny_rig import anny_rig, load_calibration
from ..bodies.fit import body_axes, calibrated_directions, landmark_arrays
from ..bodies.lifting import HEIGHT, WIDTH
from ..bodies.rig import BODY_DIRECTIONS, POSE_LANDMARKS, direction_matrix
from ..errors import HdxError
from ..observation import Keypoints, Photo
from ..preprocess import observe
from ..preprocess.keypoints import detect_person
from ..run_folder import write_outside
from .calibrate_body import base_positions
from .synthetic_people import TO_WORLD, Case, random_background, random_camera

ROOM = 1.25  # how much more of the photo than the network sees is kept, for shifts and turns
PHOTO_HEIGHT = 480
DEPTH_MIDDLE, DEPTH_STEPS_PER_M = 128, 127  # 8 bits: 1 to 255, 0 where nothing is
TEXTURE, AO_DIRECTIONS, AO_SIZE, SHADOW_SIZE = 512, 14, 160, 640  # enough for such small photos
ESTIMATED_EVERY = 4  # of that many people one photo is cut out by preprocessing, the others exactly
HIPS = [23, 24]  # among the landmarks
LIMBS = [f"{part}.{side}" for part in ("upperarm01", "lowerarm01", "upperleg01", "foot") for side in "LR"]
SPINE = ["root", "spine05", "spine03", "spine01"]
KNEES = ["lowerleg01.L", "lowerleg01.R"]


@cache
def _fitting():
    model = anny.load()
    return model, anny_rig(model, lifting=False), load_calibration()[0]


def sample_of(
    rgb: UInt8[np.ndarray, "H W 3"],
    matte: UInt8[np.ndarray, "H W"],
    keypoints: Keypoints,
    depth: Float[np.ndarray, "H W"],
    camera: tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"]],
    truth: tuple[Float[np.ndarray, "J 3 3"], Float[np.ndarray, "J 3"], Float[np.ndarray, "B 3"]],
) -> dict[str, np.ndarray]:
    """One photo as the network sees it and what is true of it.

    Args:
        depth: along the optical axis, metres, 0 where nothing is.
        camera: K and viewmat.
        truth: bone rotations, bone positions and base vertices as in ``synthetic_people.Case``.

    Returns:
        ``image``, ``landmarks`` and ``directions`` as in ``lifting.Inputs``, the image larger by ``ROOM`` and in 8
        bits; ``true`` directions; ``depth`` behind the hips along the ray axes' z, coded.
    """
    model, rig, offsets = _fitting()
    K, viewmat = camera
    pixels, points, confidence = landmark_arrays(keypoints)
    world = keypoints.world.astype(float)
    found, _, _ = calibrated_directions(rig, points, confidence, body_axes(world))
    base, rotations = base_positions(model, Case(rgb, matte, keypoints, K, viewmat, *truth, "front", ""))
    vectors = (direction_matrix() @ (base + np.einsum("lab,lb->la", rotations, offsets)))[:BODY_DIRECTIONS]
    true = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pixels, confidence = pixels[:POSE_LANDMARKS], confidence[:POSE_LANDMARKS]
    alpha = matte.astype(np.float32) / 255
    x, y, scale = crop = lifting.crop_of(alpha, pixels, confidence)
    turn = lifting.ray_axes(x, y, K[0, 0], K[0, 2], K[1, 2])
    size = round(ROOM * WIDTH), round(ROOM * HEIGHT)
    rows, columns = np.indices(depth.shape) + 0.5
    along = (columns - K[0, 2]) / K[0, 0] * turn[2, 0] + (rows - K[1, 2]) / K[1, 1] * turn[2, 1] + turn[2, 2]
    behind = along * depth - base[HIPS].mean(axis=0) @ turn[2]
    coded = np.where(depth > 0, np.clip(np.round(DEPTH_MIDDLE + DEPTH_STEPS_PER_M * behind), 1, 255), 0)
    into = np.array([[scale, 0, size[0] / 2 - scale * x], [0, scale, size[1] / 2 - scale * y]])
    image = lifting.cropped(rgb.astype(np.float32) / 255, alpha, crop, size)
    return {
        "image": np.round(255 * image).astype(np.uint8).transpose(2, 0, 1),
        "depth": cv2.warpAffine(coded.astype(np.uint8), into, size, flags=cv2.INTER_NEAREST),
        "landmarks": lifting.landmark_features(pixels, world, confidence, crop, turn),
        "directions": (found[:BODY_DIRECTIONS] @ turn.T).astype(np.float32),
        "true": (true @ turn.T).astype(np.float32),
    }


def samples_of(generator: tuple[ModuleType, ModuleType], body, number: int, photos: int) -> list[dict[str, np.ndarray]]:
    """Person ``number`` of the generator's training people in ``photos`` random photos; fewer where nobody is found.

    Args:
        generator: the modules ``make_humans`` and ``rast``; body: the generator's body model.
    """
    make_humans, rast = generator
    seed = 1009 * number + 77
    rng = np.random.default_rng(seed)
    person = make_humans.sample(body, "train", 1000 + number, number)
    parts = make_humans.build(body, person, texmax=TEXTURE)
    for part in parts:
        part["tex"] = _at_most(part["tex"], TEXTURE)
    scene = rast.Scene(parts, ao_dirs=AO_DIRECTIONS, ao_res=AO_SIZE, shadow_res=SHADOW_SIZE)
    scene.light(*make_humans.light(np.random.RandomState(seed % 2**31)))
    posed = person["posed"]
    truth = (
        TO_WORLD @ posed["T"][:, :3, :3].astype(float) @ TO_WORLD.T,
        posed["bone_poses"][:, :3, 3].astype(float) @ TO_WORLD.T,
        posed["V"][: body.nbody].astype(float) @ TO_WORLD.T,
    )
    visible = np.concatenate([part["V"][np.unique(part["F"])] for part in parts]) @ TO_WORLD.T
    made = []
    for index in range(photos):
        K, viewmat, width, height = random_camera(visible, "front", rng)
        scale = PHOTO_HEIGHT / height
        K, width, height = np.diag([scale, scale, 1.0]) @ K, round(width * scale), PHOTO_HEIGHT
        rendered = scene.render(
            K, viewmat[:3, :3] @ TO_WORLD, viewmat[:3, 3], W=width, H=height, ss=2, want_ids=True
        )  # fmt: skip
        rgba, inverse = rendered["rgba"], rendered["depth"][::2, ::2]
        depth = np.where(inverse > 0, 1 / np.maximum(inverse, 1e-6), 0)
        alpha = rgba[..., 3:].astype(np.float32) / 255
        background = random_background(width, height, rng)
        rgb = np.round(255 * (rgba[..., :3] / np.float32(255) * alpha + background * (1 - alpha))).astype(np.uint8)
        if index == 0 and number % ESTIMATED_EVERY == 0:
            try:
                observation, _, _ = observe(Photo(rgb.astype(np.float32) / 255), name=str(number))
            except HdxError:
                continue
            keypoints = observation.keypoints
            matte = np.round(255 * observation.alpha).astype(np.uint8)
            made.append(sample_of(rgb, matte, keypoints, depth, (K, viewmat), truth))
        else:
            found = detect_person(rgb.astype(np.float32) / 255)
            if found is None:
                continue
            keypoints = found.keypoints
        made.append(sample_of(rgb, rgba[..., 3], keypoints, depth, (K, viewmat), truth))
    return made


def loosened(make_humans: ModuleType, share: float) -> Callable:
    """The generator's ``sample_pose``, whose poses are few kinds, with that share of them pulled about.

    Limbs turn about random axes by a normal angle of 4 to 14 degrees, the trunk by a third of that; knees only bend.
    """
    sample_pose, turn = make_humans.sample_pose, make_humans.rotv

    def sample(rng: np.random.RandomState, *arguments, **options):
        kind, base, rotations = sample_pose(rng, *arguments, **options)
        if rng.rand() < share:
            strength = rng.uniform(4, 14)
            more = {bone: turn(rng.normal(size=3), rng.normal(0, strength)) for bone in LIMBS}
            more |= {bone: turn(rng.normal(size=3), rng.normal(0, strength / 3)) for bone in SPINE}
            more |= {bone: turn(make_humans.X_, abs(rng.normal(0, 1.5 * strength))) for bone in KNEES}
            for bone, rotation in more.items():
                rotations[bone] = rotation @ rotations.get(bone, np.eye(3))
        return kind, base, rotations

    return sample


def _at_most(texture: UInt8[np.ndarray, "H W C"], size: int) -> UInt8[np.ndarray, "h w C"]:
    share = size / max(texture.shape[:2])
    if share >= 1:
        return texture
    return cv2.resize(np.ascontiguousarray(texture), None, fx=share, fy=share, interpolation=cv2.INTER_AREA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--every", type=int, default=1, help="take every n-th person only, to share work")
    parser.add_argument("--photos", type=int, default=4, help="per person")
    parser.add_argument("--loosened", type=float, default=0.0, help="share of the poses that are pulled about")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(arguments.generator))
    import body as generator_body
    import make_humans
    import rast

    arguments.out.mkdir(parents=True, exist_ok=True)
    make_humans.sample_pose = loosened(make_humans, arguments.loosened)
    body = generator_body.Body()
    for number in range(arguments.first, arguments.first + arguments.count, arguments.every):
        target = arguments.out / f"{number}.npz"
        if target.exists():
            continue
        started = time.perf_counter()
        made = samples_of((make_humans, rast), body, number, arguments.photos)
        if made:
            arrays = {name: np.stack([one[name] for one in made]) for name in made[0]}
            arrays["person"] = np.full(len(made), number)

            def write(partial: Path, arrays=arrays) -> None:
                with partial.open("wb") as file:
                    np.savez(file, **arrays)

            write_outside(target, write)
        print(number, len(made), f"{time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
