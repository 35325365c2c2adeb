"""The splatting .ply: bytes worked out by hand, round trips, axes, and a reader that is not ours."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from hdx_cli.errors import InputRejected, UsageError
from hdx_cli.export.ply import UP_AXES, read_ply, write_ply
from hdx_cli.gaussians import SH_C0, Gaussians


def some_gaussians(count: int, bases: int = 1, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(count, 3, generator=generator),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1),
        scales=torch.rand(count, 3, generator=generator) * 0.02 + 1e-4,
        opacities=torch.rand(count, generator=generator) * 0.98 + 0.01,
        sh=torch.randn(count, bases, 3, generator=generator),
    )


def covariances(gaussians: Gaussians) -> np.ndarray:
    w, x, y, z = torch.nn.functional.normalize(gaussians.quats.double(), dim=1).numpy().T
    rotation = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]).transpose(2, 0, 1)  # fmt: skip
    root = rotation * gaussians.scales.double().numpy()[:, None]
    return root @ root.transpose(0, 2, 1)


def test_the_bytes_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    gaussians = Gaussians(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.5, -0.5, 0.5]]), torch.tensor([[1.0, np.e, np.e**-3]]),
        torch.tensor([0.75]), torch.tensor([[[0.5, -1.0, 2.0]]]),
    )  # fmt: skip
    write_ply(tmp_path / "a.ply", gaussians)
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    content = (tmp_path / "a.ply").read_bytes()
    assert content[: len(header)] == header.encode()
    values = struct.unpack("<17f", content[len(header) :])
    expected = [1, 2, 3, 0, 0, 0, 0.5, -1, 2, np.log(3), 0, 1, -3, 0.5, 0.5, -0.5, 0.5]
    np.testing.assert_allclose(values, expected, atol=1e-6)  # float32 rounding of e and of logarithms near 1


@pytest.mark.parametrize("bases", [1, 4, 16])
@pytest.mark.parametrize("count", [0, 1, 57])
def test_round_trip(tmp_path: Path, count: int, bases: int) -> None:
    gaussians = some_gaussians(count, bases)
    write_ply(tmp_path / "a.ply", gaussians)
    back = read_ply(tmp_path / "a.ply")
    for name in ("means", "quats", "sh"):
        assert torch.equal(getattr(back, name), getattr(gaussians, name)), name
    # a float32 logarithm of size 9 carries 9 * 6e-8 of relative error back through the exponential; logits of 4 less
    torch.testing.assert_close(back.scales, gaussians.scales, rtol=2e-6, atol=0)
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=2e-6, atol=0)


def test_trimesh_reads_the_same(tmp_path: Path) -> None:
    gaussians = some_gaussians(40)
    write_ply(tmp_path / "a.ply", gaussians)
    cloud = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_array_equal(np.asarray(cloud.vertices, np.float32), gaussians.means.numpy())
    fields = cloud.metadata["_ply_raw"]["vertex"]["data"]
    read = np.asarray(fields["f_dc_1"]).ravel()
    np.testing.assert_array_equal(read, gaussians.sh[:, 0, 1].numpy())


def test_harmonics_lie_channel_by_channel_and_padding_is_zero(tmp_path: Path) -> None:
    gaussians = some_gaussians(5, bases=4)
    write_ply(tmp_path / "a.ply", gaussians, sh_degree=3)
    content = (tmp_path / "a.ply").read_bytes()
    rows = np.frombuffer(content.split(b"end_header\n", 1)[1], "<f4").reshape(
        5, 62
    )  # 248 bytes, as Unity's importer wants
    rest = rows[:, 9:54].reshape(5, 3, 15)
    np.testing.assert_array_equal(rest[:, :, :3], gaussians.sh[:, 1:].permute(0, 2, 1).numpy())
    assert not rest[:, :, 3:].any()
    with pytest.raises(UsageError, match="more than that degree"):
        write_ply(tmp_path / "b.ply", gaussians, sh_degree=0)


@pytest.mark.parametrize("up", UP_AXES)
def test_turning_axes_turns_means_and_covariances_alike(tmp_path: Path, up: str) -> None:
    gaussians = some_gaussians(20)
    write_ply(tmp_path / "a.ply", gaussians, up=up)
    back = read_ply(tmp_path / "a.ply")
    rotation = UP_AXES[up]
    assert np.linalg.det(rotation) == pytest.approx(1)
    pointing_up = {"y": [0, 1, 0], "z": [0, 0, 1], "-y": [0, -1, 0]}[up]
    np.testing.assert_allclose(rotation @ [0, 1, 0], pointing_up)
    np.testing.assert_allclose(back.means.numpy(), gaussians.means.numpy() @ rotation.T, atol=1e-6)
    # scales are below 0.02 m, squares below 4e-4; float32 keeps them to 1e-6 of that
    np.testing.assert_allclose(covariances(back), rotation @ covariances(gaussians) @ rotation.T, atol=1e-9)


def test_no_value_is_infinite(tmp_path: Path) -> None:
    gaussians = Gaussians(
        torch.zeros(3, 3), torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1), torch.tensor([[0.0, 1e-30, 1.0]]).repeat(3, 1),
        torch.tensor([0.0, 1.0, 0.5]), torch.zeros(3, 1, 3),
    )  # fmt: skip
    write_ply(tmp_path / "a.ply", gaussians)
    rows = np.frombuffer((tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)[1], "<f4")
    assert np.isfinite(rows).all()
    # the logit is clamped to 15, whose sigmoid lies 3e-7 from one
    torch.testing.assert_close(read_ply(tmp_path / "a.ply").opacities, gaussians.opacities, atol=4e-7, rtol=0)


def test_the_colour_formula(tmp_path: Path) -> None:
    gaussians = some_gaussians(4)
    write_ply(tmp_path / "a.ply", gaussians)
    assert torch.equal(read_ply(tmp_path / "a.ply").rgb(), 0.5 + SH_C0 * gaussians.sh[:, 0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a binary"),
        (b"ply\nformat ascii 1.0\nend_header\n", "not a binary"),
        (b"ply\nformat binary_little_endian 1.0\nend_header\n", "no vertices"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 2\nproperty float x\nend_header\n1234", "cut short"),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n1234",
            "not a Gaussian",
        ),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty double x\nend_header\n12345678",
            "not float32",
        ),
        (b"ply\nformat binary_little_endian 1.0\nelement face 1\nend_header\n", "other than vertices"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(InputRejected, match=reason):
        read_ply(tmp_path / "a.ply")


def test_unknown_axis(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--up x"):
        write_ply(tmp_path / "a.ply", some_gaussians(1), up="x")
    with pytest.raises(UsageError, match="cannot be turned"):
        write_ply(tmp_path / "a.ply", some_gaussians(1, bases=4), up="z")
