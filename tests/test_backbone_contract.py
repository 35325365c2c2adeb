"""Every backbone goes from photo to coarse to refined avatar and back from its files; networks run once per step."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import ToyBody, toy_fit, toy_photo

from hdx_cli.avatars import animatable_gaussians as animatable
from hdx_cli.avatars import backbones, explicit, gaussian_avatar, neural
from hdx_cli.avatars.avatar_file import read_avatar
from hdx_cli.avatars.base import Avatar
from hdx_cli.avatars.neural import NeuralAvatar, Plan
from hdx_cli.avatars.refine import RefineSettings, Views, agreement, photo_views, refine, refine_in_rounds
from hdx_cli.avatars.turntable import closed_in
from hdx_cli.camera import orbit_of
from hdx_cli.errors import InputRejected, UsageError
from hdx_cli.gaussians import Gaussians, sh_from_rgb
from hdx_cli.rasterize import rasterize

PRIOR = explicit.Settings(gaussians=2000, iterations=0)
PLAN = Plan(coarse_steps=12, refine_steps=25, views_per_step=3, max_side_px=120, rate=5e-3)
TINY = {
    "gaussian-avatar": (gaussian_avatar, gaussian_avatar.Profile(side=32, feature_side=16, channels=8, width=16)),
    "animatable-gaussians": (animatable, animatable.Profile(64, 32, (4, 8, 8, 8), 8)),
}
NETWORKS = pytest.mark.parametrize("name", TINY)


def unfitted(name: str) -> NeuralAvatar:
    module, profile = TINY[name]
    model, fit = ToyBody(), toy_fit(120)
    plan = replace(PLAN, coarse_steps=0)
    return module.fit_coarse(toy_photo(model, fit), fit, model, PRIOR, profile=profile, plan=plan)


@cache
def start(name: str) -> NeuralAvatar:
    return replace(unfitted(name), plan=PLAN)


def photo() -> Views:
    fit = toy_fit(120)
    observation = toy_photo(ToyBody(), fit)
    return photo_views(fit.camera, observation.foreground, observation.alpha, 1024)


def red_behind(avatar: Avatar) -> Views:
    """The avatar's own orbit, but what the photo does not show is red."""
    cameras = orbit_of(closed_in(avatar.gaussians().means, toy_fit(120).camera, 60, 90), 6)
    gaussians = avatar.gaussians()
    hidden = torch.from_numpy(avatar.visibility == 0)[:, None, None]
    gaussians = replace(gaussians, sh=torch.where(hidden, sh_from_rgb(torch.tensor([[0.8, 0.1, 0.1]])), gaussians.sh))
    with torch.no_grad():
        made = [rasterize(gaussians, cameras[index]) for index in range(6)]
    rgb, alpha = torch.cat([view.rgb for view in made]), torch.cat([view.alpha for view in made])
    return Views(cameras, rgb / alpha.clamp(min=1e-4)[..., None], alpha, torch.ones_like(alpha))


@NETWORKS
def test_fitting_brings_the_avatar_nearer_to_its_photo(name: str) -> None:
    before, target = start(name), photo()
    after = neural.fitted(before, target, None)
    assert agreement(after, target) > agreement(before, target) + 0.5
    # the network that was given stays as it was
    assert torch.equal(before.network().means, start(name).canonical.means)


@NETWORKS
def test_views_teach_what_the_photo_does_not_show(name: str) -> None:
    before, target = start(name), photo()
    views = red_behind(before)
    after, rounds = refine_in_rounds(
        before, target, lambda avatar, turn: views, RefineSettings(sigmas=(None,), nodes=20, loss_db=3.0),
        fit=backbones.refiner(before),
    )  # fmt: skip
    assert rounds[0]["kept"] and rounds[0]["held_out_after_db"] > rounds[0]["held_out_before_db"] + 1
    assert isinstance(after, NeuralAvatar)
    # joints may have turned: what the network makes is what the file says all the same
    with torch.no_grad():
        assert torch.allclose(after.network().means, after.canonical.means, atol=1e-6)


@NETWORKS
def test_one_pass_serves_all_views_of_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    avatar = start(name)
    passes, renders = [], []
    forward = type(avatar.network).forward
    monkeypatch.setattr(type(avatar.network), "forward", lambda self: passes.append(1) or forward(self))
    monkeypatch.setattr(neural, "rasterize", lambda *a, **k: renders.append(1) or rasterize(*a, **k))
    quick = replace(avatar, plan=replace(PLAN, refine_steps=2, views_per_step=4, bends=False))
    neural.fitted(quick, photo(), red_behind(avatar))
    assert len(renders) == 2 * 4
    assert len(passes) == 2 + 1  # and once for the result


@NETWORKS
def test_the_same_seed_makes_the_same_avatar(name: str) -> None:
    quick = replace(start(name), plan=replace(PLAN, coarse_steps=2))
    first, second = (neural.fitted(quick, photo(), None, seed=3) for _ in range(2))
    assert all(torch.equal(value, getattr(second.canonical, key)) for key, value in vars(first.canonical).items())


@NETWORKS
def test_files_keep_network_and_avatar(name: str, tmp_path: Path) -> None:
    avatar = start(name)
    torch.manual_seed(0)
    for parameter in avatar.network.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    with torch.no_grad():
        avatar = replace(avatar, canonical=avatar.network())
    backbones.write(tmp_path, avatar)
    again = backbones.read(tmp_path)
    assert backbones.name_of(again) == name and again.plan == PLAN
    for key, value in avatar.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key
    with torch.no_grad():
        made = again.network()
    for key, value in vars(made).items():
        assert torch.equal(value, getattr(again.canonical, key)), key
    # without the network it is an avatar like any other
    assert type(read_avatar(tmp_path)) is Avatar
    start.cache_clear()


