"""Numbers out of pickles without running anything in them.

``pickletools`` of the standard library only names the instructions; this carries out the few that build dictionaries,
lists and numbers, and knows what numpy and joblib say about where an array's bytes lie. Everything else that a pickle
asks for stays an inert mark. PyTorch's archives are read by ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputRejected
from .archive import members

MAX_INSTRUCTIONS, MAX_BYTES, MAX_NODES = 500_000, 256 * 2**20, 1_000_000
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}


@dataclass
class _Thing:
    """An object that a pickle wants made: the name of what makes it, the arguments, and the state it is given."""

    name: str
    arguments: tuple = ()
    state: Any = None
    items: dict = field(default_factory=dict)


def read_arrays(path: Path) -> Any:
    """Dictionaries, lists, numbers and arrays of a .pkl, .pt or .pth; objects of other kinds become None.

    Raises:
        InputRejected: it is damaged, too large, or not a pickle.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"
    torch_file = is_zip or path.suffix.lower() in (".pt", ".pth")
    built = _torch(path, is_zip) if torch_file else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in old pickles' text
            return _plain(built if torch_file else _run(io.BytesIO(path.read_bytes())), [0, 0])
    except Exception as error:  # damaged instructions fail in many ways
        reason = _line(error)
        raise InputRejected(f"{path}: not a pickle of numbers ({reason})", code="E_PICKLE") from None


def _torch(path: Path, is_zip: bool) -> Any:
    import torch

    if is_zip:
        members(path, MAX_BYTES)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        reason = _line(error)
        raise InputRejected(f"{path}: PyTorch does not read it as plain tensors ({reason})", code="E_PICKLE") from None


def _line(error: BaseException) -> str:
    """An error as a short printable line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:120])


def _run(stream: io.BytesIO) -> Any:
    """What the first pickle of a stream builds."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def to_mark() -> list[Any]:
        items = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        name = instruction.name
        if count > MAX_INSTRUCTIONS:
            raise ValueError("too many instructions")
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            items = to_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "DICT":
            items = to_mark()
            stack.append(_items(items))
        elif name == "APPEND":
            item = stack.pop()
            _put(stack[-1], [item])
        elif name in ("APPENDS", "ADDITEMS"):
            items = to_mark()
            _put(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = to_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            target = stack[-1].items if isinstance(stack[-1], _Thing) else stack[-1]
            target.update(_items(items))
        elif name == "GLOBAL":
            stack.append(_Thing(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = _text(stack.pop()), _text(stack.pop())
            stack.append(_Thing(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, what = stack.pop(), stack.pop()
            stack.append(_made(what, arguments))
        elif name == "NEWOBJ_EX":
            stack.pop()
            arguments, what = stack.pop(), stack.pop()
            stack.append(_made(what, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Thing):
                stack[-1].state = state
                if stack[-1].name.endswith(".NumpyArrayWrapper"):
                    stack[-1].items["array"] = _after(stream, state)
        elif argument is not None:
            stack.append(argument)  # numbers, text and bytes
        else:
            raise ValueError(f"the instruction {name} is not for numbers")
    raise EOFError("cut short")


def _put(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


def _items(pairs: list[Any]) -> dict:
    """Keys and values in turn; keys other than names and numbers are left out, as hashing them can take for ever."""
    return {key: value for key, value in zip(pairs[::2], pairs[1::2], strict=True) if isinstance(key, str | int)}


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError("a name that is none")
    return value


def _made(what: Any, arguments: Any) -> Any:
    if not isinstance(what, _Thing) or not isinstance(arguments, tuple):
        raise ValueError("something that cannot be called")
    if what.name.startswith("numpy") and what.name.endswith(".scalar") and len(arguments) == 2:
        return _array(arguments[0], (), arguments[1], False)
    if what.name.startswith("numpy") and what.name.endswith("._frombuffer") and len(arguments) == 4:  # protocol 5
        return _array(arguments[1], arguments[2], arguments[0], arguments[3] == "F")
    return _Thing(what.name, arguments)  # _codecs.encode, which protocol 2 makes bytes with, is done in _array


def _plain(value: Any, seen: list[int], depth: int = 0) -> Any:
    """Nested containers with arrays in the place of what describes them.

    ``seen`` counts parts, and bytes of tensors, as both can be shared.
    """
    seen[0] += 1
    if depth > 20 or seen[0] > MAX_NODES:
        raise ValueError("nested too deeply, or too many parts")
    if isinstance(value, dict):
        return {key: _plain(item, seen, depth + 1) for key, item in value.items() if isinstance(key, str | int)}
    if isinstance(value, _Thing):
        if "array" in value.items:
            return value.items["array"]
        if value.name.startswith("numpy") and value.name.endswith("._reconstruct") and value.state is not None:
            _, shape, dtype, fortran, content = value.state
            return _array(dtype, shape, content, bool(fortran))
        return _plain(value.items, seen, depth + 1) if value.items else None
    if hasattr(value, "detach"):  # a tensor; its elements may be shared
        seen[1] += value.numel() * 8
        if seen[1] > MAX_BYTES or value.is_sparse or value.is_quantized or value.is_complex():
            raise ValueError("a tensor that is too large, or not of plain numbers")
        return value.detach().double().numpy()
    if isinstance(value, list | tuple):
        return [_plain(item, seen, depth + 1) for item in value]
    return value


def _dtype(thing: Any) -> np.dtype:
    """The dtype that a pickle describes: plain numbers alone."""
    if not isinstance(thing, _Thing) or not thing.name.startswith("numpy") or not thing.name.endswith("dtype"):
        raise ValueError("an array without a type")
    code = _text(thing.arguments[0])
    if code[:1] not in "fiub" or not code[1:].isdigit() or len(code) > 3:
        raise ValueError(f"an array of {code[:20]}")
    order = _text(thing.state[1]) if thing.state else "="
    return np.dtype(code).newbyteorder(order if order in "<>" else "=")


def _array(dtype: Any, shape: Any, content: Any, fortran: bool) -> np.ndarray:
    kind = _dtype(dtype)
    if isinstance(content, _Thing) and content.name == "_codecs.encode":
        content = content.arguments[0].encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise ValueError("an array without bytes")
    return np.frombuffer(content, kind).reshape(tuple(int(n) for n in shape), order="F" if fortran else "C")


def _after(stream: io.BytesIO, state: Any) -> np.ndarray:
    """The array whose bytes joblib has put behind its description, padded."""
    if state.get("numpy_array_alignment_bytes") is not None:
        stream.read(stream.read(1)[0])
    kind, shape = _dtype(state["dtype"]), tuple(int(n) for n in state["shape"])
    size = kind.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
    if not 0 <= size <= MAX_BYTES:
        raise ValueError("an array that is too large")
    return _array(state["dtype"], shape, stream.read(size), state.get("order") == "F")
