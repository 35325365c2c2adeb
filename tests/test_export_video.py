"""Films and sheets: what comes out is decoded again and compared with what went in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from hdx_cli.errors import ResourceError, UsageError
from hdx_cli.export.sheet import contact_sheet
from hdx_cli.export.video import FORMATS, write_video

WIDTH, HEIGHT, COUNT = 64, 96, 5
RED, GREEN, BLUE = [200, 40, 30], [30, 170, 60], [40, 60, 190]


def picture(index: int, channels: int = 3) -> np.ndarray:
    """Three bands of colour, and a white square that moves to the right; with alpha, the left half is transparent."""
    frame = np.zeros((HEIGHT, WIDTH, channels), np.uint8)
    frame[:32, :, :3], frame[32:64, :, :3], frame[64:, :, :3] = RED, GREEN, BLUE
    frame[40:56, 10 * index : 10 * index + 16, :3] = 255
    if channels == 4:
        frame[..., 3] = 255
        frame[:, : WIDTH // 2, 3] = 0
    return frame


def decoded(path: Path, codec: str | None = None, pixels: str = "rgb24") -> np.ndarray:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *(["-c:v", codec] if codec else []), "-i", str(path)]
    # the file says BT.709; ffmpeg's conversion to RGB needs to be told so
    command += ["-vf", "scale=in_color_matrix=bt709", "-f", "rawvideo", "-pix_fmt", pixels, "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 4 if pixels == "rgba" else 3)


def probed(path: Path) -> str:
    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr


@pytest.mark.parametrize("format", ["mp4", "webm"])
def test_films_come_back(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"turn table.{format}"
    count = write_video(path, (picture(i) for i in range(COUNT)), size=(WIDTH, HEIGHT), fps=24, format=format)
    frames = decoded(path)
    assert count == COUNT and frames.shape == (COUNT, HEIGHT, WIDTH, 3)
    for index, frame in enumerate(frames):
        original = picture(index)
        # lossy coding at high quality; away from edges (colour has half the resolution) flat areas keep within a few steps.
        # A wrong colour matrix is off by 15 to 25 here.
        error = np.abs(frame.astype(int) - original)
        flat = np.ones((HEIGHT, WIDTH), bool)
        flat[28:36], flat[60:68], flat[36:60, max(0, 10 * index - 4) : 10 * index + 20] = False, False, False
        assert error[flat].mean() < 4, index


def test_mp4_is_what_every_player_takes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, (picture(i) for i in range(48)), size=(WIDTH, HEIGHT), fps=24, format="mp4")
    facts = probed(path)
    assert "h264" in facts and "yuv420p(tv, bt709" in facts and f"{WIDTH}x{HEIGHT}" in facts and "24 fps" in facts
    assert "00:00:02.0" in facts
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # starts to play before it is loaded


def test_webm_keeps_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    write_video(path, (picture(i, 4) for i in range(COUNT)), size=(WIDTH, HEIGHT), fps=24, format="webm")
    alpha = decoded(path, "libvpx-vp9", "rgba")[..., 3]
    # lossy, but the two halves are far from each other except right at the edge
    assert alpha[:, :, : WIDTH // 2 - 4].max() < 30 and alpha[:, :, WIDTH // 2 + 4 :].min() > 225


def test_gif(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    assert write_video(path, (picture(i) for i in range(COUNT)), size=(WIDTH, HEIGHT), fps=20, format="gif") == COUNT
    with Image.open(path) as film:
        assert film.n_frames == COUNT and film.info["duration"] == 50 and film.info["loop"] == 0
        for index in range(COUNT):
            film.seek(index)
            error = np.abs(np.asarray(film.convert("RGB"), int) - picture(index))
            assert error.max() < 8  # four colours fit a palette of 255; median cut rounds them a little


def test_transparent_gif_and_pngs(tmp_path: Path) -> None:
    frames = [picture(i, 4) for i in (3, 4, 5)]  # where the square is seen: GIF writers merge equal frames
    write_video(tmp_path / "a.gif", iter(frames), size=(WIDTH, HEIGHT), fps=20, format="gif")
    with Image.open(tmp_path / "a.gif") as film:
        for index in range(3):
            film.seek(index)
            alpha = np.asarray(film.convert("RGBA"))[..., 3]
            assert (alpha == frames[index][..., 3]).all()
    write_video(tmp_path / "frames", iter(frames), size=(WIDTH, HEIGHT), fps=20, format="png")
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "frames/0002.png")), frames[2])


@pytest.mark.parametrize("format", FORMATS)
def test_one_frame_at_a_time(tmp_path: Path, format: str) -> None:
    """Frames are consumed as they come: the writer never asks for more than a few before it has used the first."""
    asked = []

    def frames():
        for index in range(200):
            asked.append(index)
            if index == 150:
                raise KeyboardInterrupt
            yield picture(index % COUNT)

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / f"x.{format}", frames(), size=(WIDTH, HEIGHT), fps=24, format=format)
    assert len(asked) == 151


def test_odd_sizes_and_unknown_formats_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="even"):
        write_video(tmp_path / "a.mp4", iter([]), size=(63, 96), fps=24, format="mp4")
    with pytest.raises(UsageError, match="--format avi"):
        write_video(tmp_path / "a.avi", iter([]), size=(64, 96), fps=24, format="avi")


def test_an_encoder_that_cannot_write_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no-such-folder"):
        frames = (picture(i) for i in range(COUNT))
        write_video(tmp_path / "no-such-folder/a.mp4", frames, size=(WIDTH, HEIGHT), fps=24, format="mp4")


def test_contact_sheet_holds_photo_and_views_in_order() -> None:
    photo = np.full((300, 200, 3), 0.25, np.float32)
    views = np.stack([np.full((120, 80, 3), (index + 1) / 10, np.float32) for index in range(8)])
    scores = [("front PSNR", "33.1 dB"), ("seen", "a long line " * 20)]
    sheet = np.asarray(contact_sheet(photo, views, [f"{45 * i} degrees" for i in range(8)], scores))
    grey = sheet[..., 0].astype(int)
    places = []
    for index in range(8):
        rows, columns = np.nonzero((sheet == round(255 * (index + 1) / 10)).all(axis=2))
        assert len(rows) >= 120 * 80
        places.append((np.median(rows), np.median(columns)))
    assert [p[1] for p in places[:4]] == sorted(p[1] for p in places[:4]) and places[0][1] == places[4][1]
    assert places[4][0] - places[0][0] > 120
    photo_columns = np.nonzero(grey == 64)[1]
    assert np.median(photo_columns) < places[0][1] - 40
    assert (grey[-60:] < 100).any()  # the scores are written below
    with pytest.raises(ValueError, match="7 views"):
        contact_sheet(photo, views[:7], ["x"] * 7, [])