def test_explicit_avatars_have_no_network(tmp_path: Path, toy_avatar) -> None:
    backbones.write(tmp_path, toy_avatar)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["avatar.json", "avatar.safetensors"]
    again = backbones.read(tmp_path)
    assert type(again) is Avatar and backbones.name_of(again) == "explicit" and backbones.refiner(again) is refine


def test_a_draft_changes_nothing_of_the_explicit_avatar() -> None:
    model, fit = ToyBody(), toy_fit(120)
    observation = toy_photo(model, fit)
    draft = explicit.lay_on_body(observation, fit, model, PRIOR)
    first = explicit.fit_coarse(observation, fit, model, PRIOR).canonical
    second = explicit.fit_coarse(observation, fit, model, PRIOR, draft=draft).canonical
    assert all(torch.equal(value, getattr(second, key)) for key, value in vars(first).items())


def test_names_and_profiles() -> None:
    assert backbones.NAMES == ("explicit", "gaussian-avatar", "animatable-gaussians")
    model, fit = ToyBody(), toy_fit(120)
    observation = toy_photo(model, fit)
    with pytest.raises(UsageError, match="choose one of explicit, gaussian-avatar, animatable-gaussians"):
        backbones.fit_coarse("nerf", observation, fit, model)
    with pytest.raises(UsageError, match="cpu, paper"):
        backbones.fit_coarse("gaussian-avatar", observation, fit, model, profile="gpu")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "coarse"
    folder.mkdir()
    backbones.write(folder, start("gaussian-avatar"))
    return folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "other"}, "format"),
        ({"version": "2.0"}, "reads hdx-backbone 1.x"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"backbone": "nerf"}, "choose one of"),
        ({"gaussians": 3}, "the avatar has"),
        ({"rows": 10**9}, "maps of"),
        ({"rows": 2, "columns": 2}, "outside"),
        ({"profile": {"width": 10**12}}, "in a profile"),
        ({"profile": {"width": 1024}}, "size mismatch"),
        ({"profile": {"depth": 3}}, "depth"),
        ({"profile": {"width": float("nan")}}, "in a profile"),
        ({"plan": {"refine_steps": 10**12}}, "refine_steps"),
        ({"plan": []}, "mapping"),
    ],
)
def test_damaged_networks_are_refused(kept: Path, change: dict, reason: str) -> None:
    path = kept / backbones.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((InputRejected, UsageError), match=reason) as caught:
        backbones.read(kept)
    assert "\n" not in caught.value.message


def test_missing_or_cut_files_are_refused(kept: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(kept, cut)
    with (kept / backbones.TENSORS).open("ab") as file:
        file.truncate(10**10)  # sparse: it is refused for its size, unread
    with pytest.raises(InputRejected, match="bytes, not"):
        backbones.read(kept)
    (kept / backbones.TENSORS).unlink()
    with pytest.raises(InputRejected, match="no such file"):
        backbones.read(kept)
    for content in (b"", b"[]", b"\xff", b"{" * 100_000):
        (cut / backbones.DESCRIPTION).write_bytes(content)
        with pytest.raises(InputRejected, match="not the network"):
            backbones.read(cut)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    avatar = start("gaussian-avatar")
    broken = gaussian_avatar.GaussianAvatarNet(
        avatar.network.profile, avatar.canonical, avatar.network.texels, *avatar.network.map_size
    )
    broken.means[0, 0] = torch.nan
    backbones.write(tmp_path, replace(avatar, network=broken))
    with pytest.raises(InputRejected, match="means: not finite"):
        backbones.read(tmp_path)


def test_colours_are_lent_from_near_by() -> None:
    avatar = start("gaussian-avatar")
    means = np.array([[0, 0, 0], [1, 0, 0], [0.001, 0, 0]], np.float32)
    rgb = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    one = torch.ones(3)
    prior = replace(
        avatar, canonical=Gaussians(torch.from_numpy(means), torch.zeros(3, 4), torch.ones(3, 3), one, sh_from_rgb(rgb))
    )
    points, reach = np.array([[0, 0, 0], [1, 0.2, 0], [0, 0, 0]], np.float32), np.array([1e-4, 0.01, 1.0], np.float32)
    lent = neural.lent(points, reach, prior)
    assert np.allclose(lent[0], [1, 0, 0], atol=1e-6) and np.allclose(lent[1], [0, 1, 0], atol=1e-6)
    # a wide window: exp(-1/2) of the one a metre away
    weights = np.array([1, np.exp(-0.5), np.exp(-0.5e-6)])
    assert np.allclose(lent[2], weights / weights.sum(), atol=1e-5)


def test_smaller_photos_show_the_same() -> None:
    full = photo()
    small = neural.at_most(full, 60)
    assert max(small.cameras.width, small.cameras.height) == 60
    assert float(small.alpha.mean()) == pytest.approx(float(full.alpha.mean()), abs=0.01)
    points, scale = torch.tensor([[0.1, 1.0, 0.0]]), 60 / max(full.cameras.width, full.cameras.height)
    assert torch.allclose(small.cameras.project(points)[0], scale * full.cameras.project(points)[0], atol=1e-3)
    assert neural.at_most(full, 500) is full
