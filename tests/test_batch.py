"""Batches: names that last, what counts as finished, workers that die, and the command itself."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import batch_jobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hdx_cli.batch import core, manifest, processes
from hdx_cli.batch.job import Outcome, Task
from hdx_cli.batch.photos import Found, find, in_shard, read_list, run_names
from hdx_cli.errors import HdxError, InputRejected, ResourceError, UsageError
from hdx_cli.export.gallery import Card, page_of

SETTINGS = core.Settings()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of the file system, links resolved."""
    return tmp_path.resolve()


def photos_in(folder: Path, **contents: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_text(content)
    return [folder / f"{name}.jpg" for name in contents]


def made(out: Path, photos: list[Path], how: core.Settings = SETTINGS, jobs: int = 2) -> dict[Path, manifest.Entry]:
    engine = partial(processes.outcomes, job=batch_jobs.by_content, jobs=jobs)
    return core.run(out, core.plan(out, photos, how), how, engine)


def log(out: Path) -> list[str]:
    return sorted((out / "made.log").read_text().splitlines())


# ---- which photos


def test_folders_globs_files_and_what_is_passed_over(place: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.jpg", "notes.txt", "in/c.webp", ".git/d.jpg", "in/e[1].jpg"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"x")
    (place / "link.jpg").symlink_to(place / "b.JPG")
    found = find([str(place)])
    assert [path.name for path in found.photos] == ["a.png", "b.JPG"]
    assert found.skipped == {"hidden": 1, "not an image": 1, "named twice": 1}  # the link is b.JPG once more
    deep = find([str(place)], recursive=True)
    assert [path.name for path in deep.photos] == ["a.png", "b.JPG", "c.webp", "e[1].jpg"]
    assert [path.name for path in find([str(place / "**" / "*.webp")]).photos] == ["c.webp"]
    assert find([str(place / "notes.txt")]).photos == (place / "notes.txt",)  # who is named is taken
    assert find([str(place / "in" / "e[1].jpg")]).photos == (place / "in/e[1].jpg",)  # a file before a glob
    for word in (str(place / "*.bmp"), str(place / "nowhere")):
        with pytest.raises(UsageError, match=r"matches nothing|no such file"):
            find([word])


def test_results_inside_the_folder_of_photos_are_no_photos(place: Path) -> None:
    (photo,) = photos_in(place, me="x")
    made(place / "avatars", [photo])
    assert (place / "avatars/me/photo.jpg").exists()
    for named in (place, place / "avatars/me"):
        found = find([str(named)], recursive=True, avoid=Path("elsewhere"))
        assert set(found.photos) <= {photo} and found.skipped["run folder"] == 1
    assert find([str(place)], recursive=True, avoid=place / "avatars").skipped == {}


def test_a_list_of_photos(place: Path) -> None:
    (photo,) = photos_in(place, me="x")
    lines = read_list(io.BytesIO(os.fsencode(photo) + b"\r\n\nb\xff.jpg\n"))
    assert lines == [str(photo), os.fsdecode(b"b\xff.jpg")]
    assert find([str(photo)], lines) == Found((photo, Path(lines[1]).resolve()), {"named twice": 1})
    with pytest.raises(InputRejected, match="zero byte"):
        read_list(io.BytesIO(b"a\0b"))
    with pytest.raises(InputRejected, match="64 MB"):
        read_list(io.BytesIO(bytes(64_000_001)))


@given(st.lists(st.integers(0, 10**9), unique=True, max_size=30), st.integers(1, 7))
def test_shards_part_the_photos(numbers: list[int], count: int) -> None:
    for number in numbers:
        photo = Path(f"/photos/{number}.jpg")
        assert sum(in_shard(photo, (index, count)) for index in range(1, count + 1)) == 1


# ---- names


def test_names_by_hand() -> None:
    photos = [Path(f"/p/{name}") for name in ("a/IMG.jpg", "b/IMG.jpg", "a/IMG.png", "a/img.webp", "b-IMG.jpg")]
    names = run_names(photos, {}, lambda name, photo: True)
    assert [names[photo] for photo in photos] == ["IMG", "b-IMG", "IMG-png", "img-webp", "p-b-IMG"]
    blocked = run_names([Path("/p/a.jpg")], {}, lambda name, photo: name not in ("a", "p-a", "a-2"))
    assert blocked == {Path("/p/a.jpg"): "a-3"}


# what names of files are in Python: text, and single bytes that are none
LETTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
BYTES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, exclude_categories=[])
PART = st.text(LETTERS | BYTES, min_size=1, max_size=130)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PART, PART), max_size=8), st.integers(0, 8))
def test_names_are_unique_safe_and_stay(parts: list[tuple[str, str]], early: int) -> None:
    photos = [Path("/p") / f"{folder}" / f"{stem}.jpg" for folder, stem in parts if folder not in (".", "..")]
    first = run_names(photos[:early], {}, lambda name, photo: True)
    names = run_names(photos, first, lambda name, photo: True)
    assert set(names) == set(photos) and names.items() >= first.items()
    assert len({name.casefold() for name in names.values()}) == len(names)
    for name in names.values():
        assert name == name.strip(" .") and name and not set(name) & set('/\\:*?"<>|\0\n') and ".partial" not in name
        assert len(os.fsencode(name)) <= 230 and name.lower() not in ("con", "nul", "..")
        assert Path("/out", name).parent == Path("/out")


