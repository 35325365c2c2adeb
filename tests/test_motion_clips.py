"""Built-in clips on bodies of several shapes, and what can be done with a clip."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hdx_cli.bodies import anny
from hdx_cli.bodies.base import BodyPose, RestBody, joint_transforms
from hdx_cli.errors import UsageError
from hdx_cli.motion import BUILT_IN, built_in, load
from hdx_cli.motion.clip import Clip, part, repeated, resampled
from hdx_cli.motion.retarget import rig, sole_points

LOOPING = [name for name in BUILT_IN if name != "walk-forward"]


@pytest.fixture(scope="module", params=["short and heavy", "tall child"])
def body(request):
    model = anny.load()
    shape = model.default_shape.copy()
    if request.param == "short and heavy":
        shape[:6] = [0.9, 0.7, 0.4, 1.0, 0.0, 0.2]
    if request.param == "tall child":
        shape[:6] = [0.2, 0.4, 0.5, 0.4, 1.0, 0.8]
    return model, model.rest(shape)


@pytest.fixture(scope="module")
def clips(body):
    model, rest = body
    empty = RestBody(np.zeros((0, 3)), rest.joints)
    return {name: load(name, empty, model.parents, model.joint_names) for name in BUILT_IN}


def world(clip, body) -> tuple[np.ndarray, np.ndarray]:
    model, rest = body
    transforms = joint_transforms(clip.pose.rotations.astype(float), rest.joints, model.parents, clip.pose.translations)
    return transforms[..., :3, :3], np.einsum("tjab,jb->tja", transforms[..., :3, :3], rest.joints) + transforms[
        ..., :3, 3
    ]


def soles(clip, body) -> np.ndarray:
    """Heel, ball and tip of both feet [T 2 3 3]."""
    model, rest = body
    target = rig(RestBody(np.zeros((0, 3)), rest.joints), model.parents, model.joint_names)
    return sole_points(target, *world(clip, body)).reshape(len(clip), 2, 3, 3)


def test_names_and_clips_agree() -> None:
    assert set(BUILT_IN) == set(built_in.CLIPS)


def test_poses_are_rotations_and_finite(clips) -> None:
    for clip in clips.values():
        r = clip.pose.rotations
        assert np.isfinite(clip.pose.translations).all() and r.dtype == np.float32
        assert (
            np.abs(r @ np.swapaxes(r, -1, -2) - np.eye(3)).max() < 1e-5 and (np.linalg.det(r.astype(float)) > 0).all()
        )


def test_loops_close(clips, body) -> None:
    """The step from the last frame to the first is no larger than the largest of the others, of any joint."""
    for name in LOOPING:
        _, places = world(clips[name], body)
        if len(places) > 1:
            steps = np.linalg.norm(np.diff(np.concatenate([places, places[:1]]), axis=0), axis=-1).max(axis=1)
            assert steps[-1] <= 1.05 * steps[:-1].max(), name
        assert clips[name].loops == (len(places) > 1)


def test_nothing_is_below_the_ground_and_feet_come_down_to_it(clips, body) -> None:
    for name, clip in clips.items():
        lowest = soles(clip, body)[..., 1].min(axis=(1, 2))
        assert lowest.min() > -0.002, name
        assert lowest.min() < 0.002, name
        assert name in ("run", "jumping-jack") or lowest.max() < 0.012, name


def stance_slides(points: np.ndarray) -> list[float]:
    """How far the pivot of each foot strays while it is on the ground: heel, then ball."""
    slides = []
    for foot in range(2):
        for point in (0, 1):
            down = points[:, foot, point, 1] < 0.006
            for run in np.split(np.arange(len(points)), np.nonzero(np.diff(down.astype(int)))[0] + 1):
                if down[run[0]] and len(run) > 3:
                    slides.append(np.ptp(points[run, foot, point][:, [0, 2]], axis=0).max())
    return slides


def test_planted_feet_of_the_walk_do_not_slide(clips, body) -> None:
    points = soles(clips["walk-forward"], body)
    slides = stance_slides(points)
    assert len(slides) >= 8 and max(slides) < 0.02
    model, rest = body
    leg = rig(RestBody(np.zeros((0, 3)), rest.joints), model.parents, model.joint_names).skeleton.leg_length()
    travel = clips["walk-forward"].pose.translations
    assert abs(travel[-1, 2] - travel[0, 2] - 3 * built_in.WALK_STRIDE * leg) < 1e-3


@pytest.mark.parametrize("name", ["idle", "wave", "squat", "dance", "turn", "jumping-jack"])
def test_standing_feet_do_not_slide(name, clips, body) -> None:
    points = soles(clips[name], body)
    slides = []
    for foot in range(2):
        ball = points[:, foot, 1]
        step = np.diff(ball, axis=0)
        on_ground = (ball[1:, 1] < 0.004) & (ball[:-1, 1] < 0.004)
        slides.append(np.linalg.norm(step[on_ground][:, [0, 2]], axis=-1).max())
    assert max(slides) < 0.004


def test_the_treadmill_runs_evenly(clips, body) -> None:
    model, rest = body
    leg = rig(RestBody(np.zeros((0, 3)), rest.joints), model.parents, model.joint_names).skeleton.leg_length()
    for name, stride, frames in (
        ("walk", built_in.WALK_STRIDE, built_in.WALK_FRAMES),
        ("run", built_in.RUN_STRIDE, built_in.RUN_FRAMES),
    ):
        clip = clips[name]
        assert len(clip) == frames
        points = soles(clip, body)
        points[..., 2] += stride * leg / frames * np.arange(frames)[:, None, None]
        for foot in range(2):
            ball = points[:, foot, 1]
            flat = (ball[1:, 1] < 0.004) & (ball[:-1, 1] < 0.004)
            assert flat.sum() >= 3
            assert np.abs(np.diff(ball[:, 2])[flat]).max() < 0.004, name


def test_knees_and_elbows_bend_their_own_way(clips, body) -> None:
    """Forearms turn towards the front of the upper arm, shins towards the back of the thigh: never the other way."""
    model, rest = body
    at = model.joint_names.index
    for name, clip in clips.items():
        rotations, places = world(clip, body)
        for side in "LR":
            hip, knee, ankle = (places[:, at(f"{joint}.{side}")] for joint in ("upperleg01", "lowerleg01", "foot"))
            toes = places[:, at(f"toe3-1.{side}")] - ankle
            forward = toes / np.linalg.norm(toes, axis=-1, keepdims=True)
            along = (ankle - hip) / np.linalg.norm(ankle - hip, axis=-1, keepdims=True)
            out = (knee - hip) - along * ((knee - hip) * along).sum(-1, keepdims=True)
            bent = np.linalg.norm(out, axis=-1) > 0.02
            assert ((out * forward).sum(-1)[bent] > -0.2 * np.linalg.norm(out, axis=-1)[bent]).all(), name
            upper = rotations[:, at(f"upperarm02.{side}")]
            axis = np.cross(
                rest.joints[at(f"lowerarm01.{side}")] - rest.joints[at(f"upperarm01.{side}")],
                rest.joints[at(f"wrist.{side}")] - rest.joints[at(f"lowerarm01.{side}")],
            )
            elbow = places[:, at(f"lowerarm01.{side}")]
            a, b = elbow - places[:, at(f"upperarm01.{side}")], places[:, at(f"wrist.{side}")] - elbow
            flexion = (
                (np.cross(a, b) * (upper @ axis)).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
            )
            assert (flexion > -0.01 * np.linalg.norm(axis)).all(), name


def test_hands_stay_clear_of_the_body(clips, body) -> None:
    """Wrists are outside an upright cylinder about the pelvis that is as wide as the hip joints and 5 cm more."""
    model, rest = body
    at = model.joint_names.index
    hips = abs(rest.joints[at("upperleg01.L"), 0])
    for name, clip in clips.items():
        _, places = world(clip, body)
        for side in "LR":
            away = places[:, at(f"wrist.{side}")] - places[:, 0]
            below = np.abs(away[:, 1]) < 0.2
            assert (np.linalg.norm(away[below][:, [0, 2]], axis=-1) > hips + 0.05).all(), name


def test_poses_by_hand(clips, body) -> None:
    """T: arms along x; A: half way down; the walk's left foot strikes in front at frame 0."""
    model, _ = body
    at = model.joint_names.index
    for name, wanted in (("t-pose", [1, 0, 0]), ("a-pose", [np.sqrt(0.5), -np.sqrt(0.5), 0])):
        _, places = world(clips[name], body)
        for side, sign in (("L", 1), ("R", -1)):
            arm = places[0, at(f"wrist.{side}")] - places[0, at(f"upperarm01.{side}")]
            np.testing.assert_allclose(arm / np.linalg.norm(arm), np.multiply(wanted, [sign, 1, 1]), atol=0.02)
    _, places = world(clips["walk"], body)
    assert places[0, at("foot.L"), 2] > 0.15 > -0.1 > places[0, at("foot.R"), 2]
    assert places[16, at("foot.R"), 2] > 0.15
    assert places[0, at("wrist.R"), 2] > places[0, at("wrist.L"), 2]


