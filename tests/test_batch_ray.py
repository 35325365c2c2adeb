"""The same jobs on a local Ray cluster: a worker that is killed loses nothing, and every outcome lands once."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import batch_jobs
import pytest

from hdx_cli.batch import core, manifest, on_ray
from hdx_cli.batch.job import Outcome, Task
from hdx_cli.errors import ResourceError, UsageError

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed (the extra `cluster`)")
SETTINGS = core.Settings()


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_the_hint_is_the_extra() -> None:
    with pytest.raises(UsageError, match="not installed") as raised:
        on_ray.connect("auto")
    assert "hdx-cli[cluster]" in (raised.value.hint or "")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    """Two cores of this machine as a cluster."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        object_store_memory=100_000_000, _memory=8_000_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray's own
@needs_ray
def test_two_actors_one_of_them_killed(cluster: None, tmp_path: Path) -> None:
    out = tmp_path.resolve() / "out"
    contents = {"a": "once", "b": "kill", "c": "bad", **{f"p{number}": f"text {number}" for number in range(8)}}
    photos = []
    for name, content in contents.items():
        photos.append(out.parent / f"{name}.jpg")
        photos[-1].write_text(content)
    landed: list[tuple[str, str]] = []

    def engine(tasks: list[Task], report: core.Report):
        for task, outcome in on_ray.outcomes(tasks, report, job=batch_jobs.by_content):
            landed.append((Path(task.run).name, outcome.state))
            yield task, outcome

    entries = core.run(out, core.plan(out, photos, SETTINGS), SETTINGS, engine)
    assert Counter(name for name, _ in landed) == Counter(contents.keys())  # each once
    states = {Path(photo).stem: entry.state for photo, entry in entries.items()}
    assert states.pop("b") == "failed" and states.pop("c") == "rejected" and set(states.values()) == {"done"}
    assert entries[photos[1]].code == "E_WORKER_DIED"
    log = Counter((out / "made.log").read_text().splitlines())
    assert log == Counter(f"{name} new" for name in states)  # nobody's work was done twice
    pids = Counter(entry.warnings[0][1] for entry in entries.values() if entry.state == "done")
    assert str(os.getpid()) not in pids and max(pids.values()) > 1  # actors are kept
    # the same bytes as processes of this machine make
    for name in states:
        assert (out / name / "a.txt").read_text() == contents[name][::-1]
    again = core.plan(out, photos, SETTINGS)
    assert [Path(task.run).name for task in again.tasks] == ["b"]
    assert {entry.state for entry in manifest.read(out).values()} >= {"done", "rejected"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@needs_ray
def test_no_gpu_in_the_cluster(cluster: None, tmp_path: Path) -> None:
    engine = partial(on_ray.outcomes, job=batch_jobs.by_content)
    with pytest.raises(ResourceError, match="no GPU"):
        list(engine([Task("/a.jpg", str(tmp_path / "a"), device="cuda")], lambda update: None))
    assert list(engine([], lambda update: None)) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@needs_ray
def test_closing_ends_the_actors(cluster: None, tmp_path: Path) -> None:
    import ray

    for name, content in (("a", "1"), ("b", "slow")):
        (tmp_path / f"{name}.jpg").write_text(content)
    tasks = [Task(str(tmp_path / f"{name}.jpg"), str(tmp_path / "out" / name)) for name in "ab"]
    working = on_ray.outcomes(tasks, lambda update: None, job=batch_jobs.by_content)
    task, outcome = next(working)
    assert task == tasks[0] and isinstance(outcome, Outcome) and outcome.state == "done"
    working.close()
    for _ in range(100):
        if ray.available_resources().get("CPU") == 2:
            break
        time.sleep(0.1)
    assert ray.available_resources().get("CPU") == 2
