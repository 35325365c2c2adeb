"""Damaged and hostile files, thousands of them, through every reader of the package.

    python tests/bench/fuzz_files.py [--count 5000] [--seed 0] [--only KIND]

Every kind of file has a good one, written by the package itself, and mutants made with knowledge of its structure. A mutant is
read in a process of its own group, with 1 GB more address space than the empty reader and 10 s, and then used as the product
would use it. It must come out right (finite, in range) or be refused by one printable line that names the file. Anything else is a
failure: another exception, a crash, a hang, memory. ``tests/test_fuzz.py`` runs a few hundred of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LIMIT_BYTES, LIMIT_S, GROUP = 10**9, 10, 40
DEEP = "[" * 100_000
NUMBERS = [0, -1, 1, 2, 2**31, 2**63, 10**30, -(10**400), 1e308, -1e308, 1e-320, float("nan"), float("inf"), 0.5, 65535]
NAMES = ["", "x" * 100_000, "two\nlines\x1b[2J", "../../../etc/passwd", "/etc/passwd", "C:\\Windows\\win.ini", "C:win.ini",
         "\\\\host\\share\\x", "a\0b", "..", ".", "\ud800", "a/../../b", "~/x", "file:///etc/passwd", "NUL"]  # fmt: skip
VALUES = [
    *NUMBERS,
    *NAMES,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [[1, 2], [3]],
    {"a": {}},
    "@deep@",
    "@wide@",
    [-1, -1],
]

Mutate = Callable[[bytes, random.Random], bytes]


# ---- mutators


def of_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bits, blocks and fields, anywhere."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        size = len(data)
        # headers are where the sizes are
        at = rng.randrange(min(size, rng.choice([16, 64, 400, size, size])) or 1) if size else 0
        length = rng.choice([1, 2, 4, 16, 300, size // 3])
        block = bytes(data[at : at + length])
        what = rng.randrange(9)
        if what < 2 and size:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 2:
            del data[rng.randrange(size + 1) :]
        elif what == 3:
            del data[at : at + length]
        elif what == 4:
            data[at:at] = block * rng.choice([1, 2, 50])
        elif what == 5:
            data[at : at + length] = bytes([rng.choice([0, 255, 0x41])]) * length
        elif what == 6:
            form = rng.choice(["<I", ">I", "<H", ">H", "<Q", ">Q", "<i", "<f", "<d"])
            value = rng.choice([0, 1, 2**15, 2**16 - 1]) if form[1] == "H" else rng.choice([0, 2**24, 2**31 - 1])
            value = rng.choice([float("nan"), 1e38, -1.0, float("inf")]) if form[1] in "fd" else value
            value = 2**64 - 1 if form[1] == "Q" and rng.random() < 0.5 else value
            data[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif what == 7:
            data[at:at] = rng.randbytes(length)
        else:
            other = rng.randrange(size + 1)
            data[at : at + length] = data[other : other + length]
    return bytes(data[: 4 * len(content) + 4096])


def of_text(content: bytes, rng: random.Random) -> bytes:
    """Words and lines of a text."""
    lines = content.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice([1, 1, 2, 6])):
        at = rng.randrange(min(len(lines), rng.choice([12, len(lines)])))
        words = lines[at].split(" ")
        place = rng.randrange(len(words))
        new = ["nan", "inf", "1e999", "-1", "1000000000", "{", "}", "", "JOINT", "End Site", "CHANNELS 3", "OFFSET", "\0", "ROOT x",
               "9" * 5000, "MOTION", "Frames: 0", "HIERARCHY", "\u00b2", "1e-300", "0", "Xrotation", "} } }"]  # fmt: skip
        what = rng.randrange(6)
        if what < 3:
            words[place] = rng.choice(new)
            lines[at] = " ".join(words)
        elif what == 3:
            lines[at : at + rng.choice([1, 3])] = []
            lines = lines or [""]
        elif what == 4:
            lines[at:at] = lines[at : at + rng.choice([1, 4])] * rng.choice([1, 3, 200])
        else:
            lines[at] = lines[at] + " " + rng.choice(new) * rng.choice([1, 1000])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def of_document(value: object, rng: random.Random) -> bytes:
    """A JSON document with values of other types, sizes and depths; keys gone, keys twice."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        holder, key, now = None, None, value
        while isinstance(now, dict | list) and now and (holder is None or rng.random() < 0.75):
            holder, key = now, rng.choice(list(now)) if isinstance(now, dict) else rng.randrange(len(now))
            now = holder[key]
        if holder is None:
            value = rng.choice(VALUES)
            continue
        what = rng.randrange(8)
        if what < 5:
            same = NUMBERS if isinstance(now, int | float) else NAMES if isinstance(now, str) else VALUES
            holder[key] = rng.choice(same if rng.random() < 0.5 else VALUES)
        elif what == 5:
            del holder[key]
        elif what == 6 and isinstance(holder, list):
            holder[key:key] = [now] * rng.choice([1, 1000])
        elif isinstance(holder, dict):
            holder[rng.choice([*NAMES, *list(holder)])] = now
    text = json.dumps(value)
    wide = rng.choice(["[" + "0," * 300_000 + "0]", "[" + "{}," * 300_000 + "{}]", "[" + "[]," * 300_000 + "[]]"])
    text = text.replace('"@deep@"', DEEP + "]" * len(DEEP) if rng.random() < 0.5 else DEEP).replace('"@wide@"', wide)
    return text.encode("utf-8", "surrogatepass")


