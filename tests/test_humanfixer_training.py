"""Training on a few invented people: the data's conventions, that it learns, and that it can be interrupted."""

import numpy as np
import pytest
import torch

from hdx_cli.humanfixer.checkpoint import load_weights
from hdx_cli.humanfixer.unet import temporal_parameters
from hdx_cli.training import train_humanfixer as training
from hdx_cli.training.fixer_data import over_white

H, W = 96, 64


def person(number: int) -> dict:
    """A ball that circles an axis; the coarse one is off its radius. Colours lean on the side of the photo."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:H, :W]
    colour = random.integers(40, 200, 3)

    def orbit(radius):
        frames = np.zeros((18, H, W, 4), np.uint8)
        for i in range(18):
            middle = W / 2 + radius * np.sin(2 * np.pi * i / 18)
            inside = (y - H / 2) ** 2 + (x - middle) ** 2 < 15**2
            frames[i, inside] = [*colour, 255]
        return frames

    truth = orbit(8)
    seen = np.zeros((18, H, W), np.uint8)
    seen[0] = 255
    return dict(
        coarse=orbit(3), truth=truth, seen=seen, photo=truth[0], face=np.zeros((64, 64, 3), np.uint8),
        person=f"p{number:04d}", variant="a",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pairs")
    for number in (101, 102, 103, 7):
        np.savez_compressed(made / f"p{number:04d}-a.npz", **person(number))
    (made / "p0104-a.npz").write_bytes(b"PK half written")
    return made


def arguments(folder, out, *more):
    given = ["--pairs", folder, "--out", out, "--height", 48, "--size", "tiny", "--warmup", 5, "--lr", 2e-3, *more]
    return training.parse([str(value) for value in given])


def test_pairs_are_shrunk_over_white_and_split(folder, tmp_path, capsys):
    train, held_out = training.load_pairs(folder, 48, tmp_path / "cache", 40, 1.0)
    assert sorted(pair.person for pair in train) == ["p0101", "p0102", "p0103"] and held_out[0].person == "p0007"
    assert "left out p0104-a.npz" in capsys.readouterr().out
    pair = train[0]
    assert pair.coarse.shape == (18, 4, 48, 32) and pair.photo.shape == (4, 48, 32) and pair.face.shape == (3, 64, 64)
    assert (pair.truth[:, :3, 0, 0] == 255).all() and (pair.truth[:, 3, 0, 0] == 0).all()
    again, _ = training.load_pairs(folder, 48, tmp_path / "cache", 40, 1.0)
    assert all(torch.equal(a.truth, b.truth) for a, b in zip(train, again, strict=True))
    few, _ = training.load_pairs(folder, 48, tmp_path / "cache", 40, 0.0005)
    assert len(few) < 3


def test_colour_under_transparent_pixels_does_not_bleed():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 255  # red where nothing is
    rgba[:2] = [0, 0, 100, 255]
    small = over_white(rgba, 2, 2)
    assert (small[:, 1, 0] == [255, 255, 255, 0]).all() and (small[:, 0, 0] == [0, 0, 100, 255]).all()


def test_the_mirror_runs_the_orbit_backwards(folder, tmp_path):
    train, _ = training.load_pairs(folder, 48, tmp_path, 40, 1.0)
    batch = training.as_batch(train[:1])
    turned = training.mirrored(batch)
    # the ball goes right first; in the mirror it does so too, once the views run the other way
    assert (turned.truth - batch.truth).abs().mean() < 0.02 < (batch.truth.flip(-1) - batch.truth).abs().mean()
    assert torch.equal(turned.truth[:, 5], batch.truth[:, 13].flip(-1)) and torch.equal(
        turned.photo, batch.photo.flip(-1)
    )
    twice = training.mirrored(turned)
    assert all(torch.equal(getattr(twice, name), getattr(batch, name)) for name in batch.__dataclass_fields__)


def test_other_colours_keep_white_and_shape(folder, tmp_path):
    train, _ = training.load_pairs(folder, 48, tmp_path, 40, 1.0)
    batch = training.as_batch(train[:2])
    other = training.recoloured(batch, torch.Generator().manual_seed(1))
    assert torch.equal(other.truth[:, :, 3], batch.truth[:, :, 3]) and torch.equal(other.seen, batch.seen)
    assert (other.truth[:, :, :3, 0, 0] == 1).all()
    assert not torch.allclose(other.truth, batch.truth, atol=0.02)
    covered = batch.coarse[0, 0, 3] * batch.truth[0, 0, 3] == 1  # coarse and true colours change alike
    torch.testing.assert_close(other.coarse[0, 0, :3, covered], other.truth[0, 0, :3, covered])


def test_image_loss_is_zero_for_the_truth_only():
    truth = torch.rand(2, 4, 16, 16)
    assert training.image_loss(truth, truth) == 0
    near, far = (training.image_loss(truth + amount, truth) for amount in (0.1, 0.2))
    assert 0 < near < far


@pytest.mark.parametrize("frames", [0, 4])
def test_losses_reach_every_parameter_that_is_in_use(folder, tmp_path, frames):
    torch.manual_seed(0)
    chosen = arguments(folder, tmp_path, "--frames-2d", frames, "--start-share", 0.5, "--bf16")
    model, _, _ = training.begin(chosen)
    train, _ = training.load_pairs(folder, 48, tmp_path, 40, 1.0)
    batch = training.as_batch(train[:2])
    batch.faces.uniform_()
    with training.without_time(model.unet) if frames else training.contextlib.nullcontext():
        parts = training.losses(model, batch, chosen, torch.Generator().manual_seed(0))
    assert set(parts) == {"v", "image"}
    sum(parts.values()).backward()
    temporal = {id(parameter) for parameter in temporal_parameters(model.unet)}
    for name, parameter in model.named_parameters():
        if id(parameter) in temporal and frames:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_training_improves_and_goes_on_where_it_stopped(folder, tmp_path):
    first = arguments(folder, tmp_path, "--max-steps", 30, "--frames-2d", 6)
    training.train(first)
    config, notes, tensors = training.load_state(tmp_path / "state.safetensors")
    assert notes["step"] == 30 and notes["stages"][0]["done"] and config.height == 48
    training.train(arguments(folder, tmp_path, "--max-steps", 10, "--resume", tmp_path / "state.safetensors"))
    _, notes, later = training.load_state(tmp_path / "state.safetensors")
    assert notes["step"] == 40 and [stage["steps"] for stage in notes["stages"]] == [30, 10]
    name = "model.unet.conv_in.weight"
    assert not torch.equal(tensors[name], later[name]) and "exp_avg.unet.conv_in.weight" in later
    log = (tmp_path / "log.txt").read_text()
    assert "coarse blurred 1.5" in log and "restored in 1" in log
    restored = [float(line.split("psnr ")[1].split()[0]) for line in log.splitlines() if "restored in 1" in line]
    coarse = float(log.split("coarse: psnr ")[1].split()[0])
    assert restored[-1] > coarse
    assert load_weights(tmp_path / "humanfixer.safetensors", None).config == config


def test_an_interrupted_stage_is_completed(folder, tmp_path):
    model, notes, _ = training.begin(arguments(folder, tmp_path))
    ema = {name: value.detach().clone() for name, value in model.named_parameters()}
    notes = {"step": 3, "stages": [{"stage": [48, 0, 30.0], "seconds": 1.0, "steps": 3}]}
    training.save_state(tmp_path / "state.safetensors", model, ema, torch.optim.AdamW(model.parameters()), notes)
    training.train(arguments(folder, tmp_path, "--max-steps", 5, "--resume", tmp_path / "state.safetensors"))
    _, notes, _ = training.load_state(tmp_path / "state.safetensors")
    assert notes["step"] == 5 and len(notes["stages"]) == 1 and notes["stages"][0]["done"]
