"""Quality of coarse avatars on rendered people whose other views are known.

    python tests/bench/bench_avatar.py PEOPLE [--sheet OUT.png] [--limit 16]

PEOPLE holds one folder per person with 18 RGBA renders 00.png .. 17.png (even orbit, view 0 from the front) and cams.npz with
K [18 3 3], R [18 3 3], t [18 3] (OpenCV, world +Z up, person facing -Y on the axis). The photo is view 0 over a plain grey wall;
mask, landmarks and body are estimated from it; its focal length is taken as known, as EXIF tells it. The other 17 views are scored.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

import numpy as np  # noqa: E402
import torch
from PIL import Image

from hdx_cli.avatars.explicit import Settings, fit_coarse
from hdx_cli.bodies import anny
from hdx_cli.bodies.base import posed_vertices
from hdx_cli.bodies.fit import fit_body
from hdx_cli.camera import Cameras
from hdx_cli.observation import Photo
from hdx_cli.preprocess import observe
from hdx_cli.rasterize import rasterize
from hdx_cli.training.evaluate import by_side, true_cameras_in_avatar_world, view_scores

TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def load(person: Path) -> tuple[list[np.ndarray], Cameras]:
    images = [
        np.asarray(Image.open(person / f"{view:02d}.png").convert("RGBA"), np.float32) / 255 for view in range(18)
    ]
    cams = np.load(person / "cams.npz")
    viewmats = np.tile(np.eye(4, dtype=np.float32), (18, 1, 1))
    viewmats[:, :3, :3] = cams["R"] @ TO_Y_UP.T
    viewmats[:, :3, 3] = cams["t"]
    height, width = images[0].shape[:2]
    return images, Cameras(torch.from_numpy(viewmats), torch.from_numpy(cams["K"].astype(np.float32)), width, height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--limit", type=int, default=16)
    args = parser.parse_args()
    model = anny.load()
    rows, sheet = [], []
    for person in sorted(p for p in args.people.iterdir() if (p / "cams.npz").exists())[: args.limit]:
        images, truth = load(person)
        wall = np.linspace(0.72, 0.82, images[0].shape[0], dtype=np.float32)[:, None, None]
        photo = Photo(images[0][..., :3] * images[0][..., 3:] + wall * (1 - images[0][..., 3:]))
        started = time.process_time()
        observation, _, _ = observe(photo, name=person.name)
        fit = fit_body(model, observation, focal_px=float(truth.Ks[0, 0, 0]))
        avatar = fit_coarse(observation, fit, model, Settings())
        seconds = time.process_time() - started
        # the renders turn about the mean of the body's vertices
        centre = torch.from_numpy(posed_vertices(model, fit.body, fit.pose).mean(0)).float()
        cameras = true_cameras_in_avatar_world(truth, fit.camera, torch.tensor([0.0, float(centre[1]), 0.0]), centre)
        gaussians, scores, strip = avatar.gaussians(), [], []
        for view, image in enumerate(images):
            with torch.no_grad():
                rendered = rasterize(gaussians, cameras[view], background=torch.ones(3))
            true_alpha = torch.from_numpy(image[..., 3].copy())
            true_rgb = torch.from_numpy(image[..., :3] * image[..., 3:] + 1 - image[..., 3:])
            scores.append(view_scores(rendered.rgb[0], rendered.alpha[0], true_rgb, true_alpha))
            if view in (0, 2, 5, 9, 13):
                strip.append(torch.cat([rendered.rgb[0], true_rgb], dim=1)[::2, ::2])
        sheet.append(torch.cat(strip, dim=1))
        sides = by_side(scores)
        rows.append(sides)
        print(
            f"{person.name}: {seconds:5.1f} CPU s, front view {avatar.scores['front_psnr_db']:.1f} dB, "
            + ", ".join(f"{side} {value['psnr_union_db']:.2f}" for side, value in sides.items()),
            flush=True,
        )
    print(f"\n{'':8}{'PSNR full':>11}{'PSNR union':>12}{'SSIM':>8}{'IoU':>8}   mean of {len(rows)} people, views 1-17")
    for side in rows[0]:
        mean = {key: np.mean([row[side][key] for row in rows]) for key in rows[0][side]}
        print(f"{side:8}{mean['psnr_full_db']:11.2f}{mean['psnr_union_db']:12.2f}{mean['ssim']:8.3f}{mean['iou']:8.3f}")
    if args.sheet:
        Image.fromarray((torch.cat(sheet).clamp(0, 1).numpy() * 255).astype(np.uint8)).save(args.sheet)


if __name__ == "__main__":
    main()
