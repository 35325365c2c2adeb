"""The rasteriser on a CUDA device: gsplat does the work.

gsplat 1.5.3 compiles its kernels on first use and needs an NVIDIA GPU; nothing of this module runs on a CPU.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from ..camera import Cameras
from ..gaussians import Gaussians


def rasterize_cuda(
    gaussians: Gaussians, cameras: Cameras, background: Float[Tensor, "C 3"], antialiased: bool, near_m: float
) -> tuple[Float[Tensor, "C H W 3"], Float[Tensor, "C H W"], Float[Tensor, "C H W"]]:
    """Colour over the background, alpha and expected depth; arguments as ``rasterize``, which calls this."""
    from gsplat import rasterization  # costs seconds, and is absent on most machines' paths

    images, alpha, _ = rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        colors=gaussians.sh,
        viewmats=cameras.viewmats.to(gaussians.means),
        Ks=cameras.Ks.to(gaussians.means),
        width=cameras.width,
        height=cameras.height,
        near_plane=near_m,
        sh_degree=math.isqrt(gaussians.sh.shape[1]) - 1,
        packed=False,
        backgrounds=background,
        render_mode="RGB+ED",
        rasterize_mode="antialiased" if antialiased else "classic",
    )
    return images[..., :3], alpha[..., 0], images[..., 3]
