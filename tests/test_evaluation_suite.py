"""The suite on a person whose true views are pictures of the avatar itself: everything must agree, and be kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hdx_cli.avatars.avatar_file import write_avatar
from hdx_cli.avatars.turntable import samples_per_pixel, straight
from hdx_cli.bodies import anny
from hdx_cli.bodies.base import Body, BodyFit, BodyPose
from hdx_cli.camera import Cameras, look_at, orbit_of
from hdx_cli.errors import InputRejected, NothingToDo, UsageError
from hdx_cli.evaluation import people, protocol, tables
from hdx_cli.evaluation.suite import Settings, run_suite
from hdx_cli.progress import Silent
from hdx_cli.rasterize import rasterize
from hdx_cli.run_files import save_body_fit, save_views

SMALL = Settings(height=96, blurs_px=(20.0, 60.0))


@pytest.fixture(scope="module")
def set_of_people(tmp_path_factory, rigged_avatar) -> tuple[Path, Path]:
    """PEOPLE with anna, RUNS with an exact avatar of her as refined and a recoloured one as coarse."""
    root = tmp_path_factory.mktemp("suite")
    model = anny.load()
    middle = model.rest(rigged_avatar.body.shape).vertices.mean(0) * [1, 0, 1]
    pose = BodyPose(np.tile(np.eye(3), (1, len(model.parents), 1, 1)), -middle[None])  # the orbit turns about the mean
    avatar = replace(rigged_avatar, photo_pose=pose)
    viewmats = look_at(torch.tensor([[0.0, 1.2, 4.0]]), torch.tensor([0.0, 0.9, 0.0]))
    camera = Cameras(viewmats, torch.tensor([[[170.0, 0, 32], [0, 170, 48], [0, 0, 1]]]), 64, 96)
    cameras = orbit_of(camera, 6)
    (root / "people").mkdir()
    with torch.no_grad():  # view by view, not through the code that is tested
        look = {"background": torch.ones(3), "supersample": samples_per_pixel(96)}
        made = [rasterize(avatar.gaussians(), cameras[view], **look) for view in range(6)]
    pictures = straight(torch.cat([one.rgb for one in made]), torch.cat([one.alpha for one in made]))
    save_views(root / "people" / "anna", cameras, pictures, Silent())
    run = root / "runs" / "anna"
    sh = avatar.canonical.sh.clone()
    sh[:, 0] *= -1
    for name, one in (("coarse", replace(avatar, canonical=replace(avatar.canonical, sh=sh))), ("refined", avatar)):
        (run / name).mkdir(parents=True)
        write_avatar(run / name, one)
    save_body_fit(run / "body.npz", BodyFit(avatar.body, pose, camera, {}))
    return root / "people", root / "runs"


def test_an_exact_avatar_is_found_exact_and_the_result_is_kept(set_of_people, tmp_path):
    folder, runs = set_of_people
    result, table = run_suite(folder, runs, tmp_path, protocol.Networks(), SMALL)
    assert list(result["methods"]) == ["coarse", "refined", "refined, blurred by 20 px", "refined, blurred by 60 px"]
    exact = result["methods"]["refined"]["summary"]
    # 8-bit colours and alpha of the true pictures are all that differs
    assert exact["all"]["psnr_full_db"]["mean"] > 45 and exact["without_input"]["psnr_fg_db"]["mean"] > 40
    assert exact["back"]["iou"]["mean"] > 0.98
    assert result["methods"]["coarse"]["summary"]["all"]["psnr_full_db"]["mean"] < 30
    assert result["base"] == "refined" and result["best_blur"] == "refined, blurred by 20 px"
    assert result["methods"]["coarse"]["psnr_fg_gain_db"]["mean"] < -10 and result["methods"]["coarse"]["better"] == 0
    assert [row[0] for row in table.rows] == ["coarse", "refined", "refined, blurred by 20 px"]
    assert {len(row) for row in table.rows} == {len(table.header)} and len(table.better) == len(table.header) - 1
    assert "LPIPS: skipped: needs" in tables.markdown(table)
    for name in ("suite.json", "table.md", "table.tex", "grid.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert json.loads((tmp_path / "suite.json").read_text())["methods"].keys() == result["methods"].keys()

    kept = (tmp_path / "scores.jsonl").read_text()
    (tmp_path / "scores.jsonl").write_text(kept + '{"key": {"version"')  # cut short
    again, _ = run_suite(folder, runs, tmp_path, protocol.Networks(), SMALL)
    assert again == result and (tmp_path / "scores.jsonl").read_text().startswith(kept)
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 5  # nothing was scored again


def test_who_cannot_be_scored_is_named_and_the_others_go_on(set_of_people, tmp_path):
    folder, runs = (Path(shutil.copytree(path, tmp_path / path.name)) for path in set_of_people)
    shutil.copytree(folder / "anna", folder / "ben")
    shutil.copytree(runs / "anna", runs / "ben")
    (runs / "ben" / "body.npz").write_bytes(b"PK nothing")
    settings = replace(SMALL, blurs_px=())
    result, table = run_suite(folder, runs, tmp_path / "out", protocol.Networks(), settings)
    assert result["people"] == ["anna"] and "body.npz" in result["failed"]["ben"]
    assert any("not scored: ben" in note for note in table.notes)
    shutil.rmtree(folder / "anna")
    with pytest.raises(InputRejected, match="nobody could be scored"):
        run_suite(folder, runs, tmp_path / "out", protocol.Networks(), settings)


def test_damaged_people_are_refused(set_of_people, tmp_path):
    with pytest.raises(NothingToDo):
        people.load_people(tmp_path)
    (tmp_path / "carl.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputRejected, match="carl.npz"):
        people.load_people(tmp_path)
    (tmp_path / "carl.npz").unlink()
    folder = Path(shutil.copytree(set_of_people[0] / "anna", tmp_path / "dora"))
    for content in ("{}", "[" * 99_999, '{"viewmats": [[[NaN]]], "Ks": []}'):
        (folder / "cameras.json").write_text(content)
        with pytest.raises(InputRejected, match="cameras.json"):
            people.load_people(tmp_path)


def test_the_photo_of_a_folder_is_view_0_over_grey(set_of_people):
    anna = people.load_people(set_of_people[0])[0]
    photo, true = anna.photo(), anna.truth(96)[0]
    inside = true.alpha.numpy() > 0.999
    assert np.abs(photo[inside] / 255 - true.rgb.numpy()[inside]).max() < 0.01
    assert 0.71 < photo[0, 0, 0] / 255 < 0.73 and 0.81 < photo[-1, 0, 0] / 255 < 0.83


def test_the_command_takes_views_unless_it_is_told_suite(monkeypatch):
    from typer.testing import CliRunner

    from hdx_cli.cli import evaluating

    asked = []
    monkeypatch.setattr(evaluating, "session", lambda console: (_ for _ in ()).throw(SystemExit(asked.append(1) or 7)))
    for arguments in (
        ["PRED", "GT"],
        ["views", "PRED", "GT"],
        ["suite", "--people", "P", "-o", "O"],
        ["--seed", "1", "P", "G"],
    ):
        assert CliRunner().invoke(evaluating.evaluation, arguments).exit_code == 7
    assert CliRunner().invoke(evaluating.evaluation, ["PRED"]).exit_code == 2
    assert len(asked) == 4
    assert evaluating._sigmas("2, 5") == (2.0, 5.0) and evaluating._sigmas("") == ()
    for text in ("x", "-1", "nan", "0", "1000"):
        with pytest.raises(UsageError, match="--blurs"):
            evaluating._sigmas(text)


def test_a_perfect_fit_of_a_photo_with_another_window_sees_the_true_views():
    """The photo is twice the working size and shows more than the views do, as in files of ``training.photos``."""
    model = anny.load()
    shape, pelvis = model.default_shape, 0.93
    pose = BodyPose(
        np.tile(np.eye(3), (1, len(model.parents), 1, 1)),
        np.array([[0.0, pelvis, 0.0]]) - model.rest(shape).joints[0],
    )
    viewmats = look_at(torch.tensor([[1.1, 1.5, 4.0]]), torch.tensor([0.2, 0.9, 0.1]))
    photo_K = torch.tensor([[1200.0, 0, 480], [0, 1200, 360], [0, 0, 1]])
    working = Cameras(viewmats, photo_K[None] * torch.tensor([[0.5], [0.5], [1.0]]), 480, 360)
    window = Cameras(viewmats, torch.tensor([[[900.0, 0, 140], [0, 900, 260], [0, 0, 1]]]), 320, 480)
    truth = orbit_of(window, 6)
    person = people.Person("anna", Path("anna.npz"), truth, photo_K.double().numpy(), 960, True, pelvis)
    found = people.true_cameras(person, BodyFit(Body("anny", shape), pose, working, {}), 240)
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 0.3 + torch.tensor([0.0, 0.9, 0.0])
    assert (found.width, found.height) == (160, 240)
    assert (2 * found.project(points)[0] - truth.project(points)[0]).abs().max() < 0.01  # float32 at some 500 px
