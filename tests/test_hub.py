"""Weights from the Hub, by the real client from a server on the loopback, and weights brought along."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub, commit_of, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from hdx_cli import hub, weights, weights_store
from hdx_cli.errors import HdxError, ResourceError, UsageError, WeightsError

REPO = "somebody/people-xt"


def network(seed: int, count: int = 500) -> bytes:
    return save({"w": np.random.default_rng(seed).normal(size=count).astype(np.float32)})


def pipeline(seed: int = 0) -> dict[str, bytes]:
    """A pipeline in diffusers' layout, with pickles and other things beside it as real repositories have."""
    index = {"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"], "scheduler": ["diffusers", "E"],
             "safety": [None, None]}  # fmt: skip
    return {
        "model_index.json": json.dumps(index).encode(),
        "README.md": b"# people\n",
        "LICENSE": b"terms",
        ".gitattributes": b"*.bin lfs",
        "logo.png": b"\x89PNG",
        "unet/config.json": b'{"layers": 2}',
        "unet/diffusion_pytorch_model.safetensors": network(seed),
        "unet/diffusion_pytorch_model.bin": b"cos\nsystem\n" * 200,
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": network(seed + 1),
        "scheduler/scheduler_config.json": b"{}",
    }


KEPT = {"model_index.json", "README.md", "LICENSE", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"}  # fmt: skip
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def server(monkeypatch):
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = Hub()
    served.publish(REPO, pipeline())
    with serving(served):
        yield served


def pull(server: Hub, cache: Path, text: str = f"{REPO}@main", include: tuple[str, ...] = (), offline: bool = False):
    return hub.pull(hub.parse(text), hub.Settings(cache, server.address, offline), include)


def told(code: str, server: Hub, cache: Path, text: str = f"{REPO}@main", kind=WeightsError, **how) -> HdxError:
    """The error of a pull, which must be one line with a hint and leave nothing that passes for weights."""
    with pytest.raises(kind) as found:
        pull(server, cache, text, **how)
    error = found.value
    assert (error.code, "\n" in error.message, bool(error.hint)) == (code, False, True), error.message
    return error


def test_a_pull_holds_exactly_the_bytes_that_are_served(server, tmp_path) -> None:
    done = pull(server, tmp_path)
    files = pipeline()
    here = {p.relative_to(done.stored.folder).as_posix(): p for p in done.stored.folder.rglob("*") if p.is_file()}
    assert set(here) == KEPT == set(done.downloaded)  # no pickle, no picture
    for name, path in here.items():
        assert path.read_bytes() == files[name]
        # the lock against hashes made here
        assert done.stored.files[name] == weights_store.Kept(len(files[name]), hashlib.sha256(files[name]).hexdigest())
    assert done.stored.commit == commit_of(files)
    assert weights_store.read_lock(done.stored.lock) == done.stored
    assert np.array_equal(load_file(here[UNET])["w"], np.random.default_rng(0).normal(size=500).astype(np.float32))
    assert weights_store.require(tmp_path, REPO) == done.stored.folder
    assert not [line for line in server.log if ".bin" in line or "logo" in line]
    assert not list(done.stored.folder.parent.glob("*.partial"))


def test_the_sizes_are_told_before_anything_is_downloaded(server, tmp_path) -> None:
    seen = []

    def announce(listing: hub.Listing, missing: int) -> None:
        assert not [line for line in server.log if "/resolve/" in line]
        seen.append((listing.bytes, missing, listing.pickles))

    reference = hub.parse(REPO)
    hub.pull(reference, hub.Settings(tmp_path, server.address), announce=announce)
    size = sum(len(content) for name, content in pipeline().items() if name in KEPT)
    assert seen == [(size, size, ("unet/diffusion_pytorch_model.bin",))]


def test_a_pinned_pull_that_is_here_asks_nobody(server, tmp_path) -> None:
    first = pull(server, tmp_path)
    server.log.clear()
    again = pull(server, tmp_path, first.stored.pinned)
    assert again.downloaded == () and again.stored == first.stored and server.log == []
    moving = pull(server, tmp_path)  # a branch has to be looked up
    assert moving.downloaded == () and server.log
    assert not [line for line in server.log if "/resolve/" in line]


def test_a_branch_that_moves_is_another_commit(server, tmp_path) -> None:
    first = pull(server, tmp_path).stored
    server.publish(REPO, pipeline(7))
    second = pull(server, tmp_path).stored
    assert first.commit != second.commit and first.folder != second.folder
    assert not weights_store.problems(first) and not weights_store.problems(second)
    assert {one.commit for one in weights_store.find(tmp_path, REPO)} == {first.commit, second.commit}
    assert weights_store.require(tmp_path, first.pinned) == first.folder


def test_offline_takes_what_is_here_and_nothing_else(server, tmp_path) -> None:
    told("E_WEIGHTS_OFFLINE", server, tmp_path, offline=True)
    first = pull(server, tmp_path)
    server.log.clear()
    for text in (f"{REPO}@main", first.stored.pinned):
        assert pull(server, tmp_path, text, offline=True).stored == first.stored
    told("E_WEIGHTS_OFFLINE", server, tmp_path, f"{REPO}@v2", offline=True)
    assert server.log == []
    (first.stored.folder / UNET).write_bytes(network(5))
    told("E_WEIGHTS_TAMPERED", server, tmp_path, offline=True)


def test_only_a_part_and_the_rest_later(server, tmp_path) -> None:
    part = pull(server, tmp_path, include=("unet/*",))
    assert set(part.stored.files) == {"unet/config.json", UNET}
    assert part.stored.include == ("unet/*",)
    whole = pull(server, tmp_path)
    assert set(whole.downloaded) == KEPT - set(part.stored.files)
    assert set(whole.stored.files) == KEPT and whole.stored.include == ()
    assert pull(server, tmp_path, include=("vae/*",)).stored.include == ()
    told("E_USAGE", server, tmp_path, include=("nothing/*",), kind=UsageError)


@pytest.mark.parametrize("position", [0, 9, -1])
def test_a_flipped_byte_of_a_large_file_is_told(server, tmp_path, position) -> None:
    wrong = bytearray(pipeline()[UNET])
    wrong[position] ^= 1
    server.delivered[UNET] = bytes(wrong)
    error = told("E_WEIGHTS_TAMPERED", server, tmp_path)
    assert "sha256" in error.message and UNET in error.message
    assert weights_store.locks(tmp_path) == []
    del server.delivered[UNET]
    assert not weights_store.problems(pull(server, tmp_path).stored)


def test_a_changed_small_file_is_told(server, tmp_path) -> None:
    server.delivered["unet/config.json"] = b'{"layers": 3}'
    assert "sha1" in told("E_WEIGHTS_TAMPERED", server, tmp_path).message


def test_a_server_that_changes_a_commit_is_told(server, tmp_path) -> None:
    """Everything the server says agrees with itself, and only the lock knows better."""
    first = pull(server, tmp_path).stored
    (first.folder / UNET).unlink()
    for files in (server.repos[REPO]["main"], server.repos[REPO][first.commit]):
        files[UNET] = network(99)
    commit = first.commit
    import hub_server

    real = hub_server.commit_of
    try:
        hub_server.commit_of = lambda files: commit
        error = told("E_WEIGHTS_TAMPERED", server, tmp_path, first.pinned)
    finally:
        hub_server.commit_of = real
    assert "lock" in error.message
    assert not (first.folder / UNET).exists()


def test_what_is_damaged_on_the_disk_is_seen_and_mended(server, tmp_path) -> None:
    stored = pull(server, tmp_path).stored
    path = stored.folder / UNET
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (stored.folder / "LICENSE").unlink()
    (stored.folder / "unet" / "model.bin").write_bytes(b"planted")
    assert dict(weights_store.problems(stored)) == {
        UNET: "holds other bytes (sha256 differs)",
        "LICENSE": "is missing",
        "unet/model.bin": "is not in the lock",
    }
    assert weights_store.state_of(stored) == "incomplete"
    with pytest.raises(WeightsError) as found:
        weights_store.require(tmp_path, REPO)
    assert found.value.exit_code == 5 and found.value.hint == f"hdx weights pull {stored.pinned} --cache-dir {tmp_path}"
    assert set(pull(server, tmp_path, stored.pinned).downloaded) == {UNET, "LICENSE"}
    assert weights_store.find(tmp_path, f"{REPO}@main")[0].commit == stored.commit  # still known by that name
    assert weights_store.problems(stored) == [("unet/model.bin", "is not in the lock")]
    with pytest.raises(WeightsError, match="not in the lock") as found:
        weights_store.require(tmp_path, REPO)
    assert found.value.hint.startswith("rm ")


def test_a_pull_that_was_cut_off_goes_on(server, tmp_path) -> None:
    server.delivered["vae/diffusion_pytorch_model.safetensors"] = b"x" * len(network(1))
    told("E_WEIGHTS_TAMPERED", server, tmp_path)
    assert weights_store.locks(tmp_path) == []
    server.delivered.clear()
    server.log.clear()
    assert set(pull(server, tmp_path).stored.files) == KEPT
    fetched = [line for line in server.log if line.startswith("GET") and "/resolve/" in line]
    assert len(fetched) == 1 and "vae/" in fetched[0]


def test_a_pull_that_was_killed_while_it_moved_files_goes_on(server, tmp_path) -> None:
    stored = pull(server, tmp_path).stored
    stored.folder.rename(stored.folder.with_name(f"{stored.folder.name}.partial"))
    assert weights_store.state_of(stored) == "incomplete"
    server.log.clear()
    assert pull(server, tmp_path, stored.pinned).stored.files == stored.files and not weights_store.problems(stored)
    assert not [line for line in server.log if line.startswith("GET") and line.endswith(".safetensors")]


@pytest.mark.parametrize("status", [401, 403])
def test_gated(server, tmp_path, status) -> None:
    server.gated[REPO] = status
    error = told("E_WEIGHTS_GATED", server, tmp_path)
    assert f"https://huggingface.co/{REPO}" in error.message and "hf auth login" in error.hint
    assert "--mirror" not in error.hint  # which gets no token


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nobody/nothing", "E_WEIGHTS_REPO"),
        (f"{REPO}@v9", "E_WEIGHTS_REVISION"),
        (f"{REPO}@0123abc", "E_WEIGHTS_REVISION"),
        (f"{REPO}@{'0' * 40}", "E_WEIGHTS_REVISION"),
    ],
)
def test_what_does_not_exist(server, tmp_path, text, code) -> None:
    told(code, server, tmp_path, text)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "E_WEIGHTS_REPO"),
        (403, "E_WEIGHTS_AUTH"),
        (404, "E_WEIGHTS_MIRROR"),
        (407, "E_WEIGHTS_PROXY"),
        (429, "E_WEIGHTS_SERVER"),
        (503, "E_WEIGHTS_SERVER"),
    ],
)
def test_servers_that_refuse(server, tmp_path, status, code) -> None:
    server.status = status
    told(code, server, tmp_path)


