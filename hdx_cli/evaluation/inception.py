"""The Inception network whose features FID and KID are made of, with weights that the user brings.

It is the port of TensorFlow's network of 2015 that FID was defined on (Heusel et al. 2017; layout and names as in the
package pytorch-fid, ``pt_inception-2015-12-05``): unlike torchvision's, average pooling leaves the border out and the
last block pools by maximum. Other Inception weights give other numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .weight_files import read_tensors

SIZE_PX, FEATURES = 299, 2048
_STEM = {"Conv2d_1a_3x3": (3, 32, 3), "Conv2d_2a_3x3": (32, 32, 3), "Conv2d_2b_3x3": (32, 64, 3),
         "Conv2d_3b_1x1": (64, 80, 1), "Conv2d_4a_3x3": (80, 192, 3)}  # fmt: skip

Embedder = Callable[[Float[Tensor, "B 3 299 299"]], Float[Tensor, "B 2048"]]


def load_inception(folder: Path) -> Embedder:
    """pool3 features [B 2048] of images in [0, 1] at 299 px, from a folder of safetensors in pytorch-fid's layout.

    Raises:
        WeightsError: something is missing, damaged or of another shape.
    """
    wanted: dict[str, tuple[int, ...] | None] = {}
    for name, (before, after, height, width) in convolutions().items():
        wanted[f"{name}.conv.weight"] = (after, before, height, width)
        wanted |= {f"{name}.bn.{part}": (after,) for part in ("weight", "bias", "running_mean", "running_var")}
    return embedder_of(read_tensors(folder, wanted))


def embedder_of(tensors: dict[str, Float[Tensor, "..."]]) -> Embedder:
    """The network with these tensors; batch norms (eps 0.001) are folded into the convolutions."""
    folded = {}
    for name in convolutions():
        scale = tensors[f"{name}.bn.weight"] / (tensors[f"{name}.bn.running_var"] + 1e-3).sqrt()
        weight = tensors[f"{name}.conv.weight"] * scale[:, None, None, None]
        folded[name] = weight, tensors[f"{name}.bn.bias"] - tensors[f"{name}.bn.running_mean"] * scale

    def conv(name: str, x: Tensor, stride: int = 1, padded: bool = True) -> Tensor:
        weight, bias = folded[name]
        padding = (weight.shape[2] // 2, weight.shape[3] // 2) if padded else 0
        return F.conv2d(x, weight, bias, stride, padding).relu()

    def chain(block: str, x: Tensor, *names: str, shrinks: bool = False) -> Tensor:
        for name in names:
            last = shrinks and name == names[-1]
            x = conv(f"{block}.{name}", x, 2 if last else 1, not last)
        return x

    def around(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def block_a(at: str, x: Tensor) -> Tensor:
        double = chain(at, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        single = chain(at, x, "branch5x5_1", "branch5x5_2")
        return torch.cat([chain(at, x, "branch1x1"), single, double, chain(at, around(x), "branch_pool")], 1)

    def block_b(at: str, x: Tensor) -> Tensor:
        double = chain(at, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", shrinks=True)
        return torch.cat([chain(at, x, "branch3x3", shrinks=True), double, F.max_pool2d(x, 3, 2)], 1)

    def block_c(at: str, x: Tensor) -> Tensor:
        single = chain(at, x, *(f"branch7x7_{i}" for i in (1, 2, 3)))
        double = chain(at, x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)))
        return torch.cat([chain(at, x, "branch1x1"), single, double, chain(at, around(x), "branch_pool")], 1)

    def block_d(at: str, x: Tensor) -> Tensor:
        long = chain(at, x, *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)), shrinks=True)
        return torch.cat([chain(at, x, "branch3x3_1", "branch3x3_2", shrinks=True), long, F.max_pool2d(x, 3, 2)], 1)

    def block_e(at: str, x: Tensor, pooled: Tensor) -> Tensor:
        single, double = chain(at, x, "branch3x3_1"), chain(at, x, "branch3x3dbl_1", "branch3x3dbl_2")
        forked = [chain(at, single, f"branch3x3_2{i}") for i in "ab"]
        forked += [chain(at, double, f"branch3x3dbl_3{i}") for i in "ab"]
        return torch.cat([chain(at, x, "branch1x1"), *forked, chain(at, pooled, "branch_pool")], 1)

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            x = conv("Conv2d_1a_3x3", 2 * images - 1, 2, padded=False)
            x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x, padded=False))
            x = conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2))
            x = F.max_pool2d(conv("Conv2d_4a_3x3", x, padded=False), 3, 2)
            for at in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
                x = block_a(at, x)
            x = block_b("Mixed_6a", x)
            for at in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
                x = block_c(at, x)
            x = block_d("Mixed_7a", x)
            x = block_e("Mixed_7b", x, around(x))
            x = block_e("Mixed_7c", x, F.max_pool2d(x, 3, 1, 1))
            return x.mean((2, 3))

    return features


def convolutions() -> dict[str, tuple[int, int, int, int]]:
    """Every convolution by name: channels before and after, height and width of its kernel."""
    found = {name: (before, after, size, size) for name, (before, after, size) in _STEM.items()}

    def add(block: str, before: int, *branches: str) -> None:
        """Branches as "name channels height width": numbered ones follow one another, letters fork."""
        channels = before
        for branch in branches:
            name, after, height, width = branch.split()
            number = name.rsplit("_", 1)[-1]
            if number not in ("2", "3", "4", "5", "2a", "2b", "3a", "3b"):
                channels = before
            found[f"{block}.{name}"] = (channels, int(after), int(height), int(width))
            if not number.endswith(("a", "b")):
                channels = int(after)

    for block, before, pooled in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        add(block, before, "branch1x1 64 1 1", "branch5x5_1 48 1 1", "branch5x5_2 64 5 5", "branch3x3dbl_1 64 1 1",
            "branch3x3dbl_2 96 3 3", "branch3x3dbl_3 96 3 3", f"branch_pool {pooled} 1 1")  # fmt: skip
    add("Mixed_6a", 288, "branch3x3 384 3 3", "branch3x3dbl_1 64 1 1", "branch3x3dbl_2 96 3 3", "branch3x3dbl_3 96 3 3")
    for block, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        add(block, 768, "branch1x1 192 1 1", f"branch7x7_1 {inner} 1 1", f"branch7x7_2 {inner} 1 7",
            "branch7x7_3 192 7 1", f"branch7x7dbl_1 {inner} 1 1", f"branch7x7dbl_2 {inner} 7 1",
            f"branch7x7dbl_3 {inner} 1 7", f"branch7x7dbl_4 {inner} 7 1", "branch7x7dbl_5 192 1 7",
            "branch_pool 192 1 1")  # fmt: skip
    add("Mixed_7a", 768, "branch3x3_1 192 1 1", "branch3x3_2 320 3 3", "branch7x7x3_1 192 1 1", "branch7x7x3_2 192 1 7",
        "branch7x7x3_3 192 7 1", "branch7x7x3_4 192 3 3")  # fmt: skip
    for block, before in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        add(block, before, "branch1x1 320 1 1", "branch3x3_1 384 1 1", "branch3x3_2a 384 1 3", "branch3x3_2b 384 3 1",
            "branch3x3dbl_1 448 1 1", "branch3x3dbl_2 384 3 3", "branch3x3dbl_3a 384 1 3", "branch3x3dbl_3b 384 3 1",
            "branch_pool 192 1 1")  # fmt: skip
    return found
