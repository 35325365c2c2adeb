"""CLIP's embedding of the photo, the one token that Stable Video Diffusion's cross-attention was trained with.

It needs the ``transformers`` package. It ran with random weights in small sizes, never with the published ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..errors import WeightsError
from .svd import read_json, read_state, shapes_of

STEM = "model"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_LIMITS = {
    "hidden_size": 8192, "intermediate_size": 32768, "num_hidden_layers": 64, "num_attention_heads": 64,
    "image_size": 1024, "patch_size": 64, "projection_dim": 8192,
}  # fmt: skip


class ClipImages:
    """transformers' ``CLIPVisionModelWithProjection`` of an ``image_encoder/`` folder."""

    def __init__(self, folder: Path):
        """``folder``: with config.json and model.safetensors.

        Raises:
            WeightsError: transformers is not installed, or the folder holds no such network.
        """
        try:
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
        except ImportError:
            raise WeightsError(
                "--identity clip: CLIP's image token needs the transformers package",
                hint="pip install transformers, or add --identity none",
            ) from None
        path = folder / "config.json"
        values = read_json(path)
        sizes = {name: values.get(name) for name in _LIMITS}
        possible = all(type(value) is int and 1 <= value <= _LIMITS[name] for name, value in sizes.items())
        if not possible or sizes["hidden_size"] % sizes["num_attention_heads"]:
            raise WeightsError(f"{path}: no vision network of CLIP's ({str(sizes)[:200]})")
        if values.get("hidden_act", "quick_gelu") not in ("gelu", "quick_gelu"):
            raise WeightsError(f"{path}: hidden_act is {str(values['hidden_act'])[:60]}")
        try:
            config = CLIPVisionConfig(**sizes, hidden_act=values.get("hidden_act", "quick_gelu"))
            with torch.device("meta"):
                network = CLIPVisionModelWithProjection(config)
            state = read_state(folder, STEM, shapes_of(network), optional=("vision_model.embeddings.position_ids",))
            network.load_state_dict(state, assign=True)
        except ValueError as error:
            raise WeightsError(f"{path}: no vision network of CLIP's ({' '.join(str(error).split())[:200]})") from None
        embeddings = network.vision_model.embeddings  # its table of positions is in no file
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
        self.network: nn.Module = network.eval().requires_grad_(False)
        self.size, self.dimension = sizes["image_size"], sizes["projection_dim"]

    def __call__(self, rgb: Float[Tensor, "H W 3"]) -> Float[Tensor, "D"]:
        """The embedding of a picture with values in [0, 1], squeezed to a square as SVD's pipeline does.

        It is computed, and returned, where the network is.
        """
        image = rgb.permute(2, 0, 1)[None].to(self.network.device)
        square = functional.interpolate(image, (self.size, self.size), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (MEAN, STD))
        with torch.inference_mode():
            return self.network(pixel_values=(square.clamp(0, 1) - mean) / std).image_embeds[0]
