"""What goes wrong on other people's machines, through the real command: every time one clear line, the right exit code,
nothing half written, and a rerun that continues."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import hdx
from PIL import Image

from hdx_cli.cli.app import SAMPLE

QUICK = ("--gaussians", "3000", "--iterations", "2")
PRODUCTS = ("observation/cutout.png", "body.npz", "coarse/avatar.safetensors", "coarse/report.json", "exports/avatar.ply",
            "exports/turntable.mp4", "preview.png", "coarse/views/17.png", "coarse/views/cameras.json", "restored/views/17.png",
            "refined/avatar.safetensors", "refined/report.json")  # fmt: skip


@pytest.fixture(scope="session")
def created(tmp_path_factory) -> Path:
    """A run folder made from the sample photo under a name with spaces and letters from elsewhere. Copy it."""
    home = tmp_path_factory.mktemp("Żółw 日本 dir")
    shutil.copy(SAMPLE, home / "Фото меня 🙂.JPG")
    done = hdx("create", "Фото меня 🙂.JPG", *QUICK, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "result.json").write_text(done.stdout, encoding="utf-8")
    return home


@pytest.fixture
def run(tmp_path: Path, toy_run: Path) -> Path:
    return Path(shutil.copytree(toy_run, tmp_path / "run"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_clear_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    complaint = [line for line in done.stderr.splitlines() if line.startswith("hdx: ")]
    assert done.returncode == code and len(complaint) == 1, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    for word in words:
        assert word in done.stderr, done.stderr


# ---- the whole way, once


def test_create_makes_everything(created: Path) -> None:
    result = json.loads((created / "result.json").read_text(encoding="utf-8"))
    run = created / "Фото меня 🙂-avatar"
    assert result["run"] == run.name
    for name in PRODUCTS:
        assert (run / name).stat().st_size > 100, name
    for key in ("avatar", "ply", "turntable", "preview"):
        assert (created / result[key]).is_file()
    # 3000 Gaussians cannot show buttons, but they must cover the person and have its colours
    assert result["scores"]["silhouette_iou"] > 0.9 and result["scores"]["front_psnr_db"] > 18
    assert set(result["confidence"]) >= {"head", "torso", "upper_leg"}
    assert json.loads((run / "refined/report.json").read_text())["scores"] == result["scores"]
    assert not list(run.rglob("*.partial*"))
    assert SAMPLE.read_bytes() == (run / "photo.jpg").read_bytes()


def test_create_again_does_nothing_and_another_option_only_what_follows(tmp_path: Path, created: Path) -> None:
    home = Path(shutil.copytree(created, tmp_path / "copy"))
    run = home / "Фото меня 🙂-avatar"
    before = snapshot(run)
    done = hdx("create", "Фото меня 🙂.JPG", *QUICK, cwd=home)
    assert done.returncode == 0 and done.stderr.count("done before") == 9, done.stderr
    assert snapshot(run) == before
    done = hdx("fit-coarse", run, "--iterations", 1, cwd=home)
    assert done.stderr.count("done before") == 2  # photo and body; --gaussians stayed as it was
    record = json.loads((run / "run.json").read_text())["products"]["coarse"]
    assert record["config"]["iterations"] == 1 and record["config"]["gaussians"] == 3000


# ---- photos that are none


def bad_photo(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.jpg"
    sample = SAMPLE.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is a letter, not a photo\n" * 50)
    elif kind == "truncated":
        path.write_bytes(sample[: len(sample) // 3])
    elif kind == "one pixel":
        Image.new("RGB", (1, 1)).save(path)
    elif kind == "60000 wide":
        Image.new("1", (60000, 80)).save(path, "PNG")
    elif kind == "nobody":
        ramp = np.linspace(0, 255, 480, dtype=np.uint8)
        Image.fromarray(np.repeat(np.tile(ramp[:, None], (1, 360))[..., None], 3, axis=2)).save(path)
    return path


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "one pixel", "60000 wide", "nobody"])
@pytest.mark.parametrize("command", ["create", "check"])
def test_photos_that_cannot_be_used(tmp_path: Path, kind: str, command: str) -> None:
    photo = bad_photo(kind, tmp_path)
    done = hdx(command, photo.name, cwd=tmp_path)
    said = done.stderr if command == "create" else done.stdout + done.stderr
    assert done.returncode == 4 and f"{kind}.jpg" in said and "E_" in said and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == [photo.name]  # no folder stays behind


def test_check_of_a_good_photo_draws_what_it_found(tmp_path: Path) -> None:
    done = hdx("check", SAMPLE, "-o", "seen.jpg", "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and facts["suitable"] and facts["people"] == facts["person"] == 1
    assert not [finding for finding in facts["findings"] if finding["severity"] == "reject"]
    with Image.open(tmp_path / "seen.jpg") as drawn, Image.open(SAMPLE) as photo:
        assert drawn.width == photo.width


# ---- places that cannot be written


def test_a_folder_without_rights(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # for whom rights do not count; but nobody makes folders in sysfs
        target = Path("/sys/hdx-avatar")
        if not target.parent.is_dir():
            pytest.skip("no sysfs")
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
        target = tmp_path / "locked/avatar"
    done = hdx("create", "--sample", "-o", target, cwd=tmp_path)
    assert_one_clear_line(done, 6, str(target), "[E_DISK]", "-o")


def limited(limit: int, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run hdx where no file may grow beyond ``limit`` bytes: to a program, the same as a disk that fills up."""
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "sys.argv = ['hdx', *sys.argv[2:]]\nfrom hdx_cli.cli.app import main\nmain()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(limit), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [
        (50_000, ["export"]),
        (1_500, ["render", "--size", "128x192", "--seconds", "1"]),
        (1_500, ["render", "--size", "128x192", "--seconds", "1", "-o", "mine.gif"]),
        (1_500, ["render", "--size", "128x192", "--seconds", "1", "--format", "png"]),
    ],
)
def test_a_disk_that_fills_up(tmp_path: Path, run: Path, limit: int, arguments: list[str]) -> None:
    before = snapshot(tmp_path)
    done = limited(limit, arguments[0], run, *arguments[1:], cwd=tmp_path)
    assert_one_clear_line(done, 6, "[E_")
    assert snapshot(tmp_path) == before