def test_names_that_lead_elsewhere() -> None:
    odd = ["/p/...jpg", "/p/CON.jpg", "/p/ .jpg", "/p/a\nb.jpg", "/p/-rf.jpg", "/p/" + "x" * 250 + ".jpg"]
    names = run_names(map(Path, odd), {}, lambda name, photo: True)
    assert set(names.values()) == {"photo", "-jpg", "photo-CON", "a_b", "-rf", "x" * 100}


def test_a_new_photo_of_an_old_name_takes_nothing_away(place: Path) -> None:
    old, out = photos_in(place / "b", IMG="old"), place / "out"
    made(out, old)
    new = photos_in(place / "a", IMG="newer")
    entries = made(out, [*new, *old])
    assert entries[old[0]].run == "IMG" and entries[new[0]].run == "a-IMG"
    assert (out / "IMG/a.txt").read_text() == "dlo" and (out / "a-IMG/a.txt").read_text() == "rewen"
    assert log(out) == ["IMG new", "a-IMG new"]


def test_without_the_manifest_finished_runs_are_found_by_their_photos(place: Path) -> None:
    photos, out = [*photos_in(place / "a", IMG="one"), *photos_in(place / "b", IMG="two")], place / "out"
    before = {photo: entry.run for photo, entry in made(out, photos).items()}
    (out / "batch.json").unlink()
    (out / "other").mkdir()
    (out / "other/letter.txt").write_text("dear")
    photos += photos_in(place / "c", other="three")
    after = {photo: entry.run for photo, entry in made(out, photos).items()}
    assert after == before | {photos[2]: "c-other"}
    assert log(out) == ["IMG again", "IMG new", "b-IMG again", "b-IMG new", "c-other new"]
    assert (out / "other/letter.txt").read_text() == "dear"


# ---- a whole batch


def test_good_and_bad_photos_and_the_next_call_does_nothing(place: Path) -> None:
    out = place / "out"
    photos = photos_in(place, a="fine", b="bad", c="bug", d="full", e="finer")
    entries = made(out, photos)
    assert [entries[photo].state for photo in photos] == ["done", "rejected", "failed", "failed", "done"]
    assert [entries[photo].code for photo in photos] == [None, "E_BAD", "E_UNEXPECTED", "E_DISK", None]
    assert entries[photos[0]].scores == {"front_psnr_db": 4.0}  # neither the NaN nor the words
    lines = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    assert [line["photo"] for line in lines] == [str(photo) for photo in photos]
    assert lines[0]["run"] == str(out / "a") and lines[1]["run"] is None and "bad" in lines[1]["reason"]
    assert {path.name for path in out.iterdir()} >= {"a", "e", "batch.json", "report.jsonl", "index.html"}
    assert not (out / "b").exists()
    todo = core.plan(out, photos, SETTINGS)
    assert todo.finished == 3 and [Path(task.run).name for task in todo.tasks] == ["c", "d"]  # failed, not rejected


def test_workers_are_kept_and_at_most_so_many(place: Path) -> None:
    photos = photos_in(place, **{f"p{number}": f"text {number}" for number in range(9)})
    entries = made(place / "out", photos)
    pids = {entry.warnings[0][1] for entry in entries.values()}
    assert 1 <= len(pids) <= 2 and str(os.getpid()) not in pids


