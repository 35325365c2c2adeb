"""One step of HumanFixer's training: which people, what is drawn for them, and the loss.

All of it follows from the recipe, the pairs and the number of the step: every sample draws from a generator of its own,
seeded by (seed, step, place in the batch), whichever process it falls to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..humanfixer.attention import VIEWS
from ..humanfixer.diffusion import denoised, training_sigmas, velocity, velocity_to
from ..humanfixer.restorer import HumanFixer, close_cycle, person_columns
from ..humanfixer.unet import temporal_parameters
from .fixer_data import Batch, Source, as_batch, mirrored, recoloured
from .recipe import Recipe
from .train_humanfixer import Perceptual, image_loss


def seed_of(*parts: int | str) -> int:
    """A seed from numbers and words, unlike any other's."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 1


def chosen(recipe: Recipe, step: int, count: int) -> list[int]:
    """Which of ``count`` pairs a step takes: every pair once before any comes again, shuffled each time."""
    places = range(step * recipe.batch, (step + 1) * recipe.batch)
    rounds = {place // count for place in places}
    orders = {
        turn: torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(recipe.seed, "order", turn)))
        for turn in rounds
    }
    return [int(orders[place // count][place % count]) for place in places]


def common_columns(sources: list[Source], flipped: list[bool], height: int) -> slice:
    """The columns that all people of a batch need, whichever process has them: all samples must be of one shape."""
    alpha = torch.zeros(height, sources[0].width)
    for source, flip in zip(sources, flipped, strict=True):
        first, last = source.columns
        columns = slice(source.width - 1 - last, source.width - first) if flip else slice(first, last + 1)
        alpha[0, columns] = 1
    return person_columns(alpha)


def without_coarse(batch: Batch) -> Batch:
    """The photo repeated in the place of all coarse views (the paper's ablation "w/o coarse 3DGS"); none was seen."""
    return replace(
        batch, coarse=batch.photo[:, None].expand(-1, VIEWS, -1, -1, -1).contiguous(), seen=torch.zeros_like(batch.seen)
    )


@dataclass(frozen=True)
class Sample:
    """One person of a step with all that is drawn for it.

    Attributes:
        batch: of one person, augmented and narrowed; photo: the whole one, augmented, for CLIP.
        inject: whether the photo replaces view 0; sigma: of its noise.
        noise: [L C h w] of unit variance.
    """

    batch: Batch
    photo: Float[Tensor, "1 4 H W"]
    inject: bool
    sigma: float
    noise: Float[Tensor, "L C h w"]


def samples_of(
    recipe: Recipe, sources: list[Source], step: int, places: range, channels: int, factor: int
) -> list[Sample]:
    """The samples at ``places`` of the batch of a step.

    Args:
        channels, factor: of the latents.
    """
    order = chosen(recipe, step, len(sources))
    generators = [torch.Generator().manual_seed(seed_of(recipe.seed, step, place)) for place in range(recipe.batch)]
    flipped = [bool(torch.rand(1, generator=generator) < recipe.mirrored) for generator in generators]
    columns = common_columns([sources[index] for index in order], flipped, recipe.height)
    made = []
    for place in places:
        generator = generators[place]
        batch = as_batch([sources[order[place]].load()])
        if flipped[place]:
            batch = mirrored(batch)
        if torch.rand(1, generator=generator) < recipe.recoloured:
            batch = recoloured(batch, generator)
        photo = batch.photo
        parts = (getattr(batch, name)[..., columns] for name in ("coarse", "truth", "seen", "photo"))
        batch = Batch(*parts, batch.faces)
        if recipe.without_coarse:
            batch = without_coarse(batch)
        inject = bool(torch.rand(1, generator=generator) < recipe.inject)
        sigma = training_sigmas(
            1, recipe.sigma_start, recipe.start_share, recipe.log_mean, recipe.log_std, generator
        )  # fmt: skip
        frames = recipe.frames or (VIEWS if recipe.variant == "noncyclic" else VIEWS + 1)
        size = [-(-side // factor) for side in batch.truth.shape[-2:]]
        made.append(
            Sample(batch, photo, inject, float(sigma), torch.randn(frames, channels, *size, generator=generator))
        )
    return made


class Objective(nn.Module):
    """The loss of samples, each for itself; what the processes of a training run at once."""

    def __init__(self, model: HumanFixer, recipe: Recipe, perceptual: Perceptual | None = None):
        super().__init__()
        self.model = model
        self.recipe = recipe
        self._perceptual = (perceptual,)  # in a tuple, so that its weights are not taken for ours

    def forward(
        self,
        batch: Batch,
        inject: Bool[Tensor, "B"],
        sigma: Float[Tensor, "B"],
        noise: Float[Tensor, "B L C h w"],
        views: list[int] | None,
        clip: Float[Tensor, "B 1 D"] | None = None,
    ) -> dict[str, Float[Tensor, "B"]]:
        """The parts of the loss of every sample, weighted.

        Args:
            views: only these, without temporal layers; clip: image tokens, for the identities that have one.
        """
        model, recipe = self.model, self.recipe
        conditions = model.conditions(batch.coarse, batch.seen, batch.photo, batch.faces, inject, clip)
        truth = close_cycle(batch.truth, recipe.variant)
        if views is not None:
            index = torch.tensor(views, device=truth.device)
            conditions, truth = conditions.frames(index), truth[:, index]
        x0 = model.normalise(model.encode(truth), conditions.base)
        wide = sigma[:, None, None, None, None]
        at_start = (wide - recipe.sigma_start).abs() < 1e-4 * recipe.sigma_start
        z = torch.where(at_start, conditions.start, x0) + wide * noise
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            v = model(z, sigma, conditions)
        v = v.float()
        wanted = torch.where(at_start, velocity_to(x0, z, wide), velocity(x0, noise, wide))
        weights = (model.residual_std**2 / (model.residual_std**2).mean()) ** recipe.channel_weight
        parts = {"v": (weights[:, None, None] * (v - wanted).square()).flatten(1).mean(1)}
        if recipe.image_weight or recipe.perceptual:
            images = model.decode(model.latents(denoised(z, v, wide), conditions.base), *truth.shape[-2:])
            pairs = list(zip(images, truth, strict=True))
            if recipe.image_weight:
                parts["image"] = recipe.image_weight * torch.stack([image_loss(*pair) for pair in pairs])
            if recipe.perceptual:
                parts["perceptual"] = recipe.perceptual * torch.stack([self._perceptual[0](*pair) for pair in pairs])
        return parts


def enable_checkpointing(unet: UNetSpatioTemporalConditionModel) -> None:
    """Keep few activations and compute the others again. diffusers does it for all but the temporal blocks, whose are
    the most (as many sequences as pixels)."""
    unet.enable_gradient_checkpointing()
    for module in unet.modules():
        if isinstance(module, TemporalBasicTransformerBlock):
            module.forward = partial(_computed_again, module.forward)


def _computed_again(forward: Callable, *given: Any, **named: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, **named)


def trainable(model: HumanFixer, recipe: Recipe) -> dict[str, nn.Parameter]:
    """The parameters that learn; the others are frozen."""
    frozen: set[int] = set()
    if recipe.frames:
        frozen |= {id(parameter) for parameter in temporal_parameters(model.unet)}
    if recipe.attention_only:
        kept = [m for m in model.unet.modules() if isinstance(m, TransformerSpatioTemporalModel)]
        kept = {id(p) for module in [*kept, model.unet.conv_in, model.identity] for p in module.parameters()}
        frozen |= {id(parameter) for parameter in model.parameters()} - kept
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
