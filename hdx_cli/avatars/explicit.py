"""Backbone ``explicit``: the photo's own pixels as Gaussians on a clothed body, and a deterministic far side.

This is the coarse avatar A_c = GS(I_R, theta) of HumanDreamer-X (arXiv 2504.03536, Eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ..bodies.base import PARTS, BodyFit, BodyModel, joint_transforms, skin
from ..camera import Cameras
from ..gaussians import Gaussians, concatenate, sh_from_rgb
from ..losses import psnr
from ..mesh import DepthBuffer, depth_buffer, vertex_normals
from ..observation import Observation
from ..progress import Progress, Silent
from ..rasterize import morton_order, rasterize, visibility
from . import clothing, surface, unseen
from .base import Avatar, axes_of_factors, blend, inverse_transforms, moved, posed, strongest
from .binding import loosened
from .optimize import fit_image
from .skirt import Bell, bell_back, bell_of, bulged, legs_beneath, skirted

FRINGE_PX = 2.0
SHOWN = 0.25  # a Gaussian of which less than this share shows in the photo is not seen in it
SEEN_SHARE = 0.58  # of the Gaussians, for what the photo shows
HEAD, HAND = PARTS.index("head"), PARTS.index("hand")


@dataclass(frozen=True)
class Settings:
    """How much work a coarse avatar gets.

    Attributes:
        gaussians: about how many Gaussians in all.
        iterations: optimisation steps against the photo.
        max_side_px: the photo's person is worked on at this many pixels at most.
        completion: colours of the unseen side from the bundled network, or from other weights at this path; False leaves
            them to rules. Bodies that the network does not know are left to rules, too.
    """

    gaussians: int = 100_000
    iterations: int = 120
    max_side_px: int = 1024
    completion: bool | str = True


def person_window(
    camera: Cameras, rgb: Float[np.ndarray, "H W 3"], alpha: Float[np.ndarray, "H W"], max_side_px: int
) -> tuple[Cameras, np.ndarray, np.ndarray]:
    """The part of the photo that holds the person, at no more than ``max_side_px``: camera, colours and matte of that window."""
    rows, columns = np.nonzero(alpha >= surface.MATTE_FLOOR)
    margin = max(8, round(0.03 * (rows.max() - rows.min())))
    x0, x1 = max(0, columns.min() - margin), min(alpha.shape[1], columns.max() + 1 + margin)
    y0, y1 = max(0, rows.min() - margin), min(alpha.shape[0], rows.max() + 1 + margin)
    scale = min(1.0, max_side_px / max(x1 - x0, y1 - y0))
    width, height = round((x1 - x0) * scale), round((y1 - y0) * scale)
    rgb, alpha = rgb[y0:y1, x0:x1], alpha[y0:y1, x0:x1]
    if scale < 1.0:
        # premultiplied, so that colours from outside the person do not leak in
        weight = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)
        rgb = cv2.resize(rgb * alpha[..., None] + 1e-4 * rgb, (width, height), interpolation=cv2.INTER_AREA)
        rgb, alpha = rgb / (weight + 1e-4)[..., None], weight
    window = camera.resampled(scale, float(x0), float(y0), width, height)
    return window, without_fringe(rgb, alpha), np.ascontiguousarray(alpha, np.float32)


def without_fringe(rgb: Float[np.ndarray, "H W 3"], alpha: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 3"]:
    """Colours whose last pixels before the matte's edge are those of the nearest pixel further inside.

    A matte that is a pixel off leaves a rim in the background's colour, which shows as stripes once the avatar turns. What
    is too thin to have an inside (a strand of hair, a strap) keeps its colours.
    """
    solid = (alpha > 0.95).astype(np.uint8)
    inside = cv2.distanceTransform(np.pad(solid, 1, constant_values=1), cv2.DIST_L2, 5)[1:-1, 1:-1] > FRINGE_PX
    distance, labels = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    lookup = np.zeros((labels.max() + 1, 3), np.float32)
    lookup[labels[inside]] = rgb[inside]
    fringe = (~inside) & (distance < 2 * FRINGE_PX + 1)
    return np.where(fringe[..., None], lookup[labels], rgb).astype(np.float32)


@dataclass(frozen=True)
class Draft:
    """A photo laid on its clothed body: everything before the unseen side is made up and anything is optimised.

    Attributes:
        rest, rest_normals: the shaped body in rest pose and its vertex normals [V 3].
        transforms: skinning transforms from rest pose to the photo's [J 4 4].
        camera, rgb, alpha: the window of the photo that holds the person [H W 3], [H W].
        outward: displacement of the clothes [V] metres; vertices: the clothed body in the photo's pose [V 3] metres.
        buffer: the clothed body's depth in the photo; limb: body part of every pixel, -1 off the person [H W].
        sunk: where the buffer has an arm that lay in the flank [H W].
        sheet, cells, seen, seen_rgb: the photo's pixels on the body, as squares, as P points, and their colours [P 3].
        bell: the skirt, if there is one.
    """

    rest: RestBody
    rest_normals: Float[np.ndarray, "V 3"]
    transforms: Float[np.ndarray, "J 4 4"]
    camera: Cameras
    rgb: Float[np.ndarray, "H W 3"]
    alpha: Float[np.ndarray, "H W"]
    outward: Float[np.ndarray, "V"]
    vertices: Float[np.ndarray, "V 3"]
    buffer: DepthBuffer
    sunk: Bool[np.ndarray, "H W"]
    limb: Int[np.ndarray, "H W"]
    sheet: surface.Sheet
    cells: tuple[np.ndarray, np.ndarray, np.ndarray]
    seen: surface.Points
    seen_rgb: Float[np.ndarray, "P 3"]
    bell: Bell | None


def lay_on_body(
    observation: Observation, fit: BodyFit, model: BodyModel, settings: Settings, progress: Progress = Silent()
) -> Draft:
    """Clothe the body so that it meets the matte, and lay the photo's pixels on it."""
    rest = model.rest(fit.body.shape)
    rest_normals = vertex_normals(rest.vertices, model.faces)
    transforms = joint_transforms(fit.pose.rotations[0], rest.joints, model.parents, fit.pose.translations[0])
    body_vertices, _ = skin(rest.vertices, model.weights, transforms)
    camera, rgb, alpha = person_window(fit.camera, observation.foreground, observation.alpha, settings.max_side_px)

    progress.start("clothing")
    outward = clothing.displacement(body_vertices, model.faces, model.parts, rest_normals[:, 2], camera, alpha)
    vertices = body_vertices + outward[:, None] * vertex_normals(body_vertices, model.faces)
    buffer = depth_buffer(vertices, model.faces, camera)
    buffer, sunk = surface.arms_in_front(buffer, vertices, model.faces, model.parts, camera)

    progress.start("surface")
    sheet = surface.lift(buffer, alpha)
    bell = bell_of(alpha, body_vertices, model, camera)
    if bell is not None:
        sheet = bulged(sheet, bell)
    limb = np.where(~np.isnan(sheet.depth), model.parts[model.faces[buffer.face[sheet.owner_y, sheet.owner_x], 0]], -1)
    detail = np.where(limb == HEAD, 2.5, np.where(limb == HAND, 1.5, 1.0)).astype(np.float32)
    cells = surface.adaptive_cells(rgb, sheet.depth, alpha, detail, round(settings.gaussians * SEEN_SHARE))
    seen = surface.seen_points(sheet, buffer, model.faces, camera, cells)
    return Draft(
        rest, rest_normals, transforms, camera, rgb, alpha, outward, vertices, buffer, sunk, limb, sheet, cells, seen,
        _cell_colours(rgb, alpha, cells), bell,
    )  # fmt: skip


