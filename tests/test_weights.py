"""Bundled weights are read only if they are what the lock says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from hdx_cli import weights
from hdx_cli.errors import WeightsError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "part").mkdir()
    save_file({"a": np.arange(3, dtype=np.float32)}, tmp_path / "part" / "net.safetensors", {"config": "{}"})
    weights.write_lock(tmp_path, tmp_path / "weights.json")
    return tmp_path


def test_what_the_lock_names_is_read(folder) -> None:
    content, header = weights.read_weights(folder / "part" / "net.safetensors", folder / "weights.json")
    assert header == {"config": "{}"}
    assert content == (folder / "part" / "net.safetensors").read_bytes()


@pytest.mark.parametrize("position", [3, 60, -1])
def test_one_changed_byte_is_told(folder, position) -> None:
    path = folder / "part" / "net.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="sha256") as told:
        weights.read_weights(path, folder / "weights.json")
    assert told.value.hint and told.value.exit_code == 5


def test_files_that_the_lock_does_not_know_are_refused(folder) -> None:
    other = folder / "part" / "other.safetensors"
    other.write_bytes((folder / "part" / "net.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="sha256"):
        weights.read_weights(other, folder / "weights.json")
    assert weights.read_weights(other, None)[1] == {"config": "{}"}


@pytest.mark.parametrize("content", [b"", b"PK", b"\xff" * 64, (8).to_bytes(8, "little") + b"[1,2,34]"])
def test_what_is_no_safetensors_file_is_told(tmp_path, content) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.read_weights(path, None)


def test_every_bundled_file_is_in_the_lock_and_right() -> None:
    named = json.loads(weights.LOCK.read_text(encoding="utf-8"))
    found = {path.relative_to(weights.PACKAGE).as_posix() for path in weights.PACKAGE.rglob("*.safetensors")}
    assert set(named) == found
    for name in named:
        weights.read_weights(weights.PACKAGE / name)
    assert sum((weights.PACKAGE / name).stat().st_size for name in named) < 30e6
