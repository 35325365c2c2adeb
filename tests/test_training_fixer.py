"""Training as a product: the same losses after kill -9, in any number of processes and parts, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_humanfixer_training import person

from hdx_cli.cli import training as commands
from hdx_cli.errors import InputRejected, UsageError, WeightsError
from hdx_cli.humanfixer.checkpoint import load_weights
from hdx_cli.humanfixer.diffusion import denoised
from hdx_cli.humanfixer.restorer import person_columns
from hdx_cli.training import fixer_data, fixer_steps, recipe, train_fixer
from hdx_cli.training.train_humanfixer import load_state

ROOT = Path(__file__).resolve().parent.parent
TINY = recipe.recipe_of("tiny", height=48, held_out=0.2, steps=6)
QUICK = train_fixer.Pace(sample_steps=0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("pairs")
    for number in range(101, 106):
        np.savez(made / f"p{number:04d}-a.npz", **person(number))
    return made


@pytest.fixture(scope="module")
def sources(pairs, tmp_path_factory) -> list[fixer_data.Source]:
    return fixer_data.find_pairs(pairs, 48, tmp_path_factory.mktemp("cache"))[0]


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory) -> Path:
    """Six steps without a break."""
    out = tmp_path_factory.mktemp("whole")
    made = train_fixer.train(pairs, out, TINY, QUICK)
    assert made.done and made.step == 6 and made.sheet.is_file()
    return out


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / train_fixer.LOG).read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(steps) == len(set(steps))
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def command(pairs: Path, out: Path, *more: object) -> list[str]:
    given = ["fixer", pairs, "-o", out, "--size", "tiny", "--height", 48, "--held-out", 0.2, "--sample-steps", 0, *more]
    return [str(value) for value in given]


def test_the_lists_of_the_command_line_are_the_real_ones() -> None:
    from hdx_cli.humanfixer import attention
    from hdx_cli.training import scan_pairs, scans

    assert commands.SIZES == tuple(recipe.SIZES)
    assert commands.PRECISIONS == recipe.PRECISIONS
    assert (commands.VARIANTS, commands.IDENTITIES) == (attention.VARIANTS, attention.IDENTITIES)
    assert (commands.UPS, commands.PAIR_VARIANTS) == (scans.UPS, scan_pairs.VARIANTS)
    assert commands.RENDERERS == scan_pairs.RENDERERS


def test_every_pair_comes_once_before_any_comes_again() -> None:
    plan = replace(TINY, batch=2)
    order = [index for step in range(10) for index in fixer_steps.chosen(plan, step, 5)]
    assert all(sorted(order[at : at + 5]) == [0, 1, 2, 3, 4] for at in range(0, 20, 5))
    assert order[:5] != order[5:10] or order[5:10] != order[10:15]
    wider = [index for step in range(5) for index in fixer_steps.chosen(replace(plan, batch=4), step, 5)]
    assert wider == order


def test_a_sample_is_the_same_whichever_process_makes_it(sources) -> None:
    given = dict(step=3, channels=132, factor=8)
    both = fixer_steps.samples_of(TINY, sources, places=range(2), **given)
    apart = [fixer_steps.samples_of(TINY, sources, places=range(at, at + 1), **given)[0] for at in range(2)]
    for one, other in zip(both, apart, strict=True):
        assert torch.equal(one.noise, other.noise) and (one.inject, one.sigma) == (other.inject, other.sigma)
        assert torch.equal(one.batch.coarse, other.batch.coarse)
    assert both[0].batch.coarse.shape == both[1].batch.coarse.shape and not torch.equal(both[0].noise, both[1].noise)


def test_common_columns_hold_what_each_person_needs(sources) -> None:
    """As ``person_columns`` of the pictures themselves, in the mirror too."""
    pair = fixer_data.as_batch([sources[0].load()])
    for flip in (False, True):
        shown = fixer_data.mirrored(pair) if flip else pair
        wanted = person_columns(torch.cat([shown.coarse[:, :, 3], shown.photo[:, None, 3]], 1))
        assert fixer_steps.common_columns(sources[:1], [flip], 48) == wanted


def test_the_loss_is_the_weighted_error_of_x0(sources) -> None:
    """(sigma^2 + 1) / sigma^2 times the squared error of x0, which is another way to the squared error of v."""
    plan = replace(TINY, channel_weight=0.0, image_weight=0.0)
    model = train_fixer.build(plan, QUICK)
    batch = fixer_data.as_batch([sources[0].load()])
    sigma, inject = torch.tensor([3.0]), torch.tensor([True])
    noise = torch.randn(1, 19, model.codec.channels, 6, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = fixer_steps.Objective(model, plan)(batch, inject, sigma, noise, None)["v"]
        conditions = model.conditions(batch.coarse, batch.seen, batch.photo, batch.faces, inject)
        x0 = model.normalise(model.encode(torch.cat([batch.truth, batch.truth[:, :1]], 1)), conditions.base)
        z = x0 + 3.0 * noise
        error = (denoised(z, model(z, sigma, conditions), torch.tensor(3.0)) - x0).square().mean()
    torch.testing.assert_close(loss[0], error * (9 + 1) / 9, rtol=1e-4, atol=1e-6)  # two ways of float32


def test_people_one_after_another_learn_as_all_at_once(pairs, trained, tmp_path) -> None:
    train_fixer.train(pairs, tmp_path, TINY, replace(QUICK, micro=1))
    one, whole = losses(tmp_path), losses(trained)
    # sums in another order; the first steps of Adam divide by small numbers and amplify that
    assert one == pytest.approx(whole, rel=1e-3) and one[1] == pytest.approx(whole[1], rel=1e-5)


def test_after_kill_9_training_goes_on_with_the_same_losses(pairs, trained, tmp_path) -> None:
    words = [sys.executable, "-m", "hdx_cli.cli.training", *command(pairs, tmp_path, "--steps", 6)]
    process = subprocess.Popen([*words, "--checkpoint-minutes", "0"], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        lines = (tmp_path / train_fixer.LOG).read_text().count("\n") if (tmp_path / train_fixer.LOG).is_file() else 0
        if lines >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = load_state(tmp_path / train_fixer.STATE)[1]["step"]
    assert 2 <= reached < 6
    with (tmp_path / train_fixer.LOG).open("a") as file:  # steps beyond the state, and a line cut off
        file.write('{"step": 5, "loss": 9.0}\n{"step": 6, "lo')
    made = train_fixer.train(pairs, tmp_path, TINY, QUICK)
    assert made.done
    again, whole = losses(tmp_path), losses(trained)
    assert list(again) == list(range(1, 7))
    assert max(abs(again[step] - whole[step]) for step in whole) < 1e-5
    ours, theirs = (load_weights(out / train_fixer.WEIGHTS, None).state_dict() for out in (tmp_path, trained))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in theirs)  # float16 in the file


@pytest.mark.slow
def test_two_processes_learn_as_one(pairs, tmp_path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
    for count in (1, 2):
        words = [*torchrun, str(count), "--master_port", str(29500 + os.getpid() % 1000 + count), "-m"]
        words += ["hdx_cli.cli.training", *command(pairs, tmp_path / str(count), "--steps", 6)]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert list(two) == list(range(1, 7)) and two[1] == pytest.approx(one[1], rel=1e-5)
    assert two == pytest.approx(one, rel=1e-3)  # the order of sums, amplified by Adam's first steps


def test_checkpointing_keeps_gradients_and_covers_the_temporal_blocks() -> None:
    """Bytes that the graph keeps: none at all, diffusers' own (all but the temporal blocks), and ours."""
    kept, gradients = [], []
    for kind in ("all", "diffusers", "ours"):
        model = train_fixer.build(replace(TINY, variant="cyclic_mask"), QUICK)
        torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        if kind == "diffusers":
            model.unet.enable_gradient_checkpointing()
        if kind == "ours":
            fixer_steps.enable_checkpointing(model.unet)
        size = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.numel() * tensor.element_size()
            return tensor

        z = torch.randn(1, 19, model.unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
        given = torch.tensor([0.3]), torch.ones(1, 4, 64), torch.tensor([[6.0, 127.0, 0.02]])
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            made = model.unet(z, *given, return_dict=False)[0]
        kept.append(size)
        made.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.unet.named_parameters()})
    assert kept[2] < 0.8 * kept[1] < 0.8 * kept[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[2][name], gradient, rtol=1e-4, atol=1e-5)


