"""Training of the lifting network: what augmentation keeps true, and what the loss teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hdx_cli.bodies.lifting import HEIGHT, WIDTH
from hdx_cli.bodies.rig import BODY_DIRECTIONS, POSE_LANDMARKS
from hdx_cli.training.lifting_data import DEPTH_MIDDLE, ROOM
from hdx_cli.training.train_lifting import augmented, inputs_of, loss_of, recoloured

KEPT = round(ROOM * HEIGHT), round(ROOM * WIDTH)
DOTS = np.array([[-0.4, 0.1], [0.45, -0.3], [0.1, 0.5]])  # in the network's image, from -1 to 1


def batch(count: int = 6) -> dict[str, np.ndarray]:
    """A grey rectangle with three white dots 20 px wide, a landmark and a near patch of depth on each."""
    image = np.full((count, 4, *KEPT), 0, np.uint8)
    image[:, :3] = 128
    depth = np.zeros((count, *KEPT), np.uint8)
    body = slice(40, KEPT[0] - 40), slice(40, KEPT[1] - 40)
    image[:, :3, *body], image[:, 3, *body] = 60, 255
    depth[:, *body] = DEPTH_MIDDLE
    for x, y in DOTS:
        column, row = round(KEPT[1] / 2 + x * WIDTH / 2), round(KEPT[0] / 2 + y * HEIGHT / 2)
        dot = slice(row - 10, row + 10), slice(column - 10, column + 10)
        image[:, :3, *dot], depth[:, *dot] = 250, DEPTH_MIDDLE - 50
    landmarks = np.zeros((count, POSE_LANDMARKS, 6), np.float32)
    landmarks[:, :, :2] = DOTS[np.arange(POSE_LANDMARKS) % 3]
    landmarks[:, 1, 3:] = landmarks[:, 2, 3:] = (0.1, 0.2, 0.3)
    directions = np.random.default_rng(0).normal(size=(count, BODY_DIRECTIONS, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    return {"image": image, "depth": depth, "landmarks": landmarks, "directions": directions, "true": directions}


def at(picture: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Values of a picture [B C h w] at places [B P 2] from -1 to 1: [B C P]."""
    return F.grid_sample(picture, places[:, :, None], mode="nearest", align_corners=False)[..., 0]


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_picture_and_depth_move_together(seed: int) -> None:
    inputs, true, depth = augmented(batch(), np.random.default_rng(seed))
    dots = inputs.landmarks[:, :, :2]
    inside = (dots.abs() < 0.9).all(2)
    bright = at(inputs.image, dots)[:, :3].mean(1)
    assert inside.sum() > 100 and bright[inside].min() > inputs.image[:, :3].mean() + 0.05
    near = at(depth[:, None], dots)[:, 0]
    torch.testing.assert_close(near[inside], torch.full_like(near[inside], -50 / 127))
    # directions turn as the picture does, whatever their noise: what they tell apart stays apart
    assert (inputs.directions * true).sum(2).min() > 0.8
    torch.testing.assert_close(true.norm(dim=2), torch.ones(true.shape[:2]))


def test_a_direction_turns_with_the_landmarks() -> None:
    """The direction from one dot to another, in the image plane, is the truth about the two landmarks there."""
    samples = batch()
    half = np.array([WIDTH, HEIGHT]) / 2
    along = (DOTS[1] - DOTS[0]) * half
    samples["true"] = samples["true"].copy()
    samples["true"][:] = np.array([*along / np.linalg.norm(along), 0], np.float32)
    inputs, true, _ = augmented(samples, np.random.default_rng(0))
    places = inputs.landmarks[:, :, :2] * torch.from_numpy(half).float()
    found = places[:, 1::3].mean(1) - places[:, 0::3].mean(1)
    found = F.normalize(found, dim=1)
    # mirroring swaps left and right landmarks, so the dots may have traded places
    assert ((found * true[:, 0, :2]).sum(1).abs() > 0.99).all()


def test_without_augmentation_the_middle_is_what_the_network_gets() -> None:
    samples = batch(2)
    inputs, true = inputs_of(samples)
    assert inputs.image.shape == (2, 4, HEIGHT, WIDTH)
    assert at(inputs.image, inputs.landmarks[:, :, :2])[:, :3].min() > 0.9
    np.testing.assert_array_equal(true.numpy(), samples["true"])


def test_recoloured_pictures_stay_grey_where_nobody_is() -> None:
    picture = np.full((40, 30, 4), 128, np.uint8)
    picture[..., 3] = 0
    picture[10:30, 10:20] = (200, 30, 90, 255)
    mattes = []
    for seed in range(12):
        made = recoloured(picture, np.random.default_rng(seed))
        assert made.min() >= 0 and made.max() <= 1
        np.testing.assert_allclose(made[:3, :8], 0.5, atol=0.004)
        np.testing.assert_array_equal(made[3, 12:28, 12:18], 1)
        mattes.append(made[3].sum())
    assert min(mattes) < 190 and max(mattes) > 210 and mattes.count(200) > 1  # tight, wide and exact


def test_the_loss_is_least_at_the_truth_and_knows_unseen_depth() -> None:
    torch.manual_seed(0)
    true, true_depth = torch.randn(3, 24, 3), torch.randn(3, 8, 6)
    true_depth[:, :4] = torch.nan
    found, depth = true.clone().requires_grad_(), torch.zeros(3, 8, 6, requires_grad=True)
    sigma = torch.full_like(true, -2.0)
    loss = loss_of(found, sigma, depth, true, true_depth)
    loss.backward()
    assert (depth.grad[:, :4] == 0).all() and (depth.grad[:, 4:] != 0).all()
    at_truth = loss_of(true, sigma, true_depth.nan_to_num(), true, true_depth)
    torch.testing.assert_close(at_truth, torch.tensor(-2.0))
    assert loss_of(true + 0.1, sigma, true_depth.nan_to_num(), true, true_depth) > at_truth
    # a Laplace distribution's best scale is the mean absolute error
    errors = [
        loss_of(true + 0.1, torch.full_like(true, np.log(0.1) + d), depth, true, true_depth) for d in (-0.2, 0, 0.2)
    ]
    assert errors[1] < errors[0] and errors[1] < errors[2]
