"""Parameters of SMPL(-X) from other programs: one pose, in every layout, comes out the same."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from hdx_cli.bodies.smpl_params import named_rotations, read_params
from hdx_cli.errors import InputRejected
from hdx_cli.geometry import rotvecs_to_matrices

RNG = np.random.default_rng(0)
TURNED = RNG.normal(0, 0.4, (24, 3))  # rotation vectors
TURNED[0] = (3.0, 0.1, -0.2)  # upright in a camera's axes, y down
MATRICES = rotvecs_to_matrices(TURNED)
HAND = RNG.normal(0, 0.3, (15, 3))
BETAS = RNG.normal(0, 1, 10)
SIX = np.concatenate([MATRICES[..., 0], MATRICES[..., 1]], axis=-1)


def smpler_x() -> dict:
    """One person per file, a batch axis of one, the camera under ``meta``."""
    return {
        "global_orient": TURNED[:1], "body_pose": TURNED[None, 1:22], "left_hand_pose": HAND[None],
        "right_hand_pose": HAND.reshape(1, 45), "jaw_pose": np.zeros((1, 3)), "betas": BETAS[None],
        "transl": np.array([[0, 0, 4.0]]), "meta": {"focal": np.array([1200.0, 1200.0]), "princpt": np.array([1.0, 2])},
    }  # fmt: skip


LAYOUTS = {
    "smpler-x": smpler_x(),
    "osx": {
        "smplx_root_pose": TURNED[0], "smplx_body_pose": TURNED[1:22].reshape(63), "smplx_lhand_pose": HAND.reshape(45),
        "smplx_rhand_pose": HAND.reshape(45), "smplx_shape": BETAS, "focal": [1200, 1200],
    },
    "lhm": {
        "root_pose": TURNED[0], "body_pose": TURNED[1:22], "lhand_pose": HAND, "rhand_pose": HAND, "betas": BETAS,
        "focal": [1200.0, 1200.0], "princpt": [5.0, 5.0], "img_size_wh": [640, 480],
    },
    "expose": {
        "global_orient": MATRICES[None, :1], "body_pose": MATRICES[1:22], "betas": BETAS[None],
        "focal_length_in_px": 1200.0,
    },
    "4d-humans": {
        "pred_smpl_params": {
            "global_orient": MATRICES[None, :1], "body_pose": MATRICES[None, 1:], "betas": BETAS[None],
        },
        "scaled_focal_length": 1200.0,
    },
    "wham": {
        "0": {
            "pose": np.tile(TURNED.reshape(1, 72), (5, 1)), "betas": np.tile(BETAS, (5, 1)), "trans": np.zeros((5, 3)),
        },
    },
    "six numbers": {"global_orient": SIX[0], "body_pose": SIX[1:22].reshape(1, 126), "betas": BETAS},
    "gvhmr": {
        "smpl_params_global": {"global_orient": np.zeros((5, 3)), "body_pose": np.zeros((5, 63))},
        "smpl_params_incam": {
            "global_orient": TURNED[:1], "body_pose": TURNED[1:22].reshape(1, 63), "betas": BETAS[None],
        },
    },
    "frames": {"frames": [], "people": [[{"body_pose": TURNED[1:22], "global_orient": TURNED[0], "betas": BETAS}]]},
}  # fmt: skip


def listed(value):
    if isinstance(value, dict):
        return {name: listed(item) for name, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list) else np.asarray(value).tolist()


@pytest.mark.parametrize("kind", ["json", "pkl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, kind, tmp_path) -> None:
    content, path = LAYOUTS[layout], tmp_path / f"person.{kind}"
    path.write_bytes(json.dumps(listed(content)).encode() if kind == "json" else pickle.dumps(content))
    found = read_params(path)
    np.testing.assert_allclose(found.body, MATRICES[:22], atol=1e-6)
    np.testing.assert_allclose(found.betas, BETAS)
    assert found.focal_px in (None, 1200.0)
    assert (found.focal_px is None) == (layout in ("wham", "six numbers", "gvhmr", "frames"))
    assert found.family == ("smpl" if layout in ("4d-humans", "wham") else "smplx")
    named = named_rotations(found)
    if layout in ("smpler-x", "osx", "lhm"):
        np.testing.assert_allclose(named["left_index1"], rotvecs_to_matrices(HAND[0]), atol=1e-6)
        assert len(named) == 52
    else:
        assert list(named)[-1] == "right_wrist"


def test_flat_npz_and_torch(tmp_path) -> None:
    import torch

    flat = {name: value for name, value in smpler_x().items() if name != "meta"}
    np.savez(tmp_path / "person.npz", **flat, meta=np.array({"focal": 3}, dtype=object))  # a pickle, left out
    torch.save({name: torch.from_numpy(np.asarray(value)) for name, value in flat.items()}, tmp_path / "person.pt")
    for name in ("person.npz", "person.pt"):
        np.testing.assert_allclose(read_params(tmp_path / name).body, MATRICES[:22], atol=1e-6)


@pytest.mark.parametrize("axes", [np.diag([1.0, -1, -1]), np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])])
def test_other_axes_are_turned_to_a_camera_s(axes, tmp_path) -> None:
    """With y or z up the person stands upright in front of the camera all the same."""
    body = MATRICES[1:22]
    upright = np.diag([1.0, -1.0, -1.0])  # faces the camera
    np.savez(tmp_path / "p.npz", global_orient=axes @ upright, body_pose=body)
    found = read_params(tmp_path / "p.npz").body
    np.testing.assert_allclose(found[0], upright, atol=1e-12)
    np.testing.assert_allclose(found[1:], body, atol=1e-12)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "no body_pose or pose"),
        ({"body_pose": TURNED[1:22]}, "no global_orient"),
        ({"body_pose": np.zeros(32), "global_orient": np.zeros(3)}, "body_pose of shape"),
        ({"pose": np.full(72, np.nan)}, "finite"),
        ({"pose": 2 * MATRICES}, "no rotations"),
        ({"pose": TURNED.reshape(72), "betas": np.full(10, 99.0)}, "betas"),
        ({"pose": "text"}, "no body_pose or pose"),
        ([1, 2], "no parameters"),
    ],
)
def test_what_tells_no_pose_is_refused(content, reason, tmp_path) -> None:
    path = tmp_path / "person.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputRejected, match=reason) as error:
        read_params(path)
    assert str(path) in error.value.message


@pytest.mark.parametrize("suffix", [".json", ".npz", ".pkl", ".pt", ".txt"])
@pytest.mark.parametrize("content", [b"", b"[[[[", b"\xff\xfe\0", b"PK\5\6" + bytes(18), b"[" * 100_000])
def test_damaged_files(suffix, content, tmp_path) -> None:
    path = tmp_path / f"person{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputRejected):
        read_params(path)
    with pytest.raises(InputRejected, match="no such file"):
        read_params(tmp_path / "none.json")


def test_nothing_in_a_pickle_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "person.pkl"
    path.write_bytes(pickle.dumps({"pose": TURNED.reshape(1, 72), "other": Bomb()}))
    np.testing.assert_allclose(read_params(path).body, MATRICES[:22], atol=1e-6)
    assert not (tmp_path / "exploded").exists()
