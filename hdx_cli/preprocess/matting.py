"""Alpha from colours, and colours from alpha, both solved only where the answer is in doubt."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy import sparse
from scipy.sparse.linalg import splu

WINDOW_SIDE_PX = 3
# Levin et al. 2008 regularise the colours of a window with this much variance; their range is 1e-7 to 1e-5.
EPSILON = 1e-7
# Weight of the trimap where nothing else is known; entries of the Laplacian are up to 9.
TIE = 1e-9

# Smoothness of colours everywhere and where alpha has an edge (Germer et al. 2020).
SMOOTHNESS, EDGE_SMOOTHNESS = 1e-5, 1.0
# Per level. Errors at soft edges of people before clutter, true alpha given: 2 sweeps .030, 5 .021, 10 .019.
SWEEPS = 5


def closed_form_alpha(rgb: Float[np.ndarray, "H W 3"], trimap: Float[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Closed-form matting: alpha [H W] in [0, 1].

    In every window of 3 x 3 px alpha is taken to be an affine function of colour; what is left over is the quadratic
    form of the matting Laplacian L. Alpha of the unknown pixels U, given that of the known ones K, minimises it:
    L_UU alpha_U = -L_UK alpha_K. (Levin, Lischinski, Weiss: A Closed-Form Solution to Natural Image Matting, TPAMI
    2008, Eq. 8 to 12, with the trimap as a hard constraint.)

    Args:
        rgb: colours in [0, 1].
        trimap: 0 and 1 where alpha is known, anything between where it is not.
    """
    unknown = (trimap > 0) & (trimap < 1)
    alpha = trimap.astype(np.float32)
    if not unknown.any():
        return alpha
    pixels, neighbours, weights = _laplacian_rows(rgb.astype(np.float64), unknown)
    row_of = np.full(unknown.size, -1, np.int32)
    row_of[pixels] = np.arange(len(pixels))
    columns = row_of[neighbours]
    inner = (columns >= 0) & (weights != 0)
    starts = np.concatenate([[0], np.cumsum(inner.sum(axis=1))])
    matrix = sparse.csc_array((weights[inner], columns[inner], starts), shape=(len(pixels), len(pixels)))  # symmetric
    known_alpha = np.where(unknown, 0, trimap).ravel()
    right = -(weights * known_alpha[neighbours]).sum(axis=1)
    # Regions that no known pixel borders on would make the matrix singular; they keep the value of the trimap.
    matrix += TIE * sparse.eye_array(len(pixels), format="csc")
    right += TIE * trimap.ravel()[pixels]
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    alpha.ravel()[pixels] = np.clip(factors.solve(right), 0, 1)
    return alpha


def _laplacian_rows(
    rgb: Float[np.ndarray, "H W 3"], unknown: Bool[np.ndarray, "H W"]
) -> tuple[Int[np.ndarray, U], Int[np.ndarray, "U 25"], Float[np.ndarray, "U 25"]]:
    """Rows of the matting Laplacian that belong to unknown pixels.

    Returns:
        Flat indices of the unknown pixels, of the 5 x 5 pixels round each, and the entries of the Laplacian for these.
        Neighbours beyond the image carry entry 0 and some index.
    """
    height, width = unknown.shape
    side, reach = WINDOW_SIDE_PX, WINDOW_SIDE_PX // 2
    area = side * side
    span = 2 * side - 1
    touched = cv2.dilate(unknown.astype(np.uint8), np.ones((side, side), np.uint8))
    rows, columns = np.nonzero(touched[reach : height - reach, reach : width - reach])
    steps = [(dy, dx) for dy in range(side) for dx in range(side)]
    members = rows * width + columns + np.array([dy * width + dx for dy, dx in steps])[:, None]

    colours = rgb.reshape(-1, 3).T.copy()[:, members]
    colours -= colours.mean(axis=1, keepdims=True)
    covariance = np.einsum("iwn,jwn->ijn", colours, colours) / area + EPSILON / area * np.eye(3)[..., None]
    scaled = np.einsum("ijn,jwn->iwn", _inverses(covariance), colours)

    pixels = np.flatnonzero(unknown)
    row_of = np.full(unknown.size, len(pixels))
    row_of[pixels] = np.arange(len(pixels))
    target = row_of[members]
    entries = np.zeros((span, span, len(pixels) + 1))  # the last column takes what belongs to known pixels
    # A window holds a pixel once, so that no entry is met twice in one addition.
    for one, (y, x) in enumerate(steps):
        for other in range(one, area):
            v, u = steps[other]
            weight = (one == other) - (1 + (scaled[:, one] * colours[:, other]).sum(axis=0)) / area
            entries[v - y + side - 1, u - x + side - 1, target[one]] += weight
            if one != other:
                entries[y - v + side - 1, x - u + side - 1, target[other]] += weight
    offsets = np.array([dy * width + dx for dy in range(1 - side, side) for dx in range(1 - side, side)])
    neighbours = np.clip(pixels[:, None] + offsets, 0, unknown.size - 1)
    return pixels, neighbours, np.ascontiguousarray(entries.reshape(span * span, -1)[:, :-1].T)


