"""Who the person is, as tokens of the cross-attention."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

FACE_PX = 64
# What faces are given as, and how long their embeddings are: crops for a small encoder that is trained along, or
# ArcFace's embeddings, which ``arcface`` computes.
FACES = {"crop": None, "arcface": 512}


class FaceEncoder(nn.Module):
    """A small convolutional face embedder that is trained together with the network it serves."""

    def __init__(self, dimension: int = 128):
        super().__init__()
        self.dimension = dimension
        widths = (3, 16, 32, 64, 64)
        layers = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.GroupNorm(8, wide), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * (FACE_PX // 16) ** 2, dimension))

    def forward(self, faces: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B D"]:
        return self.layers(2 * faces - 1)


class FaceProjection(nn.Module):
    """An embedding to ``tokens`` tokens, as IP-Adapter's FaceID does: two layers and a normalisation."""

    def __init__(self, dimension: int, tokens: int, width: int):
        super().__init__()
        self.tokens = tokens
        self.layers = nn.Sequential(
            nn.Linear(dimension, 2 * dimension), nn.GELU(), nn.Linear(2 * dimension, tokens * width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, "B T C"]:
        return self.norm(self.layers(embeddings).unflatten(-1, (self.tokens, -1)))


class Identity(nn.Module):
    """The context of the cross-attention [B T C] in every mode of ``attention.IDENTITIES``.

    Where there is no face (a crop or an embedding of zeros) the face tokens are zeros, not the projection of zeros.
    """

    def __init__(self, mode: str, width: int, tokens: int = 4, faces: str = "crop"):
        """``faces``: what faces are given as, of ``FACES``."""
        super().__init__()
        self.mode = mode
        self.width = width
        self.face_shape = (FACES[faces],) if FACES[faces] else (3, FACE_PX, FACE_PX)
        if "face" in mode:
            self.encoder = None if FACES[faces] else FaceEncoder()
            self.projection = FaceProjection(FACES[faces] or self.encoder.dimension, tokens, width)

    def forward(
        self, faces: Float[Tensor, "B 3 64 64"] | Float[Tensor, "B D"], clip: Float[Tensor, "B 1 C"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Context of faces (crops in [0, 1], or embeddings) and, in modes with "clip", of CLIP's image tokens.

        No CLIP tokens are zeros.
        """
        if clip is None:
            clip = faces.new_zeros(len(faces), 1, self.width)
        if "face" not in self.mode:
            return clip if self.mode == "clip" else torch.zeros_like(clip)
        found = (faces != 0).flatten(1).any(1)[:, None, None]
        embeddings = faces if self.encoder is None else self.encoder(faces)
        tokens = torch.where(found, self.projection(embeddings), 0.0)
        return tokens if self.mode == "face" else torch.cat([clip, tokens], 1)
