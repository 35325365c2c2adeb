"""Conditioning, restoration and weights of an untrained network on a few pixels."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.embeddings import IPAdapterFaceIDImageProjection

from hdx_cli.errors import WeightsError
from hdx_cli.humanfixer import checkpoint
from hdx_cli.humanfixer.attention import IDENTITIES, VARIANTS
from hdx_cli.humanfixer.diffusion import karras_sigmas, velocity_to
from hdx_cli.humanfixer.identity import FaceProjection, Identity
from hdx_cli.humanfixer.latents import BlockDct
from hdx_cli.humanfixer.restorer import (
    BLUR_ROWS,
    CONDITION_CHANNELS,
    Config,
    HumanFixer,
    Restorer,
    close_cycle,
    gaussian_blur,
    open_cycle,
    person_columns,
)
from hdx_cli.humanfixer.unet import TINY
from hdx_cli.weights import write_lock

CONFIG = Config(unet=dict(TINY))
H, W = 48, 32


def views(seed=0, batch=1):
    """Soft discs of random colours over white [B 18 4 H W]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1.5, 1.5, H), torch.linspace(-1, 1, W), indexing="ij")
    middle = 0.2 * torch.randn(batch, 18, 2, 1, 1, generator=generator)
    alpha = ((0.7 - ((y - middle[:, :, 0]) ** 2 + (x - middle[:, :, 1]) ** 2).sqrt()) * 10).clamp(0, 1)[:, :, None]
    colour = torch.rand(batch, 18, 3, 1, 1, generator=generator)
    return torch.cat([colour * alpha + 1 - alpha, alpha], 2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = HumanFixer(CONFIG)
    made.measure(views(), views(1))
    return made.eval().requires_grad_(False)


def conditions(model, coarse=None, inject=True, faces=None, seen=None):
    coarse = views() if coarse is None else coarse
    faces = torch.rand(len(coarse), 3, 64, 64) if faces is None else faces
    seen = coarse[:, :, 3] if seen is None else seen
    return model.conditions(coarse, seen, views(5)[:, 0], faces, torch.tensor([inject] * len(coarse)))


def arguments(face=True):
    rgba = views()[0].permute(0, 2, 3, 1)
    photo = views(5)[0, 0].permute(1, 2, 0)
    return dict(
        rgb=rgba[..., :3], alpha=rgba[..., 3], seen=rgba[..., 3], photo_rgb=photo[..., :3], photo_alpha=photo[..., 3],
        face=torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1)) if face else None,
    )  # fmt: skip


def test_the_cycle_is_closed_and_opened():
    frames = torch.arange(36.0).reshape(1, 18, 2)
    closed = close_cycle(frames, "cyclic_mask")
    assert closed.shape[1] == 19 and torch.equal(closed[:, 18], frames[:, 0])
    assert torch.equal(open_cycle(closed), frames)
    assert close_cycle(frames, "noncyclic") is frames


def test_blur_keeps_flat_parts_and_spreads_a_point():
    flat = gaussian_blur(torch.full((1, 1, 9, 11), 0.3), 1.5)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))
    point = torch.zeros(1, 1, 21, 25)
    point[..., 10, 12] = 1
    spread = gaussian_blur(point, 2.0)[0, 0]
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(spread[10, 14] / spread[10, 12], torch.tensor(-0.5).exp())
    torch.testing.assert_close(spread[12, 12], spread[10, 14])
    assert torch.equal(gaussian_blur(point, 0.0), point)


