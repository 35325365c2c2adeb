"""Whether a photo suits an avatar, said before any work is done: findings with reasons, and a picture of them.

Cartoons, statues and children are not told from adults here: none of the models in the package does that reliably.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw, ImageFont

from ..images import resize
from ..observation import Keypoints, Photo
from .keypoints import INDEX, LANDMARKS, Box, to_bytes
from .people import PoseDetection, body_height_px_of, touching

# Synthetic people of 430, 220, 110 and 70 px: landmark error 1.5, 1.7, 3.3 and 3.0 % of the height, face mesh found
# in 100, 94, 31 and 7 % of frontal views, anybody found at all in 100, 100, 100 and 88 %.
LOWEST_HEIGHT_PX = 100
# Below this the photo has less detail than the avatar can show.
GOOD_HEIGHT_PX = 512
# Median error of the turn is 5 degrees, 17 in one of ten; within 60 degrees the face mesh was found in 96 %.
SIDE_DEG, BACK_DEG = 55.0, 105.0
# Least angle of both thighs from straight down: 6 to 30 for standing and walking people, 72 for one who sits.
SITTING_DEG = 50.0
# Angle of an arm from straight down, shoulder to wrist: up to 59 for synthetic stances, 76 for a hand held up to wave.
WIDE_ARM_DEG = 75.0
# Crete measure at 512 px per height: sharp photos .29 to .38; blurred with sigma 1, 2, 3 px .5, .73, .84.
BLURRED = 0.7
# Photos and rendered people 0 to .02; the same made into eight-level cartoons .15 to .59. No real cartoons were at hand.
FLAT = 0.12
# CIE Lab chroma below which nothing has a colour; the least colourful person in black measured 2.2 before no background.
GREY_CHROMA = 2.0
# On a group photo .10 for a person who stands clear, .30 and more for those who hide one another.
TOUCHING = 0.2

_SKELETON = [
    ("left_shoulder", "right_shoulder"),
    ("left_hip", "right_hip"),
    *[
        (f"{side}_{a}", f"{side}_{b}")
        for side in ("left", "right")
        for a, b in (
            ("shoulder", "elbow"),
            ("elbow", "wrist"),
            ("wrist", "index"),
            ("wrist", "pinky"),
            ("shoulder", "hip"),
            ("hip", "knee"),
            ("knee", "ankle"),
            ("ankle", "heel"),
            ("ankle", "foot_index"),
        )
    ],
]


@dataclass(frozen=True)
class Finding:
    """One thing about a photo that a person should know.

    Attributes:
        code: stable reason code, ``E_...`` for rejections and ``W_...`` for warnings.
        severity: "reject" where no avatar worth showing can come out, else "warn".
        message: one line without the file's name.
        box: x0, y0, x1, y1 in px of what it is about, or None for the whole photo.
    """

    code: str
    severity: Literal["reject", "warn"]
    message: str
    box: Box | None = None


def check(photo: Photo, detection: PoseDetection, alpha: Float32[np.ndarray, "H W"] | None = None) -> list[Finding]:
    """Everything that speaks against an avatar from this photo, rejections first.

    Args:
        photo: the photo.
        detection: the people in it; hands and face of the chosen one are expected in its keypoints.
        alpha: a matte brought by the user, which is then checked against the person.
    """
    if not detection.people:
        return [Finding("E_NO_PERSON", "reject", "no person found")]
    person = detection.person
    masked = [] if alpha is None else _mask(person.keypoints, alpha)
    if any(finding.severity == "reject" for finding in masked):
        return [replace(finding, box=person.box) for finding in masked]  # all else would follow from it
    findings = [
        *_others(detection),
        *_size(detection),
        *_cropped(person.keypoints, photo, alpha),
        *_view(person.keypoints),
        *_stance(person.keypoints),
        *_sharpness(photo, detection),
        *_domain(photo, detection),
        *masked,
    ]
    boxed = [replace(finding, box=person.box) for finding in findings]
    return sorted(boxed, key=lambda finding: finding.severity != "reject")


def turn_deg(keypoints: Keypoints) -> float:
    """Turn of the torso from facing the camera, degrees in [-180, 180]; positive where the right side comes forward.

    From the world landmarks: the mean direction from right to left of shoulders and hips.
    """
    world = keypoints.world
    across = np.zeros(3)
    for joint in ("shoulder", "hip"):
        line = world[INDEX[f"left_{joint}"]] - world[INDEX[f"right_{joint}"]]
        across += line / max(1e-6, float(np.linalg.norm(line)))
    return float(np.degrees(np.arctan2(across[2], across[0])))


def limb_angles_deg(keypoints: Keypoints, start: str, end: str) -> Float[np.ndarray, 2]:
    """Angles of the left and right limb from straight down along the torso, degrees [2]."""
    world = keypoints.world.astype(float)
    down = sum(world[INDEX[f"{side}_hip"]] - world[INDEX[f"{side}_shoulder"]] for side in ("left", "right"))
    angles = []
    for side in ("left", "right"):
        limb = world[INDEX[f"{side}_{end}"]] - world[INDEX[f"{side}_{start}"]]
        cosine = limb @ down / max(1e-9, float(np.linalg.norm(limb) * np.linalg.norm(down)))
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return np.array(angles)


def _at_good_height(
    image: np.ndarray, area: Float32[np.ndarray, "H W"], height_px: float, margin_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image and the inside of an area, reduced to ``GOOD_HEIGHT_PX`` per body height where it is more."""
    scale = min(1.0, GOOD_HEIGHT_PX / height_px)
    shape = max(16, round(image.shape[0] * scale)), max(16, round(image.shape[1] * scale))
    window = np.ones((2 * margin_px + 1, 2 * margin_px + 1), np.uint8)
    return resize(image, *shape), cv2.erode((resize(area, *shape) > 0.9).astype(np.uint8), window) > 0


