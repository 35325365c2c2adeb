"""A disk that is full, page by page, or read-only: either a result is whole and the same byte for byte, or there is one
clear error and nothing is lost or left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import ToyBody, toy_fit, toy_photo

from hdx_cli import outputs, run_files, stages
from hdx_cli.avatars.avatar_file import write_avatar
from hdx_cli.avatars.base import Avatar
from hdx_cli.errors import InputRejected, ResourceError
from hdx_cli.export.video import write_video
from hdx_cli.run_folder import RunFolder, write_outside

PAGE = 4096
PLENTY = 1 << 28


class Disk:
    """A file system in memory with as much free space as is asked for."""

    def __init__(self, place: Path):
        self.root, self.place = place, place / "in"
        place.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", self.root], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"no file system may be mounted here ({mounted.stderr.strip()})")
        self.place.mkdir()
        (self.root / "page").write_bytes(b"x")  # a size of 0 would be no limit

    def leave(self, pages: int | None) -> None:
        """Leave so many pages; None is plenty."""
        held = os.statvfs(self.place)
        used = (held.f_blocks - held.f_bfree) * held.f_frsize
        size = PLENTY if pages is None else used + pages * PAGE
        subprocess.run(["mount", "-o", f"remount,size={size}", self.root], check=True)

    def read_only(self, on: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", self.root], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.name == "nt" or not Path("/proc/self/mounts").exists():
        pytest.skip("Linux only")
    made = Disk(tmp_path / "disk")
    yield made
    subprocess.run(["umount", "-l", made.root], check=True)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "me.jpg"
    path.write_bytes(bytes(range(256)) * 20)  # two pages
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pages(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // PAGE) for file in files)


def chain(run: RunFolder) -> None:
    """Three products of five, one and three pages."""

    def first(folder: Path) -> None:
        (folder / "views").mkdir()
        for name in ("a", "views/b"):
            (folder / name).write_bytes(run.photo.read_bytes() + name.encode() * 1000)

    run.remember({"gaussians": 7})
    run.make("first", {}, [run.state["photo"]], first)
    run.make("second.npz", {}, ["first"], lambda path: path.write_bytes(b"second" * 100) and None)
    run.make("exports/third.ply", {}, ["second.npz"], lambda path: path.write_bytes(b"third" * 2000) and None)


def empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def made_of(run: Path) -> dict[str, bytes]:
    """The files of a run folder, without the times in its records."""
    files = snapshot(run)
    state = json.loads(files.pop("run.json"))
    for record in state["products"].values():
        del record["seconds"], record["finished"]
    return files | {"run.json": json.dumps(state).encode()}


def test_every_page_that_a_run_can_lack(disk: Disk, photo: Path, tmp_path: Path) -> None:
    """The disk grows until the run is whole; every attempt but the last fails, clearly, and loses nothing."""
    with RunFolder.create(tmp_path / "whole", photo) as run:
        chain(run)
    wanted, place, failures = made_of(tmp_path / "whole"), disk.place / "run", []
    for number in range(60):
        disk.leave(number if not place.exists() else 1 + number % 4)
        before = made_of(place) if place.exists() else {}
        try:
            with RunFolder.create(place, photo) as run:
                chain(run)
            break
        except ResourceError as error:
            failures.append(error.message)
            assert error.code == "E_DISK" and "No space left on device" in error.message and error.hint
            assert error.message.startswith(str(place))  # and not the photo, which is on another disk
        after = snapshot(disk.place)
        assert not [name for name in after if ".partial" in name]
        # at first nothing stays; once there is a record, all that it names
        assert after == {} or json.loads(after["run/run.json"])["products"]
        recorded = json.loads(before.get("run.json", b'{"products": {}}'))["products"]
        assert recorded.items() <= json.loads(made_of(place)["run.json"])["products"].items() if recorded else True
    assert len(failures) > 5 and made_of(place) == wanted
    disk.leave(0)
    with RunFolder.create(place, photo) as run:  # what is finished needs no room
        chain(run)


def test_a_first_run_that_fails_takes_away_everything_that_it_brought(tmp_path: Path, photo: Path) -> None:
    mask = tmp_path / "mask.png"
    mask.write_bytes(b"mask")
    with pytest.raises(InputRejected), RunFolder.create(tmp_path / "run", photo) as run:
        run.adopt(mask, "mask")
        raise InputRejected("nobody in it")
    assert not (tmp_path / "run").exists()


def frames(count: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(number).integers(0, 256, (96, 64, 3), np.uint8) for number in range(count)]


def film(form: str) -> Callable[[Path, Avatar], object]:
    return lambda path, avatar: write_video(path, frames(), size=(64, 96), fps=10, format=form)


def export(suffix: str) -> Callable[[Path, Avatar], object]:
    how = outputs.Export(motions=("wave",))
    return lambda path, avatar: outputs._WRITERS[suffix](path, avatar, how, "title")


def avatar_folder(path: Path, avatar: Avatar) -> None:
    path.mkdir(exist_ok=True)
    write_avatar(path, avatar)


def observation_folder(path: Path, avatar: Avatar) -> None:
    path.mkdir(exist_ok=True)
    run_files.save_observation(path, toy_photo(ToyBody(), toy_fit(160)))


WRITERS: dict[str, Callable[[Path, Avatar], object]] = {
    **{f"a{suffix}": export(suffix) for suffix in (".ply", ".glb", ".npz", ".html")},
    **{f"film.{form}": film(form) for form in ("mp4", "webm", "gif")},
    "film": film("png"), "avatar": avatar_folder, "observation": observation_folder,
    "body.npz": lambda path, avatar: run_files.save_body_fit(path, toy_fit(160)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_whole_or_absent_however_much_room_there_is(disk: Disk, rigged_avatar: Avatar, name: str) -> None:
    """A writer that swallowed the error of its last page would leave a file that looks whole."""
    target = disk.place / name
    write_outside(target, lambda partial: WRITERS[name](partial, rigged_avatar))
    wanted, size = snapshot(disk.place), pages(target)
    for room in sorted({0, size // 2, size - 1}):
        empty(disk.place)
        disk.leave(room)
        with pytest.raises(ResourceError) as caught:
            write_outside(target, lambda partial: WRITERS[name](partial, rigged_avatar))
        error = caught.value
        assert error.code == "E_DISK" and error.hint and "No space left on device" in error.message, error.message
        assert str(disk.place) in error.message and "\n" not in error.message
        assert list(disk.place.iterdir()) == []
    disk.leave(size)
    write_outside(target, lambda partial: WRITERS[name](partial, rigged_avatar))
    assert snapshot(disk.place) == wanted


def test_a_read_only_run_is_read_and_told_of_at_once(disk: Disk, photo: Path, tmp_path: Path) -> None:
    with RunFolder.create(disk.place / "run", photo) as run:
        chain(run)
    before = snapshot(disk.place)
    disk.read_only(True)
    with RunFolder.open(disk.place / "run") as run:
        write_outside(tmp_path / "copy", lambda path: path.write_bytes((run.path / "second.npz").read_bytes()))
        calls: list[Path] = []
        with pytest.raises(ResourceError, match="Read-only file system") as caught:
            run.make("exports/fourth.ply", {}, [], lambda path: calls.append(path))
        assert caught.value.code == "E_DISK" and calls == []
    for place in (disk.place / "new", disk.place):
        with pytest.raises(ResourceError, match="Read-only file system") as caught:
            with RunFolder.create(place / "me", photo) as run:
                pass
        assert caught.value.code == "E_DISK" and str(disk.place) in caught.value.message
    disk.read_only(False)
    assert snapshot(disk.place) == before


class Heard:
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def start(self, task: str, total: int | None = None) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass

    def warn(self, code: str, message: str) -> None:
        self.codes.append(code)


def test_a_run_that_is_continued_warns_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    """The finding is told by the call that made the observation and by every later one."""
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(tmp_path / "me.png")
    options = stages.Options()
    with RunFolder.create(tmp_path / "run", tmp_path / "me.png") as run:
        config = {name: getattr(options, name) for name in ("person", "mask", "matting")}
        finding = {"code": "W_TOO_SMALL", "severity": "warn", "message": "small"}

        def write(folder: Path) -> dict:
            (folder / "photo.json").write_text("{}")
            return {"findings": [finding]}

        run.make("observation", config, ["photo.png"], write)
        heard = Heard()
        assert stages.observe(run, options, heard).reused
    assert heard.codes == ["W_TOO_SMALL"]
