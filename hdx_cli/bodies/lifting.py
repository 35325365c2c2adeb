"""A small network that tells from a photo how the limbs lie in depth.

Landmarks of one photo say little about depth: whether a leg steps forward or back shows in its foot, its knee and its
shading. The network looks at the picture round every landmark, lets the landmarks attend to one another, and returns the
body directions of ``rig.DIRECTIONS`` with their noise, which the fit uses in place of the detector's. It is trained on
synthetic people (``hdx_cli.training.train_lifting``) over random backgrounds, which the matte removes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WeightsError
from ..observation import Observation
from ..weights import LOCK, REINSTALL, read_weights
from .rig import BODY_DIRECTIONS, DIRECTIONS, POSE_LANDMARKS, mirrored_directions, mirrored_landmarks

WEIGHTS = Path(__file__).with_name("lifting.safetensors")
HEIGHT, WIDTH = 256, 192
MARGIN = 1.18  # of the person's box
SMOOTH_PX = 0.6  # of the network's pixels; training resamples its pictures once more and so softens them
GREY = 0.5  # stands where the matte is empty


@dataclass(frozen=True)
class Inputs:
    """What the network sees of B photos.

    Attributes:
        image: the person over grey and the matte, [B 4 H W].
        landmarks: [B 33 6]: x and y in the crop from -1 to 1, confidence, and the detector's position in metres in ray axes.
        directions: the body directions as the detector's calibration has them, in ray axes [B N 3].
    """

    image: Float[Tensor, "B 4 H W"]
    landmarks: Float[Tensor, "B P 6"]
    directions: Float[Tensor, "B N 3"]


class LiftingNet(nn.Module):
    """Convolutions sampled at the landmarks, attention between the landmarks, one head for all directions.

    The stages are also joined from the coarsest to the second finest (feature pyramid, Lin et al. 2017), and tell the
    depth of the visible surface. Nothing uses that depth but the training: it teaches the pyramid to read shading.
    """

    def __init__(
        self, channels: Sequence[int] = (24, 32, 48, 64, 96), pyramid: int = 48, width: int = 96, layers: int = 5
    ):
        super().__init__()
        self.config = {"channels": list(channels), "pyramid": pyramid, "width": width, "layers": layers}
        stages, before = [], 4
        for number, after in enumerate(channels):
            blocks = [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
            if number:
                blocks += [nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]
            stages.append(nn.Sequential(*blocks))
            before = after
        self.stages = nn.ModuleList(stages)
        self.across = nn.ModuleList(nn.Conv2d(count, pyramid, 1) for count in channels[1:])
        self.joined = nn.Sequential(nn.Conv2d(pyramid, pyramid, 3, 1, 1), nn.GroupNorm(8, pyramid), nn.SiLU())
        self.depth = nn.Conv2d(pyramid, 1, 1)
        self.token = nn.Linear(sum(channels[1:]) + pyramid + 6, width)
        self.name = nn.Parameter(0.02 * torch.randn(POSE_LANDMARKS, width))
        self.whole = nn.Linear(channels[-1], width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.attention = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.direction_name = nn.Parameter(0.02 * torch.randn(BODY_DIRECTIONS, width))
        self.head = nn.Sequential(nn.Linear(4 * width + 3, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 6))
        nn.init.zeros_(self.head[-1].weight)
        nn.init.constant_(self.head[-1].bias, 0.0)
        ends = torch.zeros(2, BODY_DIRECTIONS, POSE_LANDMARKS)
        for row, (_, start, end) in enumerate(DIRECTIONS[:BODY_DIRECTIONS]):
            ends[0, row, start], ends[1, row, end] = 1 / len(start), 1 / len(end)
        self.register_buffer("ends", ends, persistent=False)

    def forward(self, inputs: Inputs) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 3"], Float[Tensor, "B h w"]]:
        """Unit directions in ray axes, the logarithm of their noise along x, y and depth, and a map of depth.

        The map has a quarter of the image's height and width: metres behind the hips along the ray axes' z, of what
        is seen there.
        """
        features, stages = inputs.image - 0.5, []
        for stage in self.stages:
            features = stage(features)
            stages.append(features)
        joined = self.across[-1](features)
        for across, stage in zip(reversed(self.across[:-1]), reversed(stages[1:-1]), strict=True):
            joined = across(stage) + F.interpolate(joined, stage.shape[2:], mode="bilinear", align_corners=False)
        joined = self.joined(joined)
        grid = inputs.landmarks[:, :, None, :2].clamp(-1.2, 1.2)
        sampled = [
            F.grid_sample(each, grid.to(each), align_corners=False, padding_mode="border")[..., 0]
            for each in (*stages[1:], joined)
        ]
        tokens = self.token(torch.cat([torch.cat(sampled, 1).transpose(1, 2), inputs.landmarks], dim=2)) + self.name
        whole = self.whole(features.mean((2, 3)))[:, None]
        tokens = self.attention(torch.cat([tokens, whole], dim=1))
        landmarks, whole = tokens[:, :-1], tokens[:, -1:].expand(-1, BODY_DIRECTIONS, -1)
        start, end = (torch.einsum("np,bpc->bnc", side, landmarks) for side in self.ends)
        names = self.direction_name.expand(len(tokens), -1, -1)
        out = self.head(torch.cat([start, end, whole, names, inputs.directions], dim=2))
        return F.normalize(inputs.directions + out[..., :3], dim=2), out[..., 3:] - 1.5, self.depth(joined)[:, 0]


def mirrored_vectors(vectors: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
    """Body directions in ray axes of the mirrored photo."""
    index, sign = mirrored_directions()
    index, sign = torch.from_numpy(index[:BODY_DIRECTIONS]), torch.from_numpy(sign[:BODY_DIRECTIONS]).to(vectors)
    return vectors[:, index] * sign[:, None] * vectors.new_tensor([-1.0, 1, 1])


def mirrored(inputs: Inputs) -> Inputs:
    """The inputs of the mirrored photos: left and right trade places."""
    swap = torch.from_numpy(mirrored_landmarks()[:POSE_LANDMARKS])
    landmarks = inputs.landmarks[:, swap] * inputs.landmarks.new_tensor([-1.0, 1, 1, -1, 1, 1])
    return Inputs(inputs.image.flip(3), landmarks, mirrored_vectors(inputs.directions))


def both_ways(net: LiftingNet, inputs: Inputs) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 3"]]:
    """Directions and their noise as ``LiftingNet.forward`` has them, the mean of the photo and of its mirror image.

    That takes 3 % off the error in depth.
    """
    (found, log_sigma, _), (other, other_sigma, _) = net(inputs), net(mirrored(inputs))
    index = torch.from_numpy(mirrored_directions()[0][:BODY_DIRECTIONS])
    return F.normalize(found + mirrored_vectors(other), dim=2), 0.5 * (log_sigma + other_sigma[:, index])


def crop_of(
    alpha: Float[np.ndarray, "H W"], pixels: Float[np.ndarray, "33 2"], confidence: Float[np.ndarray, "33"]
) -> tuple[float, float, float]:
    """Centre x, y of the person in px and the scale at which the person fits the network's image."""
    rows, columns = np.nonzero(alpha > 0.5)
    seen = pixels[confidence > 0.5]
    x = np.concatenate([columns, seen[:, 0]]) if len(rows) else pixels[:, 0]
    y = np.concatenate([rows, seen[:, 1]]) if len(rows) else pixels[:, 1]
    height, width = alpha.shape
    x0, x1 = max(x.min(), 0), min(x.max(), width)
    y0, y1 = max(y.min(), 0), min(y.max(), height)
    scale = min(HEIGHT / (MARGIN * max(y1 - y0, 8)), WIDTH / (MARGIN * max(x1 - x0, 8)))
    return 0.5 * (x0 + x1), 0.5 * (y0 + y1), scale


