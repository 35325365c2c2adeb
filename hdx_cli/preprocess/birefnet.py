"""A stronger matte from BiRefNet (Zheng et al. 2024, MIT) for those who have it; optional.

This path needs the ``transformers`` package and the model from the Hugging Face Hub or its cache. Loading runs the
model code of that repository (``trust_remote_code``), so it is used only on request. Written from the model's
documentation and not run so far: the project's tests work offline.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from ..errors import WeightsError
from ..images import resize

REPOSITORY = "ZhengPeng7/BiRefNet-portrait"
SIDE_PX = 1024


def birefnet_alpha(
    rgb: Float32[np.ndarray, "H W 3"], repository: str = REPOSITORY, revision: str | None = None
) -> Float32[np.ndarray, "H W"]:
    """Alpha [H W] in [0, 1] of everything BiRefNet takes for foreground.

    Args:
        rgb: [H W 3] in [0, 1].
        repository, revision: of the model; safetensors only.

    Raises:
        WeightsError: where ``transformers`` or the model is not to be had.
    """
    import torch

    try:
        from transformers import AutoModelForImageSegmentation
    except ImportError:
        raise WeightsError(
            "matting birefnet needs the transformers package", hint="pip install transformers timm kornia einops"
        ) from None
    try:
        model = AutoModelForImageSegmentation.from_pretrained(
            repository, revision=revision, trust_remote_code=True, use_safetensors=True
        )
    except (OSError, ImportError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{repository}: the matting model cannot be loaded ({reason})",
            hint=f"hf download {repository}, or leave --matting at its default",
        ) from error
    model = model.float().eval()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    image = torch.from_numpy(resize(rgb, SIDE_PX, SIDE_PX)).permute(2, 0, 1)
    with torch.inference_mode():
        logits = model(((image - mean) / std)[None])[-1]
    return resize(logits.sigmoid()[0, 0].numpy(), *rgb.shape[:2])
