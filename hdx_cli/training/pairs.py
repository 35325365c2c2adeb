"""Pairs to train HumanFixer on: what a coarse avatar looks like from 18 sides, and what the person looks like.

    python -m hdx_cli.training.pairs --photos PHOTOS --out PAIRS [--variants estimated,noisy]

PHOTOS is made by ``hdx_cli.training.photos``. The coarse avatar is the real ``fit_coarse`` on the *estimated* body with
fewer Gaussians and steps than a person gets. The other variants let the restorer meet what it will: ``noisy`` turns the
limbs of that body some more, ``early`` stops before the fit is done, ``refined`` is half way towards what the bundled
HumanFixer made of it. A file that is there already is left as it is (figure 3 of HumanDreamer-X).
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ..avatars.base import Avatar
from ..avatars.explicit import Settings, fit_coarse
from ..avatars.refine import RefineSettings, photo_views, refine, restored_views
from ..avatars.turntable import straight, through_window, views_to_restore
from ..bodies import anny
from ..bodies.base import BodyFit, BodyModel, joint_transforms
from ..bodies.fit import fit_body
from ..camera import Cameras
from ..errors import HdxError, InputRejected
from ..geometry import rotvecs_to_matrices
from ..humanfixer.checkpoint import load_weights
from ..humanfixer.restorer import Restorer
from ..observation import Observation
from ..preprocess.face import face_crop
from ..run_folder import write_outside
from .evaluate import true_cameras_in_avatar_world
from .photos import Sitting, load_sitting

QUICK = Settings(gaussians=30_000, iterations=25, max_side_px=480)
EARLY_ITERATIONS, REFINED_ITERATIONS = 8, 60
NOISY_LIMB_RAD, NOISY_TRUNK_RAD = 0.16, 0.05
CUT_OUT_IOU = 0.85  # below it the estimated matte holds something else than the person


def pelvis_of(model: BodyModel, fit: BodyFit) -> np.ndarray:
    """Position of the root joint in the world of a fit [3] metres."""
    rest = model.rest(fit.body.shape)
    root = joint_transforms(fit.pose.rotations[0], rest.joints, model.parents, fit.pose.translations[0])[0]
    return root[:3, :3] @ rest.joints[0] + root[:3, 3]


def cameras_in_avatar_world(sitting: Sitting, model: BodyModel, fit: BodyFit) -> Cameras:
    """The cameras of a sitting's true views, in the world of a body fitted to its photo."""
    true_pelvis, pelvis = sitting.bone_positions[0], pelvis_of(model, fit)
    # both windows look through the photo's camera: only the intrinsics of the fit may differ
    truth, camera = sitting.cameras(), replace_intrinsics(sitting, fit.camera)
    return true_cameras_in_avatar_world(
        truth, camera, torch.from_numpy(true_pelvis).float(), torch.from_numpy(pelvis).float()
    )


def replace_intrinsics(sitting: Sitting, camera: Cameras) -> Cameras:
    """The fit's camera with the window of the sitting's views: pixels of both agree whatever the focal length."""
    true = torch.from_numpy(sitting.photo.K.astype(np.float32))
    window = torch.from_numpy(sitting.K.astype(np.float32)) @ torch.linalg.inv(true)
    return Cameras(camera.viewmats, window @ camera.Ks, sitting.views.shape[2], sitting.views.shape[1])


def noisy(fit: BodyFit, model: BodyModel, generator: np.random.Generator) -> BodyFit:
    """The fit with limbs and trunk turned at random about the axis across the view, which hardly shows in the photo."""
    rotations = fit.pose.rotations.copy()
    spread = {"upperleg01": NOISY_LIMB_RAD, "lowerleg01": 0.7 * NOISY_LIMB_RAD, "upperarm01": NOISY_LIMB_RAD,
              "lowerarm01": NOISY_LIMB_RAD, "spine03": NOISY_TRUNK_RAD, "neck01": NOISY_TRUNK_RAD}  # fmt: skip
    for joint, name in enumerate(model.joint_names):
        sigma = spread.get(name.split(".")[0])
        if sigma:
            turn = rotvecs_to_matrices(generator.normal(0, 1, 3) * [sigma, 0.2 * sigma, 0.2 * sigma])
            rotations[0, joint] = rotations[0, joint] @ turn
    return replace(fit, pose=replace(fit.pose, rotations=rotations))


