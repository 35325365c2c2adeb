"""Mattes against exact alpha: drawn shapes, and the sample person put before other backgrounds."""

import numpy as np
import pytest
from test_architecture import PACKAGE

from hdx_cli.images import load_photo
from hdx_cli.observation import Photo
from hdx_cli.preprocess.keypoints import INDEX, body_height_px, detect_person
from hdx_cli.preprocess.mask import foreground_colours, gaps_in_hands, held_objects, matte, segment, solve_alpha

NOBODY = np.zeros((33, 3), np.float32)


@pytest.fixture(scope="module")
def photo():
    return load_photo(PACKAGE / "samples" / "sample.jpg")


@pytest.fixture(scope="module")
def person(photo):
    return detect_person(photo.rgb)


@pytest.fixture(scope="module")
def cut_out(photo, person):
    return matte(photo, person.probability, person.keypoints)


def disc(shape, centre, radius, softness=1.0):
    """Alpha of a disc whose edge is a ramp of ``softness`` px."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    distance = np.hypot(columns - centre[0], rows - centre[1])
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def overlap(one, other):
    return float(((one > 0.5) & (other > 0.5)).sum() / ((one > 0.5) | (other > 0.5)).sum())


def clutter(shape, seed=0):
    """Coarse colour noise of middling contrast."""
    random = np.random.default_rng(seed)
    blocks = 0.2 + 0.5 * random.random((shape[0] // 24 + 1, shape[1] // 24 + 1, 3))
    return np.kron(blocks, np.ones((24, 24, 1)))[: shape[0], : shape[1]].astype(np.float32)


def test_closed_form_finds_a_soft_edge():
    """Two flat colours obey the colour line model exactly: alpha is known but for the noise added."""
    alpha = disc((200, 160), (80, 100), 50, softness=6)
    rgb = (alpha[..., None] * [0.8, 0.2, 0.1] + (1 - alpha[..., None]) * [0.1, 0.3, 0.7]).astype(np.float32)
    solved = solve_alpha(rgb, alpha > 0.5, NOBODY, height_px=1200)  # the band is then 6 px to either side
    assert np.abs(solved - alpha).max() < 0.1  # clipping of the ends takes 0.04, noise of 1/255 the rest
    assert np.abs(solved - alpha).mean() < 0.005


def test_closed_form_survives_a_flat_picture():
    outline = disc((120, 100), (50, 60), 30) > 0.5
    flat = np.full((120, 100, 3), 0.5, np.float32)
    solved = solve_alpha(flat, outline, NOBODY, height_px=400)
    assert np.isfinite(solved).all() and overlap(solved, outline) > 0.85  # nothing in the picture tells the edge
    everything = np.ones((120, 100), bool)
    assert (solve_alpha(flat, everything, NOBODY, height_px=400) == 1).all()


def test_large_crops_are_solved_small_and_brought_back():
    alpha = disc((1400, 1000), (500, 700), 400, softness=3)
    rgb = (alpha[..., None] * [0.9, 0.7, 0.2] + (1 - alpha[..., None]) * [0.1, 0.2, 0.3]).astype(np.float32)
    solved = solve_alpha(rgb, alpha > 0.5, NOBODY, height_px=1200)
    assert solved.shape == alpha.shape
    assert overlap(solved, alpha) > 0.995
    # the ramp of 3 px is 2 px where it is solved, so single pixels of the edge may be far off
    assert np.abs(solved - alpha).mean() < 0.002


def test_grabcut_follows_colours_within_the_doubt_of_the_probability():
    """The probability is a disc too small and shifted; the colours show where the edge is."""
    truth = disc((240, 200), (100, 120), 60)
    rgb = np.where(truth[..., None] > 0.5, [0.8, 0.3, 0.2], [0.2, 0.4, 0.6]).astype(np.float32)
    rgb += np.random.default_rng(0).normal(0, 0.02, rgb.shape).astype(np.float32)
    likely = disc((240, 200), (103, 120), 57, softness=16)
    nothing = np.zeros(truth.shape, bool)
    outline = segment(np.clip(rgb, 0, 1), likely, NOBODY, 400, nothing, nothing)
    assert overlap(outline, truth) > 0.98 > overlap(likely, truth)
    blocked = nothing.copy()
    blocked[:, 120:] = True
    outline = segment(np.clip(rgb, 0, 1), likely, NOBODY, 400, nothing, blocked)
    assert not outline[blocked].any() and overlap(outline, truth * ~blocked) > 0.95


def test_foreground_colours_lose_the_background():
    alpha = disc((120, 120), (60, 60), 40, softness=12)
    rgb = (alpha[..., None] * [0.9, 0.1, 0.1] + (1 - alpha[..., None]) * [0.0, 1.0, 0.0]).astype(np.float32)
    colours = foreground_colours(rgb, alpha)
    edge = (alpha > 0.2) & (alpha < 0.9)
    before = np.abs(rgb[edge] - [0.9, 0.1, 0.1]).mean()
    assert np.abs(colours[edge] - [0.9, 0.1, 0.1]).mean() < 0.1 * before
    np.testing.assert_array_equal(colours[alpha == 0], rgb[alpha == 0])


def test_the_matte_holds_the_person_and_not_the_shadow(photo, person, cut_out):
    alpha, _ = cut_out
    assert alpha.shape == photo.rgb.shape[:2] and alpha.min() >= 0 and alpha.max() <= 1
    for name in ("nose", "left_elbow", "right_elbow", "left_hip", "right_hip", "left_knee", "right_knee", "left_wrist"):
        x, y = person.keypoints.pixels[INDEX[name], :2].astype(int)
        assert alpha[y, x] == 1, name
    assert alpha[:60].max() == 0 and alpha[:, :150].max() == 0 and alpha[:, 580:].max() == 0
    assert alpha[600:800, 350].max() < 0.05  # wall between the legs
    assert alpha[855:, 480:].max() == 0  # shadow beside the shoes
    assert alpha[915:].max() == 0


def test_the_same_person_before_clutter_gives_the_same_matte(cut_out):
    alpha, colours = cut_out
    background = clutter(alpha.shape)
    rgb = np.clip(colours * alpha[..., None] + background * (1 - alpha[..., None]), 0, 1).astype(np.float32)
    found = detect_person(rgb)
    again, _ = matte(Photo(rgb), found.probability, found.keypoints)
    assert overlap(again, alpha) > 0.95  # the mean over synthetic people before clutter is .97
    assert overlap(again, alpha) > overlap(found.probability, alpha)


def test_alpha_of_the_file_wins(photo, person):
    given = disc(photo.rgb.shape[:2], (360, 480), 300, softness=4)
    alpha, colours = matte(Photo(photo.rgb, given), person.probability, person.keypoints)
    np.testing.assert_array_equal(alpha, given)
    assert colours.shape == photo.rgb.shape


def test_a_ball_in_the_hand_is_held_and_a_shadow_is_not(photo, person):
    points, height_px = person.keypoints.pixels, body_height_px(person.keypoints.pixels, person.keypoints.world)
    assert not held_objects(photo.rgb, person.probability, points, height_px).any()
    shape = photo.rgb.shape[:2]
    x, y = points[INDEX["left_index"], :2]
    ball = disc(shape, (x + 40, y + 45), 50)
    with_ball = (photo.rgb * (1 - ball[..., None]) + ball[..., None] * [0.9, 0.5, 0.1]).astype(np.float32)
    likely = person.probability * (1 - ball)
    held = held_objects(with_ball, likely, points, height_px)
    assert overlap(held, ball) > 0.75
    alpha, _ = matte(Photo(with_ball), likely, person.keypoints)
    assert alpha[ball > 0.5].mean() > 0.9
    shadow = disc(shape, (x + 40, y + 45), 50, softness=20)
    with_shadow = (photo.rgb * (1 - 0.5 * shadow[..., None])).astype(np.float32)
    assert not held_objects(with_shadow, likely, points, height_px).any()
    busy = np.where(person.probability[..., None] > 0.1, with_ball, clutter(shape)).astype(np.float32)
    assert not held_objects(busy, likely, points, height_px).any()


def test_mattes_are_repeatable(photo, person, cut_out):
    again = matte(photo, person.probability, person.keypoints)
    np.testing.assert_array_equal(again[0], cut_out[0])
    np.testing.assert_array_equal(again[1], cut_out[1])


def test_background_inside_a_curled_hand_is_not_the_hand():
    """A brown ring in front of a grey wall: the outline closed over its middle, the colours say that it is open."""
    rgb = np.full((200, 200, 3), 0.75, np.float32)
    y, x = np.mgrid[:200, :200]
    away = np.hypot(x - 100, y - 100)
    rgb[(away > 6) & (away < 20)] = (0.45, 0.3, 0.2)
    points = np.zeros((33, 3), np.float32)
    for joint in ("wrist", "index", "pinky", "thumb"):
        points[INDEX[f"left_{joint}"]] = 100, 100, 1
    gaps = gaps_in_hands(rgb, away < 20, points, 900.0)
    assert gaps[away < 5].all() and not gaps[away > 7].any()
    points[:, 2] = 0.0  # no hand in sight
    assert not gaps_in_hands(rgb, away < 20, points, 900.0).any()


def test_a_grey_glove_before_a_grey_wall_stays_whole():
    rgb = np.full((200, 200, 3), 0.75, np.float32)
    y, x = np.mgrid[:200, :200]
    glove = np.hypot(x - 100, y - 100) < 20
    rgb[glove] = 0.7
    points = np.zeros((33, 3), np.float32)
    points[INDEX["left_wrist"]] = 100, 100, 1
    assert not gaps_in_hands(rgb, glove, points, 900.0).any()