def test_ablations_are_what_they_say(sources) -> None:
    batch = fixer_data.as_batch([sources[0].load()])
    photo = fixer_steps.without_coarse(batch)
    assert all(torch.equal(photo.coarse[:, view], batch.photo) for view in range(18)) and not photo.seen.any()
    assert torch.equal(photo.truth, batch.truth)
    model = train_fixer.build(replace(TINY, variant="noncyclic", identity="none", without_coarse=True), QUICK)
    assert (model.config.variant, model.config.identity, model.config.residual) == ("noncyclic", "none", False)
    given = dict(step=0, places=range(1), channels=132, factor=8)
    frames = {
        variant: fixer_steps.samples_of(replace(TINY, variant=variant), sources, **given)[0].noise.shape[0]
        for variant in commands.VARIANTS
    }
    assert frames == {"noncyclic": 18, "cyclic": 19, "cyclic_mask": 19}


def test_image_tokens_reach_the_loss(sources) -> None:
    plan = replace(TINY, identity="clip+face")
    model = train_fixer.build(plan, QUICK)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    (sample,) = fixer_steps.samples_of(plan, sources, step=0, places=range(1), channels=132, factor=8)
    assert sample.photo.shape == (1, 4, 48, 32)
    given = sample.batch, torch.tensor([True]), torch.tensor([sample.sigma]), sample.noise[None], None
    objective = fixer_steps.Objective(model, plan)
    bare, zeros, ones = (objective(*given, clip)["v"] for clip in (None, torch.zeros(1, 1, 64), torch.ones(1, 1, 64)))
    assert torch.equal(bare, zeros) and not torch.allclose(bare, ones)


