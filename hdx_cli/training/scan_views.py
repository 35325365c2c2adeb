"""Pictures of a scan, unlit, from any camera: rays by Intel Embree on the CPU, or Blender.

Embree (the package ``embreex``) finds where rays meet triangles; the colour is looked up here. Transparent texels (hair
cards) let a ray pass on. A picture of 640 x 960 by 2 x 2 rays a pixel of 29,000 triangles takes 0.7 s of CPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from ..camera import Cameras
from ..errors import ResourceError, UsageError
from .scans import Surface, pyramid

LAYERS = 6  # of transparent texels that a ray passes at most
PASS_M = 1e-4  # how far behind a hit a ray goes on
SOLID = 0.99
BLENDER_SCRIPT = Path(__file__).with_name("blender_views.py")


class EmbreeScene:
    """A surface that rays can be shot at."""

    def __init__(self, surface: Surface):
        from embreex import rtcore_scene
        from embreex.mesh_construction import TriangleMesh

        self.surface = surface
        self._scene = rtcore_scene.EmbreeScene()
        # Embree reads three floats a corner; triangles without area do no harm
        self._mesh = TriangleMesh(self._scene, surface.vertices[surface.faces].astype(np.float32))
        self._levels: dict[tuple[int, int], UInt8[np.ndarray, "h w 4"]] = {}

    def hits(
        self, origins: Float[np.ndarray, "R 3"], directions: Float[np.ndarray, "R 3"]
    ) -> tuple[Int[np.ndarray, "R"], Float[np.ndarray, "R 2"], Float[np.ndarray, "R"]]:
        """Of rays: the face hit (-1: none), weights of its second and third corner, distance in directions' lengths."""
        found = self._scene.run(origins.astype(np.float32), directions.astype(np.float32), output=True)
        return found["primID"].astype(np.int64), np.stack([found["u"], found["v"]], 1).astype(float), found["tfar"]

    def render(self, camera: Cameras, supersampling: int = 2) -> tuple[UInt8[np.ndarray, "H W 4"], np.ndarray]:
        """Straight RGBA and depth along the optical axis in metres [H W], 0 where there is nothing, of one camera."""
        scale = supersampling
        viewmat, K = camera.viewmats[0].double().numpy(), camera.Ks[0].double().numpy()
        height, width = camera.height * scale, camera.width * scale
        window = self._window(camera)
        y, x = np.mgrid[window[1] * scale : window[3] * scale, window[0] * scale : window[2] * scale]
        y, x = y.ravel(), x.ravel()
        rays = np.stack([((x + 0.5) / scale - K[0, 2]) / K[0, 0], ((y + 0.5) / scale - K[1, 2]) / K[1, 1],
                         np.ones(len(x))], 1)  # fmt: skip
        directions, eye = rays @ viewmat[:3, :3], -viewmat[:3, :3].T @ viewmat[:3, 3]
        ink, depth = np.zeros((height * width, 4), np.float32), np.zeros(height * width, np.float32)
        at, index = np.zeros(len(x)), np.arange(len(x))
        pixel = y * width + x
        for _ in range(LAYERS):
            face, corners, distance = self.hits(eye + at[index, None] * directions[index], directions[index])
            met = face >= 0
            index, face, corners, distance = index[met], face[met], corners[met], distance[met]
            if not len(index):
                break
            rgba = self.colours(face, corners, at[index] + distance, K[0, 0] * scale)
            here = pixel[index]
            share = rgba[:, 3:] * (1 - ink[here, 3:])
            ink[here, :3] += share * rgba[:, :3]
            ink[here, 3:] += share
            at[index] += distance
            depth[here] = np.where(depth[here] == 0, np.where(rgba[:, 3] > 0.5, at[index], 0), depth[here])
            at[index] += PASS_M
            index = index[ink[here, 3] < SOLID]
        small = ink.reshape(camera.height, scale, camera.width, scale, 4).mean((1, 3))
        alpha = small[..., 3:]
        straight = np.concatenate([small[..., :3] / np.maximum(alpha, 1e-6), alpha], 2)
        middle = depth.reshape(height, width)[scale // 2 :: scale, scale // 2 :: scale]
        return np.rint(255 * straight.clip(0, 1)).astype(np.uint8), middle

    def colours(
        self, face: Int[np.ndarray, "R"], corners: Float[np.ndarray, "R 2"], depth: Float[np.ndarray, "R"], focal: float
    ) -> Float[np.ndarray, "R 4"]:
        """Straight RGBA in [0, 1] of hits that a camera of that focal length (px) sees at that depth."""
        surface = self.surface
        weights = np.concatenate([1 - corners.sum(1, keepdims=True), corners], 1)
        tint = np.einsum("rc,rcd->rd", weights, surface.colours[surface.faces[face]])
        for number in np.unique(surface.texture[face]):
            if number < 0:
                continue
            chosen = np.nonzero(surface.texture[face] == number)[0]
            uv = np.einsum("rc,rcd->rd", weights[chosen], surface.uv[face[chosen]])
            level = self._level(face[chosen], number, float(np.median(depth[chosen])) / focal)
            tint[chosen] *= _bilinear(self._texture(number, level), uv)
        return tint

    def _level(self, face: Int[np.ndarray, "R"], number: int, pixel_m: float) -> int:
        """How often to halve a texture so that a texel is about a pixel of ``pixel_m`` metres; at most thrice."""
        few = face[:: max(1, len(face) // 2000)]
        corners, uv = self.surface.vertices[self.surface.faces[few]], self.surface.uv[few]
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        (ax, ay), (bx, by) = (uv[:, 1] - uv[:, 0]).T, (uv[:, 2] - uv[:, 0]).T
        height, width = self.surface.textures[number].shape[:2]
        texels = float(np.median(np.abs(ax * by - ay * bx) * height * width / np.maximum(area, 1e-12)))
        return int(np.clip(np.log2(max(texels**0.5 * pixel_m, 1e-6)), 0, 3))

    def _texture(self, number: int, level: int) -> UInt8[np.ndarray, "h w 4"]:
        if (number, level) not in self._levels:
            self._levels[number, level] = pyramid(self.surface.textures[number], level)
        return self._levels[number, level]

    def _window(self, camera: Cameras) -> tuple[int, int, int, int]:
        """First column and row, and one past the last, that can show the surface."""
        import torch

        pixels, depth = camera.project(torch.from_numpy(self.surface.vertices).float())
        if not (depth > 1e-3).all():
            return 0, 0, camera.width, camera.height
        low, high = pixels[0].min(0).values.floor() - 1, pixels[0].max(0).values.ceil() + 1
        size = torch.tensor([camera.width, camera.height])
        low, high = torch.minimum(low.clamp(min=0), size - 1), torch.minimum(high.clamp(min=1), size)
        return int(low[0]), int(low[1]), max(int(high[0]), int(low[0]) + 1), max(int(high[1]), int(low[1]) + 1)


def _bilinear(image: UInt8[np.ndarray, "h w 4"], uv: Float[np.ndarray, "R 2"]) -> Float[np.ndarray, "R 4"]:
    """A texture, repeated, at (0, 0) the lower left; values in [0, 1]."""
    height, width = image.shape[:2]
    x, y = (uv[:, 0] % 1) * width - 0.5, (1 - uv[:, 1] % 1) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - left).astype(np.float32)[:, None], (y - top).astype(np.float32)[:, None]
    right, bottom, left, top = (left + 1) % width, (top + 1) % height, left % width, top % height
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    lower = image[bottom, left] * (1 - fx) + image[bottom, right] * fx
    return (upper * (1 - fy) + lower * fy) / 255


class BlenderScene:
    """The same pictures by a Blender of the user's own. Written from Blender 4's documentation; it never ran here."""

    def __init__(self, surface: Surface):
        self.blender = shutil.which("blender")
        if self.blender is None:
            raise UsageError("--renderer blender: there is no `blender` on the path", code="E_BLENDER")
        self.surface = surface
        self._embree = EmbreeScene(surface)

    def hits(self, origins, directions):
        return self._embree.hits(origins, directions)

    def render(self, camera: Cameras, supersampling: int = 2) -> tuple[UInt8[np.ndarray, "H W 4"], np.ndarray]:
        """As ``EmbreeScene.render``; the depth is Embree's."""
        from PIL import Image

        with tempfile.TemporaryDirectory() as home:
            folder = Path(home)
            np.savez(
                folder / "scan.npz", vertices=self.surface.vertices, faces=self.surface.faces, uv=self.surface.uv,
                texture=self.surface.texture, colours=self.surface.colours,
            )  # fmt: skip
            for number, image in enumerate(self.surface.textures):
                Image.fromarray(image).save(folder / f"texture{number}.png")
            job = {
                "viewmat": camera.viewmats[0].tolist(), "K": camera.Ks[0].tolist(), "width": camera.width,
                "height": camera.height, "samples": 4 * supersampling**2, "out": str(folder / "view.png"),
            }  # fmt: skip
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            done = subprocess.run(
                [self.blender, "-b", "--factory-startup", "-P", str(BLENDER_SCRIPT), "--", str(folder)],
                capture_output=True, text=True,
            )  # fmt: skip
            if not (folder / "view.png").is_file():
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
                raise ResourceError(f"{self.blender}: rendered nothing ({lines[-1][:150]})", code="E_BLENDER")
            with Image.open(folder / "view.png") as image:
                rgba = np.array(image.convert("RGBA"))
        return rgba, self._embree.render(camera, 1)[1]


SCENES = {"embree": EmbreeScene, "blender": BlenderScene}
