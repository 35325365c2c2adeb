"""The preview picture: the photo, eight views of the avatar beside it, and its scores."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK, FAINT = (250, 250, 248), (40, 40, 44), (130, 130, 136)
MARGIN_PX, TEXT_PX = 16, 17


def contact_sheet(
    photo: Float[np.ndarray, "H W 3"],
    views: Float[np.ndarray, "V h w 3"],
    titles: list[str],
    scores: list[tuple[str, str]],
) -> Image.Image:
    """Lay the photo and the views out in two rows, with one line of scores below.

    Args:
        photo: [H W 3] in [0, 1]; scaled to the height of both rows of views.
        views: an even number of views [V h w 3] in [0, 1], in the order they are to be seen.
        titles: one caption per view.
        scores: names and values, printed in order.

    Raises:
        ValueError: an odd number of views, or captions that do not match them.
    """
    count, height, width = views.shape[:3]
    if count % 2 or len(titles) != count:
        raise ValueError(f"{count} views and {len(titles)} titles; a sheet has two equal rows")
    columns = count // 2
    font = ImageFont.load_default(TEXT_PX)
    caption = TEXT_PX + 8
    cell_height = height + caption
    photo_height = 2 * cell_height - caption
    photo_width = round(photo.shape[1] * photo_height / photo.shape[0])
    lines = _wrapped(scores, photo_width + columns * (width + MARGIN_PX), font)
    sheet = Image.new(
        "RGB",
        (
            2 * MARGIN_PX + photo_width + columns * (width + MARGIN_PX),
            2 * MARGIN_PX + 2 * cell_height + MARGIN_PX + len(lines) * (TEXT_PX + 8),
        ),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    sheet.paste(_image(photo).resize((photo_width, photo_height), Image.Resampling.LANCZOS), (MARGIN_PX, MARGIN_PX))
    draw.text((MARGIN_PX, MARGIN_PX + photo_height + 4), "photo", FAINT, font)
    for index, (view, title) in enumerate(zip(views, titles, strict=True)):
        left = 2 * MARGIN_PX + photo_width + (index % columns) * (width + MARGIN_PX)
        top = MARGIN_PX + (index // columns) * cell_height
        sheet.paste(_image(view), (left, top))
        draw.text((left, top + height + 4), title, FAINT, font)
    for index, line in enumerate(lines):
        draw.text((MARGIN_PX, 2 * MARGIN_PX + 2 * cell_height + index * (TEXT_PX + 8)), line, INK, font)
    return sheet


def _wrapped(scores: list[tuple[str, str]], width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    lines: list[str] = []
    for name, value in scores:
        entry = f"{name} {value}"
        if lines and font.getlength(f"{lines[-1]}    {entry}") <= width:
            lines[-1] += f"    {entry}"
        else:
            lines.append(entry)
    return lines


def _image(pixels: Float[np.ndarray, "h w 3"]) -> Image.Image:
    return Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
