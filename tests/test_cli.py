"""The command line through real processes: what is printed where, exit codes, and what loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import hdx
from PIL import Image

from hdx_cli import __version__

HEAVY = {"torch", "numpy", "numba", "cv2", "mediapipe", "scipy", "PIL", "safetensors", "jaxtyping", "rich", "trimesh"}

COMMANDS = (
    "create",
    "batch",
    "fit-coarse",
    "restore",
    "refine",
    "render",
    "animate",
    "motions",
    "export",
    "view",
    "check",
    "licenses",
    "weights",
    "body",
    "eval",
    "train",
    "doctor",
)


@pytest.fixture
def run(tmp_path: Path, toy_run: Path) -> Path:
    return Path(shutil.copytree(toy_run, tmp_path / "my run"))


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules in memory when the command ends."""
    code = (
        "import sys\nsys.argv = ['hdx', *sys.argv[1:]]\nfrom hdx_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\nMODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "-h"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded_by(*arguments) & HEAVY


def test_help_lists_every_command(tmp_path: Path) -> None:
    text = hdx("--help", cwd=tmp_path)
    assert text.returncode == 0 and text.stderr == ""
    for command in COMMANDS:
        assert f"  {command} " in text.stdout


def test_version(tmp_path: Path) -> None:
    assert hdx("--version", cwd=tmp_path).stdout == f"hdx {__version__}\n"


def test_choices_are_those_of_the_modules_they_are_for() -> None:
    from hdx_cli.avatars import backbones
    from hdx_cli.bodies.fit import BUILDS, GENDERS
    from hdx_cli.cli import options
    from hdx_cli.preprocess import MATTINGS
    from hdx_cli.stages import RESTORERS

    assert set(options.MATTINGS) == set(MATTINGS) and options.RESTORERS == RESTORERS
    assert options.BACKBONES == backbones.NAMES
    assert set(options.GENDERS) == set(GENDERS) and set(options.BUILDS) == set(BUILDS)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["creat"], 2, "No such command"),
        (["create", "a.jpg", "--height-m", "9"], 2, "--height-m"),
        (["create", "a.jpg", "--gender", "x"], 2, "female, male"),
        (["create", "a.jpg", "--device", "tpu"], 2, "auto, cpu, cuda"),
        (["create", "missing.jpg"], 2, "missing.jpg: no such file [E_NO_FILE]"),
        (["create", "."], 2, "is a folder"),
        (["create"], 3, "hdx create --sample"),
        (["create", "a.jpg", "--sample"], 2, "not both"),
        (["render", "nowhere"], 3, "hdx create PHOTO -o nowhere"),
        (["render", "nowhere", "--size", "480x721"], 2, "even"),
        (["render", "nowhere", "--size", "large"], 2, "WIDTHxHEIGHT"),
        (["render", "nowhere", "--background", "mauve"], 2, "#rrggbb"),
        (["render", "nowhere", "--format", "avi"], 2, "mp4, webm, gif, png"),
        (["render", "nowhere", "-o", "a.mp4", "--format", "gif"], 2, "does not fit"),
        (["export", "nowhere", "-o", "a.obj"], 2, "hdx export --list"),
        (["fit-coarse", "nowhere"], 3, "not a run folder"),
        (["restore", "nowhere"], 3, "not a run folder"),
        (["refine", "nowhere", "--rounds", "9"], 2, "--rounds"),
        (["create", "a.jpg", "--restorer", "magic"], 2, "none, completion, humanfixer"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    done = hdx(*arguments, cwd=tmp_path)
    assert done.returncode == code and says in done.stderr and done.stdout == ""
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_cuda_that_is_not_there(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = hdx("create", "--sample", "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 6 and "E_NO_CUDA" in done.stderr and "--device cpu" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_render_prints_the_path_and_keeps_stderr_for_the_rest(tmp_path: Path, run: Path) -> None:
    small = ("--seconds", 0.5, "--size", "64x96")
    film = run / "exports/turntable.mp4"
    done = hdx("render", run, *small, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == f"{film}\n" and film.stat().st_size > 500
    assert done.stderr.startswith("turntable: ") and "\x1b" not in done.stderr  # no bars, no colour: not a terminal
    made = film.stat().st_mtime_ns
    quiet = hdx("render", run, "-q", *small, cwd=tmp_path)
    assert (quiet.stdout, quiet.stderr) == (f"{film}\n", "") and film.stat().st_mtime_ns == made
    forced = hdx("render", run, "--force", "--json", *small, cwd=tmp_path)
    assert json.loads(forced.stdout)["turntable"] == str(film) and film.stat().st_mtime_ns > made
    assert "done before" not in forced.stderr


@pytest.mark.parametrize("format", ["webm", "gif", "png"])
def test_render_with_a_transparent_background(tmp_path: Path, run: Path, format: str) -> None:
    target = tmp_path / ("frames" if format == "png" else f"out.{format}")
    options = ["--background", "transparent", "--seconds", 0.1, "--fps", 20, "--size", "64x96", "--elevation-deg", 10]
    done = hdx("render", run, *options, "-o", target, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target}\n" and target.exists()
    if format == "png":
        with Image.open(target / "0000.png") as frame:
            low, high = frame.getchannel("A").getextrema()
            assert frame.size == (64, 96) and low == 0 and high > 200


def test_mp4_has_no_transparency(tmp_path: Path, run: Path) -> None:
    done = hdx("render", run, "--background", "transparent", cwd=tmp_path)
    assert done.returncode == 2 and "--format webm" in done.stderr


def test_every_frame_of_a_turn_is_another_view_and_the_person_stays_inside(tmp_path: Path, run: Path) -> None:
    hdx(
        "render",
        run,
        "-o",
        "frames",
        "--seconds",
        0.4,
        "--fps",
        20,
        "--size",
        "64x96",
        "--background",
        "#00ff00",
        cwd=tmp_path,
    )
    frames = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "frames").iterdir())]
    assert len(frames) == 8 and len({frame.tobytes() for frame in frames}) == 8
    for frame in frames:
        pixels = frame.load()
        border = [pixels[x, y] for x in range(64) for y in (0, 95)] + [pixels[x, y] for y in range(96) for x in (0, 63)]
        assert set(border) == {(0, 255, 0)}
        # and fills most of the height, as the film's framing promises
        rows = [y for y in range(96) if any(pixels[x, y] != (0, 255, 0) for x in range(64))]
        assert 0.75 < (rows[-1] - rows[0]) / 96 < 0.97


def test_export(tmp_path: Path, run: Path, toy_avatar) -> None:
    from hdx_cli.export.ply import read_ply

    done = hdx("export", run, cwd=tmp_path)
    assert done.stdout == f"{run / 'exports/avatar.ply'}\n", done.stderr
    assert len(read_ply(run / "exports/avatar.ply")) == len(toy_avatar.canonical)
    done = hdx("export", run, "-o", "elsewhere/unity.ply", "--sh-pad", 3, "--up", "-y", cwd=tmp_path)
    turned = read_ply(tmp_path / "elsewhere/unity.ply")
    assert turned.sh.shape[1] == 16 and float(turned.means[:, 1].median()) < 0


def test_what_is_filmed_and_exported_is_named(tmp_path: Path, run: Path) -> None:
    done = hdx("export", run, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["of"] == "coarse" and "(of the coarse avatar)" in done.stderr


def test_a_run_without_an_avatar_says_what_to_do(tmp_path: Path, run: Path) -> None:
    shutil.rmtree(run / "coarse")
    done = hdx("render", run, cwd=tmp_path)
    assert done.returncode == 3 and "hdx fit-coarse" in done.stderr


def test_an_unexpected_error_is_one_line_and_v_shows_the_traceback(tmp_path: Path, run: Path) -> None:
    (tmp_path / "imageio_ffmpeg.py").write_text("{}['nothing']\n")  # a broken installation can raise anything
    broken = {"PYTHONPATH": str(tmp_path)}
    done = hdx("render", run, "--no-progress", cwd=tmp_path, **broken)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "hdx: unexpected KeyError: 'nothing' [E_UNEXPECTED]", "  try: run again with -v for the traceback"
    ]  # fmt: skip
    assert "Traceback" in hdx("render", run, "-v", cwd=tmp_path, **broken).stderr


def test_errors_as_json(tmp_path: Path) -> None:
    done = hdx("render", "nowhere", "--json", cwd=tmp_path)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "E_NO_RUN" and error["exit_code"] == done.returncode == 3 and error["hint"]


def test_doctor(tmp_path: Path) -> None:
    done = hdx("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for name in ("python", "weights", "torch", "cuda", "numba", "mediapipe", "ffmpeg", "disk"):
        assert f" {name} " in done.stdout
    facts = json.loads(hdx("doctor", "--json", cwd=tmp_path).stdout)
    assert facts["ok"] and {check["state"] for check in facts["checks"]} <= {"ok", "warning"}


def test_doctor_names_the_fix_and_fails(tmp_path: Path) -> None:
    done = hdx("doctor", cwd=tmp_path, IMAGEIO_FFMPEG_EXE=str(tmp_path / "no-ffmpeg"))
    assert done.returncode == 6
    line = next(line for line in done.stdout.splitlines() if " ffmpeg " in line)
    assert line.startswith("failed")
    assert "pip install" in done.stdout.splitlines()[done.stdout.splitlines().index(line) + 1]


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    """A closed pipe, as behind `head`, must not end in a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "hdx_cli.cli.app", "doctor"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_path_that_the_terminal_cannot_spell(tmp_path: Path, run: Path) -> None:
    odd = run.rename(tmp_path / "später 日本")
    done = hdx("export", odd, cwd=tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and done.stdout.isascii()
