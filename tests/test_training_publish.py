"""Publishing trained weights: what lies in the folder, what the card says, and a way to the Hub and back."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import Hub, serving
from PIL import Image

from hdx_cli import hub, weights_store
from hdx_cli.errors import UsageError, WeightsError
from hdx_cli.humanfixer.checkpoint import load_restorer, load_weights, save_weights
from hdx_cli.humanfixer.restorer import Config, HumanFixer
from hdx_cli.humanfixer.unet import TINY
from hdx_cli.training import publish
from hdx_cli.training.publish import Card, lay_out

SCORES = {"psnr": 12.5, "ssim": 0.8}
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What a training leaves, without the training."""
    out = tmp_path_factory.mktemp("out")
    torch.manual_seed(0)
    notes = {"step": 7, "seconds": 7200.0, "count": 5, "recipe": {"size": "tiny", "steps": 9, "held_out": 0.05}}
    save_weights(
        out / "humanfixer.safetensors", HumanFixer(Config(unet=dict(TINY), height=48)), {"training": json.dumps(notes)}
    )
    lines = [
        {"step": 1, "loss": 0.5},
        {"step": 7, "held_out": True, "coarse": SCORES, "restored": {"psnr": 13.25, "ssim": 0.7}},
    ]
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "samples").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(out / "samples" / "step-0000007.png")
    (out / "state.safetensors").write_bytes(b"not to be published")
    return out


def test_the_folder_is_imported_verified_and_restores(trained, tmp_path) -> None:
    made = lay_out(trained, tmp_path / "made", Card("My\nfixer", "mit", "200 scans of my own", "no skirts"))
    assert made == [
        "README.md",
        "config.json",
        "humanfixer.safetensors",
        "model_index.json",
        "samples.png",
        "weights.json",
    ]
    stored, pickles = weights_store.import_folder(tmp_path / "made", "mine", tmp_path / "cache")
    assert not pickles and set(stored.files) == set(made) - {"samples.png"} and not weights_store.problems(stored)
    original = load_weights(trained / "humanfixer.safetensors", None).state_dict()
    again = load_restorer(weights_store.require(tmp_path / "cache", "mine")).model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in original.items())
    lock = tmp_path / "made" / "weights.json"
    load_weights(tmp_path / "made" / "humanfixer.safetensors", lock)  # as the bundled weights are read


def test_the_card_says_what_is_known_and_no_more(trained, tmp_path) -> None:
    lay_out(trained, tmp_path / "made", Card("My\nfixer", "mit", "200 scans of my own", "no skirts"))
    card = (tmp_path / "made" / "README.md").read_text()
    front = card.split("---")[1]
    assert "license: mit" in front and "base_model" not in front
    for words in ("# My fixer", "200 scans of my own", "no skirts", "7 of 9 steps in 2.00 hours", "| size | tiny |",
                  "5 pairs", "| psnr | 12.500 | 13.250 |", "people held out", "![samples]"):  # fmt: skip
        assert words in card, words
    bare = tmp_path / "bare"
    bare.mkdir()
    save_weights(bare / "humanfixer.safetensors", HumanFixer(Config(unet=dict(TINY))), {"training": "[["})
    lay_out(bare / "humanfixer.safetensors", tmp_path / "made2")
    card = (tmp_path / "made2" / "README.md").read_text()
    for words in ("license: other", "None was stated", "Not described by the publisher",
                  "do not say how they were trained", "Nothing is known."):  # fmt: skip
        assert words in card, words
    svd = publish.model_card(Card(), {"codec": "vae"}, {}, {}, "0" * 64, False)
    assert "base_model: stabilityai" in svd and "community licence" in svd


def test_what_cannot_be_published_is_refused(trained, tmp_path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        lay_out(trained, full)
    assert (full / "x").read_text() == "mine"
    with pytest.raises(WeightsError, match="no such file"):
        lay_out(tmp_path, tmp_path / "made")
    (tmp_path / "humanfixer.safetensors").write_bytes((trained / "humanfixer.safetensors").read_bytes()[:5000])
    with pytest.raises(WeightsError):
        lay_out(tmp_path, tmp_path / "made")
    with pytest.raises(UsageError, match="--license"):
        lay_out(trained, tmp_path / "made", Card(licence="mine"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["./a/b", "/a/b", "~/a", "a", "a/b/c"])
def test_folders_are_told_from_repositories(text) -> None:
    assert isinstance(publish.destination(text), Path)


def test_repositories_are_told_from_folders() -> None:
    assert publish.destination("me/fixer") == hub.Reference("me/fixer")
    for wrong in ("me/fixer@main", "me/..", "me/a b"):
        with pytest.raises(UsageError):
            publish.destination(wrong)


@contextmanager
def taking(status: int = 200):
    """A Hub that takes commits: files come inside of the request, as the Hub has it for small ones."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.split("?")[0]
            asked.append(path)
            answer: object = {}
            if path.endswith("/create"):
                answer = {"url": f"{address}/me/fixer", "name": "me/fixer", **{"id": "me/fixer"}}
            elif "/preupload/" in path:
                names = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            elif "/commit/" in path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"commitOid": COMMIT, "commitUrl": f"{address}/me/fixer/commit/{COMMIT}"}
            self._send(answer)

        def do_GET(self) -> None:
            asked.append(self.path)
            self._send({"id": "me/fixer", "sha": COMMIT, "siblings": []})

        def _send(self, answer: object) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield address, files, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_to_the_hub_and_back(trained, tmp_path) -> None:
    """By the real client; large files go another way there (LFS or Xet), which no server here speaks."""
    lay_out(trained, tmp_path / "made")
    reference = hub.Reference("me/fixer")
    with taking() as (address, files, asked):
        commit = publish.upload(tmp_path / "made", reference, hub.Settings(tmp_path / "up", address))
    assert commit == COMMIT and asked[0].endswith("/repos/create")
    assert set(files) == {path.name for path in (tmp_path / "made").iterdir()}
    assert b"hdx weights pull me/fixer" in files["README.md"]
    with serving(Hub()) as served:
        served.publish("me/fixer", files)
        pulled = hub.pull(reference, hub.Settings(tmp_path / "down", served.address)).stored
    ours = (pulled.folder / "humanfixer.safetensors").read_bytes()
    assert ours == (trained / "humanfixer.safetensors").read_bytes()
    load_restorer(pulled.folder)


def test_a_hub_that_refuses_is_told_in_one_line(trained, tmp_path) -> None:
    lay_out(trained, tmp_path / "made")
    with taking(403) as (address, files, _), pytest.raises(WeightsError) as told:
        publish.upload(tmp_path / "made", hub.Reference("me/fixer"), hub.Settings(tmp_path / "up", address))
    assert not files and "\n" not in told.value.message and "weights publish" in told.value.hint
    with pytest.raises(WeightsError, match="offline"):
        publish.upload(tmp_path / "made", hub.Reference("me/fixer"), hub.Settings(tmp_path / "up", offline=True))


def test_the_command_writes_a_folder(trained, tmp_path) -> None:
    import typer
    from typer.testing import CliRunner

    from hdx_cli.cli.training import publish as command

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(trained), "--to", str(tmp_path / "made"), "--license", "mit", "-q"])
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "made"), result.output
    assert "license: mit" in (tmp_path / "made" / "README.md").read_text()
    again = CliRunner().invoke(app, [str(trained), "--to", str(tmp_path / "made")])
    assert again.exit_code == 2 and "not an empty folder" in again.output
