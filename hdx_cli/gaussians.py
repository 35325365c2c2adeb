"""3D Gaussians as every part of the package exchanges them: activated values only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))


@dataclass(frozen=True)
class Gaussians:
    """N anisotropic Gaussians in world coordinates (metres, +Y up).

    Attributes:
        means: centres, [N 3] metres.
        quats: rotations wxyz, [N 4], not necessarily of unit length.
        scales: standard deviations along the rotated axes, [N 3] metres, > 0.
        opacities: [N] in [0, 1].
        sh: spherical-harmonic colour, [N K 3] with K = (degree + 1)^2; sRGB-encoded colour is 0.5 + SH_C0 * sh[:, 0] + ...
    """

    means: Float[Tensor, "N 3"]
    quats: Float[Tensor, "N 4"]
    scales: Float[Tensor, "N 3"]
    opacities: Float[Tensor, "N"]
    sh: Float[Tensor, "N K 3"]

    def __len__(self) -> int:
        return self.means.shape[0]

    def rgb(self) -> Float[Tensor, "N 3"]:
        """View-independent part of the colour, sRGB-encoded, not clamped."""
        return 0.5 + SH_C0 * self.sh[:, 0]

    def select(self, index: Tensor) -> Gaussians:
        """The Gaussians picked by a boolean mask [N] or an index tensor."""
        return Gaussians(
            self.means[index], self.quats[index], self.scales[index], self.opacities[index], self.sh[index]
        )

    def to(self, device: str | torch.device) -> Gaussians:
        """The same values on another device."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items()})

    def detach(self) -> Gaussians:
        """The same values without their gradient history."""
        return replace(self, **{k: v.detach() for k, v in vars(self).items()})


def sh_from_rgb(rgb: Float[Tensor, "N 3"]) -> Float[Tensor, "N 1 3"]:
    """Degree-0 coefficients [N 1 3] whose colour is ``rgb`` [N 3] (sRGB-encoded)."""
    return ((rgb - 0.5) / SH_C0)[:, None]


def concatenate(parts: list[Gaussians]) -> Gaussians:
    """All Gaussians of ``parts`` in order; every part must have the same number of SH bases."""
    return Gaussians(
        *(torch.cat([getattr(p, name) for p in parts]) for name in ("means", "quats", "scales", "opacities", "sh"))
    )