def fit_coarse(
    observation: Observation,
    fit: BodyFit,
    model: BodyModel,
    settings: Settings = Settings(),
    progress: Progress = Silent(),
    seed: int = 0,
    draft: Draft | None = None,
) -> Avatar:
    """The coarse avatar of one photo.

    The body is clothed to meet the matte; every pixel of the matte becomes (part of) a Gaussian on it, at the photo's own
    sharpness; the surface that the photo does not show is covered and coloured by a deterministic prior; then all are fitted
    to the photo through the rasteriser and carried back to the rest pose.

    Args:
        draft: what ``lay_on_body`` made of the same, if it is known already.
    """
    rng = np.random.default_rng(seed)
    draft = draft or lay_on_body(observation, fit, model, settings, progress)
    camera, rgb, alpha, seen = draft.camera, draft.rgb, draft.alpha, draft.seen
    hidden, slanting = surface.unseen_points(
        draft.vertices, vertex_normals(draft.vertices, model.faces), model.faces, draft.buffer, draft.sunk, alpha, camera,
        max(1000, round(settings.gaussians * (1 - SEEN_SHARE))), rng,
    )  # fmt: skip
    behind, behind_of = surface.back_of_sheet(draft.sheet, seen, camera)

    progress.start("colours")
    hidden_rgb = unseen_colours(draft, model, hidden, slanting)
    if settings.completion:
        from . import completion  # here because it needs this module

        if model.name == completion.BODY:
            weights = None if settings.completion is True else Path(settings.completion)
            hidden_rgb = completion.complete(draft, model, hidden, hidden_rgb, weights)
    points, colours = [seen, hidden, behind], [draft.seen_rgb, hidden_rgb, draft.seen_rgb[behind_of]]
    if draft.bell is not None:
        far, lenders = bell_back(draft.bell, draft.vertices, model, camera)
        points, colours = [*points, far], [*colours, rgb[lenders[:, 0], lenders[:, 1]]]
    parts, colours = [parts_of(model, p) for p in points], np.concatenate(colours)

    quats, scales = axes_of_factors(np.concatenate([p.factors for p in points]))
    means = np.concatenate([p.means for p in points]).astype(np.float32)
    opacities = np.full(len(means), 0.95, np.float32)
    opacities[: len(seen)] = np.clip(_cell_mean(alpha, draft.cells), 0.3, 0.95)
    gaussians = Gaussians(
        torch.from_numpy(means),
        torch.from_numpy(quats),
        torch.from_numpy(scales),
        torch.from_numpy(opacities),
        sh_from_rgb(torch.from_numpy(colours.astype(np.float32))),
    )
    vertex_weights = np.concatenate([_weights(model, p) for p in points])
    joint_indices, joint_weights = strongest(vertex_weights)
    made_by_photo = np.zeros(len(means), np.float32)
    made_by_photo[: len(seen)] = 1.0
    all_parts = np.concatenate(parts).astype(np.uint8)

    # neighbours in space next to one another in memory: the rasteriser then runs a quarter faster
    order = morton_order(gaussians.means)
    order = order[torch.from_numpy(~surface.strays(means, draft.vertices))[order]]
    gaussians = gaussians.select(order)
    order = order.numpy()
    joint_indices, joint_weights = joint_indices[order], joint_weights[order]
    made_by_photo, all_parts = made_by_photo[order], all_parts[order]

    progress.start("fit to the photo", settings.iterations)
    generator = torch.Generator().manual_seed(seed)
    target_rgb, target_alpha = torch.from_numpy(rgb), torch.from_numpy(alpha)
    gaussians = fit_image(
        gaussians, camera, target_rgb, target_alpha, settings.iterations, generator,
        free=torch.from_numpy(made_by_photo > 0) | (shown_share(gaussians, camera) > SHOWN), progress=progress,
    )  # fmt: skip
    shown = shown_share(gaussians, camera).numpy()
    seen_share = np.maximum(made_by_photo, np.where(shown > SHOWN, shown, 0.0)).astype(np.float32)

    from_photo = inverse_transforms(blend(joint_indices, joint_weights, draft.transforms))
    at_rest = moved(gaussians.means.numpy(), from_photo)
    joint_indices, joint_weights = loosened(at_rest, draft.rest.vertices, joint_indices, joint_weights, all_parts)
    joint_indices, joint_weights = skirted(
        at_rest, draft.rest.vertices, model.parts, joint_indices, joint_weights, all_parts
    )
    to_photo = blend(joint_indices, joint_weights, draft.transforms)
    canonical = posed(gaussians, inverse_transforms(to_photo))
    legs = legs_beneath(canonical, seen_share, all_parts, draft.rest, model, rng)
    if legs is not None:
        canonical = concatenate([canonical, legs[0]])
        joint_indices, joint_weights = (
            np.concatenate(pair) for pair in ((joint_indices, legs[1]), (joint_weights, legs[2]))
        )
        all_parts = np.concatenate([all_parts, legs[3]])
        seen_share = np.concatenate([seen_share, np.zeros(len(legs[3]), np.float32)])
    avatar = Avatar(
        canonical, joint_indices, joint_weights, fit.body, draft.rest, model.parents, model.joint_names, fit.pose,
        seen_share, all_parts,
    )  # fmt: skip
    scores = {**fit.scores, **photo_scores(avatar.gaussians(), camera, target_rgb, target_alpha)}
    scores["seen_gaussians"] = float(seen_share.mean())
    return replace(avatar, scores=scores)


