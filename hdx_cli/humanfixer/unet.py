"""The UNet of Stable Video Diffusion in every size: one class, several configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from jaxtyping import Float
from torch import Tensor, nn

# Keyword arguments of diffusers' UNetSpatioTemporalConditionModel without the channels, which the latents decide.
TINY = {
    "down_block_types": ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
    "up_block_types": ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
    "block_out_channels": (32, 64), "num_attention_heads": (1, 2), "layers_per_block": 1, "cross_attention_dim": 64,
    "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 96, "num_frames": 19, "sample_size": 12,
}  # fmt: skip
SMALL = {
    "down_block_types": ("DownBlockSpatioTemporal", *["CrossAttnDownBlockSpatioTemporal"] * 2),
    "up_block_types": (*["CrossAttnUpBlockSpatioTemporal"] * 2, "UpBlockSpatioTemporal"),
    "block_out_channels": (64, 96, 128), "num_attention_heads": (2, 3, 4), "layers_per_block": 1,
    "cross_attention_dim": 64, "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 96,
    "num_frames": 19, "sample_size": 24,
}  # fmt: skip
MEDIUM = SMALL | {"block_out_channels": (96, 160, 256), "num_attention_heads": (3, 5, 8), "cross_attention_dim": 128}
# The configuration of stable-video-diffusion-img2vid-xt.
SVD = {
    "down_block_types": (*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * 3),
    "block_out_channels": (320, 640, 1280, 1280), "num_attention_heads": (5, 10, 20, 20), "layers_per_block": 2,
    "cross_attention_dim": 1024, "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 768,
    "num_frames": 25, "sample_size": 96,
}  # fmt: skip
SIZES = {"tiny": TINY, "small": SMALL, "medium": MEDIUM, "svd": SVD}


# SVD's frames per second less one, motion bucket and noise augmentation: constants at training and at inference.
TIME_IDS = (6.0, 127.0, 0.02)

_DOWN = ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")
_UP = ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal")
_BOUNDS = {
    "block_out_channels": (32, 4096), "num_attention_heads": (1, 256), "layers_per_block": (1, 8),
    "transformer_layers_per_block": (1, 8), "cross_attention_dim": (1, 8192), "addition_time_embed_dim": (2, 4096),
    "projection_class_embeddings_input_dim": (6, 12288), "num_frames": (1, 1000), "sample_size": (1, 10_000),
}  # fmt: skip
_LISTS = ("down_block_types", "up_block_types", "block_out_channels", "num_attention_heads")


def checked_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``build_unet`` takes, out of a file's configuration; what else stands in it is left out.

    Raises:
        ValueError: something is missing, or no network of this kind and of a size that can be meant has it.
    """
    config: dict[str, Any] = {}
    for name in ("down_block_types", "up_block_types", *_BOUNDS):
        value = values.get(name, 1 if name == "transformer_layers_per_block" else None)
        several = list(value) if isinstance(value, (list, tuple)) else [value]
        if (name in _LISTS) != isinstance(value, (list, tuple)) or not 1 <= len(several) <= 6:
            raise ValueError(f"{name} is {str(value)[:60]}")
        low, high = _BOUNDS.get(name, (0, 0))
        kinds = {"down_block_types": _DOWN, "up_block_types": _UP}.get(name)
        for each in several:
            if each not in kinds if kinds else type(each) is not int or not low <= each <= high:
                raise ValueError(f"{name} is {str(value)[:60]}")
        config[name] = tuple(several) if name in _LISTS else value
    widths, heads = config["block_out_channels"], config["num_attention_heads"]
    if len({len(config[name]) for name in _LISTS}) > 1 or any(
        width % 32 or width % head for width, head in zip(widths, heads, strict=True)
    ):
        raise ValueError(f"block_out_channels {widths} and num_attention_heads {heads} do not fit")
    if config["projection_class_embeddings_input_dim"] != len(TIME_IDS) * config["addition_time_embed_dim"]:
        raise ValueError("projection_class_embeddings_input_dim is not three times addition_time_embed_dim")
    if config["transformer_layers_per_block"] == 1:
        del config["transformer_layers_per_block"]
    return config


class TemporalConvolution(nn.Conv3d):
    """A (3, 1, 1) convolution that runs in two dimensions, frames by pixels, which is twice as fast on a CPU."""

    def forward(self, input: Float[Tensor, "B C L H W"]) -> Float[Tensor, "B D L H W"]:
        shape = input.shape
        flat = input.reshape(*shape[:3], -1)
        output = nn.functional.conv2d(flat, self.weight[..., 0], self.bias, padding=(1, 0))
        return output.reshape(shape[0], -1, *shape[2:])


def build_unet(
    config: dict, in_channels: int, out_channels: int, from_scratch: bool = True
) -> UNetSpatioTemporalConditionModel:
    """A UNet [B L in h w] -> [B L out h w] with random weights whose state dict has the names of SVD's.

    Args:
        config: keyword arguments of ``UNetSpatioTemporalConditionModel``, for example ``SMALL``.
        in_channels, out_channels: of the latents with their conditions, and of the prediction.
        from_scratch: begin with temporal layers that pass their input on unchanged, so that the network starts out as
            one that treats every frame by itself. Without it the layers are initialised as diffusers does.
    """
    unet = UNetSpatioTemporalConditionModel(in_channels=in_channels, out_channels=out_channels, **config)
    for module in unet.modules():
        if type(module) is nn.Conv3d and module.kernel_size == (3, 1, 1):
            module.__class__ = TemporalConvolution
    if from_scratch:
        _begin_without_time(unet)
    return unet


def _temporal_blocks(unet: UNetSpatioTemporalConditionModel) -> list[nn.Module]:
    """Everything that mixes frames or tells one from another by its place in the sequence."""
    blocks = [m for m in unet.modules() if isinstance(m, (TemporalResnetBlock, TemporalBasicTransformerBlock))]
    return blocks + [m.time_pos_embed for m in unet.modules() if isinstance(m, TransformerSpatioTemporalModel)]


def _begin_without_time(unet: UNetSpatioTemporalConditionModel) -> None:
    for block in _temporal_blocks(unet):
        if isinstance(block, TemporalResnetBlock):
            last = [block.conv2]
        elif isinstance(block, TimestepEmbedding):
            last = [block.linear_2]
        else:
            last = [block.ff_in.net[2], block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]]
        for layer in last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


@contextmanager
def without_time(unet: UNetSpatioTemporalConditionModel) -> Iterator[None]:
    """Inside, the temporal layers pass on their input and cost nothing: frames are restored one by one.

    A network built with ``from_scratch`` computes the same function as inside until its temporal layers have learned.
    """
    blocks = _temporal_blocks(unet)
    for block in blocks:
        block.forward = torch.zeros_like if isinstance(block, TimestepEmbedding) else _pass_on
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _pass_on(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states


def temporal_parameters(unet: UNetSpatioTemporalConditionModel) -> list[nn.Parameter]:
    """What mixes frames: the parameters that ``without_time`` leaves without a gradient."""
    return [parameter for block in _temporal_blocks(unet) for parameter in block.parameters()]


def add_condition_channels(unet: UNetSpatioTemporalConditionModel, count: int) -> None:
    """Give ``conv_in`` ``count`` more input channels, last and with zero weights: the function stays as it was."""
    old = unet.conv_in
    new = nn.Conv2d(old.in_channels + count, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)
    unet.conv_in = new.to(old.weight)
    unet.register_to_config(in_channels=new.in_channels)
