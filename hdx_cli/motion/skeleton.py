"""Which joint of a skeleton is what: names of many programs and data sets brought to one small vocabulary of slots.

Slots: ``pelvis``, ``spine``, ``neck``, ``head`` and, with ``.L`` or ``.R`` behind, ``clavicle``, ``upper_arm``,
``lower_arm``, ``hand``, ``upper_leg``, ``lower_leg``, ``foot``, ``toes``, ``thumb``, ``index``, ``middle``, ``ring``,
``pinky``. A slot has the joints that move it, from parent to child.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

SIDES = ("L", "R")
FINGERS = ("thumb", "index", "middle", "ring", "pinky")
# Names without side, prefix and punctuation, in lower case.
_NAMES = {
    "clavicle": "clavicle collar collarbone shoulder shoulder01",
    "upper_arm": "arm upperarm uparm upperarm01 upperarm02 shldr shldrbend shldrtwist",
    "lower_arm": "forearm lowerarm lowarm loarm lowerarm01 lowerarm02 forearmbend forearmtwist elbow",
    "hand": "hand wrist",
    "upper_leg": "upleg thigh upperleg upperleg01 upperleg02 thighbend thightwist",
    "lower_leg": "leg shin calf lowleg loleg lowerleg lowerleg01 lowerleg02 knee",
    "foot": "foot ankle",
    "toes": "toe toes toebase toe0 ball toe11 toe21 toe31 toe41 toe51",
}
# Data sets that name joints, not bones: the shoulder moves the upper arm there, and the foot is where the toes begin.
_JOINT_NAMES = {"shoulder": "upper_arm", "hip": "upper_leg", "foot": "toes"}
_PREFIX = re.compile(r"^(mixamorig\d*|bip0*1|ccbase|jbip|def|armature|character)(?=.)")
_FINGER = re.compile(r"^(?:hand|f)?(thumb|index|middle|mid|ring|pinky|little|finger)0?(\d?)-?0?(\d?)$")


@dataclass(frozen=True)
class Skeleton:
    """A skeleton at rest.

    Attributes:
        parents: [J], -1 for the root; a parent always comes before its children.
        joints: rest positions [J 3], in any unit and axes.
        slots: which joints have which slot.
    """

    parents: Int[np.ndarray, "J"]
    joints: Float[np.ndarray, "J 3"]
    slots: dict[str, tuple[int, ...]]

    def first(self, slot: str) -> Float[np.ndarray, "3"] | None:
        """Where the first joint of a slot lies at rest, or None."""
        return self.joints[self.slots[slot][0]] if slot in self.slots else None

    def end(self, slot: str) -> Float[np.ndarray, "3"] | None:
        """Where the bone of a slot points at rest: knuckles, toes, the next joint of a limb, or None where unknown."""
        name, side = slot.split(".")
        following = {"upper_arm": "lower_arm", "lower_arm": "hand", "upper_leg": "lower_leg", "lower_leg": "foot"}
        if name in following:
            return self.first(f"{following[name]}.{side}")
        ends = {"hand": [f"{finger}.{side}" for finger in FINGERS[1:]], "foot": [f"toes.{side}"]}[name]
        found = [self.slots[end] if name == "foot" else self.slots[end][:1] for end in ends if end in self.slots]
        if found:
            return self.joints[[joint for joints in found for joint in joints]].mean(0)
        return self._child(self.slots[slot][-1])

    def direction(self, slot: str) -> Float[np.ndarray, "3"] | None:
        """Unit vector along the bone of a limb's slot at rest, or None where unknown."""
        start = self.first(slot)
        return None if start is None else _unit(self.end(slot), start)

    def finger_directions(self, slot: str) -> list[Float[np.ndarray, "3"] | None]:
        """Unit vectors along every joint of a finger; a last joint without a child goes on as the one before."""
        joints, found = self.slots[slot], []
        for index, joint in enumerate(joints):
            end = self.joints[joints[index + 1]] if index + 1 < len(joints) else self._child(joint)
            found.append(_unit(end, self.joints[joint]) if end is not None or not found else found[-1])
        return found

    def across(self, side: str) -> Float[np.ndarray, "3"] | None:
        """From the knuckle of the index finger to that of the little finger."""
        return _unit(self.first(f"pinky.{side}"), self.first(f"index.{side}"))

    def leg_length(self) -> float:
        """Thigh plus shin, mean of both legs; 0 where there are none."""
        lengths = []
        for side in SIDES:
            hip, knee, ankle = (self.first(f"{name}.{side}") for name in ("upper_leg", "lower_leg", "foot"))
            if hip is not None and knee is not None and ankle is not None:
                lengths.append(float(np.linalg.norm(knee - hip) + np.linalg.norm(ankle - knee)))
        return float(np.mean(lengths)) if lengths else 0.0

    def frame(self) -> Float[np.ndarray, "3 3"]:
        """The body's left, up and forward at rest as columns; the axes themselves where hips or neck are unknown."""
        left, right = self.first("upper_leg.L"), self.first("upper_leg.R")
        if left is None or right is None:
            return np.eye(3)
        ends = [self.first(slot) for slot in ("neck", "upper_arm.L", "upper_arm.R", "head")]
        tops = [ends[0]] if ends[0] is not None else [end for end in ends[1:] if end is not None]
        up = _unit(np.mean(tops, axis=0), (left + right) / 2) if tops else None
        across = _unit(left, right)
        forward = None if up is None or across is None else _unit(np.cross(across, up), np.zeros(3))
        if up is None or forward is None:
            return np.eye(3)
        return np.stack([np.cross(up, forward), up, forward], axis=1)

    def _child(self, joint: int) -> Float[np.ndarray, "3"] | None:
        children = np.nonzero(self.parents == joint)[0]
        return self.joints[children[0]] if len(children) else None


