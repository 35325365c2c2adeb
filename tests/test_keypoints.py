"""People and their landmarks, on the package's sample photo and on pictures made from it."""

import os

import numpy as np
import pytest
from test_architecture import PACKAGE

from hdx_cli.images import load_photo, resize
from hdx_cli.observation import Keypoints
from hdx_cli.preprocess.check import turn_deg
from hdx_cli.preprocess.keypoints import (
    INDEX,
    LANDMARKS,
    MIRRORED,
    Person,
    body_height_px,
    cut_out,
    detect_keypoints,
    paste,
    person_box,
)
from hdx_cli.preprocess.mediapipe_models import quiet_stderr
from hdx_cli.preprocess.people import choose, find_people, touching


@pytest.fixture(scope="module")
def sample():
    return load_photo(PACKAGE / "samples" / "sample.jpg").rgb


@pytest.fixture(scope="module")
def keypoints(sample):
    return detect_keypoints(sample)


def test_mirroring_exchanges_sides_and_undoes_itself():
    np.testing.assert_array_equal(MIRRORED[MIRRORED], np.arange(33))
    assert LANDMARKS[MIRRORED[INDEX["left_ankle"]]] == "right_ankle"
    assert MIRRORED[INDEX["nose"]] == INDEX["nose"]


def test_landmarks_lie_where_a_person_points_at_them(keypoints):
    """Read off the sample photo by eye, to about 10 px; the person is 820 px high."""
    by_eye = {
        "nose": (362, 142),
        "left_eye": (373, 126),
        "right_eye": (348, 126),
        "left_wrist": (522, 470),
        "right_wrist": (190, 470),
        "left_ankle": (425, 840),
        "right_ankle": (298, 840),
        "left_knee": (423, 665),
        "right_knee": (302, 665),
    }
    for name, (x, y) in by_eye.items():
        found = keypoints.pixels[INDEX[name]]
        assert np.hypot(found[0] - x, found[1] - y) < 25, (name, found)
        assert found[2] > 0.8, name
    height_px = body_height_px(keypoints.pixels, keypoints.world)
    assert 820 * 0.85 < height_px < 820 * 1.15  # the scale of the world landmarks is known to about a tenth
    assert abs(turn_deg(keypoints)) < 15
    assert np.linalg.norm(keypoints.world[[INDEX["left_hip"], INDEX["right_hip"]]].mean(axis=0)) < 0.02


def test_hands_and_face_lie_on_their_sides(keypoints):
    assert keypoints.face is not None and keypoints.face.shape == (468, 3)
    assert np.linalg.norm(keypoints.face[:, :2].mean(axis=0) - (362, 145)) < 20
    for hand, wrist in ((keypoints.left_hand, (522, 470)), (keypoints.right_hand, (190, 470))):
        assert hand is not None
        assert np.linalg.norm(hand[0, :2] - wrist) < 30
        assert hand[:, 1].max() > wrist[1] + 25  # the fingers hang down


def test_equal_input_gives_equal_output(sample, keypoints):
    again = detect_keypoints(sample)
    for name in ("pixels", "world", "left_hand", "right_hand", "face"):
        np.testing.assert_array_equal(getattr(keypoints, name), getattr(again, name))


def test_a_mirrored_photo_gives_mirrored_landmarks(sample, keypoints):
    """Mirrored passes are averaged in, so little is left of the model's preference for a side."""
    mirrored = detect_keypoints(np.ascontiguousarray(sample[:, ::-1]))
    back = mirrored.pixels[MIRRORED] * (-1, 1, 1) + (sample.shape[1], 0, 0)
    distance = np.linalg.norm(back[:, :2] - keypoints.pixels[:, :2], axis=1)
    assert distance.max() < 4  # half a per cent of the height


def test_a_mask_and_a_region_hide_the_rest(sample):
    two = np.concatenate([sample, sample], axis=1)
    mask = np.zeros(two.shape[:2], np.float32)
    mask[:, 720:] = 1
    for options in ({"mask": mask}, {"region": (720.0, 0.0, 1440.0, 960.0)}):
        found = detect_keypoints(two, **options)
        assert np.hypot(*(found.pixels[INDEX["nose"], :2] - (362 + 720, 142))) < 15


