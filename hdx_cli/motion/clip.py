"""A motion clip of one avatar, and what can be done with any clip: other rates, other speeds, parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..bodies.base import BodyPose
from ..errors import UsageError
from ..geometry import matrices_to_rotvecs, rotvecs_to_matrices

MAX_FRAMES = 20_000  # of a rig of a hundred joints these are 75 MB


@dataclass(frozen=True)
class Clip:
    """T frames of a rig in the world of ``bodies.base`` with the ground at y = 0.

    Attributes:
        name: of the built-in clip, or of the file without its ending.
        pose: joint rotations [T J 3 3] and root translations [T 3] in metres of the avatar's own rig, float32.
        fps: frames per second.
        loops: the frame after the last is the first: the step between them is as small as any other, and the last
            frame does not repeat the first. A looping clip stays where it is.
    """

    name: str
    pose: BodyPose
    fps: float
    loops: bool

    def __len__(self) -> int:
        return len(self.pose.translations)


def resampled(clip: Clip, fps: float | None = None, speed: float = 1.0) -> Clip:
    """The clip at ``fps`` (its own where None), played ``speed`` times as fast.

    Joint rotations are interpolated along the shortest arc, translations linearly. First and last pose are kept; a
    looping clip is interpolated from its last frame to its first as well. For that the duration is rounded to whole
    frames, at least one.

    Raises:
        UsageError: a rate or speed that is not a positive number, or more than 20 000 frames.
    """
    fps = clip.fps if fps is None else fps
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise UsageError(f"--fps {fps}: frames per second must be above 0 and at most 1000")
    if not (math.isfinite(speed) and speed > 0):
        raise UsageError(f"--speed {speed}: must be a number above 0")
    old, steps = len(clip), len(clip) if clip.loops else len(clip) - 1
    if (fps == clip.fps and speed == 1.0) or steps == 0 or old == 1:
        return Clip(clip.name, clip.pose, float(fps), clip.loops)
    wanted = steps / clip.fps / speed * fps
    if wanted > MAX_FRAMES:
        raise UsageError(f"--fps {fps:g} --speed {speed:g}: {wanted:.3g} frames, more than {MAX_FRAMES}")
    new_steps = max(1, round(wanted))
    times = np.arange(new_steps if clip.loops else new_steps + 1) * (steps / new_steps)
    before = np.minimum(times.astype(int), old - 1)
    share = times - before
    after = (before + 1) % old if clip.loops else np.minimum(before + 1, old - 1)
    rotations, translations = clip.pose.rotations, clip.pose.translations
    start = rotations[before]
    turn = matrices_to_rotvecs(np.swapaxes(start, -1, -2) @ rotations[after])
    between = start @ rotvecs_to_matrices(turn * share[:, None, None])
    moved = translations[before] + share[:, None] * (translations[after] - translations[before])
    return Clip(clip.name, BodyPose(between.astype(np.float32), moved.astype(np.float32)), float(fps), clip.loops)


def part(clip: Clip, first: int, last: int) -> Clip:
    """Frames ``first`` up to, but not including, ``last``, counted from 0; it loops only where it is the whole clip.

    Raises:
        UsageError: there are no such frames.
    """
    if not 0 <= first < last <= len(clip):
        raise UsageError(f"--frames {first}:{last}: the clip {clip.name} has frames 0:{len(clip)}")
    pose = BodyPose(clip.pose.rotations[first:last], clip.pose.translations[first:last])
    return Clip(clip.name, pose, clip.fps, clip.loops and last - first == len(clip))


def repeated(clip: Clip, seconds: float) -> Clip:
    """A clip that fills ``seconds``: a looping one again and again, any other cut there or held in its last frame.

    Raises:
        UsageError: more than 20 000 frames.
    """
    wanted = max(1, round(seconds * clip.fps))
    if wanted > MAX_FRAMES:
        raise UsageError(f"--seconds {seconds:g}: {wanted} frames, more than {MAX_FRAMES}")
    index = np.arange(wanted) % len(clip) if clip.loops else np.minimum(np.arange(wanted), len(clip) - 1)
    pose = BodyPose(clip.pose.rotations[index], clip.pose.translations[index])
    return Clip(clip.name, pose, clip.fps, clip.loops and wanted % len(clip) == 0)
