"""Photos of synthetic people whose body is known exactly, for calibrating and measuring the body fit.

    python -m hdx_cli.training.synthetic_people --generator DIR --people PEOPLE/train --out CASES --views 3

``--generator`` is the folder of a generator of clothed people on the Anny skeleton (``make_humans.py``, ``rast.py``),
``--people`` what it made: one folder per person with ``scan.glb`` and ``params.npz``. Every case is one .npz: what the
camera saw, the landmarks found in it, and the truth in the axes of ``hdx_cli.bodies``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from ..observation import Keypoints, Observation, Photo
from ..preprocess.keypoints import detect_keypoints

TO_WORLD = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # z up, facing -y -> y up, facing +z


@dataclass(frozen=True)
class Case:
    """One synthetic photo and its truth; camera axes are OpenCV's, the world's those of ``hdx_cli.bodies``.

    Attributes:
        rgb, alpha: the photo [H W 3] and the person's exact matte [H W], 8 bit.
        keypoints: landmarks found in the photo.
        K, viewmat: camera [3 3], [4 4].
        bone_rotations: rotation of every bone since the rest pose, in the world [J 3 3].
        bone_positions: posed bone heads in the world, metres [J 3].
        base_vertices: posed vertices of MakeHuman's base mesh, body part [B 3].
        view: front, side or back.
    """

    rgb: UInt8[np.ndarray, "H W 3"]
    alpha: UInt8[np.ndarray, "H W"]
    keypoints: Keypoints
    K: Float[np.ndarray, "3 3"]
    viewmat: Float[np.ndarray, "4 4"]
    bone_rotations: Float[np.ndarray, "J 3 3"]
    bone_positions: Float[np.ndarray, "J 3"]
    base_vertices: Float[np.ndarray, "B 3"]
    view: str
    person: str

    def observation(self) -> Observation:
        """What a perfect matting and this detector would hand to the fit."""
        rgb = self.rgb.astype(np.float32) / 255
        alpha = self.alpha.astype(np.float32) / 255
        return Observation(Photo(rgb), alpha, rgb, self.keypoints)

    def in_camera(self, points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
        """World points in camera axes."""
        return points @ self.viewmat[:3, :3].T + self.viewmat[:3, 3]


def save_case(path: Path, case: Case) -> None:
    """Write one case; landmarks that were not found are left out."""
    arrays = {name: value for name, value in vars(case).items() if name != "keypoints"}
    arrays |= {f"keypoints_{name}": v for name, v in asdict(case.keypoints).items() if v is not None}
    np.savez_compressed(path, **arrays)


def load_case(path: Path) -> Case:
    """Read what ``save_case`` wrote."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    found = {n.removeprefix("keypoints_"): arrays.pop(n) for n in list(arrays) if n.startswith("keypoints_")}
    view, person = str(arrays.pop("view")), str(arrays.pop("person"))
    return Case(keypoints=Keypoints(**found), view=view, person=person, **arrays)


def truth(params: Path) -> tuple[Float[np.ndarray, "J 3 3"], Float[np.ndarray, "J 3"], Float[np.ndarray, "B 3"]]:
    """Bone rotations since rest, posed bone heads and posed base vertices of a generated person, in our axes."""
    with np.load(params) as archive:
        transforms, poses = archive["bone_transforms"].astype(float), archive["bone_poses"].astype(float)
        vertices = archive["body_vertices"].astype(float)
    rotations = TO_WORLD @ transforms[:, :3, :3] @ TO_WORLD.T
    return rotations, poses[:, :3, 3] @ TO_WORLD.T, vertices @ TO_WORLD.T


