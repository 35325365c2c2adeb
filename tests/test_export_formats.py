"""The list of formats, the NumPy archive with the recipe that FORMAT.md prints, and posed .ply frames."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_export_glb import covariances, exported, some_avatar, some_motion

import hdx_cli.export
from hdx_cli.errors import UsageError
from hdx_cli.export.archive import write_archive, write_sequence
from hdx_cli.export.formats import FORMATS, format_of
from hdx_cli.export.glb import Animation
from hdx_cli.export.packed import PACKED
from hdx_cli.export.ply import read_ply

FORMAT = Path(hdx_cli.export.__file__).parent / "FORMAT.md"


def test_the_recipe_in_the_documentation_poses_as_the_avatar_does(tmp_path: Path) -> None:
    avatar = some_avatar()
    clips = (Animation("a", some_motion(3, 1), 30.0), Animation("b", some_motion(5, 2), 24.0, True))
    write_archive(tmp_path / "a.npz", exported(avatar, *clips))
    source = re.search(r"<!-- the npz recipe:.*?```python\n(.*?)```", FORMAT.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert len(source.splitlines()) == 10
    recipe: dict = {"np": np}
    exec(source, recipe)  # the documentation's own code is what is tested
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["clips"].tolist() == ["a", "b"] and arrays["joint_names"].tolist() == list(avatar.joint_names)
        assert float(arrays["fps_1"]) == 24 and bool(arrays["loops_1"]) and not bool(arrays["loops_0"])
        for index, clip in enumerate(clips):
            for frame in range(len(clip.pose.rotations)):
                expected = avatar.gaussians(clip.pose, frame)
                means, sigma = recipe["posed"](arrays, index, frame)
                # float32 matrices through four joints, metres
                np.testing.assert_allclose(means, expected.means.numpy(), atol=1e-5)
                np.testing.assert_allclose(sigma, covariances(expected), atol=1e-8)  # variances up to 1e-3 m^2
        assert arrays["opacities"].tolist() == avatar.canonical.opacities.tolist()
        np.testing.assert_array_equal(arrays["sh"], avatar.canonical.sh.numpy())


def test_an_archive_of_no_clips_and_a_clip_of_another_rig(tmp_path: Path) -> None:
    avatar = some_avatar(5)
    write_archive(tmp_path / "name", exported(avatar))
    with np.load(tmp_path / "name", allow_pickle=False) as arrays:
        assert arrays["clips"].shape == (0,) and not [name for name in arrays if name.startswith("rotations")]
        rotation = Rotation.from_quat(arrays["quats"], scalar_first=True).as_matrix()
        np.testing.assert_allclose(np.linalg.norm(arrays["quats"], axis=1), 1, atol=1e-6)
        root = rotation * arrays["scales"][:, None]
        np.testing.assert_allclose(root @ root.transpose(0, 2, 1), covariances(avatar.canonical), atol=1e-9)
    other = some_motion(2)
    other = replace(other, rotations=other.rotations[:, :4])
    with pytest.raises(UsageError, match="clip walk"):
        write_archive(tmp_path / "name", exported(avatar, Animation("walk", other, 30.0)))


def test_a_sequence_keeps_the_order_of_gaussians(tmp_path: Path) -> None:
    avatar, pose = some_avatar(20), some_motion(3)
    frames = (avatar.gaussians(pose, frame) for frame in range(3))
    assert write_sequence(tmp_path / "walk", frames) == 3
    assert sorted(path.name for path in (tmp_path / "walk").iterdir()) == ["00000.ply", "00001.ply", "00002.ply"]
    for frame in range(3):
        back = read_ply(tmp_path / "walk" / f"{frame:05d}.ply")
        assert torch.equal(back.means, avatar.gaussians(pose, frame).means)


def test_the_list_names_every_format_and_what_it_takes() -> None:
    asked = {".ply", "/", ".glb", ".mesh.glb", ".html", ".spz", ".splat", ".sog", ".npz", ".safetensors"}
    assert set(FORMATS) == asked
    for suffix, entry in FORMATS.items():
        assert entry.suffix == suffix and entry.holds and entry.purpose and entry.opens
        assert entry.moves in ("no", "frames", "skeleton")
        assert (entry.extra == "formats") == (suffix.removeprefix(".") in PACKED)


def test_names_find_their_format() -> None:
    assert format_of("a/B.MESH.GLB") is FORMATS[".mesh.glb"] and format_of("a.glb") is FORMATS[".glb"]
    assert format_of("frames/") is FORMATS["/"] and format_of("C:\\frames\\") is FORMATS["/"]
    assert format_of("avatar.safetensors") is FORMATS[".safetensors"]
    assert format_of("a.obj") is None and format_of(".glb") is None and format_of("") is None


def test_the_list_is_cheap_to_import() -> None:
    code = "import sys, hdx_cli.export.formats; print(int(any(m in sys.modules for m in ('numpy', 'torch', 'scipy'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0", done.stderr
