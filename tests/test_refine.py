"""Refinement: true views must help, an avatar's own views must change nothing, and the photo stays what it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import ToyBody, toy_fit, toy_photo

from hdx_cli import outputs, stages
from hdx_cli.avatars import refine as refining
from hdx_cli.avatars.avatar_file import read_avatar
from hdx_cli.avatars.base import Avatar
from hdx_cli.avatars.explicit import photo_scores
from hdx_cli.avatars.refine import RefineSettings, Views
from hdx_cli.avatars.turntable import closed_in, samples_per_pixel, straight, through_window, views_to_restore
from hdx_cli.bodies.base import PARTS
from hdx_cli.camera import Cameras, orbit_of, turn_about_up
from hdx_cli.errors import InputRejected, NothingToDo, WeightsError
from hdx_cli.gaussians import Gaussians, sh_from_rgb
from hdx_cli.rasterize import rasterize
from hdx_cli.run_files import load_views, save_views
from hdx_cli.run_folder import RunFolder

QUICK = RefineSettings(iterations=160, nodes=30, colour_nodes=300, polish=5)
RED = [0.8, 0.1, 0.1]


@pytest.fixture(scope="module")
def orbit(toy_avatar) -> Cameras:
    return orbit_of(closed_in(toy_avatar.gaussians().means, toy_fit(160).camera, 80, 120), 18)


@pytest.fixture(scope="module")
def photo() -> Views:
    fit = toy_fit(160)
    observation = toy_photo(ToyBody(), fit)
    return refining.photo_views(fit.camera, observation.foreground, observation.alpha, 1024)


@pytest.fixture(scope="module")
def truth(toy_avatar) -> Gaussians:
    """The toy as it might be: its back is red and its head further from the camera, which the photo cannot show."""
    gaussians = toy_avatar.gaussians()
    eye = toy_fit(160).camera.positions()[0]
    further = torch.from_numpy(np.where(toy_avatar.parts == PARTS.index("head"), 1.02, 1.0).astype(np.float32))[:, None]
    hidden = torch.from_numpy(toy_avatar.visibility == 0)
    sh = torch.where(hidden[:, None, None], sh_from_rgb(torch.tensor([RED])), gaussians.sh)
    return replace(gaussians, means=eye + further * (gaussians.means - eye), scales=further * gaussians.scales, sh=sh)


def pictures(gaussians: Gaussians, cameras: Cameras, samples: int = 1) -> Views:
    with torch.no_grad():
        made = [rasterize(gaussians, cameras[index], supersample=samples) for index in range(len(cameras))]
    rgb, alpha = torch.cat([view.rgb for view in made]), torch.cat([view.alpha for view in made])
    return Views(cameras, rgb / alpha.clamp(min=1e-4)[..., None], alpha, torch.ones_like(alpha), 0.0, samples)


def between(cameras: Cameras) -> Cameras:
    """The same orbit half a step on: views that nothing was fitted to."""
    turn = turn_about_up(torch.tensor([-np.pi / len(cameras)]))
    return Cameras(cameras.viewmats @ turn.float(), cameras.Ks, cameras.width, cameras.height)


def front_db(avatar: Avatar, photo: Views) -> float:
    return photo_scores(avatar.gaussians(), photo.cameras, photo.rgb[0], photo.alpha[0])["front_psnr_db"]


def test_true_views_help_where_nothing_was_fitted_and_the_photo_stays(toy_avatar, orbit, photo, truth) -> None:
    refined = refining.refine(toy_avatar, photo, pictures(truth, orbit), QUICK)
    held_out = pictures(truth, between(orbit))
    before, after = (refining.agreement(avatar, held_out) for avatar in (toy_avatar, refined))
    assert after > before + 4
    assert front_db(refined, photo) > front_db(toy_avatar, photo) - 0.3
    hidden = torch.from_numpy(toy_avatar.visibility == 0)
    # of 0.6, by steps of 0.02
    assert (refined.gaussians().rgb()[hidden].median(0).values - torch.tensor(RED)).abs().max() < 0.25
    head = torch.from_numpy(toy_avatar.parts == PARTS.index("head"))
    moved = (refined.gaussians().means - toy_avatar.gaussians().means)[head].mean(0)
    wanted = (truth.means - toy_avatar.gaussians().means)[head].mean(0)
    assert (moved - wanted).norm() < 0.5 * wanted.norm()


def test_own_views_change_next_to_nothing(toy_avatar, orbit, photo) -> None:
    gaussians = toy_avatar.gaussians()
    refined = refining.refine(toy_avatar, pictures(gaussians, photo.cameras), pictures(gaussians, orbit), QUICK)
    assert refining.agreement(refined, pictures(gaussians, between(orbit))) > 35
    assert np.abs(refined.photo_pose.rotations - toy_avatar.photo_pose.rotations).max() < 0.02
    assert (refined.gaussians().means - gaussians.means).norm(dim=1).max() < 0.01


def test_the_same_seed_makes_the_same_avatar(toy_avatar, orbit, photo, truth) -> None:
    short = replace(QUICK, iterations=6, follow_every=3)
    made = [refining.refine(toy_avatar, photo, pictures(truth, orbit), short, seed=seed) for seed in (0, 0, 1)]
    for name, values in vars(made[0].canonical).items():
        assert torch.equal(values, getattr(made[1].canonical, name))
    assert not torch.equal(made[0].canonical.means, made[2].canonical.means)


@pytest.mark.parametrize("change", [{"smooth_colours": False}, {"residual_prior": 0.1}])
def test_other_ways_help_too(toy_avatar, orbit, photo, truth, change: dict) -> None:
    views = pictures(truth, orbit)
    refined = refining.refine(toy_avatar, photo, views, replace(QUICK, iterations=60, **change))
    assert refining.agreement(refined, views) > refining.agreement(toy_avatar, views) + 2


def test_a_view_s_own_warp_and_gain_take_its_errors(toy_avatar, orbit, photo, truth) -> None:
    views = pictures(truth, orbit)
    image, alpha = refining._as_seen(views.rgb[3], views.alpha[3], torch.zeros(2, 3), torch.full((3,), 0.1))
    inside = alpha > 0.5
    # through a bilinear resampling at the pixels' own places
    torch.testing.assert_close(image[inside], 1.1 * views.rgb[3][inside], atol=1e-4, rtol=0)
    torch.testing.assert_close(alpha, views.alpha[3], atol=1e-5, rtol=0)
    warp = torch.tensor([[0, 0, 2 / 80], [0, 0, 0]])
    shifted, _ = refining._as_seen(views.rgb[3], views.alpha[3], warp, torch.zeros(3))
    both = inside[:, :-1] & inside[:, 1:]
    torch.testing.assert_close(shifted[:, :-1][both], views.rgb[3][:, 1:][both], atol=1e-3, rtol=0)  # one of 80 px


def test_gradients_of_the_deformation(toy_avatar, photo) -> None:
    few = replace(
        toy_avatar, canonical=toy_avatar.canonical.select(torch.arange(0, len(toy_avatar.canonical), 150)),
        joint_indices=toy_avatar.joint_indices[::150], joint_weights=toy_avatar.joint_weights[::150],
        visibility=toy_avatar.visibility[::150], parts=toy_avatar.parts[::150],
    )  # fmt: skip
    made = refining.deformation_of(few, photo.cameras, replace(QUICK, nodes=4))
    doubles = {name: value.double() for name, value in vars(made).items() if isinstance(value, torch.Tensor)}
    made = replace(made, **doubles)
    generator = torch.Generator().manual_seed(0)
    rotvecs = 0.3 * torch.randn(len(made.joints), 3, generator=generator, dtype=torch.float64)
    offsets = 0.1 * torch.randn(len(made.graph), 3, generator=generator, dtype=torch.float64)
    assert len(made.joints) == 1  # the head; the root stays
    assert torch.autograd.gradcheck(made.moved, (rotvecs.requires_grad_(), offsets.requires_grad_()))
    zero = torch.zeros_like(rotvecs).requires_grad_()
    assert torch.autograd.gradcheck(lambda turn: made.moved(turn, offsets.detach()), (zero,))


def test_what_the_photo_saw_stays_on_its_rays(toy_avatar, photo) -> None:
    made = refining.deformation_of(toy_avatar, photo.cameras, QUICK)
    generator = torch.Generator().manual_seed(0)
    rotvecs = 0.2 * torch.randn(len(made.joints), 3, generator=generator)
    means = made.moved(rotvecs, 0.05 * torch.randn(len(made.graph), 3, generator=generator))
    seen = torch.from_numpy(toy_avatar.visibility == 1)
    assert (means - made.means)[seen].norm(dim=1).mean() > 0.01
    pixels = [photo.cameras.project(points[seen])[0] for points in (made.means, means)]
    assert (pixels[0] - pixels[1]).abs().max() < 0.01


def test_joints_turn_as_the_turned_pose_says(toy_avatar, photo) -> None:
    made = refining.deformation_of(toy_avatar, photo.cameras, QUICK)
    made = replace(made, held=torch.zeros_like(made.held))
    rotvecs = torch.tensor([[0.3, -0.1, 0.2]])
    pose = refining.turned_pose(toy_avatar, made, rotvecs)
    by_pose = toy_avatar.gaussians(pose).means
    # float32 through skinning and back
    torch.testing.assert_close(made.moved(rotvecs, torch.zeros(len(made.graph), 3)), by_pose, atol=1e-5, rtol=0)
    turned = replace(toy_avatar, photo_pose=pose)
    posed = toy_avatar.gaussians(pose)
    torch.testing.assert_close(refining.carried_back(turned, posed).gaussians().means, posed.means, atol=1e-5, rtol=0)


def test_gaussians_turn_and_stretch_with_what_surrounds_them(toy_avatar) -> None:
    gaussians = toy_avatar.gaussians()
    around = refining._surroundings(gaussians.means)
    half_turn = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]])
    quats, scales = refining.stretched(gaussians, gaussians.means @ half_turn.T, around)
    # drawn a little to no turn at all where the surroundings lie in a plane
    largest = scales.max(1).values / gaussians.scales.max(1).values
    assert (largest - 1).abs().median() < 0.05
    _, scales = refining.stretched(gaussians, 1.3 * gaussians.means, around)
    assert (scales.max(1).values / gaussians.scales.max(1).values).median() == pytest.approx(1.3, abs=0.02)


@pytest.mark.parametrize("nodes", [1, 5, 200, 10**6])
def test_a_graph_keeps_constants_and_is_as_large_as_asked(toy_avatar, nodes: int) -> None:
    points = toy_avatar.canonical.means
    graph = refining.graph_over(points, nodes)
    assert len(graph) <= max(1, min(nodes, len(points))) and len(graph) >= 0.5 * min(nodes, len(points))
    constant = torch.tensor([[1.0, -2.0]]).expand(len(graph), 2)
    torch.testing.assert_close(graph.spread(constant), constant[:1].expand(len(points), 2))
    assert float(graph.roughness(constant)) == 0
    torch.testing.assert_close(graph.gathered(torch.ones(len(points))), torch.ones(len(graph)))


def test_nothing_is_asked_for_where_nothing_is_trusted(toy_avatar, orbit, truth) -> None:
    views = pictures(truth, orbit)
    rendered = rasterize(toy_avatar.gaussians(), orbit[9])
    made = torch.cat([rendered.rgb[0], rendered.alpha[0][..., None]], -1)
    black = torch.zeros(3)
    assert refining.image_loss(made, views.rgb[9], views.alpha[9], views.alpha[9] * 0, black, QUICK) == 0
    assert refining.image_loss(made, views.rgb[9], views.alpha[9], views.confidence[9], black, QUICK) > 0.001


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.5])
def test_the_softness_of_views_is_found_even_where_they_show_something_moved(toy_avatar, orbit, sigma: float) -> None:
    views = pictures(toy_avatar.gaussians(), orbit[:4])
    sharp = torch.cat([views.rgb * views.alpha[..., None], views.alpha[..., None]], -1)
    soft = torch.stack([refining.softened(image.permute(2, 0, 1), sigma).permute(1, 2, 0) for image in sharp])
    # below 0.2 px nothing is blurred at all
    assert refining.softness_px(sharp, soft) == pytest.approx(sigma, abs=0.2)
    assert refining.softness_px(sharp, torch.roll(soft, 5, 2)) == pytest.approx(sigma, abs=0.2)


def test_soft_views_do_not_make_the_avatar_soft(toy_avatar, orbit, photo) -> None:
    gaussians = toy_avatar.gaussians()
    own = pictures(gaussians, orbit, samples_per_pixel(orbit.height))
    covered = torch.cat([own.rgb * own.alpha[..., None], own.alpha[..., None]], -1)
    covered = torch.stack([refining.softened(image.permute(2, 0, 1), 1.5).permute(1, 2, 0) for image in covered])
    soft = straight(covered[..., :3] + 1 - covered[..., 3:], covered[..., 3])
    views = refining.restored_views(orbit, soft, toy_avatar, QUICK)
    assert views.softness_px == pytest.approx(1.5, abs=0.2)
    settings = replace(QUICK, iterations=60)
    kept = refining.refine(toy_avatar, pictures(gaussians, photo.cameras), views, settings)
    smeared = refining.refine(toy_avatar, pictures(gaussians, photo.cameras), replace(views, softness_px=0.0), settings)
    assert refining.agreement(kept, own) > refining.agreement(smeared, own) + 3


def test_trust_is_lost_where_silhouettes_differ() -> None:
    alpha = torch.zeros(1, 40, 40)
    restored = alpha.clone()
    restored[0, 20, 20] = 1
    found = refining.trust(alpha, restored, 0.4)
    assert found[0, 20, 20] == pytest.approx(0.6) and found[0, 20, 25] == pytest.approx(0.6)
    assert found[0, 20, 26] == 1 and found[0, 0, 0] == 1


def test_later_rounds_replace_a_share_of_covered_colour() -> None:
    cameras = toy_fit(8).camera
    size = (1, cameras.height, cameras.width)
    old = Views(cameras, torch.ones(*size, 3), torch.zeros(size), torch.ones(size))
    new = Views(cameras, torch.full((*size, 3), 0.25), torch.ones(size), torch.zeros(size))
    made = refining.mixed(old, new, 0.75)
    torch.testing.assert_close(made.alpha, torch.full(size, 0.75))
    torch.testing.assert_close(made.rgb, torch.full((*size, 3), 0.25))  # what is not there has no colour to lend
    torch.testing.assert_close(made.confidence, torch.full(size, 0.25))


def test_rounds_end_with_the_best(toy_avatar, orbit, photo, truth) -> None:
    settings = replace(QUICK, iterations=60, sigmas=(None, 5.0, 2.0), bank=1.0)
    good = pictures(truth, orbit)
    turns: list[int] = []

    def restored(avatar: Avatar, turn: int) -> Views:
        turns.append(turn)
        return good if turn == 0 else pictures(avatar.gaussians(), orbit)

    best, rounds = refining.refine_in_rounds(toy_avatar, photo, restored, settings)
    # the first round learns the truth, the second is told what it knows already
    assert [done["kept"] for done in rounds] == [1.0, 0.0] and turns == [0, 1]
    assert best.scores["front_psnr_db"] > front_db(toy_avatar, photo) - settings.loss_db
    assert refining.agreement(best, good) > refining.agreement(toy_avatar, good) + 2
    nothing = replace(settings, gain_db=100.0, iterations=2)
    same, rounds = refining.refine_in_rounds(toy_avatar, photo, restored, nothing)
    assert same is toy_avatar and [done["kept"] for done in rounds] == [0.0]


def test_a_window_shows_every_ray_where_its_camera_would(toy_avatar) -> None:
    """An image whose colours are the directions of its rays, which neither blur nor bilinear sampling changes."""
    camera = toy_fit(480).camera

    def rays(cameras: Cameras) -> torch.Tensor:
        y, x = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
        (fx, _, cx), (_, fy, cy) = cameras.Ks[0, :2].tolist()
        return torch.stack([0.5 + (x - cx) / fx, 0.5 + (y - cy) / fy, torch.zeros_like(x)], 2)

    for window in (closed_in(toy_avatar.gaussians().means, camera, 80, 120), camera.resampled(2.5, 100, 200, 200, 150)):
        rgb, alpha = through_window(rays(camera).numpy(), np.ones((480, 288), np.float32), camera, window)
        inside = alpha > 0.999
        assert inside.float().mean() > 0.5
        # a pixel of the smaller window is 5e-3 wide; warpAffine places samples to 1/32 px
        torch.testing.assert_close(rgb[inside], rays(window)[inside], atol=2e-4, rtol=0)


def test_views_say_what_the_photo_saw(toy_avatar, orbit) -> None:
    rgb, alpha, seen = views_to_restore(toy_avatar.gaussians(), toy_avatar.visibility, orbit)
    assert rgb.shape == (18, 120, 80, 3) and rgb[:, 0, 0].min() == 1
    assert seen[0][alpha[0] > 0.9].mean() > 0.75 and seen[9][alpha[9] > 0.9].mean() < 0.2
    picture = straight(rgb, alpha).astype(float) / 255
    again = picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:]
    # colour and alpha rounded to 8 bits each
    assert np.abs(again - rgb.numpy())[alpha.numpy() > 0.05].max() < 0.02


def test_views_are_read_as_they_were_written(tmp_path: Path, toy_avatar, orbit) -> None:
    rgb, alpha, _ = views_to_restore(toy_avatar.gaussians(), toy_avatar.visibility, orbit[:3])
    made = straight(rgb, alpha)
    save_views(tmp_path / "views", orbit[:3], made, stages.Silent())
    cameras, read = load_views(tmp_path / "views")
    assert np.array_equal(made, read)
    torch.testing.assert_close(cameras.viewmats, orbit[:3].viewmats)
    torch.testing.assert_close(cameras.Ks, orbit[:3].Ks)
    (tmp_path / "views/01.png").write_bytes(b"no picture")
    with pytest.raises(InputRejected, match="views"):
        load_views(tmp_path / "views")


def redden(rgb, alpha, seen, photo_rgb, photo_alpha, face, sigma_start, seed, progress):
    """A restorer that paints red what the photo did not see."""
    assert rgb.shape == (18, 120, 80, 3) and photo_rgb.shape == (120, 80, 3) and face is None
    hidden = (1 - seen)[..., None] * alpha[..., None]
    return rgb * (1 - hidden) + torch.tensor(RED) * hidden, alpha


@pytest.fixture
def run_path(tmp_path: Path, toy_run: Path) -> Path:
    return Path(shutil.copytree(toy_run, tmp_path / "run"))


def test_the_stages_restore_refine_and_say_which_avatar_is_best(run_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "RESTORED_HEIGHT", 120)
    options = stages.Options(restorer="humanfixer", rounds=1)
    with RunFolder.open(run_path) as run:
        run.remember({"restorer": "humanfixer"})
        with pytest.raises(NothingToDo, match="restored"):
            stages.refine(run, options, restorer=redden)
        assert stages.best_avatar(run) == "coarse"
        assert not stages.restore(run, options, restorer=redden).reused
        cameras, read = load_views(run_path / "restored/views")
        assert read.shape == (18, 120, 80, 4) and len(cameras) == 18
        back = read[9][read[9, ..., 3] > 250][:, :3].mean(0) / 255
        np.testing.assert_allclose(back, RED, atol=0.05)
        assert not stages.refine(run, options, restorer=redden).reused
        assert stages.restore(run, options).reused and stages.refine(run, options).reused
        assert stages.best_avatar(run) == "refined"
        avatar = read_avatar(run_path / "refined")
        hidden = torch.from_numpy(avatar.visibility == 0)
        assert (avatar.gaussians().rgb()[hidden].median(0).values - torch.tensor(RED)).abs().max() < 0.25
        report = json.loads((run_path / "refined/report.json").read_text())
        assert report["rounds"][0]["kept"] == 1 and report["scores"] == run.record("refined")["scores"]
        outputs.export_ply(run)
        assert list(run.record(outputs.PLY)["inputs"]) == ["refined"]
        run.remember({"restorer": "completion"})
        assert stages.best_avatar(run) == "coarse"
        outputs.export_ply(run)
        assert list(run.record(outputs.PLY)["inputs"]) == ["coarse"]
        run.remember({"restorer": "humanfixer"})
        (run_path / "coarse/report.json").write_text("{}\n")
        assert stages.best_avatar(run) == "coarse"  # what was refined is no longer made from it


def test_missing_weights_are_named_at_once(run_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "WEIGHTS", run_path / "none.safetensors")
    with RunFolder.open(run_path) as run, pytest.raises(WeightsError, match="none.safetensors") as raised:
        stages.restore(run, stages.Options())
    assert "--restorer completion" in (raised.value.hint or "")
    assert not (run_path / "restored").exists()
    with pytest.raises(WeightsError):
        stages.require_restorer()
