"""Runs that are killed, run out of disk or may not write, through the real commands; prints what became of each.

    python tests/bench/fault_runs.py kills [--creates 15] [--batches 15]
    python tests/bench/fault_runs.py disk|outputs|others|readonly

``kills``: SIGKILL at random moments of ``create`` and ``batch``, the same command again, and every file compared byte
by byte with a run that nobody disturbed; in JSON, times (``TIMES``) are left out. ``disk``: ``create`` on a disk that
is enlarged step by step; ``outputs``: every output on a disk with a page too little; ``others``: batch, the temporary
folder, numba's cache, stdout and stderr; ``readonly``: places that cannot be written. All but ``kills`` mount file
systems in a mount namespace of their own (Linux; root, or user namespaces). Each takes minutes on a quiet core.

They work on a copy of the package in which the long stages take fewer steps (``SHORTER``).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import hdx_cli
from hdx_cli.cli.app import SAMPLE

PRODUCTS = ("observation", "body.npz", "coarse", "restored", "refined", "exports/avatar.ply", "exports/turntable.mp4",
            "preview.png", "report.html")  # fmt: skip
TIMES = ("seconds", "finished")  # what may differ: how long a stage took, and when it ended
RECORDS = ("run.json", "batch.json", "report.jsonl")
QUICK = ("--gaussians", "2000", "--iterations", "5")
# Every stage runs, but those that take their time do so in fewer steps: (file of the package, is, becomes).
SHORTER = (
    ("avatars/refine.py", "    iterations: int = 200\n", "    iterations: int = 6\n"),
    ("avatars/refine.py", "    polish: int = 20\n", "    polish: int = 2\n"),
    (
        "outputs.py",
        "    seconds: float = 5.0\n    fps: float = 24.0\n",
        "    seconds: float = 0.5\n    fps: float = 24.0\n",
    ),
)
THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
MOST_RUNS = 4  # of a command until it has to be done
PAGE = 4096


def package_in(home: Path) -> str:
    """A copy of the package that nobody edits meanwhile, with fewer steps; the folder for ``PYTHONPATH``."""
    here = Path(hdx_cli.__file__).parent
    shutil.copytree(here, home / "package/hdx_cli")  # with the machine code that numba keeps
    for name, old, new in SHORTER:
        path = home / "package/hdx_cli" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has changed: no {old!r}"
        path.write_text(text.replace(old, new), encoding="utf-8")
    return str(home / "package")


def photos_in(folder: Path) -> None:
    """Two small photos of which an avatar can be made, and one that is rejected."""
    folder.mkdir(parents=True)
    with Image.open(SAMPLE) as sample:
        sample.resize((240, 320)).save(folder / "ann.jpg", quality=90)
        sample.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((270, 360)).save(folder / "ben.jpg", quality=90)
    Image.new("RGB", (300, 400), "grey").save(folder / "nobody.jpg")


def started(arguments: tuple[str, ...], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """hdx in a process group of its own; what it says goes into ``cwd/said``."""
    with open(cwd / "said", "w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "hdx_cli.cli.app", *arguments], cwd=cwd, stdout=said, stderr=said, text=True,
            start_new_session=True, env={**os.environ, **THREADS, **environment},
        )  # fmt: skip


def finished(arguments: tuple[str, ...], cwd: Path, **environment: str) -> tuple[int, str, float]:
    """Exit code, words and seconds of hdx, undisturbed."""
    start = time.monotonic()
    code = started(arguments, cwd, **environment).wait()
    return code, (cwd / "said").read_text(), time.monotonic() - start


def contents(folder: Path) -> dict[str, bytes | list[Any]]:
    """Every file below a folder by name; records without their times."""
    held: dict[str, bytes | list[Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name in RECORDS:
                held[str(path.relative_to(folder))] = [
                    _timeless(json.loads(part))
                    for part in (content.splitlines() if path.suffix == ".jsonl" else [content])
                ]
            else:
                held[str(path.relative_to(folder))] = content
    return held


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What is missing (-), too much (+) or of another content (!=), for people."""
    named = [f"-{name}" for name in wanted.keys() - found.keys()] + [
        f"+{name}" for name in found.keys() - wanted.keys()
    ]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name] != wanted[name]:
            where = _where(found[name], wanted[name]) if name.endswith((".json", ".jsonl")) else ""
            named.append(f"!={name}{where}")
    return sorted(named)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(held) for name, held in value.items() if name not in TIMES}
    return [_timeless(held) for held in value] if isinstance(value, list) else value


