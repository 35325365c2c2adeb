"""How frames and identity tokens are attended to: HumanDreamer-X's attention modulation and decoupled face tokens.

diffusers' temporal blocks take no mask, so everything here is a processor that is set on single attention modules.
"""

from __future__ import annotations

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from jaxtyping import Bool, Float
from torch import Tensor, nn

VIEWS = 18
VARIANTS = ("noncyclic", "cyclic", "cyclic_mask")
IDENTITIES = ("face", "clip+face", "clip", "none")


def cycle_mask(last: int, device: torch.device | None = None) -> Bool[Tensor, "L L"]:
    """Eq. 5 for frames 0 ... ``last``, the last one being view 0 again: true where a frame may look.

    The two copies of view 0 see neither themselves nor each other; all other pairs stay.
    """
    keep = torch.ones(last + 1, last + 1, dtype=torch.bool, device=device)
    ends = torch.tensor([0, last], device=device)
    keep[ends[:, None], ends] = False
    return keep


def _heads(attn: Attention, projected: Float[Tensor, "B N C"]) -> Float[Tensor, "B h N c"]:
    return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _attend(
    attn: Attention, queries: Tensor, keys: Tensor, values: Tensor, mask: Bool[Tensor, "N M"] | None = None
) -> Float[Tensor, "B N C"]:
    """Attention of already projected tokens, before the output layer."""
    heads = [_heads(attn, tokens) for tokens in (queries, keys, values)]
    return nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)


def _output(attn: Attention, attended: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
    return attn.to_out[1](attn.to_out[0](attended))


class FrameAttention:
    """Self-attention between the frames of one pixel, masked by eq. 5 where there are ``last`` + 1 of them."""

    def __init__(self, last: int | None):
        """``last``: index of the second copy of view 0; None never masks."""
        self.last = last

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "P L C"],
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: None = None,
    ) -> Float[Tensor, "P L C"]:
        masked = self.last is not None and hidden_states.shape[1] == self.last + 1
        mask = cycle_mask(self.last, hidden_states.device) if masked else None
        projected = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        return _output(attn, _attend(attn, *projected, mask))


class FirstTokenAttention:
    """Cross-attention that looks at the first token (the image's) alone, as temporal layers do beside face tokens."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "B N C"],
        encoder_hidden_states: Float[Tensor, "B T D"],
        attention_mask: None = None,
        temb: None = None,
    ) -> Float[Tensor, "B N C"]:
        token = encoder_hidden_states[:, :1]
        return _output(attn, _attend(attn, attn.to_q(hidden_states), attn.to_k(token), attn.to_v(token)))


class DecoupledFaceAttention(nn.Module):
    """Cross-attention to the image token plus ``scale`` times one of its own to face tokens (IP-Adapter's decoupling).

    The face's values begin as zero: until they learn, the network is the one without face tokens. They have no bias, so
    face tokens of zeros (no face) add nothing.
    """

    def __init__(self, attn: Attention):
        super().__init__()
        self.scale = 1.0
        self.to_k_face = nn.Linear(attn.to_k.in_features, attn.to_k.out_features, bias=False)
        self.to_v_face = nn.Linear(attn.to_v.in_features, attn.to_v.out_features, bias=False)
        self.to_k_face.load_state_dict({"weight": attn.to_k.weight.detach().clone()})
        nn.init.zeros_(self.to_v_face.weight)
        self.to(attn.to_k.weight)

    def forward(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "B N C"],
        encoder_hidden_states: Float[Tensor, "B T D"],
        attention_mask: None = None,
        temb: None = None,
    ) -> Float[Tensor, "B N C"]:
        image, face = encoder_hidden_states[:, :1], encoder_hidden_states[:, 1:]
        queries = attn.to_q(hidden_states)
        attended = _attend(attn, queries, attn.to_k(image), attn.to_v(image))
        if face.shape[1]:
            attended = attended + self.scale * _attend(attn, queries, self.to_k_face(face), self.to_v_face(face))
        return _output(attn, attended)


def install_attention(unet: UNetSpatioTemporalConditionModel, variant: str, identity: str) -> None:
    """Set the processors of a variant (``VARIANTS``) and a mode of identity (``IDENTITIES``) on a network.

    Call it after pretrained weights are loaded: decoupled face keys begin as copies of the image's.
    """
    for module in unet.modules():
        if isinstance(module, TemporalBasicTransformerBlock):
            module.attn1.set_processor(FrameAttention(VIEWS if variant == "cyclic_mask" else None))
            if identity == "clip+face":
                module.attn2.set_processor(FirstTokenAttention())
        elif isinstance(module, TransformerSpatioTemporalModel) and identity == "clip+face":
            for block in module.transformer_blocks:
                block.attn2.set_processor(DecoupledFaceAttention(block.attn2))


def set_face_scale(unet: UNetSpatioTemporalConditionModel, scale: float) -> None:
    """How much the face's own attention counts (IP-Adapter's lambda): 1 as trained, 0 not at all."""
    for module in unet.modules():
        if isinstance(module, DecoupledFaceAttention):
            module.scale = scale
