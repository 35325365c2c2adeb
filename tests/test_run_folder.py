"""The run folder: what counts as done, what survives a crash, and who may write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

from hdx_cli.errors import NothingToDo, ResourceError, UsageError
from hdx_cli.run_folder import RunFolder, sha256_of, write_atomically, write_outside


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "me.jpg"
    path.write_bytes(b"photo one")
    return path


def chain(run: RunFolder, calls: list[str], config: dict | None = None) -> None:
    """Three products: a folder from the photo, a file from the folder, a file in a folder from that."""

    def first(folder: Path) -> None:
        calls.append("first")
        (folder / "copy").write_bytes(run.photo.read_bytes() + json.dumps(config).encode())

    def second(path: Path) -> dict:
        calls.append("second")
        path.write_bytes(b"second of " + (run.path / "first/copy").read_bytes())
        return {"score": 0.5}

    def third(path: Path) -> None:
        calls.append("third")
        path.write_bytes(b"third of " + (run.path / "second.npz").read_bytes())

    run.make("first", config or {}, [run.state["photo"]], first)
    run.make("second.npz", {"seed": run.seed}, ["first"], second)
    run.make("exports/third.ply", {}, ["second.npz"], third)


def test_a_second_run_does_nothing(tmp_path: Path, photo: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        with RunFolder.create(tmp_path / "run", photo, seed=3) as run:
            chain(run, calls)
    assert calls == ["first", "second", "third"]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["format"] == 1 and record["seed"] == 3 and record["photo_name"] == "me.jpg"
    second = record["products"]["second.npz"]
    assert second["score"] == 0.5 and second["device"] == "cpu" and second["seconds"] >= 0
    assert second["inputs"] == {"first": sha256_of(tmp_path / "run/first")}
    assert second["outputs"] == {"second.npz": sha256_of(tmp_path / "run/second.npz")}


def test_another_configuration_runs_its_stage_and_the_later_ones(tmp_path: Path, photo: Path) -> None:
    calls: list[str] = []
    with RunFolder.create(tmp_path / "run", photo) as run:
        chain(run, calls)
        calls.clear()
        chain(run, calls, {"person": 2})
    assert calls == ["first", "second", "third"]


@pytest.mark.parametrize(("edited", "again"), [("first/copy", ["second", "third"]), ("second.npz", ["third"])])
def test_what_was_made_from_an_edited_file_is_made_again(
    tmp_path: Path, photo: Path, edited: str, again: list[str]
) -> None:
    calls: list[str] = []
    with RunFolder.create(tmp_path / "run", photo) as run:
        chain(run, calls)
        calls.clear()
        (run.path / edited).write_bytes(b"edited by hand")
        chain(run, calls)
    assert calls == again


@pytest.mark.parametrize("lost", ["first", "second.npz"])
def test_a_lost_product_is_made_again(tmp_path: Path, photo: Path, lost: str) -> None:
    calls: list[str] = []
    with RunFolder.create(tmp_path / "run", photo) as run:
        chain(run, calls)
        before = {name: sha256_of(run.path / name) for name in ("first", "second.npz", "exports/third.ply")}
        calls.clear()
        os.system(f"rm -r '{run.path / lost}'")
        chain(run, calls)
        assert calls == [lost.split(".")[0]]
        assert before == {name: sha256_of(run.path / name) for name in before}


def test_force_makes_everything_again_and_an_interrupted_force_stays_unfinished(tmp_path: Path, photo: Path) -> None:
    calls: list[str] = []
    with RunFolder.create(tmp_path / "run", photo) as run:
        chain(run, calls)
    calls.clear()
    with RunFolder.create(tmp_path / "run", photo, force=True) as run:
        run.make("first", {}, ["photo.jpg"], lambda folder: (folder / "copy").write_bytes(b"photo onenull") and None)
    with RunFolder.create(tmp_path / "run", photo) as run:
        chain(run, calls)
    assert calls == ["second", "third"]  # the same bytes as before, but force had asked for them anew


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError])
@pytest.mark.parametrize("product", ["folder", "file.npz"])
def test_a_stage_that_breaks_leaves_the_old_product_and_nothing_else(
    tmp_path: Path, photo: Path, error, product: str
) -> None:
    def good(path: Path) -> None:
        (path / "data" if path.is_dir() else path).write_bytes(b"good")

    def bad(path: Path) -> None:
        (path / "data" if path.is_dir() else path).write_bytes(b"half")
        raise error

    with RunFolder.create(tmp_path / "run", photo) as run:
        run.make(product, {}, [], good)
        before = {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        with pytest.raises(ResourceError if isinstance(error, OSError) else error):
            run.make(product, {"changed": True}, [], bad)
        assert before == {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_full_disk_is_named_with_the_path(tmp_path: Path, photo: Path) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder.create(tmp_path / "run", photo) as run:
        with pytest.raises(ResourceError, match="coarse: No space left"):
            run.make("coarse", {}, [], full)
    assert not (tmp_path / "run").exists()  # nothing was finished, so nothing stays


def test_a_failed_first_run_takes_its_own_folders_away_only(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError), RunFolder.create(tmp_path / "mine/a/b", photo):
        raise ValueError
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("name", ["with spaces", "später-日本-🙂", "-dash", "a.partial.b"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    photo = tmp_path / f"{name}.JPG"
    photo.write_bytes(b"x")
    with RunFolder.create(tmp_path / name, photo) as run:
        chain(run, [])
    assert (tmp_path / name / "photo.jpg").read_bytes() == b"x"
    assert (tmp_path / name / "exports/third.ply").is_file()


def test_a_folder_of_another_photo_is_refused_and_replaced_by_force(tmp_path: Path, photo: Path) -> None:
    with RunFolder.create(tmp_path / "run", photo) as run:
        chain(run, [])
    other = tmp_path / "you.png"
    other.write_bytes(b"photo two")
    with pytest.raises(UsageError, match="another photo"), RunFolder.create(tmp_path / "run", other):
        pass
    assert (tmp_path / "run/photo.jpg").read_bytes() == b"photo one"
    with RunFolder.create(tmp_path / "run", other, force=True) as run:
        assert run.state["products"] == {} and not (run.path / "first").exists()
        assert run.photo.read_bytes() == b"photo two" and not (run.path / "photo.jpg").exists()


def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UsageError, match="not a run folder"):
            with RunFolder.create(tmp_path / "thesis", photo, force=force):
                pass
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    with pytest.raises(UsageError, match="is a file"), RunFolder.create(photo, photo):
        pass
    with pytest.raises(NothingToDo, match="not a run folder"), RunFolder.open(tmp_path / "thesis"):
        pass


@pytest.mark.parametrize(
    "content", ['{"format": 2, "hdx": "9.0"}', '{"format": "new"}', "{}", "[]", "not json", '{"for']
)
def test_a_newer_or_damaged_record_is_refused(tmp_path: Path, photo: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(content)
    for opened in (RunFolder.open(tmp_path / "run"), RunFolder.create(tmp_path / "run", photo)):
        with pytest.raises(UsageError) as caught, opened:
            pass
        assert caught.value.code == "E_RUN_FORMAT"
    assert (tmp_path / "run/run.json").read_text() == content


def test_only_one_process_at_a_time_and_a_killed_one_does_not_block(tmp_path: Path, photo: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent("""
            import sys, time
            from pathlib import Path
            from hdx_cli.run_folder import RunFolder
            with RunFolder.create(Path(sys.argv[1]), Path(sys.argv[2])) as run:
                def slow(folder):
                    (folder / "half").write_bytes(b"half")
                    print("holding", flush=True)
                    time.sleep(60)
                run.make("coarse", {}, [], slow)
        """), tmp_path / "run", photo], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(ResourceError, match="another hdx"), RunFolder.create(tmp_path / "run", photo):
            pass
        assert (tmp_path / "run/coarse.partial/half").is_file()  # the refused one has not cleaned up under the other
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with RunFolder.create(tmp_path / "run", photo) as run:
        chain(run, [])
    assert not list((tmp_path / "run").rglob("*.partial*"))


def test_a_product_of_ones_own_place_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "films/turn.mp4"
    write_outside(target, lambda path: path.write_bytes(b"film"))
    assert target.read_bytes() == b"film"

    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_outside(target, broken)
    assert target.read_bytes() == b"film" and [path.name for path in target.parent.iterdir()] == ["turn.mp4"]


@settings(max_examples=25)
@given(
    names=strategies.lists(strategies.sampled_from("abcd"), unique=True, min_size=2),
    content=strategies.binary(max_size=4),
)
def test_the_hash_of_a_folder_knows_names_and_contents(tmp_path_factory, names: list[str], content: bytes) -> None:
    folder = tmp_path_factory.mktemp("hash")
    for name in names:
        (folder / name).write_bytes(content)
    before = sha256_of(folder)
    (folder / names[0]).rename(folder / "other")
    moved = sha256_of(folder)
    (folder / "other").write_bytes(content + b"!")
    assert len({before, moved, sha256_of(folder)}) == 3


def test_write_atomically_keeps_the_old_file_when_it_cannot_write(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    target.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(target, None)
    assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_start_that_was_killed_before_its_first_record_is_taken_up(tmp_path: Path) -> None:
    photo = tmp_path / "me.jpg"
    photo.write_bytes(b"pixels")
    for left in ([".lock"], [".lock", "photo.jpg"], ["photo.partial.jpg"], [".lock", "photo.jpg", "run.partial.json"]):
        folder = tmp_path / "-".join(left)
        folder.mkdir()
        for name in left:
            (folder / name).write_bytes(b"pixels" if name == "photo.jpg" else b"")
        with RunFolder.create(folder, photo) as run:
            run.make("x.txt", {}, [run.state["photo"]], lambda path: path.write_text("made") and None)
        assert sorted(entry.name for entry in folder.iterdir() if entry.name != ".lock") == [
            "photo.jpg",
            "run.json",
            "x.txt",
        ]


def test_a_folder_with_another_photo_of_that_name_is_left_alone(tmp_path: Path) -> None:
    photo, folder = tmp_path / "me.jpg", tmp_path / "pictures"
    photo.write_bytes(b"pixels")
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"others")
    with pytest.raises(UsageError, match="not a run folder"), RunFolder.create(folder, photo):
        pass
    assert (folder / "photo.jpg").read_bytes() == b"others"


@pytest.mark.parametrize("options", [{"gaussians": "many"}, {"restorer": 3}, {"seed": True}, {"height_m": [1.7]}])
def test_options_of_another_type_are_refused_by_name(tmp_path: Path, photo: Path, options: dict) -> None:
    from hdx_cli.stages import Options

    with RunFolder.create(tmp_path / "run", photo) as run:
        run.remember(options)
        with pytest.raises(UsageError, match=f"run.json: damaged .the option {next(iter(options))}"):
            Options.remembered(run)
        run.remember({"gaussians": 5000, "height_m": 2, "restorer": "none"})
        assert Options.remembered(run).gaussians == 5000


def test_other_weights_are_looked_for_before_anything_is_remembered(tmp_path: Path, photo: Path) -> None:
    from hdx_cli import stages
    from hdx_cli.errors import WeightsError

    with pytest.raises(WeightsError):
        stages.require_restorer(stages.Options(weights="nobody/nothing"))
    (tmp_path / "mine").mkdir()
    assert stages.require_restorer(stages.Options(weights=str(tmp_path / "mine"))) == tmp_path / "mine"
    assert stages.require_restorer(stages.Options(weights="bundled")) == stages.require_restorer() == stages.WEIGHTS
