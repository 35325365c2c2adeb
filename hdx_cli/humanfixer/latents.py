"""Images to latents and back. An image has four channels: red, green and blue over white, and alpha, all in [0, 1]."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

# Orthonormal: brightness, red against blue, green against magenta.
_COLOURS = ((3**-0.5,) * 3, (2**-0.5, 0.0, -(2**-0.5)), (6**-0.5, -2 * 6**-0.5, 6**-0.5))


@runtime_checkable
class Codec(Protocol):
    """A pair of maps between images and latents that are ``factor`` times smaller.

    Attributes:
        channels: of the latents.
        factor: pixels per latent, along each side.
        condition_gain: how much larger latents are where a network sees them as a condition (SVD: unscaled).
        codes_alpha: whether latents hold alpha; else a decoded alpha is an estimate from the colours.
        network: what computes, for moving it between devices.
    """

    channels: int
    factor: int
    condition_gain: float
    codes_alpha: bool
    network: nn.Module

    def encode(self, images: Float[Tensor, "N 4 H W"]) -> Float[Tensor, "N C h w"]:
        """Latents of any images; sides that are no multiple of ``factor`` are padded with white at right and bottom."""

    def decode(self, latents: Float[Tensor, "N C h w"], height: int, width: int) -> Float[Tensor, "N 4 H W"]:
        """Images of that size, not clamped. The latents are the frames of one orbit in their order."""


class BlockDct(nn.Module):
    """An orthonormal cosine transform of 8 x 8 blocks of brightness, two colour differences and alpha.

    Of every plane the ``kept`` x ``kept`` lowest frequencies are latents. All 8 make the inverse exact, and the usual 4
    of the colour differences halve their resolution. A white pixel is zero everywhere. Being
    orthonormal, squared errors of latents are squared errors of pixels (of the four channels).
    """

    condition_gain = 1.0
    factor = 8
    codes_alpha = True

    def __init__(self, kept: tuple[int, int, int, int] = (8, 4, 4, 6)):
        super().__init__()
        self.channels = sum(count**2 for count in kept)
        self.register_buffer("basis", _dct_basis(kept).flatten(1), persistent=False)  # [C 256]

    @property
    def network(self) -> nn.Module:
        return self

    def encode(self, images: Float[Tensor, "N 4 H W"]) -> Float[Tensor, "N C h w"]:
        height, width = images.shape[-2:]
        ink = torch.cat([images[:, :3] - 1, images[:, 3:]], 1)
        ink = functional.pad(ink, (0, -width % self.factor, 0, -height % self.factor))
        blocks = functional.pixel_unshuffle(ink, self.factor)
        return (self.basis @ blocks.flatten(2)).unflatten(2, blocks.shape[2:])

    def decode(self, latents: Float[Tensor, "N C h w"], height: int, width: int) -> Float[Tensor, "N 4 H W"]:
        blocks = (self.basis.T @ latents.flatten(2)).unflatten(2, latents.shape[2:])
        ink = functional.pixel_shuffle(blocks, self.factor)[..., :height, :width]
        return torch.cat([ink[:, :3] + 1, ink[:, 3:]], 1)


def _dct_basis(kept: tuple[int, int, int, int]) -> Float[Tensor, "C 4 8 8"]:
    at = torch.arange(8, dtype=torch.float64)
    waves = torch.cos(math.pi / 8 * (at + 0.5) * at[:, None]) * 0.5  # [frequency position]
    waves[0] *= 0.5**0.5
    planes = torch.zeros(4, 4, dtype=torch.float64)
    planes[:3, :3] = torch.tensor(_COLOURS, dtype=torch.float64)
    planes[3, 3] = 1
    parts = [
        torch.einsum("c,iy,jx->ijcyx", plane, waves[:count], waves[:count]).flatten(0, 1)
        for plane, count in zip(planes, kept, strict=True)
    ]
    return torch.cat(parts).float()
