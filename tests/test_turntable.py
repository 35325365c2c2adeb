"""Where the cameras of films and orbits stand: checked by projecting the person into them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import toy_fit

from hdx_cli.avatars.turntable import cameras_round, frames, seen_by_part, views_of


@pytest.fixture
def gaussians(toy_avatar):
    return toy_avatar.gaussians()


@pytest.mark.parametrize("elevation_deg", [-30.0, 0.0, 20.0, 60.0])
@pytest.mark.parametrize("size", [(480, 720), (640, 360), (200, 800)])
def test_a_turn_holds_the_whole_person_and_wastes_little(
    gaussians, size: tuple[int, int], elevation_deg: float
) -> None:
    azimuths = torch.arange(12) * (2 * math.pi / 12)
    cameras = cameras_round(gaussians.means, *size, azimuths, math.radians(elevation_deg))
    pixels, depth = cameras.project(gaussians.means)
    assert (depth > 0).all()
    share = pixels / torch.tensor(size)
    assert share.min() > 0 and share.max() < 1
    extent = (share.amax(dim=1) - share.amin(dim=1)).amax(dim=0)
    assert extent.max() > 0.6  # of the side that binds


def test_azimuths_are_equal_steps_from_the_photo_s_side(gaussians) -> None:
    azimuths = torch.tensor([0.0, math.pi / 2, math.pi])
    positions = cameras_round(gaussians.means, 480, 720, azimuths).positions()
    centre = positions[[0, 2]].mean(0)
    offsets = (positions - centre) / (positions - centre).norm(dim=1, keepdim=True)
    torch.testing.assert_close(offsets, torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, -1]]), atol=1e-5, rtol=0)


def test_the_orbit_begins_with_the_photo_and_holds_the_person(gaussians) -> None:
    camera = toy_fit(160).camera
    cameras, pictures = views_of(gaussians, camera, 18, 120)
    assert len(cameras) == 18 and cameras.height == 120 and cameras.width % 2 == 0
    torch.testing.assert_close(cameras[0].viewmats, camera.viewmats)
    pixels, _ = cameras.project(gaussians.means)
    assert pixels.min() > 0 and (pixels < torch.tensor([cameras.width, cameras.height])).all()
    # a window changes neither the direction to a point nor straight lines: pixels of view 0 are an affine map of the photo's
    photo, _ = camera.project(gaussians.means)
    scale = cameras.Ks[0, 0, 0] / camera.Ks[0, 0, 0]
    # pixels of about 100 with float32's 7 digits, through two projections
    torch.testing.assert_close(
        (pixels[0] - pixels[0].mean(0)), (photo[0] - photo[0].mean(0)) * scale, atol=1e-3, rtol=0
    )
    first = next(pictures)
    assert first.shape == (120, cameras.width, 4) and first.dtype == np.uint8


def test_transparent_frames_carry_straight_colours(gaussians) -> None:
    """Laid over white by the definition of straight alpha, they are the frames on white."""
    cameras = cameras_round(gaussians.means, 64, 96, torch.zeros(1))
    rgba = next(frames(gaussians, cameras, None)).astype(float)
    on_white = next(frames(gaussians, cameras, torch.ones(3))).astype(float)
    alpha = rgba[..., 3:] / 255
    composed = rgba[..., :3] * alpha + 255 * (1 - alpha)
    # rounding of colour and of alpha to 8 bits, and of the result; colours above 1 in thin places are cut before mixing
    assert np.abs(composed - on_white).mean() < 0.5 and np.quantile(np.abs(composed - on_white), 0.99) < 2.5


def test_what_the_photo_showed_of_each_part(toy_avatar) -> None:
    everything, nothing = (
        np.ones(len(toy_avatar.canonical), np.float32),
        np.zeros(len(toy_avatar.canonical), np.float32),
    )
    assert seen_by_part(replace(toy_avatar, visibility=everything)) == pytest.approx({"head": 1.0, "torso": 1.0})
    assert seen_by_part(replace(toy_avatar, visibility=nothing)) == pytest.approx({"head": 0.0, "torso": 0.0})
    # of a body of revolution, what faces the camera is half of what one sees all round
    in_front = (toy_avatar.canonical.means[:, 2] > 0).numpy().astype(np.float32)
    shares = seen_by_part(replace(toy_avatar, visibility=in_front))
    assert shares == pytest.approx({"head": 0.5, "torso": 0.5}, abs=0.06)  # sheets and hems do not end at z = 0
