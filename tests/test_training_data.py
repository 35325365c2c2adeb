"""Training data of one person, with a ball in a coat for a person: everything about it is known in closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hdx_cli.camera import Cameras, look_at, orbit_of
from hdx_cli.observation import Keypoints
from hdx_cli.training.pairs import CUT_OUT_IOU, pair_of
from hdx_cli.training.photos import Sitting, Snapshot, _uncropped_camera, load_sitting, save_sitting
from hdx_cli.training.train_completion import outer_colours

BODY_M, COAT_M, CENTRE, SIDE = 0.30, 0.34, np.array([0.0, 0.9, 0.0]), 96


def coat_colour(direction: np.ndarray) -> np.ndarray:
    """sRGB of the coat in a direction from the middle: red to the left, green upwards, blue to the front."""
    return 0.5 + 0.4 * direction


def ball() -> Sitting:
    viewmats = look_at(torch.tensor([[0.0, 0.9, 3.0]]), torch.tensor([0.0, 0.9, 0.0]))
    K = torch.tensor([[[330.0, 0, SIDE / 2], [0, 330.0, SIDE / 2], [0, 0, 1]]])
    cameras = orbit_of(Cameras(viewmats, K, SIDE, SIDE), 18)
    v, u = np.mgrid[:SIDE, :SIDE] + 0.5
    rays = np.stack([(u - SIDE / 2) / 330, (v - SIDE / 2) / 330, np.ones_like(u)], axis=-1)
    views, depths = [], []
    for viewmat in cameras.viewmats.double().numpy():
        centre = viewmat[:3, :3] @ CENTRE + viewmat[:3, 3]
        a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - COAT_M**2
        root = b * b - a * c
        depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0.0)
        direction = (rays * depth[..., None] - centre) @ viewmat[:3, :3] / COAT_M
        rgba = np.concatenate([coat_colour(direction), np.ones((SIDE, SIDE, 1))], axis=-1) * (depth > 0)[..., None]
        views.append(np.round(255 * rgba).astype(np.uint8))
        depths.append(depth.astype(np.float16))
    keypoints = Keypoints(np.full((33, 3), 0.5, np.float32), np.zeros((33, 3), np.float32))
    photo = Snapshot(
        views[0][..., :3], views[0][..., 3], K[0].double().numpy(), viewmats[0].double().numpy(), keypoints
    )
    return Sitting(
        photo, views[0][..., 3], views[0][..., :3], True, np.stack(views), np.stack(depths),
        cameras.viewmats.double().numpy(), K[0].double().numpy(), np.eye(3)[None], CENTRE[None], CENTRE[None],
    )  # fmt: skip


def test_colours_of_the_coat_are_found_from_the_body_under_it() -> None:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(400, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals[np.abs(normals[:, 1]) < 0.8]  # the cameras stand at the height of the middle
    colours, weights = outer_colours(CENTRE + BODY_M * normals, normals, ball())
    shown = weights > 0.02
    assert shown.mean() > 0.97
    # pixels of 9 mm on a colour that changes by .4 over 340 mm, and depth in float16
    assert np.abs(colours - coat_colour(normals))[shown].max() < 0.06


def test_what_no_view_shows_has_no_weight() -> None:
    up = np.array([[0.0, 1.0, 0.0]])
    _, weights = outer_colours(CENTRE + BODY_M * up, up, ball())
    assert weights[0] < 0.02


def test_a_sitting_comes_back_from_its_file(tmp_path: Path) -> None:
    sitting = ball()
    save_sitting(tmp_path / "000.npz", sitting)
    back = load_sitting(tmp_path / "000.npz")
    for name in ("matte", "foreground", "views", "depth", "viewmats", "K", "bone_positions", "base_vertices"):
        np.testing.assert_array_equal(getattr(back, name), getattr(sitting, name))
    np.testing.assert_array_equal(back.photo.rgb, sitting.photo.rgb)
    np.testing.assert_array_equal(back.photo.keypoints.pixels, sitting.photo.keypoints.pixels)
    assert back.photo.keypoints.face is None
    assert back.observation().photo.focal_px == 330
    assert replace(back, focal_known=False).observation().photo.focal_px is None
    torch.testing.assert_close(back.cameras().viewmats[0], torch.from_numpy(sitting.photo.viewmat).float())


def test_a_photo_holds_the_whole_person() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-0.4, 0.0, -0.2], [0.4, 1.8, 0.2], (500, 3))
    for _ in range(20):
        K, viewmat, width, height = _uncropped_camera(points, rng)
        pixels, depth = Cameras(
            torch.from_numpy(viewmat.astype(np.float32)[None]),
            torch.from_numpy(K.astype(np.float32)[None]),
            width,
            height,
        ).project(torch.from_numpy(points.astype(np.float32)))
        assert (depth > 0).all() and (pixels > 0).all() and (pixels < torch.tensor([width, height])).all()


def test_a_photo_that_was_cut_out_wrongly_makes_no_pair() -> None:
    from hdx_cli.errors import InputRejected

    sitting = ball()
    matte = sitting.matte.copy()
    matte[:, : SIDE // 2] = 0
    assert (matte > 0).sum() < CUT_OUT_IOU * (sitting.matte > 0).sum()
    with pytest.raises(InputRejected, match="cut out wrongly"):
        pair_of(replace(sitting, matte=matte), None, "estimated", 0)
