"""A body small enough for tests: a ball of a head on a barrel of a trunk, two joints."""

from __future__ import annotations

import numpy as np
import torch
import trimesh

from hdx_cli.bodies.base import PARTS, Body, BodyFit, BodyPose, RestBody, posed_vertices
from hdx_cli.camera import Cameras, look_at
from hdx_cli.mesh import depth_buffer
from hdx_cli.observation import Keypoints, Observation, Photo


class ToyBody:
    """``bodies.base.BodyModel`` of one shape: trunk from 0 to 1.3 m, head round 1.5 m."""

    name = "toy"
    parents = np.array([-1, 0])
    joint_names = ("root", "head")

    def __init__(self) -> None:
        trunk = trimesh.creation.capsule(height=0.9, radius=0.2, count=[24, 24])
        trunk.vertices = trunk.vertices[:, [1, 2, 0]] + [0.0, 0.2, 0.0]
        head = trimesh.creation.icosphere(subdivisions=3, radius=0.13)
        head.vertices = head.vertices + [0.0, 1.45, 0.0]
        self._rest = RestBody(
            np.concatenate([trunk.vertices, head.vertices]), np.array([[0.0, 0.2, 0.0], [0.0, 1.3, 0.0]])
        )
        self.faces = np.concatenate([trunk.faces, head.faces + len(trunk.vertices)]).astype(np.int32)
        on_head = np.arange(len(self._rest.vertices)) >= len(trunk.vertices)
        self.weights = np.stack([~on_head, on_head], axis=1).astype(np.float32)
        self.parts = np.where(on_head, PARTS.index("head"), PARTS.index("torso"))

    def rest(self, shape: np.ndarray) -> RestBody:
        return self._rest


def toy_fit(height_px: int = 240) -> BodyFit:
    """The toy person in front of a camera, head tilted a little."""
    rotations = np.tile(np.eye(3), (1, 2, 1, 1))
    tilt = 0.1
    rotations[0, 1] = [[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]]
    viewmats = look_at(torch.tensor([[0.0, 0.8, 4.0]]), torch.tensor([0.0, 0.8, 0.0]))
    focal = 1.8 * height_px
    width = round(height_px * 0.6)
    Ks = torch.tensor([[[focal, 0, width / 2], [0, focal, height_px / 2], [0, 0, 1]]])
    pose = BodyPose(rotations, np.zeros((1, 3)))
    return BodyFit(Body("toy", np.zeros(1)), pose, Cameras(viewmats, Ks, width, height_px), {"lean_deg": 0.0})


def toy_photo(model: ToyBody, fit: BodyFit, wider_m: float = 0.0) -> Observation:
    """A photo of the toy: striped trunk, face in front of the head, and clothes ``wider_m`` round the trunk."""
    vertices = posed_vertices(model, fit.body, fit.pose)
    trunk = model.parts == PARTS.index("torso")
    middle = np.array([0.0, 1.0, 0.0]) * vertices
    outward = vertices - middle
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
    vertices = np.where(trunk[:, None], vertices + wider_m * outward, vertices)
    buffer = depth_buffer(vertices, model.faces, fit.camera)
    height, width = buffer.depth.shape
    part = model.parts[model.faces[buffer.face, 0]]
    rgb = np.full((height, width, 3), 0.8, np.float32)
    stripes = (np.arange(height) // 12 % 2)[:, None, None] * np.array([0.1, 0.4, 0.0], np.float32)
    rgb = np.where((part == PARTS.index("torso"))[..., None], np.array([0.2, 0.3, 0.6], np.float32) + stripes, rgb)
    hair_line = 1.45 + 0.05
    rows = np.nonzero((part == PARTS.index("head")) & buffer.covered)[0]
    crown_row = rows.min() + (rows.max() - rows.min()) * (1.58 - hair_line) / 0.26
    skin_or_hair = np.where(np.arange(height)[:, None, None] > crown_row, [0.9, 0.7, 0.6], [0.15, 0.1, 0.05])
    rgb = np.where((part == PARTS.index("head"))[..., None], skin_or_hair, rgb).astype(np.float32)
    alpha = buffer.covered.astype(np.float32)
    keypoints = Keypoints(np.zeros((33, 3), np.float32), np.zeros((33, 3), np.float32))
    return Observation(Photo(rgb), alpha, rgb, keypoints)
