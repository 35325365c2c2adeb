"""Model files of the SMPL family, as their makers hand them out, read as plain arrays: SMPLX_*.npz, and .pkl of both.

Nothing in a file is run. An .npz can hold pickled objects beside its arrays; those are left out. A .pkl of Python 2
can hold chumpy arrays and sparse matrices; their numbers are taken and everything else of them is left.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from ..errors import InputRejected
from ..motion import pickled
from ..motion.archive import members

MAX_NPZ, MAX_PICKLE = 700 * 2**20, 400 * 2**20  # bytes: the largest SMPL-X .npz unpacks to half of the first
MAX_DEPTH = 12
# what a model file must say, and what it may say besides
NEEDED = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
HANDS = ("hands_meanl", "hands_meanr", "hands_componentsl", "hands_componentsr")
FACE = ("lmk_faces_idx", "lmk_bary_coords")
OPTIONAL = ("vt", "ft", "dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords")
WHOLE = {"kintree_table", "f", "ft", "lmk_faces_idx", "dynamic_lmk_faces_idx"}
FORMAT = "E_BODY_FORMAT"


@dataclass(frozen=True)
class Family:
    """A model of the family: its name in ``--body``, and its numbers of vertices V and joints J."""

    name: str
    vertices: int
    joints: int


SMPL, SMPLX = Family("smpl", 6890, 24), Family("smplx", 10475, 55)
FAMILIES = {family.name: family for family in (SMPL, SMPLX)}


def read_model(path: Path) -> tuple[Family, dict[str, np.ndarray]]:
    """The family of a model file and its arrays, float32 and int32, of checked shapes and values.

    Arrays: ``v_template`` [V 3], ``shapedirs`` [V 3 B], ``posedirs`` [V 3 9(J-1)], ``J_regressor`` [J V], ``weights``
    [V J], ``kintree_table`` [2 J], ``f`` [F 3]; for SMPL-X also the hands' means [45] and components [45 45], the
    landmarks of the face, and, where the file has them, texture coordinates ``vt`` [U 2] and ``ft`` [F 3].

    Raises:
        InputRejected: there is no such file, it is damaged, too large, or not a model of the family.
    """
    if not path.is_file():
        raise InputRejected(f"{path}: no such file", code="E_MISSING")
    pickle = path.suffix.lower() in (".pkl", ".pickle")
    if not pickle and path.suffix.lower() != ".npz":
        raise _rejected(path, "not an .npz or a .pkl", "hdx body add SMPLX_NEUTRAL.npz")
    known = {*NEEDED, *HANDS, *FACE, *OPTIONAL}
    arrays = _arrays_of_pickle(path, known) if pickle else npz_arrays(path, known, MAX_NPZ)
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        shown = ", ".join(sorted(arrays)) or "nothing that is known"
        raise _rejected(path, f"no {missing[0]} in it, so not a model of the SMPL family (it has {shown})")
    return checked(path, arrays)


def npz_arrays(path: Path, wanted: set[str] | None, max_bytes: int) -> dict[str, np.ndarray]:
    """The arrays of numbers in an .npz, those of the wanted names; pickled objects are left out.

    Headers are believed only as far as there are bytes.

    Raises:
        InputRejected: it is damaged or too large.
    """
    found: dict[str, np.ndarray] = {}
    chosen = [m for m in members(path, 2**40) if wanted is None or m.filename.removesuffix(".npy") in wanted]
    if sum(member.file_size for member in chosen) > max_bytes:
        raise InputRejected(f"{path}: unpacks to more than {max_bytes >> 20} MB", code="E_BODY_SIZE")
    try:
        with zipfile.ZipFile(path) as archive:
            for member in chosen:
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    old = version == (1, 0)
                    header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                    shape, _, dtype = header(stream)
                if dtype.hasobject or dtype.kind not in "fiub":
                    continue
                count = int(np.prod([int(n) for n in shape], dtype=object))
                if min(shape, default=0) < 0 or count * dtype.itemsize > member.file_size:
                    raise ValueError(f"{name} is cut short")
                with archive.open(member) as stream:
                    found[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # zlib, lzma, tokenize, ast and numpy each have errors of their own for damaged files
        raise _rejected(path, f"not an .npz, or damaged ({_short(error)})") from None
    return found


def _arrays_of_pickle(path: Path, known: set[str]) -> dict[str, np.ndarray]:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise _rejected(path, "a pickle, but no model: it holds no arrays by name")
    return {name: value for name, value in content.items() if name in known and isinstance(value, np.ndarray)}


def read_pickle(path: Path, max_bytes: int = MAX_PICKLE) -> Any:
    """Containers, numbers and arrays of a .pkl, chumpy arrays and sparse matrices as arrays; all else is None.

    Raises:
        InputRejected: it is damaged, too large, or not a pickle.
    """
    if path.stat().st_size > max_bytes:
        raise InputRejected(
            f"{path}: larger than {max_bytes >> 20} MB", hint="take the .npz of the same model", code="E_BODY_SIZE"
        )
    try:
        return _plain(pickled._run(io.BytesIO(path.read_bytes())), [0])
    except Exception as error:  # damaged instructions fail in many ways
        raise InputRejected(f"{path}: not a pickle of numbers ({_short(error)})", code="E_PICKLE") from None


def _plain(value: Any, seen: list[int], depth: int = 0) -> Any:
    """As ``motion.pickled`` has it, with what the makers' old .pkl need besides; ``seen`` counts shared parts."""
    seen[0] += 1
    if depth > MAX_DEPTH or seen[0] > pickled.MAX_NODES:
        raise ValueError("nested too deeply, or too many parts")
    if isinstance(value, dict):
        return {name: _plain(item, seen, depth + 1) for name, item in value.items() if isinstance(name, str | int)}
    if isinstance(value, list | tuple):
        return [_plain(item, seen, depth + 1) for item in value]
    if not isinstance(value, pickled._Thing):
        return value
    if isinstance(value.items.get("array"), np.ndarray):  # joblib's
        return value.items["array"]
    name = _made_by(value)
    if name.startswith("numpy") and name.endswith("._reconstruct") and isinstance(value.state, tuple):
        _, shape, dtype, fortran, content = value.state
        if isinstance(content, str):  # Python 2 kept bytes so
            content = content.encode("latin1")
        return pickled._array(dtype, shape, content, bool(fortran))
    if name.startswith("chumpy.") and isinstance(value.state, dict):
        return _chumpy(value.state, seen, depth)
    if name.startswith("scipy.sparse.") and name.rsplit(".", 1)[-1] in ("csc_matrix", "csr_matrix"):
        return _dense(name.endswith("csc_matrix"), value.state, seen, depth)
    return _plain(value.items, seen, depth + 1) if value.items else None


