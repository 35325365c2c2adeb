"""What speaks against a photo: findings on pictures made from the sample photo and on landmarks moved by hand."""

import importlib.util
from dataclasses import replace

import cv2
import numpy as np
import pytest
from test_architecture import PACKAGE

from hdx_cli.errors import InputRejected, UsageError, WeightsError
from hdx_cli.images import load_photo, resize
from hdx_cli.observation import Keypoints, Photo
from hdx_cli.preprocess import examine, observe
from hdx_cli.preprocess.birefnet import birefnet_alpha
from hdx_cli.preprocess.check import blur, check, draw_overlay, limb_angles_deg, turn_deg
from hdx_cli.preprocess.keypoints import INDEX
from hdx_cli.preprocess.people import PoseDetection


@pytest.fixture(scope="module")
def photo():
    return load_photo(PACKAGE / "samples" / "sample.jpg")


@pytest.fixture(scope="module")
def observed(photo):
    return observe(photo)


@pytest.fixture(scope="module")
def two(photo):
    """The sample twice: whole on the left, at two thirds on the right."""
    rgb = np.full((960, 1200, 3), photo.rgb[0, 0], np.float32)
    rgb[:, :720] = photo.rgb
    rgb[320:, 720:] = resize(photo.rgb, 640, 480)
    return Photo(rgb)


@pytest.fixture(scope="module")
def observed_two(two):
    return observe(two)


def codes(findings):
    return [finding.code for finding in findings]


def findings_with(observed, photo, **changes):
    """Findings for the sample with some of its landmarks replaced."""
    detection = observed[2]
    keypoints = replace(detection.keypoints, **changes)
    return check(photo, PoseDetection((replace(detection.person, keypoints=keypoints),), 0))


def turned(keypoints: Keypoints, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return (keypoints.world @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])).astype(np.float32)


def test_nothing_speaks_against_the_sample(observed, photo):
    observation, findings, detection = observed
    assert findings == []
    assert observation.photo is photo and len(detection.people) == 1
    assert observation.alpha.shape == photo.rgb.shape[:2] and observation.foreground.shape == photo.rgb.shape
    assert observation.keypoints.face is not None


def test_nobody(photo):
    noise = Photo(np.random.default_rng(0).random((300, 300, 3), np.float32))
    detection, findings = examine(noise)
    assert codes(findings) == ["E_NO_PERSON"] and detection.people == ()
    with pytest.raises(InputRejected, match="wall.png: no person") as refusal:
        observe(noise, name="wall.png")
    assert refusal.value.code == "E_NO_PERSON" and refusal.value.exit_code == 4


def test_cuts(photo):
    """The sample's ankles are at y = 840, knees at 665, hips at 480, shoulders at 230."""
    for bottom, where in ((760, "shins"), (600, "thighs"), (440, "hips")):
        _, findings = examine(Photo(np.ascontiguousarray(photo.rgb[:bottom])))
        assert "W_CROPPED_LEGS" in codes(findings)
        assert where in next(f.message for f in findings if f.code == "W_CROPPED_LEGS")
    with pytest.raises(InputRejected) as refusal:
        observe(Photo(np.ascontiguousarray(photo.rgb[40:280, 220:500])))
    assert refusal.value.code in ("E_TOO_LITTLE", "E_NO_PERSON")


def test_small_and_blurred_people(photo):
    small = Photo(resize(photo.rgb, 320, 240))
    assert codes(examine(small)[1]) == ["W_TOO_SMALL"]
    tiny = Photo(resize(photo.rgb, 100, 75))
    assert codes(examine(tiny)[1])[0] in ("E_TOO_SMALL", "E_NO_PERSON")
    blurred = Photo(cv2.GaussianBlur(photo.rgb, (0, 0), 5))
    assert "W_BLURRED" in codes(examine(blurred)[1])