@pytest.mark.parametrize(
    "answer", [b"<html>log in</html>", b"[]", b"{}", b'{"id": "a/b", "sha": "../../x"}', b"[" * 99999]
)
def test_servers_that_are_no_hub(server, tmp_path, answer) -> None:
    server.plain_answer = answer
    told("E_WEIGHTS_MIRROR", server, tmp_path)


def test_no_network(server, tmp_path) -> None:
    settings = hub.Settings(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(WeightsError) as found:
        hub.pull(hub.parse(REPO), settings)
    assert found.value.code == "E_WEIGHTS_NETWORK" and "127.0.0.1:1" in found.value.message


def test_a_dead_proxy_is_named_without_its_password(server, tmp_path, monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    huggingface_hub.close_session()  # the client reads the proxy when its session begins
    try:
        error = told("E_WEIGHTS_PROXY", server, tmp_path)
    finally:
        huggingface_hub.close_session()
    assert "127.0.0.1:1" in error.message and "secret" not in error.message + error.hint


def test_a_shortened_download_is_told(server, tmp_path) -> None:
    server.delivered[UNET] = pipeline()[UNET][:-10]
    error = told("E_WEIGHTS_TRUNCATED", server, tmp_path)
    assert "cut off" in error.message and weights_store.locks(tmp_path) == []


def test_a_connection_that_breaks_again_and_again_is_told(server, tmp_path, monkeypatch) -> None:
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between the client's own attempts
    server.hang_up_after = 0
    told("E_WEIGHTS_TRUNCATED", server, tmp_path)
    assert [line for line in server.log if line.startswith("GET") and "/resolve/" in line]


def test_a_full_disk_is_told_before_and_during_the_download(server, tmp_path) -> None:
    server.listed[UNET] = 10**17
    error = told("E_DISK", server, tmp_path, kind=ResourceError)
    assert "100000.0 TB" in error.message and error.exit_code == 6
    assert not [line for line in server.log if "/resolve/" in line]
    server.listed.clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # the system's own refusal to write on
    try:
        told("E_DISK", server, tmp_path, kind=ResourceError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert weights_store.locks(tmp_path) == []
    assert set(pull(server, tmp_path).stored.files) == KEPT


def test_a_cache_that_is_a_file(server, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    told("E_DISK", server, tmp_path / "file", kind=ResourceError)


def test_two_pulls_at_once(server, tmp_path) -> None:
    from hdx_cli.run_folder import locked

    home = weights_store.place(tmp_path, REPO, None)[0].parent
    home.mkdir(parents=True)
    with locked(home):
        told("E_LOCKED", server, tmp_path, kind=ResourceError)


@pytest.mark.parametrize(
    "name", ["../x.json", "/etc/x.json", "a/../../x.json", "..\\x.json", "C:\\x.json", "a//x.json", "a/./x.json",
             "con\n.json", "~/x.json", "x" * 300 + ".json", "a/..", "\u202ex.json", "a /x.json", "../../x.png"],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(server, tmp_path, name) -> None:
    server.publish(REPO, {**pipeline(), name: b"{}"})
    with pytest.raises(WeightsError) as found:
        pull(server, tmp_path / "cache")
    assert found.value.code == "E_WEIGHTS_PATH" and found.value.message.isprintable()
    assert list(tmp_path.iterdir()) == []


def test_pickles_alone_are_refused_and_named(server, tmp_path) -> None:
    files = pipeline()
    del files[UNET]
    server.publish(REPO, files)
    error = told("E_WEIGHTS_PICKLE", server, tmp_path)
    assert "unet/diffusion_pytorch_model.bin" in error.message
    assert not [line for line in server.log if "/resolve/" in line]
    server.publish(REPO, {"README.md": b"x"})
    with pytest.raises(WeightsError, match="no .safetensors"):
        pull(server, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04\x95" + b"x" * 2000, b"\xff" * 2000, network(0)[:-4], network(0) + b"more"]
)
def test_a_safetensors_file_that_is_none(server, tmp_path, content) -> None:
    server.publish(REPO, {**pipeline(), UNET: content})
    with pytest.raises(WeightsError) as found:
        pull(server, tmp_path)
    assert found.value.code == "E_WEIGHTS_FORMAT" and weights_store.locks(tmp_path) == []
    assert not list(tmp_path.rglob("*.partial"))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=40) | st.sampled_from([b'{"a":1}', b'{"a":{"data_offsets":[0,1e999]}}', b"[" * 5000, b'"a"']))
def test_any_header_of_safetensors_is_right_or_refused(tmp_path, header) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    try:
        weights_store.check_safetensors(path)
    except WeightsError as error:
        assert error.code == "E_WEIGHTS_FORMAT" and "\n" not in error.message
        with pytest.raises(SafetensorError):  # nothing is refused that the library takes
            load(path.read_bytes())


def test_a_pipeline_that_lacks_a_part(server, tmp_path) -> None:
    files = pipeline()
    del files["vae/diffusion_pytorch_model.safetensors"]
    server.publish(REPO, files)
    with pytest.raises(WeightsError, match="vae"):
        pull(server, tmp_path)
    split = {"weight_map": {"w": "part-1-of-2.safetensors", "v": "part-2-of-2.safetensors"}}
    files = {"model.safetensors.index.json": json.dumps(split).encode(), "part-1-of-2.safetensors": network(0)}
    server.publish(REPO, files)
    with pytest.raises(WeightsError, match="part-2-of-2"):
        pull(server, tmp_path)
    server.publish(REPO, files | {"part-2-of-2.safetensors": network(1)})
    assert len(pull(server, tmp_path).stored.files) == 3
    half = {"model.safetensors.index.fp16.json": files["model.safetensors.index.json"], "other.safetensors": network(0)}
    server.publish(REPO, half)
    with pytest.raises(WeightsError, match="part-1-of-2"):
        pull(server, tmp_path)


def test_a_token_goes_to_the_hub_and_to_no_mirror(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_toytoken")
    pull(server, tmp_path / "a")
    assert server.tokens == []
    monkeypatch.setenv("HF_ENDPOINT", server.address)  # one's own choice for all of the Hub's tools
    hub.pull(hub.parse(REPO), hub.Settings(tmp_path / "b"))
    assert server.tokens and set(server.tokens) == {"Bearer hf_toytoken"}


def test_the_client_is_imported_with_the_settings(server, tmp_path) -> None:
    code = (
        "import os; from pathlib import Path; from hdx_cli import hub; import sys\n"
        "assert not [name for name in sys.modules if name.startswith('huggingface_hub')]\n"
        f"hub.pull(hub.parse({REPO!r}), hub.Settings(Path({str(tmp_path)!r}), {server.address!r}))\n"
        "from huggingface_hub import constants as c; print(c.ENDPOINT, c.HF_HOME, c.HF_TOKEN_PATH)\n"
        "print(os.environ.get('HF_ENDPOINT'), os.environ['HF_HOME'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HF_HOME": "/their/place"}
    )
    assert done.stdout.split() == [server.address, str(tmp_path), "/their/place/token", "None", "/their/place"], (
        done.stderr
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    "text", ["", "x", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "a/b@x y", "a--b/c", "a/b.git", "https://h/a"]
)
def test_what_is_no_reference(text) -> None:
    with pytest.raises(UsageError):
        hub.parse(text)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"[\w.-]{1,9}/[\w.-]{1,9}(@[\w./-]{0,9})?", fullmatch=True))
def test_any_text_is_a_reference_or_a_usage_error(text) -> None:
    try:
        reference = hub.parse(text)
    except UsageError as error:
        assert "\n" not in error.message
    else:
        folder, lock = weights_store.place(Path("/c"), reference.repo, None)
        assert folder.parts[:3] == ("/", "c", "hdx") and len(folder.parts) == 5 and ".." not in folder.parts
        assert str(reference).startswith(reference.repo + "@")


@pytest.mark.parametrize("mirror", ["ftp://host", "host", "", "http://", "http://[", "file:///etc"])
def test_what_is_no_mirror(tmp_path, mirror) -> None:
    if mirror == "":
        return
    with pytest.raises(UsageError):
        hub.Settings(tmp_path, mirror)


# --- folders brought along ---


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "brought"
    for name, content in pipeline().items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    return home


def test_a_folder_is_copied_and_locked(folder, tmp_path) -> None:
    stored, pickles = weights_store.import_folder(folder, "mine", tmp_path / "cache")
    assert set(stored.files) == KEPT and pickles == ["unet/diffusion_pytorch_model.bin"]
    assert {name: (stored.folder / name).read_bytes() for name in KEPT} == {name: pipeline()[name] for name in KEPT}
    assert weights_store.find(tmp_path / "cache", "mine") == [stored] and stored.pinned == "mine"
    assert weights_store.import_folder(folder, "mine", tmp_path / "cache")[0] == stored
    (stored.folder / UNET).write_bytes(b"")
    assert weights_store.problems(stored)
    weights_store.import_folder(folder, "mine", tmp_path / "cache")  # mends it
    assert not weights_store.problems(stored)
    (folder / "README.md").write_text("other")
    with pytest.raises(UsageError, match="other weights of that name"):
        weights_store.import_folder(folder, "mine", tmp_path / "cache")


def test_a_pull_goes_to_another_machine(server, tmp_path) -> None:
    first = pull(server, tmp_path / "one").stored
    second, _ = weights_store.import_folder(first.folder, REPO, tmp_path / "two")
    assert second.files == first.files and second.pinned == first.pinned
    server.log.clear()
    assert pull(server, tmp_path / "two", first.pinned).downloaded == () and server.log == []
    (first.folder / UNET).write_bytes(network(3))
    with pytest.raises(WeightsError, match="sha256"):
        weights_store.import_folder(first.folder, REPO, tmp_path / "three")
    assert weights_store.locks(tmp_path / "three") == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "/x", "a--b", "bundled", "x\n", "." * 3, "x" * 200])