def skeleton(names: Sequence[str], parents: Int[np.ndarray, "J"], joints: Float[np.ndarray, "J 3"]) -> Skeleton:
    """A skeleton with its slots found: limbs by the names of joints, the trunk by where limbs branch off."""
    slots: dict[str, tuple[int, ...]] = {}
    keys = [_key(name) for name in names]
    alias = {name: slot for slot, known in _NAMES.items() for name in known.split()}
    plain = {rest for key in keys for _, rest in _sides(key)}
    if plain & {"elbow", "knee", "ankle"} and not plain & {"upleg", "thigh", "upperarm", "forearm"}:
        alias |= _JOINT_NAMES if "ankle" in plain else {k: v for k, v in _JOINT_NAMES.items() if k != "foot"}
    for joint, key in enumerate(keys):
        slot = _slot(key, alias)
        if slot is not None:
            slots[slot] = (*slots.get(slot, ()), joint)
    heads = [joint for joint, key in enumerate(keys) if key == "head"]
    if heads:
        slots["head"] = (heads[0],)
    above = [_ancestors(parents, joint) for joint in range(len(parents))]
    slots = {slot: chain if slot.startswith("toes") else tuple(j for j in chain if chain[0] in above[j])
             for slot, chain in slots.items()}  # fmt: skip
    pelvis = _common(above, slots, "upper_leg")
    slots["pelvis"] = (int(np.argmax(parents < 0)) if pelvis is None else pelvis,)
    chest = _common(above, slots, "upper_arm")
    head = slots["head"][0] if heads else None
    hips = above[slots["pelvis"][0]]
    # the spine can also branch off above the hips
    fork = hips[0] if chest is None else next(joint for joint in hips if joint in set(above[chest]))
    trunk = _path(above, fork, chest)
    neck = [] if head is None else _path(above, fork if chest is None else chest, head)[:-1]
    return Skeleton(
        parents, joints, slots | ({"spine": trunk} if trunk else {}) | ({"neck": tuple(neck)} if neck else {})
    )


def _key(name: str) -> str:
    if name.startswith("__"):  # MakeHuman's older rigs put these between joints; they hold still
        return ""
    plain = re.sub(r"[^a-z0-9-]", "", name.rsplit(":", 1)[-1].lower()[:100])
    return _PREFIX.sub("", plain.replace("-", "") if not re.search(r"\d-\d", plain) else plain)


def _sides(key: str) -> list[tuple[str, str]]:
    """Every way to read a side off a key: (side, rest)."""
    found = []
    for side, words in (("L", ("left", "l")), ("R", ("right", "r"))):
        for word in words:
            found += [(side, key.removeprefix(word))] if key.startswith(word) else []
            found += [(side, key.removesuffix(word))] if key.endswith(word) else []
    return found


def _slot(key: str, alias: dict[str, str]) -> str | None:
    for side, rest in _sides(key):
        if rest.replace("-", "") in alias:
            return f"{alias[rest.replace('-', '')]}.{side}"
        finger = _FINGER.match(rest)
        if finger:
            name, first, second = finger.groups()
            if name == "finger":  # finger2-1: the second finger's first joint
                if not (second and first in "12345"):
                    continue
                return f"{FINGERS[int(first) - 1]}.{side}"
            return f"{({'mid': 'middle', 'little': 'pinky'}).get(name, name)}.{side}"
    return None


def _ancestors(parents: Int[np.ndarray, "J"], joint: int) -> list[int]:
    """The joint and everything above it, root last."""
    chain = [joint]
    while parents[chain[-1]] >= 0:
        chain.append(int(parents[chain[-1]]))
    return chain


def _common(above: list[list[int]], slots: dict[str, tuple[int, ...]], slot: str) -> int | None:
    """The lowest joint above both sides of a slot."""
    if any(f"{slot}.{side}" not in slots for side in SIDES):
        return None
    left, right = (above[slots[f"{slot}.{side}"][0]][1:] for side in SIDES)
    return next((joint for joint in left if joint in set(right)), None)


def _path(above: list[list[int]], start: int, end: int | None) -> tuple[int, ...]:
    """Joints below ``start`` down to ``end``; empty where that is not below it."""
    chain = [] if end is None else above[end]
    return tuple(reversed(chain[: chain.index(start)])) if start in chain else ()


def _unit(end: Float[np.ndarray, "3"] | None, start: Float[np.ndarray, "3"] | None) -> Float[np.ndarray, "3"] | None:
    if end is None or start is None:
        return None
    length = np.linalg.norm(end - start)
    return (end - start) / length if length > 1e-9 else None
