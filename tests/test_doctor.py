"""``hdx doctor`` in real environments: every problem is found and comes with the command that mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hdx_cli import doctor, limits

LOOK = "import json, sys; from hdx_cli import doctor; print(json.dumps(vars(getattr(doctor, sys.argv[1])())))"


def seen(check: str, **environment: str) -> doctor.Check:
    """One check as a process of that environment sees it; a variable of "" is taken away."""
    values = {name: value for name, value in {**os.environ, **environment}.items() if value}
    done = subprocess.run([sys.executable, "-c", LOOK, check], capture_output=True, text=True, env=values)
    assert done.returncode == 0, done.stderr
    return doctor.Check(**json.loads(done.stdout))


def test_every_check_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_mediapipe", lambda: doctor.Check("mediapipe", "ok", "looked at elsewhere"))
    checks = doctor.examine()
    names = [check.name for check in checks]
    assert names == sorted(set(names), key=names.index) and {"threads", "gsplat", "cache", "extras", "memory"} <= set(
        names
    )
    for check in checks:
        assert check.detail and "\n" not in check.detail and "Error" not in check.detail, check
        assert (check.fix is not None) == (check.state != "ok"), check


def test_threads() -> None:
    cores = limits.cores()
    one = seen("_threads", OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    assert one.state == "ok" and "torch 1" in one.detail and "NUMBA_NUM_THREADS=1" in one.detail
    many = seen("_threads", OMP_NUM_THREADS=str(4 * cores + 4))
    assert many.state == "warning" and many.fix == f"export OMP_NUM_THREADS={cores} NUMBA_NUM_THREADS={cores}"
    assert seen("_threads", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE").fix == "export OMP_WAIT_POLICY=PASSIVE"


def test_threads_that_are_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("many", "0", "-1", "1" * 50, "2;rm"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        check = doctor._threads()
        assert check.state == "failed" and check.fix == "unset OMP_NUM_THREADS"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program called nvidia-smi in front of all others, which prints what it is given."""

    def put(body: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!{shutil.which('sh')}\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.mark.skipif(os.name == "nt", reason="a script of the shell")
def test_a_device_that_torch_cannot_use_is_named_with_its_driver(driver) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    driver("echo 'NVIDIA H100, 550.54.15, 81559 MiB'")
    check = doctor._cuda()
    assert check.state == "warning" and "NVIDIA H100 with 81559 MiB, driver 550.54.15" in check.detail and check.fix


@pytest.mark.skipif(os.name == "nt", reason="a script of the shell")
@pytest.mark.parametrize("body", ["exit 9", "echo No devices were found", "true", "printf '\\377\\376,x'"])
def test_a_driver_that_does_not_answer_is_no_device(driver, body: str) -> None:
    driver(body)
    assert doctor._nvidia_smi() is None


def test_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    (tmp_path / "a.1.nbc").write_bytes(b"x" * 3_000_000)
    (tmp_path / "other").write_bytes(b"x" * 9_000_000)
    assert "3 MB of compiled code" in doctor._numba().detail and str(tmp_path) in doctor._numba().detail
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert "0 MB" in doctor._cache().detail and not (tmp_path / "hf").exists()
    (tmp_path / "hf/hdx/a").mkdir(parents=True)
    (tmp_path / "hf/hdx/a/model").write_bytes(b"x" * 2_000_000)
    assert f"2 MB of weights in {tmp_path / 'hf/hdx'}" in doctor._cache().detail


def test_places_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses everybody, the administrator too."""
    if os.access("/proc", os.W_OK) and os.geteuid() != 0 or not Path("/proc/self").exists():
        pytest.skip("no such place here")
    place = next((folder for folder in ("/sys/kernel", "/proc/sys") if not os.access(folder, os.W_OK)), None)
    if place is None:
        pytest.skip("the administrator may write everywhere here")
    monkeypatch.setenv("NUMBA_CACHE_DIR", f"{place}/numba")
    monkeypatch.setenv("HF_HOME", f"{place}/hf")
    assert doctor._numba().fix.startswith("export NUMBA_CACHE_DIR=") and doctor._cache().fix == "export HF_HOME=FOLDER"


def test_extras_are_those_of_the_installation() -> None:
    check = doctor._extras()
    assert check.state == "ok" and "test" in check.detail
    assert ("pip install 'hdx-cli[" in check.detail) == ("(without" in check.detail)


@pytest.mark.parametrize(("free", "state"), [(50 * 10**9, "ok"), (1_400_000_000, "warning"), (10**8, "failed")])
def test_memory_says_what_would_be_made(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: free)
    check = doctor._memory()
    assert check.state == state and (check.fix is None) == (state == "ok")
    if state == "warning":
        assert "Gaussians" in check.detail