def of_json(content: bytes, rng: random.Random) -> bytes:
    return of_document(json.loads(content), rng) if rng.random() < 0.8 else of_bytes(content, rng)


def of_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header says other shapes, types and offsets; or numbers are not what they were."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    what = rng.randrange(6)
    if what == 0:
        return of_bytes(content, rng)
    if what == 1:
        text = of_document(header, rng)
        return struct.pack("<Q", len(text)) + text + bytes(data)
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    start, end = entry["data_offsets"]
    if what in (2, 3):
        width = {"F32": 4, "U16": 2, "U8": 1}.get(entry["dtype"], 4)
        for _ in range(rng.choice([1, 3])):
            at = start + width * rng.randrange(max(1, (end - start) // width))
            bad = [float("nan"), float("inf"), -1.0, 1e38, 0.0, -1e30]
            data[at : at + width] = struct.pack("<f", rng.choice(bad)) if width == 4 else b"\xff" * width
        if rng.random() < 0.3:
            data[start:end] = bytes(end - start)
    elif what == 4:
        shape = entry["shape"]
        entry["shape"] = rng.choice(
            [shape[::-1], [*shape, 1], [math.prod(shape)], [1, *shape], [0], [], [2**40, 2**40]]
        )
    else:
        kinds = {1: ["I8", "U8", "BOOL", "F8_E4M3"], 2: ["F16", "BF16", "I16"], 4: ["I32", "U32", "F32", "C64"]}
        entry["dtype"] = rng.choice([*kinds.get(2 if entry["dtype"] == "U16" else 4, []), "F64", "X", ""])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def of_npz(content: bytes, rng: random.Random) -> bytes:
    """Members of an .npz with other names, types, shapes, headers and sizes."""
    if rng.random() < 0.3:
        return of_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    packing = rng.choice(
        [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    )
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(list(members) or ["poses.npy"])
        member = members.get(name, b"")
        try:
            array = np.load(io.BytesIO(member), allow_pickle=False)
        except Exception:
            array = np.zeros(3)
        what = rng.randrange(9)
        if what == 0:
            members[name] = of_bytes(member, rng)
        elif what == 1:
            del members[name]
        elif what == 2:
            members[rng.choice(["../../x.npy", "/etc/x.npy", "C:\\x.npy", "a\\..\\b.npy", "x" * 300 + ".npy"])] = member
        elif what == 3:
            kind = rng.choice(["O", "U3", "S5", "c16", "f2", ">f8", "?", "u1", "i8", "M8[s]", "V7", "f4"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = (
                    np.zeros(array.shape, kind) if kind[0] in "MVUSO" else np.nan_to_num(_floats(array)).astype(kind)
                )
            members[name] = _npy(array)
        elif what == 4:
            shape = rng.choice([array.shape[::-1], (*array.shape, 1), (array.size,), (1, *array.shape)])
            members[name] = _npy(array.reshape(shape))
        elif what == 5:
            flat = _floats(array).reshape(-1)
            if flat.size:
                flat[rng.randrange(flat.size)] = rng.choice([np.nan, np.inf, 1e308, -1e12, -1.0, 0.0])
            members[name] = _npy(flat.reshape(array.shape))
        elif what == 6:
            members[name] = _npy(
                np.zeros(rng.choice([(0,), (0, 3), (3, 0), (2_000_000,), (1000, 1000), ()]), array.dtype)
            )
        elif what == 7:
            shape = rng.choice(
                ["(1000000000,)", "(-1, 3)", "(10,)*9", "(2**62, 4)", "(" * 200, "(99999999999999999999,)", "[1]", "()"]
            )
            kind = rng.choice(["'<f8'", "'|O'", "'<U99999999'", "[('a', '<f8')]", "__import__('os')", "'<f4'"])
            header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
            size = struct.pack("<H", len(header)) if rng.random() < 0.7 else struct.pack("<H", 65535)
            members[name] = b"\x93NUMPY\1\0" + size + header + member[-64:]
        else:
            members[name] = _npy(np.zeros(40_000_000, "u1"))  # 40 MB in 40 kB
            packing = zipfile.ZIP_DEFLATED
    held = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(held, "w", packing, compresslevel=1) as archive:
        warnings.simplefilter("ignore")
        for name, member in members.items():
            archive.writestr(name, member)
        if members and rng.random() < 0.1:
            archive.writestr(name, member)
    if rng.random() < 0.15:  # sizes that lie, in the directory alone
        data = bytearray(held.getvalue())
        at = data.find(b"PK\1\2")
        data[at + 24 : at + 28] = struct.pack("<I", rng.choice([0, 2**32 - 1, 5, 2**31]))
        return bytes(data)
    return held.getvalue()


def of_png(content: bytes, rng: random.Random) -> bytes:
    """Chunks of a PNG with right check sums, so that what is inside is looked at."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    for _ in range(rng.choice([1, 1, 2, 4])):
        chunk = rng.choice(chunks[:1] if rng.random() < 0.4 else chunks)
        what = rng.randrange(6)
        if what == 0 and chunk[0] == b"IHDR":
            sizes = [0, 1, 30_000, 30_001, 2**31 - 1, 2**32 - 1, 70]
            chunk[1] = struct.pack(">II", rng.choice(sizes), rng.choice(sizes)) + chunk[1][8:]
        elif what == 1 and chunk[0] == b"IHDR":
            chunk[1] = chunk[1][:8] + bytes([rng.choice([1, 8, 16, 7]), rng.choice([0, 2, 3, 4, 6, 5])]) + chunk[1][10:]
        elif what == 2:
            bomb = zlib.compress(bytes(20_000_000), 1)
            kind = rng.choice([b"iCCP", b"zTXt", b"iTXt", b"IDAT", b"eXIf"])
            chunks.insert(1, [kind, (b"" if kind in (b"IDAT", b"eXIf") else b"a\0\0") + bomb])
        elif what == 3:
            chunks.insert(
                rng.randrange(len(chunks) + 1),
                [rng.choice([b"PLTE", b"tRNS", b"acTL", b"fcTL", b"gAMA"]), rng.randbytes(26)],
            )
        elif what == 4 and len(chunks) > 1:
            chunks.remove(chunk)
        else:
            chunk[1] = of_bytes(chunk[1], rng)
    found = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        found += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return found


def of_glb(content: bytes, rng: random.Random) -> bytes:
    """The JSON chunk with other values and a right length; or plain bytes."""
    if rng.random() < 0.3:
        return of_bytes(content, rng)
    (length,) = struct.unpack("<I", content[12:16])
    text, rest = of_document(json.loads(content[20 : 20 + length]), rng), content[20 + length :]
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest


def of_pickle(content: bytes, rng: random.Random) -> bytes:
    """Instructions that copy, nest and name things they should not; or plain bytes."""
    extra = [b"2" * 1000, b"0", b"(", b"cos\nsystem\n(S'true'\ntR.", b"]" * 3000 + b"a" * 2999, b"h\0", b"j\xff\xff\xff\x7f",
             b"\x8d" + b"\xff" * 8, b"B\xff\xff\xff\x7f", b"L" + b"9" * 5000 + b"L\n", b"]h\0a" * 9, b"Nb", b"R", b"s", b"N"]  # fmt: skip
    if rng.random() < 0.5:
        return of_bytes(content, rng)
    at = rng.randrange(len(content))
    return content[:at] + rng.choice(extra) + content[at + rng.choice([0, 0, 1, 9]) :]


def _floats(array: np.ndarray) -> np.ndarray:
    return array.astype(float) if array.dtype.kind in "fiub" else np.zeros(array.shape)


def _npy(array: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.lib.format.write_array(held, array, allow_pickle=True)
    return held.getvalue()


# ---- the files, and what the product does with them


@dataclass(frozen=True)
class Kind:
    """One kind of file: ``make`` writes good files into a folder, ``file`` is the one that is changed, ``use`` reads and uses it."""

    name: str
    file: str
    make: Callable[[Path], object]
    mutate: tuple[Mutate, ...]
    use: Callable[[Path], object]
    after: Callable[[Path], object] = lambda folder: None


def need(right: object, what: str) -> None:
    """A file that was read must be usable."""
    if not right:
        raise AssertionError(f"read, but {what}")


def some_avatar():
    """Sixty Gaussians on the toy's two joints."""
    import torch
    from toy import ToyBody

    from hdx_cli.avatars.base import Avatar
    from hdx_cli.bodies.base import Body, BodyPose, RestBody
    from hdx_cli.gaussians import Gaussians

    rng, model = np.random.default_rng(0), ToyBody()
    rest, count = model.rest(np.zeros(1)), 60
    floats = [
        torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in ((count, 3), (count, 4), (count, 1, 3))
    ]
    weights = np.zeros((count, 8), np.float32)
    weights[:, 0], weights[:, 1] = 0.25, 0.75
    indices = np.tile(np.array([0, 1, 0, 0, 0, 0, 0, 0], np.uint16), (count, 1))
    pose = BodyPose(np.tile(np.eye(3, dtype=np.float32), (1, 2, 1, 1)), np.zeros((1, 3), np.float32))
    return Avatar(
        Gaussians(floats[0], floats[1], torch.full((count, 3), 0.02), torch.full((count,), 0.9), floats[2]), indices, weights,
        Body("toy", np.zeros(1, np.float32)), RestBody(np.zeros((0, 3), np.float32), rest.joints.astype(np.float32)), model.parents,
        model.joint_names, pose, np.ones(count, np.float32), np.zeros(count, np.uint8), {"front_psnr_db": 30.0},
    )  # fmt: skip


def make_avatar(folder: Path) -> None:
    from hdx_cli.avatars.avatar_file import write_avatar

    write_avatar(folder, some_avatar())


def seal(folder: Path) -> None:
    """The sha256 of a changed tensor file written into its description, as whoever changes it on purpose would."""
    path = folder / "avatar.json"
    description = json.loads(path.read_bytes())
    description["sha256"] = hashlib.sha256((folder / "avatar.safetensors").read_bytes()).hexdigest()
    path.write_text(json.dumps(description))


def use_avatar(folder: Path) -> None:
    from hdx_cli.avatars.avatar_file import read_avatar
    from hdx_cli.avatars.base import standing_at_rest
    from hdx_cli.licences import _plain  # noqa: F401 - loads what the commands load

    avatar = read_avatar(folder)
    for pose in (None, standing_at_rest(avatar)):
        gaussians = avatar.gaussians(pose)
        for name, value in vars(gaussians).items():
            need(len(value) == len(avatar.visibility) and value.isfinite().all(), f"{name} is not finite")
    need(all(math.isfinite(score) for score in avatar.scores.values()), "scores are not finite")
    need((gaussians.scales > 0).all() and (avatar.parts < 9).all(), "scales or parts beyond their range")


def picture(height: int = 96, width: int = 72, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)


def make_image(kind: str, **options) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import pillow_heif
        from PIL import Image, ImageCms

        pillow_heif.register_heif_opener()
        exif = Image.Exif()
        exif[0x0112] = 6
        exif.get_ifd(0x8769).update({0xA405: 35, 0x920A: 4.2, 0xA002: 72, 0xA003: 96})
        given = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "HEIF") else {}
        if kind in ("JPEG", "PNG", "TIFF"):
            given["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        given |= {name: value for name, value in options.items() if name != "mode"}
        image = Image.fromarray(picture(channels=4)).convert(options.get("mode", "RGB"))
        frames = {"save_all": True, "append_images": [image]} if kind in ("GIF", "WEBP") else {}
        image.save(folder / "photo", kind, **given, **frames)

    return make


def use_image(folder: Path) -> None:
    from hdx_cli.images import load_mask, load_photo

    photo = load_photo(folder / "photo")
    values = [photo.rgb] + ([] if photo.alpha is None else [photo.alpha])
    for value in values:
        need(np.isfinite(value).all() and value.min() >= 0 and value.max() <= 1, "pixels are out of range")
    need(photo.rgb.ndim == 3 and max(photo.rgb.shape) <= 2048, "the size is wrong")
    need(photo.focal_px is None or 0 < photo.focal_px < 1e6, "the focal length is wrong")
    mask = load_mask(folder / "photo", photo.rgb.shape[:2])
    need(np.isfinite(mask).all() and mask.shape == photo.rgb.shape[:2], "the mask is wrong")


def make_run(folder: Path) -> None:
    """A run folder up to its refined avatar, from random numbers."""
    import torch
    from PIL import Image
    from toy import toy_fit

    from hdx_cli import run_files
    from hdx_cli.avatars.avatar_file import write_avatar
    from hdx_cli.observation import Keypoints, Observation, Photo
    from hdx_cli.progress import Silent
    from hdx_cli.run_folder import RunFolder

    rng = np.random.default_rng(2)
    rgb = rng.random((96, 58, 3)).astype(np.float32)
    points = [rng.random((count, 3)).astype(np.float32) for count in (33, 33, 21, 21, 468)]
    seen = Observation(Photo(rgb, None, 120.0), rgb[..., 0].copy(), rgb, Keypoints(*points))
    fit = toy_fit(96)
    cameras = type(fit.camera)(fit.camera.viewmats.repeat(3, 1, 1), fit.camera.Ks.repeat(3, 1, 1), 40, 60)
    Image.fromarray((rgb * 255).astype("uint8")).save(folder / "me.png")

    def write(path: Path) -> dict:
        write_avatar(path, some_avatar())
        return {"scores": {"front_psnr_db": 30.0, "silhouette_iou": 0.9}, "confidence": {"head": 0.5}}

    with RunFolder.create(folder / "run", folder / "me.png") as run:
        run.remember({"seed": 0, "person": 1, "gender": "female", "height_m": 1.7, "restorer": "humanfixer"})

        def observe(path: Path) -> dict:
            run_files.save_observation(path, seen)
            return {"findings": [{"code": "W_DARK", "message": "the photo is dark", "severity": "warn"}]}

        run.make("observation", {}, ["photo.png"], observe)
        run.make("body.npz", {}, ["observation"], lambda path: run_files.save_body_fit(path, fit))
        run.make("coarse", {"completion": True}, ["observation", "body.npz"], write)
        views = [picture(60, 40, 4)] * len(cameras)
        run.make(
            "restored", {}, ["coarse"], lambda path: run_files.save_views(path / "views", cameras, views, Silent())
        )
        run.make("refined", {}, ["restored"], write)
    assert torch.equal(run_files.load_views(folder / "run/restored/views")[0].Ks, cameras.Ks)


def use_run(folder: Path) -> None:
    from hdx_cli import licences, outputs, stages
    from hdx_cli.run_folder import RunFolder

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    with RunFolder.open(folder / "run") as run:
        options = stages.Options.remembered(run)
        stages.best_avatar(run)
        outputs.shown_scores(run)
        need(run.photo.resolve().parent == run.path.resolve(), "the photo lies elsewhere")
        for product in [*run.state["products"], "observation", "exports/avatar.ply"]:
            run.is_current(product)
            run.is_done(product, {}, ["photo.png"])
            if run.record(product):
                run.require(product, "hdx").resolve().relative_to(run.path.resolve())
        need(
            isinstance(run.seed, int) and isinstance(run.record("coarse").get("config", {}), dict), "the record is odd"
        )
        need(options.mask is None or "/" not in options.mask, "the mask lies elsewhere")
        licences.parts_of(run.state)
        findings = [(finding["code"] + finding["message"]) for finding in run.record("observation").get("findings", [])]
        need(all(isinstance(finding, str) for finding in findings), "findings are no text")
        [f"{share:.0%}" for share in run.record("coarse").get("confidence", {}).values()]
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    need(before == after, "opening it changed it")


def use_run_again(folder: Path) -> None:
    """``hdx create --force`` with another photo on a folder with hostile records: nothing outside it may go."""
    from hdx_cli.run_folder import RunFolder

    bystander, other = folder / "bystander", folder / "other.png"
    bystander.write_text("mine")
    other.write_bytes(b"another photo")
    try:
        with RunFolder.create(folder / "run", other, force=True) as run:
            run.make("x.txt", {}, [run.state["photo"]], lambda path: path.write_text("made") and None)
    finally:
        need(
            bystander.read_text() == "mine" and other.is_file() and (folder / "me.png").is_file(),
            "it removed what is not its own",
        )


def use_records(folder: Path) -> None:
    from hdx_cli import licences

    licences.rows(licences.parts_of(licences.read_records(folder / "run")))


def use_observation(folder: Path) -> None:
    from hdx_cli.run_files import load_observation

    seen = load_observation(folder / "run/observation")
    for value in (seen.photo.rgb, seen.alpha, seen.foreground):
        need(value.shape[:2] == seen.photo.rgb.shape[:2] and 0 <= value.min() and value.max() <= 1, "pixels are wrong")
    for name, value in vars(seen.keypoints).items():
        need(value is None or (value.dtype == np.float32 and np.isfinite(value).all()), f"{name} is wrong")
    need(seen.photo.focal_px is None or 0 < seen.photo.focal_px < 1e6, "the focal length is wrong")
    need(seen.keypoints.pixels.shape == (33, 3), "landmarks are missing")


def use_body(folder: Path) -> None:
    import torch
    from toy import ToyBody

    from hdx_cli.bodies.base import joint_transforms
    from hdx_cli.run_files import load_body_fit

    fit = load_body_fit(folder / "run/body.npz")
    model = ToyBody()
    if fit.pose.rotations.shape[1] == len(model.parents):
        moved = joint_transforms(
            fit.pose.rotations[0], model.rest(fit.body.shape).joints, model.parents, fit.pose.translations[0]
        )
        need(np.isfinite(moved).all(), "the pose is not finite")
    pixels, _ = fit.camera.project(torch.tensor([[0.1, 0.5, 0.3]]))
    need(pixels.isfinite().all() and len(fit.camera) == 1 and isinstance(fit.body.model, str), "the camera is wrong")
    need(
        all(math.isfinite(score) for score in fit.scores.values()) and fit.camera.width < 10**5, "the scores are wrong"
    )


def use_views(folder: Path) -> None:
    from hdx_cli.run_files import load_views

    cameras, pictures = load_views(folder / "run/restored/views")
    need(
        pictures.shape == (len(cameras), cameras.height, cameras.width, 4) and pictures.dtype == np.uint8,
        "views are wrong",
    )
    need(cameras.viewmats.isfinite().all() and cameras.positions().isfinite().all(), "cameras are not finite")


def make_batch(folder: Path) -> None:
    from hdx_cli.batch import manifest

    with manifest.changing(folder) as entries:
        for name in ("a", "b"):
            path = folder / f"{name}.jpg"
            entries[path] = manifest.Entry(
                str(path), name, "done", scores={"front_psnr_db": 30.0}, warnings=[["W", "dark"]], size=3
            )


def use_batch(folder: Path) -> None:
    from hdx_cli.batch import manifest

    for entry in manifest.read(folder).values():
        need((folder / entry.run).resolve().parent == folder.resolve(), "a run lies elsewhere")
        manifest.is_whole(folder / entry.run)
        manifest.photo_of(folder / entry.run)


def use_batched_run(folder: Path) -> None:
    from hdx_cli.batch import manifest

    manifest.is_whole(folder / "run")
    photo = manifest.photo_of(folder / "run")
    need(photo is None or photo.resolve().parent == (folder / "run").resolve(), "the photo lies elsewhere")


def make_glb(folder: Path) -> None:
    from hdx_cli.bodies.base import BodyPose
    from hdx_cli.export.glb import Animation, Rig, SkinnedGaussians, write_glb

    avatar = some_avatar()
    pose = BodyPose(np.tile(np.eye(3), (5, 2, 1, 1)), np.cumsum(np.full((5, 3), 0.01), axis=0))
    rig = Rig(avatar.rest.joints.astype(np.float64), avatar.parents, avatar.joint_names)
    clips = (Animation("nod", pose, 30.0, False),)
    write_glb(
        folder / "a.glb", SkinnedGaussians(avatar.canonical, avatar.joint_indices, avatar.joint_weights, rig, clips)
    )


def use_glb(folder: Path) -> None:
    from hdx_cli.errors import InputRejected
    from hdx_cli.export.glb_reader import read_glb
    from hdx_cli.export.html import viewer_page

    back = read_glb(folder / "a.glb")
    need(all(value.isfinite().all() for value in vars(back.gaussians).values()), "values are not finite")
    need(back.joint_indices.max() < len(back.rig.names) and np.isfinite(back.rig.joints).all(), "the rig is wrong")
    for clip in back.animations:
        need(
            np.isfinite(clip.pose.rotations).all() and np.isfinite(clip.pose.translations).all(), "a clip is not finite"
        )
    with contextlib.suppress(InputRejected):  # it is given bytes, and has no file to name
        viewer_page((folder / "a.glb").read_bytes(), "a")


def smpl_numbers(frames: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {"poses": rng.normal(0, 0.3, (frames, 156)), "trans": rng.normal(0, 0.1, (frames, 3)), "mocap_framerate": np.array(120.0),
            "betas": np.zeros(16), "gender": np.array("male")}  # fmt: skip


def parts_of_smpl(frames: int = 4) -> dict[str, np.ndarray]:
    poses = smpl_numbers(frames)["poses"]
    return {
        "global_orient": poses[:, :3],
        "body_pose": poses[:, 3:66],
        "transl": smpl_numbers(frames)["trans"],
        "fps": np.array(30.0),
    }


def make_motion(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import torch
        from motion_files import some_motion, write_bvh

        path = folder / name
        lists = {key: value.tolist() for key, value in parts_of_smpl().items()}
        if name.endswith(".bvh"):
            write_bvh(path, *some_motion(4))
        elif name.endswith(".npz"):
            with path.open("wb") as file:
                np.savez(file, **smpl_numbers())
        elif name.endswith(".smpl"):
            poses, trans = smpl_numbers()["poses"][:, :66].reshape(-1, 22, 3), smpl_numbers()["trans"]
            with path.open("wb") as file:
                np.savez_compressed(file, bodyPose=poses, bodyTranslation=trans, frameRate=30.0)
        elif name.endswith(".json") and "/" not in name:
            path.write_text(json.dumps({"smpl_params_global": lists, "fps": 30}))
        elif name.endswith(".json"):
            path.parent.mkdir()
            for frame in range(3):
                row = {key: value[frame] for key, value in lists.items() if key != "fps"}
                (path.parent / f"{frame:05d}.json").write_text(json.dumps(row))
        elif name.endswith(".pt"):
            tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in parts_of_smpl().items()}
            torch.save(tensors, path, _use_new_zipfile_serialization="old" not in name)
        else:
            path.write_bytes(pickle.dumps(parts_of_smpl(), protocol=int(path.stem[-1])))

    return make


_RIG: list = []  # the real rig, read once for all motions of a process


def use_motion(name: str) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        from hdx_cli.bodies import anny
        from hdx_cli.bodies.base import RestBody
        from hdx_cli.motion import load

        if not _RIG:
            model = anny.load()
            _RIG.append((model, RestBody(np.zeros((0, 3)), model.rest(model.default_shape).joints)))
        model, rest = _RIG[0]
        path = folder / name
        source = str(path.parent if "/" in name else path)
        clip = load(source, rest, model.parents, model.joint_names, allow_pickle=True)
        rotations, moves = clip.pose.rotations, clip.pose.translations
        need(len(rotations) == len(moves) <= 20_000 and rotations.shape[1] == len(model.parents), "frames are wrong")
        need(
            np.isfinite(rotations).all() and np.isfinite(moves).all() and 0 < clip.fps <= 1000, "the clip is not finite"
        )
        off = np.abs(rotations[:50] @ np.swapaxes(rotations[:50], -1, -2) - np.eye(3)).max()
        need(off < 0.05, f"rotations are none ({off})")
        need(np.abs(moves).max() < 1e7, "the root is nowhere")

    return use


def make_weights(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.ones((2, 3), np.float32)}, folder / "w.safetensors", {"format": "x", "config": "{}"})
    digest = hashlib.sha256((folder / "w.safetensors").read_bytes()).hexdigest()
    (folder / "weights.json").write_text(json.dumps({"w.safetensors": digest}))


def use_weights(lock: bool) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        from hdx_cli.weights import read_weights

        _, header = read_weights(folder / "w.safetensors", folder / "weights.json" if lock else None)
        need(all(isinstance(value, str) for pair in header.items() for value in pair), "metadata that is no text")

    return use


def kinds() -> Iterator[Kind]:
    """Every kind of file."""
    yield Kind("avatar tensors", "avatar.safetensors", make_avatar, (of_safetensors,), use_avatar, seal)
    yield Kind("avatar.json", "avatar.json", make_avatar, (of_json,), use_avatar)
    run = "run/run.json"
    yield Kind("run.json", run, make_run, (of_json,), use_run)
    yield Kind("run.json, --force", run, make_run, (of_json,), use_run_again)
    yield Kind("run.json, licenses", run, make_run, (of_json,), use_records)
    yield Kind("run.json, batch", run, make_run, (of_json,), use_batched_run)
    for name, how in (
        ("photo.json", of_json),
        ("keypoints.npz", of_npz),
        ("photo.png", of_png),
        ("cutout.png", of_png),
    ):
        yield Kind(f"observation {name}", f"run/observation/{name}", make_run, (how,), use_observation)
    yield Kind("body.npz", "run/body.npz", make_run, (of_npz,), use_body)
    yield Kind("views cameras.json", "run/restored/views/cameras.json", make_run, (of_json,), use_views)
    yield Kind("views png", "run/restored/views/01.png", make_run, (of_png, of_bytes), use_views)
    yield Kind("batch.json", "batch.json", make_batch, (of_json,), use_batch)
    images = {
        "jpeg": ("JPEG", {}, of_bytes), "png": ("PNG", {}, of_png), "png alpha": ("PNG", {"mode": "RGBA"}, of_png),
        "png palette": ("PNG", {"mode": "P"}, of_png), "webp": ("WEBP", {}, of_bytes), "heic": ("HEIF", {}, of_bytes),
        "avif": ("AVIF", {}, of_bytes), "gif": ("GIF", {"mode": "P"}, of_bytes), "tiff": ("TIFF", {}, of_bytes),
        "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}, of_bytes), "tiff float": ("TIFF", {"mode": "F"}, of_bytes),
        "bmp": ("BMP", {}, of_bytes),
    }  # fmt: skip
    for name, (form, options, how) in images.items():
        yield Kind(f"image {name}", "photo", make_image(form, **options), (how, of_bytes), use_image)
    motions = {
        "walk.bvh": (of_text, of_text, of_bytes), "amass.npz": (of_npz,), "codec.smpl": (of_npz,), "whole.json": (of_json,),
        "frames/00001.json": (of_json,), "two2.pkl": (of_pickle,), "four4.pkl": (of_pickle,), "five5.pkl": (of_pickle,),
        "new.pt": (of_bytes,), "old.pt": (of_pickle,),
    }  # fmt: skip
    for name, how in motions.items():
        yield Kind(f"motion {name}", name, make_motion(name), how, use_motion(name))
    yield Kind("glb", "a.glb", make_glb, (of_glb,), use_glb)
    yield Kind("weights", "w.safetensors", make_weights, (of_safetensors,), use_weights(False))
    yield Kind("weights lock", "weights.json", make_weights, (of_json,), use_weights(True))


# ---- running them


@dataclass
class Tally:
    """What became of the mutants of one kind; ``failures`` are (number of the mutant, what happened)."""

    read: int = 0
    refused: int = 0
    failures: list[tuple[int, str]] | None = None
    grown_bytes: int = 0
    seconds: float = 0.0


def mutant(kind: Kind, good: bytes, index: int, seed: int) -> bytes:
    """The bytes of one mutant, the same every time."""
    rng = random.Random(f"{seed} {kind.name} {index}")
    return rng.choice(kind.mutate)(good, rng)


def verdict(kind: Kind, folder: Path) -> str:
    """ "read", "refused", or what is wrong."""
    from hdx_cli.errors import HdxError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.use(folder)
    except HdxError as error:
        if str(folder) not in error.message:
            return f"a refusal that does not name the file: {error.message[:300]!r}"
        if not error.message.isprintable() or len(error.message) > 1000 + len(str(folder)):
            return f"a refusal of {len(error.message)} characters, or unprintable: {error.message[:300]!r}"
        return "refused"
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        import traceback

        frame = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if "hdx_cli" in f.filename), None)
        where = f" at {Path(frame.filename).name}:{frame.lineno}" if frame else ""
        return f"{type(error).__name__}: {str(error)[:300]!r}{where}"
    return "read"


def run_kind(kind: Kind, count: int, seed: int, place: Path, group: int = GROUP) -> Tally:
    """Read ``count`` mutants of a kind, in processes of ``group`` each."""
    started, tally = time.monotonic(), Tally(failures=[])
    seed_folder = place / "good"
    seed_folder.mkdir(parents=True)
    kind.make(seed_folder)
    good = (seed_folder / kind.file).read_bytes()
    assert verdict(kind, shutil.copytree(seed_folder, place / "try")) == "read", kind.name
    next_one = 0
    while next_one < count:
        reader, writer = os.pipe()
        last = min(count, next_one + group)
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(kind, good, range(next_one, last), seed, place, writer)
        os.close(writer)
        with os.fdopen(reader) as told:
            lines = [line.rstrip("\n").split("\t") for line in told if line.endswith("\n")]
        _, status = os.waitpid(child, 0)
        for index, what, grown in lines:
            tally.grown_bytes = max(tally.grown_bytes, int(grown))
            if what == "read":
                tally.read += 1
            elif what == "refused":
                tally.refused += 1
            else:
                tally.failures.append((int(index), what))
        next_one += len(lines)
        if next_one < last:
            ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
            tally.failures.append(
                (next_one, f"longer than {LIMIT_S} s" if ended in ("SIGALRM", "SIGPROF") else f"crashed: {ended}")
            )
            next_one += 1
    tally.seconds = time.monotonic() - started
    shutil.rmtree(place)
    return tally


def _child(kind: Kind, good: bytes, numbers: range, seed: int, place: Path, writer: int) -> None:
    """Never returns; one line per mutant: number, verdict, memory above that of the idle process in bytes."""
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)  # decoders written in C complain on stderr
        os.dup2(quiet, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + LIMIT_BYTES
        for number in numbers:
            content = mutant(kind, good, number, seed)
            folder = place / f"m{number}"
            shutil.copytree(place / "good", folder)
            (folder / kind.file).write_bytes(content)
            kind.after(folder)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
            before = _high_water()
            # of its own time: others may keep the machine busy; and a wait that never ends
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            signal.alarm(12 * LIMIT_S)
            what = verdict(kind, folder)
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            grown = _high_water() - before
            what = " ".join(what.split())
            os.write(writer, f"{number}\t{what}\t{grown}\n".encode("utf-8", "backslashreplace"))
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException as error:  # noqa: BLE001 - the harness itself; the parent sees a crash
        os.write(1, f"{kind.name}: {error!r}\n".encode())
        os._exit(3)
    os._exit(0)


def _high_water() -> int:
    """The most memory that this process has had, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=5000, help="mutants of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--number", type=int, help="this mutant alone, with its traceback; takes --only")
    given = parser.parse_args()
    chosen = [kind for kind in kinds() if given.only in kind.name]
    with tempfile.TemporaryDirectory() as place:
        if given.number is not None:
            (folder := Path(place) / "m").mkdir()
            chosen[0].make(folder)
            content = mutant(chosen[0], (folder / chosen[0].file).read_bytes(), given.number, given.seed)
            (folder / chosen[0].file).write_bytes(content)
            chosen[0].after(folder)
            chosen[0].use(folder)
            return
        each, total, lost = -(-given.count // len(chosen)), Counter(), 0
        print(f"{'kind':<28}{'mutants':>8}{'read':>7}{'refused':>9}{'failures':>10}{'most MB':>9}{'s':>7}")
        for kind in chosen:
            tally = run_kind(kind, each, given.seed, Path(place) / "k")
            lost += len(tally.failures)
            total += Counter(read=tally.read, refused=tally.refused)
            print(f"{kind.name:<28}{each:>8}{tally.read:>7}{tally.refused:>9}{len(tally.failures):>10}"
                  f"{tally.grown_bytes / 1e6:>9.0f}{tally.seconds:>7.1f}", flush=True)  # fmt: skip
            shown: set[str] = set()
            for number, what in tally.failures:
                if what.split(" at ")[-1] not in shown and len(shown) < 12:
                    shown.add(what.split(" at ")[-1])
                    print(f"    {number}: {what[:200]}")
        print(f"{'all':<28}{each * len(chosen):>8}{total['read']:>7}{total['refused']:>9}{lost:>10}")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
