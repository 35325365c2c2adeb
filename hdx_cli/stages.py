"""The stages that make an avatar: each loads from the run folder, calls one core function and saves. No maths, no printing.

photo -> ``observation`` -> ``body.npz`` -> ``coarse`` -> ``restored`` -> ``refined``; what is made of the avatar then is in
``outputs``. Heavy modules are imported where they are used, so that listing the commands stays quick.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import limits
from .errors import ResourceError, UsageError, WeightsError
from .limits import Budget, Sizes
from .progress import Progress, Silent
from .run_folder import RECORDS, Made, RunFolder

if TYPE_CHECKING:
    import numpy as np

    from .avatars.base import Avatar
    from .bodies.base import BodyModel
    from .bodies.fit import GivenPose
    from .camera import Cameras
    from .humanfixer.restorer import Restorer
    from .observation import Observation, Photo

AVATAR, ORBIT_VIEWS = "avatar.safetensors", 18
RESTORED_HEIGHT = Sizes.rows  # of the views that are restored, unless the network takes more; two thirds as wide
# what makes up what the photo does not show: rules, a small network in the coarse fit, or that network and HumanFixer
RESTORERS = ("none", "completion", "humanfixer")
DEFAULT_RESTORER, DEFAULT_ROUNDS = "humanfixer", 1  # the best by measure on validation people
DEFAULT_BACKBONE = "explicit"
BUNDLED = "bundled"  # the weights that come with hdx, by which other ones are taken back
# by size: the option that caps it
CAPS = {"gaussians": "most_gaussians", "side_px": "side_px", "rows": "rows"}
KINDS = {"int": int, "float": (int, float), "str": str}  # of options, as run.json keeps them
WEIGHTS = Path(__file__).with_name("humanfixer") / "humanfixer.safetensors"


@dataclass(frozen=True)
class Options:
    """What a person can ask of the stages up to the refined avatar; None leaves the choice to the stage.

    ``mask`` and ``smplx_params`` are names inside the run folder, ``smplx_use`` is start or final. ``weights`` (a name of
    ``hdx weights list``, a folder, or ``BUNDLED``), ``identity`` and ``face_pack`` take the place of the bundled restorer's own.
    ``most_gaussians``, ``side_px`` and ``rows`` are sizes (``limits.Sizes``)
    that the avatar must not exceed, set where memory does not reach for more.
    """

    person: int | None = None
    mask: str | None = None
    matting: str | None = None
    gender: str | None = None
    height_m: float | None = None
    build: str | None = None
    age: float | None = None
    body: str | None = None
    smplx_params: str | None = None
    smplx_use: str | None = None
    focal_px: float | None = None
    focal_mm35: float | None = None
    gaussians: int | None = None
    iterations: int | None = None
    backbone: str | None = None
    restorer: str | None = None
    rounds: int | None = None
    weights: str | None = None
    identity: str | None = None
    face_pack: str | None = None
    seed: int = 0
    most_gaussians: int | None = None
    side_px: int | None = None
    rows: int | None = None

    @property
    def sizes(self) -> Sizes:
        """What is to be made, before memory is asked."""
        return replace(Sizes(), **({} if self.gaussians is None else {"gaussians": self.gaussians}))

    @property
    def capped(self) -> Sizes:
        """What is to be made, no size above those that memory allows."""
        caps = {name: getattr(self, CAPS[name]) for name in CAPS if getattr(self, CAPS[name]) is not None}
        return self.sizes.within(replace(Sizes(2**31, 2**31, 2**31), **caps))

    def with_caps(self, sizes: Sizes) -> Options:
        """Options whose caps are those ``sizes`` that are below what is asked for."""
        lower = sizes.lower_than(self.sizes)
        return replace(self, **{cap: lower.get(name) for name, cap in CAPS.items()})

    @property
    def refines(self) -> bool:
        """Whether there is anything to refine with."""
        return (self.restorer or DEFAULT_RESTORER) == "humanfixer"

    @classmethod
    def remembered(cls, run: RunFolder, **changes: Any) -> Options:
        """The options the folder was last made with, with those of ``changes`` that are not None.

        Raises:
            UsageError: the folder's records hold an option that is none.
        """
        known = {field.name: KINDS[field.type.removesuffix(" | None")] for field in fields(cls)}
        kept = {name: value for name, value in run.options.items() if name in known}
        for name, value in kept.items():
            if value is not None and (not isinstance(value, known[name]) or isinstance(value, bool)):
                raise UsageError(
                    f"{run.path / RECORDS}: damaged (the option {name} is none)",
                    hint="choose another place with -o", code="E_RUN_FORMAT",
                )  # fmt: skip
        return cls(**{**kept, **{name: value for name, value in changes.items() if value is not None}})


def within(run: RunFolder, options: Options, progress: Progress = Silent(), budget: Budget | None = None) -> Options:
    """The options with the caps under which an avatar fits into memory; what had to be made smaller is told.

    A run that was begun keeps its sizes, so that what is done stays done, unless a person asks for a budget or for
    another number of Gaussians. Nothing is made smaller where the budget suffices, nor where ``budget`` is None.

    Raises:
        ResourceError: a person's budget does not suffice for the least avatar.
    """
    begun = bool(run.state["products"]) and not run.force and Options.remembered(run).sizes == options.sizes
    asked = options.with_caps(options.sizes)
    if begun and not (budget and budget.asked):
        chosen = _as_begun(run, options)
    elif budget is None:
        chosen = asked
    else:
        plan = limits.require(asked.sizes, options.restorer or DEFAULT_RESTORER, budget, options.backbone)
        chosen = asked.with_caps(plan.sizes)
    lower = chosen.capped.lower_than(asked.sizes)
    if lower:
        progress.warn(
            "W_LESS_MEMORY",
            f"to stay within memory the avatar is made with {limits.words(lower)}"
            + ("" if budget is None or begun and not budget.asked else f" ({limits.shown(budget.bytes)})"),
        )
    _keep_caps(run, chosen)
    return chosen


def _as_begun(run: RunFolder, options: Options) -> Options:
    """Options with the caps that the run was made under so far, where they have none of their own."""
    kept = {cap: run.options.get(cap) for cap in CAPS.values() if getattr(options, cap) is None}
    return replace(options, **kept)


def _keep_caps(run: RunFolder, options: Options) -> None:
    caps = {cap: getattr(options, cap) for cap in CAPS.values()}
    kept = {name: value for name, value in {**run.options, **caps}.items() if value is not None}
    if kept != run.options:
        run.remember(kept)


def _in_steps(
    run: RunFolder, product: str, options: Options, progress: Progress, make: Callable[[Options], Made]
) -> Made:
    """Make a product; where memory runs out, again with the next smaller sizes, which are told and remembered.

    Raises:
        ResourceError: memory does not suffice for the smallest either.
    """
    options = _as_begun(run, options)
    while True:
        limits.trim()  # what earlier stages, or here the arrays of a failed attempt, have left
        try:
            return make(options)
        except Exception as error:
            if not limits.is_out_of_memory(error):
                raise
        sizes = limits.smaller(options.capped, product)
        if sizes is None:
            made = options.capped
            least = {name: getattr(made, name) for name in limits.STEPS[product]}
            raise ResourceError(
                f"{run.path}: out of memory, even with {limits.words(least)}",
                hint=f"hdx fit-coarse {run.path} --gaussians {max(1000, made.gaussians // 2)}, other programs closed",
                code="E_MEMORY",
            )
        changed = sizes.lower_than(options.capped)
        options = options.with_caps(sizes)
        _keep_caps(run, options)
        progress.warn("W_LESS_MEMORY", f"out of memory; {product} is tried again with {limits.words(changed)}")


def check(
    path: Path,
    overlay: Path | None = None,
    *,
    person: int | None = None,
    mask: Path | None = None,
    progress: Progress = Silent(),
) -> dict[str, Any]:
    """Look at a photo: ``suitable``, how many ``people``, which ``person`` would be taken, and the ``findings``.

    ``overlay`` is an image file to draw all that into.

    Raises:
        InputRejected: the photo or the mask cannot be read.
    """
    from .images import load_mask, load_photo, save_image
    from .preprocess import examine
    from .preprocess.check import draw_overlay
    from .run_folder import write_outside

    progress.start("look for people")
    photo = load_photo(path)
    if mask is not None:
        photo = replace(photo, alpha=load_mask(mask, photo.rgb.shape[:2]))
    detection, findings = examine(photo, person=person)
    if overlay is not None:
        write_outside(overlay, lambda partial: save_image(partial, draw_overlay(photo, detection, findings)))
    return {
        "photo": str(path),
        "suitable": not any(finding.severity == "reject" for finding in findings),
        "people": len(detection.people),
        "person": detection.chosen + 1 if detection.people else None,
        "findings": [asdict(finding) for finding in findings],
        **({"overlay": str(overlay)} if overlay else {}),
    }


def observe(run: RunFolder, options: Options, progress: Progress = Silent(), source: Path | None = None) -> Made:
    """photo -> ``observation/``: the person found, checked and cut out. ``source`` is only for messages.

    Raises:
        InputRejected: no usable person in the photo.
    """

    def write(folder: Path) -> dict[str, Any]:
        from .images import load_mask, load_photo, save_image
        from .preprocess import observe as observe_photo
        from .preprocess.check import draw_overlay
        from .run_files import save_observation

        shown = source or run.photo
        photo = load_photo(shown)
        mask = None if options.mask is None else load_mask(run.path / options.mask, photo.rgb.shape[:2])
        observation, findings, detection = observe_photo(
            photo,
            person=options.person,
            mask=mask,
            matting=options.matting or "default",
            name=str(shown),
            progress=progress,
        )
        save_observation(folder, observation)
        save_image(folder / "overlay.jpg", draw_overlay(photo, detection, findings))
        return {"findings": [asdict(finding) for finding in findings]}

    config = {name: getattr(options, name) for name in ("person", "mask", "matting")}
    inputs = [run.state["photo"], *([options.mask] if options.mask else [])]
    return _told(run, "observation", run.make("observation", config, inputs, write), progress)


def fit_body(run: RunFolder, options: Options, progress: Progress = Silent()) -> Made:
    """``observation/`` -> ``body.npz``: the body, its pose and the camera."""

    def write(path: Path) -> dict[str, Any]:
        from . import bodies
        from .bodies import fit
        from .run_files import load_observation, save_body_fit

        progress.start("body")
        observation = load_observation(run.path / "observation")
        priors = fit.BodyPriors(gender=options.gender, height_m=options.height_m, build=options.build, age=options.age)
        model = bodies.load(options.body, options.gender)
        given, own_focal_px = _given(run, options, model)
        told = options.focal_px is not None or options.focal_mm35 is not None
        focal_px = _focal_px(run.photo, observation.photo, options if told else replace(options, focal_px=own_focal_px))
        found = fit.fit_body(model, observation, priors, focal_px, options.seed, given)
        save_body_fit(path, found)
        return {"scores": found.scores}

    names = ("gender", "height_m", "build", "age", "focal_px", "focal_mm35", "seed")
    own = {name: getattr(options, name) for name in ("body", "smplx_params", "smplx_use") if getattr(options, name)}
    inputs = ["observation", *([options.smplx_params] if options.smplx_params else [])]
    return run.make("body.npz", {name: getattr(options, name) for name in names} | own, inputs, write)


def _given(run: RunFolder, options: Options, model: BodyModel) -> tuple[GivenPose | None, float | None]:
    """The pose of another program on a body model, and the focal length in pixels of the photo that it tells."""
    if options.smplx_params is None:
        return None, None
    from .bodies import smpl_params
    from .bodies.fit import GivenPose
    from .bodies.smpl_body import SmplBody
    from .motion.skeleton import skeleton
    from .motion.smpl import on_rig

    params = smpl_params.read_params(run.path / options.smplx_params)
    final = options.smplx_use == "final"
    if isinstance(model, SmplBody):
        rotations = smpl_params.joint_rotations(params, model)
        return GivenPose(rotations, smpl_params.shape_of(params, model), final), params.focal_px
    joints = model.rest(model.default_shape).joints.astype(float)
    rig = skeleton(model.joint_names, model.parents, joints)
    return GivenPose(on_rig(smpl_params.named_rotations(params), rig), None, final), params.focal_px


def fit_coarse(run: RunFolder, options: Options, progress: Progress = Silent()) -> Made:
    """``observation/`` and ``body.npz`` -> ``coarse/``: the avatar file, 18 views of it and ``report.json``."""
    return _in_steps(run, "coarse", options, progress, lambda within: _fit_coarse(run, within, progress))


def _fit_coarse(run: RunFolder, options: Options, progress: Progress) -> Made:
    completes = options.restorer != "none"
    lower = options.capped.lower_than(options.sizes)
    side = {"max_side_px": lower["side_px"]} if "side_px" in lower else {}
    gaussians = lower.get("gaussians", options.gaussians)

    def write(folder: Path) -> dict[str, Any]:
        from .avatars import backbones, explicit
        from .avatars.turntable import seen_by_part, views_of
        from .bodies import load
        from .run_files import load_body_fit, load_observation, save_views

        observation, fit = load_observation(run.path / "observation"), load_body_fit(run.path / "body.npz")
        chosen = {"gaussians": gaussians, "iterations": options.iterations}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        settings = explicit.Settings(**chosen, **side, completion=completes)
        name, model = options.backbone or DEFAULT_BACKBONE, load(fit.body.model)
        avatar = backbones.fit_coarse(name, observation, fit, model, settings, progress, options.seed)
        backbones.write(folder, avatar)
        progress.start("views", ORBIT_VIEWS)
        save_views(folder / "views", *views_of(avatar.gaussians(), fit.camera, ORBIT_VIEWS), progress)
        report = {"scores": avatar.scores, "confidence": seen_by_part(avatar), "gaussians": len(avatar.canonical)}
        _write_report(folder, report)
        return report

    config = {"gaussians": gaussians, "iterations": options.iterations, "seed": options.seed, "completion": completes}
    backbone = {} if options.backbone in (None, DEFAULT_BACKBONE) else {"backbone": options.backbone}
    return run.make("coarse", config | side | backbone, ["observation", "body.npz"], write)


def require_restorer(options: Options = Options()) -> Path:
    """Where the weights of the options' restorer are; says at once, and not after minutes, what it would lack.

    Raises:
        WeightsError: the weights are not there, or not as they were fetched.
    """
    if options.weights not in (None, BUNDLED):
        from .weights_store import cache_folder, require

        place = Path(options.weights)
        return place if place.exists() else require(cache_folder(), options.weights)
    if not WEIGHTS.is_file():
        raise WeightsError(
            f"{WEIGHTS}: the weights of HumanFixer are missing",
            hint="add --restorer completion to do without, or reinstall hdx-cli",
        )
    return WEIGHTS


def restore(
    run: RunFolder,
    options: Options,
    progress: Progress = Silent(),
    restorer: Restorer | None = None,
    device: str = "cpu",
    offload: bool = False,
) -> Made:
    """``coarse/`` -> ``restored/views``: what HumanFixer makes of the avatar's 18 views, view 0 being the photo.

    ``restorer`` takes the place of the options' own; ``device`` and ``offload`` are where that one computes
    (``humanfixer.checkpoint.load_restorer``).

    Raises:
        WeightsError: its weights are missing or damaged.
    """
    run.require("coarse", f"hdx fit-coarse {run.path}")

    def make(within: Options) -> Made:
        return _restore(run, within, progress, restorer, device, offload)

    return _in_steps(run, "restored", options, progress, make)


def _restore(
    run: RunFolder, options: Options, progress: Progress, restorer: Restorer | None, device: str, offload: bool
) -> Made:
    coarse = run.path / "coarse"
    lower = options.capped.lower_than(options.sizes)
    rows = {"rows": lower["rows"]} if "rows" in lower else {}
    origin = {name: getattr(options, name) for name in ("weights", "identity", "face_pack")}
    origin = {name: value for name, value in origin.items() if value not in (None, BUNDLED)}

    def write(folder: Path) -> dict[str, Any]:
        from .avatars.avatar_file import read_avatar
        from .avatars.turntable import closed_in
        from .camera import orbit_of
        from .run_files import load_body_fit, load_observation, save_views

        fixer = restorer or restorer_of(options, device, offload)
        avatar, observation = read_avatar(coarse), load_observation(run.path / "observation")
        camera = load_body_fit(run.path / "body.npz").camera
        height = max(RESTORED_HEIGHT, fixer.model.config.height) if restorer is None else RESTORED_HEIGHT
        height = min(height, rows.get("rows", height))
        window = closed_in(avatar.gaussians().means, camera, 2 * height // 3, height)
        cameras = orbit_of(window, ORBIT_VIEWS)
        pictures = restored_pictures(fixer, avatar, observation, camera, cameras, None, options.seed, progress)
        progress.start("views", ORBIT_VIEWS)
        save_views(folder / "views", cameras, pictures, progress)
        return {"views": ORBIT_VIEWS, "rows": fixer.model.config.height if restorer is None else None}

    return run.make("restored", {"seed": options.seed} | rows | origin, ["observation", "body.npz", "coarse"], write)


def refine(run: RunFolder, options: Options, progress: Progress = Silent(), restorer: Restorer | None = None) -> Made:
    """``coarse/`` and ``restored/`` -> ``refined/``: the avatar fitted to its restored views, and ``report.json``.

    Raises:
        WeightsError: a second round needs HumanFixer, and its weights are missing or damaged.
    """
    run.require("coarse", f"hdx fit-coarse {run.path}")
    run.require("restored", f"hdx restore {run.path}")
    return _in_steps(run, "refined", options, progress, lambda within: _refine(run, within, progress, restorer))


def _refine(run: RunFolder, options: Options, progress: Progress, restorer: Restorer | None) -> Made:
    coarse, views = run.path / "coarse", run.path / "restored" / "views"
    lower = options.capped.lower_than(options.sizes)
    side = {"max_side_px": lower["side_px"]} if "side_px" in lower else {}

    def write(folder: Path) -> dict[str, Any]:
        from .avatars import backbones
        from .avatars import refine as refining
        from .avatars.turntable import seen_by_part
        from .run_files import load_body_fit, load_observation, load_views

        settings = refining.RefineSettings(**side)
        settings = replace(settings, sigmas=settings.sigmas[: options.rounds or DEFAULT_ROUNDS])
        fixer = restorer or (restorer_of(options) if len(settings.sigmas) > 1 else None)
        observation, camera = load_observation(run.path / "observation"), load_body_fit(run.path / "body.npz").camera
        photo = refining.photo_views(camera, observation.foreground, observation.alpha, settings.max_side_px)
        cameras, pictures = load_views(views)
        rows = run.record("restored").get("rows")

        def restored(avatar: Avatar, turn: int) -> refining.Views:
            made = pictures if turn == 0 else restored_pictures(
                fixer, avatar, observation, camera, cameras, settings.sigmas[turn], options.seed + turn, progress
            )  # fmt: skip
            return refining.restored_views(cameras, made, avatar, settings, rows)

        first = backbones.read(coarse)
        avatar, rounds = refining.refine_in_rounds(
            first, photo, restored, settings, progress, options.seed, backbones.refiner(first)
        )
        backbones.write(folder, avatar)
        report = {"scores": avatar.scores, "confidence": seen_by_part(avatar), "rounds": rounds}
        _write_report(folder, report)
        words = "the restored views did not make the avatar better; it stays as it was"
        return report | {"findings": [] if rounds[0]["kept"] else [{"code": "W_NOT_REFINED", "message": words}]}

    config = {"rounds": options.rounds, "seed": options.seed}
    made = run.make("refined", config | side, ["observation", "body.npz", "coarse", "restored"], write)
    return _told(run, "refined", made, progress)


def coarse_of(
    run: RunFolder, options: Options, progress: Progress = Silent(), source: Path | None = None
) -> Iterator[tuple[str, Made]]:
    """Photo -> coarse avatar, one product after the other; the options are remembered for later stages."""
    run.remember({name: value for name, value in vars(options).items() if value is not None}, options.seed)
    yield "photo", observe(run, options, progress, source)
    yield "body", fit_body(run, options, progress)
    yield "avatar", fit_coarse(run, options, progress)


def refined_of(run: RunFolder, options: Options, progress: Progress = Silent()) -> Iterator[tuple[str, Made]]:
    """Coarse avatar -> restored views and refined avatar; nothing where the options do not refine."""
    if options.refines:
        yield "restored views", restore(run, options, progress)
        yield "refined avatar", refine(run, options, progress)


def avatar_of(
    run: RunFolder, options: Options, progress: Progress = Silent(), source: Path | None = None
) -> Iterator[tuple[str, Made]]:
    """Photo -> the best avatar that the options allow.

    Raises:
        WeightsError: HumanFixer is wanted and its weights are missing, told before any work.
    """
    if options.refines:
        require_restorer(options)
    yield from coarse_of(run, options, progress, source)
    yield from refined_of(run, options, progress)


def best_avatar(run: RunFolder) -> str:
    """The product that later stages take: ``refined`` where it is wanted and up to date, else ``coarse``.

    Raises:
        NothingToDo: there is none yet.
    """
    run.require("coarse", f"hdx fit-coarse {run.path}")
    return "refined" if Options.remembered(run).refines and run.is_current("refined") else "coarse"


def _told(run: RunFolder, product: str, made: Made, progress: Progress) -> Made:
    """Pass on what was found while a product was made, also where an earlier call made it."""
    for finding in run.record(product).get("findings", []):
        progress.warn(finding["code"], finding["message"])
    return made


def restorer_of(options: Options = Options(), device: str = "cpu", offload: bool = False) -> Restorer:
    place = require_restorer(options)
    if options.weights not in (None, BUNDLED) or options.identity or device != "cpu":
        from .humanfixer.checkpoint import load_restorer

        pack = None if options.face_pack is None else Path(options.face_pack)
        return load_restorer(place, options.identity, device, offload=offload, face_pack=pack)
    stat = WEIGHTS.stat()
    return _loaded_restorer(WEIGHTS, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _loaded_restorer(path: Path, mtime_ns: int, size: int) -> Restorer:
    """Kept for as long as the file is the same: whoever makes many avatars loads it once."""
    from .humanfixer.checkpoint import load_weights
    from .humanfixer.restorer import Restorer

    return Restorer(load_weights(path))


def restored_pictures(
    restorer: Restorer, avatar: Avatar, observation: Observation, camera: Cameras, cameras: Cameras,
    sigma: float | None, seed: int, progress: Progress,
) -> np.ndarray:  # fmt: skip
    """What a restorer makes of an avatar's views, straight RGBA [C H W 4]; view 0 is the photo itself."""
    import torch

    from .avatars.turntable import straight, through_window, views_to_restore
    from .preprocess.face import face_crop

    rgb, alpha, seen = views_to_restore(avatar.gaussians(), avatar.visibility, cameras)
    photo_rgb, photo_alpha = through_window(observation.foreground, observation.alpha, camera, cameras[0])
    photo_rgb = photo_rgb * photo_alpha[..., None] + 1 - photo_alpha[..., None]
    crop = face_crop(observation)
    face = None if crop is None else torch.from_numpy(crop).float() / 255
    rgb, alpha = restorer(
        rgb, alpha, seen, photo_rgb, photo_alpha, face, sigma_start=sigma, seed=seed, progress=progress
    )
    return straight(torch.cat([photo_rgb[None], rgb[1:]]), torch.cat([photo_alpha[None], alpha[1:]]))


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _focal_px(file: Path, photo: Photo, options: Options) -> float | None:
    """Focal length in pixels of the working-size photo: from the options, else from EXIF, else None."""
    from PIL import Image

    from .images import FILM_DIAGONAL_MM

    height, width = photo.rgb.shape[:2]
    if options.focal_mm35 is not None:
        return options.focal_mm35 / FILM_DIAGONAL_MM * (width**2 + height**2) ** 0.5
    if options.focal_px is not None:
        with Image.open(file) as original:
            return options.focal_px * max(width, height) / max(original.size)
    return photo.focal_px