def test_what_makes_a_finished_run_unfinished(place: Path) -> None:
    out = place / "out"
    (photo,) = photos_in(place, a="fine")
    made(out, [photo])

    def is_planned(how: core.Settings = SETTINGS) -> list[bool]:
        return [task.force for task in core.plan(out, [photo], how).tasks]

    assert is_planned() == []
    os.utime(photo, (1, 1))  # touched, the same content
    assert is_planned() == [] and manifest.read(out)[photo].mtime_ns == 10**9
    (out / "a/a.txt").rename(out / "a/b.txt")
    assert is_planned() == [False]
    (out / "a/b.txt").rename(out / "a/a.txt")
    (out / "a/run.json").write_text("{")
    assert is_planned() == [False]
    (out / "a/run.json").unlink()
    assert is_planned() == [False]


def test_another_photo_other_options_or_overwriting_make_it_again(place: Path) -> None:
    out = place / "out"
    (photo,) = photos_in(place, a="fine")
    made(out, [photo])
    photo.write_text("another")
    made(out, [photo])
    assert (out / "a/a.txt").read_text() == "rehtona"
    made(out, [photo], replace(SETTINGS, options={"seed": 3, "age": None}))
    made(out, [photo], replace(SETTINGS, options={"seed": 3}))
    assert log(out) == ["a new"] * 3
    todo = core.plan(out, [photo], replace(SETTINGS, options={"seed": 3}, overwrite=True))
    assert [task.force for task in todo.tasks] == [True]
    # stopped here, and called again without --overwrite: the wish is not forgotten, and once is enough
    made(out, [photo], replace(SETTINGS, options={"seed": 3}))
    made(out, [photo], replace(SETTINGS, options={"seed": 3}))
    assert log(out) == ["a new"] * 4


def test_limits_shards_and_stopping_early(place: Path) -> None:
    out = place / "out"
    photos = photos_in(place, a="1", b="bad", c="3", d="4")
    assert [entry.state for entry in made(out, photos, replace(SETTINGS, limit=1)).values()] == [
        "done", "waiting", "waiting", "waiting",
    ]  # fmt: skip
    stopped = made(out, photos, replace(SETTINGS, fail_fast=True), jobs=1)
    assert [entry.state for entry in stopped.values()] == ["done", "rejected", "waiting", "waiting"]
    shares = [made(out, photos, replace(SETTINGS, shard=(index, 2))) for index in (1, 2)]
    assert sorted([*shares[0], *shares[1]]) == photos
    assert log(out) == ["a new", "c new", "d new"]
    assert len((out / "report.jsonl").read_text().splitlines()) == 4  # of the whole folder, not of the shard


def test_a_worker_that_dies_loses_only_its_photo(place: Path) -> None:
    out = place / "out"
    photos = photos_in(place, a="once", b="kill", c="3", d="4", e="5")
    entries = made(out, photos)
    assert [entry.state for entry in entries.values()] == ["done", "failed", "done", "done", "done"]
    lost = entries[photos[1]]
    assert lost.code == "E_WORKER_DIED" and "SIGKILL" in lost.reason and "2 times" in lost.reason
    assert log(out) == ["a new", "c new", "d new", "e new"]


def test_workers_that_do_not_start(place: Path) -> None:
    def local(task: Task, progress: object) -> dict:
        return {}

    tasks = [Task("/a.jpg", str(place / "a"))]
    with pytest.raises(HdxError, match="does not start: AttributeError"):
        list(processes.outcomes(tasks, lambda update: None, job=local, jobs=1))


