"""SMPL-family files in their several layouts, and files that lie about themselves."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hdx_cli.bodies import anny
from hdx_cli.bodies.base import RestBody, joint_transforms
from hdx_cli.errors import HdxError, InputRejected
from hdx_cli.motion import load, pickled, smpl

# SMPL's tree, from its paper: the parent of every joint
TREE = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19]
# what a T-pose's bones point along, by the joint that moves them
LIMBS = {
    16: ("upperarm01.L", "lowerarm01.L", [1, 0, 0]), 18: ("lowerarm01.L", "wrist.L", [1, 0, 0]),
    17: ("upperarm01.R", "lowerarm01.R", [-1, 0, 0]), 19: ("lowerarm01.R", "wrist.R", [-1, 0, 0]),
    1: ("upperleg01.L", "lowerleg01.L", [0, -1, 0]), 4: ("lowerleg01.L", "foot.L", [0, -1, 0]),
    2: ("upperleg01.R", "lowerleg01.R", [0, -1, 0]), 5: ("lowerleg01.R", "foot.R", [0, -1, 0]),
}  # fmt: skip
TO_Z_UP = Rotation.from_rotvec([np.pi / 2, 0, 0])


@pytest.fixture(scope="module")
def body():
    model = anny.load()
    return model, model.rest(model.default_shape)


def on(path, body, **options):
    model, rest = body
    return load(str(path), RestBody(np.zeros((0, 3)), rest.joints), model.parents, model.joint_names, **options)


def motion(frames: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rotation vectors [T 22 3], y up, and translations [T 3]."""
    random = np.random.default_rng(seed)
    poses = random.normal(0, 0.35, (frames, 22, 3))
    poses[:, [13, 14, 3, 6, 9]] *= 0.3
    return poses, np.cumsum(random.normal(0, 0.02, (frames, 3)), axis=0) + [0, 1, 0]