def test_only_attention_learns_where_that_is_asked() -> None:
    model = train_fixer.build(TINY, QUICK)
    names = set(fixer_steps.trainable(model, replace(TINY, attention_only=True)))
    assert "unet.conv_in.weight" in names and any("attentions" in name for name in names)
    assert any(name.startswith("identity.") for name in names) and not any("resnets" in name for name in names)
    flat = set(fixer_steps.trainable(model, replace(TINY, frames=4)))
    assert flat and not any("temporal_transformer_blocks" in name for name in flat)


def test_pairs_that_are_none_are_left_out_with_a_reason(pairs, tmp_path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for path in list(pairs.glob("*.npz"))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "cut.npz").write_bytes(b"PK half written")
    np.savez(folder / "wrong.npz", **(person(1) | {"coarse": np.zeros((3, 4, 4, 4), np.uint8)}))
    wide = person(2)
    for name in ("coarse", "truth", "photo", "seen"):
        wide[name] = np.repeat(wide[name], 2, axis=-1 if name == "seen" else -2)
    np.savez(folder / "wide.npz", **wide)
    found, rejected = fixer_data.find_pairs(folder, 48, tmp_path / "cache")
    assert len(found) == 2 and {name for name, _ in rejected} == {"cut.npz", "wrong.npz", "wide.npz"}
    assert all(reason for _, reason in rejected)


def test_what_cannot_be_meant_is_refused(pairs, trained, tmp_path) -> None:
    with pytest.raises(UsageError, match="lr: "):
        train_fixer.train(pairs, trained, replace(TINY, lr=1e-5), QUICK)
    with pytest.raises(InputRejected, match="no pairs"):
        train_fixer.train(tmp_path, tmp_path / "out", TINY, QUICK)
    (tmp_path / "out" / train_fixer.STATE).write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(WeightsError, match="not a state") as told:
        train_fixer.train(pairs, tmp_path / "out", TINY, QUICK)
    assert "--force" in told.value.hint
    with pytest.raises(UsageError, match="svd"):
        train_fixer.build(recipe.recipe_of("svd"), QUICK)
    with pytest.raises(UsageError, match="image_encoder"):
        train_fixer.train(pairs, tmp_path / "clip", replace(TINY, identity="clip"), QUICK)
    for wrong in (dict(height=50), dict(height=4096), dict(frames=19)):
        with pytest.raises(UsageError):
            recipe.recipe_of("tiny", **wrong)
    with pytest.raises(UsageError, match="choose one"):
        recipe.recipe_of("huge")


def test_a_finished_training_is_left_alone_and_more_steps_go_on(pairs, trained, tmp_path) -> None:
    before = (trained / train_fixer.STATE).read_bytes()
    assert train_fixer.train(pairs, trained, TINY, QUICK).step == 6
    assert (trained / train_fixer.STATE).read_bytes() == before
    for name in (train_fixer.STATE, train_fixer.LOG):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert train_fixer.train(pairs, tmp_path, replace(TINY, steps=7), QUICK).step == 7
    assert list(losses(tmp_path)) == list(range(1, 8))


def test_the_weights_tell_how_they_were_trained(trained) -> None:
    from safetensors import safe_open

    with safe_open(trained / train_fixer.WEIGHTS, "pt") as file:
        notes = json.loads(file.metadata()["training"])
    assert notes["recipe"] == asdict(TINY) and notes["step"] == 6 and notes["count"] >= 3