def _inverses(matrices: Float[np.ndarray, "3 3 N"]) -> Float[np.ndarray, "3 3 N"]:
    """Of symmetric matrices, by Cramer's rule: LAPACK takes several times as long for many small ones."""
    x, y, z = matrices
    adjugate = np.stack([np.cross(one, other, axis=0) for one, other in ((y, z), (z, x), (x, y))])
    return adjugate / (x * adjugate[0]).sum(axis=0)


def multilevel_foreground(
    rgb: Float32[np.ndarray, "H W 3"], alpha: Float32[np.ndarray, "H W"]
) -> Float32[np.ndarray, "H W 3"]:
    """Colours F [H W 3] of the foreground alone, where the photo shows alpha F + (1 - alpha) B.

    Both colours are smooth where alpha has edges; the smallest image is solved first, and each solution starts the
    next larger one. (Germer, Uelwer, Conrad, Harmeling: Fast Multi-Level Foreground Estimation, ICPR 2020, Eq. 4 and
    Algorithm 1.) Other than there, only pixels near soft alpha are solved for.

    Args:
        rgb: the photo.
        alpha: its matte.
    """
    height, width = alpha.shape
    fore = _mean_colour(rgb, alpha > 0.9)[None, None]
    back = _mean_colour(rgb, alpha < 0.1)[None, None]
    levels = max(1, int(np.ceil(np.log2(max(height, width)))))
    for level in range(levels + 1):
        size = round(width ** (level / levels)), round(height ** (level / levels))
        image, matte, fore, back = (
            cv2.resize(values, size, interpolation=cv2.INTER_NEAREST) for values in (rgb, alpha, fore, back)
        )
        fore[matte == 1] = image[matte == 1]
        back[matte == 0] = image[matte == 0]
        _sweep(image, matte, fore, back)
    return fore


def _sweep(
    image: Float32[np.ndarray, "H W 3"],
    alpha: Float32[np.ndarray, "H W"],
    fore: Float32[np.ndarray, "H W 3"],
    back: Float32[np.ndarray, "H W 3"],
) -> None:
    """Improves both colours in place: first the black squares of a chessboard of pixels, then the white ones."""
    height, width = alpha.shape
    soft = cv2.dilate(((alpha > 0) & (alpha < 1)).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    rows, columns = np.nonzero(soft)
    fore, back, image = (values.reshape(-1, 3) for values in (fore, back, image))
    halves = []
    for parity in (0, 1):
        y, x = (place[(rows + columns) % 2 == parity] for place in (rows, columns))
        here = y * width + x
        around = np.stack(
            [
                np.maximum(y - 1, 0) * width + x,
                np.minimum(y + 1, height - 1) * width + x,
                y * width + np.maximum(x - 1, 0),
                y * width + np.minimum(x + 1, width - 1),
            ]
        )
        a = alpha.ravel()[here]
        ties = SMOOTHNESS + EDGE_SMOOTHNESS * np.abs(a - alpha.ravel()[around])
        halves.append((here, around, a[:, None], ties[..., None], ties.sum(axis=0)[:, None]))
    for _ in range(SWEEPS):
        for here, around, a, ties, tied in halves:
            # Normal equations of a pixel's two colours, solved by Cramer's rule.
            a_b = 1 - a
            ff, fb, bb = a * a + tied, a * a_b, a_b * a_b + tied
            f = a * image[here] + (ties * fore[around]).sum(axis=0)
            b = a_b * image[here] + (ties * back[around]).sum(axis=0)
            determinant = ff * bb - fb * fb
            fore[here] = np.clip((bb * f - fb * b) / determinant, 0, 1)
            back[here] = np.clip((ff * b - fb * f) / determinant, 0, 1)


def _mean_colour(rgb: Float32[np.ndarray, "H W 3"], where: Bool[np.ndarray, "H W"]) -> Float32[np.ndarray, 3]:
    return rgb[where].mean(axis=0) if where.any() else np.zeros(3, np.float32)