def test_drawings_and_statues_are_told_and_photos_are_not(photo, observed):
    """No cartoon is at hand: the sample in even patches of eight levels stands in for one, a grey person for a statue."""
    assert "W_OUT_OF_DOMAIN" not in codes(observed[1])
    even = cv2.pyrMeanShiftFiltering((photo.rgb * 255).astype(np.uint8), 12, 30).astype(np.float32) / 255
    assert "W_OUT_OF_DOMAIN" in codes(examine(Photo(np.round(even * 8) / 8))[1])
    grey = np.repeat(photo.rgb.mean(axis=2, keepdims=True), 3, axis=2)
    person = cv2.dilate((observed[0].alpha > 0.1).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    assert "W_OUT_OF_DOMAIN" in codes(examine(Photo(np.where(person[..., None], grey, photo.rgb)))[1])
    assert "W_OUT_OF_DOMAIN" not in codes(examine(Photo(grey))[1])


def test_blur_grows_with_blur_and_not_with_size(photo, observed):
    area = observed[0].alpha
    values = [blur(cv2.GaussianBlur(photo.rgb, (0, 0), sigma), area, 820) for sigma in (0.5, 1, 2, 4, 8)]
    assert values == sorted(values) and values[0] < 0.5 < 0.8 < values[-1]
    double = resize(photo.rgb, 1920, 1440)
    assert blur(double, resize(area, 1920, 1440), 1640) == pytest.approx(blur(photo.rgb, area, 820), abs=0.05)


@pytest.mark.parametrize(("degrees", "code"), [(0, None), (40, None), (80, "W_SIDE_VIEW"), (180, "W_BACK_VIEW")])
def test_turned_people(observed, photo, degrees, code):
    keypoints = observed[0].keypoints
    straight = turned(keypoints, -turn_deg(keypoints))
    for sign in (1, -1):
        world = turned(replace(keypoints, world=straight), sign * degrees)
        difference = turn_deg(replace(keypoints, world=world)) - sign * degrees
        assert abs((difference + 180) % 360 - 180) < 1
        assert codes(findings_with(observed, photo, world=world)) == ([] if code is None else [code])


def test_hidden_face(observed, photo):
    assert codes(findings_with(observed, photo, face=None)) == ["W_FACE_HIDDEN"]


def test_angles_of_limbs_by_hand():
    world = np.zeros((33, 3), np.float32)
    for side, x in (("left", 0.2), ("right", -0.2)):
        world[INDEX[f"{side}_shoulder"]] = x, -0.5, 0
        world[INDEX[f"{side}_hip"]] = x / 2, 0, 0
        world[INDEX[f"{side}_knee"]] = x / 2, 0, -0.4  # straight ahead
    world[INDEX["left_wrist"]] = 0.8, -0.5, 0  # out to the side
    world[INDEX["right_wrist"]] = -0.2, 0.1, 0  # hanging
    keypoints = Keypoints(world, world)
    np.testing.assert_allclose(limb_angles_deg(keypoints, "hip", "knee"), [90, 90], atol=1e-4)
    np.testing.assert_allclose(limb_angles_deg(keypoints, "shoulder", "wrist"), [90, 0], atol=1e-3)
    assert turn_deg(keypoints) == pytest.approx(0)


def test_sitting_wide_arms_and_crossed_arms(observed, photo):
    keypoints = observed[0].keypoints
    world = keypoints.world.copy()
    for side in ("left", "right"):
        world[INDEX[f"{side}_knee"]] = world[INDEX[f"{side}_hip"]] + np.float32([0, 0.1, -0.4])
    assert codes(findings_with(observed, photo, world=world)) == ["W_SITTING"]
    world = keypoints.world.copy()
    world[INDEX["left_wrist"]] = world[INDEX["left_shoulder"]] + np.float32([0.5, -0.1, 0])
    (finding,) = findings_with(observed, photo, world=world)
    assert finding.code == "W_ARMS_WIDE" and "left" in finding.message
    pixels = keypoints.pixels.copy()
    pixels[INDEX["right_wrist"], :2] = 360, 350
    (finding,) = findings_with(observed, photo, pixels=pixels)
    assert finding.code == "W_LIMB_OVERLAP" and "right" in finding.message


def test_one_of_two_people_is_chosen_and_cut_out_alone(two, observed_two):
    observation, findings, detection = observed_two
    assert codes(findings) == ["W_SEVERAL_PEOPLE"] and "number 1" in findings[0].message
    assert detection.chosen == 0
    assert observation.alpha[:, :720].sum() > 50_000 and observation.alpha[:, 720:].max() == 0
    observation, _, detection = observe(two, person=2)
    assert detection.chosen == 1
    assert observation.alpha[:, :720].max() == 0 and observation.alpha[:, 720:].sum() > 20_000


def test_people_who_are_not_there(photo):
    with pytest.raises(UsageError, match="shows 1"):
        examine(photo, person=2)


def test_masks_of_the_user(photo, observed):
    given = (observed[0].alpha > 0.5).astype(np.float32)
    observation, findings, _ = observe(photo, mask=given)
    np.testing.assert_array_equal(observation.alpha, given)
    assert "W_MASK" not in codes(findings) and "E_MASK" not in codes(findings)
    beside = np.zeros_like(given)
    beside[:200, :100] = 1
    with pytest.raises(InputRejected, match="leaves out the person") as refusal:
        observe(photo, mask=beside)
    assert refusal.value.code == "E_MASK"
    half = given.copy()
    half[500:] = 0
    (finding,) = examine(replace(photo, alpha=half))[1]
    assert finding.code == "W_CROPPED_LEGS" and "thighs" in finding.message


def test_unknown_matting(photo):
    with pytest.raises(UsageError, match="default, birefnet"):
        observe(photo, matting="magic")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_missing_birefnet_is_explained(photo):
    with pytest.raises(WeightsError, match="transformers") as refusal:
        birefnet_alpha(photo.rgb)
    assert refusal.value.exit_code == 5 and "pip install" in refusal.value.hint


def test_overlay_shows_boxes_and_reasons(two, observed_two):
    _, findings, detection = observed_two
    overlay = draw_overlay(two, detection, findings)
    assert overlay.shape[1] == 1200 and overlay.shape[0] > 960 and overlay.dtype == np.float32
    changed = np.abs(overlay[:960] - two.rgb).max(axis=2) > 0.1
    for person in detection.people:
        x0, y0, x1, y1 = (int(v) for v in person.box)
        assert changed[(y0 + y1) // 2, x0 - 2 : x0 + 3].any() and changed[(y0 + y1) // 2, x1 - 2 : x1 + 3].any()
    assert overlay[960:].max() > 0.8  # words
    empty = draw_overlay(two, PoseDetection((), 0), check(two, PoseDetection((), 0)))
    np.testing.assert_allclose(empty[:960], two.rgb, atol=0.5 / 255 + 1e-6)
