"""From a decoded photo to an observation: the person found, chosen, checked, matted and measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from ..errors import InputRejected, UsageError
from ..observation import Observation, Photo
from ..progress import Progress, Silent
from .check import Finding, check
from .people import PoseDetection

MATTINGS = ("default", "birefnet")


def observe(
    photo: Photo,
    *,
    person: int | None = None,
    mask: Float32[np.ndarray, "H W"] | None = None,
    matting: str = "default",
    name: str | None = None,
    progress: Progress | None = None,
) -> tuple[Observation, list[Finding], PoseDetection]:
    """Everything the body fit and the avatar need to know of a photo.

    Args:
        photo: the photo; its size is the size of every array returned.
        person: number of the person, counted from the left from 1; None takes the largest complete one.
        mask: a matte [H W] of the user's, in place of the photo's alpha and of matting.
        matting: "default", or "birefnet" where that is installed.
        name: of the file, for messages.
        progress: told what is being done.

    Returns:
        The observation, warnings for the user, and everybody who was found.

    Raises:
        InputRejected: where no avatar worth showing can come out; the code and reason of the first such finding.
        UsageError: a person or a matting that does not exist.
        WeightsError: matting "birefnet" without its model.
    """
    from .mask import foreground_colours, matte

    if matting not in MATTINGS:
        raise UsageError(f"unknown matting {matting!r}; there are {', '.join(MATTINGS)}")
    progress = progress or Silent()
    if mask is not None:
        photo = replace(photo, alpha=mask)
    progress.start("look for people")
    detection, findings = examine(photo, person=person)
    for finding in findings:
        if finding.severity == "reject":
            raise InputRejected(f"{name}: {finding.message}" if name else finding.message, code=finding.code)
    progress.start("cut out the person")
    others = _others(detection)
    if photo.alpha is not None:
        alpha = photo.alpha * ~others
        foreground = foreground_colours(photo.rgb, alpha)
    elif matting == "birefnet":
        from .birefnet import birefnet_alpha

        alpha = birefnet_alpha(photo.rgb) * ~others
        foreground = foreground_colours(photo.rgb, alpha)
    else:
        alpha, foreground = matte(photo, detection.probability, detection.keypoints, others)
    return Observation(photo, alpha, foreground, detection.keypoints), findings, detection


def examine(photo: Photo, *, person: int | None = None) -> tuple[PoseDetection, list[Finding]]:
    """The people of a photo and all that speaks against it, without matting: what ``hdx check`` shows.

    Nobody found is a finding like any other; the detection is then empty.

    Raises:
        UsageError: a person that does not exist.
    """
    from .keypoints import with_hands_and_face
    from .people import choose, find_people

    people = find_people(photo.rgb, photo.alpha)
    alpha = photo.alpha
    if not people and alpha is not None:  # a matte that hides the person is another mistake than a photo without one
        people = find_people(photo.rgb)
    if not people:
        return PoseDetection((), 0), check(photo, PoseDetection((), 0))
    if person is not None and not 1 <= person <= len(people):
        raise UsageError(f"--person {person}: the photo shows {len(people)}, counted from the left")
    chosen = choose(people) if person is None else person - 1
    keypoints = with_hands_and_face(people[chosen].keypoints, photo.rgb, alpha)
    people[chosen] = replace(people[chosen], keypoints=keypoints)
    detection = PoseDetection(tuple(people), chosen)
    return detection, check(photo, detection, alpha)


def _others(detection: PoseDetection) -> np.ndarray:
    """Pixels [H W] that belong to other people than the chosen one."""
    own = detection.probability > 0.5
    others = np.zeros(own.shape, bool)
    for index, person in enumerate(detection.people):
        if index != detection.chosen:
            others |= (person.probability > 0.5) & ~own
    return others
