"""``hdx eval suite``: avatars of people whose true views are known, stage by stage, in one table.

Everything is kept in the output folder and taken up again: avatars in run folders, scores in ``scores.jsonl``, a line
per person and method, scored again when the avatar has changed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..avatars.avatar_file import read_description
from ..errors import HdxError, InputRejected
from ..images import save_image
from ..progress import Progress, Silent
from ..run_folder import RECORDS, RunFolder, sha256_of, write_outside
from . import protocol, tables
from .folders import Picture
from .metrics import away_from, bootstrap_interval
from .people import Person, blurred_views, kept_avatars, load_people, read_kept, restored, seen, true_cameras

RESTORED = "restored"
SHOWN_SCORES = ("psnr_full_db", "psnr_crop_db", "psnr_fg_db", "ssim_full", "iou", "sharpness")


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes:
        height: of the scored pictures, px.
        blurs_px: sigmas of the blur control in px of pictures 960 px high; none without.
        base: the method that is blurred and that differences are counted from; the best avatar unless told.
        limit: how many people; all unless told.
        restorer, seed: as for ``hdx create``, where avatars have to be made.
    """

    height: int = 480
    blurs_px: tuple[float, ...] = (2.0, 5.0, 15.0)
    base: str | None = None
    limit: int | None = None
    restorer: str | None = None
    seed: int = 0


def run_suite(
    people_folder: Path,
    runs: Path,
    output: Path,
    networks: protocol.Networks,
    settings: Settings = Settings(),
    progress: Progress = Silent(),
) -> tuple[dict[str, Any], tables.Table]:
    """Make what avatars are missing, score all, and sum up: the result and its table, both also written to ``output``.

    Args:
        people_folder: as ``people.load_people`` takes it.
        runs: RUNS/NAME/METHOD/avatar.json, as run folders of hdx are laid out; missing ones are made.
        output: for ``scores.jsonl``, ``suite.json``, ``table.md``, ``table.tex``, ``grid.png``.

    Raises:
        NothingToDo: no people. InputRejected: nobody could be scored.
    """
    people = load_people(people_folder, settings.limit)
    output.mkdir(parents=True, exist_ok=True)
    known = _Scores(output / "scores.jsonl", settings, networks)
    failed: dict[str, str] = {}
    for person in people:
        try:
            run = runs / person.name
            if not kept_avatars(run):
                make_avatars(person, run, output, settings, progress)
            _score_person(person, run, output, networks, settings, known, progress)
        except HdxError as error:
            failed[person.name] = error.message
            progress.warn("W_NOT_SCORED", f"{person.name}: {error.message}")
    if len(failed) == len(people):
        raise InputRejected(f"{people_folder}: nobody could be scored; the first: {next(iter(failed.values()))}")
    result = sum_up([person.name for person in people if person.name not in failed], known, networks, settings)
    result["failed"] = failed
    table = table_of(result)
    for name, text in (
        ("suite.json", json.dumps(result, indent=1, allow_nan=False)), ("table.md", tables.markdown(table)),
        ("table.tex", tables.latex(table)),
    ):  # fmt: skip
        write_outside(output / name, lambda partial, text=text: partial.write_text(text + "\n", encoding="utf-8"))
    picture = _grid(output, result).astype(np.float32) / 255
    write_outside(output / "grid.png", lambda partial: save_image(partial, picture))
    return result, table


def make_avatars(person: Person, run: Path, output: Path, settings: Settings, progress: Progress) -> None:
    """Photo -> avatars, as ``hdx create`` makes them, in a run folder of hdx."""
    from .. import stages

    pixels = person.photo().astype(np.float32) / np.float32(255)
    photo = output / "photos" / f"{person.name}.png"
    write_outside(photo, lambda partial: save_image(partial, pixels))
    focal_px = float(person.photo_K[0, 0]) if person.focal_is_known else None
    options = stages.Options(focal_px=focal_px, restorer=settings.restorer, seed=settings.seed)
    with RunFolder.create(run, photo, seed=settings.seed) as folder:
        for _ in stages.avatar_of(folder, options, progress, photo):
            pass