def test_the_walk_mirrors_itself_half_a_cycle_later(clips, body) -> None:
    model, _ = body
    swap = [
        model.joint_names.index(n[:-1] + {"L": "R", "R": "L"}[n[-1]] if n[-2:] in (".L", ".R") else n)
        for n in model.joint_names
    ]
    _, places = world(clips["walk"], body)
    assert np.abs(places * [-1, 1, 1] - np.roll(places, -16, axis=0)[:, swap]).max() < 0.004


def test_a_rig_without_limbs_can_be_moved() -> None:
    clip = load(
        "dance", RestBody(np.zeros((0, 3)), np.array([[0.0, 0.2, 0], [0, 1.3, 0]])), np.array([-1, 0]), ("root", "head")
    )
    assert clip.pose.rotations.shape == (128, 2, 3, 3) and np.isfinite(clip.pose.rotations).all()


def test_unknown_names(body) -> None:
    model, rest = body
    for name in ("moonwalk", "", "a\0b", "x" * 5000):
        with pytest.raises(UsageError) as raised:
            load(name, rest, model.parents, model.joint_names)
        assert raised.value.hint == "hdx motions"
        assert all(known in raised.value.message for known in BUILT_IN)


def test_listing_the_names_is_cheap() -> None:
    heavy = "{'numpy', 'torch', 'scipy'}"
    code = f"import sys, hdx_cli.motion; print(*({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def clip_of(vectors: np.ndarray, places: np.ndarray, fps: float = 10.0, loops: bool = False) -> Clip:
    rotations = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*vectors.shape, 3)
    return Clip("c", BodyPose(rotations, places), fps, loops)