def test_names_that_cannot_be_given(folder, tmp_path, name) -> None:
    with pytest.raises(UsageError):
        weights_store.import_folder(folder, name, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_folders_that_are_no_weights(folder, tmp_path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        weights_store.import_folder(tmp_path / "none", "x", tmp_path / "cache")
    (folder / UNET).unlink()
    with pytest.raises(WeightsError, match="pickle"):
        weights_store.import_folder(folder, "x", tmp_path / "cache")
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match="unet"):
        weights_store.import_folder(folder, "x", tmp_path / "cache")
    (folder / UNET).symlink_to("/dev/zero")  # no file: a link that never ends
    with pytest.raises(WeightsError, match="unet"):
        weights_store.import_folder(folder, "x", tmp_path / "cache")
    assert weights_store.locks(tmp_path / "cache") == []


# --- locks, and what is bundled ---


def test_bundled_weights_are_those_of_the_package(tmp_path) -> None:
    (tmp_path / "net.safetensors").write_bytes(network(0))
    weights.write_lock(tmp_path, tmp_path / "weights.json")
    stored = weights_store.bundled(tmp_path / "weights.json")
    assert stored.bytes == len(network(0)) and not weights_store.problems(stored)
    assert weights_store.state_of(stored) == "complete"
    (tmp_path / "net.safetensors").unlink()
    gone = weights_store.bundled(tmp_path / "weights.json")
    assert weights_store.problems(gone) == [("net.safetensors", "is missing")]
    assert weights_store.state_of(gone) == "incomplete"
    assert {"humanfixer/humanfixer.safetensors"} <= set(weights_store.find(tmp_path, "bundled")[0].files)


def test_a_damaged_lock_is_told(server, tmp_path) -> None:
    stored = pull(server, tmp_path).stored
    stored.lock.write_text("{")
    for look in (lambda: weights_store.find(tmp_path, REPO), lambda: pull(server, tmp_path)):
        with pytest.raises(WeightsError) as found:
            look()
        assert found.value.code == "E_WEIGHTS_LOCK" and str(stored.lock) in found.value.message


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "/x", "a" * 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
GOOD_LOCK = {"format": 1, "name": "a/b", "revision": "main", "commit": "0" * 40, "include": [],
             "files": {"x.json": {"size": 1, "sha256": "a" * 64}}}  # fmt: skip


@settings(suppress_health_check=list(HealthCheck), max_examples=60, deadline=None)
@given(key=st.sampled_from(sorted(GOOD_LOCK)), value=values, inner=st.booleans())
def test_any_lock_is_read_or_refused(tmp_path, key, value, inner) -> None:
    facts = json.loads(json.dumps(GOOD_LOCK))
    if inner:
        facts["files"]["x.json"] = value
    else:
        facts[key] = value
    lock = tmp_path / f"{'0' * 40}.json"
    lock.write_text(json.dumps(facts))
    try:
        stored = weights_store.read_lock(lock)
    except WeightsError as error:
        assert error.code == "E_WEIGHTS_LOCK" and "\n" not in error.message
    else:
        assert all(weights_store.is_safe(path) and kept.size >= 0 for path, kept in stored.files.items())
        assert stored.name.count("/") == (stored.commit is not None)


def test_locks_too_deep_or_too_long(tmp_path) -> None:
    lock = tmp_path / f"{'0' * 40}.json"
    for content in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"null"):
        lock.write_bytes(content)
        with pytest.raises(WeightsError, match="damaged lock"):
            weights_store.read_lock(lock)
    with lock.open("wb") as file:
        file.truncate(10**12)  # a hole; reading it would take all memory
    with pytest.raises(WeightsError, match="longer"):
        weights_store.read_lock(lock)