def _made_by(thing: Any) -> str:
    """What makes an object: Python 2 names it behind ``copy_reg._reconstructor``."""
    inner = thing.arguments[0] if thing.arguments else None
    return inner.name if thing.name.endswith("._reconstructor") and isinstance(inner, pickled._Thing) else thing.name


def _chumpy(state: dict, seen: list[int], depth: int) -> np.ndarray | None:
    """The numbers of a chumpy array, or of a selection out of one; what chumpy would have to compute is None."""
    if "x" in state:
        x = _plain(state["x"], seen, depth + 1)
        return x if isinstance(x, np.ndarray) else None
    if not {"a", "idxs"} <= set(state):
        return None
    source, index = (_plain(state[name], seen, depth + 1) for name in ("a", "idxs"))
    if not isinstance(source, np.ndarray) or not isinstance(index, np.ndarray) or index.dtype.kind not in "iu":
        return None
    shape = _plain(state.get("preferred_shape"), seen, depth + 1)
    chosen = source.reshape(-1)[index.reshape(-1)]
    return chosen.reshape([int(n) for n in shape]) if isinstance(shape, list) else chosen


def _dense(by_column: bool, state: Any, seen: list[int], depth: int) -> np.ndarray | None:
    """A compressed sparse matrix written out; indices are checked by numpy, as scipy would not."""
    if not isinstance(state, dict):
        return None
    data, inner, starts = (_plain(state.get(name), seen, depth + 1) for name in ("data", "indices", "indptr"))
    rows, columns = (int(n) for n in _plain(state.get("_shape", state.get("shape")), seen, depth + 1))
    if not (0 < rows <= SMPLX.vertices and 0 < columns <= SMPLX.vertices and min(rows, columns) <= 1000):
        return None
    outer = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    if len(starts) != (columns if by_column else rows) + 1 or len(outer) != len(inner) or inner.min(initial=0) < 0:
        raise ValueError("a sparse matrix that is none")
    dense = np.zeros((rows, columns))
    np.add.at(dense, (inner, outer) if by_column else (outer, inner), data)
    return dense