def test_stopping_ends_the_workers_and_they_tidy_up(place: Path) -> None:
    out = place / "out"
    photos = photos_in(place, a="1", b="slow")
    pids = []
    todo = core.plan(out, photos, SETTINGS)
    working = processes.outcomes(todo.tasks, lambda update: None, job=batch_jobs.by_content, jobs=1)
    task, outcome = next(working)
    core.land(out, task, outcome)
    pids.append(int(outcome.warnings[0][1]))
    deadline = time.monotonic() + 20
    while not (out / "b/run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    working.close()
    assert not (out / "b").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert [entry.state for entry in manifest.read(out).values()] == ["done", "waiting"]


def test_workers_do_not_outlive_their_master(place: Path) -> None:
    out = place / "out"
    (photo,) = photos_in(place, b="slow")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport batch_jobs\nfrom hdx_cli.batch import processes\n"
        "from hdx_cli.batch.job import Task\n"
        "list(processes.outcomes([Task(*sys.argv[2:4])], lambda update: None, job=batch_jobs.by_content, jobs=1))"
    )
    master = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), photo, out / "b"])
    deadline = time.monotonic() + 30
    while not (out / "b/run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    master.kill()
    master.wait()
    while (out / "b").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not (out / "b").exists()  # tidied by the worker, which was told by the end of its stdin


def test_killed_at_random_moments_and_run_again(place: Path) -> None:
    """The master is killed, its workers with it; what comes out in the end is what an undisturbed batch makes."""
    photos = photos_in(place, **{f"p{number}": f"nap {number}" for number in range(12)})
    undisturbed = made(place / "whole", photos)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport batch_jobs\nfrom functools import partial\n"
        "from pathlib import Path\nfrom hdx_cli.batch import core, processes\n"
        "out, photos, how = Path(sys.argv[2]), [Path(word) for word in sys.argv[3:]], core.Settings()\n"
        "engine = partial(processes.outcomes, job=batch_jobs.by_content, jobs=2)\n"
        "core.run(out, core.plan(out, photos, how), how, engine)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(place / "out"), *map(str, photos)]
    moments = random.Random(7)
    for _ in range(5):
        master = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.2, 0.8))
        master.kill()
        master.wait()
    deadline = time.monotonic() + 60
    entries = made(place / "out", photos)
    while any(entry.state != "done" for entry in entries.values()):
        assert time.monotonic() < deadline  # the workers of a killed master may hold their folders for a moment yet
        entries = made(place / "out", photos)
    assert {photo: entry.run for photo, entry in entries.items()} == {
        photo: entry.run for photo, entry in undisturbed.items()
    }
    for entry in entries.values():
        for name in ("a.txt", "photo.jpg"):
            assert (place / "out" / entry.run / name).read_bytes() == (place / "whole" / entry.run / name).read_bytes()
    assert not list((place / "out").rglob("*.partial*"))


def test_that_another_process_is_at_it_does_not_undo_its_work(place: Path) -> None:
    out = place / "out"
    (photo,) = photos_in(place, a="1")
    made(out, [photo])
    task = Task(str(photo), str(out / "a"))
    assert core.land(out, task, Outcome("failed", "E_LOCKED", "busy")).state == "done"
    assert core.land(out, task, Outcome("failed", "E_DISK", "full")).state == "failed"


# ---- the manifest


def test_the_manifest_is_read_as_it_was_written_and_changed_by_many(place: Path) -> None:
    out = place / "out"
    photos = [place / os.fsdecode(b"\xff\xfe.jpg"), place / "ü.jpg"]
    core.plan(out, photos, SETTINGS)
    code = (
        "import sys\nfrom pathlib import Path\nfrom dataclasses import replace\nfrom hdx_cli.batch import manifest\n"
        "for turn in range(20):\n"
        "    with manifest.changing(Path(sys.argv[1])) as entries:\n"
        "        for photo, entry in list(entries.items()):\n"
        "            entries[photo] = replace(entry, seconds=entry.seconds + 1)\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, out]) for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0]
    entries = manifest.read(out)
    assert set(entries) == set(photos) and {entry.seconds for entry in entries.values()} == {60.0}  # none was lost
    assert not list(out.glob("*.partial*"))


GOOD = {"photo": "/p/a.jpg", "run": "a"}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["photo", "run", "state", "options", "scores", "warnings", "seconds", "size", "sha256", "force"]
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=3))
def test_a_manifest_with_anything_in_it(tmp_path_factory: pytest.TempPathFactory, change: dict) -> None:
    out = tmp_path_factory.getbasetemp() / "manifest"
    out.mkdir(exist_ok=True)
    (out / "batch.json").write_text(json.dumps({"format": 1, "photos": [GOOD | change]}))
    try:
        (entry,) = manifest.read(out).values()
    except UsageError as error:
        assert error.code == "E_BATCH_FORMAT" and "\n" not in error.message
    else:
        assert (out / entry.run).parent == out and Path(entry.photo).is_absolute()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"format": 9, "hdx": "7", "photos": []}',
        *(json.dumps({"format": 1, "photos": [GOOD | {"run": name}]}).encode()
          for name in ("../a", "..", "", "a/b", "a\\b", "/a", "C:", "batch.json", ".thumbnails", "a\0")),
        json.dumps({"format": 1, "photos": [GOOD, GOOD | {"photo": "/b.jpg"}]}).encode(),
        json.dumps({"format": 1, "photos": [GOOD | {"photo": "a.jpg"}]}).encode(),
        json.dumps({"format": 1, "photos": [GOOD | {"scores": {"a": float("nan")}}]}).encode(),
    ],
)  # fmt: skip
def test_damaged_manifests(place: Path, content: bytes) -> None:
    (place / "batch.json").write_bytes(content)
    with pytest.raises(UsageError) as raised:
        core.plan(place, [], SETTINGS)
    assert str(place / "batch.json") in raised.value.message and raised.value.hint
    assert (place / "batch.json").read_bytes() == content


