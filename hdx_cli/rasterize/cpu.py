"""The rasteriser on the CPU: kernels of this folder joined to one differentiable torch function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..camera import Cameras
from ..errors import ResourceError
from ..gaussians import Gaussians
from ..simd import WIDTH
from ..threads import Threads
from . import blend, project, sh, tiles

_FEW_GAUSSIANS = 2048  # below this many a second thread costs more than it saves


@dataclass(frozen=True)
class _View:
    """What one camera's forward pass leaves to its backward pass; flat arrays as the kernels take them."""

    camera: np.ndarray
    eye: np.ndarray
    colors: np.ndarray
    conics: np.ndarray
    visible: np.ndarray
    records: np.ndarray
    pair_starts: np.ndarray
    tile_starts: np.ndarray
    tile_ids: np.ndarray
    tile_pairs: np.ndarray
    tile_columns: int
    transmittance: np.ndarray
    ends: np.ndarray
    tile_ends: np.ndarray


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().reshape(-1).numpy()


def _render_view(
    inputs: list[np.ndarray],
    bases: int,
    viewmat: np.ndarray,
    K: np.ndarray,
    width: int,
    padded_width: int,
    height: int,
    background: np.ndarray,
    antialiased: bool,
    near_m: float,
    outputs: tuple[np.ndarray, ...],
    threads: Threads,
) -> _View:
    means, quats, scales, opacities, coefficients = inputs
    n = len(opacities)
    rgb, alpha, depth = outputs
    camera = project.camera_numbers(viewmat, K, width, height)
    eye = np.ascontiguousarray(-viewmat[:3, :3].T @ viewmat[:3, 3])
    columns, rows = -(-padded_width // project.TILE_WIDTH), -(-height // project.TILE_HEIGHT)

    colors = np.empty(3 * n, np.float32)
    # torch aligns to cache lines, so that a record of 64 bytes is one line
    conics, records = torch.empty(project.CONIC * n).numpy(), torch.empty(project.RECORD * n).numpy()
    visible, rects, counts = np.empty(n, np.uint8), np.empty(n, np.int64), np.empty(n, np.int32)
    ranges = threads.ranges(n, WIDTH)
    threads.run(sh.colors_from_sh, [(coefficients, bases, means, eye, *r, colors) for r in ranges])
    threads.run(project.project, [
        (means, quats, scales, opacities, colors, camera, padded_width, height, antialiased, np.float32(near_m), *r,
         columns, rows, conics, visible, records, rects, counts) for r in ranges
    ])  # fmt: skip

    pair_starts, order = np.empty(n + 1, np.int32), np.empty(n + tiles.PADDING, np.int32)
    keys, other_keys, ids = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.int32)
    count, pairs = tiles.sort_by_depth(
        conics.view(np.uint32), visible, counts, pair_starts, keys, ids, other_keys, order
    )
    if pairs >= 2**31 - tiles.PADDING:
        raise ResourceError(f"{n} Gaussians of this size overlap too many pixels to be rendered at {width} x {height}")
    tile_starts = np.empty(columns * rows + 1, np.int64)
    tile_ids, tile_pairs = np.empty(pairs + tiles.PADDING, np.int32), np.empty(pairs, np.int32)
    tiles.list_tiles(rects, order, count, columns, pair_starts, tile_starts, tile_ids, tile_pairs)

    transmittance = np.empty(height * padded_width, np.float32)
    ends, tile_ends = np.empty(height * padded_width, np.int32), np.empty(columns * rows, np.int32)
    call = (np.zeros(1, np.int64), records, tile_starts, tile_ids, padded_width, height, columns, background,
            blend.constants(), rgb, alpha, depth, transmittance, ends, tile_ends)  # fmt: skip
    threads.run(blend.blend, [call] * threads.count)
    return _View(camera, eye, colors, conics, visible, records, pair_starts, tile_starts, tile_ids, tile_pairs, columns,
                 transmittance, ends, tile_ends)  # fmt: skip


def _view_backward(
    view: _View, inputs: list[np.ndarray], bases: int, padded_width: int, height: int, background: np.ndarray,
    antialiased: bool, images: tuple[np.ndarray, ...], v_images: tuple[np.ndarray, ...], threads: Threads,
) -> list[np.ndarray]:  # fmt: skip
    means, quats, scales, opacities, coefficients = inputs
    n = len(opacities)
    pairs = np.empty(project.PAIR * len(view.tile_pairs), np.float32)
    call = (np.zeros(1, np.int64), view.records, view.tile_starts, view.tile_ids, view.tile_pairs, padded_width, height,
            view.tile_columns, background, blend.constants(), *images, view.transmittance, view.ends,
            view.tile_ends, *v_images, pairs)  # fmt: skip
    threads.run(blend.blend_backward, [call] * threads.count)
    v_means, v_quats, v_scales, v_opacities, v_sh = gradients = [np.empty_like(x) for x in inputs]
    v_colors = np.empty(3 * n, np.float32)
    ranges = threads.ranges(n, WIDTH)
    threads.run(project.project_backward, [
        (means, quats, scales, opacities, view.camera, antialiased, *r, view.conics, view.visible, view.pair_starts,
         pairs, v_means, v_quats, v_scales, v_opacities, v_colors) for r in ranges
    ])  # fmt: skip
    v_means_sh = np.empty_like(means) if bases > 1 else v_means
    threads.run(
        sh.colors_from_sh_backward,
        [
            (coefficients, bases, means, view.eye, view.colors, view.visible, v_colors, *r, v_sh, v_means_sh)
            for r in ranges
        ],
    )
    if bases > 1:
        v_means += v_means_sh
    return gradients


