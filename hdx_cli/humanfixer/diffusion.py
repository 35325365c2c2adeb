"""Diffusion in the form of Karras et al. 2022 (EDM) with the preconditioning of Stable Video Diffusion.

A noisy sample is z = x0 + sigma * noise. The network sees z / sqrt(sigma^2 + 1) and 0.25 ln sigma, and predicts
v = (noise - sigma * x0) / sqrt(sigma^2 + 1). Plain squared error of v is the error of x0 weighted by
(sigma^2 + 1) / sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def scale_input(z: Float[Tensor, "*z"], sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*z"]:
    """What the network sees of z: unit variance at every sigma."""
    return z / (sigma**2 + 1).sqrt()


def noise_condition(sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The network's "time step" of a sigma."""
    return 0.25 * sigma.log()


def velocity(x0: Float[Tensor, "*z"], noise: Float[Tensor, "*z"], sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*z"]:
    """What the network shall predict at z = x0 + sigma * noise."""
    return (noise - sigma * x0) / (sigma**2 + 1).sqrt()


def velocity_to(x0: Float[Tensor, "*z"], z: Float[Tensor, "*z"], sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*z"]:
    """What the network shall predict at any z to land on x0 in one step; for z = x0 + sigma * noise it is ``velocity``.

    A direct start is no noisy x0: its z knows nothing of x0. Trained at such z, one step gives the mean of what is
    possible.
    """
    return (z / (sigma**2 + 1) - x0) * (sigma**2 + 1).sqrt() / sigma


def denoised(z: Float[Tensor, "*z"], v: Float[Tensor, "*z"], sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*z"]:
    """x0 of a prediction v: c_skip = 1 / (sigma^2 + 1), c_out = -sigma / sqrt(sigma^2 + 1)."""
    return z / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()


def karras_sigmas(
    steps: int, sigma_max: float, sigma_min: float = 0.02, rho: float = 7.0
) -> Float[Tensor, "steps_and_one"]:
    """``steps`` sigmas from ``sigma_max`` down (to ``sigma_min`` if there are several) and a final 0 (EDM eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = min(sigma_min, sigma_max) ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


def training_sigmas(
    count: int, sigma_start: float, start_share: float, log_mean: float, log_std: float, generator: torch.Generator
) -> Float[Tensor, "count"]:
    """Sigmas to train at: ``sigma_start``, where one-step inference happens, with that share, else lognormal."""
    spread = torch.exp(log_mean + log_std * torch.randn(count, generator=generator))
    at_start = torch.rand(count, generator=generator) < start_share
    return torch.where(at_start, torch.tensor(sigma_start), spread)


def start_ceiling(seen: Float[Tensor, "*s"], sigma_start: float, sigma_seen: float | None) -> Float[Tensor, "*s"]:
    """Per-pixel sigma to start from: ``sigma_seen`` where the photo saw all, geometric in between; None: the same."""
    if sigma_seen is None:
        return torch.full_like(seen, sigma_start)
    return torch.exp(math.log(sigma_start) + seen * (math.log(sigma_seen) - math.log(sigma_start)))


def sample(
    predict: Callable[[Float[Tensor, "*z"], Float[Tensor, ""]], Float[Tensor, "*z"]],
    start: Float[Tensor, "*z"],
    noise: Float[Tensor, "*z"],
    sigmas: Float[Tensor, "steps_and_one"],
    ceiling: Float[Tensor, "*s"] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Float[Tensor, "*z"]:
    """Euler's method along ``sigmas`` from ``start`` + sigma * ``noise`` to x0.

    Args:
        predict: v of a noisy sample z (not yet scaled) and its sigma.
        start: what to start from: zeros, or an estimate that shall be kept where sigma is small.
        noise: of unit variance.
        sigmas: falling, the last one 0.
        ceiling: per pixel the sigma at which it joins in, broadcastable to z. Until the first sigma that is no greater,
            the pixel is put back to ``start`` + sigma * ``noise``, so that others see it but it does not move.
        on_step: called after every step.
    """
    z = start + sigmas[0] * noise
    for index, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        if index and ceiling is not None:
            z = torch.where(sigmas[index - 1] > ceiling, start + sigma * noise, z)
        x0 = denoised(z, predict(z, sigma), sigma)
        z = x0 + following / sigma * (z - x0)
        on_step()
    return z