def test_a_folder_that_is_none_or_cannot_be_written(place: Path) -> None:
    (place / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        core.plan(place / "file", [], SETTINGS)
    with pytest.raises((UsageError, ResourceError, HdxError)):
        core.plan(Path("/sys/hdx-batch") if os.geteuid() == 0 else place / "file" / "in", [], SETTINGS)


def test_five_hundred_finished_runs_read_no_photo_and_no_product(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = place / "out"
    photos = photos_in(place, **{f"p{number}": "x" for number in range(500)})
    todo = core.plan(out, photos, SETTINGS)
    with manifest.changing(out) as entries:
        for task in todo.tasks:
            run = Path(task.run)
            run.mkdir()
            for name in ("photo.jpg", "a.txt"):
                (run / name).write_text("x")
            (run / "run.json").write_text(json.dumps({"photo": "photo.jpg", "products": {"a.txt": {}}}))
            photo = Path(task.photo)
            entries[photo] = replace(entries[photo], state="done", sha256="0" * 64, hdx=core.__version__)
    hashed = []
    monkeypatch.setattr(core, "sha256_of", lambda path: hashed.append(path) or "")
    again = core.plan(out, photos, SETTINGS)
    assert again.finished == 500 and again.tasks == [] and hashed == []


# ---- sums


def test_exit_codes() -> None:
    assert core.exit_code(["done", "done"]) == 0
    assert core.exit_code(["rejected"] * 3) == 4
    for states in (["done", "rejected"], ["failed"], ["done", "waiting"], ["rejected", "waiting"]):
        assert core.exit_code(states) == 7


def test_what_a_worker_takes_follows_what_is_asked_for() -> None:
    takes = core.worker_bytes({})
    assert core.worker_bytes({"gaussians": 1_000_000}) > 1.5 * takes > 1_500_000_000
    assert core.worker_bytes({"restorer": "none", "seed": 3}) < takes


def test_a_budget_is_in_every_task_and_makes_nothing_again(place: Path) -> None:
    photos, out = photos_in(place / "in", a="aa"), place / "out"
    budget = replace(SETTINGS, memory=900_000_000, memory_asked=True, vram=7)
    (task,) = core.plan(out, photos, budget).tasks
    assert (task.memory, task.memory_asked, task.vram) == (900_000_000, True, 7) and task.options == {}
    made(out, photos, budget)
    for later in (budget, SETTINGS, replace(budget, memory=1)):
        assert core.plan(out, photos, later).finished == 1


def test_time_left_by_hand() -> None:
    assert core.time_left([], [3.0], 5, 2) is None
    assert core.time_left([10.0, 20.0], [], 4, 2) == 30.0  # four of 15 s by two
    assert core.time_left([10.0, 20.0], [5.0, 40.0], 4, 2) == 35.0  # and 10 s of one at work; the other is overdue
    assert core.time_left([10.0], [], 1, 8) == 10.0  # one photo is not shared
    assert core.time_left([10.0], [4.0, 9.0], 0, 2) == 3.5


# ---- the page


def test_the_contact_sheet_is_sorted_and_escapes_everything() -> None:
    evil = '"><script>alert(1)</script>&'
    cards = [
        Card("low", "l", "low", None, "done", 20.0, ["front PSNR 20 dB"], []),
        Card("high", evil, "javascript:alert(1)", b"\xff\xd8jpeg", "done", 30.0, [], [evil]),
        Card("none", "p", "n", None, "done", None, [], []),
        Card(evil, "", None, None, "rejected", None, [], [evil], evil),
        Card(os.fsdecode(b"\xff.jpg"), os.fsdecode(b"\xfe"), os.fsdecode(b"\xff?#"), None, "done", 25.0, [], []),
    ]
    page = page_of(evil, cards, "made")
    order = [page.index(f"<h3>{title}</h3>") for title in ("high", os.fsdecode(b"\xff.jpg"), "low", "none")]
    assert order == sorted(order) and page.index("Photos that cannot") > order[-1]
    assert "<script" not in page and "default-src 'none'" in page and page.count("&lt;script&gt;") == 7
    assert 'href="./javascript%3Aalert%281%29/report.html"' in page and 'href="./%FF%3F%23/report.html"' in page
    assert page.encode("utf-8", "replace").count(b"data:image/jpeg;base64,") == 1


# ---- the command


MAIN = (
    "from hdx_cli.cli import app, batching\n"
    "if batching.batch not in [command.callback for command in app.app.registered_commands]:\n"
    "    app.app.command()(batching.batch)\n"
    "app.main()"
)


def batch(*arguments: object, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "batch", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=300,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 3, "no photos found"),
        (["empty"], 3, "--recursive"),
        (["-"], 3, "no photos found"),
        (["nowhere"], 2, "nowhere: no such file or folder"),
        (["*.heic"], 2, "matches nothing"),
        (["empty", "--shard", "3/2"], 2, "i/n"),
        (["empty", "--shard", "0/2"], 2, "i/n"),
        (["empty", "--jobs", "0"], 2, "--jobs"),
        (["empty", "--restorer", "magic"], 2, "humanfixer"),
    ],
)
def test_wrong_usage(place: Path, arguments: list[str], code: int, says: str) -> None:
    (place / "empty").mkdir()
    done = batch(*arguments, cwd=place)
    assert done.returncode == code and says in done.stderr and done.stdout == "" and "Traceback" not in done.stderr
    assert [path.name for path in place.iterdir()] == ["empty"]


