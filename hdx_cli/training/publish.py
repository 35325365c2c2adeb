"""Trained weights as others can use them: a folder that ``hdx weights import`` reads, and a repository of the Hub.

The folder holds ``humanfixer.safetensors``, its configuration, ``weights.json`` with the sha256 of every safetensors
file, and a model card written from what the training noted. Weights on Stable Video Diffusion's latents bring its
autoencoder (``vae/``) along.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .. import __version__, hub, weights
from .. import weights_store as store
from ..errors import HdxError, UsageError, WeightsError
from ..humanfixer.checkpoint import FORMAT, NAME, read_config, read_plan
from ..humanfixer.restorer import Config
from ..progress import Progress, Silent
from ..run_folder import sha256_of

LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail", "other")
LOG, SAMPLES = "log.jsonl", "samples"


@dataclass(frozen=True)
class Card:
    """What only the person who publishes knows.

    Attributes:
        title: of the model card.
        licence: of ``LICENCES``; "other" says that none was stated.
        data: what it was trained on, in words; "" leaves a gap that the card points out.
        limits: what it is known not to do.
    """

    title: str = "HumanFixer"
    licence: str = "other"
    data: str = ""
    limits: str = ""


def destination(text: str) -> hub.Reference | Path:
    """Where to publish: OWNER/NAME is a repository of the Hub, anything else (./a/b, /a/b, ~/a) a folder.

    Raises:
        UsageError: neither.
    """
    path = Path(text).expanduser()
    if text.startswith((".", "/", "~")) or path.is_dir() or text.count("/") != 1:
        return path
    reference = hub.parse(text)
    if "@" in text:
        raise UsageError(f"{text}: publish to a repository, not to a revision", hint=f"--to {reference.repo}")
    return reference


def lay_out(source: Path, target: Path, card: Card = Card(), vae: Path | None = None) -> list[str]:
    """Write the folder that is published; the names of its files.

    Args:
        source: a training's folder, or a humanfixer.safetensors.
        target: a new or empty folder.
        vae: folder with Stable Video Diffusion, for weights on its latents.

    Raises:
        WeightsError: the weights are missing or damaged.
        UsageError: the folder is not empty; the autoencoder is missing; another licence than those known.
        ResourceError: the disk fails.
    """
    if card.licence not in LICENCES:
        raise UsageError(f"--license {card.licence}: choose one of {', '.join(LICENCES)}")
    file = source / NAME if source.is_dir() else source
    if not file.is_file():
        raise WeightsError(f"{file}: no such file", hint=f"hdx train fixer PAIRS -o {shlex.quote(str(source))}")
    config, notes = _header(file)
    if config.codec == "vae" and (vae is None or not (vae / "vae" / "config.json").is_file()):
        raise UsageError(
            f"{file}: needs the autoencoder that it was trained with", hint="add --pretrained NAME, as for training"
        )
    with store.disk_faults(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target}: exists and is not an empty folder", code="E_OUTPUT")
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        shutil.copyfile(file, partial / NAME)
        index: dict[str, Any] = {"_class_name": "HumanFixer", "_hdx_version": __version__}
        if config.codec == "vae":
            index["vae"] = ["diffusers", "AutoencoderKLTemporalDecoder"]
            shutil.copytree(vae / "vae", partial / "vae", ignore=_only_weights)
        if "clip" in config.identity and vae is not None and (vae / "image_encoder").is_dir():
            shutil.copytree(vae / "image_encoder", partial / "image_encoder", ignore=_only_weights)
        _write_json(partial / "model_index.json", index)
        _write_json(partial / "config.json", {"_class_name": "HumanFixer", **asdict(config)})
        weights.write_lock(partial, partial / "weights.json")
        home = source if source.is_dir() else source.parent
        sheets = sorted((home / SAMPLES).glob("step-*.png")) if (home / SAMPLES).is_dir() else []
        if sheets:
            shutil.copyfile(sheets[-1], partial / "samples.png")
        text = model_card(card, asdict(config), notes, last_scores(home / LOG), sha256_of(file), bool(sheets))
        (partial / "README.md").write_text(text, encoding="utf-8")
        try:
            read_plan(partial)  # as those will who use it
        except HdxError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise WeightsError(f"{file}: {error.message.rpartition(f'{NAME}: ')[2]}", code=error.code) from None
        if target.is_dir():
            target.rmdir()
        os.replace(partial, target)
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def _only_weights(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not store.is_taken(name)}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _header(file: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration in the header of weights, and what the training noted there; no notes where none are readable.

    Raises:
        WeightsError: they are not HumanFixer's.
    """
    store.check_safetensors(file)
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
        if header.get("format") != FORMAT:
            raise ValueError(f"format {header.get('format')}, not {FORMAT}")
        config = read_config(header["config"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{file}: not HumanFixer's weights ({reason})", code="E_WEIGHTS_FORMAT") from None
    try:
        notes = json.loads(header["training"])
        return config, notes if isinstance(notes, dict) else {}
    except (KeyError, ValueError, RecursionError):
        return config, {}


def last_scores(log: Path) -> dict[str, Any]:
    """The last measurement in a training's log; empty where there is none."""
    found: dict[str, Any] = {}
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if '"restored"' in line:
                    found = json.loads(line)
    except (OSError, ValueError, RecursionError):
        pass
    return found if isinstance(found, dict) else {}


def model_card(
    card: Card, config: dict[str, Any], notes: dict[str, Any], scores: dict[str, Any], sha256: str, sheet: bool
) -> str:
    """The README.md of a repository of weights (huggingface.co/docs/hub/model-cards).

    Args:
        config: of the network; notes: of its training; scores: the last line of its log with scores; each may be empty.
        sheet: whether samples.png lies beside the card.
    """
    recipe = notes.get("recipe") if isinstance(notes.get("recipe"), dict) else {}
    svd = config.get("codec") == "vae"
    head = ["---", f"license: {card.licence}", "library_name: hdx-cli", "tags:", "- 3d", "- gaussian-splatting",
            "- humans", "- image-to-3d"]  # fmt: skip
    head += ["base_model: stabilityai/stable-video-diffusion-img2vid-xt"] if svd else []
    lines = [*head, "---", "", f"# {' '.join(card.title.split())}", ""]
    lines += [
        "A HumanFixer network for [hdx](https://pypi.org/project/hdx-cli/): it restores the 18 orbit views of a coarse",
        "Gaussian avatar made from one photo (HumanDreamer-X, arXiv 2504.03536).", "",
        "```bash", "hdx weights pull OWNER/NAME", "```", "",
    ]  # fmt: skip
    lines += [
        "**Licence.** " + ("None was stated by the publisher." if card.licence == "other" else f"{card.licence}.")
    ]
    if svd:
        lines += ["It is a derivative of Stable Video Diffusion, whose community licence applies besides."]
    data = " ".join(card.data.split()) or "Not described by the publisher: do not assume that it may be used freely."
    lines += ["", f"**Data.** {data}"]
    if isinstance(notes.get("count"), int):
        lines += [
            f"{notes['count']} pairs of coarse and true views; people held out by name: {recipe.get('held_out')}."
        ]
    lines += ["", "**Recipe.**", ""]
    if recipe:
        made = f"{notes.get('step')} of {recipe.get('steps')} steps"
        if isinstance(notes.get("seconds"), (int, float)):
            made += f" in {notes['seconds'] / 3600:.2f} hours"
        lines += [f"Made with hdx {__version__}, {made}.", "", "| setting | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in recipe.items()]
    else:
        lines += ["The weights do not say how they were trained."]
    lines += ["", "**Measured.**", ""]
    coarse, restored = scores.get("coarse"), scores.get("restored")
    if isinstance(coarse, dict) and isinstance(restored, dict):
        who = "people held out" if scores.get("held_out") else "people it was trained on: no measure of anything new"
        lines += [f"Views 1 to 17 at step {scores.get('step')}, {who}; psnr counts inside both outlines, in dB.", "",
                  "| score | coarse | restored |", "|---|---|---|"]  # fmt: skip
        lines += [f"| {name} | {coarse[name]:.3f} | {restored[name]:.3f} |" for name in coarse
                  if isinstance(coarse[name], float) and isinstance(restored.get(name), float)]  # fmt: skip
    else:
        lines += ["Nothing is known."]
    if sheet:
        lines += ["", "Three rows a person: coarse, restored, true.", "", "![samples](samples.png)"]
    limits = " ".join(card.limits.split())
    limits = limits or "Not described. Expect it to fail on bodies, clothes and poses that its data does not hold."
    lines += ["", f"**Limits.** {limits}", "", f"`{NAME}`: sha256 `{sha256}`", ""]
    return "\n".join(lines)


def upload(
    folder: Path, reference: hub.Reference, settings: hub.Settings, private: bool = False, progress: Progress = Silent()
) -> str:
    """Put a folder that ``lay_out`` made into a repository of the Hub, which is made if it is not there; its commit.

    Raises:
        WeightsError: no token, no rights, no network.
    """
    readme = folder / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("OWNER/NAME", reference.repo), encoding="utf-8")
    again = f"hdx weights publish FOLDER --to {reference.repo}"
    if settings.offline:
        raise WeightsError(f"{reference.repo}: cannot be reached offline", hint=again, code="E_WEIGHTS_NETWORK")
    progress.start(f"upload to {reference.repo}", None)
    client = hub._client(settings)
    try:
        with hub.explained(reference, settings):
            api = client.HfApi(endpoint=settings.endpoint, token=hub._token(settings))
            api.create_repo(reference.repo, private=private, exist_ok=True)
            made = api.upload_folder(
                repo_id=reference.repo, folder_path=str(folder), commit_message=f"HumanFixer by hdx {__version__}"
            )
            return str(made.oid)
    except HdxError as error:  # its hints are about pulling
        needs = error.code in ("E_WEIGHTS_AUTH", "E_WEIGHTS_REPO", "E_WEIGHTS_GATED")
        raise WeightsError(
            error.message, hint=f"hf auth login && {again}" if needs else again, code=error.code
        ) from error