def blur(rgb: Float32[np.ndarray, "H W 3"], area: Float32[np.ndarray, "H W"], height_px: float) -> float:
    """Perceived blur of an area in [0, 1] at 512 px per body height (Crete et al. 2007).

    Blurring a sharp image once more takes much of the variation between neighbours away, blurring a blurred one little.
    """
    grey, inside = _at_good_height(rgb.mean(axis=2), area, height_px, margin_px=1)
    worst = 0.0
    for axis, kernel in ((0, (1, 9)), (1, (9, 1))):
        variation = np.abs(np.diff(grey, axis=axis))
        left = np.abs(np.diff(cv2.blur(grey, kernel), axis=axis))
        lost = np.maximum(0, variation - left)
        where = inside[1:] if axis == 0 else inside[:, 1:]
        if variation[where].sum() > 0:
            worst = max(worst, float(1 - lost[where].sum() / variation[where].sum()))
    return worst


def flatness(rgb: Float32[np.ndarray, "H W 3"], area: Float32[np.ndarray, "H W"], height_px: float) -> float:
    """Share of an area, neither black nor white, in which nothing varies from pixel to pixel, at 512 px per body height.

    Drawings are filled with even colours; photographs and skin and cloth never are.
    """
    small, inside = _at_good_height(rgb, area, height_px, margin_px=2)
    small = np.clip(small, 0, 1)
    lightness = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)[..., 0]
    inside &= (lightness > 25) & (lightness < 96)
    window = np.ones((3, 3), np.uint8)
    varies = (cv2.dilate(small, window) - cv2.erode(small, window)).max(axis=-1) > 1.5 / 255
    return float(1 - varies[inside].mean()) if inside.any() else 0.0


def draw_overlay(photo: Photo, detection: PoseDetection, findings: list[Finding]) -> Float32[np.ndarray, "H W 3"]:
    """The photo with everybody's box and number, the chosen one's skeleton, and the findings in words below [H W 3]."""
    pixels = to_bytes(photo.rgb, photo.alpha)
    unit = max(1.0, max(pixels.shape[:2]) / 500)
    font = ImageFont.load_default(size=11 * unit)
    lines = [f"{finding.code}  {finding.message}" for finding in findings] or ["nothing speaks against this photo"]
    line_px, margin_px = round(15 * unit), round(6 * unit)
    lines = _wrapped(lines, font, pixels.shape[1] - 2 * margin_px)
    canvas = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + line_px * len(lines) + 2 * margin_px), (24, 24, 24))
    canvas.paste(Image.fromarray(pixels))
    draw = ImageDraw.Draw(canvas)
    for index, person in enumerate(detection.people):
        chosen = index == detection.chosen
        colour = (80, 230, 120) if chosen else (255, 190, 60)
        draw.rectangle(person.box, outline=colour, width=round(2 * unit))
        label = f" {index + 1} "
        corner = person.box[0], max(0.0, person.box[1] - 14 * unit)
        draw.rectangle(draw.textbbox(corner, label, font=font), fill=colour)
        draw.text(corner, label, fill=(0, 0, 0), font=font)
        if chosen:
            _draw_skeleton(draw, person.keypoints, unit)
    for number, line in enumerate(lines):
        rejected = any(line.startswith(f.code) for f in findings if f.severity == "reject")
        colour = (255, 110, 100) if rejected else (235, 235, 235)
        draw.text((margin_px, pixels.shape[0] + margin_px + number * line_px), line, fill=colour, font=font)
    return np.asarray(canvas, np.float32) / np.float32(255)


