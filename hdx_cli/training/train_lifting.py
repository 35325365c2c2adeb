"""Train the network that tells how limbs lie in depth (``bodies.lifting``).

    python -m hdx_cli.training.train_lifting --samples SAMPLES --out lifting.safetensors --bf16 --minutes 60

SAMPLES is made by ``hdx_cli.training.lifting_data``, which may still be at it: at every checkpoint the people made since
join in. People numbered below ``--validation`` are kept for validation.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ..bodies import lifting
from ..bodies.lifting import GREY, HEIGHT, WIDTH, Inputs, LiftingNet
from .lifting_data import DEPTH_MIDDLE, DEPTH_STEPS_PER_M, ROOM

DEPTH_WEIGHT = 10.0  # of a metre
CHECKPOINT_SECONDS = 180


def gather(samples: Path) -> dict[str, np.ndarray]:
    """All samples of all people: the arrays that ``lifting_data`` keeps per person, joined."""
    paths = sorted(samples.glob("[0-9]*.npz"), key=lambda path: int(path.stem))
    names = ("image", "depth", "landmarks", "directions", "true", "person")
    rows: list[dict[str, np.ndarray]] = []
    for path in paths:
        with np.load(path) as archive:
            rows.append({name: archive[name] for name in names})
    return {name: np.concatenate([row.pop(name) for row in rows]) for name in names}


def gathered(samples: Path, validation: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """``gather`` of the people numbered from ``validation`` on, and of those below."""
    arrays = gather(samples)
    kept_back = arrays["person"] < validation
    return tuple({name: value[rows] for name, value in arrays.items()} for rows in (~kept_back, kept_back))


def inputs_of(batch: dict[str, np.ndarray]) -> tuple[Inputs, Float[Tensor, "B N 3"]]:
    """Network inputs and true directions, as they are."""
    images = batch["image"]
    top, left = (images.shape[2] - HEIGHT) // 2, (images.shape[3] - WIDTH) // 2
    images = torch.from_numpy(images[:, :, top : top + HEIGHT, left : left + WIDTH]).float() / 255
    landmarks, directions, true = (torch.from_numpy(batch[name]) for name in ("landmarks", "directions", "true"))
    return Inputs(images, landmarks, directions), true


def augmented(
    batch: dict[str, np.ndarray], rng: np.random.Generator
) -> tuple[Inputs, Float[Tensor, "B N 3"], Float[Tensor, "B h w"]]:
    """Network inputs, true directions and true depth (NaN where nothing is seen) of photos that might have been.

    Turned, shifted, scaled, mirrored, recoloured, noisy and cut out less well.
    """
    count = len(batch["true"])
    angle, scale = 0.12 * rng.standard_normal(count), rng.uniform(0.85, 1.1, count)
    shift = 0.075 * rng.standard_normal((count, 2)) * (WIDTH / 2, HEIGHT / 2)  # px
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    half = 0.5 * np.array([WIDTH, HEIGHT])
    images = np.zeros((count, 4, HEIGHT, WIDTH), np.float32)
    depths = np.zeros((count, HEIGHT // 4, WIDTH // 4), np.float32)
    for i in range(count):
        # takes the network's pixels, from their middle, to those of the kept picture
        to_kept = turn[i].T / scale[i]
        offset = ROOM * half - shift[i]
        images[i] = recoloured(_warped(batch["image"][i].transpose(1, 2, 0), to_kept, offset, 1), rng)
        depths[i] = _warped(batch["depth"][i], to_kept, offset, 4)
    depths[depths == 0] = np.nan

    def turned(vectors: np.ndarray) -> np.ndarray:
        return np.concatenate([vectors[..., :2] @ turn.transpose(0, 2, 1), vectors[..., 2:]], axis=-1)

    landmarks = batch["landmarks"]
    placed = scale[:, None, None] * turned(landmarks[..., :2] * half + shift[:, None]) / half
    placed = placed + 0.004 * rng.standard_normal(placed.shape)
    world = turned(landmarks[..., 3:]) + 0.01 * rng.standard_normal((*placed.shape[:2], 3))
    directions = turned(batch["directions"]) + 0.05 * rng.standard_normal(batch["directions"].shape)
    landmarks = np.concatenate([placed, landmarks[..., 2:3], world], axis=2)
    inputs = Inputs(
        torch.from_numpy(images),
        torch.from_numpy(landmarks.astype(np.float32)),
        F.normalize(torch.from_numpy(directions.astype(np.float32)), dim=2),
    )
    true = torch.from_numpy(turned(batch["true"]).astype(np.float32))
    depth = (torch.from_numpy(depths) - DEPTH_MIDDLE) / DEPTH_STEPS_PER_M
    if rng.random() < 0.5:
        return lifting.mirrored(inputs), lifting.mirrored_vectors(true), depth.flip(2)
    return inputs, true, depth


def _warped(
    picture: UInt8[np.ndarray, "H W *C"], to_kept: Float[np.ndarray, "2 2"], offset: Float[np.ndarray, "2"], step: int
) -> UInt8[np.ndarray, "h w *C"]:
    """Every ``step``-th pixel of the network's image; depth (step > 1) is not mixed between pixels."""
    size = WIDTH // step, HEIGHT // step
    middle = to_kept @ (0.5 * step - 0.5 * np.array([WIDTH, HEIGHT])) + offset - 0.5
    matrix = np.concatenate([step * to_kept, middle[:, None]], axis=1)
    interpolation = cv2.INTER_LINEAR if step == 1 else cv2.INTER_NEAREST
    border = (128, 128, 128, 0) if step == 1 else 0
    return cv2.warpAffine(picture, matrix, size, flags=interpolation | cv2.WARP_INVERSE_MAP, borderValue=border)