def test_confidence_is_zero_outside_the_image(sample):
    keypoints = detect_keypoints(np.ascontiguousarray(sample[:600]))
    below = keypoints.pixels[:, 1] >= 600
    assert below[[INDEX["left_ankle"], INDEX["right_ankle"]]].all()
    assert (keypoints.pixels[below, 2] == 0).all()
    assert keypoints.pixels[INDEX["nose"], 2] > 0.9


def test_small_people_are_found_as_precisely_as_large_ones(sample, keypoints):
    """A sixth of the size in a wide picture, where the pose model alone overlooks the person: 140 of 480 px high."""
    small = np.full((480, 640, 3), 0.8, np.float32)
    small[240:400, 400:520] = resize(sample, 160, 120)
    (found,) = find_people(small)
    expected = keypoints.pixels[:, :2] / 6 + (400, 240)
    # 2 % of the height: the error of the model itself at this size, measured on synthetic people
    assert np.linalg.norm(found.keypoints.pixels[:, :2] - expected, axis=1).mean() < 0.02 * 140


def test_everybody_is_found_and_numbered_from_the_left(sample):
    small = resize(sample, 640, 480)
    two = np.full((960, 1200, 3), sample[0, 0], np.float32)
    two[320:960, :480] = small
    two[:, 480:] = sample
    people = find_people(two)
    assert len(people) == 2
    assert people[0].box[2] < people[1].box[0] + 60
    assert choose(people) == 1
    cut = np.ascontiguousarray(two[:700])  # the larger one's legs and most of the smaller one's are gone
    assert choose(find_people(cut)) == 1


def test_nobody_is_found_in_noise_and_on_an_empty_wall(sample):
    noise = np.random.default_rng(0).random((300, 300, 3), np.float32)
    assert find_people(noise) == []
    assert find_people(np.ascontiguousarray(sample[:60, :200])) == []
    assert detect_keypoints(noise) is None


def test_windows_beyond_the_image_repeat_its_border():
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    crop, corner = cut_out(image, (-2, 1, 3, 6))
    assert corner == (-2, 1) and crop.shape == (5, 5, 3)
    np.testing.assert_array_equal(crop[0], image[1, [0, 0, 0, 1, 2]])
    np.testing.assert_array_equal(crop[4], image[3, [0, 0, 0, 1, 2]])
    part = np.arange(25, dtype=np.float32).reshape(5, 5)
    back = paste(part, corner, (4, 5))
    np.testing.assert_array_equal(back[1:4, :3], part[:3, 2:])
    assert back[0].sum() == 0 and back[:, 3:].sum() == 0


def test_the_box_holds_confident_landmarks_and_probable_pixels():
    landmarks = np.zeros((33, 3))
    landmarks[0] = 12, 3, 1.0
    landmarks[1] = 500, 500, 0.2
    probability = np.zeros((40, 60), np.float32)
    probability[10:20, 5:8] = 0.9
    assert person_box(landmarks, probability) == (5, 3, 12, 20)


def test_native_logs_are_hidden_unless_something_fails(capfd):
    with quiet_stderr():
        os.write(2, b"log of a library\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(RuntimeError), quiet_stderr():
        os.write(2, b"the reason of a crash\n")
        raise RuntimeError
    assert "the reason of a crash" in capfd.readouterr().err


def test_models_run_silently(sample, capfd):
    detect_keypoints(resize(sample, 320, 240))
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out == ""


def test_touching_is_the_share_of_the_outline_next_to_somebody():
    """Two 40 x 100 px boxes that share one long side: 100 of 2 (40 + 100) - 4 outline pixels, and as many again round the corners."""
    maps = np.zeros((2, 120, 120), np.float32)
    maps[0, 10:110, 20:60], maps[1, 10:110, 60:100] = 1.0, 1.0
    pixels, world = np.zeros((33, 3), np.float32), np.zeros((33, 3), np.float32)
    pixels[:, 1], world[:, 1], pixels[:, 2] = np.linspace(10, 110, 33), np.linspace(-0.8, 0.9, 33), 1.0
    one, other = (Person(Keypoints(pixels, world), probability, (0.0, 0.0, 1.0, 1.0)) for probability in maps)
    assert touching(one, []) == 0.0
    # the side itself, and two pixels of reach along top and bottom
    assert 100 / 276 <= touching(one, [other]) <= (100 + 2 * 4) / 276