def test_help_loads_nothing_heavy() -> None:
    code = "import sys\nfrom hdx_cli.cli import batching\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "PIL", "rich.live", "multiprocessing", "ray"} & set(loaded)


def test_bad_photos_through_the_command(place: Path) -> None:
    """All rejected: 4, every one with its reason, also in the report; a second call knows it without a look."""
    (place / "in").mkdir()
    (place / "in/letter.jpg").write_text("dear")
    Image.new("RGB", (8, 8)).save(place / "in/tiny.png")
    arguments = ("in", "-", "-o", "out", "--restorer", "none", "--json")
    done = batch(*arguments, cwd=place, stdin=b"in/letter.jpg\n")
    assert done.returncode == 4, done.stderr
    facts = json.loads(done.stdout)
    assert facts["rejected"] == facts["photos"] == 2 and facts["skipped"] == {"named twice": 1}
    assert "letter.jpg" in done.stderr and "[E_DECODE]" in done.stderr and "[E_TOO_SMALL]" in done.stderr
    lines = [json.loads(line) for line in (place / "out/report.jsonl").read_text().splitlines()]
    assert {line["code"] for line in lines} == {"E_DECODE", "E_TOO_SMALL"}
    assert not {path.name for path in (place / "out").iterdir()} - {
        ".lock", "batch.json", "report.jsonl", "index.html", ".thumbnails",
    }  # fmt: skip
    again = batch(*arguments, cwd=place, stdin=b"in/letter.jpg\n")
    assert again.returncode == 4 and "2 finished before, 0 to make" in again.stderr


def test_ctrl_c_and_the_command_to_continue(place: Path) -> None:
    """The interrupt comes while a worker loads; nothing is half made, and the manifest knows the photo."""
    (photo,) = photos_in(place / "in", me="x" * 100)
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "batch", "in", "-o", "out", "--restorer", "none"], cwd=place,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = ""
    while "to make" not in said:
        said += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in rest
    assert rest.rstrip().endswith("Continue with: hdx batch in -o out --restorer none")
    assert [entry.state for entry in manifest.read(place / "out").values()] == ["waiting"]
    assert len((place / "out/report.jsonl").read_text().splitlines()) == 1
