"""``hdx eval PRED GT``: folders of pictures in, scores and tables out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..images import save_image
from ..progress import Progress, Silent
from ..run_folder import write_outside
from . import protocol, tables
from .folders import Picture, Subject, find_subjects, read_picture


def evaluate(
    predicted: Path,
    true: Path,
    networks: protocol.Networks,
    input_view: int = 0,
    seed: int = 0,
    progress: Progress = Silent(),
) -> tuple[dict[str, Any], np.ndarray]:
    """Everything the protocol says about two folders, and a grid of pictures [H W 3] (8 bit) of the first people.

    Args:
        predicted, true: as ``folders.find_subjects`` takes them.
        input_view: the view that the method has seen.
        seed: of the bootstrap.

    Raises:
        NothingToDo, InputRejected: as ``folders.find_subjects`` and ``folders.read_picture``.
    """
    subjects = find_subjects(predicted, true, progress, input_view)
    progress.start("views", sum(len(subject.views) for subject in subjects))
    rows, features, shown = [], [], []
    for subject in subjects:
        cells: list[list[np.ndarray]] = [[], []]
        pairs = _read(subject, progress)
        if len(shown) < tables.MOST_SHOWN:
            pairs = tables.kept_cells(pairs, cells)
        closing = read_picture(subject.closing) if subject.closing else None
        row, seen = protocol.score_views(pairs, subject.away_deg, networks, input_view, closing)
        rows.append({"name": subject.name, **row})
        features.append(seen)
        if cells[0]:
            picked = tables.chosen_views(len(cells[0]))
            shown.append((subject.name, picked, [[side[view] for view in picked] for side in cells]))
    notes: list[str] = []
    spread: dict[str, Any] = {}
    if networks.inception is not None:
        spread, notes = protocol.distribution_scores(features, input_view)
    if any(row["masks"] != "alpha" for row in rows):
        notes.append("Some pictures have no alpha: their masks are what is not white and joined to the border.")
    result = {
        "format": protocol.VERSION,
        "predicted": str(predicted),
        "true": str(true),
        "input_view": input_view,
        "summary": protocol.summary(rows, seed),
        "distributions": spread,
        "skipped": networks.skipped,
        "notes": notes,
        "subjects": rows,
    }
    lines = [
        (f"{name}, {what}", row) for name, _, sides in shown for what, row in zip(("made", "true"), sides, strict=True)
    ]
    return result, tables.grid(lines, [f"view {view}" for view in shown[0][1]])


def write(folder: Path, result: dict[str, Any], table: tables.Table, grid: np.ndarray) -> dict[str, str]:
    """``scores.json``, ``table.md``, ``table.tex`` and ``grid.png`` in a folder, which is made where it is missing.

    Raises:
        UsageError: there is a file of that name.
        ResourceError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, not a folder", hint="choose another place with -o", code="E_OUTPUT")
    texts = {
        "scores.json": json.dumps(result, indent=1, allow_nan=False) + "\n",
        "table.md": tables.markdown(table) + "\n",
        "table.tex": tables.latex(table) + "\n",
    }
    for name, text in texts.items():
        write_outside(folder / name, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))
    picture = grid.astype(np.float32) / 255
    write_outside(folder / "grid.png", lambda partial: save_image(partial, picture))
    return {name: str(folder / name) for name in (*texts, "grid.png")}


def _read(subject: Subject, progress: Progress) -> Iterator[tuple[Picture, Picture]]:
    for ours, true in subject.views:
        yield read_picture(ours), read_picture(true)
        progress.advance()
