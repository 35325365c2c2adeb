"""The network that tells depth: its geometry, its beginnings and its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from hdx_cli.bodies import lifting
from hdx_cli.bodies.lifting import HEIGHT, WIDTH, Inputs, LiftingNet
from hdx_cli.bodies.rig import BODY_DIRECTIONS, POSE_LANDMARKS, mirrored_directions
from hdx_cli.errors import WeightsError


def tiny() -> LiftingNet:
    torch.manual_seed(0)
    return LiftingNet(channels=(8, 8, 16), pyramid=8, width=16, layers=1).eval()


def inputs(seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 4, HEIGHT, WIDTH, generator=generator)
    landmarks = torch.rand(2, POSE_LANDMARKS, 6, generator=generator) * 2 - 1
    directions = torch.randn(2, BODY_DIRECTIONS, 3, generator=generator)
    return Inputs(image, landmarks, F.normalize(directions, dim=2))


def test_an_untrained_network_believes_the_detector() -> None:
    given = inputs()
    found, _, _ = tiny()(given)
    torch.testing.assert_close(found, given.directions)


def test_what_it_finds_has_unit_length_and_depends_on_the_picture() -> None:
    net, given = tiny(), inputs()
    torch.nn.init.normal_(net.head[-1].weight)
    found, log_sigma, depth = net(given)
    assert depth.shape == (2, HEIGHT // 4, WIDTH // 4)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(2, BODY_DIRECTIONS))
    assert torch.isfinite(log_sigma).all()
    other, _, _ = net(Inputs(given.image.flip(2), given.landmarks, given.directions))
    assert (found - other).abs().max() > 1e-4


def test_a_mirrored_photo_gives_mirrored_directions() -> None:
    """Whatever the weights are, and mirroring twice changes nothing."""
    net, given = tiny(), inputs()
    torch.nn.init.normal_(net.head[-1].weight)
    twice = lifting.mirrored(lifting.mirrored(given))
    for name in ("image", "landmarks", "directions"):
        torch.testing.assert_close(getattr(twice, name), getattr(given, name))

    found, sigma = lifting.both_ways(net, given)
    mirrored, same = lifting.both_ways(net, lifting.mirrored(given))
    torch.testing.assert_close(mirrored, lifting.mirrored_vectors(found), atol=1e-5, rtol=0)
    index = mirrored_directions()[0][:BODY_DIRECTIONS]
    torch.testing.assert_close(same, sigma[:, index], atol=1e-5, rtol=0)
    assert (found - given.directions).abs().max() > 0.1  # the network had something to say


def test_ray_axes_look_along_the_ray_and_keep_the_horizon() -> None:
    turn = lifting.ray_axes(500.0, 100.0, 700.0, 320.0, 240.0)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    ray = np.array([180.0 / 700, -140.0 / 700, 1])
    np.testing.assert_allclose(turn @ ray / np.linalg.norm(ray), [0, 0, 1], atol=1e-12)
    assert turn[0, 1] == 0  # x stays level
    np.testing.assert_allclose(lifting.ray_axes(320.0, 240.0, 700.0, 320.0, 240.0), np.eye(3), atol=1e-12)


def test_landmarks_lie_where_the_crop_shows_them() -> None:
    """A white dot in the photo and a landmark on it end up at the same place of the network's image."""
    rgb, alpha = np.zeros((400, 600, 3), np.float32), np.zeros((400, 600), np.float32)
    alpha[60:360, 250:400] = 1
    dots = np.array([[270.5, 80.5], [380.5, 340.5], [320.5, 200.5]])
    for x, y in dots:
        rgb[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 1
    pixels = np.tile(dots[:1], (33, 1))
    pixels[:3] = dots
    crop = lifting.crop_of(alpha, pixels, np.ones(33))
    picture = lifting.cropped(rgb, alpha, crop)
    assert picture.shape == (HEIGHT, WIDTH, 4)
    placed = lifting.landmark_features(pixels, np.zeros((33, 3)), np.ones(33), crop, np.eye(3))[:3, :2]
    sampled = F.grid_sample(
        torch.from_numpy(picture).permute(2, 0, 1)[None], torch.from_numpy(placed)[None, None], align_corners=False
    )[0, 0, 0]
    assert float(sampled.min()) > 0.6  # dots are 5 px wide and shrunk to 3
    rows, columns = np.nonzero(picture[..., 3] > 0.5)
    assert np.ptp(rows) == pytest.approx(HEIGHT / lifting.MARGIN, abs=2)  # the person fills the crop but for its margin
    assert columns.mean() == pytest.approx(WIDTH / 2, abs=1.5)


def test_weights_come_back_as_they_were(tmp_path) -> None:
    net = tiny().half().float()
    torch.nn.init.normal_(net.head[-1].weight)
    net = net.half().float()
    lifting.save_net(tmp_path / "net.safetensors", net)
    again = lifting.load_net(tmp_path / "net.safetensors", lock=None)
    for before, after in zip(net(inputs()), again(inputs()), strict=True):
        torch.testing.assert_close(before, after)


def test_weights_of_something_else_are_told(tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"config": "{}"})
    with pytest.raises(WeightsError, match="not the weights"):
        lifting.load_net(path, lock=None)


def test_the_bundled_network_is_the_one_in_the_lock() -> None:
    assert sum(parameter.numel() for parameter in lifting.load_net().parameters()) > 100_000
