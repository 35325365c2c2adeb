"""Eq. 5's mask and the face tokens' own attention, against diffusers' attention and against themselves."""

import pytest
import torch
from diffusers.models.attention import TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention

from hdx_cli.humanfixer.attention import (
    VIEWS,
    DecoupledFaceAttention,
    FirstTokenAttention,
    FrameAttention,
    cycle_mask,
    install_attention,
)
from hdx_cli.humanfixer.unet import TINY, build_unet

FRAMES = VIEWS + 1


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention(query_dim=32, heads=2, dim_head=16)


def tokens(frames=FRAMES, width=32, seed=1):
    return torch.randn(3, frames, width, generator=torch.Generator().manual_seed(seed))


def with_processor(attention, processor, *inputs):
    attention.set_processor(processor)
    return attention(*inputs)


def weights(attention, x, mask):
    """Attention weights [B heads L L] written out."""
    queries, keys = (
        f(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for f in (attention.to_q, attention.to_k)
    )
    scores = queries @ keys.transpose(-1, -2) * attention.scale
    return scores.masked_fill(~mask, float("-inf")).softmax(-1)


def test_the_mask_is_equation_5():
    blocked = (~cycle_mask(VIEWS)).nonzero().tolist()
    assert blocked == [[0, 0], [0, VIEWS], [VIEWS, 0], [VIEWS, VIEWS]]


def test_without_a_mask_it_is_the_stock_attention(attention):
    stock = attention(tokens())
    assert torch.equal(with_processor(attention, FrameAttention(None), tokens()), stock)
    assert not torch.equal(with_processor(attention, FrameAttention(VIEWS), tokens()), stock)


def test_another_number_of_frames_is_not_masked(attention):
    stock = attention(tokens(VIEWS))
    assert torch.equal(with_processor(attention, FrameAttention(VIEWS), tokens(VIEWS)), stock)


def test_weights_are_zero_where_masked(attention):
    probabilities = weights(attention, tokens(), cycle_mask(VIEWS))
    ends = probabilities[:, :, [0, VIEWS]][..., [0, VIEWS]]
    assert (ends == 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2, FRAMES))
    values = attention.to_v(tokens()).unflatten(-1, (2, -1)).transpose(1, 2)
    expected = attention.to_out[0]((probabilities @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(with_processor(attention, FrameAttention(VIEWS), tokens()), expected)


@pytest.mark.parametrize("changed, kept", [(VIEWS, 0), (0, VIEWS)])
def test_the_copies_of_view_0_do_not_see_each_other(attention, changed, kept):
    other = tokens()
    other[:, changed] += 5
    attention.set_processor(FrameAttention(VIEWS))
    before, after = attention(tokens()), attention(other)
    assert torch.equal(before[:, kept], after[:, kept])
    assert not torch.allclose(before[:, 5], after[:, 5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_gradients_are_finite(attention, dtype):
    attention.set_processor(FrameAttention(VIEWS))
    assert attention.to(dtype)(tokens().to(dtype)).isfinite().all()
    x = tokens().requires_grad_()
    attention.float()(x).square().sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in attention.parameters())


def test_every_temporal_self_attention_is_masked_and_no_other():
    unet = build_unet(TINY, 4, 4)
    install_attention(unet, "cyclic_mask", "face")
    temporal = [m for m in unet.modules() if isinstance(m, TemporalBasicTransformerBlock)]
    assert temporal and all(
        isinstance(m.attn1.processor, FrameAttention) and m.attn1.processor.last == VIEWS for m in temporal
    )
    masked = [name for name, p in unet.attn_processors.items() if isinstance(p, FrameAttention)]
    assert len(masked) == len(temporal) and all("temporal_transformer_blocks" in n and "attn1" in n for n in masked)
    install_attention(unet, "cyclic", "face")
    assert all(m.attn1.processor.last is None for m in temporal)


@pytest.fixture
def cross():
    torch.manual_seed(0)
    return Attention(query_dim=32, cross_attention_dim=24, heads=2, dim_head=16)


def test_face_tokens_begin_without_effect(cross):
    image, face = tokens(1, 24), tokens(4, 24, seed=2)
    stock = cross(tokens(), image)
    both = torch.cat([image, face], 1)
    decoupled = DecoupledFaceAttention(cross)
    torch.testing.assert_close(with_processor(cross, decoupled, tokens(), both), stock)
    torch.nn.init.normal_(decoupled.to_v_face.weight)
    assert not torch.allclose(cross(tokens(), both), stock)
    torch.testing.assert_close(cross(tokens(), torch.cat([image, 0 * face], 1)), stock)  # no face found
    torch.testing.assert_close(with_processor(cross, FirstTokenAttention(), tokens(), both), stock)


def test_clip_and_face_start_as_the_network_with_the_image_token_alone():
    torch.manual_seed(0)
    unet = build_unet(TINY, 4, 4, from_scratch=False).eval()
    sample, ids = torch.randn(1, FRAMES, 4, 4, 4), torch.tensor([[6.0, 127.0, 0.02]])
    image, face = torch.randn(1, 1, 64), torch.randn(1, 4, 64)
    install_attention(unet, "cyclic_mask", "clip")
    with torch.inference_mode():
        stock = unet(sample, torch.tensor([0.5]), image, ids).sample
        install_attention(unet, "cyclic_mask", "clip+face")
        ours = unet(sample, torch.tensor([0.5]), torch.cat([image, face], 1), ids).sample
    torch.testing.assert_close(ours, stock)
    assert any(name.endswith("to_v_face.weight") for name in unet.state_dict())


def test_a_batch_is_its_people_one_by_one():
    torch.manual_seed(0)
    unet = build_unet(TINY, 4, 4, from_scratch=False).eval()
    install_attention(unet, "cyclic_mask", "face")
    sample, context, ids = torch.randn(2, FRAMES, 4, 4, 4), torch.randn(2, 4, 64), torch.tensor([[6.0, 127.0, 0.02]])
    with torch.inference_mode():
        both = unet(sample, torch.tensor([0.5, -1.0]), context, ids.expand(2, -1)).sample
        for i, t in enumerate((0.5, -1.0)):
            alone = unet(sample[i : i + 1], torch.tensor([t]), context[i : i + 1], ids).sample
            torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)
