"""Train the network that tells how limbs lie in depth (``bodies.lifting``).

    python -m hdx_cli.training.train_lifting --photos PHOTOS --out lifting.safetensors --minutes 20

PHOTOS is made by ``hdx_cli.training.photos``. People numbered below ``--validation`` are kept for validation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..bodies import anny, lifting
from ..bodies.anny_rig import anny_rig, load_calibration
from ..bodies.fit import body_axes, calibrated_directions, landmark_arrays
from ..bodies.lifting import HEIGHT, WIDTH, Inputs, LiftingNet
from ..bodies.rig import BODY_DIRECTIONS, POSE_LANDMARKS, direction_matrix
from .calibrate_body import base_positions
from .photos import load_sitting
from .synthetic_people import Case

ROOM = 1.25  # how much more of the photo than the network sees is kept, for shifts and turns


def samples_of(path: Path, model: anny.AnnyBody, rig, offsets: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Everything the training needs of one person's photos; the first also with its estimated matte."""
    sitting = load_sitting(path)
    made = []
    shots = [(sitting.photo, sitting.matte)] + [(shot, shot.matte) for shot in (sitting.photo, *sitting.others)]
    for number, (shot, matte) in enumerate(shots):
        rgb, alpha = shot.rgb.astype(np.float32) / 255, matte.astype(np.float32) / 255
        case = Case(
            shot.rgb, matte, shot.keypoints, shot.K, shot.viewmat, sitting.bone_rotations, sitting.bone_positions,
            sitting.base_vertices, "front", path.stem,
        )  # fmt: skip
        pixels, points, confidence = landmark_arrays(shot.keypoints)
        found, _, _ = calibrated_directions(rig, points, confidence, body_axes(shot.keypoints.world.astype(float)))
        base, rotations = base_positions(model, case)
        vectors = (direction_matrix() @ (base + np.einsum("lab,lb->la", rotations, offsets)))[:BODY_DIRECTIONS]
        true = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        pixels, confidence = pixels[:POSE_LANDMARKS], confidence[:POSE_LANDMARKS]
        crop = lifting.crop_of(alpha, pixels, confidence)
        turn = lifting.ray_axes(crop[0], crop[1], shot.K[0, 0], shot.K[0, 2], shot.K[1, 2])
        size = round(ROOM * WIDTH), round(ROOM * HEIGHT)
        made.append({
            "image": np.round(255 * lifting.cropped(rgb, alpha, crop, size)).astype(np.uint8).transpose(2, 0, 1),
            "landmarks": lifting.landmark_features(
                pixels, shot.keypoints.world.astype(float), confidence, crop, turn),
            "directions": (found[:BODY_DIRECTIONS] @ turn.T).astype(np.float32),
            "true": (true @ turn.T).astype(np.float32),
            "person": np.int32(int(path.stem)),
            "estimated": np.bool_(number == 0),
        })  # fmt: skip
    return made


def gather(photos: Path, cache: Path) -> dict[str, np.ndarray]:
    """Samples of all people, each person's kept in ``cache``."""
    model = anny.load()
    rig, (offsets, _) = anny_rig(model), load_calibration()
    cache.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, np.ndarray]] = []
    for path in sorted(photos.glob("[0-9][0-9][0-9].npz")):
        kept = cache / path.name
        if not kept.exists():
            made = samples_of(path, model, rig, offsets)
            np.savez(kept.with_suffix(".tmp.npz"), **{k: np.stack([m[k] for m in made]) for k in made[0]})
            kept.with_suffix(".tmp.npz").rename(kept)
        with np.load(kept) as archive:
            rows.append({name: archive[name] for name in archive.files})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def augmented(batch: dict[str, Tensor], generator: torch.Generator, train: bool) -> tuple[Inputs, Tensor]:
    """Network inputs and true directions; in training turned, shifted, scaled, mirrored, recoloured and noisy."""
    image, landmarks = batch["image"].float() / 255, batch["landmarks"]
    directions, true = batch["directions"], batch["true"]
    count = len(image)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    if not train:
        top, left = (image.shape[2] - HEIGHT) // 2, (image.shape[3] - WIDTH) // 2
        return Inputs(image[:, :, top : top + HEIGHT, left : left + WIDTH], landmarks, directions), true
    angle = 0.12 * torch.randn(count, generator=generator)
    scale, shift = uniform(0.85, 1.1), 0.06 * torch.randn(count, 2, generator=generator)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # where the network's pixel lies in the kept crop, both from -1 to 1; x and y have different units
    ratio = HEIGHT / WIDTH
    inverse = torch.stack([
        torch.stack([cos / scale / ROOM, sin / scale / ROOM * ratio, -shift[:, 0]], 1),
        torch.stack([-sin / scale / ROOM / ratio, cos / scale / ROOM, -shift[:, 1]], 1),
    ], 1)  # fmt: skip
    size = count, 4, HEIGHT, WIDTH
    image = F.grid_sample(image, F.affine_grid(inverse, list(size), align_corners=False), align_corners=False)
    placed = (landmarks[..., :2] + shift[:, None] * ROOM) * torch.tensor([1.0, ratio])
    spin = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    placed = (placed @ spin.transpose(1, 2)) * scale[:, None, None] / torch.tensor([1.0, ratio])
    placed = placed + 0.004 * torch.randn(placed.shape, generator=generator)

    def spun(vectors: Tensor) -> Tensor:
        return torch.cat([vectors[..., :2] @ spin.transpose(1, 2), vectors[..., 2:]], dim=-1)

    world = spun(landmarks[..., 3:]) + 0.01 * torch.randn(*landmarks.shape[:2], 3, generator=generator)
    confidence = landmarks[..., 2:3]
    directions = F.normalize(spun(directions) + 0.05 * torch.randn(directions.shape, generator=generator), dim=2)
    true = spun(true)
    landmarks = torch.cat([placed, confidence, world], dim=2)
    alpha = image[:, 3:]
    colour = (image[:, :3] - 0.5 * (1 - alpha)).clamp(min=0)
    colour = colour ** uniform(0.7, 1.4, 1, 1, 1) * uniform(0.6, 1.3, 3, 1, 1)
    grey = colour.mean(1, keepdim=True)
    colour = grey + (colour - grey) * uniform(0.0, 1.3, 1, 1, 1)
    colour = colour + 0.04 * torch.randn(colour.shape, generator=generator) * uniform(0, 1, 1, 1, 1) * alpha
    inputs = Inputs(torch.cat([colour.clamp(0, 1) + 0.5 * (1 - alpha), alpha], dim=1), landmarks, directions)
    if torch.rand(1, generator=generator) < 0.5:
        return lifting.mirrored(inputs), lifting.mirrored_vectors(true)
    return inputs, true


