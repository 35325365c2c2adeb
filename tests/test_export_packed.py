"""Packed formats: bytes read by hand where the layout is simple, tolerances from each format's grid."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import resource
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hdx_cli.errors import NothingToDo, ResourceError, UsageError
from hdx_cli.export import packed
from hdx_cli.export.packed import write_packed
from hdx_cli.gaussians import Gaussians

needs_gaussforge = pytest.mark.skipif(
    importlib.util.find_spec("gaussforge") is None,
    reason="gaussforge is not installed (pip install 'hdx-cli[formats]')",
)


def some_gaussians(count: int = 300) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(count, 3, generator=generator),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1),
        scales=torch.rand(count, 3, generator=generator) * 0.02 + 1e-3,
        opacities=torch.rand(count, generator=generator) * 0.98 + 0.01,
        sh=torch.randn(count, 1, 3, generator=generator) * 0.5,
    )


@needs_gaussforge
def test_splat_read_by_hand(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    gaussians = some_gaussians()
    write_packed(tmp_path / "a.splat", gaussians)
    assert capfd.readouterr().out == ""
    row = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("colour", "u1", 4), ("quat", "u1", 4)])
    rows = np.fromfile(tmp_path / "a.splat", row)
    np.testing.assert_array_equal(rows["mean"], gaussians.means.numpy())  # in the same order
    np.testing.assert_allclose(rows["scale"], gaussians.scales.numpy(), rtol=1e-5)
    colour = torch.cat([gaussians.rgb().clamp(0, 1), gaussians.opacities[:, None]], dim=1).numpy()
    np.testing.assert_allclose(rows["colour"] / 255, colour, atol=1 / 255)
    quats = (rows["quat"].astype(float) - 128) / 128
    assert (abs((quats * gaussians.quats.numpy()).sum(1)) > 0.98).all()  # 1/128 per component


@needs_gaussforge
def test_spz_read_by_hand(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    gaussians = some_gaussians()
    write_packed(tmp_path / "a.spz", gaussians, up="z")
    assert capfd.readouterr().out == ""
    content = gzip.decompress((tmp_path / "a.spz").read_bytes())
    magic, version, count, degree, fraction_bits = struct.unpack_from("<4sIIBB", content)
    assert (magic, count, degree) == (b"NGSP", len(gaussians), 0) and version in (2, 3)
    steps = np.frombuffer(content[16 : 16 + 9 * count], np.uint8).reshape(count, 3, 3).astype(np.int32)
    fixed = steps[..., 0] | steps[..., 1] << 8 | steps[..., 2] << 16
    means = np.where(fixed >= 2**23, fixed - 2**24, fixed) / 2**fraction_bits
    x, y, z = gaussians.means.numpy().T
    np.testing.assert_allclose(means, np.stack([x, -z, y], axis=1), atol=1 / 2**fraction_bits)
    assert 2.0**-fraction_bits < 3e-4


@needs_gaussforge
def test_sog_is_a_zip_that_names_every_gaussian(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_packed(tmp_path / "other.name", some_gaussians(), format="sog")
    assert capfd.readouterr().out == ""
    with zipfile.ZipFile(io.BytesIO((tmp_path / "other.name").read_bytes())) as archive:
        meta = json.loads(archive.read("meta.json"))
        assert meta["count"] == 300
        low, high = np.array(meta["means"]["mins"]), np.array(meta["means"]["maxs"])
    # positions are stored as sign(x) log(1 + |x|)
    means = some_gaussians().means.numpy()
    np.testing.assert_allclose(np.sign(low) * np.expm1(abs(low)), means.min(0), atol=1e-4)
    np.testing.assert_allclose(np.sign(high) * np.expm1(abs(high)), means.max(0), atol=1e-4)


@needs_gaussforge
def test_what_the_library_says_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "write_ply", lambda path, gaussians, up: path.write_bytes(b"ply\nnone\n"))
    with pytest.raises(ResourceError, match=r"a\.spz: gaussforge could not write \(\S.*\)$"):
        write_packed(tmp_path / "a.spz", some_gaussians(3))
    assert not (tmp_path / "a.spz").exists()


@needs_gaussforge
def test_no_gaussians(tmp_path: Path) -> None:
    with pytest.raises(NothingToDo):
        write_packed(tmp_path / "a.spz", some_gaussians(3).select(torch.arange(0)))


def test_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    for name in ("a.ksplat", "a"):
        with pytest.raises(UsageError, match="none of spz, splat, sog"):
            write_packed(tmp_path / name, some_gaussians(3))


def test_a_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="gaussforge") as caught:
        write_packed(tmp_path / "a.spz", some_gaussians(3))
    assert caught.value.hint == "pip install 'hdx-cli[formats]'"


@needs_gaussforge
def test_a_full_temporary_folder_is_named_and_not_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # the system's own refusal to write on
    try:
        with pytest.raises(ResourceError, match=str(tmp_path / "temporary")) as told:
            write_packed(tmp_path / "a.spz", some_gaussians())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "TMPDIR" in told.value.hint and list(tmp_path.iterdir()) == [tmp_path / "temporary"]