def pair_of(sitting: Sitting, model: BodyModel, variant: str, seed: int) -> dict[str, np.ndarray]:
    """Arrays of one pair, 8 bit, as ``fixer_data`` describes them.

    Raises:
        InputRejected: the person was cut out wrongly, or no body fits.
    """
    observation = sitting.observation()
    mattes = sitting.matte > 127, sitting.photo.matte > 127
    iou = (mattes[0] & mattes[1]).sum() / (mattes[0] | mattes[1]).sum()
    if iou < CUT_OUT_IOU:
        raise InputRejected(f"cut out wrongly, IoU {iou:.2f}")
    fit = fit_body(model, observation)
    if variant == "noisy":
        fit = noisy(fit, model, np.random.default_rng(seed))
    settings = replace(QUICK, iterations=EARLY_ITERATIONS) if variant == "early" else QUICK
    avatar = fit_coarse(observation, fit, model, settings, seed=seed)
    cameras = cameras_in_avatar_world(sitting, model, fit)
    if variant == "refined":
        avatar = half_refined(avatar, observation, fit, cameras, seed)
    rgb, alpha, seen = views_to_restore(avatar.gaussians(), avatar.visibility, cameras)
    photo, matte = through_window(observation.foreground, observation.alpha, fit.camera, cameras[0])
    face = face_crop(observation)
    return {
        "coarse": straight(rgb, alpha),
        "seen": as_bytes(seen),
        "truth": sitting.views,
        "photo": as_bytes(torch.cat([photo, matte[..., None]], dim=2)),
        "face": np.zeros((64, 64, 3), np.uint8) if face is None else face,
    }


def half_refined(avatar: Avatar, observation: Observation, fit: BodyFit, cameras: Cameras, seed: int) -> Avatar:
    """The avatar part of the way to what the bundled HumanFixer makes of its views, as a second round would meet it.

    Raises:
        WeightsError: the bundled weights are missing or damaged.
    """
    settings = replace(RefineSettings(), iterations=REFINED_ITERATIONS, polish=0, max_side_px=QUICK.max_side_px)
    fixer = Restorer(load_weights())
    rgb, alpha, seen = views_to_restore(avatar.gaussians(), avatar.visibility, cameras)
    photo, matte = through_window(observation.foreground, observation.alpha, fit.camera, cameras[0])
    photo = photo * matte[..., None] + 1 - matte[..., None]
    crop = face_crop(observation)
    face = None if crop is None else torch.from_numpy(crop).float() / 255
    rgb, alpha = fixer(rgb, alpha, seen, photo, matte, face, seed=seed)
    pictures = straight(torch.cat([photo[None], rgb[1:]]), torch.cat([matte[None], alpha[1:]]))
    views = restored_views(cameras, pictures, avatar, settings, fixer.model.config.height)
    window = photo_views(fit.camera, observation.foreground, observation.alpha, settings.max_side_px)
    return refine(avatar, window, views, settings, seed=seed)


def write_pair(path: Path, sitting: Sitting, model: BodyModel, variant: str, seed: int, person: str) -> None:
    """Make one pair and write it, whole or not at all.

    Raises:
        HdxError: as ``pair_of``; or the disk fails.
    """
    arrays = pair_of(sitting, model, variant, seed)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, person=np.array(person), variant=np.array(variant), **arrays)

    write_outside(path, write)


def as_bytes(values: Float[torch.Tensor, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values in [0, 1] as 8 bit."""
    return (values * 255).round().to(torch.uint8).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", default="estimated")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="take every n-th person only, to share work")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = anny.load()
    people = sorted(path for path in arguments.photos.glob("*.npz") if path.stem.isdigit())
    for path in people[arguments.first :: arguments.every]:
        for variant in arguments.variants.split(","):
            target = arguments.out / f"{path.stem}_{variant}.npz"
            if target.exists():
                continue
            started = time.perf_counter()
            try:
                write_pair(target, load_sitting(path), model, variant, int(path.stem), path.stem)
            except HdxError as error:
                print(path.stem, variant, error, flush=True)
                continue
            print(path.stem, variant, f"{time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
