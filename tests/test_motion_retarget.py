"""Retargeting and BVH against an independent writer and an independent forward kinematics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from motion_files import JOINTS, MIRROR, NAMES, PARENTS, REST, STYLES, forward, some_motion, write_bvh
from scipy.spatial.transform import Rotation

from hdx_cli.bodies import anny
from hdx_cli.bodies.base import RestBody, joint_transforms
from hdx_cli.errors import HdxError, InputRejected
from hdx_cli.motion import bvh, load
from hdx_cli.motion.retarget import Motion, planting, retarget, rig, sole_points
from hdx_cli.motion.skeleton import skeleton

Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # ours to +Z up, facing -Y
BONES = (("arm", "forearm"), ("forearm", "hand"), ("thigh", "shin"), ("shin", "foot"))


@pytest.fixture(scope="module")
def body():
    model = anny.load()
    return model, model.rest(model.default_shape)


def places(clip, body) -> np.ndarray:
    """Joints of a clip in the world, by the package's skinning transforms."""
    model, rest = body
    transforms = joint_transforms(clip.pose.rotations.astype(float), rest.joints, model.parents, clip.pose.translations)
    return np.einsum("tjab,jb->tja", transforms[..., :3, :3], rest.joints) + transforms[..., :3, 3]


def on(path, body, **options):
    model, rest = body
    return load(str(path), RestBody(np.zeros((0, 3)), rest.joints), model.parents, model.joint_names, **options)


def bone(points: np.ndarray, model, side: str, start: str, end: str) -> np.ndarray:
    first = {
        "arm": "upperarm01",
        "forearm": "lowerarm01",
        "hand": "wrist",
        "thigh": "upperleg01",
        "shin": "lowerleg01",
        "foot": "foot",
    }
    a, b = (model.joint_names.index(f"{first[name]}.{side.upper()}") for name in (start, end))
    return (points[:, b] - points[:, a]) / np.linalg.norm(points[:, b] - points[:, a], axis=-1, keepdims=True)


@pytest.mark.parametrize("style", STYLES)
def test_bones_point_where_the_sources_do(style, body, tmp_path) -> None:
    """Two skeletons with other proportions and rest poses; the oracle multiplies 4 x 4 matrices."""
    local, hips = some_motion()
    turn = {"cmu": "ZYX", "mixamo": "XYZ", "makehuman": "XZY", "joints": "ZXY", "blender": "YXZ"}[style]
    axes = Z_UP if style == "makehuman" else None
    path = write_bvh(
        tmp_path / "a.bvh", local, hips, style=style, order=turn, scale=10.0 if axes is not None else 100.0, axes=axes
    )
    found = places(on(path, body), body)
    _, truth = forward(local, hips)
    for side in "lr":
        for start, end in BONES:
            wanted = truth[:, NAMES.index(f"{side}_{end}")] - truth[:, NAMES.index(f"{side}_{start}")]
            wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
            assert (
                np.degrees(np.arccos((bone(found, body[0], side, start, end) * wanted).sum(-1).clip(-1, 1))).max() < 0.3
            )


def test_own_rig_comes_back(body, tmp_path) -> None:
    """The target's own skeleton as the source: every joint's rotation is found again, at any root turn."""
    model, rest = body
    source = skeleton(model.joint_names, model.parents, rest.joints.astype(float))
    slots = {joint for joints in source.slots.values() for joint in joints if joint not in source.slots["toes.L"][1:]}
    random = np.random.default_rng(1)
    local = np.tile(np.eye(3), (4, len(model.parents), 1, 1))
    for joint in sorted(slots):
        local[:, joint] = Rotation.from_rotvec(random.normal(0, 0.25, (4, 3))).as_matrix()
    for side in "LR":
        local[:, list(source.slots[f"toes.{side}"])] = local[:, list(source.slots[f"toes.{side}"])[:1]]
    world = local.copy()
    for joint, parent in enumerate(model.parents):
        if parent >= 0:
            world[:, joint] = world[:, parent] @ local[:, joint]
    motion = Motion(
        model.joint_names, model.parents, rest.joints.astype(float), world, np.zeros((4, 3)), np.eye(3), 30.0
    )
    target = rig(rest, model.parents, model.joint_names)
    found = retarget(motion, target, "own")
    np.testing.assert_allclose(found.rotations, local, atol=1e-5)
    still = replace(motion, rotations=np.tile(np.eye(3), (4, len(world[0]), 1, 1)))
    np.testing.assert_allclose(retarget(still, target, "rest").rotations, still.rotations, atol=1e-6)