def test_the_rate_rises_and_falls() -> None:
    plan = recipe.Recipe(steps=100, warmup=10, lr=1.0)
    rates = [plan.rate(step) for step in range(100)]
    assert (
        rates[0] == pytest.approx(0.1) and max(rates) == rates[9] > 0.95 and rates[-1] == pytest.approx(0.02, abs=0.01)
    )
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))


@pytest.fixture(scope="module")
def svd_folder(tmp_path_factory) -> Path:
    """Stable Video Diffusion's layout with networks of a few thousand parameters."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    from hdx_cli.humanfixer.unet import TINY as SHAPE

    folder = tmp_path_factory.mktemp("svd")
    torch.manual_seed(0)
    UNetSpatioTemporalConditionModel(in_channels=8, out_channels=4, **SHAPE).save_pretrained(folder / "unet")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32), "layers_per_block": 1}
    AutoencoderKLTemporalDecoder(latent_channels=4, **kinds).save_pretrained(folder / "vae")
    return folder


def test_stable_video_diffusion_is_tuned_and_goes_on(pairs, svd_folder, tmp_path) -> None:
    asked = dict(height=48, batch=2, held_out=0.2, steps=2)
    pace = replace(QUICK, pretrained=svd_folder, scored_people=1)
    plan = recipe.recipe_of("svd", **asked)
    fresh = train_fixer.build(plan, pace)
    assert fresh.config.codec == "vae" and fresh.config.faces == "crop" and (fresh.residual_std == 1).all()
    assert train_fixer.train(pairs, tmp_path, replace(plan, steps=1), pace).step == 1
    assert train_fixer.train(pairs, tmp_path, plan, pace).step == 2
    tensors = load_state(tmp_path / train_fixer.STATE)[2]
    learned = fixer_steps.trainable(fresh, plan)
    for name, value in fresh.named_parameters():
        moved = not torch.equal(tensors[f"model.{name}"], value.detach())
        assert not moved or name in learned, name
        assert (f"exp_avg.{name}" in tensors) == (f"ema.{name}" in tensors) == (name in learned)
    assert not torch.equal(tensors["model.unet.conv_in.weight"], fresh.unet.conv_in.weight)

    from hdx_cli.training import publish

    with pytest.raises(UsageError, match="autoencoder"):
        publish.lay_out(tmp_path, tmp_path / "made")
    made = publish.lay_out(tmp_path, tmp_path / "made", vae=svd_folder)
    assert "vae/config.json" in made and "vae/diffusion_pytorch_model.safetensors" in made

    from hdx_cli.humanfixer.checkpoint import load_restorer

    assert load_restorer(tmp_path / "made").model.config.codec == "vae"


def test_the_commands_start_light_and_say_what_is_wrong(pairs, tmp_path) -> None:
    light = (
        "import sys\nfrom hdx_cli.cli import training\n"
        "heavy = {'torch', 'numpy', 'accelerate', 'trimesh', 'diffusers', 'cv2'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", light], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

    from typer.testing import CliRunner

    run = CliRunner()
    for words, code, told in (
        (["fixer", str(tmp_path / "none"), "-o", str(tmp_path / "o")], 2, "no such folder"),
        (["fixer", str(pairs), "-o", str(tmp_path / "o"), "--size", "svd", "--height", "48"], 2, "--pretrained"),
        (["fixer", str(pairs), "-o", str(tmp_path / "o"), "--size", "tiny", "--height", "50"], 2, "multiple of 8"),
        (["pairs", str(tmp_path), "-o", str(tmp_path / "o"), "--variants", "best"], 2, "choose from"),
        (["pairs", str(tmp_path / "none"), "-o", str(tmp_path / "o")], 2, "no such folder"),
    ):
        result = run.invoke(commands.train, words)
        assert result.exit_code == code and told in result.output, result.output


def test_a_stage_without_time_is_what_the_next_one_begins_from(pairs, tmp_path) -> None:
    flat = replace(TINY, frames=4, steps=2, batch=1, precision="bf16", image_weight=0.5)
    first = train_fixer.train(pairs, tmp_path / "flat", flat, replace(QUICK, scored_people=1))
    before = train_fixer.build(flat, QUICK).state_dict()
    after = load_weights(first.weights, None).state_dict()
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-3)}
    assert moved and not any("temporal_transformer_blocks" in name for name in moved)
    begun = train_fixer.build(replace(TINY, height=64), replace(QUICK, begin_from=first.weights))
    assert begun.config.height == 64
    assert all(torch.equal(value, after[name]) for name, value in begun.state_dict().items())
    with pytest.raises(WeightsError, match="another network"):
        train_fixer.build(replace(TINY, size="small"), replace(QUICK, begin_from=first.weights))