def swinging(frames: int, seed: int, loops: bool) -> Clip:
    random = np.random.default_rng(seed)
    return clip_of(random.normal(0, 1, (frames, 3, 3)), random.normal(0, 1, (frames, 3)), loops=loops)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.floats(1, 90), st.floats(0.2, 5), st.integers(0, 99))
def test_resampling_keeps_both_ends(frames, fps, speed, seed) -> None:
    clip = swinging(frames, seed, False)
    made = resampled(clip, fps, speed)
    np.testing.assert_allclose(made.pose.rotations[[0, -1]], clip.pose.rotations[[0, -1]], atol=1e-5)
    np.testing.assert_allclose(made.pose.translations[[0, -1]], clip.pose.translations[[0, -1]], atol=1e-5)
    assert abs((len(made) - 1) / made.fps - (frames - 1) / 10 / speed) <= max(
        0.5 / fps + 1e-9, 1 / fps if len(made) == 2 else 0
    )


def test_resampling_against_scipy() -> None:
    """scipy's Slerp, joint by joint."""
    from scipy.spatial.transform import Slerp

    clip = swinging(5, 3, False)
    made = resampled(clip, 25.0)
    times = np.linspace(0, 4, len(made))
    assert len(made) == 11
    for joint in range(3):
        wanted = Slerp(range(5), Rotation.from_matrix(clip.pose.rotations[:, joint]))(times).as_matrix()
        np.testing.assert_allclose(made.pose.rotations[:, joint], wanted, atol=1e-5)
    np.testing.assert_allclose(
        made.pose.translations[:, 1], np.interp(times, range(5), clip.pose.translations[:, 1]), atol=1e-5
    )


def test_a_loop_wraps_round() -> None:
    """A joint that turns a quarter per frame, four frames: at twice the rate all steps are eighths."""
    vectors = np.zeros((4, 1, 3))
    vectors[:, 0, 1] = np.arange(4) * np.pi / 2
    places = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 0, 0]])
    made = resampled(clip_of(vectors, places, loops=True), 20.0)
    assert len(made) == 8 and made.loops
    angles = Rotation.from_matrix(made.pose.rotations[:, 0]).as_rotvec()[:, 1] % (2 * np.pi)
    np.testing.assert_allclose(angles, np.arange(8) * np.pi / 4, atol=1e-5)
    np.testing.assert_allclose(made.pose.translations[:, 0], [0, 0.5, 1, 1.5, 2, 1.5, 1, 0.5], atol=1e-6)
    assert len(resampled(made, 20.0, 2.0)) == 4


def test_parts() -> None:
    clip = swinging(6, 0, True)
    piece = part(clip, 2, 5)
    np.testing.assert_array_equal(piece.pose.rotations, clip.pose.rotations[2:5])
    assert not piece.loops and part(clip, 0, 6).loops
    for first, last in ((-1, 3), (3, 3), (4, 2), (0, 7)):
        with pytest.raises(UsageError, match="0:6"):
            part(clip, first, last)


@pytest.mark.parametrize(
    ("fps", "speed"),
    [(0.0, 1.0), (-5.0, 1.0), (float("nan"), 1.0), (1e9, 1.0), (30.0, 0.0), (30.0, float("inf")), (30.0, 1e-9)],
)
def test_rates_that_cannot_be(fps, speed) -> None:
    with pytest.raises(UsageError):
        resampled(swinging(4, 0, True), fps, speed)


def test_a_clip_fills_the_time_it_is_given() -> None:
    rotations = np.tile(np.eye(3, dtype=np.float32), (4, 1, 1, 1))
    pose = BodyPose(rotations, np.arange(12, dtype=np.float32).reshape(4, 3))
    looping, once = (Clip("x", pose, 8.0, loops) for loops in (True, False))
    assert repeated(looping, 0.75).pose.translations[:, 0].tolist() == [0, 3, 6, 9, 0, 3]
    assert repeated(once, 0.75).pose.translations[:, 0].tolist() == [0, 3, 6, 9, 9, 9]
    assert len(repeated(once, 0.25)) == 2
    assert [repeated(looping, seconds).loops for seconds in (1.0, 0.75)] == [True, False]
    with pytest.raises(UsageError, match="--seconds"):
        repeated(looping, 1e9)