def test_a_mirrored_motion_mirrors_the_avatar(body, tmp_path) -> None:
    local, hips = some_motion()
    flip = np.diag([-1.0, 1, 1])
    mirrored = (flip @ local @ flip)[:, MIRROR]
    model, _ = body
    found = places(on(write_bvh(tmp_path / "a.bvh", local, hips), body), body)
    other = places(on(write_bvh(tmp_path / "b.bvh", mirrored, hips @ flip), body), body)
    swap = [
        model.joint_names.index(n[:-1] + {"L": "R", "R": "L"}[n[-1]] if n[-2:] in (".L", ".R") else n)
        for n in model.joint_names
    ]
    assert np.abs(found @ flip - other[:, swap]).max() < 0.004  # the body itself is symmetric to 1 mm


def test_a_turned_motion_turns_everything(body, tmp_path) -> None:
    local, hips = some_motion()
    turn = Rotation.from_rotvec([0, 1.1, 0]).as_matrix()
    turned = local.copy()
    turned[:, 0] = turn @ local[:, 0]
    found = on(write_bvh(tmp_path / "a.bvh", local, hips), body)
    other = on(write_bvh(tmp_path / "b.bvh", turned, hips @ turn.T), body)
    a, b = places(found, body), places(other, body)
    moved = (a - a[:1, :1]) @ turn.T
    np.testing.assert_allclose(moved - moved[:, :1], b - b[:, :1], atol=1e-4)
    assert np.abs((b - b[:1, :1]) - moved).max() < 0.01


def test_units_and_axes_do_not_matter(body, tmp_path) -> None:
    local, hips = some_motion()
    metres = on(write_bvh(tmp_path / "a.bvh", local, hips), body)
    inches = on(write_bvh(tmp_path / "b.bvh", local, hips, scale=39.37, axes=Z_UP), body)
    np.testing.assert_allclose(metres.pose.rotations, inches.pose.rotations, atol=1e-4)
    np.testing.assert_allclose(metres.pose.translations, inches.pose.translations, atol=1e-4)


def test_a_first_t_pose_is_left_out(body, tmp_path) -> None:
    local, hips = some_motion(40)
    local[:, NAMES.index("l_arm")] = Rotation.from_rotvec([0, 0, -1.3]).as_matrix()
    local[:, NAMES.index("r_arm")] = Rotation.from_rotvec([0, 0, 1.3]).as_matrix()
    local = (
        np.repeat(local[:1], 40, axis=0)
        @ Rotation.from_rotvec(np.linspace([0, 0, 0], [0, 0.1, 0], 40)).as_matrix()[:, None]
    )
    rest = np.tile(np.eye(3), (1, len(NAMES), 1, 1))
    path = write_bvh(tmp_path / "a.bvh", np.concatenate([rest, local]), np.concatenate([hips[:1], hips]))
    assert len(on(path, body)) == 40
    assert len(on(write_bvh(tmp_path / "b.bvh", local, hips), body)) == 40