def cropped(
    rgb: Float32[np.ndarray, "H W 3"],
    alpha: Float32[np.ndarray, "H W"],
    crop: tuple[float, float, float],
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Float32[np.ndarray, "h w 4"]:
    """The person over grey and the matte, resampled with ``crop``'s scale about its centre."""
    x, y, scale = crop
    picture = np.concatenate([rgb * alpha[..., None] + GREY * (1 - alpha[..., None]), alpha[..., None]], axis=2)
    picture = cv2.GaussianBlur(picture, (0, 0), SMOOTH_PX / scale)
    matrix = np.array([[scale, 0, size[0] / 2 - scale * x], [0, scale, size[1] / 2 - scale * y]])
    border = (GREY, GREY, GREY, 0.0)
    return cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderValue=border)


def ray_axes(x: float, y: float, focal_px: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    """Rotation from camera axes to axes whose z runs along the ray through pixel (x, y); x stays horizontal."""
    forward = np.array([(x - cx) / focal_px, (y - cy) / focal_px, 1.0])
    forward /= np.linalg.norm(forward)
    right = np.array([forward[2], 0.0, -forward[0]])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def landmark_features(
    pixels: Float[np.ndarray, "33 2"],
    world: Float[np.ndarray, "33 3"],
    confidence: Float[np.ndarray, "33"],
    crop: tuple[float, float, float],
    turn: Float[np.ndarray, "3 3"],
) -> Float32[np.ndarray, "33 6"]:
    """``Inputs.landmarks`` of one photo."""
    x, y, scale = crop
    placed = (pixels - (x, y)) * scale / np.array([WIDTH / 2, HEIGHT / 2])
    return np.concatenate([placed, confidence[:, None], world @ turn.T], axis=1).astype(np.float32)


def lifted_directions(
    net: LiftingNet,
    observation: Observation,
    focal_px: float,
    directions: Float[np.ndarray, "N 3"],
) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"]]:
    """Body directions in camera axes and their noise along camera x, y and depth.

    Args:
        directions: the detector's body directions after its calibration, camera axes [N 3].
    """
    height, width = observation.alpha.shape
    keypoints = observation.keypoints
    pixels, confidence = keypoints.pixels[:, :2].astype(float), keypoints.pixels[:, 2].astype(float)
    crop = crop_of(observation.alpha, pixels, confidence)
    turn = ray_axes(crop[0], crop[1], focal_px, width / 2, height / 2)
    image = cropped(observation.foreground, observation.alpha, crop)
    landmarks = landmark_features(pixels, keypoints.world.astype(float), confidence, crop, turn)
    inputs = Inputs(
        torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(),
        torch.from_numpy(landmarks)[None],
        torch.from_numpy((directions @ turn.T).astype(np.float32))[None],
    )
    with torch.no_grad():
        found, log_sigma = both_ways(net.eval(), inputs)
    return found[0].double().numpy() @ turn, log_sigma[0].double().exp().numpy()


def save_net(path: Path, net: LiftingNet) -> None:
    """Write the network as float16 safetensors with its configuration in the header."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().half().contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, path, metadata={"config": json.dumps(net.config)})


def load_net(path: Path = WEIGHTS, lock: Path | None = LOCK) -> LiftingNet:
    """The network in evaluation mode; ``lock`` as for ``weights.read_weights``.

    Raises:
        WeightsError: the file is missing, damaged, not the one that the lock names, or holds no such network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content, header = read_weights(path, lock)
    try:
        config = json.loads(header["config"])
        net = LiftingNet(**config)
        net.load_state_dict({name: value.float() for name, value in load(content).items()})
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path}: not the weights of the lifting network ({reason})", hint=REINSTALL) from None
    return net.eval()
