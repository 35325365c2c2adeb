"""Scores as tables (Markdown, LaTeX) and pictures side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from ..images import resize
from .folders import Picture
from .perceptual import PERCEPTUAL_NAME
from .protocol import DISTANCE, SETS

# score -> what a table calls it, whether more (1) or less (-1) is better or neither, and digits after the point
COLUMNS = {
    "psnr_full_db": ("PSNR full", 1, 2),
    "psnr_crop_db": ("PSNR crop", 1, 2),
    "psnr_fg_db": ("PSNR fg", 1, 2),
    "ssim_full": ("SSIM full", 1, 4),
    "ssim_crop": ("SSIM crop", 1, 4),
    "iou": ("mask IoU", 1, 4),
    "sharpness": ("sharpness", 0, 2),
    "lpips_alex_full": ("LPIPS alex full", -1, 4),
    "lpips_alex_crop": ("LPIPS alex crop", -1, 4),
    "lpips_vgg_full": ("LPIPS vgg full", -1, 4),
    "lpips_vgg_crop": ("LPIPS vgg crop", -1, 4),
    DISTANCE: (PERCEPTUAL_NAME, -1, 3),
    "identity_cosine": ("ArcFace cosine", 1, 3),
}
EXPLAINED = (
    "PSNR in dB; full: the picture over white, crop: the square about the true mask at 512 px, fg: pixels of the "
    "person in either picture. Sharpness: 1 is as much detail as the truth. Intervals: 95 %, bootstrap over people."
)
CELL_PX, MOST_SHOWN, MOST_COLUMNS = 200, 12, 9
INK, PAPER = (40, 40, 44), (235, 235, 235)


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column being names.

    Attributes:
        better: per column but the first, whether more (1) or less (-1) is better, or neither (0).
        notes: lines below the table.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    better: tuple[int, ...]
    notes: tuple[str, ...] = ()


def table_of(result: dict[str, Any]) -> Table:
    """What ``evaluate`` found, a row per set of views."""
    found = result["summary"]
    there = [score for score in COLUMNS if score in found["all"]]
    header = ["views", *(COLUMNS[score][0] for score in there)]
    better = [COLUMNS[score][1] for score in there]
    skipped = [name for name in ("LPIPS",) if name in result["skipped"]]
    rows = []
    for name, title in SETS.items():
        cells = [shown(found[name].get(score), COLUMNS[score][2]) for score in there]
        rows.append([title, *cells, *("skipped" for _ in skipped)])
    spread = result["distributions"]
    if spread:
        for metric, digits in (("fid", 2), ("kid", 5)):
            for row, name in zip(rows, SETS, strict=True):
                value = spread.get(name, {}).get(metric)
                row.append(f"{value:.{digits}f}" if isinstance(value, float) else "skipped" if value else "")
    else:
        rows = [[*row, *("skipped" if name in ("all", "without_input") else "" for _ in "fk")]
                for row, name in zip(rows, SETS, strict=True)]  # fmt: skip
    header += [*skipped, "FID", "KID"]
    better += [-1] * (len(skipped) + 2)
    people = len(result["subjects"])
    views = sorted({len(subject["views"]) for subject in result["subjects"]})
    title = f"{people} {'person' if people == 1 else 'people'}, {'/'.join(map(str, views))} views each"
    notes = [EXPLAINED, *_orbit_lines(found["orbit"])]
    notes += [f"{name}: {why}" for name, why in result["skipped"].items()]
    notes += [
        f"{metric.upper()}, {SETS[name]}: {value}"
        for name, values in spread.items()
        for metric, value in values.items()
        if isinstance(value, str)
    ]
    notes += result["notes"]
    return Table(title, tuple(header), tuple(map(tuple, rows)), tuple(better), tuple(notes))


def shown(value: dict[str, Any] | None, digits: int) -> str:
    """A mean with its interval, where there is one."""
    if value is None:
        return ""
    text = f"{value['mean']:.{digits}f}"
    return text if value["low"] is None else f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def markdown(table: Table) -> str:
    """The table in Markdown: title, table, notes as a list."""
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    header = [table.header[0], *(h + arrows[b] for h, b in zip(table.header[1:], table.better, strict=True))]
    lines = [table.title, "", "| " + " | ".join(header) + " |", "|" + "|".join(["---"] * len(header)) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)])


def latex(table: Table) -> str:
    """The table for LaTeX with booktabs; the notes are comments."""
    arrows = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}
    header = [escaped(table.header[0])]
    header += [escaped(h) + arrows[b] for h, b in zip(table.header[1:], table.better, strict=True)]
    lines = [f"% {note}" for note in (table.title, *table.notes)]
    lines += [
        r"\begin{tabular}{l" + "r" * len(table.better) + "}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
    ]
    lines += [" & ".join(map(escaped, row)) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]).replace("\r", "")


def escaped(text: str) -> str:
    """Text for LaTeX. A row must not begin with a bracket after a line break, so intervals are braced."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {mark: "\\" + mark for mark in "&%$#_{}"}
    text = "".join(special.get(letter, letter) for letter in text)
    return text.replace("[", "{[}")


def chosen_views(count: int) -> list[int]:
    """Up to nine views evenly round."""
    return sorted({round(index * count / min(count, MOST_COLUMNS)) for index in range(min(count, MOST_COLUMNS))})


def cell(picture: Picture) -> Float32[np.ndarray, "h w 3"]:
    """A view small enough for a grid."""
    height, width = picture.rgb.shape[:2]
    return resize(picture.rgb.numpy(), CELL_PX, max(1, min(4 * CELL_PX, round(width * CELL_PX / height))))


def kept_cells(
    pairs: Iterable[tuple[Picture, Picture]], into: list[list[np.ndarray]]
) -> Iterator[tuple[Picture, Picture]]:
    """Hand pairs of pictures through and keep small ones of both sides in ``into`` [predicted, true]."""
    for pair in pairs:
        for side, picture in zip(into, pair, strict=True):
            side.append(cell(picture))
        yield pair


def grid(rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Rows of small pictures with a title each, and captions over the columns. Pictures [h w 3] are in [0, 1]."""
    gap, text_px, title_px = 4, 13, 150
    font = ImageFont.load_default(text_px)
    widths = [max(row[i].shape[1] for _, row in rows if i < len(row)) for i in range(max(len(row) for _, row in rows))]
    size = (title_px + sum(widths) + gap * (len(widths) + 1), 22 + len(rows) * (CELL_PX + gap))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (title, pictures) in enumerate(rows):
        top = 22 + index * (CELL_PX + gap)
        for line, text in enumerate(_wrapped(title, title_px - 8, font)[:8]):
            draw.text((4, top + 4 + line * (text_px + 3)), text, INK, font)
        left = title_px + gap
        for column, picture in enumerate(pictures):
            pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (left, top))
            if index == 0 and column < len(columns):
                draw.text((left + 2, 3), columns[column], INK, font)
            left += widths[column] + gap
    return np.asarray(sheet)


def _wrapped(text: str, width_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _orbit_lines(orbit: dict[str, Any]) -> list[str]:
    lines = []
    if "seam_gap_db" in orbit:
        lines.append(
            f"Seam gap {shown(orbit['seam_gap_db'], 2)} dB, of the true views {shown(orbit['true_seam_gap_db'], 2)} dB "
            "(PSNR of the last and the first view less that of other neighbours; below 0 the orbit breaks there)."
        )
    if "loop_gap_db" in orbit:
        lines.append(f"Loop gap {shown(orbit['loop_gap_db'], 2)} dB (PSNR of the first view and the closing one).")
    return lines
