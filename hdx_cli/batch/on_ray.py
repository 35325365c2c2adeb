"""Workers as actors of a Ray cluster: the same job, the same manifest. The folders must be reachable from all machines.

Ray only carries tasks and outcomes. What was finished is known from the manifest, so it needs no memory of its own, and
an outcome lands once: a photo leaves the list of the running ones before its outcome is given on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

from ..errors import ResourceError, UsageError
from ..limits import shown
from .core import Report, Update, worker_bytes
from .job import Job, Outcome, Task, attempt, job_named, name_of
from .processes import PULSE_S, THREADS, TRIES, lost


class Actor:
    """What runs on a worker of the cluster: does one task after the other and keeps what it has imported."""

    def __init__(self, job: str):
        self._job = job_named(job)

    def do(self, task: dict[str, Any]) -> dict[str, Any]:
        """A task's fields -> its outcome's."""
        return asdict(attempt(self._job, Task(**task), lambda stage: None))


def connect(address: str) -> None:
    """Join a cluster, ``auto`` being the one that runs on this machine; does nothing where one is joined already.

    Raises:
        UsageError: ray is not installed.
        ResourceError: no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--ray: ray is not installed", hint="pip install 'hdx-cli[cluster]'", code="E_NO_RAY"
        ) from None
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ResourceError(f"--ray {address}: no cluster ({text})", hint="ray start --head", code="E_NO_RAY") from None


def outcomes(
    tasks: list[Task], report: Report, *, job: Job, address: str = "auto", jobs: int | None = None
) -> Generator[tuple[Task, Outcome], None, None]:
    """Do tasks on a cluster; as ``processes.outcomes``.

    Args:
        job: a function of a module that is installed on all machines.
        jobs: how many actors; as many as the cluster has cores and memory for unless told. On cuda, and
            on auto where the cluster has GPUs, each takes a GPU.

    Raises:
        UsageError, ResourceError: as ``connect``.
    """
    connect(address)
    import ray

    has = ray.cluster_resources()
    devices = {task.device for task in tasks}
    on_gpu = "cuda" in devices or ("auto" in devices and has.get("GPU", 0) >= 1)
    each = max((task.memory or worker_bytes(task.options) for task in tasks), default=1)
    shares = {"num_cpus": 1, "num_gpus": 1 if on_gpu else 0, "memory": each}
    most = int(has.get("GPU", 0)) if on_gpu else min(int(has.get("CPU", 1)), int(has.get("memory", 0)) // each)
    if most < 1:
        raise ResourceError(
            f"--ray: the cluster has no {'GPU' if on_gpu else f'core with {shown(each)} of memory'} to spare",
            code="E_RAY_SPACE",
        )
    kind = ray.remote(Actor).options(**shares, max_restarts=0, runtime_env={"env_vars": THREADS})
    waiting = deque((task, 1) for task in tasks)
    count = min(jobs or most, most, len(tasks))
    actors = {number: kind.remote(name_of(job)) for number in range(count)}
    running: dict[Any, tuple[int, Task, int]] = {}

    def give(number: int) -> None:
        task, tries = waiting.popleft()
        running[actors[number].do.remote(asdict(task))] = (number, task, tries)
        report(Update(number, task, "begin"))

    try:
        for number in actors:
            give(number)
        while running:
            ended, _ = ray.wait(list(running), num_returns=1, timeout=PULSE_S)
            for reference in ended:
                number, task, tries = running.pop(reference)
                try:
                    outcome = Outcome(**ray.get(reference))
                except ray.exceptions.RayError as error:  # the actor or its machine is gone
                    if tries < TRIES:
                        waiting.append((task, tries + 1))
                        outcome = None
                    else:
                        outcome = lost(task, f"the worker died, {TRIES} times ({type(error).__name__})")
                    ray.kill(actors[number])
                    actors[number] = kind.remote(name_of(job))
                if outcome is not None:
                    report(Update(number, task, outcome=outcome))
                    yield task, outcome
                if waiting:
                    give(number)
    finally:
        for actor in actors.values():
            ray.kill(actor)
