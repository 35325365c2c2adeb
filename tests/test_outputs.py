"""What is made of an avatar: films, files for other programs, the report, and the same from Python."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from conftest import hdx

import hdx_cli
from hdx_cli import outputs
from hdx_cli.errors import UsageError
from hdx_cli.export.glb_reader import read_glb
from hdx_cli.export.ply import read_ply
from hdx_cli.motion import BUILT_IN, load
from hdx_cli.run_folder import RunFolder

SMALL = ("--size", "64x96", "--fps", "8")


def film_of(path: Path, width: int = 64, height: int = 96) -> np.ndarray:
    """The pictures of a film, [T H W 3]."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@pytest.fixture
def run(tmp_path: Path, rigged_run: Path) -> Path:
    return Path(shutil.copytree(rigged_run, tmp_path / "my run"))


# ---- animate


def test_a_motion_is_filmed_into_the_run_folder_and_is_done_the_second_time(tmp_path: Path, run: Path) -> None:
    done = hdx("animate", run, "--motion", "wave", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    film = run / "exports/wave.mp4"
    assert done.stdout == f"{film}\n"
    frames = film_of(film)
    assert frames.shape == (16, 96, 64, 3)  # 2 s at 8 frames a second
    assert np.abs(frames[1:].astype(int) - frames[:1]).max() > 60  # it moves
    again = hdx("animate", run, "--motion", "wave", *SMALL, cwd=tmp_path)
    assert "done before" in again.stderr
    other = hdx("animate", run, "--motion", "wave", *SMALL, "--speed", "2", cwd=tmp_path)
    assert "done before" not in other.stderr and len(film_of(film)) == 8


@pytest.mark.parametrize("camera", ["fixed", "follow", "orbit"])
def test_parts_lengths_and_cameras(tmp_path: Path, run: Path, camera: str) -> None:
    wanted = ["--frames", "0:4", "--camera", camera, "-o", "part.webm", "--background", "transparent"]
    done = hdx("animate", run, "--motion", "walk", *SMALL, "--seconds", "1", *wanted, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "part.webm\n", done.stderr
    assert len(film_of(tmp_path / "part.webm")) == 8  # a part of a loop loops no more: its last frame is held


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--motion", "moonwalk"], "moonwalk"),
        (["--motion", "walk", "--frames", "9:3"], "--frames 9:3"),
        (["--motion", "walk", "--frames", "0:9999"], "0:9999"),
        (["--motion", "walk", "--background", "transparent"], "mp4 has no transparency"),
        (["--motion", "walk", "--camera", "drone"], "follow"),
        ([], "--motion"),
    ],
)
def test_mistakes_with_motions(tmp_path: Path, run: Path, arguments: list[str], says: str) -> None:
    done = hdx("animate", run, *SMALL, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert not list(run.glob("exports/*"))


def test_a_damaged_motion_file_is_named(tmp_path: Path, run: Path) -> None:
    (tmp_path / "walk.bvh").write_text("HIERARCHY\nROOT Hips\n{\n")
    done = hdx("animate", run, "--motion", "walk.bvh", *SMALL, cwd=tmp_path)
    assert done.returncode == 4 and "walk.bvh" in done.stderr and done.stderr.count("\n") <= 2, done.stderr


def test_an_edited_motion_file_is_filmed_again(tmp_path: Path, run: Path, rigged_avatar) -> None:
    """A file's content is part of the record, not only its name."""
    rotations = np.zeros((4, 72), np.float32)
    for angle in (0.0, 1.0):
        rotations[:, 48] = angle
        np.savez(tmp_path / "lift.npz", poses=rotations, trans=np.zeros((4, 3), np.float32), mocap_framerate=8.0)
        done = hdx("animate", run, "--motion", tmp_path / "lift.npz", *SMALL, cwd=tmp_path)
        assert done.returncode == 0 and "done before" not in done.stderr, done.stderr
    assert (run / "exports/lift-npz.mp4").is_file()


def test_motions_are_listed(tmp_path: Path) -> None:
    done = hdx("motions", cwd=tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == list(BUILT_IN)
    assert json.loads(hdx("motions", "--json", cwd=tmp_path).stdout)["motions"] == BUILT_IN


# ---- export


def test_every_format_of_one_avatar(tmp_path: Path, run: Path, rigged_avatar) -> None:
    names = ["a.ply", "a.glb", "a.mesh.glb", "a.html", "a.npz"]
    done = hdx("export", run, *names, "--motion", "squat", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == names
    posed = rigged_avatar.gaussians()
    torch.testing.assert_close(read_ply(tmp_path / "a.ply").means, posed.means, atol=1e-6, rtol=0)
    back = read_glb(tmp_path / "a.glb")
    assert [clip.name for clip in back.animations] == ["squat"] and len(back.gaussians) == 400
    assert b"<title>a</title>" in (tmp_path / "a.html").read_bytes()
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["clips"].tolist() == ["squat"]
    assert (tmp_path / "a.mesh.glb").read_bytes()[:4] == b"glTF"


def test_poses_of_files_that_do_not_move(tmp_path: Path, run: Path, rigged_avatar) -> None:
    clip = load("squat", rigged_avatar.rest, rigged_avatar.parents, rigged_avatar.joint_names)
    assert hdx("export", run, "p.ply", "--pose", "squat", "--frame", "20", cwd=tmp_path).returncode == 0
    expected = rigged_avatar.gaussians(clip.pose, 20).means
    torch.testing.assert_close(read_ply(tmp_path / "p.ply").means, expected, atol=1e-6, rtol=0)
    assert hdx("export", run, "r.ply", "--pose", "rest", cwd=tmp_path).returncode == 0
    rest = read_ply(tmp_path / "r.ply").means
    torch.testing.assert_close(rest.diff(dim=0), rigged_avatar.canonical.means.diff(dim=0), atol=1e-6, rtol=0)
    assert abs(float(rest[:, 1].min())) < 0.01  # on the ground
    late = hdx("export", run, "p2.ply", "--pose", "squat", "--frame", "9999", cwd=tmp_path)
    assert late.returncode == 2 and "--frame 9999" in late.stderr and not (tmp_path / "p2.ply").exists()


def test_a_folder_of_posed_files(tmp_path: Path, run: Path, rigged_avatar) -> None:
    clip = load("wave", rigged_avatar.rest, rigged_avatar.parents, rigged_avatar.joint_names)
    assert hdx("export", run, "frames", "--motion", "wave", cwd=tmp_path).returncode == 0
    files = sorted((tmp_path / "frames").iterdir())
    assert len(files) == len(clip)
    torch.testing.assert_close(read_ply(files[7]).means, rigged_avatar.gaussians(clip.pose, 7).means, atol=1e-6, rtol=0)
    bare = hdx("export", run, "frames2", cwd=tmp_path)
    assert bare.returncode == 2 and "--motion walk" in bare.stderr


def test_mistakes_with_files(tmp_path: Path, run: Path) -> None:
    done = hdx("export", run, "avatar.fbx", cwd=tmp_path)
    assert done.returncode == 2 and ".glb" in done.stderr and "--list" in done.stderr
    done = hdx("export", run, "avatar.safetensors", cwd=tmp_path)
    assert done.returncode == 2 and "there already" in done.stderr
    listed = hdx("export", "--list", cwd=tmp_path)
    assert listed.returncode == 0 and all(suffix in listed.stdout for suffix in (".glb", ".spz", ".html", "Blender"))


def test_view_serves_the_page_until_ctrl_c(tmp_path: Path, run: Path) -> None:
    command = [sys.executable, "-u", "-m", "hdx_cli.cli.app", "view", run, "--motion", "idle", "--no-browser"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    with urllib.request.urlopen(address, timeout=30) as answer:
        page = answer.read()
    assert page == (run / "exports/viewer.html").read_bytes() and b"<title>my run</title>" in page
    process.send_signal(signal.SIGINT)
    words = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "Traceback" not in words, words
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)


# ---- from Python


def test_the_verbs_from_python(tmp_path: Path, run: Path) -> None:
    film = hdx_cli.animate(run, "idle", tmp_path / "idle.gif", size=(32, 48), fps=4, seconds=1, format="gif")
    assert film == tmp_path / "idle.gif" and len(film_of(film, 32, 48)) == 4
    assert hdx_cli.export_files(run, tmp_path / "x.ply", tmp_path / "x.glb", motions=()) == [
        tmp_path / "x.ply",
        tmp_path / "x.glb",
    ]
    assert read_glb(tmp_path / "x.glb").animations == ()
    turn = hdx_cli.render(run, tmp_path / "t.gif", size=(32, 48), seconds=1, fps=4, format="gif")
    assert len(film_of(turn, 32, 48)) == 4
    with pytest.raises(UsageError, match="no option sise"):
        hdx_cli.animate(run, "idle", sise=(32, 48))
    with pytest.raises(AttributeError):
        hdx_cli.dance  # noqa: B018


# ---- the report


def test_the_report_names_what_there_is(run: Path) -> None:
    with RunFolder.open(run) as folder:
        outputs.preview(folder)
        bare = outputs.report(folder).path.read_text(encoding="utf-8")
        assert "<video" not in bare and "hdx view" in bare and "30.0 dB" in bare and "50%" in bare
        outputs.render(folder, outputs.Film(seconds=0.5, fps=8, size=(32, 48)))
        whole = outputs.report(folder).path.read_text(encoding="utf-8")
        assert "<video" in whole and "exports/turntable.mp4" in whole
        assert outputs.report(folder).reused
