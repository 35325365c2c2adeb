"""Colours for what the photo does not show, without any learning.

Clothes look much the same from behind: an unseen point takes the colour of the pixel it lies behind, or of the nearest pixel
of the same limb where another limb is in the way. Heads do not: the back of a head takes colours from the hair that shows
round the face, never from the face.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from ..bodies.base import PARTS
from .surface import nearest_pixels

# limbs that usually wear the same garment lend one another colours where they lie right behind one another
LENDERS = {
    "head": ("head",),
    "neck": ("neck", "head"),
    "torso": ("torso", "upper_leg"),
    "upper_arm": ("upper_arm", "lower_arm"),
    "lower_arm": ("lower_arm", "upper_arm", "hand"),
    "hand": ("hand", "lower_arm"),
    "upper_leg": ("upper_leg", "torso", "lower_leg"),
    "lower_leg": ("lower_leg", "upper_leg", "foot"),
    "foot": ("foot", "lower_leg"),
}
# whom a limb that the photo does not show at all asks, in this order
RELATIVES = {
    "head": ("neck",),
    "neck": ("head",),
    "torso": ("upper_arm", "upper_leg"),
    "upper_arm": ("torso", "lower_arm"),
    "lower_arm": ("upper_arm", "torso"),
    "hand": ("head", "neck", "lower_arm"),
    "upper_leg": ("torso",),
    "lower_leg": ("upper_leg", "torso"),
    "foot": ("lower_leg", "upper_leg"),
}
PREFILTER_PX = 1.2  # the far side has a quarter of the photo's points
EDGE_PX = 2  # colours this close to the matte's edge still carry the background's
CORE_PX = (6, 4, 2)  # a body that fits to a hand's breadth takes some pixels of an arm for the trunk behind it
MIRRORED = (0.25, 0.5, 1.0)  # how far into a garment its mirror image lies, in distances to its edge; the last counts
HAIR_NEIGHBOURS = 16
RING = 0.18  # how far the flanks reach inwards, in trunk widths
BESIDE_M, OFF_M = 0.06, 0.02
HANGING_LAB = 12.0  # a colour further than this from all the lower trunk's is not the garment's
LOWER_TRUNK = 0.45  # begins that far down the trunk: longer hair is rare
GARMENT_SHARE = 0.7  # what takes more of a row than this is a yoke or a coloured block, not hair
SKIN_LAB = 20.0  # what of a face is further than this from its median is eyes, lips and hair
SAME_LAB = 9.0  # colours closer than this in CIE Lab are of the same cloth
DISTINCT_LAB = 14.0  # hair and skin closer than this in CIE Lab cannot be told apart by colour


def cielab(rgb: Float[np.ndarray, "*S 3"]) -> Float[np.ndarray, "*S 3"]:
    """CIE Lab (D65; L from 0 to 100) of sRGB-encoded colours in [0, 1]."""
    flat = np.clip(rgb, 0, 1).astype(np.float32).reshape(1, -1, 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(rgb.shape)


def see_through(
    image: Float[np.ndarray, "H W 3"],
    limb: Int[np.ndarray, "H W"],
    source: np.ndarray,
    pixels: Float[np.ndarray, "P 2"],
    parts: Int[np.ndarray, "P"],
) -> Float[np.ndarray, "P 3"]:
    """Colours [P 3] of the pixels that points lie behind, or of the nearest pixel of the same limb.

    Args:
        image: sRGB colours [H W 3].
        limb: body part each pixel shows [H W], -1 off the body.
        source: pixels that may lend colours [H W] bool.
        pixels: where the points project to [P 2] px; may lie outside the image.
        parts: body part of the points [P].
    """
    colours = np.full((len(pixels), 3), 0.5)
    height, width = limb.shape
    column = np.clip(pixels[:, 0].astype(int), 0, width - 1)
    row = np.clip(pixels[:, 1].astype(int), 0, height - 1)
    for part, name in enumerate(PARTS):
        mine = parts == part
        if not mine.any():
            continue
        for lenders in (LENDERS[name], *((relative,) for relative in RELATIVES[name]), PARTS):
            lent = _core(np.isin(limb, [PARTS.index(lender) for lender in lenders]) & source)
            if lent.sum() > 30 or (lenders == PARTS and lent.any()):
                y, x = mirrored_into(lent, row[mine], column[mine], down=name == "torso")
                colours[mine] = smoothed(image, lent)[y, x]
                break
    return colours


def mirrored_into(
    lent: np.ndarray, row: Int[np.ndarray, "P"], column: Int[np.ndarray, "P"], down: bool = False
) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
    """The pixels that lend to these: themselves in ``lent`` [H W], and else their mirror image in its edge.

    So stripes and checks go on where one colour of the edge would be drawn out. A mirror image lies at the edge's
    height, where the garment is the same; one that lies outside too is brought nearer to the edge, and at last onto it.
    ``down``: what lies above the edge is mirrored down as well, as a collar's edge wants it.
    """
    edge = np.stack([nearest[row, column] for nearest in nearest_pixels(lent)], axis=1)
    found, beyond = edge.copy(), edge - np.stack([row, column], axis=1)
    beyond[:, 0] = np.maximum(beyond[:, 0], 0) * down
    for share in MIRRORED:
        there = edge + np.rint(share * beyond).astype(np.int64)
        inside = (there >= 0).all(1) & (there < lent.shape).all(1)
        inside[inside] = lent[there[inside, 0], there[inside, 1]]
        found[inside] = there[inside]
    return found[:, 0], found[:, 1]


def _core(region: np.ndarray) -> np.ndarray:
    """The pixels of a limb that are surely its own: without a margin, as wide as leaves half of them."""
    for margin in CORE_PX:
        core = cv2.erode(region.astype(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)) > 0
        if core.sum() > max(30, 0.5 * region.sum()):
            return core
    return region


def smoothed(image: Float[np.ndarray, "H W 3"], mask: np.ndarray) -> Float[np.ndarray, "H W 3"]:
    """``image`` without the detail that the sparser far side cannot carry; pixels outside ``mask`` lend nothing."""
    weight = mask.astype(np.float64)
    blurred = cv2.GaussianBlur(image * weight[..., None], (0, 0), PREFILTER_PX)
    weight = cv2.GaussianBlur(weight, (0, 0), PREFILTER_PX)
    return np.where(mask[..., None], blurred / np.maximum(weight, 1e-6)[..., None], image)


def round_the_neck(
    image: Float[np.ndarray, "H W 3"],
    limb: Int[np.ndarray, "H W"],
    alpha: Float[np.ndarray, "H W"],
    pixels: Float[np.ndarray, "Q 2"],
) -> Float[np.ndarray, "Q 3"]:
    """Colours [Q 3] for the nape: what shows at the two sides of the neck at that height, hair if it is long and else skin.

    Args:
        image, limb, alpha: as for ``see_through``.
        pixels: where the unseen points project to [Q 2] px.
    """
    height, width = limb.shape
    neck = np.isin(limb, [PARTS.index("neck"), PARTS.index("head")]) & (alpha > 0.9)
    # away from hems and shoulders: rows in which neck, and nothing else, reaches the matte's edge
    rows = np.nonzero((limb == PARTS.index("neck")).any(1) & neck.any(1))[0]
    colours = np.full((len(pixels), 3), np.nan)
    if len(rows) == 0:
        return colours
    sides = np.zeros((height, 2, 3))
    for row in rows:
        columns = np.nonzero(neck[row])[0]
        inset = min(EDGE_PX + 1, len(columns) // 3)
        for side, column in enumerate((columns[inset], columns[-1 - inset])):
            sides[row, side] = image[row, max(0, column - 1) : column + 2].mean(0)
    row = rows[np.abs(rows[None] - pixels[:, 1:2]).argmin(1)]
    middle = 0.5 * (neck[row].argmax(1) + width - 1 - neck[row][:, ::-1].argmax(1))
    share = np.clip(0.5 + (pixels[:, 0] - middle) / np.maximum(neck[row].sum(1), 1), 0, 1)[:, None]
    return sides[row, 0] * (1 - share) + sides[row, 1] * share


def nearest_seen(
    points: Float[np.ndarray, "Q 3"],
    parts: Int[np.ndarray, "Q"],
    seen: Float[np.ndarray, "P 3"],
    seen_parts: Int[np.ndarray, "P"],
    colours: Float[np.ndarray, "P 3"],
) -> Float[np.ndarray, "Q 3"]:
    """Colours [Q 3] of the three nearest seen points of the same limb, averaged; all in one space, metres.

    A limb of which nothing is seen takes any limb's.
    """
    painted = np.zeros((len(points), 3))
    for part in np.unique(parts):
        mine, lenders = parts == part, seen_parts == part
        if lenders.sum() < 3:
            lenders = np.ones(len(seen), bool)
        _, index = cKDTree(seen[lenders]).query(points[mine], k=min(3, int(lenders.sum())))
        painted[mine] = colours[lenders][index.reshape(int(mine.sum()), -1)].mean(axis=1)
    return painted


def shows_at_the_outline(
    image: Float[np.ndarray, "H W 3"],
    alpha: Float[np.ndarray, "H W"],
    limb: Int[np.ndarray, "H W"],
    covered: Bool[np.ndarray, "H W"],
) -> Bool[np.ndarray, "H W"]:
    """Pixels of the torso whose colour also shows on the flanks at about that height; true elsewhere.

    What is on a person's chest but not on the flanks (a tie, a print, the skin in a neckline) is not on the back.
    ``covered``: as ``hangs_from_the_head`` has it; neither such a pixel nor what only it shows is on the back.
    """
    trunk = (limb == PARTS.index("torso")) & (alpha > 0.9)
    shows = np.ones(limb.shape, bool)
    rows = np.nonzero(trunk.any(1))[0]
    if len(rows) == 0:
        return ~covered
    first_column = np.where(trunk.any(1), trunk.argmax(1), 0)
    last_column = np.where(trunk.any(1), trunk.shape[1] - 1 - trunk[:, ::-1].argmax(1), -1)
    column = np.arange(trunk.shape[1])
    from_side = np.minimum(column - first_column[:, None], last_column[:, None] - column)
    width = last_column - first_column + 1
    ring = trunk & ~covered & (from_side >= EDGE_PX) & (from_side < np.maximum(6.0, RING * width)[:, None])
    lab = cielab(image)
    reach = max(4, round(0.12 * np.percentile(width[rows], 75)))
    for first in range(rows.min(), rows.max() + 1, reach):
        band = slice(first, first + reach)
        wide = slice(max(0, first - reach), first + 2 * reach)
        lenders = lab[wide][ring[wide]]
        if len(lenders) < 30:
            continue
        tree = cKDTree(lenders[:: max(1, len(lenders) // 2000)])
        # a colour belongs to the ring where several of its pixels have it, one stray pixel is not enough
        distance, _ = tree.query(lab[band][trunk[band]], k=8)
        same = distance[:, -1] < SAME_LAB
        # what most of the trunk wears is its garment, whatever hangs beside it
        if same.size and same.mean() > 0.5:
            shows[band][trunk[band]] = same
    odd = cv2.dilate((~shows).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    return ~(odd & trunk | covered)


def hangs_from_the_head(
    image: Float[np.ndarray, "H W 3"],
    alpha: Float[np.ndarray, "H W"],
    limb: Int[np.ndarray, "H W"],
    face: Bool[np.ndarray, "H W"],
) -> Bool[np.ndarray, "H W"]:
    """Pixels of trunk and upper arms that hair or a scarf covers, and those of the trunk in a neckline.

    They join on to the head: hair in a colour that the lower trunk has nowhere, skin in a colour of the face. None of
    that is on the back at that place.

    Args:
        face: pixels that show the face.
    """
    torso, upper_arm, neck, head = ((limb == PARTS.index(name)) & (alpha > 0.9)
                                    for name in ("torso", "upper_arm", "neck", "head"))  # fmt: skip
    lab = cielab(image)
    near_head = cv2.dilate(head.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0

    def joined(odd: np.ndarray, where: np.ndarray) -> np.ndarray:
        """What of ``odd`` in ``where`` joins on to the head."""
        odd = cv2.morphologyEx(odd.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        labels = cv2.connectedComponents(odd, connectivity=8)[1]
        return np.isin(labels, np.setdiff1d(labels[near_head], 0)) & where

    def narrow(found: np.ndarray, where: np.ndarray) -> np.ndarray:
        return found & (found.sum(1) <= GARMENT_SHARE * where.sum(1))[:, None]

    lower, rows = torso.copy(), np.nonzero(torso.any(1))[0]
    if len(rows):
        lower[: round(rows[0] + LOWER_TRUNK * (rows[-1] - rows[0]))] = False
    if lower.sum() < 100:
        return np.zeros(limb.shape, bool)
    dressed = torso | upper_arm
    region = dressed | neck
    hangs = narrow(joined(region & ~_coloured_like(lab, region, lower, HANGING_LAB), dressed), dressed)
    skin = face.copy()
    if face.any():
        skin[face] = np.linalg.norm(lab[face] - np.median(lab[face], axis=0), axis=1) < SKIN_LAB
    skin = joined(_coloured_like(lab, torso | neck, skin), torso)
    if not (skin & lower).any():  # else the garment has the colour of skin
        if (cv2.dilate(skin.astype(np.uint8), np.ones((7, 7), np.uint8))[upper_arm] > 0).any():
            return np.zeros(limb.shape, bool)  # bare shoulders: so is the back
        hangs |= narrow(skin, torso)
    return cv2.dilate(hangs.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def _coloured_like(
    lab: Float[np.ndarray, "H W 3"],
    where: Bool[np.ndarray, "H W"],
    some: Bool[np.ndarray, "H W"],
    limit: float = SAME_LAB,
) -> Bool[np.ndarray, "H W"]:
    """Pixels of ``where`` whose colour several of ``some`` have to within ``limit``; one stray pixel is not enough."""
    like, lenders = np.zeros(where.shape, bool), lab[some]
    if len(lenders) >= 100 and where.any():
        tree = cKDTree(lenders[:: max(1, len(lenders) // 4000)])
        like[where] = tree.query(lab[where], k=[8], distance_upper_bound=limit)[0][:, 0] < limit
    return like


def beside_an_arm(
    image: Float[np.ndarray, "H W 3"],
    alpha: Float[np.ndarray, "H W"],
    limb: Int[np.ndarray, "H W"],
    sunk: Bool[np.ndarray, "H W"],
    px_per_m: float,
) -> Bool[np.ndarray, "H W"]:
    """Pixels of the trunk that may show an arm, for a pose is often some centimetres off.

    They are beside an arm and have its colour, and one that the trunk has nowhere around; or they are close to where an
    arm was ``sunk`` (``surface.arms_in_front``).
    """
    solid = alpha > 0.9
    lab = cielab(image)
    trunk = np.isin(limb, [PARTS.index(name) for name in ("torso", "upper_leg")]) & solid
    doubtful = cv2.distanceTransform((~sunk).astype(np.uint8), cv2.DIST_L2, 5) < OFF_M * px_per_m
    for names in (("upper_arm",), ("lower_arm", "hand")):
        arms = np.isin(limb, [PARTS.index(name) for name in names]) & solid
        away_m = cv2.distanceTransform((~arms).astype(np.uint8), cv2.DIST_L2, 5) / px_per_m
        beside, around = trunk & (away_m <= BESIDE_M), trunk & (away_m > BESIDE_M) & (away_m < 2 * BESIDE_M)
        if around.any():
            stray = _coloured_like(lab, beside, arms) & ~_coloured_like(lab, beside, around)
            doubtful |= cv2.dilate(stray.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return doubtful & trunk


def is_face(
    canonical: Float[np.ndarray, "P 3"], normals: Float[np.ndarray, "P 3"], head_low_m: float, head_high_m: float
) -> np.ndarray:
    """Points of the rest head that show the face [P] bool: turned to the front and below the hairline.

    Args:
        canonical, normals: points and normals of the rest body [P 3], metres.
        head_low_m, head_high_m: heights of chin and crown of the rest head.
    """
    level = (canonical[:, 1] - head_low_m) / (head_high_m - head_low_m)
    return (normals[:, 2] > 0.15) & (level < 0.78)


def hair(
    points: Float[np.ndarray, "Q 3"],
    lenders: Float[np.ndarray, "P 3"],
    colours: Float[np.ndarray, "P 3"],
    face: np.ndarray,
    centre_m: Float[np.ndarray, "3"],
    crown_m: float,
) -> Float[np.ndarray, "Q 3"]:
    """Colours [Q 3] for unseen points of the head.

    Lenders are the seen points of the head that are not face: the upper ones, and of the lower ones those whose colour is
    unlike the face's and more like the crown's (long hair, and not ears or jaw). What is nearest to the far side is the rim
    that the photo shows of it, so the rim's colours meet behind.

    Args:
        points: unseen points in the rest pose [Q 3]; lenders, colours: seen points of the head [P 3].
        face: which of the lenders are face [P] bool.
        centre_m: centre of the rest head; crown_m: height above which everything is crown.
    """
    usable = ~face
    crown = lenders[:, 1] > crown_m
    if crown.sum() > 20 and face.sum() > 20:
        lab = cielab(colours)
        crown_lab, face_lab = np.median(lab[crown], axis=0), np.median(lab[face], axis=0)
        # what lies high is hair or hat whatever its colour: a straw hat looks much like skin
        usable &= lenders[:, 1] > 0.6 * crown_m + 0.4 * centre_m[1]
        if np.linalg.norm(crown_lab - face_lab) > DISTINCT_LAB:
            distinct = max(DISTINCT_LAB, 0.5 * np.linalg.norm(crown_lab - face_lab))
            from_face, from_crown = (np.linalg.norm(lab - colour, axis=1) for colour in (face_lab, crown_lab))
            usable |= ~face & (from_face > distinct) & (from_crown < from_face)
    if usable.sum() < 20:
        usable = crown if crown.sum() >= 20 else np.ones(len(lenders), bool)
    neighbours = min(HAIR_NEIGHBOURS, int(usable.sum()))
    distance, index = cKDTree(lenders[usable]).query(points, k=neighbours)
    distance, index = distance.reshape(len(points), neighbours), index.reshape(len(points), neighbours)
    weight = 1.0 / (distance + 0.005)
    return np.einsum("qk,qka->qa", weight / weight.sum(1, keepdims=True), colours[usable][index])
