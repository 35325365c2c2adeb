"""Damaged and hostile files: some hundred mutants through every reader, and names in files that lead elsewhere.

The thousands are run by hand: ``python tests/bench/fuzz_files.py``.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bench import fuzz_files
from test_export_html import GLB

from hdx_cli.avatars.avatar_file import read_avatar
from hdx_cli.errors import HdxError, InputRejected, ResourceError, UsageError
from hdx_cli.export import gallery, html, report
from hdx_cli.export.server import serve
from hdx_cli.motion import bvh, files
from hdx_cli.run_files import load_observation, load_views
from hdx_cli.run_folder import RunFolder, is_inside

KINDS = {kind.name: kind for kind in fuzz_files.kinds()}
ELSEWHERE = (
    "/etc/passwd", "../x", "a/../../x", "..", ".", "", "C:\\x", "C:x", "\\\\host\\share\\x", "//host/share/x", "..\\x",
    "a\0b",     "x" * 5000, "run.json", ".lock",
)  # fmt: skip
EVIL = (
    '"><script>alert(1)</script>&.jpg',
    "</script>",
    "</title><img src=x onerror=alert(1)>",
    "' onload='x",
    "<!--",
    "&lt;b&gt;",
)


@pytest.mark.parametrize("name", KINDS)
def test_mutants_are_read_right_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    tally = fuzz_files.run_kind(KINDS[name], 8, 100, tmp_path / "k", group=8)
    assert not tally.failures, tally.failures
    assert tally.read + tally.refused == 8


def test_the_harness_sees_crashes_and_other_errors(tmp_path: Path) -> None:
    """What it is trusted with: each of these must be a failure."""

    def use(folder: Path) -> None:
        content = (folder / "f").read_bytes()
        if content == b"crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if content == b"other":
            raise ZeroDivisionError
        if content == b"memory":
            np.ones(2 * 10**8)

    for content, words in ((b"crash", "SIGKILL"), (b"other", "ZeroDivisionError"), (b"memory", "MemoryError")):
        kind = fuzz_files.Kind(
            "k", "f", lambda f: (f / "f").write_bytes(b"good"), (lambda good, rng, c=content: c,), use
        )
        tally = fuzz_files.run_kind(kind, 1, 0, tmp_path / words)
        assert words in tally.failures[0][1]


# ---- names that lead elsewhere


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_in_records_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    fuzz_files.make_run(tmp_path)
    path = tmp_path / "run/run.json"
    good = json.loads(path.read_bytes())
    record = good["products"]["coarse"]
    changes = [
        {"photo": name},
        {"products": {**good["products"], name: record}},
        {"products": {**good["products"], "coarse": {**record, "inputs": {name: "0"}}}},
        {"options": {"mask": name}},
    ]
    (tmp_path / "other.png").write_bytes(b"another")
    before = sorted(str(file) for file in tmp_path.rglob("*"))
    for change in changes:
        path.write_text(json.dumps({**good, **change}))
        for opened in (RunFolder.open(path.parent), RunFolder.create(path.parent, tmp_path / "other.png", force=True)):
            with pytest.raises(UsageError) as caught, opened:
                pass
            assert caught.value.code == "E_RUN_FORMAT" and str(path) in caught.value.message
    assert sorted(str(file) for file in tmp_path.rglob("*") if file.name != ".lock") == before or (
        set(before) | {str(path.parent / ".lock")} == {str(file) for file in tmp_path.rglob("*")}
    )


def test_links_out_of_a_run_folder_are_not_followed(tmp_path: Path) -> None:
    fuzz_files.make_run(tmp_path)
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    shutil.move(run / "coarse", outside / "coarse")
    (run / "coarse").symlink_to(outside / "coarse")
    with pytest.raises(UsageError, match="no place in this folder"), RunFolder.open(run):
        pass
    (run / "coarse").unlink()
    (run / "exports").symlink_to(outside)
    with RunFolder.open(run) as folder, pytest.raises(UsageError, match="outside of the run folder"):
        folder.make("exports/avatar.ply", {}, [], lambda path: path.write_bytes(b"x") and None)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / "run.partial.json").symlink_to(precious)
    with RunFolder.open(run) as folder:
        folder.remember({})
    assert precious.read_text() == "mine" and [entry.name for entry in outside.iterdir()] == ["coarse"]
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(UsageError, match="is a link"), RunFolder.open(run):
        pass
    assert not (tmp_path / "made").exists()


def test_what_is_inside() -> None:
    here = Path(__file__).parent
    for name in ("photo.jpg", "exports/walk.mp4", "exports/a:b \\ c.mp4", "restored", "exports/żółw.mp4"):
        assert is_inside(here, name), name


@pytest.mark.parametrize(
    "name", [name for name in ELSEWHERE if name] + [3, None, ["avatar.safetensors"], "other.safetensors"]
)
def test_an_avatar_names_no_other_file(name: object, tmp_path: Path) -> None:
    fuzz_files.make_avatar(tmp_path)
    shutil.copy(tmp_path / "avatar.safetensors", tmp_path / "other.safetensors")
    path = tmp_path / "avatar.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "tensors": name}))
    with pytest.raises(InputRejected, match="another file"):
        read_avatar(tmp_path)


# ---- files that are slow, or that wait


def test_pipes_in_a_folder_of_frames_are_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes by name")
    os.mkfifo(tmp_path / "0.json")
    with pytest.raises(InputRejected, match="no plain file"):
        files.read(tmp_path)
    (tmp_path / "0.json").unlink()
    (tmp_path / "0.json").mkdir()
    with pytest.raises(InputRejected, match="0.json"):
        files.read(tmp_path)


def test_a_hierarchy_on_one_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bvh"
    path.write_text(
        "HIERARCHY\nROOT a\n{\n" + "OFFSET 0 0 0 " * 250_000 + "\n}\nMOTION\nFrames: 1\nFrame Time: 0.1\n0\n"
    )
    with pytest.raises(InputRejected, match="characters in the hierarchy"):
        bvh.read(path)


def test_damage_that_pillow_and_zip_name_in_their_own_ways(tmp_path: Path) -> None:
    fuzz_files.make_run(tmp_path)
    (tmp_path / "run/observation/keypoints.npz").write_bytes(b"PK\5\6" + bytes(18))
    with pytest.raises(InputRejected, match="keypoints.npz: missing or damaged"):
        load_observation(tmp_path / "run/observation")
    cameras = tmp_path / "run/restored/views/cameras.json"
    cameras.write_text("[" * 100_000)
    with pytest.raises(InputRejected, match="missing or damaged"):
        load_views(cameras.parent)


# ---- pages


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))


def report_with(name: str) -> str:
    row = (name, name, name)
    return report.page_of(report.Report(name, b"\xff\xd8", b"\x89PNG", b"f", [row], {name: 0.5}, [(name, name)],
                                        [(name, 1, name)],
                                        [(name, name)], [(name, name)], name))  # fmt: skip


def gallery_with(name: str) -> str:
    states = ("done", "rejected", "failed", "waiting")
    cards = [gallery.Card(name, name, name, b"\xff\xd8", state, 1.0, [name], [name], name) for state in states]
    return gallery.page_of(name, cards, name)


@pytest.mark.parametrize("make", [report_with, gallery_with, lambda name: html.viewer_page(GLB, name).decode()])
@pytest.mark.parametrize("name", EVIL)
def test_names_are_text_on_every_page(make, name: str) -> None:
    """The same elements with the same attributes as for a harmless name."""
    assert Page(make(name)).tags == Page(make("Ada")).tags


def test_a_report_of_a_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    page = report.Report(name, b"\xff\xd8", b"\x89PNG", None, [], {}, [], [(name, 1, "")], [], [], "")
    report.write_report(tmp_path / "r.html", page)
    assert "?.jpg" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_photo_of_a_name_that_is_no_text(tmp_path: Path) -> None:
    photo = tmp_path / os.fsdecode(b"\xff.jpg")
    try:
        photo.write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes text alone")
    with RunFolder.create(tmp_path / "run", photo) as run:
        run.make("x.txt", {}, [], lambda path: path.write_text("x") and None)
    with RunFolder.open(tmp_path / "run") as run:
        assert run.state["photo_name"] == photo.name


# ---- the server


def test_the_server_refuses_everything_but_its_page() -> None:
    with serve(b"<p>page") as address:
        host, port = address.removeprefix("http://").rstrip("/").split(":")

        def status(path: str, method: str = "GET", name: str = f"{host}:{port}") -> int:
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", name)
            connection.endheaders()
            answer = connection.getresponse()
            assert b"page" not in answer.read() or answer.status == 200
            connection.close()
            return answer.status

        assert status("/") == 200
        for path in (
            "/%2e%2e/%2e%2e/etc/passwd",
            "/..%2f..%2fetc/passwd",
            "/..\\..\\x",
            "//etc/passwd",
            "/%00",
            "/index.html",
            "/./",
        ):
            assert status(path) in (400, 404), path
        assert status("/" + "a" * 70_000) == 414
        assert status("/", "POST") == status("/", "CONNECT") == 501
        for name in ("evil.example", f"evil.example:{port}", f"127.0.0.1:{port}@evil.example", f"[::1]:{port}", ""):
            assert status("/", name=name) == 403, name
        if shutil.which("hostname"):  # an address of this machine that others can reach finds nobody
            for other in subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()[:2]:
                with pytest.raises(OSError):
                    socket.create_connection((other, int(port)), timeout=2)


# ---- two processes


def test_of_two_processes_one_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    fuzz_files.make_run(tmp_path)
    hold = "import sys, time\nfrom pathlib import Path\nfrom hdx_cli.run_folder import RunFolder\n" \
           "with RunFolder.open(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)"  # fmt: skip
    holder = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "in\n"
        second = subprocess.run(
            [sys.executable, "-c", hold, tmp_path / "run"], capture_output=True, text=True, timeout=60
        )
        assert second.returncode and "another hdx is working in this folder" in second.stderr.splitlines()[-1]
        with pytest.raises(ResourceError, match="another hdx"), RunFolder.open(tmp_path / "run"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / "run/.lock").exists()
    with RunFolder.open(tmp_path / "run") as run:
        assert run.require("refined", "hdx refine").is_dir()


def test_a_photo_with_values_that_are_none(tmp_path: Path) -> None:
    from PIL import Image

    from hdx_cli.images import load_photo

    pixels = np.full((80, 80), 0.5, np.float32)
    pixels[3, 4], pixels[5, 6] = np.nan, np.inf
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    rgb = load_photo(tmp_path / "a.tiff").rgb
    assert np.isfinite(rgb).all() and rgb[3, 4, 0] == 0 and rgb[5, 6, 0] == 1
    assert issubclass(InputRejected, HdxError)


def test_what_takes_more_than_a_gigabyte_to_decode_is_refused_from_the_header(tmp_path: Path) -> None:
    from PIL import Image

    from hdx_cli.images import load_photo

    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(InputRejected, match="9000 x 9000 px is too large") as caught:
        load_photo(tmp_path / "a.png")
    assert caught.value.code == "E_TOO_LARGE"
