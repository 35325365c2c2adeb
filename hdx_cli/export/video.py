"""Pictures and films from a stream of frames: mp4, webm, gif, or a folder of PNG. One frame is in memory at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..errors import ResourceError, UsageError

FORMATS = ("mp4", "webm", "gif", "png")
WITH_ALPHA = ("webm", "gif", "png")
# What each encoder is asked for. crf is its own quality scale; the values look clean on skin and cloth at 480 x 720.
ENCODERS = {
    "mp4": ("libx264", "yuv420p", ["-crf", "18", "-preset", "veryfast", "-movflags", "+faststart"]),
    "webm": (
        "libvpx-vp9",
        "yuva420p",
        # bitexact: or the muxer draws a number by which no two files are the same
        ["-crf", "30", "-b:v", "0", "-deadline", "realtime", "-cpu-used", "5", "-row-mt", "1", "-fflags", "+bitexact"],
    ),
}

Frame = UInt8[np.ndarray, "H W C"]  # sRGB, with straight alpha where C = 4


def write_video(path: Path, frames: Iterable[Frame], *, size: tuple[int, int], fps: float, format: str) -> int:
    """Write frames as they come and return how many there were.

    Args:
        path: the file, or for ``png`` the folder, to write.
        frames: [H W 3] or [H W 4] uint8 of ``size``.
        size: width and height in pixels; even for mp4 and webm, whose colour is stored at half resolution.
        fps: frames per second.
        format: one of ``FORMATS``.

    Raises:
        UsageError: an unknown format or an odd size.
        ResourceError: the encoder could not write.
        OSError: the disk is full, or cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    if format == "png":
        return _write_pngs(path, frames)
    if format == "gif":
        return _write_gif(path, frames, fps)
    if size[0] % 2 or size[1] % 2:
        raise UsageError(f"--size {size[0]}x{size[1]}: {format} needs an even width and height")
    return _encode(path, frames, size, fps, format)


def _encode(path: Path, frames: Iterable[Frame], size: tuple[int, int], fps: float, format: str) -> int:
    codec, pixels, options = ENCODERS[format]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgba"]
    command += [
        "-s",
        f"{size[0]}x{size[1]}",
        "-r",
        f"{fps:g}",
        "-i",
        "-",
        "-an",
        "-c:v",
        codec,
        "-pix_fmt",
        pixels,
        *options,
    ]
    # ffmpeg converts RGB with BT.601 unless told; players assume BT.709 for what carries no note, so do both
    command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv"]
    command += [
        "-colorspace",
        "bt709",
        "-color_primaries",
        "bt709",
        "-color_trc",
        "bt709",
        "-color_range",
        "tv",
        str(path),
    ]
    count = 0
    with tempfile.TemporaryFile() as words:
        # a session of its own: Ctrl-C is for us, and we decide what becomes of the film
        encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=words, start_new_session=True)
        try:
            with contextlib.suppress(BrokenPipeError):  # the encoder went away; its exit code and words say why
                for frame in frames:
                    encoder.stdin.write(_with_alpha(frame).data)
                    count += 1
                encoder.stdin.close()
            encoder.wait()
        finally:
            encoder.kill()
            with contextlib.suppress(BrokenPipeError):
                encoder.stdin.close()
            encoder.wait()
        if encoder.returncode != 0:
            words.seek(0)
            lines = words.read().decode(errors="replace").strip().splitlines() or [f"exit code {encoder.returncode}"]
            # ffmpeg says it in the words of the system
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
                if any(line.endswith(os.strerror(number)) for line in lines):
                    raise OSError(number, os.strerror(number), str(path))
            raise ResourceError(f"{path}: ffmpeg could not write ({lines[0]})", hint="hdx doctor", code="E_ENCODE")
    return count


def _write_pngs(folder: Path, frames: Iterable[Frame]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for frame in frames:
        Image.fromarray(frame).save(folder / f"{count:04d}.png", compress_level=3)
        count += 1
    return count


def _write_gif(path: Path, frames: Iterable[Frame], fps: float) -> int:
    """GIF with one palette for all frames, made from the first, so that colours do not flicker."""
    stream = iter(frames)
    first = next(stream)
    palette = Image.fromarray(np.ascontiguousarray(first[..., :3])).quantize(255, Image.Quantize.MEDIANCUT)
    transparent = first.shape[2] == 4
    counted = [1]

    def rest() -> Iterator[Image.Image]:
        for frame in stream:
            counted[0] += 1
            yield _indexed(frame, palette)

    with path.open("wb") as file:
        _indexed(first, palette).save(
            file, "GIF", save_all=True, append_images=rest(), duration=round(1000 / fps), loop=0,
            disposal=2 if transparent else 0, optimize=False, **({"transparency": 255} if transparent else {}),
        )  # fmt: skip
    return counted[0]


def _indexed(frame: Frame, palette: Image.Image) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(frame[..., :3])).quantize(palette=palette, dither=Image.Dither.NONE)
    if frame.shape[2] == 4:
        indices = np.array(image)
        indices[frame[..., 3] < 128] = 255
        colours = image.getpalette()
        image = Image.fromarray(indices, mode="P")
        image.putpalette(colours)
    return image


def _with_alpha(frame: Frame) -> UInt8[np.ndarray, "H W 4"]:
    if frame.shape[2] == 3:
        frame = np.concatenate([frame, np.full((*frame.shape[:2], 1), 255, np.uint8)], axis=2)
    return np.ascontiguousarray(frame)