def checked(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Family, dict[str, np.ndarray]]:
    """The family that arrays make up, and the arrays as float32 and int32.

    Raises:
        InputRejected: shapes or values that no model of the family has.
    """
    size = arrays["v_template"].shape[:1], arrays["weights"].shape[-1:]
    family = next((f for f in FAMILIES.values() if size == ((f.vertices,), (f.joints,))), None)
    if family is None:
        known = ", ".join(f"{f.name} {f.vertices} and {f.joints}" for f in FAMILIES.values())
        raise _rejected(path, f"{size[0]} vertices and {size[1]} joints; of what hdx knows {known}")
    vertices, joints = family.vertices, family.joints
    shapes: dict[str, tuple[int | None, ...]] = {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, None),
        "posedirs": (vertices, 3, 9 * (joints - 1)),
        "J_regressor": (joints, vertices),
        "weights": (vertices, joints),
        "kintree_table": (2, joints),
        "f": (None, 3),
    }
    if family is SMPLX:
        shapes |= dict.fromkeys(HANDS[:2], (45,)) | dict.fromkeys(HANDS[2:], (45, 45))
        shapes |= {"lmk_faces_idx": (None,), "lmk_bary_coords": (None, 3)}
    shapes |= {name: (None,) * arrays[name].ndim for name in OPTIONAL if name in arrays}
    found = {}
    for name, shape in shapes.items():
        if name not in arrays:
            raise _rejected(path, f"no {name} in it, which a model of {family.name} has")
        found[name] = _checked(path, name, arrays[name], shape)
    _check_values(path, found)
    return family, found


def _checked(path: Path, name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    agrees = array.ndim == len(shape) and all(
        n == m or (m is None and n) for n, m in zip(array.shape, shape, strict=True)
    )
    if not agrees:
        raise _rejected(path, f"{name} of shape {array.shape}")
    with np.errstate(all="ignore"):
        if not np.isfinite(array).all() or np.abs(array).max() > 1e6 and name != "kintree_table":
            raise _rejected(path, f"{name} with numbers that are not finite, or beyond reason")
    if name == "kintree_table":  # the root's parent is 2^32 - 1, whatever type that has become
        array = np.where(array > 1e6, -1, array)
    return np.ascontiguousarray(array, np.int32 if name in WHOLE else np.float32)


def _check_values(path: Path, arrays: dict[str, np.ndarray]) -> None:
    vertices, joints = arrays["weights"].shape
    tall = np.ptp(arrays["v_template"], axis=0).max()
    if not 0.3 < tall < 4.0:
        raise _rejected(path, f"a body {tall:.3g} m large")
    if not 1 <= arrays["shapedirs"].shape[2] <= 1000:
        raise _rejected(path, f"{arrays['shapedirs'].shape[2]} directions of shape")
    weights = arrays["weights"]
    if weights.min() < -1e-3 or np.abs(weights.sum(1) - 1).max() > 1e-2:
        raise _rejected(path, "weights that are negative or do not sum to one")
    if np.abs(arrays["J_regressor"].sum(1) - 1).max() > 5e-2:
        raise _rejected(path, "a J_regressor whose rows do not sum to one")
    for name in ("f", "ft"):
        limit = vertices if name == "f" else len(arrays.get("vt", ()))
        if name in arrays and (arrays[name].min() < 0 or arrays[name].max() >= limit):
            raise _rejected(path, f"{name} with indices beyond its {limit} points")
    if "lmk_faces_idx" in arrays:
        landmarks = arrays["lmk_faces_idx"]
        if (
            landmarks.min() < 0
            or landmarks.max() >= len(arrays["f"])
            or len(arrays["lmk_bary_coords"]) != len(landmarks)
        ):
            raise _rejected(path, "lmk_faces_idx beyond the faces")
    parents = parents_of(arrays["kintree_table"])
    if parents[0] != -1 or (parents[1:] < 0).any() or (parents[1:] >= np.arange(1, joints)).any():
        raise _rejected(path, "a kintree_table in which a joint comes before its parent")


def parents_of(kintree_table: Int32[np.ndarray, "2 J"]) -> np.ndarray:
    """Parents [J], int64, -1 for the root."""
    parents = kintree_table[0].astype(np.int64)
    parents[0] = -1
    return parents


def usable_shapes(shapedirs: Float32[np.ndarray, "V 3 B"], family: Family) -> int:
    """How many of B directions are of shape; SMPL-X files hold those of expression behind them.

    The smplx package has it so: 300 and then 100, or 10 and then 10 in the first edition's files.
    """
    count = shapedirs.shape[2]
    return min(count, 300 if count >= 300 else 10)


def _rejected(path: Path, reason: str, hint: str | None = None) -> InputRejected:
    return InputRejected(f"{path}: {reason}", hint=hint, code=FORMAT)


def _short(error: BaseException) -> str:
    return str(error).split("\n")[0][:150] or type(error).__name__
