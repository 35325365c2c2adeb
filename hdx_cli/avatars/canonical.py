"""Two maps, front and back, on which the same place of every body has the same texel.

The template's rest pose is seen orthographically from +Z and from -Z; towards the head the maps grow larger. Texel
(x, y) covers [x, x + 1] x [y, y + 1]; both maps have the person's left (+X) on the right, so that front and back of one
place share x and y.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ..camera import Cameras
from ..mesh import depth_buffer
from .surface import nearest_pixels

HEIGHT, WIDTH = 192, 112
MARGIN = 2.0  # free texels on every side
HEAD_SCALE = 2.4  # how much larger heads are drawn than the rest
HEAD_BEGINS = (0.855, 0.91)  # share of the body's height over which the scale grows: collar bones to chin


@dataclass(frozen=True)
class Layout:
    """Which place of a body's surface every texel shows; sides are 0 front and 1 back.

    Attributes:
        position: map coordinates of every vertex [V 2] (x, y) in texels.
        template: vertices of the template in rest pose [V 3] metres.
        vertices, barycentric: the triangle each texel lies on and its weights [2 H W 3].
        covered: texels that show the body [2 H W].
        fill: index into the covered texels, of the nearest one on the same side [2 H W].
    """

    position: Float[np.ndarray, "V 2"]
    template: Float[np.ndarray, "V 3"]
    vertices: Int[np.ndarray, "2 H W 3"]
    barycentric: Float[np.ndarray, "2 H W 3"]
    covered: Bool[np.ndarray, "2 H W"]
    fill: Int[np.ndarray, "2 H W"]

    def place(
        self, vertices: Int[np.ndarray, "P 3"], barycentric: Float[np.ndarray, "P 3"]
    ) -> tuple[Int[np.ndarray, "P"], Float[np.ndarray, "P 2"]]:
        """Side [P] and map coordinates [P 2] of points of the surface, given by triangle and barycentric weights."""
        a, b, c = (self.template[vertices[:, corner], :2].T for corner in range(3))
        backwards = (b[0] - a[0]) * (c[1] - a[1]) < (c[0] - a[0]) * (b[1] - a[1])
        return backwards.astype(np.int64), np.einsum("pk,pka->pa", barycentric, self.position[vertices])

    def spread(self, values: Float[np.ndarray, "T C"]) -> Float[np.ndarray, "2 H W C"]:
        """Maps of values given per covered texel; other texels take the nearest covered one's."""
        return values[self.fill]

    def sample(
        self,
        maps: Float[np.ndarray, "2 H W C"],
        side: Int[np.ndarray, "P"],
        position: Float[np.ndarray, "P 2"],
    ) -> Float[np.ndarray, "P C"]:
        """Bilinear samples [P C] of maps without gaps (see ``spread``)."""
        height, width = maps.shape[1:3]
        x = np.clip(position[:, 0] - 0.5, 0, width - 1.001)
        y = np.clip(position[:, 1] - 0.5, 0, height - 1.001)
        column, row = x.astype(int), y.astype(int)
        right, down = (x - column)[:, None], (y - row)[:, None]
        upper = maps[side, row, column] * (1 - right) + maps[side, row, column + 1] * right
        lower = maps[side, row + 1, column] * (1 - right) + maps[side, row + 1, column + 1] * right
        return upper * (1 - down) + lower * down

    def blur(self, maps: Float[np.ndarray, "2 H W C"], sigma: float) -> Float[np.ndarray, "2 H W C"]:
        """Gaussian blur over the covered texels of each side; ``sigma`` in texels."""
        blurred = np.empty_like(maps)
        for side in range(2):
            weight = self.covered[side].astype(np.float32)
            total = cv2.GaussianBlur(maps[side] * weight[..., None], (0, 0), sigma)
            share = cv2.GaussianBlur(weight, (0, 0), sigma)
            # OpenCV drops a last axis of one
            blurred[side] = total.reshape(maps[side].shape) / np.maximum(share, 1e-4)[..., None]
        return self.spread(blurred[self.covered])


def layout(template: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Layout:
    """The layout of a body model, from the vertices of its template in rest pose, metres (+Y up, facing +Z)."""
    template = template.astype(np.float64)
    low, high = template[:, 1].min(), template[:, 1].max()
    grown = np.linspace(0.0, 1.0, 1024)
    ramp = np.clip((grown - HEAD_BEGINS[0]) / (HEAD_BEGINS[1] - HEAD_BEGINS[0]), 0, 1)
    scale = 1 + (HEAD_SCALE - 1) * ramp * ramp * (3 - 2 * ramp)
    risen = np.concatenate([[0.0], np.cumsum(0.5 * (scale[1:] + scale[:-1]) * np.diff(grown))]) * (high - low)
    level = (template[:, 1] - low) / (high - low)
    x, y = template[:, 0] * np.interp(level, grown, scale), np.interp(level, grown, risen)
    texels_per_m = min((HEIGHT - 2 * MARGIN) / risen[-1], (WIDTH - 2 * MARGIN) / (2 * np.abs(x).max()))
    position = np.stack([WIDTH / 2 + x * texels_per_m, HEIGHT - MARGIN - y * texels_per_m], axis=1)

    vertices = np.zeros((2, HEIGHT, WIDTH, 3), np.int64)
    barycentric = np.zeros((2, HEIGHT, WIDTH, 3))
    covered = np.zeros((2, HEIGHT, WIDTH), bool)
    fill = np.zeros((2, HEIGHT, WIDTH), np.int64)
    # a camera of focal length one sees (x z, y z, z) at (x, y): orthographic
    eye = torch.eye(4)[None]
    camera = Cameras(eye, eye[:, :3, :3].contiguous(), WIDTH, HEIGHT)
    before = 0
    for side, sign in enumerate((-1.0, 1.0)):
        depth = 10.0 + sign * template[:, 2]
        buffer = depth_buffer(np.concatenate([position * depth[:, None], depth[:, None]], axis=1), faces, camera)
        covered[side] = buffer.covered
        vertices[side] = faces[buffer.face]
        barycentric[side] = np.concatenate([1 - buffer.barycentric.sum(-1, keepdims=True), buffer.barycentric], -1)
        number = np.zeros((HEIGHT, WIDTH), np.int64)
        number[covered[side]] = before + np.arange(covered[side].sum())
        fill[side] = number[nearest_pixels(covered[side])]
        before += int(covered[side].sum())
    return Layout(position, template, vertices, barycentric, covered, fill)