def loss_of(found: Tensor, log_sigma: Tensor, true: Tensor) -> Tensor:
    """Laplace negative log-likelihood per axis, which a few gross errors do not rule."""
    log_sigma = log_sigma.clamp(-4.0, 1.0)
    return ((found - true).abs() * torch.exp(-log_sigma) + log_sigma).mean()


def report(net: LiftingNet, data: dict[str, Tensor], generator: torch.Generator) -> dict[str, float]:
    """Mean depth error of the directions, of the detector and of the network, and of the legs alone."""
    errors, before = [], []
    with torch.no_grad():
        for first in range(0, len(data["true"]), 64):
            batch = {name: value[first : first + 64] for name, value in data.items()}
            inputs, true = augmented(batch, generator, train=False)
            found, _ = lifting.both_ways(net.eval(), inputs)
            errors.append((found - true)[..., 2].abs())
            before.append((inputs.directions - true)[..., 2].abs())
    errors, before = torch.cat(errors), torch.cat(before)
    legs, arms, trunk = slice(16, 20), slice(6, 10), slice(2, 3)
    return {
        "detector": float(before.mean()), "network": float(errors.mean()),
        "legs": (float(before[:, legs].mean()), float(errors[:, legs].mean())),
        "arms": (float(before[:, arms].mean()), float(errors[:, arms].mean())),
        "torso": (float(before[:, trunk].mean()), float(errors[:, trunk].mean())),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--validation", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    arrays = gather(arguments.photos, arguments.cache)
    kept_back = arrays["person"] < arguments.validation
    names = ("image", "landmarks", "directions", "true")
    train = {name: torch.from_numpy(arrays[name][~kept_back]) for name in names}
    valid = {name: torch.from_numpy(arrays[name][kept_back]) for name in names}
    net = lifting.load_net(arguments.start, lock=None) if arguments.start else LiftingNet()
    mean = {name: value.detach().clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), arguments.rate, weight_decay=0.02)
    print(f"{len(train['true'])} photos, {sum(p.numel() for p in net.parameters()):,} parameters", flush=True)
    started, step, told = time.perf_counter(), 0, 0.0
    while (share := (time.perf_counter() - started) / (60 * arguments.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * min(share, 1)))
        index = torch.randint(len(train["true"]), (arguments.batch,), generator=generator)
        inputs, true = augmented({name: value[index] for name, value in train.items()}, generator, train=True)
        loss = loss_of(*net.train()(inputs), true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.998, step / (step + 10))
        for name, value in net.state_dict().items():
            mean[name].lerp_(value, 1 - decay) if value.is_floating_point() else mean[name].copy_(value)
        if time.perf_counter() - told > 60:
            told = time.perf_counter()
            averaged = LiftingNet(tuple(net.config["channels"]), net.config["width"], net.config["layers"])
            averaged.load_state_dict(mean)
            lifting.save_net(arguments.out, averaged)
            print(
                f"{told - started:.0f} s, step {step}, loss {loss.item():.3f}, {report(averaged, valid, generator)}",
                flush=True,
            )
    averaged.load_state_dict(mean)
    lifting.save_net(arguments.out, averaged)
    print(report(averaged, valid, generator))


if __name__ == "__main__":
    main()