def sum_up(names: list[str], known: _Scores, networks: protocol.Networks, settings: Settings) -> dict[str, Any]:
    """Means of the people who have all methods, FID and KID, and differences from the base, without the input view."""
    methods = list(dict.fromkeys(method for name in names for method in known.methods(name)))
    common = [name for name in names if all(method in known.methods(name) for method in methods)]
    if not common:
        raise InputRejected(f"nobody of {len(names)} people has all of: {', '.join(methods)}")
    base = settings.base or next(method for method in reversed(methods) if not _is_control(method))
    rows = {method: [known.methods(name)[method] for name in common] for method in methods}
    found: dict[str, Any] = {
        "format": protocol.VERSION, "people": common, "left_out": [name for name in names if name not in common],
        "height": settings.height, "base": base, "skipped": networks.skipped, "notes": [], "methods": {},
    }  # fmt: skip
    for method in methods:
        one: dict[str, Any] = {"summary": protocol.summary(rows[method], settings.seed), "distributions": {}}
        if networks.inception is not None:
            features = [known.features(name, method) for name in common]
            one["distributions"], found["notes"] = protocol.distribution_scores(features)
        gains = [
            row["means"]["without_input"]["psnr_fg_db"] - other["means"]["without_input"]["psnr_fg_db"]
            for row, other in zip(rows[method], rows[base], strict=True)
        ]
        low, high = bootstrap_interval(np.array(gains), settings.seed) if len(gains) > 1 else (None, None)
        one["psnr_fg_gain_db"] = {"mean": float(np.mean(gains)), "low": low, "high": high, "people": len(gains)}
        one["better"] = sum(gain > 0 for gain in gains)
        found["methods"][method] = one
    blurs = [method for method in methods if _is_control(method)]
    found["best_blur"] = max(blurs, key=lambda method: _mean(found, method, "psnr_fg_db"), default=None)
    return found


def table_of(result: dict[str, Any]) -> tables.Table:
    """A row per method: with the input view as papers report, then without it, and the gain over the base."""
    methods = [m for m in result["methods"] if not _is_control(m) or m == result["best_blur"]]
    first = result["methods"][methods[0]]["summary"]["without_input"]
    nets = [score for score in first if score.startswith("lpips") or score in (protocol.DISTANCE, "identity_cosine")]
    columns = [
        ("all", "psnr_full_db"),
        ("all", "ssim_full"),
        *(("all", net) for net in nets if net.startswith("lpips")),
    ]
    columns += [("without_input", score) for score in (*SHOWN_SCORES, *nets) if score in first]
    title = f"{len(result['people'])} people, pictures {result['height']} px high"
    header = ["method", *(tables.COLUMNS[s][0] + (", all views" if name == "all" else "") for name, s in columns)]
    better = [tables.COLUMNS[score][1] for _, score in columns]
    rows = []
    for method in methods:
        one = result["methods"][method]
        cells = [f"{one['summary'][name][score]['mean']:.{tables.COLUMNS[score][2]}f}"
                 if score in one["summary"][name] else "" for name, score in columns]  # fmt: skip
        spread = one["distributions"].get("all", {})
        for metric, digits in (("fid", 2), ("kid", 5)):
            value = spread.get(metric)
            cells.append(f"{value:.{digits}f}" if isinstance(value, float) else "skipped")
        if "LPIPS" in result["skipped"]:
            cells.append("skipped")
        gain = "" if method == result["base"] else tables.shown(one["psnr_fg_gain_db"], 2)
        cells += [gain, "" if method == result["base"] else f"{one['better']}/{len(result['people'])}"]
        rows.append((method, *cells))
    header += ["FID, all views", "KID, all views", *(["LPIPS"] if "LPIPS" in result["skipped"] else [])]
    better += [-1] * (3 if "LPIPS" in result["skipped"] else 2)
    header += [f"PSNR fg over {result['base']}", "better for"]
    notes = [tables.EXPLAINED, 'Columns that do not say "all views" leave the input view out.']
    if result["best_blur"]:
        tried = [m for m in result["methods"] if _is_control(m)]
        notes.append(f"{result['best_blur']}: the best for PSNR fg on these very people, of {', '.join(tried)}.")
    notes += [f"{name}: {why}" for name, why in result["skipped"].items()]
    spread = result["methods"][methods[0]]["distributions"]
    notes += [f"{metric.upper()}: {value}" for metric, value in spread.get("all", {}).items() if isinstance(value, str)]
    notes += [f"not scored: {name}: {why}" for name, why in result["failed"].items()]
    notes += [f"{name}: left out, as a method is missing" for name in result["left_out"]] + result["notes"]
    return tables.Table(title, tuple(header), tuple(rows), (*better, 1, 0), tuple(notes))