def random_camera(
    points: Float[np.ndarray, "P 3"], view: str, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"], int, int]:
    """A hand-held camera: K, viewmat, width, height. The person fills 55 to 90 % of the height, off the middle.

    One photo in eight of a front view is cropped somewhere at the thighs.
    """
    width, height = [(720, 960), (640, 960), (960, 720), (800, 800)][generator.integers(4)]
    focal = generator.uniform(0.9, 2.2) * max(width, height)
    yaw_deg = generator.uniform(-40, 40) + {"front": 0, "side": 90 * generator.choice([-1, 1]), "back": 180}[view]
    if view == "side":
        yaw_deg += generator.uniform(-15, 15) - (yaw_deg - 90 * np.sign(yaw_deg))
    yaw, pitch = np.radians(yaw_deg), np.radians(generator.uniform(-5, 15))
    forward = -np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.cross(forward, [0, 1, 0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    low, high = points.min(axis=0), points.max(axis=0)
    if view == "front" and generator.random() < 1 / 8:
        low[1] += generator.uniform(0.38, 0.5) * (high[1] - low[1])
    centre, span = (low + high) / 2, high[1] - low[1]
    fill = generator.uniform(0.55, 0.9)
    distance = focal * span / (fill * height)
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    offset = np.array([generator.uniform(-0.08, 0.08) * width, generator.uniform(-0.4, 0.4) * (1 - fill) * height, 0])
    if low[1] > points[:, 1].min() + 0.1:
        offset[1] = 0.5 * (1 - fill) * height  # the crop line is the lower border
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation
    viewmat[:3, 3] = -rotation @ centre + [offset[0] * distance / focal, offset[1] * distance / focal, distance]
    return K, viewmat, width, height


def random_background(width: int, height: int, generator: np.random.Generator) -> Float32[np.ndarray, "H W 3"]:
    """Soft blotches, boxes and grain in [0, 1]: busy enough that edges exist, without meaning."""
    scale = int(generator.choice([2, 4, 9]))
    small = generator.random((scale + 1, scale + 1, 3)).astype(np.float32)
    spread = generator.uniform(0.05, 0.6)
    small = small * spread + generator.uniform(0, 1 - spread)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(generator.integers(0, 9)):
        x, y = generator.integers(0, width), generator.integers(0, height)
        corner = int(x + generator.integers(20, 300)), int(y + generator.integers(20, 400))
        cv2.rectangle(image, (int(x), int(y)), corner, generator.random(3).tolist(), -1)
    image = cv2.GaussianBlur(image, (0, 0), generator.uniform(0.5, 6))
    return np.clip(image + generator.normal(0, 0.015, image.shape), 0, 1).astype(np.float32)


def make_cases(generator_folder: Path, person: Path, views: list[str], seed: int) -> list[Case]:
    """Photos of one generated person; views in which nobody is found are left out."""
    sys.path.insert(0, str(generator_folder))
    import make_humans
    import rast

    rng = np.random.default_rng(seed)
    parts = make_humans.read_glb(str(person / "scan.glb"))
    scene = rast.Scene(parts, ao_dirs=24)
    scene.light(*make_humans.light(np.random.RandomState(seed % 2**31)))
    visible = np.concatenate([part["V"][np.unique(part["F"])] for part in parts]) @ TO_WORLD.T
    bones = truth(person / "params.npz")
    cases = []
    for view in views:
        K, viewmat, width, height = random_camera(visible, view, rng)
        rendered = scene.render(K, viewmat[:3, :3] @ TO_WORLD, viewmat[:3, 3], W=width, H=height)["rgba"]
        alpha = rendered[..., 3:].astype(np.float32) / 255
        rgb = rendered[..., :3] / np.float32(255) * alpha + random_background(width, height, rng) * (1 - alpha)
        keypoints = detect_keypoints(rgb.astype(np.float32))
        if keypoints is not None:
            image = np.round(rgb * 255).astype(np.uint8)
            cases.append(Case(image, rendered[..., 3], keypoints, K, viewmat, *bones, view=view, person=person.name))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--people", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", default='["front", "front", "front"]', help="JSON list, one photo per entry")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for person in sorted(arguments.people.iterdir()):
        views = json.loads(arguments.views)
        seed = arguments.seed + int(person.name) * 1009
        for index, case in enumerate(make_cases(arguments.generator, person, views, seed)):
            save_case(arguments.out / f"{person.name}_{index}_{case.view}.npz", case)
        print(person.name, flush=True)


if __name__ == "__main__":
    main()
