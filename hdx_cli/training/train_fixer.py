"""Train HumanFixer on a folder of pairs: ``hdx train fixer PAIRS -o OUT``; several processes by ``torchrun``.

What happens at a step depends on the recipe, the pairs and the number of the step alone (``training.fixer_steps``). So
a training that was killed goes on as if it had not been, and two processes compute what one does, but for the order of
sums.

OUT gets ``humanfixer.safetensors`` (averaged weights, to restore with), ``state.safetensors`` (to go on from),
``log.jsonl`` (one line per step and per measurement), ``samples/`` (coarse, restored and true views) and
``cache-ROWS/`` (the pairs at training size).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..errors import HdxError, InputRejected, ResourceError, UsageError, WeightsError
from ..humanfixer import svd
from ..humanfixer.attention import VIEWS
from ..humanfixer.checkpoint import load_weights, save_weights
from ..humanfixer.clip import ClipImages
from ..humanfixer.diffusion import karras_sigmas
from ..humanfixer.restorer import Config, HumanFixer, open_cycle
from ..humanfixer.unet import SIZES, without_time
from ..humanfixer.vae import TemporalVae
from ..progress import Progress, Silent
from .fixer_data import Batch, Source, as_batch, find_pairs, is_held_out
from .fixer_steps import Objective, Sample, enable_checkpointing, samples_of, seed_of, trainable, without_coarse
from .recipe import Recipe, changed
from .train_humanfixer import Perceptual, averaged, load_state, part_of, save_state, scores, update_average

PULL = "hdx weights pull stabilityai/stable-video-diffusion-img2vid-xt"
STATE, WEIGHTS, LOG = "state.safetensors", "humanfixer.safetensors", "log.jsonl"
MEASURED_PEOPLE = 48  # that the statistics of latents are taken from
SHOWN_VIEWS = (0, 2, 5, 7, 9, 13)  # of a sample sheet
Encoder = Callable[[Tensor], Tensor]  # a picture [H W 3] in [0, 1] to its embedding [D], as ``humanfixer.clip``
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Pace:
    """How a training is run, which does not change what comes out of it.

    Attributes:
        micro: people at once in one process; the gradients of more are added up. None: all of its share.
        minutes: stop after so long, to go on later; None: when all steps are made.
        checkpoint_minutes, sample_steps: how often the state is saved, and sheets and scores are made (0: at the end).
        scored_people: held-out people that scores are taken of.
        device: "cpu" or "cuda".
        force: begin anew where there is a state.
        begin_from: weights of an earlier stage to begin from, if there is no state.
        pretrained: folder with Stable Video Diffusion, for that size.
    """

    micro: int | None = None
    minutes: float | None = None
    checkpoint_minutes: float = 5.0
    sample_steps: int = 500
    scored_people: int = 12
    device: str = "cpu"
    force: bool = False
    begin_from: Path | None = None
    pretrained: Path | None = None


@dataclass(frozen=True)
class Trained:
    """What a call left: the step reached, whether that was the last, and the files."""

    step: int
    done: bool
    loss: float | None
    weights: Path
    state: Path
    sheet: Path | None


def build(recipe: Recipe, pace: Pace) -> HumanFixer:
    """A new network: random, from an earlier stage, or Stable Video Diffusion's.

    Raises:
        UsageError: the size svd without its weights; WeightsError: they are damaged or do not fit.
    """
    asked = dict(
        variant=recipe.variant, identity=recipe.identity, base_blur=recipe.base_blur, sigma_start=recipe.sigma_start,
        steps=1 if recipe.start_share else 25, height=recipe.height,
    )  # fmt: skip
    codec, tensors = None, None
    if recipe.size == "svd":
        codec = _autoencoder(pace)
        # crops of faces, which the pairs hold, and an encoder for them that is trained along
        config = replace(svd.read_settings(pace.pretrained, recipe.identity), **asked, faces="crop")
        tensors = svd.load_unet(pace.pretrained, config)
    else:
        config = Config(unet=dict(SIZES[recipe.size]), residual=not recipe.without_coarse, **asked)
    torch.manual_seed(recipe.seed)
    try:
        model = HumanFixer(config, codec, pretrained=tensors)
        if pace.begin_from is not None:
            earlier = load_weights(pace.begin_from, None, codec)
            model.load_state_dict(earlier.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{pace.begin_from or pace.pretrained}: weights of another network ({reason})") from None
    return model


def train(
    pairs: Path,
    out: Path,
    recipe: Recipe,
    pace: Pace = Pace(),
    progress: Progress = Silent(),
    say: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train until the recipe is done or the time is up, going on from ``out``'s state if there is one.

    Args:
        pairs: folder of pairs (``training.fixer_data``).
        out: folder for everything that is made.
        say: told a line now and then, in the first process only.

    Raises:
        InputRejected: no pairs to train on.
        UsageError: the state is of another recipe; the batch does not divide among the processes.
        WeightsError: the state or the weights to begin from are damaged.
    """
    accelerator = Accelerator(
        cpu=pace.device == "cpu", kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )
    first = accelerator.is_main_process
    if not first:
        progress, say = Silent(), lambda line: None
    share, left = divmod(recipe.batch, accelerator.num_processes)
    if left:
        raise UsageError(f"--batch {recipe.batch}: does not divide among {accelerator.num_processes} processes")
    out.mkdir(parents=True, exist_ok=True)
    cache = out / f"cache-{recipe.height}"
    progress.start("read the pairs", None)
    with accelerator.main_process_first():
        found, rejected = find_pairs(pairs, recipe.height, cache)
    for name, reason in rejected if first else ():
        progress.warn("W_PAIR", f"{name}: left out ({reason})")
    sources = [source for source in found if not is_held_out(source.person, recipe.held_out)]
    apart = list({s.person: s for s in reversed(found) if is_held_out(s.person, recipe.held_out)}.values())[::-1]
    if not sources:
        raise InputRejected(
            f"{pairs}: no pairs to train on", hint=f"hdx train pairs SCANS -o {pairs}", code="E_NO_PAIRS"
        )

    state, fingerprint = out / STATE, seed_of(*(source.path.name for source in sources))
    model, notes, tensors = _begin(recipe, pace, state)
    if notes.get("pairs", fingerprint) != fingerprint:
        progress.warn("W_PAIRS_CHANGED", f"{pairs}: not the pairs this training began with; their order is another now")
    notes |= {"recipe": asdict(recipe), "pairs": fingerprint, "count": len(sources)}
    device = accelerator.device
    model.to(device)
    if not tensors and recipe.size != "svd":  # those of a pretrained network are 1, as it was trained
        some = as_batch([source.load() for source in sources[:MEASURED_PEOPLE]])
        some = (without_coarse(some) if recipe.without_coarse else some).to(device)
        model.measure(some.coarse, some.truth)
    learning = trainable(model, recipe)
    if recipe.checkpointing:
        enable_checkpointing(model.unet)
    optimizer = torch.optim.AdamW(
        learning.values(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    ema = part_of(tensors, "ema") or {name: value.detach().clone() for name, value in learning.items()}
    ema = {name: value.to(device) for name, value in ema.items()}
    moments = {key: part_of(tensors, key) for key in MOMENTS}
    for name in moments["step"]:
        if name in learning:
            optimizer.state[learning[name]] = {
                key: values[name].to(device if key != "step" or device.type == "cuda" else "cpu")
                for key, values in moments.items()
            }
    del tensors
    encode = _image_encoder(recipe, pace)
    objective = Objective(model, recipe, Perceptual(device) if recipe.perceptual else None)
    wrapped = accelerator.prepare(objective) if accelerator.num_processes > 1 else objective
    places = range(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    micro = min(share, pace.micro or share)
    log = _open_log(out / LOG, notes["step"]) if first else None

    def keep() -> None:
        if first:
            notes["seconds"] = round(before + time.monotonic() - began, 1)
            with _explained(out):
                save_state(state, model, ema, optimizer, notes)
                with averaged(model, ema):
                    save_weights(out / WEIGHTS, model, {"training": json.dumps(notes)})

    def measure() -> Path | None:
        if not first:
            return None
        with averaged(model, ema):
            lines, sheet = report(model, recipe, (apart or sources)[: pace.scored_people], device, encode)
        log({"step": notes["step"], "held_out": bool(apart), **lines})
        path = out / "samples" / f"step-{notes['step']:07d}.png"
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(path.name + ".part.png")
        cv2.imwrite(str(beside), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        os.replace(beside, path)
        coarse, restored = lines["coarse"], lines["restored"]
        say(f"step {notes['step']}: {len(apart)} people held out, PSNR inside {coarse['psnr']:.2f} dB coarse, "
            f"{restored['psnr']:.2f} restored; SSIM {coarse['ssim']:.3f}, {restored['ssim']:.3f}; {path}")  # fmt: skip
        return path

    learn, all_in_all = (sum(p.numel() for p in some) / 1e6 for some in (learning.values(), model.parameters()))
    say(f"{learn:.1f} of {all_in_all:.1f} M parameters learn from {len(sources)} pairs, {len(apart)} people held out; "
        f"{accelerator.num_processes} process(es), {device}, steps {notes['step']} to {recipe.steps}")  # fmt: skip
    began, before, kept, sheet, loss = time.monotonic(), notes["seconds"], time.monotonic(), None, None
    progress.start("train", recipe.steps)
    progress.advance(notes["step"])
    prepare = partial(
        samples_of, recipe, sources, places=places, channels=model.codec.channels, factor=model.codec.factor
    )
    recent: list[float] = []
    with (
        without_time(model.unet) if recipe.frames else contextlib.nullcontext(),
        ThreadPoolExecutor(1) as reader,
    ):
        following = reader.submit(prepare, step=notes["step"])
        while notes["step"] < recipe.steps:
            step = notes["step"]
            samples, following = following.result(), reader.submit(prepare, step=step + 1)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            optimizer.zero_grad(set_to_none=True)
            parts = _gradients(accelerator, wrapped, recipe, samples, micro, step, device, encode)
            norm = torch.nn.utils.clip_grad_norm_(learning.values(), recipe.clip)
            if torch.isfinite(norm):
                optimizer.step()
                update_average(ema, model, step, recipe.ema)
            elif first:
                progress.warn("W_GRADIENT", f"step {step + 1}: the gradient is not finite; the step was left out")
            late = pace.minutes is not None and time.monotonic() - began > 60 * pace.minutes
            means = torch.stack([*parts.values(), torch.tensor(float(late and first), device=device)])
            means = accelerator.reduce(means, "mean").tolist()
            notes["step"] = step + 1
            loss = sum(means[:-1])
            progress.advance()
            if first:
                log({"step": step + 1, "loss": loss, **dict(zip(parts, means, strict=False)), "gradient": float(norm),
                     "lr": recipe.rate(step), "seconds": round(before + time.monotonic() - began, 2)})  # fmt: skip
                recent.append(loss)
                if len(recent) == 50:
                    say(f"step {step + 1}: loss {np.mean(recent):.5f}, {time.monotonic() - began:.0f} s")
                    recent.clear()
            done = notes["step"] >= recipe.steps
            if first and not done and time.monotonic() - kept > 60 * pace.checkpoint_minutes:
                keep()
                kept = time.monotonic()
            if pace.sample_steps and notes["step"] % pace.sample_steps == 0 and not done:
                measure()
            if means[-1] > 0:
                break
        following.cancel()
        if loss is not None or not (out / WEIGHTS).is_file():
            keep()
            sheet = measure()
    accelerator.end_training()
    return Trained(notes["step"], notes["step"] >= recipe.steps, loss, out / WEIGHTS, state, sheet)


def _gradients(
    accelerator: Accelerator, objective: nn.Module, recipe: Recipe, samples: list[Sample], micro: int, step: int,
    device: torch.device, encode: Encoder | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Add up the gradients of a process's samples; the mean parts of their loss."""
    views = None
    if recipe.frames:
        order = torch.randperm(VIEWS, generator=torch.Generator().manual_seed(seed_of(recipe.seed, step, "views")))
        views = order[: recipe.frames].tolist()
    total: dict[str, Tensor] = {}
    for at in range(0, len(samples), micro):
        some = samples[at : at + micro]
        names = Batch.__dataclass_fields__
        batch = Batch(*(torch.cat([getattr(sample.batch, name) for sample in some]) for name in names)).to(device)
        given = (
            torch.tensor([sample.inject for sample in some], device=device),
            torch.tensor([sample.sigma for sample in some], device=device),
            torch.stack([sample.noise for sample in some]).to(device),
        )
        clip = encode and torch.cat([_token(encode, sample.photo) for sample in some]).to(device)
        last = at + micro >= len(samples)
        with contextlib.nullcontext() if last else accelerator.no_sync(objective):
            parts = {name: value.sum() / len(samples) for name, value in objective(batch, *given, views, clip).items()}
            sum(parts.values()).backward()
        for name, value in parts.items():
            total[name] = total.get(name, 0) + value.detach()
    return total


def _begin(recipe: Recipe, pace: Pace, state: Path) -> tuple[HumanFixer, dict[str, Any], dict[str, Tensor]]:
    """The network as it was left, or a new one, with notes on its training and the tensors of its state."""
    if pace.force or not state.is_file():
        return build(recipe, pace), {"step": 0, "seconds": 0.0}, {}
    try:
        config, notes, tensors = load_state(state)
        different = changed(notes["recipe"], recipe)
        if not isinstance(notes["step"], int) or not isinstance(notes["seconds"], (int, float)):
            raise ValueError("impossible notes")
    except Exception as error:  # safetensors, JSON and shapes have errors of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(
            f"{state}: not a state of this training ({reason})", hint="add --force to begin anew"
        ) from None
    if different:
        raise UsageError(
            f"{state}: the training there has other settings ({different[0]})",
            hint="choose another folder with -o, or begin anew with --force", code="E_RECIPE",
        )  # fmt: skip
    codec = _autoencoder(pace) if recipe.size == "svd" else None
    model = HumanFixer(config, codec)
    model.load_state_dict(part_of(tensors, "model"))
    return model, notes, tensors


def _autoencoder(pace: Pace) -> TemporalVae:
    """Stable Video Diffusion's.

    Raises:
        UsageError: no folder was named; WeightsError: it is not there.
    """
    if pace.pretrained is None:
        raise UsageError("--size svd: begins from Stable Video Diffusion's weights, see --pretrained", hint=PULL)
    return TemporalVae(svd.load_vae(pace.pretrained).to(pace.device))


def _image_encoder(recipe: Recipe, pace: Pace) -> Encoder | None:
    """CLIP, for the identities that have an image token.

    Raises:
        UsageError: no folder with it was named; WeightsError: it is damaged, or transformers is not installed.
    """
    if "clip" not in recipe.identity:
        return None
    folder = pace.pretrained and pace.pretrained / "image_encoder"
    if folder is None or not (folder / "config.json").is_file():
        raise UsageError(f"--identity {recipe.identity}: needs image_encoder/ in the folder of --pretrained", hint=PULL)
    return ClipImages(folder)


def _token(encode: Encoder, photo: Float[Tensor, "1 4 H W"]) -> Float[Tensor, "1 1 D"]:
    return encode(photo[0, :3].permute(1, 2, 0)).float().cpu()[None, None]


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    """A disk that is full, told in one line; the last state is whole."""
    try:
        yield
    except HdxError:
        raise
    except Exception as error:  # safetensors has an error of its own for a disk that is full
        reason = " ".join(str(error).split())[:200]
        raise ResourceError(f"{out}: the state cannot be written ({reason})", code="E_DISK") from None


def _open_log(path: Path, step: int) -> Callable[[dict[str, Any]], None]:
    """A writer of lines; what an interrupted training logged beyond its last state goes, for it comes again."""
    kept = []
    if path.is_file() and step:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
    beside = path.with_name(path.name + ".part")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)

    def write(facts: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    return write


@torch.no_grad()
def report(
    model: HumanFixer, recipe: Recipe, sources: list[Source], device: torch.device, encode: Encoder | None = None
) -> tuple[dict[str, dict[str, float]], UInt8[np.ndarray, "h w 3"]]:
    """Mean scores of coarse and restored views of some people, and a sheet of the first three of them.

    The sheet has three rows a person: coarse, restored and true views.
    """
    sigmas, coarse, restored, rows = karras_sigmas(model.config.steps, model.config.sigma_start), [], [], []
    model.eval()
    for source in sources:
        shown = as_batch([source.load()])
        pair = (without_coarse(shown) if recipe.without_coarse else shown).to(device)
        clip = encode and _token(encode, shown.photo).to(device)
        generator = torch.Generator().manual_seed(recipe.seed)
        images = model.restored(pair.coarse, pair.seen, pair.photo, pair.faces, sigmas, generator, clip=clip)
        images = open_cycle(images)[0].cpu()
        coarse.append(scores(shown.coarse[0], shown))
        restored.append(scores(images, shown))
        if len(rows) < 9:
            rows += [pair.coarse[0].cpu(), images, shown.truth[0]]
    model.train()
    means = {
        name: {key: float(np.mean([one[key] for one in found])) for key in found[0] if key != "loop"}
        for name, found in (("coarse", coarse), ("restored", restored))
    }
    sheet = torch.cat([torch.cat([row[view, :3] for view in SHOWN_VIEWS], 2) for row in rows], 1)
    return means, (sheet.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
