"""Cameras of moving avatars: checked by projecting the moving person into them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hdx_cli.avatars.filming import cameras_of, carried
from hdx_cli.bodies.base import BodyPose
from hdx_cli.geometry import rotvecs_to_matrices

SIZE = (120, 180)


def strolling(count: int = 24, metres: float = 3.0) -> BodyPose:
    """The toy nods, turns round once and goes a way towards +X."""
    share = np.linspace(0, 1, count)
    turns = np.zeros((count, 2, 3))
    turns[:, 0, 1], turns[:, 1, 0] = 2 * np.pi * share, 0.3 * np.sin(2 * np.pi * share)
    translations = np.stack([metres * share, np.zeros(count), np.zeros(count)], axis=1)
    return BodyPose(rotvecs_to_matrices(turns), translations)


def inside(avatar, pose: BodyPose, cameras, frame: int) -> np.ndarray:
    """Where the person is in the picture, x and y from 0 to 1 [N 2]."""
    pixels, depth = cameras[frame].project(avatar.gaussians(pose, frame).means)
    assert (depth > 0).all()
    return (pixels[0] / torch.tensor(SIZE)).numpy()


@pytest.mark.parametrize("camera", ["fixed", "follow", "orbit"])
def test_every_frame_holds_the_whole_person(toy_avatar, camera: str) -> None:
    pose = strolling()
    cameras = cameras_of(toy_avatar, pose, 24.0, *SIZE, camera)
    assert len(cameras) == 24
    for frame in range(0, 24, 5):
        places = inside(toy_avatar, pose, cameras, frame)
        assert places.min() > 0 and places.max() < 1


def test_a_fixed_camera_stands_still_and_a_following_one_keeps_the_person_in_the_middle(toy_avatar) -> None:
    pose = strolling()
    fixed = cameras_of(toy_avatar, pose, 24.0, *SIZE, "fixed")
    assert (fixed.viewmats == fixed.viewmats[:1]).all()
    walked = [inside(toy_avatar, pose, fixed, frame)[:, 0].mean() for frame in (0, 23)]
    assert walked[1] - walked[0] > 0.3
    follow = cameras_of(toy_avatar, pose, 24.0, *SIZE, "follow")
    middles = [inside(toy_avatar, pose, follow, frame)[:, 0].mean() for frame in (0, 12, 23)]
    assert np.abs(np.array(middles) - 0.5).max() < 0.12
    # close-up pays: the person is larger than where the whole way is in the picture
    height = [np.ptp(inside(toy_avatar, pose, cameras, 12)[:, 1]) for cameras in (fixed, follow)]
    assert height[1] > 1.5 * height[0]


def test_an_orbit_goes_round_once(toy_avatar) -> None:
    pose = BodyPose(np.tile(np.eye(3), (8, 2, 1, 1)), np.zeros((8, 3)))
    eyes = cameras_of(toy_avatar, pose, 24.0, *SIZE, "orbit").positions()
    offsets = torch.nn.functional.normalize((eyes - eyes.mean(0))[:, [0, 2]], dim=1)
    angles = torch.atan2(offsets[:, 0], offsets[:, 1])
    steps = torch.remainder(angles.diff(), 2 * torch.pi)
    torch.testing.assert_close(steps, torch.full((7,), 2 * torch.pi / 8), atol=1e-4, rtol=0)


def test_carried_cameras_see_carried_points_where_they_were(toy_avatar) -> None:
    pose = strolling(4)
    cameras = cameras_of(toy_avatar, pose, 24.0, *SIZE, "fixed")
    way = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.5, 0.3], [3.0, 4.0]])
    moved = carried(cameras.viewmats, way)
    point = torch.tensor([0.2, 1.1, 0.3, 1.0])
    for frame in range(4):
        shifted = point + torch.tensor([way[frame, 0], 0.0, way[frame, 1], 0.0])
        torch.testing.assert_close(moved[frame] @ shifted, cameras.viewmats[frame] @ point, atol=1e-5, rtol=0)