# --- the commands ---


@pytest.fixture
def command(tmp_path):
    """Run a command on a cache of its own; gives the exit code and the JSON on stdout."""
    import typer
    from typer.testing import CliRunner

    from hdx_cli.cli import weighing

    app = typer.Typer()
    app.add_typer(weighing.weights, name="weights")
    app.command()(weighing.licenses)

    def run(*arguments: object) -> tuple[int, dict]:
        cache = () if arguments[0] == "licenses" else ("--cache-dir", tmp_path / "cache")
        done = CliRunner().invoke(app, [str(word) for word in (*arguments, *cache, "--json")])
        return done.exit_code, json.loads(done.stdout)

    return run


def test_the_commands_from_pull_to_verify(server, command, folder, tmp_path) -> None:
    pinned = f"{REPO}@{commit_of(pipeline())}"
    code, shown = command("weights", "pull", REPO, "--mirror", server.address, "--dry-run")
    assert (code, set(shown["files"]), shown["refused"]) == (0, KEPT, ["unet/diffusion_pytorch_model.bin"])
    assert not (tmp_path / "cache").exists()
    code, pulled = command("weights", "pull", REPO, "--mirror", server.address)
    assert code == 0 and pulled["pinned"] == pinned and set(pulled["downloaded"]) == KEPT
    code, again = command("weights", "pull", pinned, "--offline")
    assert code == 0 and again["downloaded"] == []
    code, brought = command("weights", "import", folder, "mine")
    assert code == 0 and brought["warnings"][0]["code"] == "W_PICKLE"
    code, listed = command("weights", "list")
    assert [one["pinned"] for one in listed["weights"]] == ["bundled", "mine", pinned]
    assert {one["state"] for one in listed["weights"][1:]} == {"complete"}
    code, found = command("weights", "where", REPO)
    assert code == 0 and Path(found["folder"]) == Path(pulled["folder"])
    assert command("weights", "verify", "mine", REPO)[1]["ok"] is True
    (Path(pulled["folder"]) / UNET).write_bytes(network(44))
    code, verified = command("weights", "verify", "mine", REPO)
    assert code == 5 and [one["ok"] for one in verified["weights"]] == [True, False]
    assert verified["weights"][1]["problems"] == [[UNET, "holds other bytes (sha256 differs)"]]
    assert command("weights", "where", "nothing")[1]["error"]["code"] == "E_WEIGHTS_NOT_HERE"


def test_the_command_for_licences(command, tmp_path) -> None:
    record = {"observation": {"config": {}}, "body.npz": {"config": {}}}
    (tmp_path / "run.json").write_text(json.dumps({"hdx": "0.1.0", "photo": "photo.png", "products": record}))
    code, facts = command("licenses", tmp_path)
    assert code == 0 and facts["commercial_use"] is True
    assert {"Anny", "mediapipe"} <= {part["name"] for part in facts["parts"]}
    code, facts = command("licenses", tmp_path / "none")
    assert code == 3 and facts["error"]["code"] == "E_NO_RUN"