class _Scores:
    """The kept results: a line of JSON per person and method, read once and appended to."""

    def __init__(self, path: Path, settings: Settings, networks: protocol.Networks):
        self.path = path
        self.networks = networks
        self.key = {
            "version": protocol.VERSION,
            "height": settings.height,
            "networks": [*networks.lpips, networks.features is not None, networks.inception is not None],
        }
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.current: dict[str, dict[str, str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
                if row["key"] == self.key:
                    self.rows.setdefault(row["person"], {})[row["method"]] = row
            except (ValueError, KeyError, TypeError, RecursionError):  # cut short by an interruption
                continue

    def expect(self, person: str, sources: dict[str, str]) -> list[str]:
        """Set what methods a person has now and what each depends on; those that are not scored yet."""
        self.current[person] = sources
        rows = self.rows.get(person, {})
        return [
            method
            for method, source in sources.items()
            if method not in rows
            or rows[method]["source"] != source
            or (self.networks.inception is not None and not self._features_file(person, method).is_file())
        ]

    def methods(self, person: str) -> dict[str, dict[str, Any]]:
        """A person's rows by method, in the order of ``expect``."""
        rows = self.rows.get(person, {})
        return {method: rows[method] for method in self.current.get(person, {}) if method in rows}

    def add(self, person: str, method: str, row: dict[str, Any], features: protocol.Features) -> None:
        if features:
            write_outside(self._features_file(person, method), lambda partial: _save_arrays(partial, features))
        line = {"key": self.key, "person": person, "method": method, "source": self.current[person][method], **row}
        self.rows.setdefault(person, {})[method] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def features(self, person: str, method: str) -> protocol.Features:
        with np.load(self._features_file(person, method), allow_pickle=False) as arrays:
            return {side: arrays[side] for side in ("predicted", "true")}

    def _features_file(self, person: str, method: str) -> Path:
        return self.path.parent / "features" / f"{_plain(person)}-{_plain(method)}.npz"


def _score_person(
    person: Person, run: Path, output: Path, networks: protocol.Networks, settings: Settings, known: _Scores,
    progress: Progress,
) -> None:  # fmt: skip
    sources = {name: read_description(run / name)["sha256"] for name in kept_avatars(run)}
    base = settings.base or next(reversed(sources))
    if base not in sources:
        raise InputRejected(f"{run}: has no avatar {base}", hint=f"choose --base from {', '.join(sources)}")
    order = dict(sources)
    if "coarse" in sources and (run / RESTORED).is_dir() and (run / RECORDS).is_file():
        at = list(order).index("coarse") + 1
        items = list(order.items())
        order = dict([*items[:at], (RESTORED, f"{sources['coarse']} {settings.seed}"), *items[at:]])
    order |= {f"{base}, blurred by {sigma:g} px": f"{sources[base]} {sigma:g}" for sigma in settings.blurs_px}
    truth_source = sha256_of(person.source)
    order = {name: hashlib.sha256(f"{source} {truth_source}".encode()).hexdigest() for name, source in order.items()}
    due = known.expect(person.name, order)
    if not due:
        return
    progress.start(f"score {person.name}", len(due))
    truth = person.truth(settings.height)
    _save_strip(output, person.name, "truth", [tables.cell(picture) for picture in truth])
    away_deg = away_from(person.cameras.viewmats[:, :3, :3].numpy())
    blurred_from: list[Picture] = []
    for method in due:
        if method == RESTORED:
            avatar, fit = read_kept(run, "coarse")
            made = restored(run, avatar, fit, true_cameras(person, fit, settings.height), settings.seed)
        elif _is_control(method):
            if not blurred_from:
                avatar, fit = read_kept(run, base)
                blurred_from = list(seen(avatar, true_cameras(person, fit, settings.height)))
            made = blurred_views(blurred_from, float(method.rsplit(" by ", 1)[1].removesuffix(" px")))
        else:
            avatar, fit = read_kept(run, method)
            made = seen(avatar, true_cameras(person, fit, settings.height))
        cells: list[list[np.ndarray]] = [[], []]
        pairs = tables.kept_cells(zip(made, truth, strict=True), cells)
        row, features = protocol.score_views(pairs, away_deg, networks)
        _save_strip(output, person.name, method, cells[0])
        known.add(person.name, method, row, features)
        progress.advance()


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _is_control(method: str) -> bool:
    return ", blurred by " in method


def _mean(result: dict[str, Any], method: str, score: str) -> float:
    return result["methods"][method]["summary"]["without_input"][score]["mean"]


def _plain(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in name)


def _strip(output: Path, person: str, method: str) -> Path:
    return output / "strips" / f"{_plain(person)}-{_plain(method)}.png"


def _save_strip(output: Path, person: str, method: str, cells: list[np.ndarray]) -> None:
    """Four views of one method side by side, 40 degrees left, right side, back, left side."""
    shown = [cells[round(len(cells) * share)] for share in (0.1, 0.28, 0.5, 0.72)]
    picture = np.concatenate(shown, axis=1)
    write_outside(_strip(output, person, method), lambda partial: save_image(partial, picture))


def _grid(output: Path, result: dict[str, Any]) -> UInt8[np.ndarray, "H W 3"]:
    """A row per person, a column per method."""
    methods = [m for m in result["methods"] if not _is_control(m) or m == result["best_blur"]]
    rows = []
    for person in result["people"][: tables.MOST_SHOWN]:
        files = [_strip(output, person, method) for method in ("truth", *methods)]
        if all(file.is_file() for file in files):
            pictures = []
            for file in files:
                with Image.open(file, formats=("PNG",)) as image:
                    pictures.append(np.asarray(image.convert("RGB"), np.float32) / np.float32(255))
            rows.append((person, pictures))
    if not rows:
        return np.full((tables.CELL_PX, tables.CELL_PX, 3), 255, np.uint8)
    return tables.grid(rows, ["truth", *methods])