def recoloured(picture: UInt8[np.ndarray, "H W 4"], rng: np.random.Generator) -> Float[np.ndarray, "4 H W"]:
    """A picture over grey and its matte in other light, with noise, and cut out up to a pixel too tight or too wide."""
    alpha = picture[..., 3:].astype(np.float32) / 255
    table = np.arange(256)[:, None] / 255
    table = table ** rng.uniform(0.7, 1.4) * rng.uniform(0.6, 1.3, 3)
    table = table.mean(1, keepdims=True) * (1 - (saturation := rng.uniform(0.0, 1.3))) + saturation * table
    table = np.clip(table, 0, 1).astype(np.float32)
    colour = cv2.LUT(np.ascontiguousarray(picture[..., :3]), table[None]) - table[round(255 * GREY)] * (1 - alpha)
    noise = rng.integers(0, len(_noise()) - colour.size)
    colour = colour + rng.uniform(0, 0.04) * alpha * _noise()[noise : noise + colour.size].reshape(colour.shape)
    if rng.random() < 0.6:
        share, square = rng.random(), np.ones((3, 3), np.uint8)
        tight = rng.random() < 0.5
        other = (cv2.erode if tight else cv2.dilate)(alpha[..., 0], square)[..., None]
        other = alpha + np.float32(share) * (other - alpha)
        if tight:
            colour = colour * (other / np.maximum(alpha, 1e-3))
        else:
            colour = colour + rng.random(3, np.float32) * (other - alpha)
        alpha = other
    colour = np.clip(colour + GREY * (1 - alpha), 0, 1)
    return np.concatenate([colour, alpha], axis=2).transpose(2, 0, 1)


@cache
def _noise() -> Float[np.ndarray, "n"]:
    return np.random.default_rng(0).standard_normal(1 << 20, np.float32)


def loss_of(
    found: Float[Tensor, "B N 3"],
    log_sigma: Float[Tensor, "B N 3"],
    depth: Float[Tensor, "B h w"],
    true: Float[Tensor, "B N 3"],
    true_depth: Float[Tensor, "B h w"],
) -> Float[Tensor, ""]:
    """Laplace negative log-likelihood per axis, which a few gross errors do not rule, and the error of the depth map."""
    log_sigma = log_sigma.clamp(-4.0, 1.0)
    likelihood = ((found - true).abs() * torch.exp(-log_sigma) + log_sigma).mean()
    return likelihood + DEPTH_WEIGHT * (depth - true_depth)[~true_depth.isnan()].abs().mean()


def report(net: LiftingNet, data: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean depth error of the directions, of the detector and of the network, and of the legs alone."""
    errors, before = [], []
    with torch.no_grad():
        for first in range(0, len(data["true"]), 64):
            batch = {name: value[first : first + 64] for name, value in data.items()}
            inputs, true = inputs_of(batch)
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
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--validation", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--bf16", action="store_true", help="convolutions in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    train, valid = gathered(arguments.samples, arguments.validation)
    net = lifting.load_net(arguments.start, lock=None) if arguments.start else LiftingNet()
    mean = {name: value.detach().clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), arguments.rate, weight_decay=0.02)
    print(f"{len(train['true'])} photos, {sum(p.numel() for p in net.parameters()):,} parameters", flush=True)
    started, step, told = time.perf_counter(), 0, time.perf_counter()
    while (share := (time.perf_counter() - started) / (60 * arguments.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * min(share, 1)))
        index = rng.integers(0, len(train["true"]), arguments.batch)
        inputs, true, true_depth = augmented({name: value[index] for name, value in train.items()}, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            found, log_sigma, depth = net.train()(inputs)
        loss = loss_of(found.float(), log_sigma.float(), depth.float(), true, true_depth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.998, step / (step + 10))
        for name, value in net.state_dict().items():
            mean[name].lerp_(value, 1 - decay) if value.is_floating_point() else mean[name].copy_(value)
        if time.perf_counter() - told > CHECKPOINT_SECONDS:
            told = time.perf_counter()
            averaged = LiftingNet(**net.config)
            averaged.load_state_dict(mean)
            lifting.save_net(arguments.out, averaged)
            print(
                f"{told - started:.0f} s, step {step}, {len(train['true'])} photos, loss {loss.item():.3f}, "
                f"{report(averaged, valid)}",
                flush=True,
            )
            train, valid = gathered(arguments.samples, arguments.validation)
    averaged = LiftingNet(**net.config)
    averaged.load_state_dict(mean)
    lifting.save_net(arguments.out, averaged)
    print(report(averaged, valid))


if __name__ == "__main__":
    main()