def photo_scores(
    gaussians: Gaussians, camera: Cameras, rgb: Float[torch.Tensor, "H W 3"], alpha: Float[torch.Tensor, "H W"]
) -> dict[str, float]:
    """How well posed Gaussians reproduce the photo: PSNR in dB inside the matte and over the window, silhouette IoU."""
    white = torch.ones(3)
    with torch.no_grad():
        rendered = rasterize(gaussians, camera, background=white)
    target = rgb * alpha[..., None] + white * (1 - alpha[..., None])
    inside, covered = alpha > 0.5, rendered.alpha[0] > 0.5
    return {
        "front_psnr_db": float(psnr(rendered.rgb[0], target, inside)),
        "front_psnr_window_db": float(psnr(rendered.rgb[0], target)),
        "silhouette_iou": float((inside & covered).sum() / (inside | covered).sum()),
    }


def shown_share(gaussians: Gaussians, camera: Cameras) -> Float[torch.Tensor, "N"]:
    """Share of every Gaussian that shows in the photo, in [0, 1]: its blending weight over its own footprint."""
    depth = camera.project(gaussians.means)[1][0]
    largest = gaussians.scales.sort(dim=1).values[:, 1:] * camera.Ks[0, 0, 0] / depth[:, None]
    # 0.3 px^2 is the rasteriser's low-pass
    footprint_px = 2 * torch.pi * torch.sqrt((largest**2 + 0.3).prod(dim=1))
    return (visibility(gaussians, camera)[0] / footprint_px).clamp(0.0, 1.0)


