"""SVD's autoencoder as a codec: what parts change and what they do not, alpha, gradients, and where it computes."""

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from hdx_cli.humanfixer.latents import Codec
from hdx_cli.humanfixer.offload import lent
from hdx_cli.humanfixer.vae import TemporalVae, alpha_of, parts_of, with_certain_inside


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    made = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4, layers_per_block=1
    )
    for name, value in made.named_parameters():
        if name.endswith("mix_factor"):  # as trained, time counts
            nn.init.constant_(value, 0.0)
    return made


def test_latents_are_scaled_and_conditions_are_not(vae):
    codec = TemporalVae(vae, frames_at_once=2)
    assert isinstance(codec, Codec) and (codec.channels, codec.factor, codec.scale) == (4, 8, 0.18215)
    images = torch.rand(5, 4, 20, 16)
    latents = codec.encode(images)
    padded = nn.functional.pad(images[:, :3], (0, 0, 0, 4), value=1.0)
    mode = vae.encode(2 * padded - 1).latent_dist.mode()
    assert latents.shape == (5, 4, 3, 2)
    torch.testing.assert_close(codec.condition_gain * latents, mode, rtol=1e-4, atol=1e-5)  # frames know no time


def test_parts_are_seams_that_overlap_narrows(vae):
    latents = torch.randn(7, 4, 3, 2, generator=torch.Generator().manual_seed(2))
    whole = TemporalVae(vae, None).decode(latents, 20, 16)
    expected = vae.decode(latents / 0.18215, num_frames=7).sample[..., :20, :16] / 2 + 0.5
    torch.testing.assert_close(whole[:, :3], expected)
    assert torch.equal(TemporalVae(vae, 7).decode(latents, 20, 16), whole)
    errors = [
        float((TemporalVae(vae, 4, overlap).decode(latents, 20, 16) - whole)[:, :3].abs().mean()) for overlap in (0, 2)
    ]
    assert errors[0] > errors[1] > 0
    torch.testing.assert_close(TemporalVae(vae, 4, 7).decode(latents, 20, 16), whole, rtol=1e-4, atol=1e-5)


def test_parts_are_even():
    assert parts_of(19, 8) == [(0, 6), (6, 12), (12, 19)]
    assert parts_of(19, None) == parts_of(19, 19) == [(0, 19)] and parts_of(0, 4) == []
    assert all(1 <= last - first <= 5 for first, last in parts_of(18, 5))


def test_gradients_pass_from_colours_and_alpha_to_latents(vae):
    codec = TemporalVae(vae)
    latents = torch.randn(2, 4, 2, 2, requires_grad=True)
    codec.decode(latents, 16, 16)[:, :3].sum().backward()
    assert latents.grad.isfinite().all() and latents.grad.abs().min() > 0
    colours = torch.full((1, 3, 2, 2), 0.95, requires_grad=True)
    alpha_of(colours).sum().backward()
    assert colours.grad.sum() == pytest.approx(-4 / 0.1, rel=1e-4)


def test_white_clothes_stay_and_edges_come_in():
    """A person in white with dark skin round it: the distance from white alone would leave a hole."""
    coarse = torch.zeros(1, 1, 80, 60)
    coarse[..., 10:70, 15:45] = 1
    truth = torch.ones(1, 3, 80, 60)
    truth[..., 10:70, 15:45] = 0.3
    truth[..., 20:60, 20:40] = 1.0
    truth[..., 10:70, 45] = 0.6  # a blend with white, half covered
    raw = torch.cat([truth, alpha_of(truth)], 1)
    assert (raw[..., 3, 30:50, 25:35] == 0).all()
    matted = with_certain_inside(raw, coarse)
    assert (matted[0, 3, 11:69, 16:45] == 1).all() and (matted[0, 3, :, 45] == 0).all()
    assert (matted[0, 3, :9] == 0).all() and torch.equal(matted[0, :3, 20:60, 20:40], truth[0, :, 20:60, 20:40])
    assert (matted[0, :3] >= 1 - matted[0, 3:]).all()
    several = with_certain_inside(raw[None].expand(2, 3, -1, -1, -1), coarse[None].expand(2, 3, -1, -1, -1))
    torch.testing.assert_close(several[1, 2], matted[0])


class Recorded(nn.Linear):
    """A module that remembers where it was sent."""

    def to(self, *args, **kwargs):
        self.__dict__.setdefault("log", []).append(str(args[0]))
        return super().to(*args, **kwargs)


def test_a_lent_module_comes_back():
    module = Recorded(2, 2)
    with lent(torch.device("meta"), module):
        assert module.weight.is_meta
        module.to_empty(device="cpu")
    assert module.log == ["meta", "cpu"]
    with pytest.raises(ZeroDivisionError), lent(torch.device("cpu"), module, nn.SiLU()):
        raise ZeroDivisionError
    assert module.log[2:] == ["cpu", "cpu"]
    with lent(None, module):
        pass
    assert len(module.log) == 4


def test_one_part_at_a_time_is_on_the_device(monkeypatch):
    """The codec for encoding, the network for its steps, the codec for decoding; the result is the same."""
    from dataclasses import replace

    from hdx_cli.humanfixer import restorer
    from hdx_cli.humanfixer.unet import TINY

    torch.manual_seed(0)
    model = restorer.HumanFixer(restorer.Config(unet=dict(TINY), height=48)).eval()
    events = []
    for name, module in (("codec", model.codec), ("network", model.unet)):
        original = module.to
        monkeypatch.setattr(module, "to", lambda d, name=name, original=original: (events.append(name), original(d))[1])
    forward = restorer.HumanFixer.forward
    monkeypatch.setattr(restorer.HumanFixer, "forward", lambda *a: (events.append("step"), forward(*a))[1])
    alpha = torch.ones(18, 48, 32)
    given = (alpha[..., None].expand(-1, -1, -1, 3) / 2, alpha, alpha, torch.full((48, 32, 3), 0.5), alpha[0])
    there = restorer.Restorer(model, torch.device("cpu"))
    moved = there(*given, steps=2)
    assert events == ["codec", "codec", "network", "step", "step", "network", "codec", "codec"]
    events.clear()
    stayed = replace(there, device=None)(*given, steps=2)
    assert events == ["step", "step"] and torch.equal(moved[0], stayed[0])