def walking_source(frames: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """The small skeleton steps from foot to foot, its lowest ankle pinned, so that its own feet do not slide."""
    local = np.tile(np.eye(3), (frames, len(NAMES), 1, 1))
    phase = np.arange(frames) / 30 * 2 * np.pi
    for side, sign in (("l", 1), ("r", -1)):
        swing = 0.35 * np.sin(phase) * sign
        bend = 0.5 * np.clip(np.cos(phase) * sign, 0, 1)
        local[:, NAMES.index(f"{side}_thigh")] = Rotation.from_rotvec(np.outer(swing - bend, [1, 0, 0])).as_matrix()
        local[:, NAMES.index(f"{side}_shin")] = Rotation.from_rotvec(np.outer(2 * bend, [1, 0, 0])).as_matrix()
        local[:, NAMES.index(f"{side}_foot")] = Rotation.from_rotvec(np.outer(-swing - bend, [1, 0, 0])).as_matrix()
    _, points = forward(local, np.tile(REST[0], (frames, 1)))
    feet = points[:, [NAMES.index("l_foot"), NAMES.index("r_foot")]]
    low = feet[..., 1].argmin(axis=1)
    hips = np.tile(REST[0], (frames, 1))
    for t in range(frames):
        if t:
            step = feet[t, low[t], 2] - feet[t - 1, low[t], 2]
            hips[t, 2] = hips[t - 1, 2] - step
        hips[t, 1] += 0.09 - feet[t, low[t], 1]
    return local, hips


def test_feet_stand_on_the_ground_and_do_not_slide(body, tmp_path) -> None:
    model, rest = body
    local, hips = walking_source()
    clip = on(write_bvh(tmp_path / "a.bvh", local, hips), body)
    target = rig(RestBody(np.zeros((0, 3)), rest.joints), model.parents, model.joint_names)
    world = joint_transforms(clip.pose.rotations.astype(float), rest.joints, model.parents, clip.pose.translations)
    soles = sole_points(target, world[..., :3, :3], places(clip, body)).reshape(len(clip), 2, 3, 3)
    lowest = soles[..., 1].min(axis=(1, 2))
    assert np.abs(lowest).max() < 0.02
    for foot in range(2):
        ball = soles[:, foot, 1]
        planted = soles[:, foot, :, 1].min(1) <= lowest + 1e-6
        runs = np.split(np.arange(len(clip)), np.nonzero(np.diff(planted.astype(int)))[0] + 1)
        for run in runs:
            if planted[run[0]] and len(run) > 5:
                inner = ball[run[2:-2]]
                assert np.ptp(inner[:, [0, 2]], axis=0).max() < 0.03
    ratio = target.skeleton.leg_length() / 0.86
    assert abs(hips[-1, 2]) > 1.0  # it got somewhere
    assert abs(clip.pose.translations[-1, 2] - ratio * hips[-1, 2]) < 0.1 * abs(ratio * hips[-1, 2])


def test_the_sole_of_a_rig_without_vertices(body) -> None:
    model, _ = body
    random = np.random.default_rng(0)
    for _ in range(5):
        shape = model.default_shape.copy()
        shape[:6] = random.uniform([0, 0.4, 0, 0, 0, 0], 1)
        rest = model.rest(shape)
        guess = rig(RestBody(np.zeros((0, 3)), rest.joints), model.parents, model.joint_names)
        assert abs(guess.feet["L"].points[0, 1] - rest.vertices[:, 1].min()) < 0.008


def test_planting_keeps_jumps_and_removes_drift() -> None:
    """Two feet that drift slowly over the ground and jump once; what is planted must stand, the jump must stay."""
    times = np.arange(60) / 30
    jump = np.where((times > 0.8) & (times < 1.2), 1.2 * (times - 0.8) * (1.2 - times) / 0.04 * 0.1, 0.0)
    points = np.zeros((60, 2, 3))
    points[:, 0, 0], points[:, 1, 0] = 0.1, -0.1
    points[..., 2] = 0.1 * times[:, None]
    points[..., 1] = 0.3 + jump[:, None]
    shifted = points + planting(points, 30.0, 0.9)[:, None]
    assert np.abs(shifted[:22, :, 1]).max() < 1e-9
    assert abs(shifted[30, 0, 1] - jump[30]) < 1e-6
    assert np.ptp(shifted[:20, 0, 2]) < 1e-9


def test_slots_of_known_names() -> None:
    parents = np.array(PARENTS)
    reference = skeleton(STYLES["cmu"].split(), parents, REST).slots
    for names in STYLES.values():
        assert skeleton(names.split(), parents, REST).slots == reference
    assert reference["spine"] == (1, 2) and reference["neck"] == (3,) and reference["pelvis"] == (0,)
    assert len(reference) == 20 and len(JOINTS) == 21
    # MakeHuman's older rigs: the hips hang beside the spine, and joints named __ stand between
    names = [
        "Root",
        "Spine1",
        "Neck",
        "Head",
        "__UpArm_L",
        "UpArm_L",
        "LoArm_L",
        "UpArm_R",
        "LoArm_R",
        "Hips",
        "UpLeg_L",
        "UpLeg_R",
    ]
    found = skeleton(names, np.array([-1, 0, 1, 2, 1, 4, 5, 1, 7, 0, 9, 9]), np.zeros((12, 3))).slots
    assert found["pelvis"] == (9,) and found["spine"] == (1,) and found["neck"] == (2,) and found["upper_arm.L"] == (5,)


TEXT = "HIERARCHY\nROOT Hips\n{\nOFFSET 0 0 0\nCHANNELS 3 Zrotation Xrotation Yrotation\n}\nMOTION\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "garbage " * 1000,
        lambda text: text[: len(text) // 2],
        lambda text: text[: text.index("MOTION") + 20],
        lambda text: text.replace("Frames: 12", "Frames: 1000000000"),
        lambda text: text.replace("Frames: 12", "Frames: 0"),
        lambda text: text.replace("Frames: 12", "Frames: -3"),
        lambda text: text.replace("Frames: 12", "Frames: 13"),
        lambda text: text.replace("Frame Time: 0.0", "Frame Time: nan #"),
        lambda text: text.replace("Frame Time: 0.03333333", "Frame Time: 0"),
        lambda text: text[:-40] + " nan" + text[-30:],
        lambda text: text[:-40] + " inf" + text[-30:],
        lambda text: text[:-40] + " oops " + text[-30:],
        lambda text: text.replace("CHANNELS 3", "CHANNELS 999999", 1),
        lambda text: text.replace("CHANNELS 3", "CHANNELS 2", 1),
        lambda text: text.replace("Zrotation", "Wrotation", 1),
        lambda text: text.replace("{", "", 1),
        lambda text: text.replace("JOINT", "ROOT", 1),
        lambda text: text.replace("OFFSET", "OFFSET nan", 2),
        lambda text: text.replace("Left", "Foo").replace("Right", "Bar"),
        lambda text: "HIERARCHY\n" + "ROOT a\n{\n" + "JOINT b\n{\n" * 3000 + "MOTION\nFrames: 1\nFrame Time: 0.1\n0\n",
        lambda text: TEXT + "Frames: 1\nFrame Time: 0.1\n0 0 0\n",
    ],
)  # fmt: skip
def test_malformed_bvh(change, body, tmp_path) -> None:
    path = write_bvh(tmp_path / "a.bvh", *some_motion())
    good = path.read_text()
    changed = change(good)
    assert changed != good
    path.write_text(changed)
    with pytest.raises(InputRejected) as raised:
        on(path, body)
    assert str(path) in raised.value.message and "\n" not in raised.value.message and len(raised.value.message) < 500


def test_every_cut_of_a_bvh_is_refused_or_read(body, tmp_path) -> None:
    path = write_bvh(tmp_path / "a.bvh", *some_motion(2))
    good = path.read_bytes()
    for end in range(0, len(good), 211):
        path.write_bytes(good[:end])
        with pytest.raises(HdxError):
            bvh.read(path)
