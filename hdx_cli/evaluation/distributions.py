"""How far apart two sets of features are: the Frechet distance (FID) and the kernel distance (KID)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LEAST_FID, LEAST_KID = 256, 50  # images a side below which the number is refused


def frechet_distance(
    mean: Float[np.ndarray, "D"],
    covariance: Float[np.ndarray, "D D"],
    other_mean: Float[np.ndarray, "D"],
    other_covariance: Float[np.ndarray, "D D"],
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): the squared Wasserstein-2 distance of two Gaussians.

    (Dowson and Landau 1982; as FID in Heusel et al. 2017, eq. 6.) The trace of the root of C1 C2, which is not
    symmetric, is that of C1^(1/2) C2 C1^(1/2), which is, and stays real where covariances are singular.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ other_covariance @ root)
    spread = np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(np.clip(inner, 0, None)).sum()
    return float(np.square(mean - other_mean).sum() + spread)


def fid(features: Float[np.ndarray, "N D"], others: Float[np.ndarray, "M D"]) -> float:
    """Frechet distance of the Gaussians fitted to two sets of as many features; biased upwards, less so for larger N.

    Raises:
        ValueError: the sets are not of one size, or smaller than 2.
    """
    _check(features, others)
    a, b = features.astype(np.float64), others.astype(np.float64)
    return frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def kid(features: Float[np.ndarray, "N D"], others: Float[np.ndarray, "M D"]) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, eq. 4).

    Over all images at once; other programs average over random subsets, which has the same mean. May be below 0.

    Raises:
        ValueError: the sets are not of one size, or smaller than 2.
    """
    _check(features, others)
    a, b = features.astype(np.float64), others.astype(np.float64)
    count, dimensions = a.shape

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / dimensions + 1) ** 3

    within = sum((k.sum() - np.trace(k)) / (count * (count - 1)) for k in (kernel(a, a), kernel(b, b)))
    return float(within - 2 * kernel(a, b).mean())


def _check(features: np.ndarray, others: np.ndarray) -> None:
    if features.shape != others.shape or len(features) < 2:
        raise ValueError(f"two sets of as many features are needed, not {features.shape} and {others.shape}")
