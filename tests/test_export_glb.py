"""The skinned .glb and the mesh .glb: a reader that is not ours plays them, and damaged files are told so."""

from __future__ import annotations

import copy
import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp

from hdx_cli.avatars.base import Avatar
from hdx_cli.bodies.base import Body, BodyPose, RestBody, joint_transforms, skin
from hdx_cli.errors import InputRejected, NothingToDo, UsageError
from hdx_cli.export.glb import (
    SPLATTING,
    Animation,
    Rig,
    SkinnedGaussians,
    key_frames,
    quantised_weights,
    write_glb,
)
from hdx_cli.export.glb_reader import read_glb
from hdx_cli.export.mesh_glb import SkinnedMesh, baked_texture, clothed, vertex_colours, write_mesh_glb
from hdx_cli.gaussians import SH_C0, Gaussians, sh_from_rgb
from hdx_cli.mesh import vertex_normals

JOINTS = 12
PARENTS = np.array([-1, 0, 1, 2, 0, 4, 5, 1, 7, 8, 2, 10])


def some_avatar(count: int = 200, bases: int = 1, seed: int = 0) -> Avatar:
    """Random Gaussians on a random rig, up to eight joints each; weights are multiples of 1/255, as files hold them."""
    rng = np.random.default_rng(seed)
    weights = np.sort(rng.multinomial(255, np.full(8, 1 / 8), size=count), axis=1)[:, ::-1]
    weights[: count // 2, 4:] = 0
    weights[: count // 2, 0] += 255 - weights[: count // 2].sum(1)
    indices = np.stack([rng.permutation(JOINTS)[:8] for _ in range(count)])
    generator = torch.Generator().manual_seed(seed)
    gaussians = Gaussians(
        means=torch.randn(count, 3, generator=generator) * 0.5,
        quats=torch.randn(count, 4, generator=generator),
        scales=torch.rand(count, 3, generator=generator) * 0.02 + 0.005,
        opacities=torch.rand(count, generator=generator) * 0.98 + 0.01,
        sh=torch.randn(count, bases, 3, generator=generator),
    )
    return Avatar(
        canonical=gaussians,
        joint_indices=np.where(weights > 0, indices, 0).astype(np.uint16),
        joint_weights=(weights / 255).astype(np.float32),
        body=Body("toy", np.zeros(1)),
        rest=RestBody(np.zeros((0, 3)), rng.normal(size=(JOINTS, 3)) * 0.3),
        parents=PARENTS,
        joint_names=tuple(f"joint{index}" for index in range(JOINTS)),
        photo_pose=some_motion(1, seed),
        visibility=np.ones(count),
        parts=np.zeros(count, int),
    )


def some_motion(frames: int, seed: int = 0) -> BodyPose:
    """Smooth turns of every second joint and of the root, and a root that wanders."""
    rng = np.random.default_rng(seed)
    phase = np.arange(frames)[:, None, None] / 30 * rng.uniform(2, 5, size=(1, JOINTS, 1))
    rotvecs = np.sin(phase + rng.uniform(0, 6, size=(1, JOINTS, 3))) * rng.normal(size=(1, JOINTS, 3))
    rotvecs[:, 1::2] = 0
    matrices = Rotation.from_rotvec(rotvecs.reshape(-1, 3)).as_matrix().reshape(frames, JOINTS, 3, 3)
    return BodyPose(matrices, np.cumsum(rng.normal(size=(frames, 3)) * 0.02, axis=0))


def exported(avatar: Avatar, *animations: Animation) -> SkinnedGaussians:
    rig = Rig(avatar.rest.joints, avatar.parents, avatar.joint_names)
    return SkinnedGaussians(avatar.canonical, avatar.joint_indices, avatar.joint_weights, rig, animations)


class Oracle:
    """glTF 2.0 by the book in few lines: accessors, node hierarchy, linear clips, skins; none of our code."""

    WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
    KIND = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        magic, version, total = struct.unpack_from("<4sII", content)
        assert (magic, version, total) == (b"glTF", 2, len(content))
        size, kind = struct.unpack_from("<I4s", content, 12)
        assert kind == b"JSON" and size % 4 == 0
        self.json = json.loads(content[20 : 20 + size])
        length, kind = struct.unpack_from("<I4s", content, 20 + size)
        assert kind == b"BIN\0" and length % 4 == 0 and 28 + size + length == total
        self.binary = content[28 + size :]
        assert self.json["buffers"] == [{"byteLength": length}]

    def raw(self, index: int) -> np.ndarray:
        accessor = self.json["accessors"][index]
        view = self.json["bufferViews"][accessor["bufferView"]]
        kind, width = np.dtype(self.KIND[accessor["componentType"]]), self.WIDTH[accessor["type"]]
        start = view["byteOffset"] + accessor.get("byteOffset", 0)
        stride = view.get("byteStride", kind.itemsize * width)
        rows = [self.binary[start + n * stride :][: kind.itemsize * width] for n in range(accessor["count"])]
        return np.frombuffer(b"".join(rows), kind).reshape(accessor["count"], width)

    def values(self, index: int) -> np.ndarray:
        rows = self.raw(index)
        if self.json["accessors"][index].get("normalized"):
            return np.maximum(rows / np.iinfo(rows.dtype).max, -1.0)
        return rows.astype(float)

    def attribute(self, name: str) -> np.ndarray:
        return self.values(self.json["meshes"][0]["primitives"][0]["attributes"][name])

    def joint_matrices(self, clip: int | None = None, time: float = 0.0, turns: np.ndarray | None = None) -> np.ndarray:
        """G_j B_j [J 4 4]; ``turns`` [J 3 3] replace what a clip says."""
        nodes, skin = copy.deepcopy(self.json["nodes"]), self.json["skins"][0]
        for channel in self.json["animations"][clip]["channels"] if clip is not None else []:
            sampler = self.json["animations"][clip]["samplers"][channel["sampler"]]
            times, values = self.values(sampler["input"])[:, 0], self.values(sampler["output"])
            now = np.clip(time, times[0], times[-1])
            if channel["target"]["path"] == "rotation" and len(times) > 1:
                value = Slerp(times, Rotation.from_quat(values))(now).as_quat()
            else:
                value = np.array([np.interp(now, times, column) for column in values.T])
            nodes[channel["target"]["node"]][channel["target"]["path"]] = value
        if turns is not None:
            for joint, node in enumerate(skin["joints"]):
                nodes[node]["rotation"] = Rotation.from_matrix(turns[joint]).as_quat()
        world = [np.eye(4)] * len(nodes)

        def visit(index: int, above: np.ndarray) -> None:
            local = np.eye(4)
            local[:3, :3] = Rotation.from_quat(nodes[index].get("rotation", [0, 0, 0, 1])).as_matrix()
            local[:3, 3] = nodes[index].get("translation", [0, 0, 0])
            world[index] = above @ local
            for child in nodes[index].get("children", []):
                visit(child, world[index])

        for root in self.json["scenes"][self.json["scene"]]["nodes"]:
            visit(root, np.eye(4))
        binds = self.values(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        return np.stack([world[node] @ bind for node, bind in zip(skin["joints"], binds, strict=True)])

    def skinned(self, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means [N 3] and blended linear parts [N 3 3]."""
        names = self.json["meshes"][0]["primitives"][0]["attributes"]
        sets = range(sum(name.startswith("JOINTS_") for name in names))
        joints = np.concatenate([self.attribute(f"JOINTS_{part}") for part in sets], axis=1).astype(int)
        weights = np.concatenate([self.attribute(f"WEIGHTS_{part}") for part in sets], axis=1)
        blended = np.einsum("nk,nkab->nab", weights, matrices[joints])
        linear, shift = blended[:, :3, :3], blended[:, :3, 3]
        return np.einsum("nab,nb->na", linear, self.attribute("POSITION")) + shift, linear

    def covariances(self, linear: np.ndarray) -> np.ndarray:
        root = Rotation.from_quat(self.attribute(f"{SPLATTING}:ROTATION")).as_matrix()
        root = linear @ (root * self.attribute(f"{SPLATTING}:SCALE")[:, None])
        return root @ root.transpose(0, 2, 1)


def covariances(gaussians: Gaussians) -> np.ndarray:
    root = Rotation.from_quat(gaussians.quats.double().numpy(), scalar_first=True).as_matrix()
    root = root * gaussians.scales.double().numpy()[:, None]
    return root @ root.transpose(0, 2, 1)


@pytest.mark.parametrize("loops", [False, True])
def test_a_reader_by_the_book_poses_means_and_covariances_as_the_avatar_does(tmp_path: Path, loops: bool) -> None:
    avatar = some_avatar()
    still, moving = Animation("still", some_motion(1, 3), 25), Animation("moving", some_motion(24, 4), 24, loops)
    write_glb(tmp_path / "a.glb", exported(avatar, still, moving))
    oracle = Oracle(tmp_path / "a.glb")
    assert [clip["name"] for clip in oracle.json["animations"]] == ["still", "moving"]
    frames = [(0, still.pose, 0, 0.0)] + [(1, moving.pose, frame, frame / 24) for frame in range(24)]
    if loops:
        frames.append((1, moving.pose, 0, 24 / 24))
    for clip, pose, frame, time in frames:
        expected = avatar.gaussians(pose, frame)
        means, linear = oracle.skinned(oracle.joint_matrices(clip, time))
        # key frames may be off by 3e-4 rad per joint, four joints deep and up to 2 m away, and 1e-4 m at the root
        np.testing.assert_allclose(means, expected.means.numpy(), atol=2e-3)
        ours, theirs = oracle.covariances(linear), covariances(expected)
        # scales of 5 mm and more in steps of 15 micrometres: 0.3 per cent when squared; and 1e-3 rad of turning
        norm = np.linalg.norm(theirs, axis=(1, 2))
        assert (np.linalg.norm(ours - theirs, axis=(1, 2)) / norm).max() < 8e-3


def test_the_skeleton_is_that_of_the_avatar(tmp_path: Path) -> None:
    """Node rotation R_j and node translation h_j - h_parent are ``joint_transforms``, to the last digits of float32."""
    avatar = some_avatar()
    write_glb(tmp_path / "a.glb", exported(avatar))
    oracle = Oracle(tmp_path / "a.glb")
    shift = np.eye(4)
    shift[:3, 3] = oracle.json["asset"]["extras"]["hdx"]["rest_shift_m"]
    np.testing.assert_allclose(oracle.joint_matrices(), np.tile(np.eye(4), (JOINTS, 1, 1)), atol=1e-6)
    turns = some_motion(1, 5).rotations[0]
    expected = joint_transforms(turns, avatar.rest.joints, PARENTS, shift[:3, 3])
    np.testing.assert_allclose(oracle.joint_matrices(turns=turns) @ shift, expected, atol=1e-6)


def test_the_rest_pose_stands_on_the_ground(tmp_path: Path) -> None:
    avatar = some_avatar()
    write_glb(tmp_path / "a.glb", exported(avatar))
    cloud = trimesh.load(tmp_path / "a.glb", force="scene")
    points = np.concatenate([geometry.vertices for geometry in cloud.geometry.values()])
    moved = points - avatar.canonical.means.numpy()
    np.testing.assert_allclose(moved, np.tile(moved[0], (len(moved), 1)), atol=1e-6)
    # at most the share of strays, which is less than one of two hundred, lies below
    assert abs(points[:, 1].min()) < np.sort(points[:, 1])[1] + 1e-6 and abs(moved[0, [0, 2]]).max() < 1e-6


def test_the_structure_is_what_gltf_asks_for(tmp_path: Path) -> None:
    avatar = some_avatar(bases=16)
    write_glb(tmp_path / "a.glb", exported(avatar, Animation("a", some_motion(9), 30, True)), {"gaussians": "yours"})
    oracle = Oracle(tmp_path / "a.glb")
    primitive = oracle.json["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0 and primitive["extensions"][SPLATTING]["kernel"] == "ellipse"
    assert primitive["extensions"][SPLATTING]["colorSpace"] == "srgb_rec709_display"
    assert oracle.json["extensionsUsed"] == [SPLATTING] and "extensionsRequired" not in oracle.json
    assert oracle.json["asset"]["extras"]["hdx"]["licences"] == {"gaussians": "yours"}
    used = np.zeros(len(oracle.binary), bool)
    for view in oracle.json["bufferViews"]:
        chosen = slice(view["byteOffset"], view["byteOffset"] + view["byteLength"])
        assert view["byteOffset"] % 4 == 0 and chosen.stop <= len(used) and not used[chosen].any()
        used[chosen] = True
    vertex_accessors = set(primitive["attributes"].values())
    for index, accessor in enumerate(oracle.json["accessors"]):
        view = oracle.json["bufferViews"][accessor["bufferView"]]
        kind, width = np.dtype(oracle.KIND[accessor["componentType"]]), oracle.WIDTH[accessor["type"]]
        stride, start = view.get("byteStride", kind.itemsize * width), accessor.get("byteOffset", 0)
        assert start % kind.itemsize == 0
        assert start + stride * (accessor["count"] - 1) + kind.itemsize * width <= view["byteLength"]
        if index in vertex_accessors:
            assert start % 4 == 0 and stride % 4 == 0 and accessor["count"] == len(avatar.canonical)
        if "min" in accessor:
            rows = oracle.raw(index)
            assert rows.min(0).tolist() == accessor["min"] and rows.max(0).tolist() == accessor["max"]
    assert "min" in oracle.json["accessors"][primitive["attributes"]["POSITION"]]
    joints = np.concatenate([oracle.attribute(f"JOINTS_{part}") for part in range(2)], axis=1)
    raw = np.concatenate([oracle.raw(primitive["attributes"][f"WEIGHTS_{part}"]) for part in range(2)], axis=1)
    assert (raw.sum(1, dtype=int) == 255).all() and not joints[raw == 0].any() and joints.max() < JOINTS
    assert (np.diff(raw.astype(int), axis=1) <= 0).all()  # the four strongest come first
    lengths = np.linalg.norm(oracle.attribute(f"{SPLATTING}:ROTATION"), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=4 * 0.5 / 32767)
    for clip in oracle.json["animations"]:
        for sampler in clip["samplers"]:
            times = oracle.values(sampler["input"])[:, 0]
            assert times[0] == 0 and (np.diff(times) > 0).all() and times[-1] <= 9 / 30 + 1e-6
            assert "min" in oracle.json["accessors"][sampler["input"]]
            assert oracle.json["accessors"][sampler["output"]]["count"] == len(times)
        targets = [(channel["target"]["node"], channel["target"]["path"]) for channel in clip["channels"]]
        assert len(set(targets)) == len(targets)
        assert all(node % 2 for node, path in targets if path == "rotation")  # joint 2k + 1 rests; its node is 2k + 2


def test_values_worked_out_by_hand(tmp_path: Path) -> None:
    gaussians = Gaussians(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.5, -0.5, 0.5]]) * 3, torch.tensor([[1.0, 0.01, 1e-9]]),
        torch.tensor([0.5]), torch.tensor([[[0.0, 0.5 / SH_C0, -9.0]]]),
    )  # fmt: skip
    rig = Rig(np.array([[0.0, 0.5, 0.0]]), np.array([-1]), ("root",))
    weights = np.eye(1, 8)
    write_glb(tmp_path / "a.glb", SkinnedGaussians(gaussians, np.zeros((1, 8), int), weights, rig))
    oracle = Oracle(tmp_path / "a.glb")
    attributes = oracle.json["meshes"][0]["primitives"][0]["attributes"]
    raw = {name.split(":")[-1]: oracle.raw(index)[0].tolist() for name, index in attributes.items()}
    assert raw["POSITION"] == [1, 0, 3]
    assert raw["ROTATION"] == [16384, -16384, 16384, 16384]  # xyzw; 0.5 * 32767 = 16383.5 goes to the even neighbour
    assert raw["SCALE"] == [65535, 655, 1]  # 0.01 * 65535 = 655.35; never zero
    assert raw["OPACITY"] == [32768]
    # sRGB 0.5 is 0.2140 in linear light, 54.6 / 255; one and below zero are clamped
    assert raw["COLOR_0"] == [55, 255, 0, 128]
    assert raw["JOINTS_0"] == [0, 0, 0, 0] and raw["WEIGHTS_0"] == [255, 0, 0, 0] and "JOINTS_1" not in raw
    np.testing.assert_allclose(raw["SH_DEGREE_0_COEF_0"], [0, 0.5 / SH_C0, -9], rtol=1e-6)


@pytest.mark.parametrize("bases", [1, 4, 9, 16])
def test_round_trip(tmp_path: Path, bases: int) -> None:
    avatar = some_avatar(bases=bases)
    clips = (Animation("a", some_motion(13, 1), 30.0, True), Animation("b", some_motion(1, 2), 24.0))
    write_glb(tmp_path / "a.glb", exported(avatar, *clips))
    back = read_glb(tmp_path / "a.glb")
    assert torch.equal(back.gaussians.sh, avatar.canonical.sh)
    torch.testing.assert_close(back.gaussians.scales, avatar.canonical.scales, atol=0.51 / 65535, rtol=0)
    torch.testing.assert_close(back.gaussians.opacities, avatar.canonical.opacities, atol=0.51 / 65535, rtol=0)
    np.testing.assert_allclose(back.joint_weights, avatar.joint_weights, atol=1e-6)
    np.testing.assert_array_equal(back.joint_indices, avatar.joint_indices)
    assert back.rig.names == avatar.joint_names
    np.testing.assert_array_equal(back.rig.parents, avatar.parents)
    assert [(clip.name, clip.fps, clip.loops, len(clip.pose.rotations)) for clip in back.animations] == [
        ("a", 30.0, True, 13), ("b", 24.0, False, 1)
    ]  # fmt: skip
    # the same place in the world, though the rest pose of the file has moved to the ground
    again = replace(
        avatar,
        canonical=back.gaussians,
        rest=RestBody(np.zeros((0, 3)), back.rig.joints),
        photo_pose=back.animations[0].pose,
    )
    for frame in range(13):
        means = avatar.gaussians(clips[0].pose, frame).means
        torch.testing.assert_close(again.gaussians(None, frame).means, means, atol=2e-3, rtol=0)  # as above
    write_glb(tmp_path / "b.glb", exported(avatar, *clips))
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


def test_key_frames_reproduce_every_frame() -> None:
    rng = np.random.default_rng(0)
    times = np.arange(90) / 30
    rotvecs = np.stack([np.sin(times), np.cos(2 * times) * 0.4, times], axis=1)
    tracks = {
        "still": np.zeros((90, 3)),
        "steady": np.outer(times, [0.3, 0.4, 0.0]),  # one axis, one speed: its two ends say it all
        "lively": rotvecs,
        "jumpy": rng.normal(size=(90, 3)),
    }
    quats = np.stack([Rotation.from_rotvec(track).as_quat(scalar_first=True) for track in tracks.values()], axis=1)
    quats[::7] *= -1  # the same rotations
    kept = key_frames(quats, 3e-4)
    assert kept[:, 0].sum() == 1 and kept[:, 1].sum() == 2 and kept[:, 3].sum() == 90
    assert 10 < kept[:, 2].sum() < 90
    for track in (1, 2, 3):
        rotations = Rotation.from_quat(quats[:, track], scalar_first=True)
        at = np.flatnonzero(kept[:, track])
        played = Slerp(times[at], rotations[at])(times)
        assert (played.inv() * rotations).magnitude().max() <= 3e-4 + 1e-7
    line = np.outer(times, [1.0, 2.0, 3.0])[:, None]
    assert key_frames(line, 1e-4).sum() == 2
    line[40] += 0.01
    assert np.flatnonzero(key_frames(line, 1e-4)).tolist() == [0, 39, 40, 41, 89]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_quantised_weights_sum_to_one_and_stay_within_a_step(kind: type) -> None:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(8, 0.3), size=2000)
    weights[:500, 3:] = 0
    top = np.iinfo(kind).max
    packed = quantised_weights(weights, kind)
    assert packed.dtype == kind and (packed.sum(1, dtype=int) == top).all()
    exact = weights / weights.sum(1, keepdims=True)
    assert abs(packed / top - exact).max() < 1 / top and not packed[:500, 3:].any()


def test_motion_that_a_rig_or_file_cannot_take(tmp_path: Path) -> None:
    avatar = some_avatar(20)
    path = tmp_path / "a.glb"
    short = BodyPose(some_motion(4).rotations[:, :5], np.zeros((4, 3)))
    for pose, reason in ((short, "12 joints"), (BodyPose(np.zeros((0, JOINTS, 3, 3)), np.zeros((0, 3))), "12 joints")):
        with pytest.raises(UsageError, match=reason):
            write_glb(path, exported(avatar, Animation("a", pose, 30)))
    broken = some_motion(4)
    broken.rotations[2, 3, 1, 1] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        write_glb(path, exported(avatar, Animation("a", broken, 30)))
    with pytest.raises(UsageError, match="frames per second"):
        write_glb(path, exported(avatar, Animation("a", some_motion(4), 0)))
    good = exported(avatar)
    with pytest.raises(UsageError, match="one root"):
        write_glb(path, SkinnedGaussians(avatar.canonical, avatar.joint_indices, avatar.joint_weights,
                                         Rig(good.rig.joints, np.roll(PARENTS, 1), good.rig.names)))  # fmt: skip
    with pytest.raises(UsageError, match="beyond the rig"):
        write_glb(path, SkinnedGaussians(avatar.canonical, avatar.joint_indices + 12, avatar.joint_weights, good.rig))
    with pytest.raises(UsageError, match="no weights"):
        write_glb(path, SkinnedGaussians(avatar.canonical, avatar.joint_indices, 0 * avatar.joint_weights, good.rig))
    nothing = avatar.canonical.select(torch.arange(0))
    with pytest.raises(NothingToDo):
        write_glb(path, SkinnedGaussians(nothing, good.joint_indices[:0], good.joint_weights[:0], good.rig))
    avatar.canonical.means[3, 1] = torch.inf
    with pytest.raises(InputRejected, match=r"a\.glb: means .* not finite"):
        write_glb(path, good)
    assert not path.exists()


def rebuilt(document: object, binary: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary))
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    path = tmp_path_factory.mktemp("written") / "a.glb"
    write_glb(path, exported(some_avatar(20), Animation("a", some_motion(5), 30)))
    return Oracle(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, written: Oracle) -> None:
    content = rebuilt(written.json, written.binary)
    path = tmp_path / "a.glb"
    for length in [*range(0, 40), *range(40, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(InputRejected, match="not an avatar"):
            read_glb(path)
    with pytest.raises(InputRejected, match="no such file"):
        read_glb(tmp_path / "none.glb")


def test_any_single_value_gone_wrong_is_read_or_refused_never_a_crash(tmp_path: Path, written: Oracle) -> None:
    places: list[tuple] = []

    def walk(value: object, way: tuple) -> None:
        places.append(way)
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in inside:
            walk(inner, (*way, key))

    walk(written.json, ())
    rng = np.random.default_rng(0)
    wrong = [None, -1, 10**30, 1e300, [], {}, "x", float("nan"), 2**31, True, 0, [[]], {"node": 7}, 65535]
    path, refused = tmp_path / "a.glb", 0
    for _ in range(200):
        document = copy.deepcopy(written.json)
        way = places[rng.integers(1, len(places))]
        holder = document
        for key in way[:-1]:
            holder = holder[key]
        holder[way[-1]] = wrong[rng.integers(len(wrong))]
        path.write_bytes(rebuilt(document, written.binary))
        try:
            back = read_glb(path)
            assert back.joint_indices.max() < len(back.rig.names) and np.isfinite(back.gaussians.means.numpy()).all()
        except InputRejected as error:
            refused += 1
            assert str(path) in error.message and "\n" not in error.message
    assert refused > 50


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda json: json["nodes"][3].update(rotation=[0, 1, 0, 0]), "rest rotations"),
        (lambda json: json["nodes"][3].update(children=[2]), "not in order"),
        (lambda json: json["skins"][0]["joints"].append(1), "joints twice"),
        (lambda json: json["animations"][0]["samplers"][1].update(interpolation="CUBICSPLINE"), "not linear"),
        (lambda json: json["accessors"][0].update(count=10**7), "more than"),
        (lambda json: json["accessors"][0].update(sparse={}), "sparse"),
        (lambda json: json["meshes"][0]["primitives"][0].update(extensions={}), "0 primitives"),
        (lambda json: json["animations"].extend(json["animations"] * 10**4), "20000 channels"),
    ],
)
def test_files_that_are_no_avatar_say_why(tmp_path: Path, written: Oracle, change, reason: str) -> None:
    document = copy.deepcopy(written.json)
    change(document)
    path = tmp_path / "a.glb"
    path.write_bytes(rebuilt(document, written.binary))
    with pytest.raises(InputRejected, match=reason):
        read_glb(path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path, written: Oracle) -> None:
    binary = bytearray(written.binary)
    struct.pack_into("<f", binary, written.json["bufferViews"][0]["byteOffset"] + 4, np.nan)
    (tmp_path / "a.glb").write_bytes(rebuilt(written.json, bytes(binary)))
    with pytest.raises(InputRejected, match="not finite"):
        read_glb(tmp_path / "a.glb")


def test_a_clip_of_years_is_refused(tmp_path: Path, written: Oracle) -> None:
    binary = bytearray(written.binary)
    times = written.json["accessors"][written.json["animations"][0]["samplers"][0]["input"]]
    start = written.json["bufferViews"][times["bufferView"]]["byteOffset"] + times.get("byteOffset", 0)
    struct.pack_into("<f", binary, start + 4 * times["count"] - 4, 1e8)
    (tmp_path / "a.glb").write_bytes(rebuilt(written.json, bytes(binary)))
    with pytest.raises(InputRejected, match="clips of more than 256 MiB"):
        read_glb(tmp_path / "a.glb")


def test_a_splat_without_a_skin_is_one_joint(tmp_path: Path, written: Oracle) -> None:
    document = copy.deepcopy(written.json)
    document["nodes"] = [{"mesh": 0}]
    del document["skins"], document["animations"]
    path = tmp_path / "a.glb"
    path.write_bytes(rebuilt(document, written.binary))
    back = read_glb(path)
    assert back.rig.names == ("root",) and not back.animations
    np.testing.assert_array_equal(back.gaussians.means.numpy(), written.attribute("POSITION"))
    document["nodes"][0]["translation"] = [0, 1, 0]
    path.write_bytes(rebuilt(document, written.binary))
    with pytest.raises(InputRejected, match="a node moves"):
        read_glb(path)


def discs_at(points: np.ndarray, rgb: np.ndarray) -> Gaussians:
    count = len(points)
    return Gaussians(
        means=torch.from_numpy(points.astype(np.float32)),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        scales=torch.full((count, 3), 0.004),
        opacities=torch.full((count,), 0.9),
        sh=sh_from_rgb(torch.from_numpy(rgb.astype(np.float32))),
    )


def quad_mesh() -> SkinnedMesh:
    """A square of 0.2 m in the plane z = 0 in two triangles, texture coordinates upright; the right edge on joint 1."""
    vertices = np.array([[0.0, 1, 0], [0.2, 1, 0], [0.2, 1.2, 0], [0, 1.2, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    indices, weights = np.zeros((4, 8), int), np.eye(1, 8).repeat(4, 0)
    indices[1:3, 0] = 1
    return SkinnedMesh(vertices, faces, indices, weights, np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]), faces)


def test_a_surface_moves_out_to_where_the_gaussians_are() -> None:
    ball, eye = trimesh.creation.icosphere(3, radius=0.3), trimesh.creation.icosphere(2, radius=0.02)
    vertices = np.concatenate([ball.vertices, eye.vertices + [0, 0, 0.29]])
    faces = np.concatenate([ball.faces, eye.faces + len(ball.vertices)])
    directions = trimesh.creation.icosphere(5).vertices
    # clothes 2 cm above the upper half, nothing known of the lower
    coat = directions[directions[:, 1] > 0] * 0.32
    stray = np.array([[0.0, 0.9, 0.0], [0.1, 0.05, 0.0]])  # too far out, and deep inside
    cloud = discs_at(np.concatenate([coat, stray]), np.full((len(coat) + 2, 3), 0.5))
    moved = clothed(vertices, faces, cloud, np.ones(len(cloud)))
    radius = np.linalg.norm(moved[: len(ball.vertices)], axis=1)
    upper = ball.vertices[:, 1] > 0.05
    np.testing.assert_allclose(radius[upper], 0.32, atol=2e-3)  # smoothing next to the rim
    assert (radius > 0.29).all() and (radius < 0.33).all()  # what is unknown continues what is known
    change = (moved - vertices)[len(ball.vertices) :]
    np.testing.assert_allclose(change, np.tile(change[0], (len(change), 1)), atol=1e-12)  # the eye keeps its shape
    assert change[0, 2] == pytest.approx(0.02, abs=4e-3)


def test_colours_are_those_of_the_gaussians_there_and_the_photo_goes_first() -> None:
    grid = np.stack(np.meshgrid(np.linspace(0, 0.2, 40), np.linspace(0, 0.2, 40)), -1).reshape(-1, 2)
    points = np.concatenate([grid, np.zeros((1600, 1))], axis=1)
    red, blue = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
    cloud = discs_at(points, np.where(points[:, :1] < 0.1, red, blue))
    colours = vertex_colours(np.array([[0.02, 0.1, 0.001], [0.18, 0.1, 0], [0.5, 0.1, 3.0]]), cloud, np.ones(1600))
    np.testing.assert_allclose(colours, [red, blue, blue], atol=1e-6)
    mixed = discs_at(np.zeros((2, 3)), np.stack([red, blue]))
    colour = vertex_colours(np.zeros((1, 3)), mixed, np.array([1.0, 0.0]))[0]
    assert colour[0] == pytest.approx(6 / 7, abs=1e-6)  # (1 + 0.2) against 0.2
    unseen = replace(mixed, opacities=torch.tensor([0.01, 0.01]))
    with pytest.raises(NothingToDo, match="no Gaussian"):
        vertex_colours(np.zeros((1, 3)), unseen, np.ones(2))


def test_a_texture_is_the_right_way_up() -> None:
    mesh = quad_mesh()
    grid = np.stack(np.meshgrid(np.linspace(0, 0.2, 60), np.linspace(1, 1.2, 60)), -1).reshape(-1, 2)
    points = np.concatenate([grid, np.zeros((3600, 1))], axis=1)
    colours = np.stack([points[:, 0] / 0.2, (points[:, 1] - 1) / 0.2, 0 * points[:, 0]], axis=1)
    texture = baked_texture(mesh, discs_at(points, colours), np.ones(3600), 64) / 255
    across = (np.arange(64) + 0.5) / 64
    # red grows to the right, green towards the top row; neighbours 3 mm apart average over 0.02 of the range or so
    np.testing.assert_allclose(texture[..., 0], np.tile(across, (64, 1)), atol=0.04)
    np.testing.assert_allclose(texture[..., 1], np.tile(across[::-1, None], (1, 64)), atol=0.04)
    with pytest.raises(UsageError, match="vertex colours"):
        baked_texture(replace(mesh, uv=None, uv_faces=None), discs_at(points, colours), np.ones(3600), 64)


@pytest.mark.parametrize("textured", [True, False])
def test_a_reader_by_the_book_poses_the_mesh_as_the_body_is_posed(tmp_path: Path, textured: bool) -> None:
    avatar = some_avatar(162)  # weights and joints for as many vertices
    ball = trimesh.creation.icosphere(2)
    corners = np.arange(3 * len(ball.faces)).reshape(-1, 3)
    uv = np.random.default_rng(0).random((corners.size, 2))
    mesh = SkinnedMesh(ball.vertices.view(np.ndarray), ball.faces.view(np.ndarray), avatar.joint_indices,
                       avatar.joint_weights, uv, corners)  # fmt: skip
    pose, rig = some_motion(6), Rig(avatar.rest.joints, avatar.parents, avatar.joint_names)
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    looks = {"texture": picture} if textured else {"colours": np.full((162, 3), 0.5)}
    write_mesh_glb(tmp_path / "a.mesh.glb", mesh, rig, [Animation("a", pose, 24.0)], **looks)
    oracle = Oracle(tmp_path / "a.mesh.glb")
    primitive = oracle.json["meshes"][0]["primitives"][0]
    triangles = oracle.raw(primitive["indices"])[:, 0].reshape(-1, 3)
    shift = np.array(oracle.json["asset"]["extras"]["hdx"]["rest_shift_m"])
    rest = oracle.attribute("POSITION")
    np.testing.assert_allclose(rest[triangles], mesh.vertices[mesh.faces] + shift, atol=1e-6)
    assert rest[:, 1].min() == pytest.approx(0, abs=1e-6)
    if textured:
        np.testing.assert_allclose(oracle.attribute("TEXCOORD_0")[triangles], uv[corners] * [1, -1] + [0, 1], atol=1e-6)
        view = oracle.json["bufferViews"][oracle.json["images"][0]["bufferView"]]
        image = Image.open(io.BytesIO(oracle.binary[view["byteOffset"] :][: view["byteLength"]]))
        assert image.size == (16, 16) and "COLOR_0" not in primitive["attributes"]
    else:
        np.testing.assert_allclose(oracle.attribute("NORMAL"), vertex_normals(rest, mesh.faces), atol=1e-6)
        assert (oracle.raw(primitive["attributes"]["COLOR_0"]) == [55, 55, 55, 255]).all()  # linear light of 0.5
    weights = np.zeros((162, JOINTS))
    np.add.at(weights, (np.arange(162)[:, None], avatar.joint_indices), avatar.joint_weights)
    for frame in range(6):
        transforms = joint_transforms(pose.rotations[frame], rig.joints, PARENTS, pose.translations[frame])
        expected = skin(mesh.vertices, weights, transforms)[0]
        means, _ = oracle.skinned(oracle.joint_matrices(0, frame / 24))
        np.testing.assert_allclose(means[triangles], expected[mesh.faces], atol=2e-3)  # key frames, as above
    loaded = trimesh.load(tmp_path / "a.mesh.glb", force="mesh")
    assert len(loaded.faces) == len(ball.faces) and loaded.area == pytest.approx(ball.area, rel=1e-5)


def test_meshes_that_are_none(tmp_path: Path) -> None:
    mesh, path = quad_mesh(), tmp_path / "a.mesh.glb"
    rig = Rig(np.zeros((2, 3)), np.array([-1, 0]), ("a", "b"))
    with pytest.raises(NothingToDo):
        write_mesh_glb(path, replace(mesh, faces=mesh.faces[:0], uv_faces=mesh.faces[:0]), rig)
    with pytest.raises(InputRejected):
        write_mesh_glb(path, replace(mesh, faces=mesh.faces + 2), rig)
    with pytest.raises(InputRejected):
        write_mesh_glb(path, replace(mesh, vertices=mesh.vertices * np.nan), rig)
    with pytest.raises(UsageError, match="texture"):
        plain = replace(mesh, uv=None, uv_faces=None)
        write_mesh_glb(path, plain, rig, texture=np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="beyond the rig"):
        write_mesh_glb(path, mesh, Rig(np.zeros((1, 3)), np.array([-1]), ("a",)))
    assert not path.exists()