def _padded(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Zeros appended along ``dim`` up to ``size``, contiguous."""
    missing = size - tensor.shape[dim]
    if missing <= 0:
        return tensor.contiguous()
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, means, quats, scales, opacities, sh_, background, viewmats, Ks, width, height, antialiased, near_m
    ):
        parameters = (means, quats, scales, opacities, sh_)
        # The kernels work on whole vectors of eight: Gaussians with a zero quaternion are no Gaussians, and what
        # lies right of the image is cut off again.
        n, bases = sh_.shape[:2]
        inputs = [_padded(p.detach(), 0, WIDTH) for p in parameters]
        padded_width = -(-width // WIDTH) * WIDTH
        count = len(viewmats)
        rgb = torch.empty(count, height, padded_width, 3)
        alpha, depth = torch.empty(count, height, padded_width), torch.empty(count, height, padded_width)
        numbers = [_flat(x) for x in inputs]
        cameras, intrinsics, backgrounds = viewmats.detach().numpy(), Ks.detach().numpy(), background.detach().numpy()
        views = []
        with Threads(torch.get_num_threads() if n > _FEW_GAUSSIANS else 1) as threads:
            for c in range(count):
                images = (_flat(rgb[c]), _flat(alpha[c]), _flat(depth[c]))
                views.append(_render_view(numbers, bases, cameras[c], intrinsics[c], width, padded_width, height,
                                          backgrounds[c], antialiased, near_m, images, threads))  # fmt: skip
        if ctx is not None:
            ctx.save_for_backward(*parameters, background, rgb, alpha, depth)
            ctx.views, ctx.antialiased, ctx.width = views, antialiased, width
            ctx.set_materialize_grads(False)
        return rgb[:, :, :width], alpha[:, :, :width], depth[:, :, :width]

    @staticmethod
    @once_differentiable
    def backward(ctx, v_rgb, v_alpha, v_depth):
        *parameters, background, rgb, alpha, depth = ctx.saved_tensors
        n, bases = parameters[4].shape[:2]
        count, height, padded_width = alpha.shape
        inputs = [_flat(_padded(p, 0, WIDTH)) for p in parameters]
        v_images = [
            torch.zeros_like(whole) if v is None else _padded(v, 2, padded_width)
            for v, whole in ((v_rgb, rgb), (v_alpha, alpha), (v_depth, depth))
        ]
        totals = None
        with Threads(torch.get_num_threads() if n > _FEW_GAUSSIANS else 1) as threads:
            for c, view in enumerate(ctx.views):
                images = (_flat(alpha[c]), _flat(depth[c]))
                gradients = _view_backward(
                    view,
                    inputs,
                    bases,
                    padded_width,
                    height,
                    background[c].numpy(),
                    ctx.antialiased,
                    images,
                    tuple(_flat(v[c]) for v in v_images),
                    threads,
                )
                totals = gradients if totals is None else [a + b for a, b in zip(totals, gradients, strict=True)]
        results = [
            torch.from_numpy(total).reshape(-1, *p.shape[1:])[:n] if needed else None
            for total, p, needed in zip(totals, parameters, ctx.needs_input_grad, strict=False)
        ]
        v_background = None
        if ctx.needs_input_grad[5]:
            v_background = (v_images[0] * (1 - alpha)[..., None]).sum((1, 2))
        return *results, v_background, *[None] * 6


def rasterize_cpu(
    gaussians: Gaussians, cameras: Cameras, background: Float[Tensor, "C 3"], antialiased: bool, near_m: float
) -> tuple[Float[Tensor, "C H W 3"], Float[Tensor, "C H W"], Float[Tensor, "C H W"]]:
    """Colour over the background, alpha and expected depth; arguments as ``rasterize``, which calls this."""
    parameters = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh, background)
    parameters = [p.to(torch.float32).contiguous() for p in parameters]
    fixed = (cameras.viewmats.to(torch.float32), cameras.Ks.to(torch.float32), cameras.width, cameras.height,
             bool(antialiased), float(near_m))  # fmt: skip
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        return _Rasterize.apply(*parameters, *fixed)
    return _Rasterize.forward(None, *parameters, *fixed)
