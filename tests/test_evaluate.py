import numpy as np
import torch

from hdx_cli.camera import Cameras, look_at, orbit_of
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


def test_sides_are_counted_from_the_photo_and_leave_it_out():
    scores = [{"x": float(view)} for view in range(18)]
    sides = by_side(scores)
    assert sides["front"]["x"] == np.mean([1, 2, 16, 17])
    assert sides["back"]["x"] == np.mean([7, 8, 9, 10, 11])
    assert sides["all"]["x"] == np.mean(range(1, 18))
