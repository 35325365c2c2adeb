"""What a training of HumanFixer is made of: sizes of the network with the settings that suit them.

``tiny`` is for trying things out, ``small`` is what hdx bundles, ``medium`` wants a GPU, ``svd`` fine-tunes Stable
Video Diffusion (1.5 B parameters) at the size of HumanDreamer-X, 960 x 640, with the settings of public fine-tunings
(learning rate 1e-5, warm-up of 500 steps, ln sigma ~ N(0.7, 1.6), EMA 0.9999). The paper publishes none of these.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import UsageError

PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out of a training, with the pairs; on the same machine to the last bit.

    Attributes:
        size: of the network (``humanfixer.unet.SIZES``).
        variant, identity: of its attention (``humanfixer.attention``).
        without_coarse: an ablation: the photo stands in the place of every coarse view.
        height: rows of the images.
        steps: of the optimiser in all; the learning rate falls to 2 % along half a cosine.
        batch: people per step, over all processes.
        frames: views per person without temporal layers; 0 for all, with them.
        lr, warmup, weight_decay, clip: of AdamW; steps until the rate is full; largest norm of the gradient.
        ema: of the averaged weights, whose memory grows to it.
        base_blur, sigma_start: of ``humanfixer.restorer.Config``.
        start_share, log_mean, log_std: share of samples at the direct start; of ln sigma of the others.
        channel_weight, image_weight, perceptual: 1 where errors of latents count as in pixels; weights of losses.
        inject: how often the photo replaces view 0.
        mirrored, recoloured: shares of samples that are.
        precision: "no" or "bf16", of the UNet.
        checkpointing: compute activations again where the gradient needs them, temporal blocks included.
        attention_only: train ``conv_in``, attention blocks and identity alone.
        held_out: share of the people that are only measured on.
        seed: of everything random.
    """

    size: str = "small"
    variant: str = "cyclic_mask"
    identity: str = "face"
    without_coarse: bool = False
    height: int = 192
    steps: int = 20_000
    batch: int = 2
    frames: int = 0
    lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.995
    base_blur: float = 2.0
    sigma_start: float = 80.0
    start_share: float = 0.7
    log_mean: float = 0.7
    log_std: float = 1.6
    channel_weight: float = 1.0
    image_weight: float = 0.0
    perceptual: float = 0.0
    inject: float = 0.9
    mirrored: float = 0.5
    recoloured: float = 0.8
    precision: str = "no"
    checkpointing: bool = False
    attention_only: bool = False
    held_out: float = 0.05
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0."""
        fall = 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * fall


# What differs from the defaults above.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"height": 96, "steps": 2000, "lr": 2e-3, "base_blur": 1.0},
    "small": {},
    "medium": {
        "height": 480, "steps": 100_000, "batch": 8, "lr": 3e-4, "warmup": 500, "ema": 0.999, "precision": "bf16",
    },
    "svd": {
        "height": 960, "steps": 30_000, "batch": 8, "lr": 1e-5, "warmup": 500, "ema": 0.9999, "base_blur": 0.0,
        "sigma_start": 700.0, "start_share": 0.0, "channel_weight": 0.0, "precision": "bf16", "checkpointing": True,
        "attention_only": True,
    },
}  # fmt: skip
# May differ where a training goes on.
FREE = ("steps", "checkpointing")


def recipe_of(size: str, **asked: Any) -> Recipe:
    """The settings of a size, and what was asked for instead; None asks for nothing.

    Raises:
        UsageError: a size that does not exist, or numbers that cannot be meant.
    """
    if size not in SIZES:
        raise UsageError(f"--size {size}: choose one of {', '.join(SIZES)}")
    made = replace(Recipe(size=size, **SIZES[size]), **{name: v for name, v in asked.items() if v is not None})
    if made.height % 8 or not 32 <= made.height <= 2048:
        raise UsageError(f"--height {made.height}: a multiple of 8 from 32 to 2048")
    if made.frames > 18:
        raise UsageError(f"--frames {made.frames}: an orbit has 18 views")
    return made


def changed(old: dict[str, Any], new: Recipe) -> list[str]:
    """Names of settings that a training cannot go on with: "lr: 0.001, now 0.002"."""
    now = asdict(new)
    known = {field.name for field in fields(Recipe)} - set(FREE)
    return [f"{name}: {old[name]}, now {now[name]}" for name in sorted(known & set(old)) if old[name] != now[name]]