def test_what_the_photo_shows_is_a_clean_frame(model):
    with_photo, without = conditions(model), conditions(model, inject=False)
    size = model.codec.channels
    assert with_photo.channels.shape == (1, 19, size + CONDITION_CHANNELS, H // 8, W // 8)
    clean = with_photo.channels[:, :, size + 2]
    assert (
        (clean[:, [0, 18]] == 1).all() and (clean[:, 1:18] == 0).all() and (without.channels[:, :, size + 2] == 0).all()
    )
    photo = model.encode(views(5)[:, :1])[:, 0]
    assert torch.allclose(with_photo.base[:, 0], photo) and torch.allclose(with_photo.base[:, 18], photo)
    assert torch.equal(with_photo.base[:, 1:18], without.base[:, 1:18])
    assert not torch.allclose(without.base[:, 0], photo)
    blurred = gaussian_blur(views()[0], CONFIG.base_blur * H / 192)
    torch.testing.assert_close(without.base[0, :18], model.codec.encode(blurred))
    assert (with_photo.start == 0).all()


def test_azimuth_is_told(model):
    sine, cosine = conditions(model).channels[0, :, -2:, 0, 0].T
    torch.testing.assert_close(sine[:3], torch.deg2rad(torch.tensor([0.0, 20.0, 40.0])).sin())
    assert cosine[9] == pytest.approx(-1) and cosine[18] == pytest.approx(1)


def test_only_columns_with_somebody_are_looked_at(model):
    alpha = torch.zeros(2, 48, 100)
    alpha[0, 20, 40], alpha[1, 30, 50] = 1, 1
    assert person_columns(alpha) == slice(36, 68)  # 19 columns with 4 on each side, up to a multiple of 16
    alpha[0, 0, 98] = 1
    assert person_columns(alpha) == slice(36, 100)
    assert person_columns(torch.zeros(48, 100)) == slice(0, 100)
    wide = {name: value if name == "face" else torch.nn.functional.pad(
        value, (0, 0, 24, 40) if value.shape[-1] == 3 else (24, 40), value=float("rgb" in name))
        for name, value in arguments().items()}  # fmt: skip
    (rgb, alpha), narrow = Restorer(model)(**wide), Restorer(model)(**arguments())
    assert rgb.shape == (18, H, 96, 3) and (rgb[:, :, :16] == 1).all() and (alpha[:, :, -24:] == 0).all()
    assert (alpha[:, :, 24:56] - narrow[1]).abs().mean() < 0.1


def test_normalised_and_back(model):
    latents, base = model.encode(views(2)), model.encode(views(3))
    torch.testing.assert_close(model.latents(model.normalise(latents, base), base), latents, atol=1e-5, rtol=1e-4)
    images = model.decode(latents, H, W)
    assert (images - views(2)).abs().mean() < 0.01


def test_measured_statistics_bring_unit_variance(model):
    coarse, truth = views(0), views(1)
    base = model.codec.encode(gaussian_blur(coarse[0], CONFIG.base_blur * H / 192))
    x0 = model.normalise(model.codec.encode(truth[0])[None], base[None])[0]
    shown = torch.nn.functional.avg_pool2d(torch.maximum(coarse, truth)[0, :, 3:], 8) > 0
    mean_square = (x0**2 * shown).sum((0, 2, 3)) / shown.sum()
    alive = model.residual_std > 2e-4
    torch.testing.assert_close(mean_square[alive], torch.ones(int(alive.sum())), rtol=1e-3, atol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_perfect_network_restores_the_truth(model, steps, monkeypatch):
    truth = model.encode(close_cycle(views(7), "cyclic_mask"))
    given = conditions(model)
    x0 = model.normalise(truth, given.base)
    monkeypatch.setattr(
        HumanFixer, "forward", lambda self, z, sigma, c: velocity_to(x0, z, sigma[:, None, None, None, None])
    )
    restored = model.restore(given, karras_sigmas(steps, 20.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(restored, truth, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("identity", IDENTITIES)
def test_every_variant_restores(variant, identity):
    torch.manual_seed(0)
    made = HumanFixer(replace(CONFIG, variant=variant, identity=identity)).eval()
    rgb, alpha = Restorer(made)(**arguments(), steps=2, sigma_seen=1.0)
    assert rgb.shape == (18, H, W, 3) and alpha.shape == (18, H, W)
    assert rgb.isfinite().all() and rgb.min() >= 0 and rgb.max() <= 1 and alpha.min() >= 0 and alpha.max() <= 1


def test_the_restorer_repeats_itself_and_takes_any_size(model):
    restorer = Restorer(model)
    told = []

    class Listener:
        def start(self, task, total=None):
            told.append(total)

        def advance(self, steps=1):
            told.append(steps)

        def warn(self, code, message):
            pass

    first = restorer(**arguments(), seed=3, steps=2, progress=Listener())
    assert told == [2, 1, 1]
    again, other = restorer(**arguments(), seed=3, steps=2), restorer(**arguments(), seed=4, steps=2)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    odd = {name: value[:, :45, :29] if value.shape[:1] == (18,) else value[:45, :29]
           for name, value in arguments(face=False).items() if value is not None}  # fmt: skip
    assert restorer(**odd)[0].shape == (18, 45, 29, 3)


@pytest.mark.parametrize("darker", [0.0, 0.2])
def test_views_larger_than_the_network_s_keep_their_detail(monkeypatch, darker):
    """What a network of half the size leaves alone comes back bit by bit; what it darkens everywhere is darker, no softer."""
    small = HumanFixer(replace(CONFIG, height=H // 2)).eval()

    def restored(self, coarse, *rest, **more):
        assert coarse.shape[-2:] == (H // 2, W // 2)
        blurred = gaussian_blur(coarse[0], CONFIG.base_blur * (H // 2) / BLUR_ROWS)
        changed = torch.cat([blurred[:, :3] - darker * blurred[:, 3:], blurred[:, 3:]], 1)
        return close_cycle(changed[None], CONFIG.variant)

    monkeypatch.setattr(HumanFixer, "restored", restored)
    given = arguments()
    stripes = 0.2 * (torch.arange(H) % 2)[:, None, None] * given["alpha"][..., None]
    given["rgb"] = (given["rgb"] - stripes).clamp(0, 1)
    rgb, alpha = Restorer(small)(**given)
    torch.testing.assert_close(rgb[0], given["photo_rgb"])
    deep = -torch.nn.functional.max_pool2d(-given["alpha"][:, None], 9, 1, 4)[1:, 0] > 0.99
    inside = deep & (given["rgb"][1:].amin(-1) > darker + 0.05)
    torch.testing.assert_close(
        rgb[1:][inside], given["rgb"][1:][inside] - darker, atol=2e-2 if darker else 1e-6, rtol=0
    )
    torch.testing.assert_close(alpha[1:], given["alpha"][1:])


def test_nothing_over_white_is_darker_than_its_alpha(model):
    latents = model.encode(views(2)) + 0.3 * torch.randn(1, 18, model.codec.channels, H // 8, W // 8)
    images = model.images(latents, H, W)
    assert images.min() >= 0 and images.max() <= 1
    assert (images[:, :, :3] >= 1 - images[:, :, 3:]).all()
    assert (images - views(2)).abs().mean() < (model.decode(latents, H, W) - views(2)).abs().mean()


def test_views_that_are_no_residual(model):
    torch.manual_seed(0)
    made = HumanFixer(replace(CONFIG, residual=False))
    made.measure(views(), views(1))
    torch.testing.assert_close(made.residual_std, made.latent_std)
    given = conditions(made)
    assert (given.base == 0).all()
    torch.testing.assert_close(made.latents(given.start, given.base)[:, 1:18], made.encode(views())[:, 1:])


def test_it_begins_as_the_pretrained_network():
    """With SVD's latents and weights, what was added at zero, it is SVD conditioned on coarse views."""

    class FourChannels(BlockDct):
        condition_gain = 5.5

        def __init__(self):
            super().__init__((1, 1, 1, 1))

    torch.manual_seed(0)
    stock = UNetSpatioTemporalConditionModel(in_channels=8, out_channels=4, **TINY).eval()
    config = replace(CONFIG, residual=False, variant="cyclic", identity="clip+face")
    made = HumanFixer(config, FourChannels(), pretrained=stock.state_dict()).eval()
    given = conditions(made)
    z, sigma, ids = torch.randn(1, 19, 4, H // 8, W // 8), torch.tensor([3.0]), torch.tensor([[6.0, 127.0, 0.02]])
    coarse = 5.5 * made.encode(close_cycle(torch.cat([views(5)[:, :1], views()[:, 1:]], 1), "cyclic"))
    with torch.inference_mode():
        expected = stock(torch.cat([z / 10**0.5, coarse], 2), 0.25 * sigma.log(), given.context[:, :1], ids).sample
        torch.testing.assert_close(made(z, sigma, given), expected, rtol=1e-4, atol=1e-5)


def test_no_face_gives_no_token():
    torch.manual_seed(0)
    identity = Identity("face", 64)
    faces = torch.rand(2, 3, 64, 64)
    faces[1] = 0
    tokens = identity(faces)
    assert tokens.shape == (2, 4, 64) and tokens[0].abs().min() > 0 and (tokens[1] == 0).all()
    both = Identity("clip+face", 64)(faces, torch.ones(2, 1, 64))
    assert both.shape == (2, 5, 64) and (both[:, 0] == 1).all()
    assert (Identity("none", 64)(faces) == 0).all() and Identity("clip", 64)(faces).shape == (2, 1, 64)


def test_the_projection_is_ip_adapter_s():
    """diffusers' port of IP-Adapter-FaceID with the same weights, for ArcFace's 512 numbers."""
    torch.manual_seed(0)
    ours, theirs = FaceProjection(512, 4, 64), IPAdapterFaceIDImageProjection(512, 64, mult=2, num_tokens=4)
    first, last = theirs.ff.net[0].proj, theirs.ff.net[2]
    assert [layer.weight.shape for layer in (first, last)] == [(1024, 512), (4 * 64, 1024)]
    ours.layers[0].load_state_dict(first.state_dict())
    ours.layers[2].load_state_dict(last.state_dict())
    embeddings = torch.nn.functional.normalize(torch.randn(3, 512), dim=1)
    torch.testing.assert_close(ours(embeddings), theirs(embeddings))


def test_embeddings_in_place_of_crops():
    torch.manual_seed(0)
    identity = Identity("clip+face", 64, faces="arcface")
    assert {name.split(".")[0] for name in identity.state_dict()} == {"projection"}  # nothing to train in the embedder
    faces = torch.stack([torch.randn(512), torch.zeros(512)])
    tokens = identity(faces)
    assert tokens.shape == (2, 5, 64) and tokens[0, 1:].abs().min() > 0 and (tokens[1] == 0).all()
    made = HumanFixer(replace(CONFIG, identity="face", faces="arcface")).eval()
    mine, other, nobody, zeros = (
        Restorer(made, encode_face=lambda photo, face=face: face)(**arguments())[0]
        for face in (faces[0], -faces[0], None, faces[1])
    )
    assert not torch.equal(mine, other) and torch.equal(zeros, nobody)


def test_weights_survive_the_disk(model, tmp_path):
    path, lock = tmp_path / "humanfixer.safetensors", tmp_path / "lock.json"
    checkpoint.save_weights(path, model, {"training": "none"})
    write_lock(tmp_path, lock)
    loaded = checkpoint.load_weights(path, lock)
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded.residual_std, model.residual_std)
    size = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < 2.2 * size
    ours, theirs = Restorer(loaded)(**arguments()), Restorer(model)(**arguments())
    torch.testing.assert_close(ours[0], theirs[0], atol=0.02, rtol=0)
    assert not list(tmp_path.glob("*.part"))


def test_weights_that_the_lock_does_not_name_are_refused(model, tmp_path):
    path, lock = tmp_path / "humanfixer.safetensors", tmp_path / "lock.json"
    checkpoint.save_weights(path, model)
    lock.write_text("{}")
    with pytest.raises(WeightsError, match="sha256"):
        checkpoint.load_weights(path, lock)


def test_weights_of_another_kind_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="format None"):
        checkpoint.load_weights(path, None)
    save_file({"a": torch.zeros(1)}, path, {"format": checkpoint.FORMAT, "config": json.dumps({"unet": {}})})
    with pytest.raises(WeightsError, match="do not fit"):
        checkpoint.load_weights(path, None)
