import math

import numpy as np
import pytest
import torch

from hdx_cli.camera import Cameras, look_at, orbit_of, turn_about_up, turntable


def front_camera() -> Cameras:
    viewmats = look_at(torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([0.0, 1.0, 0.0]))
    Ks = torch.tensor([[[800.0, 0, 320], [0, 800, 480], [0, 0, 1]]])
    return Cameras(viewmats, Ks, 640, 960)


def test_a_point_left_of_the_person_is_right_in_the_picture_and_up_is_up():
    pixels, depth = front_camera().project(torch.tensor([[0.0, 1.0, 0.0], [0.5, 1.0, 0.0], [0.0, 1.5, 0.0]]))
    # hand value: 0.5 m at 4 m with f = 800 px is 100 px
    expected = torch.tensor([[320.0, 480.0], [420.0, 480.0], [320.0, 380.0]])
    torch.testing.assert_close(pixels[0], expected, atol=1e-3, rtol=0)  # float32 rounding at 1e3 px
    torch.testing.assert_close(depth[0], torch.full((3,), 4.0))


def test_orbit_starts_at_the_camera_and_turns_towards_the_persons_left():
    camera = front_camera()
    orbit = orbit_of(camera, views=18)
    assert len(orbit) == 18
    torch.testing.assert_close(orbit.viewmats[0], camera.viewmats[0])
    positions = orbit.positions()
    angles = torch.rad2deg(torch.atan2(positions[:, 0], positions[:, 2])) % 360
    expected = torch.arange(18) * 20.0
    difference = (angles - expected + 180) % 360 - 180
    assert difference.abs().max() < 1e-3
    # the axis stays where it was in every view
    pixels, _ = orbit.project(torch.tensor([[0.0, 1.3, 0.0]]))
    assert (pixels - pixels[0]).abs().max() < 1e-2


def test_orbit_of_several_cameras_is_refused():
    with pytest.raises(ValueError, match="one camera"):
        orbit_of(orbit_of(front_camera(), 3))


def test_resampled_moves_pixels_like_the_image():
    camera = front_camera()
    window = camera.resampled(0.5, 100.0, 60.0, 200, 300)
    points = torch.tensor([[0.1, 1.2, 0.3], [-0.4, 0.2, -0.1]])
    whole, part = camera.project(points)[0], window.project(points)[0]
    torch.testing.assert_close(part, (whole - torch.tensor([100.0, 60.0])) * 0.5, atol=1e-3, rtol=0)
    assert (window.width, window.height) == (200, 300)


def test_turntable_frames_the_span():
    cameras = turntable(torch.tensor([0.0, 0.9, 0.0]), 1.8, 480, 720, torch.tensor([0.0, 1.0]), fill=0.9)
    pixels, _ = cameras.project(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.8, 0.0]]))
    assert torch.allclose(pixels[:, 0, 1] - pixels[:, 1, 1], torch.tensor(0.9 * 720), atol=0.01)
    assert np.isclose(cameras.positions()[0, 0].item(), 0.0, atol=1e-6)


def test_quarter_turn_takes_front_to_left():
    quarter = turn_about_up(torch.tensor([math.pi / 2]))[0]
    torch.testing.assert_close(
        quarter[:3, :3] @ torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0
    )