def z_up(poses: np.ndarray, trans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turned = poses.copy()
    turned[:, 0] = (TO_Z_UP * Rotation.from_rotvec(poses[:, 0])).as_rotvec()
    return turned, TO_Z_UP.apply(trans)


def limb_angles(clip, body, poses: np.ndarray) -> float:
    """Largest angle in degrees between the avatar's limbs and SMPL's nominal ones, turned by its own tree."""
    model, rest = body
    transforms = joint_transforms(clip.pose.rotations.astype(float), rest.joints, model.parents, clip.pose.translations)
    places = np.einsum("tjab,jb->tja", transforms[..., :3, :3], rest.joints) + transforms[..., :3, 3]
    turns = [Rotation.from_rotvec(poses[:, 0])]
    for joint in range(1, 22):
        turns.append(turns[TREE[joint]] * Rotation.from_rotvec(poses[:, joint]))
    worst = 0.0
    for joint, (start, end, along) in LIMBS.items():
        found = places[:, model.joint_names.index(end)] - places[:, model.joint_names.index(start)]
        found /= np.linalg.norm(found, axis=-1, keepdims=True)
        worst = max(worst, np.degrees(np.arccos((found * turns[joint].apply(along)).sum(-1).clip(-1, 1))).max())
    return worst


def layouts(tmp_path, poses, trans):
    zposes, ztrans = z_up(poses, trans)
    full = np.concatenate([zposes, np.zeros((len(poses), 30, 3))], axis=1).reshape(len(poses), -1)
    files = {}
    count, empty = len(poses), np.zeros(16)
    for name, arrays in {
        "amass_h.npz": {"poses": full, "trans": ztrans, "betas": empty, "gender": np.array("male"),
                        "mocap_framerate": 120.0},
        "amass_x.npz": {"root_orient": zposes[:, 0], "pose_body": zposes[:, 1:].reshape(-1, 63),
                        "pose_hand": np.zeros((count, 90)), "trans": ztrans, "mocap_frame_rate": 120},
        "gvhmr.npz": {"global_orient": poses[:, 0], "body_pose": poses[:, 1:].reshape(count, 63), "transl": trans,
                      "fps": 120},
        "smpl72.npz": {"pose": np.concatenate([poses, np.zeros((count, 2, 3))], 1).reshape(-1, 72),
                       "trans": trans, "fps": 120},
        "matrices.npz": {"global_orient": Rotation.from_rotvec(poses[:, 0]).as_matrix()[:, None],
                         "body_pose": Rotation.from_rotvec(poses[:, 1:].reshape(-1, 3)).as_matrix()
                         .reshape(-1, 21, 3, 3), "transl": trans, "fps": 120},
        "codec.smpl": {"bodyPose": poses, "bodyTranslation": trans, "frameRate": 120.0, "frameCount": len(poses)},
    }.items():  # fmt: skip
        with (tmp_path / name).open("wb") as file:
            np.savez_compressed(file, **arrays)
        files[name] = tmp_path / name
    folder = tmp_path / "smplx_params"
    folder.mkdir()
    camera = Rotation.from_rotvec([np.pi, 0, 0])
    for index in range(len(poses)):
        frame = {
            "root_pose": (camera * Rotation.from_rotvec(poses[index, 0])).as_rotvec().tolist(),
            "body_pose": poses[index, 1:].tolist(),
            "trans": camera.apply(trans[index]).tolist(),
            "lhand_pose": np.zeros((15, 3)).tolist(), "betas": [0.0] * 10, "fps": 120,
        }  # fmt: skip
        (folder / f"{index:05d}.json").write_text(json.dumps(frame))
    files["folder"] = folder
    whole = {
        "smpl_params_global": {
            "global_orient": poses[:, 0].tolist(),
            "body_pose": poses[:, 1:].tolist(),
            "transl": trans.tolist(),
        },
        "fps": 120,
    }
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    files["whole.json"] = tmp_path / "whole.json"
    return files


def test_all_layouts_say_the_same(body, tmp_path) -> None:
    poses, trans = motion()
    clips = {name: on(path, body) for name, path in layouts(tmp_path, poses, trans).items()}
    reference = clips.pop("gvhmr.npz")
    assert len(reference) == 6 and reference.fps == 120 and not reference.loops
    for name, clip in clips.items():
        assert clip.fps == 120, name
        np.testing.assert_allclose(clip.pose.rotations, reference.pose.rotations, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(clip.pose.translations, reference.pose.translations, atol=2e-4, err_msg=name)


def test_limbs_point_where_smpl_says(body, tmp_path) -> None:
    poses, trans = motion(seed=4)
    clip = on(layouts(tmp_path, poses, trans)["amass_x.npz"], body)
    assert limb_angles(clip, body, poses) < 4.0  # the nominal legs are not quite vertical
    rest = np.zeros((1, 22, 3))
    np.savez(tmp_path / "t.npz", poses=rest.reshape(1, 66), trans=np.zeros((1, 3)))
    assert limb_angles(on(tmp_path / "t.npz", body), body, rest) < 4.0


def test_hands_are_moved_where_the_file_moves_them(body, tmp_path) -> None:
    poses, trans = motion()
    hands = np.zeros((6, 30, 3))
    hands[:, :15, 2] = -0.6  # left fingers curl towards the palm
    hands[:, 15:, 2] = 0.6
    np.savez(tmp_path / "h.npz", poses=np.concatenate([poses, hands], 1).reshape(6, -1), trans=trans)
    model, rest = body
    clip = on(tmp_path / "h.npz", body)
    transforms = joint_transforms(clip.pose.rotations.astype(float), rest.joints, model.parents, clip.pose.translations)
    places = np.einsum("tjab,jb->tja", transforms[..., :3, :3], rest.joints) + transforms[..., :3, 3]
    for side in "LR":
        a, b, c, d = (
            places[:, model.joint_names.index(f"{joint}.{side}")]
            for joint in ("wrist", "finger3-1", "finger3-2", "finger3-3")
        )
        for u, v in (((b - a), (c - b)), ((c - b), (d - c))):
            angle = np.arccos(((u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)).clip(-1, 1))
            assert np.abs(np.degrees(angle) - np.degrees(0.6)).max() < 12


def test_frames_and_rates(body, tmp_path) -> None:
    path = layouts(tmp_path, *motion(41))["gvhmr.npz"]
    assert len(on(path, body, frames=(10, 21))) == 11
    assert len(on(path, body, fps=30.0)) == 11
    assert len(on(path, body, fps=30.0, speed=2.0)) == 6
    with pytest.raises(HdxError, match="0:41"):
        on(path, body, frames=(10, 50))


# files that lie

GOOD = {"global_orient": np.zeros((3, 3)), "body_pose": np.zeros((3, 63)), "transl": np.zeros((3, 3))}


@pytest.mark.parametrize(
    "change",
    [
        {"body_pose": np.zeros((3, 60))},
        {"body_pose": np.zeros((3, 64))},
        {"body_pose": np.zeros((0, 63))},
        {"body_pose": np.zeros((2, 63))},
        {"body_pose": np.full((3, 63), np.nan)},
        {"body_pose": np.full((3, 63), 1e30)},
        {"body_pose": np.zeros((3, 21, 3, 3))},
        {"body_pose": None},
        {"global_orient": None},
        {"transl": np.zeros((5, 3))},
        {"transl": np.full((3, 3), np.inf)},
        {"fps": 0.0},
        {"fps": np.nan},
        {"global_orient": None, "body_pose": None, "poses": np.zeros((3, 100))},
        {"body_pose": np.array(["a"] * 3)},
        {"body_pose": np.array([{}, None, 3], dtype=object)},
    ],
)
def test_malformed_npz(change, body, tmp_path) -> None:
    arrays = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputRejected) as raised:
        on(tmp_path / "a.npz", body)
    assert "a.npz" in raised.value.message and "\n" not in raised.value.message


def npz(path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def test_npz_headers_are_not_believed(body, tmp_path) -> None:
    for shape in ("(1000000000, 66)", "(-5, 66)", "(3, 66", "(" * 3000, "(True, 66)", "(1e3, 66)"):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        npz(
            tmp_path / "a.npz", "poses.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64
        )
        with pytest.raises(InputRejected):
            on(tmp_path / "a.npz", body)


def test_zip_bombs_and_garbage(body, tmp_path) -> None:
    path = tmp_path / "a.npz"
    npz(path, "poses.npy", b"\0" * 1000)
    bomb = bytearray(path.read_bytes())
    for signature, place in ((b"PK\1\2", 24), (b"PK\3\4", 22)):  # the unpacked size that the archive states
        struct.pack_into("<I", bomb, bomb.index(signature) + place, 300 * 2**20)
    path.write_bytes(bytes(bomb))
    with pytest.raises(InputRejected, match="256 MB"):
        on(path, body)
    good = io.BytesIO()
    np.savez(good, **GOOD)
    for content in (b"", b"PK\5\6", b"garbage" * 100, good.getvalue()[:-30], good.getvalue()[:200], b"\0" * 70_000):
        path.write_bytes(content)
        with pytest.raises(InputRejected):
            on(path, body)
    damaged = bytearray(good.getvalue())
    damaged[180:260] = b"\xff" * 80
    path.write_bytes(bytes(damaged))
    with pytest.raises(InputRejected):
        on(path, body)


@pytest.mark.parametrize(
    "content",
    [
        "", "garbage", "[]", "{}", "3", "null", "[3]", '{"body_pose": 3}',
        '{"body_pose": "abc", "global_orient": [0,0,0]}',
        "[" * 100_000,
        '{"a":' * 3000, '{"body_pose": [[1,2],[3]]}', '{"body_pose": [NaN], "root_pose": [0,0,0]}',
        json.dumps({"body_pose": [[0.0] * 62], "root_pose": [[0.0] * 3]}), json.dumps({"frames": []}),
        json.dumps([{"body_pose": [0.0] * 63, "root_pose": [0.0] * 3}, {"body_pose": [0.0] * 63}]),
    ],
)  # fmt: skip
def test_malformed_json(content, body, tmp_path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputRejected, match="a.json"):
        on(tmp_path / "a.json", body)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputRejected, match="without"):
        on(folder, body)
    (folder / "0.json").write_text(content)
    with pytest.raises(InputRejected):
        on(folder, body)


def test_other_files_are_named_as_such(body, tmp_path) -> None:
    for name in ("a.fbx", "a.txt", "a", "a.mp4"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputRejected, match="not a motion file"):
            on(tmp_path / name, body)


# pickles


def test_pickles_need_consent(body, tmp_path) -> None:
    for name in ("a.pkl", "a.pt", "a.pth"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(GOOD))
        with pytest.raises(InputRejected) as raised:
            on(path, body)
        assert raised.value.hint.endswith("--allow-pickle")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_out_of_pickles(protocol, body, tmp_path) -> None:
    """Every protocol of the standard pickler, against the arrays that went in."""
    poses, trans = motion()
    shown = {
        "pose_world": poses.reshape(-1, 66).astype(np.float32),
        "trans_world": np.asfortranarray(trans),
        "fps": np.float64(60.0),
    }
    content = {
        0: {**shown, "verts": np.zeros((6, 5, 3)), "note": ("text", None, True, {1, 2})},
        1: {"pose_world": poses[:2].reshape(-1, 66)},
    }
    path = tmp_path / "wham.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = pickled.read_arrays(path)
    for name, value in shown.items():
        np.testing.assert_array_equal(found[0][name], value)
    assert on(path, body, allow_pickle=True).fps == 60.0
    assert len(on(path, body, allow_pickle=True)) == 6


def test_joblib_layout(body, tmp_path) -> None:
    """joblib puts an array's bytes behind its description: the stream is put together here as joblib 1.6 does."""
    array = np.arange(6 * 66, dtype=np.float64).reshape(6, 66) * 1e-3

    class NumpyArrayWrapper:
        pass

    NumpyArrayWrapper.__module__, NumpyArrayWrapper.__qualname__ = "joblib.numpy_pickle", "NumpyArrayWrapper"
    wrapper = NumpyArrayWrapper()
    wrapper.__dict__.update(subclass=np.ndarray, shape=array.shape, order="C", dtype=array.dtype, allow_mmap=True,
                            numpy_array_alignment_bytes=16)  # fmt: skip
    import sys
    import types

    names = ("joblib", "joblib.numpy_pickle")
    kept = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules["joblib.numpy_pickle"].NumpyArrayWrapper = NumpyArrayWrapper
    try:
        head = pickle.dumps({"poses": wrapper}, protocol=2)
    finally:
        for name, module in kept.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    cut = len(head) - 2  # SETITEM and STOP come after the array
    padding = 16 - (cut + 1) % 16
    path = tmp_path / "a.pkl"
    path.write_bytes(head[:cut] + bytes([padding]) + b"\xff" * padding + array.tobytes() + head[cut:])
    np.testing.assert_array_equal(pickled.read_arrays(path)["poses"], array)
    assert len(on(path, body, allow_pickle=True)) == 6


def test_torch_files(body, tmp_path) -> None:
    import torch

    poses, trans = motion()
    tensors = {"global_orient": torch.tensor(poses[:, 0]), "body_pose": torch.tensor(poses[:, 1:]).reshape(6, 63),
               "transl": torch.tensor(trans)}  # fmt: skip
    torch.save({"smpl_params_global": tensors, "smpl_params_incam": {}, "K": torch.eye(3)}, tmp_path / "a.pt")
    assert len(on(tmp_path / "a.pt", body, allow_pickle=True)) == 6
    torch.save({"body_pose": torch.zeros(1).expand(10_000_000_000)}, tmp_path / "b.pt")
    with pytest.raises(InputRejected):
        on(tmp_path / "b.pt", body, allow_pickle=True)
    (tmp_path / "c.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:300])
    with pytest.raises(InputRejected):
        on(tmp_path / "c.pt", body, allow_pickle=True)


class Evil:
    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_nothing_in_a_pickle_is_run(body, tmp_path) -> None:
    import torch

    marker = tmp_path / "ran"
    for protocol in range(6):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({**GOOD, "x": Evil(marker)}, protocol=protocol))
        assert len(on(tmp_path / "a.pkl", body, allow_pickle=True)) == 3  # what is not numbers is left out
    torch.save({**GOOD, "x": Evil(marker)}, tmp_path / "a.pt")
    with pytest.raises(InputRejected):
        on(tmp_path / "a.pt", body, allow_pickle=True)
    assert not marker.exists()


def bomb(kind: str) -> bytes:
    if kind == "shared lists":
        value: list = ["x"]
        for _ in range(60):
            value = [value, value]
        return pickle.dumps({"poses": value})
    if kind == "shared tuples as a key":
        return b"\x80\x02}(" + b"K\x01" + b"".join(b"2\x86" for _ in range(60)) + b"K\x01u."
    if kind == "a name of shared lists":
        return b"\x80\x04" + b"]2e" * 3 + b"K\x01" + b"".join(b"2\x86" for _ in range(60)) + b"\x8c\x01a\x93."
    if kind == "huge bytes":
        return b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x."
    if kind == "huge memo":
        return b"\x80\x02Kar" + struct.pack("<I", 2**32 - 1) + b"."
    return b"\x80\x02" + b"N" * 500_100 + b"."


@pytest.mark.parametrize(
    "kind", ["shared lists", "shared tuples as a key", "a name of shared lists", "huge bytes", "huge memo", "many"]
)
def test_pickles_that_grow(kind, tmp_path) -> None:
    (tmp_path / "a.pkl").write_bytes(bomb(kind))
    try:
        found = pickled.read_arrays(tmp_path / "a.pkl")
    except InputRejected as error:
        assert "a.pkl" in error.message
    else:
        assert found in (97, {})


def test_every_cut_of_a_pickle(tmp_path) -> None:
    content = pickle.dumps({"poses": np.zeros((2, 66)), "fps": 30.0}, protocol=4)
    for end in range(0, len(content), 13):
        (tmp_path / "a.pkl").write_bytes(content[:end])
        with pytest.raises(InputRejected):
            pickled.read_arrays(tmp_path / "a.pkl")


def test_up_axes() -> None:
    up = np.zeros((4, 3))
    for axis, value in (("+y", [0, 1, 0]), ("+z", [0.1, -0.2, 0.9]), ("-y", [0, -0.8, 0.3])):
        assert smpl._up_axis(up + value) == axis
