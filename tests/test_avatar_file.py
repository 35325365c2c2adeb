"""The avatar file: lossless, verified, versioned, and readable with NumPy alone by what FORMAT.md prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import hdx_cli.export
from hdx_cli.avatars import avatar_file
from hdx_cli.avatars.avatar_file import read_avatar, read_description, write_avatar
from hdx_cli.avatars.base import rotation_matrices
from hdx_cli.bodies.base import BodyPose
from hdx_cli.errors import InputRejected

FORMAT = Path(hdx_cli.export.__file__).parent / "FORMAT.md"


def test_reading_gives_back_what_was_written(tmp_path: Path, toy_avatar) -> None:
    path = write_avatar(tmp_path, toy_avatar)
    assert path == tmp_path / "avatar.safetensors"
    for place in (tmp_path, path):
        back = read_avatar(place)
        for name in ("means", "quats", "scales", "opacities", "sh"):
            assert torch.equal(getattr(back.canonical, name), getattr(toy_avatar.canonical, name)), name
        for name in ("joint_indices", "joint_weights", "visibility", "parts", "parents"):
            np.testing.assert_array_equal(getattr(back, name), getattr(toy_avatar, name))
        assert back.joint_names == toy_avatar.joint_names and back.scores == toy_avatar.scores
        assert back.body.model == "toy"
    posed, original = back.gaussians(), toy_avatar.gaussians()
    torch.testing.assert_close(posed.means, original.means, atol=1e-6, rtol=0)  # the rig is stored as float32, metres


def test_the_same_avatar_gives_the_same_bytes(tmp_path: Path, toy_avatar) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_avatar(tmp_path / name, toy_avatar)
    for file in ("avatar.safetensors", "avatar.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_reader_in_the_documentation(tmp_path: Path, toy_avatar) -> None:
    write_avatar(tmp_path, toy_avatar)
    source = re.search(r"run by the tests -->\n```python\n(.*?)```", FORMAT.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert len(source.splitlines()) <= 100
    assert set(re.findall(r"^import (.*)|^from (\S+)", source, re.MULTILINE)) == {
        ("hashlib, json, struct", ""), ("numpy as np", "")
    }  # fmt: skip
    reader: dict = {}
    exec(source, reader)  # the documentation's own code is what is tested
    arrays, description = reader["read_avatar"](tmp_path)
    rng = np.random.default_rng(0)
    angle = rng.normal(size=len(description["joints"]))
    rotations = np.stack([[[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]] for a in angle])
    translation = rng.normal(size=3)
    means, covariances = reader["pose"](arrays, description, rotations, translation)
    ours = read_avatar(tmp_path).gaussians(BodyPose(rotations[None], translation[None]))
    np.testing.assert_allclose(means, ours.means.numpy(), atol=2e-6)  # float32 means of about a metre
    root = (rotation_matrices(ours.quats) * ours.scales[:, None]).double().numpy()
    expected = root @ root.transpose(0, 2, 1)
    # two float32 factorisations of one covariance, compared with the largest of its entries
    assert np.abs(covariances - expected).max() < 1e-5 * np.abs(expected).max()


def test_description_says_everything(tmp_path: Path, toy_avatar) -> None:
    write_avatar(tmp_path, toy_avatar)
    description = read_description(tmp_path)
    fields = re.findall(r"`(\w+)`", FORMAT.read_text(encoding="utf-8").split("`avatar.json`: ")[1].split("\n\n")[0])
    assert set(fields) - {"model", "shape"} == set(description)
    assert description["joints"] == ["root", "head"] and description["parents"] == [-1, 0]
    tensors = set(re.findall(r"^\| `(\w+)`", FORMAT.read_text(encoding="utf-8"), re.MULTILINE))
    from safetensors import safe_open

    with safe_open(tmp_path / "avatar.safetensors", "np") as file:
        assert set(file.keys()) == tensors


@pytest.mark.parametrize("version", ["2.0", "10.3"])
def test_a_newer_major_version_is_refused_and_a_newer_minor_one_read(tmp_path: Path, toy_avatar, version: str) -> None:
    write_avatar(tmp_path, toy_avatar)
    description = json.loads((tmp_path / "avatar.json").read_text())
    (tmp_path / "avatar.json").write_text(json.dumps({**description, "version": "1.7", "extra": 1}))
    read_avatar(tmp_path)
    (tmp_path / "avatar.json").write_text(json.dumps({**description, "version": version}))
    with pytest.raises(InputRejected, match=f"{version}; this hdx reads") as caught:
        read_avatar(tmp_path)
    assert caught.value.hint == "pip install --upgrade hdx-cli"


def test_damage_is_found(tmp_path: Path, toy_avatar) -> None:
    path = write_avatar(tmp_path, toy_avatar)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputRejected, match="sha256"):
        read_avatar(tmp_path)
    path.unlink()
    with pytest.raises(InputRejected, match="no such file"):
        read_avatar(tmp_path)
    for text in ("", "[]", '{"format": "hdx-avatar"}', '{"format": "hdx-avatar", "version": 1}'):
        (tmp_path / "avatar.json").write_text(text)
        with pytest.raises(InputRejected, match="not the description"):
            read_avatar(tmp_path)
    (tmp_path / "avatar.json").unlink()
    with pytest.raises(InputRejected, match="no such file"):
        read_avatar(tmp_path)


def test_the_licences_name_the_body(tmp_path: Path) -> None:
    assert any("CC0" in text for text in avatar_file.LICENCES.values())
