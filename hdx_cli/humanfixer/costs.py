"""What a restoration costs, before anything is loaded: parameters, bytes, memory and seconds.

Parameters, floating-point operations and the memory of activations are counted by running the network of full
structure on torch's meta device, which computes shapes only. Seconds are extrapolated: four kinds of work are timed
here at small sizes, and what was counted of each is divided by that speed. Compared once on a busy CPU with
the bundled network of 10.8 M parameters, it told 4.1 s where 7.0 s were taken; neither SVD's size nor any GPU ever ran.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from .attention import VIEWS
from .checkpoint import Plan
from .restorer import Conditions, HumanFixer
from .svd import header_shapes, weight_files

KINDS = {"convolution": ("convolution",), "matmul": ("addmm", "mm"), "attention": ("bmm", "baddbmm", "scaled_dot")}
BASE_BYTES = 600_000_000  # of a process that has imported torch and diffusers; measured
CLIP_TOKENS = 257


@dataclass(frozen=True)
class Work:
    """What a computation does.

    Attributes:
        operations: floating-point operations by kind (``KINDS``), a multiplication and an addition being two.
        written: bytes of all results.
        peak: most bytes that results take at one time.
    """

    operations: Mapping[str, float]
    written: float
    peak: int

    @property
    def total(self) -> float:
        return sum(self.operations.values())


class _Memory(TorchDispatchMode):
    """Counts the bytes of tensors that come into being inside, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.written = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        result = func(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_iter(result):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key in self._sizes or key in given:
                    continue
                self._sizes[key] = size
                self.live += size
                self.written += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, key)
        return result

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def count(run: Callable[[], object]) -> Work:
    """What ``run`` does, which computes without gradients, on any device."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, _Memory() as memory:
        run()
    found = {str(name): float(value) for name, value in counter.get_flop_counts().get("Global", {}).items()}
    operations = {kind: 0.0 for kind in KINDS}
    for name, value in found.items():
        short = name.removeprefix("aten.").lstrip("_")
        kind = next((kind for kind, names in KINDS.items() if short.startswith(names)), "matmul")
        operations[kind] += value
    return Work(operations, memory.written, memory.peak)


def unet_step(model: HumanFixer, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Work:
    """One step of the network on the meta device, for one person whose views have that many pixels."""
    made = _conditions(model, rows, columns)
    for part in model.unet.children():
        part.to(dtype)
    sigma = torch.ones(1, device="meta")
    return count(lambda: model(made.start, sigma, made))


def encoding(model: HumanFixer, rows: int, columns: int) -> Work:
    """The codec's way from images to latents, of all views."""
    images = torch.empty(VIEWS, 4, rows, columns, device="meta")
    return count(lambda: model.codec.encode(images))


def decoding(model: HumanFixer, rows: int, columns: int) -> Work:
    """The codec's way back, of all frames."""
    latents = _conditions(model, rows, columns).start[0]
    return count(lambda: model.codec.decode(latents, rows, columns))