def test_a_real_full_disk(tmp_path: Path) -> None:
    """A tiny file system, where one may be mounted: the photo fits, what is made from it does not."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a file system here")
    try:
        done = hdx("create", "--sample", "-o", place / "avatar", *QUICK, cwd=tmp_path)
        assert_one_clear_line(done, 6, "No space left on device", str(place), "[E_DISK]")
        assert not list(place.rglob("*.partial*")) and not (place / "avatar").exists()
    finally:
        subprocess.run(["umount", place], check=True)


def test_output_to_a_full_device(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hdx_cli.cli.app", "doctor"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 6 and "No space left" in done.stderr and "Traceback" not in done.stderr


# ---- interruptions


def interrupted(arguments: list[object], cwd: Path, after: str) -> tuple[int, str]:
    """Start hdx, press Ctrl-C once ``after`` has been printed, and return its exit code and its words."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "hdx_cli.cli.app", *map(str, arguments)], cwd=cwd,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(after):
            time.sleep(0.3)  # into the next stage
            process.send_signal(signal.SIGINT)
            break
    said.append(process.stderr.read())
    process.stderr.close()
    return process.wait(timeout=120), "".join(said)


def test_ctrl_c_in_every_stage_and_the_rerun_continues(tmp_path: Path, created: Path) -> None:
    shutil.copy(created / "Фото меня 🙂.JPG", tmp_path / "my photo.jpg")
    run = tmp_path / "my photo-avatar"
    command = ["create", "my photo.jpg", *QUICK]
    finished = 0
    for after in ("photo:", "body:", "avatar:"):
        code, said = interrupted(command, tmp_path, after)
        assert code == 130, said
        assert "Traceback" not in said
        assert said.rstrip().endswith("Continue with: hdx create 'my photo.jpg' --gaussians 3000 --iterations 2")
        assert not list(run.rglob("*.partial*")), after
        assert said.count("done before") >= finished, said  # more where a stage took less than the moment waited
        finished += 1
    done = hdx(*command, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.count("done before") >= 3, done.stderr
    # and the result is, byte for byte, that of the run which nobody interrupted
    whole = created / "Фото меня 🙂-avatar"
    for name in PRODUCTS:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_ctrl_c_inside_executed_source_still_exits_130(tmp_path: Path) -> None:
    source = "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)"
    (tmp_path / "stopped.py").write_text(
        f"from hdx_cli.cli.console import Console, session\nwith session(Console()):\n    exec({source!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "stopped"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 130 and "Continue with" in done.stderr, done.stderr


def test_ctrl_c_before_anything_is_finished_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "hdx_cli.cli.app", "create", "--sample"], cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "sample-avatar/run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in said, said
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_is_continued(tmp_path: Path, created: Path) -> None:
    run = Path(shutil.copytree(created / "Фото меня 🙂-avatar", tmp_path / "run"))
    process = subprocess.Popen(
        [sys.executable, "-m", "hdx_cli.cli.app", "fit-coarse", run, "--seed", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (run / "coarse.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (run / "coarse.partial").exists() and (run / "coarse/avatar.safetensors").exists()
    done = hdx("fit-coarse", run, "--seed", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(run.rglob("*.partial*"))


# ---- folders that are not what they should be


def test_two_runs_at_once(tmp_path: Path, run: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom pathlib import Path\nfrom hdx_cli.run_folder import RunFolder\n"
         "with RunFolder.open(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(100)", run],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        holder.stdout.readline()
        assert_one_clear_line(hdx("render", run, cwd=tmp_path), 6, "another hdx", "[E_LOCKED]")
    finally:
        holder.kill()
        holder.communicate()
    assert hdx("export", run, cwd=tmp_path).returncode == 0


def test_a_folder_of_a_newer_hdx(tmp_path: Path, run: Path) -> None:
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**state, "format": 99, "hdx": "7.1"}))
    assert_one_clear_line(hdx("render", run, cwd=tmp_path), 2, "newer hdx (7.1", "pip install --upgrade")


def test_a_folder_full_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "sample-avatar").mkdir()
    (tmp_path / "sample-avatar/letter.txt").write_text("dear")
    assert_one_clear_line(hdx("create", "--sample", "--force", cwd=tmp_path), 2, "not a run folder")
    assert snapshot(tmp_path) == {"sample-avatar/letter.txt": b"dear"}


def test_a_damaged_avatar_is_named(tmp_path: Path, run: Path) -> None:
    tensors = run / "coarse/avatar.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    assert_one_clear_line(hdx("export", run, cwd=tmp_path), 4, "avatar.safetensors", "sha256")