def _others(detection: PoseDetection) -> list[Finding]:
    if len(detection.people) < 2:
        return []
    count, number = len(detection.people), detection.chosen + 1
    message = f"{count} people; number {number} from the left is used (--person N takes another)"
    findings = [Finding("W_SEVERAL_PEOPLE", "warn", message)]
    others = [person for person in detection.people if person is not detection.person]
    if touching(detection.person, others) > TOUCHING:
        message = f"other people touch or hide number {number}; the cut-out may lack parts or hold some of theirs"
        findings.append(Finding("W_OVERLAP", "warn", message))
    return findings


def _size(detection: PoseDetection) -> list[Finding]:
    height_px = body_height_px_of(detection.person)
    if height_px < LOWEST_HEIGHT_PX:
        message = f"the person is only {height_px:.0f} px high (at least {LOWEST_HEIGHT_PX} px are needed)"
        return [Finding("E_TOO_SMALL", "reject", message)]
    if height_px < GOOD_HEIGHT_PX:
        message = f"the person is {height_px:.0f} px high; below {GOOD_HEIGHT_PX} px detail will be missing"
        return [Finding("W_TOO_SMALL", "warn", message)]
    return []


def _cropped(keypoints: Keypoints, photo: Photo, alpha: Float32[np.ndarray, "H W"] | None) -> list[Finding]:
    """Where the image, or the matte of the user, cuts the body.

    Positions decide, for confidence also falls behind clothes and other people.
    """
    height, width = photo.rgb.shape[:2]
    x, y = keypoints.pixels[:, 0], keypoints.pixels[:, 1]
    bottom = height if alpha is None or not alpha.any() else 1.03 * (np.flatnonzero(alpha.max(axis=1) > 0.5).max() + 1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < min(height, bottom))

    def cut(*joints: str) -> bool:
        return not any(inside[INDEX[f"{side}_{joint}"]] for side in ("left", "right") for joint in joints)

    if cut("shoulder") or cut("hip", "elbow"):
        return [Finding("E_TOO_LITTLE", "reject", "too little of the body is in the photo (head or chest only)")]
    for joint, where in (("hip", "above the hips"), ("knee", "at the thighs"), ("ankle", "at the shins")):
        if cut(joint):
            return [Finding("W_CROPPED_LEGS", "warn", f"the photo cuts the body {where}; what lies below is invented")]
    if not all(inside[INDEX[f"{side}_ankle"]] for side in ("left", "right")):
        return [Finding("W_CROPPED_LEGS", "warn", "the photo cuts one leg; what is missing is invented")]
    return []


def _view(keypoints: Keypoints) -> list[Finding]:
    turn = abs(turn_deg(keypoints))
    if turn > BACK_DEG:
        return [
            Finding("W_BACK_VIEW", "warn", f"seen from behind (turned by {turn:.0f} degrees); the front is invented")
        ]
    if turn > SIDE_DEG:
        return [Finding("W_SIDE_VIEW", "warn", f"seen from the side (turned by {turn:.0f} degrees); half is invented")]
    if keypoints.face is None:
        return [Finding("W_FACE_HIDDEN", "warn", "no face found where it should be (hidden, dark or too small)")]
    return []


def _stance(keypoints: Keypoints) -> list[Finding]:
    findings = []
    if limb_angles_deg(keypoints, "hip", "knee").min() > SITTING_DEG and keypoints.pixels[_KNEES, 2].min() > 0.3:
        message = "the person sits; a standing photo with arms a little off the body gives a better avatar"
        findings.append(Finding("W_SITTING", "warn", message))
    wide = limb_angles_deg(keypoints, "shoulder", "wrist") > WIDE_ARM_DEG
    arms = [s for s, is_wide in zip(("left", "right"), wide, strict=True) if is_wide and _seen(keypoints, f"{s}_wrist")]
    if arms:
        what = "both arms are" if len(arms) == 2 else f"the {arms[0]} arm is"
        findings.append(
            Finding("W_ARMS_WIDE", "warn", f"{what} held wide or up; arms a little off the body fit better")
        )
    torso = keypoints.pixels[[INDEX[f"{p}"] for p in ("left_shoulder", "right_shoulder", "right_hip", "left_hip")], :2]
    for side in ("left", "right"):
        wrist = keypoints.pixels[INDEX[f"{side}_wrist"], :2]
        inside = cv2.pointPolygonTest(torso.astype(np.float32), tuple(float(v) for v in wrist), False) > 0
        if inside and _seen(keypoints, f"{side}_wrist") and abs(turn_deg(keypoints)) < SIDE_DEG:
            findings.append(
                Finding("W_LIMB_OVERLAP", "warn", f"the {side} arm crosses the torso; what it hides is invented")
            )
    return findings