def _conditions(model: HumanFixer, rows: int, columns: int) -> Conditions:
    frames = VIEWS if model.config.variant == "noncyclic" else VIEWS + 1
    height, width = -(-rows // model.codec.factor), -(-columns // model.codec.factor)

    def planes(channels: int) -> Tensor:
        return torch.empty(1, frames, channels, height, width, device="meta")

    inputs, channels = model.unet.conv_in.in_channels, model.codec.channels
    tokens = {"face": 0, "clip+face": 1}.get(model.config.identity)
    count_of = 1 if tokens is None else tokens + model.config.face_tokens
    context = torch.empty(1, count_of, model.identity.width, device="meta")
    return Conditions(planes(channels), planes(channels), planes(inputs - channels), context, planes(1))


@dataclass(frozen=True)
class Rates:
    """Speeds of a device.

    Attributes:
        operations: per second, by kind.
        written: bytes per second of element-wise work.
        seconds: how long it took to measure them.
    """

    operations: Mapping[str, float]
    written: float
    seconds: float

    def time_of(self, work: Work) -> float:
        """Seconds that some work would take at these speeds."""
        arithmetic = sum(value / self.operations[kind] for kind, value in work.operations.items())
        return arithmetic + work.written / self.written


def measure_rates(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 2) -> Rates:
    """Time a convolution, a matrix product, an attention and element-wise work of the shapes of SVD's middle levels."""
    device, began = torch.device(device), time.perf_counter()
    attend = functional.scaled_dot_product_attention
    image = torch.randn(1, 320, 24, 16, device=device, dtype=dtype)
    kernel = torch.randn(320, 320, 3, 3, device=device, dtype=dtype)
    tokens = torch.randn(768, 640, device=device, dtype=dtype)
    matrix = torch.randn(640, 2560, device=device, dtype=dtype)
    queries = torch.randn(1, 5, 1024, 64, device=device, dtype=dtype)
    wide = torch.randn(4, 320, 48, 32, device=device, dtype=dtype)

    def fastest(run: Callable[[], object]) -> float:
        taken = []
        for _ in range(repeats + 1):  # the first one sets up
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
        return max(min(taken[1:]), 1e-9)

    with torch.inference_mode():
        operations = {
            "convolution": 2 * 9 * 320 * 320 * 24 * 16 / fastest(lambda: functional.conv2d(image, kernel, padding=1)),
            "matmul": 2 * 768 * 640 * 2560 / fastest(lambda: tokens @ matrix),
            "attention": 4 * 5 * 1024 * 1024 * 64 / fastest(lambda: attend(queries, queries, queries)),
        }
        size = wide.numel() * wide.element_size()
        written = 3 * size / fastest(lambda: functional.silu(functional.group_norm(wide, 32)) + wide)
    return Rates(operations, written, time.perf_counter() - began)


@dataclass(frozen=True)
class Part:
    """One part of a restorer.

    Attributes:
        name: of it; parameters: how many; bytes: of its weights in memory.
        peak: most bytes of its activations.
        operations: floating-point operations of the whole restoration; seconds: the same in time.
    """

    name: str
    parameters: int
    bytes: int
    peak: int
    operations: float
    seconds: float


@dataclass(frozen=True)
class Costs:
    """What one restoration of one person costs.

    Attributes:
        rows, columns, frames, steps, dtype: of it.
        parts: network, codec and encoders.
        rates: that seconds were computed with.
    """

    rows: int
    columns: int
    frames: int
    steps: int
    dtype: torch.dtype
    parts: tuple[Part, ...]
    rates: Rates

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def weight_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def peak_bytes(self) -> int:
        """Memory where everything stays on one device, weights and activations."""
        return self.weight_bytes + max(part.peak for part in self.parts)

    @property
    def offloaded_bytes(self) -> int:
        """Memory of the computing device where only the working part is on it."""
        return max(part.bytes + part.peak for part in self.parts)

    def facts(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "rows": self.rows, "columns": self.columns, "frames": self.frames, "steps": self.steps,
            "dtype": str(self.dtype).removeprefix("torch."), "parameters": self.parameters,
            "weight_bytes": self.weight_bytes, "peak_bytes": self.peak_bytes, "offloaded_bytes": self.offloaded_bytes,
            "process_bytes": BASE_BYTES, "seconds": self.seconds, "parts": [vars(part) for part in self.parts],
            "rates": {"operations": dict(self.rates.operations), "written": self.rates.written},
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For people."""
        shown = [f"{self.frames} frames of {self.columns}x{self.rows}, steps of the network: {self.steps}"]
        for part in self.parts:
            shown.append(
                f"  {part.name:<14}{part.parameters / 1e6:>9.1f} M parameters {part.bytes / 1e9:>7.2f} GB  "
                f"activations {part.peak / 1e9:>6.2f} GB  {part.operations / 1e12:>9.2f} TFLOP {spell(part.seconds):>9}"
            )
        speeds = ", ".join(f"{kind} {rate / 1e9:.0f} GFLOP/s" for kind, rate in self.rates.operations.items())
        return [
            *shown,
            f"memory: {self.peak_bytes / 1e9:.2f} GB, or {self.offloaded_bytes / 1e9:.2f} GB of the device's with"
            f" --offload; and {BASE_BYTES / 1e9:.1f} GB for the process",
            f"time: about {spell(self.seconds)}",
            "counted from the configuration: parameters, operations, bytes",
            f"measured on this machine in {self.rates.seconds:.1f} s: {speeds},"
            f" element-wise {self.rates.written / 1e9:.1f} GB/s",
            "extrapolated from these: seconds",
        ]  # fmt: skip


def estimate(
    plan: Plan,
    rows: int | None = None,
    columns: int | None = None,
    steps: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    rates: Rates | None = None,
) -> Costs:
    """What it costs to restore one person with the weights of a plan; an upper bound, since white columns are left out.

    Args:
        plan: as ``checkpoint.read_plan`` gives it.
        rows, columns: of the views; None is what the weights were trained at, two thirds as wide.
        steps: None is as the weights were trained.
        device, dtype: where and how the network computes; None is float32 on a CPU and float16 elsewhere. The device
            must be there, since its speed is measured, unless ``rates`` are given.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    rows = rows or plan.config.height
    columns, steps = columns or round(rows * 2 / 3), steps or plan.config.steps
    rates = rates or measure_rates(device, dtype)
    model = plan.on_meta()
    coding = encoding(model, rows, columns), decoding(model, rows, columns)
    blurred = 2 if plan.config.residual else 1  # sharp and blurred views are encoded
    step = unet_step(model, rows, columns, dtype)
    weights = [*model.unet.parameters(), *model.identity.parameters()]
    codec = list(model.codec.network.parameters())
    parts = [
        Part("network", _numbers(weights), sum(w.numel() * w.element_size() for w in weights), step.peak,
             steps * step.total, steps * rates.time_of(step)),
        Part("codec", _numbers(codec), 4 * _numbers(codec), max(work.peak for work in coding),
             blurred * coding[0].total + coding[1].total,
             blurred * rates.time_of(coding[0]) + rates.time_of(coding[1])),
    ]  # fmt: skip
    if plan.image_encoder and plan.image_encoder.is_dir():
        shapes = header_shapes(weight_files(plan.image_encoder, "model"))
        numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
        work = 2.0 * numbers * CLIP_TOKENS
        parts.append(Part("image encoder", numbers, 4 * numbers, 0, work, work / rates.operations["matmul"]))
    frames = VIEWS if plan.config.variant == "noncyclic" else VIEWS + 1
    return Costs(rows, columns, frames, steps, dtype, tuple(parts), rates)


def _numbers(parameters: list[Tensor]) -> int:
    return sum(each.numel() for each in parameters)


def spell(seconds: float) -> str:
    """A duration for people."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