def _where(found: Any, wanted: Any) -> str:
    """The place of the first difference of two JSON values, and both."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        pairs = [(f"/{name}", found[name], wanted[name]) for name in found]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(f"/{index}", *both) for index, both in enumerate(zip(found, wanted, strict=True))]
    else:
        return f": {str(found)[:80]} instead of {str(wanted)[:80]}"
    return next((name + _where(*both) for name, *both in pairs if both[0] != both[1]), "")


# ---- kills


def stage_of(run: Path) -> str:
    """The first product that a run folder has no record of; ``*`` where something half written lies about."""
    if not (run / "run.json").is_file():
        return "begin" if run.exists() else "imports"
    made = json.loads((run / "run.json").read_bytes())["products"]
    half = "*" if list(run.rglob("*.partial*")) else ""
    return next((name for name in PRODUCTS if name not in made), "end") + half


def family_of(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents.setdefault(int(entry.read_text().rpartition(")")[2].split()[1]), []).append(int(entry.parent.name))
    family, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        family += children
        todo += children
    return family


def killed(process: subprocess.Popen[str], everyone: bool) -> bool:
    """SIGKILL to the process group, if ``everyone`` to workers and encoders of other groups too; whether it lived."""
    if process.poll() is not None:
        return False
    children = family_of(process.pid) if everyone else []
    os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.wait()
    return True


def kill_series(name: str, arguments: tuple[str, ...], codes: int, count: int, home: Path, first: int = 1) -> int:
    """Kill a command ``count`` times, run it to its end and compare; returns how often all was the same."""
    work = home / "now"  # always the same place: reports name it

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        photos_in(work / "photos")
        for photo in (work / "photos").iterdir():  # the manifest of a batch notes it
            os.utime(photo, (1_700_000_000, 1_700_000_000))
        (work / "temporary").mkdir()

    fresh()
    temporary = {"TMPDIR": str(work / "temporary")}
    code, said, duration = finished(arguments, work, **temporary)
    if code != codes:
        raise SystemExit(f"{name}: undisturbed it ends with {code}\n{said}")
    shutil.rmtree(home / f"whole-{name}", ignore_errors=True)
    shutil.copytree(work / "out", home / f"whole-{name}")
    wanted = contents(work / "out")
    usual = {path.name for path in (work / "temporary").iterdir()}  # what torch leaves there
    print(f"{name}: undisturbed {duration:.0f} s, {len(wanted)} files", flush=True)
    equal = 0
    for number in range(first, first + count):
        chance = random.Random(f"{name} {number}")
        everyone, twice = chance.random() < 0.5, chance.random() < 0.3
        hits: list[str] = []
        fresh()
        while len(hits) < 1 + twice:
            moment = chance.uniform(0, duration)
            process = started(arguments, work, **temporary)
            start = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            if not killed(process, everyone):  # it was done by then: no kill, so once more
                duration = min(duration, time.monotonic() - start)
                hits = []
                fresh()
                continue
            runs = (
                sorted(path.parent for path in (work / "out").glob("*/photo.*")) if name == "batch" else [work / "out"]
            )
            hits.append(f"{moment:.1f} s {' + '.join(stage_of(run) for run in runs) or 'imports'}")
        reruns = 0
        while reruns < MOST_RUNS:
            reruns += 1
            code, said, _ = finished(arguments, work, **temporary)
            if code == codes and "E_LOCKED" not in said:
                break
        wrong = differences(contents(work / "out"), wanted) if (work / "out").is_dir() else ["-everything"]
        wrong += [f"+TMPDIR/{path.name}" for path in (work / "temporary").iterdir() if path.name not in usual]
        wrong += [f"exit code {code}"] if code != codes else []
        equal += not wrong
        again = f", {reruns} reruns" if reruns > 1 else ""
        result = "equal" if not wrong else "NOT EQUAL: " + ", ".join(wrong[:8])
        print(
            f"{name:<7}{number:>3}  {'all' if everyone else 'group':<6}{'; '.join(hits):<60} {result}{again}",
            flush=True,
        )
    print(f"{name}: {equal} of {count} equal", flush=True)
    return equal


def kills(home: Path, creates: int, batches: int, first: int = 1) -> bool:
    """Both commands; whether everything was equal every time. Trial n has its own seed."""
    create = ("create", "photos/ann.jpg", "-o", "out", *QUICK)
    batch = ("batch", "photos", "-o", "out", "--jobs", "2", *QUICK)
    done = kill_series("create", create, 0, creates, home, first) if creates else 0
    return (kill_series("batch", batch, 7, batches, home, first) if batches else 0) + done == creates + batches


# ---- disks


class Disk:
    """A file system in memory whose free space can be set; needs a mount namespace of one's own."""

    def __init__(self, place: Path):
        self.place = place
        place.mkdir(parents=True)
        _mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", str(place))

    def used(self) -> int:
        """Bytes taken, in whole pages."""
        held = os.statvfs(self.place)
        return (held.f_blocks - held.f_bfree) * held.f_frsize

    def leave(self, free: int | None) -> None:
        """Leave so many bytes, in whole pages; None is plenty."""
        size = 1 << 30 if free is None else max(self.used() + free // PAGE * PAGE, PAGE)  # 0 would be no limit
        _mount("-o", f"remount,size={size}", str(self.place))

    def read_only(self, on: bool = True) -> None:
        _mount("-o", f"remount,{'ro' if on else 'rw'}", str(self.place))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def in_own_namespace() -> None:
    """Begin again where mounts are seen by nobody else and go with the process."""
    if os.environ.get("HDX_OWN_MOUNTS") != "1":
        os.environ["HDX_OWN_MOUNTS"] = "1"
        alone = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
        os.execvp("unshare", [*alone, sys.executable, "-u", *sys.argv])


def preload() -> None:
    """Import what the commands use, once: ``forked`` then takes no seconds to begin."""
    names = (
        "outputs avatars.explicit avatars.refine humanfixer.restorer humanfixer.checkpoint bodies.anny bodies.fit "
        "preprocess preprocess.mediapipe_models motion export.video export.html export.mesh_glb export.sheet "
        "export.archive run_files rasterize.cpu"
    )
    for name in names.split():
        importlib.import_module(f"hdx_cli.{name}")


def forked(arguments: Sequence[str], cwd: Path, said: Path | None = None, **environment: str) -> tuple[int, str]:
    """Exit code and words of hdx in a child of this process; ``said`` is what its stdout and stderr go into."""
    said = said or Path(os.environ["HDX_FAULTS"]) / "said"
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 99
        try:
            os.chdir(cwd)
            words = os.open(said, os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
            os.dup2(words, 1), os.dup2(words, 2)
            os.environ.update(environment)
            tempfile.tempdir = None
            sys.argv = ["hdx", *arguments]
            try:
                from hdx_cli.cli.app import main as hdx

                hdx()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, said.read_text() if said.is_file() else ""


def pages(path: Path) -> int:
    """Bytes of a file or of all files of a folder, in whole pages."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files)


def told(code: int, said: str, *words: str, codes: tuple[int, ...] = (6,)) -> list[str]:
    """What is wrong with how a command gave up: it should be one clear line with these words, a hint, the exit code."""
    lines = [line for line in said.splitlines() if line.startswith("hdx: ")]
    wrong = [] if code in codes else [f"exit code {code}"]
    wrong += [] if len(lines) == 1 else [f"{len(lines)} lines of complaint"]
    wrong += ["a traceback"] if "Traceback" in said else []
    wrong += [] if "  try: " in said else ["no hint"]
    return wrong + [f"does not say {word!r}" for word in words if lines and word not in lines[0]]


def shown(what: str, wrong: list[str], said: str = "") -> bool:
    """Print a row; whether nothing is wrong."""
    complaint = " / ".join(line.strip() for line in said.splitlines() if line.startswith(("hdx: ", "  try: ")))
    print(f"{what:<46}{'good' if not wrong else 'BAD (' + ', '.join(wrong[:6]) + ')'}  {complaint}", flush=True)
    return not wrong


def damage(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Files that are no longer as they were, and half written ones. Records may grow."""
    wrong = [f"lost {name}" for name in before if name not in after]
    wrong += [f"changed {name}" for name in before.keys() & after.keys()
              if before[name] != after[name] and Path(name).name not in RECORDS]  # fmt: skip
    return wrong + [f"left {name}" for name in after if ".part" in name]


def recorded(run: Path, product: str) -> bool:
    return (run / "run.json").is_file() and product in json.loads((run / "run.json").read_bytes())["products"]


def disk_create(home: Path) -> list[bool]:
    """``create`` on a disk that is enlarged step by step, so that every product and every record fails once."""
    create = ("create", str(home / "photos/ann.jpg"), "-o", "me", *QUICK)
    whole = Disk(home / "whole")
    code, said = forked(create, whole.place)
    assert code == 0, said
    wanted = contents(whole.place / "me")
    disk = Disk(home / "disk")
    run, good, failed = disk.place / "me", [], set()

    def attempt(free: int, product: str) -> None:
        disk.leave(free)
        before = contents(run)
        code, said = forked(create, disk.place)
        if code == 0 and product == PRODUCTS[-1]:
            return
        wrong = told(code, said, "No space left on device", "me") + damage(before, contents(run))
        line = next((line for line in said.splitlines() if line.startswith("hdx: ")), "")
        failed.update(
            name for name in (*PRODUCTS, "photo", "run") if line.startswith((f"hdx: me/{name}:", f"hdx: me/{name}."))
        )
        good.append(shown(f"create, {free // 1024} KB left, {product}", wrong, said))

    for free in (0, PAGE, pages(whole.place / "me/photo.jpg")):
        attempt(free, "begin")
    begun = pages(whole.place / "me/photo.jpg") + PAGE  # run.json of a page
    for index, product in enumerate(PRODUCTS):
        size = pages(whole.place / "me" / product)
        base = pages(run / "run.json") if index else begun
        for free in sorted({base + size // 2, base + size - PAGE}):
            attempt(free, product)
        if product in ("restored", "refined", "exports/turntable.mp4"):  # long messages of an encoder, long stages
            attempt(base + size // 5, product)
        if not recorded(run, product) and (run / product).exists():  # in place, but its record did not fit
            (shutil.rmtree if (run / product).is_dir() else os.unlink)(run / product)
        disk.leave(base + size + 4 * PAGE + (0 if index else pages(whole.place / "me/photo.jpg")))
        forked(create, disk.place)  # makes this product and fails at the next
    disk.leave(None)
    code, said = forked(create, disk.place)
    wrong = differences(contents(run), wanted) + ([] if code == 0 else [f"exit code {code}"])
    good.append(shown("create, enlarged: byte for byte", wrong, said))
    print(f"named as what could not be written: {', '.join(sorted(failed))}")
    return good


FILM = ("--seconds", "0.4", "--size", "160x240")
OUTPUTS: tuple[tuple[str, ...], ...] = (  # the command and what it makes
    *(("export", "me", f"new/a{suffix}") for suffix in (".ply", ".glb", ".mesh.glb", ".html", ".npz")),
    *(("export", "me", f"new/a{suffix}") for suffix in (".spz", ".splat", ".sog")),
    ("export", "me", "frames", "--motion", "walk"),
    *(("render", "me", *FILM, "-o", f"turn.{form}") for form in ("mp4", "webm", "gif")),
    ("render", "me", *FILM, "--format", "png", "-o", "turn"),
    ("animate", "me", *FILM, "--motion", "wave", "-o", "wave.mp4"),
    ("animate", "me", *FILM, "--motion", "wave"),
    ("render", "me", *FILM),
)  # fmt: skip


def disk_outputs(home: Path) -> list[bool]:
    """Every output while the disk has half of what it takes, and a page too little."""
    disk = Disk(home / "outputs")
    shutil.copytree(home / "whole/me", disk.place / "me")
    good = []
    for command in OUTPUTS:
        target = disk.place / (command[command.index("-o") + 1] if "-o" in command else command[2])
        if target.name.startswith("--"):
            target = disk.place / "me/exports" / ("wave.mp4" if "wave" in command else "turntable.mp4")
        what = f"{command[0]} {target.relative_to(disk.place)}"
        shutil.rmtree(disk.place / "new", ignore_errors=True)
        before = contents(disk.place)
        fixed = target.is_file()
        disk.leave(None)
        code, said = forked(command, disk.place)
        if code:
            good.append(shown(f"{what}, plenty", told(code, said), said))
            continue
        made, size = contents(target.parent), pages(target)
        if fixed:
            shutil.rmtree(disk.place / "me")
            shutil.copytree(home / "whole/me", disk.place / "me")
        else:
            (shutil.rmtree if target.is_dir() else os.unlink)(target)
        shutil.rmtree(disk.place / "new", ignore_errors=True)
        # a page too little: what was written last must be missed; encoders write in their own ways
        for free in sorted({size - PAGE, *([size // 2] if command[0] in ("render", "animate") else [])}):
            disk.leave(free)
            code, said = forked(command, disk.place)
            wrong = told(code, said, "No space left on device", target.stem) + damage(before, contents(disk.place))
            wrong += ["left new/"] if (disk.place / "new").exists() else []
            good.append(shown(f"{what}, {free // 1024} of {size // 1024} KB", wrong, said))
        disk.leave(None)
        code, said = forked(command, disk.place)
        good.append(shown(f"{what}, enlarged", differences(contents(target.parent), made), said))
        shutil.rmtree(disk.place / "me")
        shutil.copytree(home / "whole/me", disk.place / "me")
        if not fixed and target.exists():
            (shutil.rmtree if target.is_dir() else os.unlink)(target)
    return good


def disk_others(home: Path) -> list[bool]:
    """Other full places: batch, the temporary folder, the machine code that numba keeps, the words themselves."""
    good, full, roomy = [], Disk(home / "full"), Disk(home / "roomy")
    shutil.copytree(home / "whole/me", roomy.place / "me")
    before = contents(roomy.place)

    batch = Disk(home / "batch")
    command = ("batch", str(home / "photos"), "-o", "out", "--jobs", "1", *QUICK)
    for free in (0, 8 * PAGE, 1 << 19):
        batch.leave(free)
        code, said = forked(command, batch.place)
        held = contents(batch.place)
        wrong = told(code, said, "No space left") if code == 6 else [] if code == 7 else [f"exit code {code}"]
        wrong += [f"left {name}" for name in held if ".partial" in name]
        good.append(shown(f"batch, {free // 1024} KB left", wrong, said))
    batch.leave(None)
    code, said = forked(command, batch.place)
    made = contents(batch.place / "out/ann")
    wrong = differences(made, contents(home / "whole/me")) if code == 7 else [f"exit code {code}"]
    wrong = [name for name in wrong if "report.html" not in name]  # the page names its folder
    good.append(shown("batch, enlarged", wrong, said))

    for free in (0, 4 * PAGE):
        for command in (("export", "me", "a.html"), ("export", "me", "a.spz"), ("render", "me", *FILM, "-o", "a.mp4")):
            full.leave(free)
            code, said = forked(command, roomy.place, TMPDIR=str(full.place))
            wrong = told(code, said, str(full.place)) if code else []  # the system has other temporary folders
            wrong += damage(before, contents(roomy.place)) + [f"left {path.name}" for path in full.place.iterdir()]
            good.append(
                shown(f"{command[0]} a{Path(command[-1]).suffix}, TMPDIR {free // 1024} KB, exit {code}", wrong, said)
            )
            for path in roomy.place.glob("a.*"):
                path.unlink()
    for free in (0, 4 * PAGE):
        full.leave(free)
        cache = {"NUMBA_CACHE_DIR": str(full.place)}  # numba reads it when it begins: no fork
        done = subprocess.run(
            [sys.executable, "-m", "hdx_cli.cli.app", "render", "me", *FILM, "-o", "a.png", "--format", "png"],
            cwd=roomy.place, env={**os.environ, **cache}, capture_output=True, text=True,
        )  # fmt: skip
        wrong = [f"exit code {done.returncode}"] if done.returncode else []
        good.append(shown(f"render, numba's cache {free // 1024} KB", wrong, done.stderr))
        for path in (*full.place.iterdir(), *roomy.place.glob("a.*")):
            (shutil.rmtree if path.is_dir() else os.unlink)(path)
    for command in (("export", "me", "a.ply"), ("motions",)):
        code, _ = forked(command, roomy.place, Path("/dev/full"))
        wrong = [] if code == 6 else [f"exit code {code}"]
        good.append(shown(f"{command[0]} > /dev/full 2>&1", wrong + damage(before, contents(roomy.place))))
        done = subprocess.run(
            ["sh", "-c", '"$@" 2> /dev/full', "sh", sys.executable, "-m", "hdx_cli.cli.app", *command], cwd=roomy.place,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        good.append(
            shown(f"{command[0]} 2> /dev/full", [] if done.returncode in (0, 6) else [f"exit code {done.returncode}"])
        )
    return good


def readonly(home: Path) -> list[bool]:
    """Places that cannot be written; ``home/whole/me`` is a finished run."""
    closed, roomy, good = Disk(home / "closed"), Disk(home / "open"), []
    for place in (closed.place, roomy.place):
        shutil.copytree(home / "whole/me", place / "me")
    shutil.copy(home / "photos/ann.jpg", closed.place)
    (closed.place / "empty").mkdir()
    closed.read_only()
    at, me, photo = closed.place, str(closed.place / "me"), str(home / "photos/ann.jpg")
    create = (*QUICK, "--gaussians", "2000")
    cases: tuple[tuple[Path, tuple[str, ...], tuple[int, ...]], ...] = (
        (home, ("create", photo, "-o", str(at / "new"), *create), (6,)),
        (home, ("create", photo, "-o", str(at / "empty"), *create), (6,)),
        (home, ("create", photo, "-o", me, *create), (0, 6)),  # 0: all is done, nothing to write
        (at, ("create", "ann.jpg", *create), (6,)),
        (home, ("fit-coarse", me), (0, 6)),
        (home, ("refine", me), (6,)),
        (home, ("batch", str(home / "photos"), "-o", str(at / "out")), (6,)),
        (home, ("batch", str(home / "photos"), "-o", str(at / "empty")), (6,)),
        (home, ("check", photo, "-o", str(at / "seen.png")), (6,)),
        (home, ("render", me), (6,)),
        (home, ("animate", me, "--motion", "walk"), (6,)),
        (home, ("export", me), (0, 6)),
        (home, ("licenses", me), (0, 6)),
        *(
            (roomy.place, ("export", "me", str(at / f"a{suffix}")), (6,))
            for suffix in (".ply", ".html", ".glb", ".spz")
        ),
        *((roomy.place, ("render", "me", "-o", str(at / f"a.{form}")), (6,)) for form in ("mp4", "webm", "gif")),
        (roomy.place, ("render", "me", "--format", "png", "-o", str(at / "frames")), (6,)),
        (roomy.place, ("export", "me", str(at / "frames"), "--motion", "walk"), (6,)),
        # what needs not write there
        (home, ("export", me, "from-closed.ply"), (0,)),
        (home, ("render", me, *FILM, "-o", "from-closed.mp4"), (0,)),
    )
    before = contents(roomy.place)
    for cwd, command, codes in cases:
        start = time.monotonic()
        code, said = forked(command, cwd)
        seconds = time.monotonic() - start
        wrong = told(code, said, "Read-only file system", codes=codes) if code else []
        wrong += [] if code in codes else [f"exit code {code}"]
        wrong += damage(before, contents(roomy.place))
        words = " ".join(word.replace(str(home), "") for word in command if word not in QUICK)
        good.append(shown(f"{words[:60]}, exit {code} after {seconds:.1f} s", sorted(set(wrong)), said))
    # nothing can be written but the place of the result: a container with a read-only root
    for name in ("/tmp", "/var/tmp"):
        if not home.is_relative_to(name):
            _mount("-t", "tmpfs", "-o", "ro", "tmpfs", name)
    for command in (("export", str(roomy.place / "me"), str(roomy.place / "a.html")),
                    ("render", str(roomy.place / "me"), *FILM, "-o", str(roomy.place / "a.mp4")),
                    ("create", photo, "-o", str(roomy.place / "contained"), *create)):  # fmt: skip
        code, said = forked(command, closed.place, TMPDIR=str(closed.place))
        good.append(shown(f"only the result's place writable: {command[0]}, exit {code}",
                          told(code, said) if code else [], said))  # fmt: skip
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "disk", "outputs", "others", "readonly"])
    parser.add_argument("--creates", type=int, default=15)
    parser.add_argument("--batches", type=int, default=15)
    parser.add_argument("--first", type=int, default=1, help="number of the first trial, to go on with a series")
    args = parser.parse_args()
    if args.what != "kills":
        in_own_namespace()
    # not below /tmp, which one of the cases takes away
    with tempfile.TemporaryDirectory(prefix="hdx-faults-", dir="/dev/shm") as folder:
        home = Path(folder)
        os.environ["PYTHONPATH"] = package_in(home)
        os.environ["HDX_FAULTS"] = folder
        if args.what == "kills":
            raise SystemExit(not kills(home, args.creates, args.batches, args.first))
        os.environ.update(THREADS)
        sys.path.insert(0, os.environ["PYTHONPATH"])
        for name in [name for name in sys.modules if name.partition(".")[0] == "hdx_cli"]:
            del sys.modules[name]  # the copy with fewer steps takes its place
        preload()
        photos_in(home / "photos")
        if args.what == "disk":
            good = disk_create(home)
        else:
            (home / "whole").mkdir()
            code, said = forked(("create", str(home / "photos/ann.jpg"), "-o", "me", *QUICK), home / "whole")
            assert code == 0, said
            good = {"outputs": disk_outputs, "others": disk_others, "readonly": readonly}[args.what](home)
        print(f"{sum(good)} of {len(good)} good")
        for place in ("disk", "whole", "outputs", "full", "roomy", "batch", "closed", "open"):
            subprocess.run(["umount", "-l", str(home / place)], capture_output=True)
    raise SystemExit(not all(good))


if __name__ == "__main__":
    main()
