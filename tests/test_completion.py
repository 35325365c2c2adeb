from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import ToyBody, toy_fit, toy_photo

from hdx_cli.avatars import completion
from hdx_cli.avatars.canonical import layout
from hdx_cli.avatars.completion import CompletionNet, Config, load_weights, save_weights
from hdx_cli.avatars.explicit import Settings, fit_coarse, lay_on_body
from hdx_cli.bodies import anny
from hdx_cli.bodies.base import PARTS, Body, BodyFit, BodyPose
from hdx_cli.errors import WeightsError

SMALL = Settings(gaussians=3000, iterations=0, max_side_px=240)
TINY = Config((16, 24), 2)


@pytest.fixture(scope="module")
def model():
    return anny.load()


@pytest.fixture(scope="module")
def person(model):
    """The default body before a camera, in a striped shirt, with dark hair."""
    rest = model.rest(model.default_shape)
    pose = BodyPose(np.tile(np.eye(3), (1, len(model.parents), 1, 1)), np.array([[0, -rest.vertices[:, 1].min(), 0]]))
    fit = BodyFit(Body("anny", model.default_shape), pose, toy_fit(240).camera, {})
    return toy_photo(model, fit), fit


@pytest.fixture(scope="module")
def draft(model, person):
    return lay_on_body(*person, model, SMALL)


@pytest.fixture(scope="module")
def maps(model):
    return layout(model.rest(model.default_shape).vertices, model.faces)


def test_texels_know_what_the_photo_shows(model, draft, maps):
    texels = completion.texels_of(draft, model, maps)
    part = model.parts[maps.vertices[maps.covered][:, 0]]
    side = np.nonzero(maps.covered)[0]
    trunk = part == PARTS.index("torso")
    assert texels.seen[trunk & (side == 0)].mean() > 0.7 and texels.seen[side == 1].mean() < 0.05
    blue = texels.base[trunk & texels.seen]
    assert (blue[:, 2] > blue[:, 0]).mean() > 0.9
    assert all(np.isfinite(value).all() for value in vars(texels).values())


def test_a_correction_leaves_the_photo_alone_and_reaches_its_colour_on_the_head(model, draft, maps):
    texels = completion.texels_of(draft, model, maps)
    made = np.full((*maps.covered.shape, 3), 0.5, np.float32)
    wanted = made - maps.spread(texels.base).astype(np.float32)
    change = completion.correction(maps, model.parts, texels.seen, wanted)[maps.covered]
    side, row, _ = np.nonzero(maps.covered)
    crown = (side == 1) & (row < 25)
    np.testing.assert_allclose((texels.base + change)[crown & ~texels.seen], 0.5, atol=0.02)
    deep = (side == 0) & (row > 90) & (row < 100) & texels.seen
    assert np.abs(change[deep]).mean() < 0.1


def test_the_network_only_mixes_and_shifts_a_little(model, draft, maps):
    torch.manual_seed(0)
    net = CompletionNet(TINY)
    inputs = completion.inputs_of(completion.texels_of(draft, model, maps), maps)
    with torch.no_grad():
        colours = net(inputs, completion.constants_of(maps, model.parts))
    assert colours.shape == (1, 2, 3, *maps.covered.shape[1:])
    low, high = (getattr(inputs.observed[:, :, :6], name)() for name in ("min", "max"))
    assert colours.min() >= low - completion.RESIDUAL and colours.max() <= high + completion.RESIDUAL


def test_the_bundled_weights_are_whole_and_change_only_what_is_unseen(model, person):
    assert completion.WEIGHTS.stat().st_size < 8_000_000
    observation, fit = person
    by_rule = fit_coarse(observation, fit, model, replace(SMALL, completion=False))
    completed = fit_coarse(observation, fit, model, SMALL)
    different = (by_rule.canonical.sh != completed.canonical.sh).flatten(1).any(1).numpy()
    assert different.any() and not different[by_rule.visibility > 0.5].any()
    assert torch.equal(by_rule.canonical.means, completed.canonical.means)
    again = fit_coarse(observation, fit, model, SMALL)
    assert torch.equal(completed.canonical.sh, again.canonical.sh)


def test_a_body_that_the_network_does_not_know_is_left_to_rules():
    toy, fit = ToyBody(), toy_fit(160)
    settings = Settings(gaussians=2000, iterations=0)
    first, second = (
        fit_coarse(toy_photo(toy, fit), fit, toy, replace(settings, completion=chosen)) for chosen in (True, False)
    )
    assert torch.equal(first.canonical.sh, second.canonical.sh)


def test_weights_come_back_as_they_were_saved(tmp_path):
    torch.manual_seed(1)
    net = CompletionNet(TINY)
    save_weights(tmp_path / "w.safetensors", net, {"people": "3"})
    again = load_weights(tmp_path / "w.safetensors", lock=None)
    assert again.config == TINY
    for name, value in net.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value.half().float())


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "other", "no lock"])
def test_missing_or_damaged_weights_are_an_error_with_a_hint(tmp_path, damage):
    path, lock = tmp_path / "w.safetensors", tmp_path / "w.json"
    save_weights(path, CompletionNet(TINY))
    content = bytearray(path.read_bytes())
    lock.write_text(json.dumps({path.name: hashlib.sha256(content).hexdigest()}))
    load_weights(path, lock)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "other":
        path.write_bytes(b"{}")
        lock.write_text(json.dumps({path.name: hashlib.sha256(b"{}").hexdigest()}))
    else:
        lock.unlink()
    with pytest.raises(WeightsError) as caught:
        load_weights(path, lock)
    assert str(path) in str(caught.value) and caught.value.hint


def test_weights_of_another_kind_are_refused(tmp_path, model, person):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(3)}, path, {"format": "something else"})
    with pytest.raises(WeightsError, match="no weights of the completion"):
        fit_coarse(*person, model, replace(SMALL, completion=str(path)))