def _sharpness(photo: Photo, detection: PoseDetection) -> list[Finding]:
    person = detection.person
    measured = blur(photo.rgb, (person.probability > 0.5).astype(np.float32), body_height_px_of(person))
    if measured > BLURRED:
        return [Finding("W_BLURRED", "warn", f"the person is out of focus or moved (blur {measured:.2f} of 1)")]
    return []


def _domain(photo: Photo, detection: PoseDetection) -> list[Finding]:
    """What gives away a drawing, or a statue in a coloured photo; neither a child nor a good mannequin is told."""
    person, height_px = detection.person, body_height_px_of(detection.person)
    area = person.probability > 0.5
    sharp = blur(photo.rgb, area.astype(np.float32), height_px) <= BLURRED
    if sharp and flatness(photo.rgb, area.astype(np.float32), height_px) > FLAT:
        message = "even colours as in a drawing; face and proportions will be those of a real person"
        return [Finding("W_OUT_OF_DOMAIN", "warn", message)]
    lab = cv2.cvtColor(np.clip(photo.rgb, 0, 1), cv2.COLOR_RGB2LAB)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    if area.any() and not area.all():
        colourless = np.percentile(chroma[area], 90) < GREY_CHROMA
        if colourless and np.percentile(chroma[~area], 90) > 3 * GREY_CHROMA:
            message = "no colour on the person in a coloured photo; a statue or a mannequin?"
            return [Finding("W_OUT_OF_DOMAIN", "warn", message)]
    return []


def _mask(keypoints: Keypoints, alpha: Float32[np.ndarray, "H W"]) -> list[Finding]:
    """How many of the landmarks inside the image lie on the matte the user brought."""
    points = keypoints.pixels[keypoints.pixels[:, 2] > 0.5, :2]
    on = alpha[points[:, 1].astype(int), points[:, 0].astype(int)] > 0.5
    share = float(on.mean()) if len(on) else 0.0
    if share < 0.5:
        return [
            Finding("E_MASK", "reject", f"the mask leaves out the person ({share:.0%} of the landmarks are inside)")
        ]
    if share < 0.85:
        return [
            Finding(
                "W_MASK", "warn", f"the mask cuts parts of the person off ({share:.0%} of the landmarks are inside)"
            )
        ]
    return []


_KNEES = [INDEX["left_knee"], INDEX["right_knee"]]


def _seen(keypoints: Keypoints, name: str) -> bool:
    return bool(keypoints.pixels[INDEX[name], 2] > 0.5)


def _draw_skeleton(draw: ImageDraw.ImageDraw, keypoints: Keypoints, unit: float) -> None:
    points = keypoints.pixels
    for a, b in _SKELETON:
        if _seen(keypoints, a) and _seen(keypoints, b):
            ends = [tuple(points[INDEX[name], :2].tolist()) for name in (a, b)]
            colour = (90, 170, 255) if a.startswith("left") and b.startswith("left") else (255, 120, 170)
            draw.line(ends, fill=colour, width=round(2 * unit))
    dots = [points[i, :2] for i, name in enumerate(LANDMARKS) if _seen(keypoints, name)]
    for group, radius in ((dots, 2.2), (keypoints.left_hand, 1.0), (keypoints.right_hand, 1.0), (keypoints.face, 0.25)):
        for point in [] if group is None else group:
            x, y, r = float(point[0]), float(point[1]), radius * unit
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))


def _wrapped(lines: list[str], font: ImageFont.FreeTypeFont, width_px: float) -> list[str]:
    """Lines broken at spaces so that each is no wider than the picture; continuations are indented."""
    result = []
    for line in lines:
        current = ""
        for word in line.split(" "):
            longer = f"{current} {word}" if current else word
            if current and font.getlength(longer) > width_px:
                result.append(current)
                longer = f"    {word}"
            current = longer
        result.append(current)
    return result
