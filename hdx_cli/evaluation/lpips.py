"""LPIPS, the learned perceptual distance of Zhang et al. 2018, with weights that the user brings.

Every library for it (lpips, torchmetrics, torch-fidelity, piq) takes its trunk from torchvision, whose wheels fit one
build of torch only. Here the trunk is laid out as torchvision's and filled from safetensors, so that no torchvision is
needed; the learned linear layers come from the same folder or from the files inside the torchmetrics or lpips wheel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import WeightsError
from .weight_files import read_tensors

# per trunk: the layers of torchvision's `features` up to the last tap (C = convolution: channels, size, stride,
# padding; R = ReLU, P = pooling: size, stride), and which of them are looked at
_ALEX = (
    "C 64 11 4 2",
    "R",
    "P 3 2",
    "C 192 5 1 2",
    "R",
    "P 3 2",
    "C 384 3 1 1",
    "R",
    "C 256 3 1 1",
    "R",
    "C 256 3 1 1",
    "R",
)
_VGG = tuple(
    layer
    for block, (channels, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
    for layer in (*(("P 2 2",) if block else ()), *(f"C {channels} 3 1 1", "R") * depth)
)
TRUNKS = {"alex": (_ALEX, (1, 4, 7, 9, 11)), "vgg": (_VGG, (3, 8, 15, 22, 29))}
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
# ImageNet's mean and deviation for images in [-1, 1], rounded as by the authors
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
PACKAGES = {"torchmetrics": "functional/image/lpips_models/{}.pth", "lpips": "weights/v0.1/{}.pth"}

LpipsMeter = Callable[[Float[Tensor, "H W 3"], Float[Tensor, "H W 3"]], float]


def load_lpips(folder: Path) -> tuple[str, LpipsMeter]:
    """LPIPS (version 0.1) from a folder of weights: the trunk's name, alex or vgg, and the distance of two images.

    Args:
        folder: safetensors with ``features.N.weight`` and ``.bias`` as torchvision's alexnet or vgg16 has them, and,
            unless torchmetrics or lpips is installed, ``linN.model.1.weight`` [1 C 1 1]; other tensors are left alone.

    Raises:
        WeightsError: something is missing, damaged or of another shape.
    """
    first = read_tensors(folder, {"features.0.weight": None})["features.0.weight"]
    net = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}.get(tuple(first.shape))
    if net is None:
        shape = " x ".join(map(str, first.shape))
        raise WeightsError(f"{folder}: features.0.weight is {shape}, neither torchvision's alexnet nor its vgg16")
    trunk = trunk_of(net)
    wanted = {f"features.{name}": tuple(value.shape) for name, value in trunk.state_dict().items()}
    trunk.load_state_dict({k.removeprefix("features."): v for k, v in read_tensors(folder, wanted).items()})
    return net, meter_of(net, trunk.eval().requires_grad_(False), _linear_layers(folder, net))


def trunk_of(net: str) -> nn.Sequential:
    """The layers of torchvision's alexnet ("alex") or vgg16 ("vgg") as far as LPIPS looks, with random weights."""
    layers, channels = [], 3
    for layer in TRUNKS[net][0]:
        kind, *numbers = layer.split()
        if kind == "C":
            after, size, stride, padding = map(int, numbers)
            layers.append(nn.Conv2d(channels, after, size, stride, padding))
            channels = after
        else:
            layers.append(nn.ReLU() if kind == "R" else nn.MaxPool2d(*map(int, numbers)))
    return nn.Sequential(*layers)


def meter_of(net: str, trunk: nn.Sequential, linear: list[Float[Tensor, "1 _ 1 1"]]) -> LpipsMeter:
    """Eq. 1 of Zhang et al. 2018 on images in [0, 1].

    The vectors of features at each tap are brought to unit length, their differences squared, weighed per channel (by
    ``linear``, which holds w squared), summed over channels, averaged over places and added up over the taps.
    """
    shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))

    def features(image: Tensor) -> list[Tensor]:
        x = ((2 * image.permute(2, 0, 1) - 1 - shift) / scale)[None]
        found = []
        for start, end in pairwise((-1, *TRUNKS[net][1])):
            x = trunk[start + 1 : end + 1](x)
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(image: Tensor, other: Tensor) -> float:
        with torch.no_grad():
            pairs = zip(features(image), features(other), linear, strict=True)
            return float(sum((((a - b).square() * w).sum(1)).mean() for a, b, w in pairs))

    return distance


def _linear_layers(folder: Path, net: str) -> list[Tensor]:
    """The learned weights per channel of the five taps, [1 C 1 1] each."""
    wanted = {f"lin{k}.model.1.weight": (1, channels, 1, 1) for k, channels in enumerate(CHANNELS[net])}
    found = read_tensors(folder, wanted, missing_ok=True)
    for package, place in PACKAGES.items():
        # the files are data of the package, which is not imported: lpips would want torchvision
        spec = None if found else importlib.util.find_spec(package)
        if spec and (path := Path(spec.submodule_search_locations[0]) / place.format(net)).is_file():
            found = torch.load(path, map_location="cpu", weights_only=True)
    if any(name not in found or tuple(found[name].shape) != shape for name, shape in wanted.items()):
        raise WeightsError(
            f"{folder}: LPIPS needs its linear layers too (lin0.model.1.weight ... lin4)",
            hint="pip install 'hdx-cli[eval]'",
            code="E_WEIGHTS_LAYOUT",
        )
    return [found[name].float() for name in wanted]