def _weights(model: BodyModel, points: surface.Points) -> np.ndarray:
    return np.einsum("pk,pkj->pj", points.barycentric.astype(np.float32), model.weights[points.vertices])


def _cell_mean(values: np.ndarray, cells: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Mean of an image [H W ...] over every square cell."""
    row, column, size = cells
    total = cv2.integral(np.ascontiguousarray(values, np.float64), sdepth=cv2.CV_64F)
    end_row, end_column = row + size, column + size
    area = (size * size).reshape(-1, *([1] * (values.ndim - 2)))
    return (total[end_row, end_column] - total[row, end_column] - total[end_row, column] + total[row, column]) / area


def _cell_colours(rgb: np.ndarray, alpha: np.ndarray, cells: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    weight = np.maximum(alpha, 1e-3)
    return _cell_mean(rgb * weight[..., None], cells) / _cell_mean(weight, cells)[:, None]


def parts_of(model: BodyModel, points: surface.Points) -> Int[np.ndarray, "P"]:
    """Body part of every point [P], that of its nearest vertex."""
    return model.parts[points.vertices[np.arange(len(points)), points.barycentric.argmax(1)]]


def unseen_colours(
    draft: Draft, model: BodyModel, hidden: surface.Points, slanting: np.ndarray
) -> Float[np.ndarray, "Q 3"]:
    """Colours [Q 3] for unseen points by rule; ``slanting`` [Q] are those that the photo shows, but too slantingly."""
    seen, seen_rgb = draft.seen, draft.seen_rgb
    parts = [parts_of(model, p) for p in (seen, hidden)]
    canonical = [np.einsum("pk,pka->pa", p.barycentric, draft.rest.vertices[p.vertices]) for p in (seen, hidden)]
    px_per_m = float(draft.camera.Ks[0, 0, 0] / np.nanmedian(draft.sheet.depth))
    doubtful = unseen.beside_an_arm(draft.rgb, draft.alpha, draft.limb, draft.sunk, px_per_m)
    colours = _far_colours(
        draft.rgb, draft.alpha, draft.limb, doubtful, seen, seen_rgb, hidden, parts, canonical, draft.rest_normals,
        draft.rest.vertices[model.parts == HEAD],
    )  # fmt: skip
    if slanting.any():
        colours[slanting] = unseen.nearest_seen(
            hidden.means[slanting], parts[1][slanting], seen.means, parts[0], seen_rgb
        )
    return colours


def _far_colours(
    rgb, alpha, limb, doubtful, seen, seen_rgb, hidden, parts, canonical, rest_normals, head_vertices
) -> np.ndarray:
    seen_parts, hidden_parts = parts
    low, high = float(head_vertices[:, 1].min()), float(head_vertices[:, 1].max())
    seen_normals = np.einsum("pk,pka->pa", seen.barycentric, rest_normals[seen.vertices])
    on_head = seen_parts == HEAD
    face = unseen.is_face(canonical[0], seen_normals, low, high) & on_head
    pixels = seen.pixels[face].astype(int)
    face_pixels = np.zeros(limb.shape, bool)
    face_pixels[pixels[:, 1], pixels[:, 0]] = True
    covered = doubtful | unseen.hangs_from_the_head(rgb, alpha, limb, face_pixels)
    lends = (alpha > 0.9) & unseen.shows_at_the_outline(rgb, alpha, limb, covered) & ~face_pixels
    colours = unseen.see_through(rgb, limb, lends, hidden.pixels, hidden_parts)
    nape = hidden_parts == PARTS.index("neck")
    wrapped = unseen.round_the_neck(rgb, limb, alpha, hidden.pixels[nape])
    colours[nape] = np.where(np.isnan(wrapped), colours[nape], wrapped)
    level = (canonical[1][:, 1] - low) / (high - low)
    jaw = (level < 0.45) & (canonical[1][:, 2] > head_vertices[:, 2].mean() - 0.03)
    back_of_head = (hidden_parts == HEAD) & ~jaw
    solid = on_head & (alpha[seen.pixels[:, 1].astype(int), seen.pixels[:, 0].astype(int)] > 0.9)
    if back_of_head.any() and solid.sum() > 20:
        colours[back_of_head] = unseen.hair(
            canonical[1][back_of_head], canonical[0][solid], seen_rgb[solid], face[solid],
            head_vertices.mean(0), low + 0.85 * (high - low),
        )  # fmt: skip
        jaw &= hidden_parts == HEAD
        colours[jaw] = unseen.nearest_seen(
            hidden.means[jaw], hidden_parts[jaw], seen.means[solid], seen_parts[solid], seen_rgb[solid]
        )
    return colours
