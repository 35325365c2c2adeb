"""Stable Video Diffusion's autoencoder as a codec of orbit frames.

It ran with random weights of the published structure in small sizes; the published weights were never loaded.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

WHITE_DISTANCE = 0.1  # beyond which a pixel over white is taken to be covered
INSIDE = 1 / 40  # of an image's height: how far inside the coarse person a pixel is surely covered
# Decoding 640 x 960 in float32 takes some 2.5 GB a frame (counted), 4 + 2 frames 15 GB; encoding 1.6 GB a frame.
FRAMES_AT_ONCE, OVERLAP, ENCODED_AT_ONCE = 4, 1, 2


class TemporalVae:
    """diffusers' ``AutoencoderKLTemporalDecoder`` behind ``latents.Codec``: colours over white, no alpha.

    Latents are the mode of the posterior times the scaling factor (0.18215); as a condition they are not scaled, as SVD
    was trained. Frames are encoded by themselves, so encoding in parts changes nothing. The decoder has convolutions
    and norms over time: frames that are decoded in parts differ from those decoded all at once, by most where two parts
    meet. ``overlap`` frames on both sides of a part are decoded with it and dropped, which narrows the seam and does
    not close it. Decode all at once where memory allows.

    SVD's latents have no room for alpha. A decoded alpha is the distance of a colour from white, which loses
    white clothes; ``with_certain_inside`` brings those back from the coarse alpha. Alpha carries a gradient to the
    colours where it is strictly between 0 and 1.
    """

    codes_alpha = False

    def __init__(
        self, vae: AutoencoderKLTemporalDecoder, frames_at_once: int | None = FRAMES_AT_ONCE, overlap: int = OVERLAP
    ):
        """``frames_at_once``: most frames that come out of one pass; None for all."""
        self.network = vae.eval().requires_grad_(False)
        self.channels = vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scale = vae.config.scaling_factor
        self.condition_gain = 1 / self.scale
        self.frames_at_once, self.overlap = frames_at_once, overlap

    def encode(self, images: Float[Tensor, "N 4 H W"]) -> Float[Tensor, "N C h w"]:
        height, width = images.shape[-2:]
        colours = functional.pad(images[:, :3], (0, -width % self.factor, 0, -height % self.factor), value=1.0)
        parts = (2 * colours - 1).to(self.network.dtype).split(ENCODED_AT_ONCE)
        return self.scale * torch.cat([self.network.encode(part).latent_dist.mode() for part in parts]).to(images.dtype)

    def decode(self, latents: Float[Tensor, "N C h w"], height: int, width: int) -> Float[Tensor, "N 4 H W"]:
        unscaled = (latents / self.scale).to(self.network.dtype)
        made = []
        for first, last in parts_of(len(latents), self.frames_at_once):
            start, stop = max(first - self.overlap, 0), min(last + self.overlap, len(latents))
            if (first, last) == (0, len(latents)):
                start, stop = first, last
            decoded = self.network.decode(unscaled[start:stop], num_frames=stop - start).sample
            made.append(decoded[first - start : last - start, :, :height, :width])
        colours = torch.cat(made).to(latents.dtype) / 2 + 0.5
        return torch.cat([colours, alpha_of(colours)], 1)


def parts_of(count: int, at_once: int | None) -> list[tuple[int, int]]:
    """(first, one past the last) of parts that are as equal as can be, none larger than ``at_once``."""
    parts = -(-count // (at_once or count)) if count else 0
    return [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


def alpha_of(colours: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 1 H W"]:
    """How far colours are from white, 1 from ``WHITE_DISTANCE`` on."""
    return ((1 - colours).amax(1, keepdim=True) / WHITE_DISTANCE).clamp(0, 1)


def with_certain_inside(
    images: Float[Tensor, "*N 4 H W"], coarse: Float[Tensor, "*N 1 H W"]
) -> Float[Tensor, "*N 4 H W"]:
    """Images over white whose alpha was read off their colours, with white clothes covered and edges a pixel in.

    A pixel deep inside the coarse person is covered, whatever its colour. Elsewhere alpha is the least of its
    neighbours', because edges are blends with white that the distance from white takes for covered.
    """
    alpha, height = images[..., 3:, :, :].flatten(0, -4), images.shape[-2]
    deep = _least(coarse.flatten(0, -4), max(round(INSIDE * height), 1))
    decided = torch.maximum(_least(alpha, 1), deep).reshape(*images.shape[:-3], 1, *images.shape[-2:])
    return torch.cat([torch.maximum(images[..., :3, :, :], 1 - decided), decided], -3)


def _least(planes: Float[Tensor, "N 1 H W"], radius: int) -> Float[Tensor, "N 1 H W"]:
    """The least value within a square of ``radius`` pixels to all sides."""
    side = 2 * radius + 1
    rows = functional.max_pool2d(-planes, (side, 1), 1, (radius, 0))
    return -functional.max_pool2d(rows, (1, side), 1, (0, radius))
