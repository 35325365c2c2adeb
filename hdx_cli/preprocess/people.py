"""All people of a photo, numbered from left to right, and the one an avatar is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from ..observation import Keypoints
from .keypoints import INDEX, Person, PoseRunner, body_height_px, detect_in_window, padded, to_bytes
from .mediapipe_models import face_model, pose_model

_HEAD = slice(0, INDEX["left_shoulder"])
_CORE = [
    INDEX[name]
    for name in (
        "nose left_shoulder right_shoulder left_hip right_hip left_knee right_knee left_ankle right_ankle"
    ).split()
]
MOST_PEOPLE = 12


@dataclass(frozen=True)
class PoseDetection:
    """The people of one photo.

    Attributes:
        people: from left to right; a person's number on overlays and for ``--person`` is the index plus one.
        chosen: index of the person the avatar is made of.
    """

    people: tuple[Person, ...]
    chosen: int

    @property
    def person(self) -> Person:
        return self.people[self.chosen]

    @property
    def keypoints(self) -> Keypoints:
        return self.person.keypoints

    @property
    def probability(self) -> Float32[np.ndarray, "H W"]:
        return self.person.probability


def find_people(rgb: Float32[np.ndarray, "H W 3"], mask: Float32[np.ndarray, "H W"] | None = None) -> list[Person]:
    """Everybody in the photo, from left to right; body landmarks only.

    BlazePose tells one person per image. So it is asked about the whole image, about a window under every face that
    nobody found so far explains, and about the image with those found so far painted out, until nobody new shows up;
    where that finds nobody at all, about overlapping tiles (people below about a quarter of the image are missed in
    the whole).

    Args:
        rgb: [H W 3] in [0, 1].
        mask: matte in [0, 1]; what lies outside is hidden from the models.
    """
    image = to_bytes(rgb, mask)
    faces = find_faces(image)
    people: list[Person] = []
    with pose_model() as run:
        _add_new(people, detect_in_window(run, image))
        for face in faces:
            if not any(_explains(person, face) for person in people):
                _add_new(people, _person_of_face(run, image, face, people))
        while people and len(people) < MOST_PEOPLE:
            if not _add_new(people, detect_in_window(run, _painted_out(image, people))):
                break
        if not people:
            for window in _tiles(image, 2):
                _add_new(people, detect_in_window(run, image, window))
        if len(people) > 1:
            people = _told_apart(run, image, people)
    return sorted(people, key=lambda person: person.box[0] + person.box[2])


def choose(people: list[Person]) -> int:
    """Index of the largest complete person: height in the image times the share of the body in the image, squared.

    Completeness also means that nobody stands in the way: the share of the outline that touches nobody else counts, squared
    like the first.
    """
    free = [1.0 - touching(person, [other for other in people if other is not person]) for person in people]
    return int(np.argmax([
        body_height_px_of(person) * (completeness(person) * share) ** 2 for person, share in zip(people, free, strict=True)
    ]))  # fmt: skip


def touching(person: Person, others: list[Person]) -> float:
    """Share of a person's outline that lies within 2 % of the height of somebody else, 0 to 1."""
    own = (person.probability > 0.5).astype(np.uint8)
    outline = own - cv2.erode(own, np.ones((3, 3), np.uint8), borderValue=0)
    if not others or not outline.any():
        return 0.0
    reach = max(1, round(0.02 * body_height_px_of(person)))
    theirs = np.max([other.probability for other in others], axis=0) > 0.5
    near = cv2.dilate(theirs.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    return float(near[outline > 0].mean())


def completeness(person: Person) -> float:
    """Mean confidence of head, shoulders, hips, knees and ankles: 1 is a whole visible person."""
    return float(person.keypoints.pixels[_CORE, 2].mean())


def body_height_px_of(person: Person) -> float:
    """Standing height of the person in pixels, also where part of the body lies outside the image."""
    return body_height_px(person.keypoints.pixels, person.keypoints.world)


def find_faces(image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "F 5"]:
    """Boxes x0, y0, x1, y1 in px and score of all faces, best first: whole image and enlarged half-size tiles."""
    found = []
    with face_model() as run:
        for x0, y0, x1, y1 in ((0, 0, image.shape[1], image.shape[0]), *_tiles(image, 2)):
            faces = run(image[y0:y1, x0:x1])
            found.append(faces + np.float32([x0, y0, x0, y0, 0]))
    faces = np.concatenate(found)
    faces = faces[np.argsort(-faces[:, 4], kind="stable")]
    kept: list[np.ndarray] = []
    for face in faces:
        centre, size = (face[:2] + face[2:4]) / 2, face[2] - face[0]
        if all(
            np.linalg.norm(centre - (other[:2] + other[2:4]) / 2) > 0.6 * max(size, other[2] - other[0])
            for other in kept
        ):
            kept.append(face)
    return np.array(kept, np.float32).reshape(-1, 5)


def _tiles(image: UInt8[np.ndarray, "H W 3"], parts: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows of 1/parts of the size of the image that overlap by half."""
    height, width = image.shape[:2]
    for row in range(2 * parts - 1):
        for column in range(2 * parts - 1):
            x0, y0 = column * width // (2 * parts), row * height // (2 * parts)
            yield x0, y0, x0 + width // parts, y0 + height // parts


def _explains(person: Person, face: Float32[np.ndarray, 5]) -> bool:
    """Whether the face is the person's own."""
    head = person.keypoints.pixels[_HEAD, :2].mean(axis=0)
    return bool(np.linalg.norm(head - (face[:2] + face[2:4]) / 2) < 0.7 * (face[2] - face[0]))


def _person_of_face(
    run: PoseRunner, image: UInt8[np.ndarray, "H W 3"], face: Float32[np.ndarray, 5], others: list[Person]
) -> Person | None:
    """The most complete body under a face: windows of several sizes, with and without the others painted out."""
    x0, top, x1 = (float(v) for v in face[:3])
    centre_x, size = (x0 + x1) / 2, x1 - x0
    bodies = []
    # A person is 9 to 11 BlazeFace boxes high; the small window holds the upper body where the rest is hidden.
    for half_width, depth in ((4.0, 11.5), (2.5, 11.5), (2.5, 5.0)):
        window = centre_x - half_width * size, top - size, centre_x + half_width * size, top + depth * size
        for view in (image, _painted_out(image, others, spare=face)):
            person = detect_in_window(run, view, window)
            if person is not None and _plausible(person) and _explains(person, face):
                bodies.append(person)
                if completeness(person) > 0.9:
                    return person
    return max(bodies, key=completeness, default=None)


def _told_apart(run: PoseRunner, image: UInt8[np.ndarray, "H W 3"], people: list[Person]) -> list[Person]:
    """Everybody looked at once more with the others painted out; what two claim is the larger one's."""
    heights = [body_height_px_of(person) for person in people]
    apart = []
    for person, height in zip(people, heights, strict=True):
        own = person.probability > 0.5
        others = np.zeros(own.shape, bool)
        for other, other_height in zip(people, heights, strict=True):
            if other is not person:
                others |= (other.probability > 0.5) & (~own | (other_height > height))
        x0, y0, x1, y1 = person.box
        window = padded((x0, y0, max(x1, x0 + 0.3 * height), max(y1, y0 + height)), 0.15 * height)
        again = detect_in_window(run, _covered(image, others), window)
        better = again is not None and _plausible(again) and _same_head(person, again)
        if better and completeness(again) > completeness(person) - 0.05:
            person = again
        apart.append(Person(person.keypoints, person.probability * ~others, person.box))
    return apart


def _painted_out(
    image: UInt8[np.ndarray, "H W 3"], people: list[Person], spare: Float32[np.ndarray, 5] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The image with people covered by the mean colour round them; a spared face stays."""
    covered = np.zeros(image.shape[:2], np.uint8)
    for person in people:
        covered |= (person.probability > 0.3).astype(np.uint8)
    size = max(3, round(0.01 * max(image.shape[:2])) | 1)
    covered = cv2.dilate(covered, np.ones((size, size), np.uint8))
    if spare is not None:
        x0, y0, x1, y1 = (max(0, int(v)) for v in spare[:4])
        covered[y0:y1, x0:x1] = 0
    return _covered(image, covered > 0)


def _covered(image: UInt8[np.ndarray, "H W 3"], area: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """The image with an area in the mean colour of the rest."""
    result = image.copy()
    if area.any() and not area.all():
        result[area] = image[~area].mean(axis=0)
    return result


def _add_new(people: list[Person], person: Person | None) -> bool:
    """Add a person unless there is none, it is no person to speak of, or it is one of those known."""
    if person is None or not _plausible(person):
        return False
    for known in people:
        limit = 0.1 * max(body_height_px_of(known), body_height_px_of(person))
        seen = np.minimum(known.keypoints.pixels[:, 2], person.keypoints.pixels[:, 2]) > 0.5
        distances = np.linalg.norm(known.keypoints.pixels[:, :2] - person.keypoints.pixels[:, :2], axis=1)
        if _same_head(known, person) or (seen.any() and distances[seen].mean() < limit):
            return False
        if _inside(person, known) or _inside(known, person):
            return False
    people.append(person)
    return True


def _same_head(one: Person, other: Person) -> bool:
    """Whether two findings have their heads in the same place, to within 5 % of the height."""
    limit = 0.05 * max(body_height_px_of(one), body_height_px_of(other))
    heads = [person.keypoints.pixels[_HEAD, :2].mean(axis=0) for person in (one, other)]
    return bool(np.linalg.norm(heads[0] - heads[1]) < limit)


def _inside(small: Person, large: Person) -> bool:
    """Whether a finding is a print, a hand or a shoe on somebody: less than half as high and wholly on that person."""
    if body_height_px_of(small) > 0.5 * body_height_px_of(large):
        return False
    area = small.probability > 0.5
    return bool(large.probability[area].mean() > 0.5) if area.any() else True


def _plausible(person: Person) -> bool:
    """Whether the probability map backs the landmarks: most of those inside the image lie on probable pixels."""
    height, width = person.probability.shape
    points = person.keypoints.pixels[person.keypoints.pixels[:, 2] > 0.5]
    if len(points) < 5:
        return False
    near = cv2.dilate(person.probability, np.ones((5, 5), np.uint8))
    on = near[np.clip(points[:, 1].astype(int), 0, height - 1), np.clip(points[:, 0].astype(int), 0, width - 1)]
    return bool((on > 0.5).mean() > 0.6)
