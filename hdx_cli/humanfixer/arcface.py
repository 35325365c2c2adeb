"""Faces found and embedded by InsightFace: ArcFace's 512 numbers, which identity tokens can be made of.

The model packs (buffalo_l and others) are non-commercial, never bundled and never downloaded by hdx: a pack is a folder
of one's own. InsightFace itself ran on a pack of random numbers in the layout of the real ones; no real pack did.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ..errors import WeightsError
from .identity import FACES

LICENCE = "insightface"
TERMS = "InsightFace's model packs are for non-commercial research only, and so are avatars made with them"
MAX_BYTES = 2_000_000_000
CONFIDENCE = 0.5  # of a detection
DETECTION_PX = (640, 640)


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    Attributes:
        box: left, top, right, bottom, pixels.
        points: eyes, nose and corners of the mouth [5 2], pixels.
        confidence: of the detection, in [0, 1].
        embedding: ArcFace's, of unit length.
    """

    box: Float32[np.ndarray, "4"]
    points: Float32[np.ndarray, "5 2"]
    confidence: float
    embedding: Float32[np.ndarray, "512"]

    @property
    def area(self) -> float:
        """Of the box, square pixels."""
        width, height = self.box[2:] - self.box[:2]
        return float(max(width, 0.0) * max(height, 0.0))


def require_accepted(accepted: Collection[str]) -> None:
    """See that a person has agreed to the terms of the model packs.

    Raises:
        WeightsError: ``LICENCE`` is not among what was accepted.
    """
    if LICENCE not in accepted:
        raise WeightsError(TERMS, hint=f"if you may use them, add --accept-license {LICENCE}", code="E_LICENCE")


class ArcFace:
    """Finds faces and embeds them with the models of one pack; alignment by five points is InsightFace's own."""

    def __init__(self, pack: Path):
        """``pack``: a folder with the detector's and the recogniser's .onnx files, as in ROOT/models/NAME.

        Raises:
            WeightsError: it is none, or its models cannot be loaded.
        """
        found = sorted(pack.glob("*.onnx")) if pack.is_dir() else []
        if not found:  # checked here, because InsightFace would download a pack that is not there
            raise WeightsError(f"{pack}: no folder with .onnx files", hint="--face-pack ROOT/models/buffalo_l")
        if sum(path.stat().st_size for path in found) > MAX_BYTES:
            raise WeightsError(f"{pack}: its .onnx files are too large for a pack of faces")
        from insightface.app import FaceAnalysis

        self._pack = pack
        try:
            self._models = FaceAnalysis(
                str(pack), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
            )
            self._models.prepare(-1, CONFIDENCE, DETECTION_PX)
        except Exception as error:  # onnxruntime's errors have no base of their own, InsightFace asserts
            raise self._fault(error) from None
        if "recognition" not in self._models.models:
            raise WeightsError(f"{pack}: no recognition model in it")

    def _fault(self, error: Exception) -> WeightsError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return WeightsError(f"{self._pack}: InsightFace cannot use these models ({reason})")

    def faces(self, rgb: Float[Tensor, "H W 3"]) -> list[Face]:
        """All faces of a picture with values in [0, 1], the largest first.

        Raises:
            WeightsError: the models do not give what models of faces give.
        """
        picture = (rgb.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()[..., ::-1]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-image renames what InsightFace calls
                found = self._models.get(np.ascontiguousarray(picture))
            faces = [_face(each) for each in found]
        except Exception as error:
            raise self._fault(error) from None
        return sorted(faces, key=lambda face: -face.area)

    def __call__(self, rgb: Float[Tensor, "H W 3"]) -> Float[Tensor, "512"] | None:
        """The embedding of the largest face of a picture, None where there is none."""
        faces = self.faces(rgb)
        return torch.from_numpy(faces[0].embedding) if faces else None


def _face(found: object) -> Face:
    embedding = np.asarray(found.normed_embedding, np.float32)
    if embedding.shape != (FACES["arcface"],) or not np.isfinite(embedding).all():
        raise ValueError(f"an embedding of shape {embedding.shape}, or not finite")
    return Face(
        np.asarray(found.bbox, np.float32), np.asarray(found.kps, np.float32), float(found.det_score), embedding
    )


def reference_view(faces: Sequence[Sequence[Face]]) -> int:
    """Which of several views shows the largest face, the first of equals; 0 if none does (HumanDreamer-X, THuman2.1).

    Args:
        faces: of every view, as ``ArcFace.faces`` finds them.
    """
    areas = [max((face.area for face in view), default=0.0) for view in faces]
    return areas.index(max(areas)) if areas else 0
