"""Rules of the house, read off the source: who may import whom, nothing unsafe is loaded, no trace of a machine."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hdx_cli"
# Plain types and maths: they import one another and no component.
PLAIN = {
    "geometry", "camera", "gaussians", "images", "observation", "errors", "progress", "mesh", "losses", "jit", "simd", "ssim_kernel",
    "threads", "weights",
}  # fmt: skip
COMPONENTS = {"preprocess", "bodies", "rasterize", "avatars", "humanfixer", "motion", "export"}
# Everything else that a component may import besides the plain modules and itself.
ALLOWED = {
    "bodies": {"motion.pickled", "motion.archive"}, "avatars": {"bodies.base", "rasterize"},
    "motion": {"bodies.base"}, "export": {"bodies.base"},
}  # fmt: skip
COMMAND_LINE_LIBRARIES = {"typer", "click", "rich"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """ "avatars.base" for hdx_cli/avatars/base.py, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Everything a module imports, inside functions too: "hdx_cli.x.y" for our own, the full name for others."""
    package = ["hdx_cli", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = PACKAGE.parent.joinpath(*module.split("."), alias.name)
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                yield f"{module}.{alias.name}" if is_module else module


def own_imports(path: Path) -> set[str]:
    return {name.removeprefix("hdx_cli").lstrip(".") for name in imports_of(path) if name.split(".")[0] == "hdx_cli"}


def test_the_reader_of_imports_sees_them() -> None:
    found = own_imports(PACKAGE / "avatars" / "base.py")
    assert {"bodies.base", "gaussians"} <= found
    assert "numpy" in set(imports_of(PACKAGE / "avatars" / "base.py"))
    assert "export.ply" in own_imports(PACKAGE / "outputs.py")  # imported inside a function


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_import_direction(path: Path) -> None:
    name = name_of(path)
    room = name.split(".")[0]
    imported = {module for module in own_imports(path) if module}
    if room in PLAIN:
        assert {module.split(".")[0] for module in imported} <= PLAIN
    elif room in COMPONENTS:
        for module in imported:
            target = module.split(".")[0]
            allowed = ALLOWED.get(room, set())
            assert target in PLAIN or target == room or module in allowed or target in allowed, (
                f"{name} imports {module}"
            )
    elif room != "cli":
        assert not {module for module in imported if module.split(".")[0] == "cli"}
    if room != "cli":
        others = {module.split(".")[0] for module in imports_of(path)}
        # the bars of a long stage are drawn by the command line alone
        assert not others & COMMAND_LINE_LIBRARIES, name


@pytest.mark.parametrize("module", ["stages", "outputs", "limits", "batch.core", "evaluation.suite"])
def test_a_module_can_be_imported_first(module: str) -> None:
    """The package lends the verbs of ``api``, which imports nearly all; that must not get in the way."""
    import sys

    done = subprocess.run([sys.executable, "-c", f"import hdx_cli.{module}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_verbs_are_those_of_the_api() -> None:
    import hdx_cli

    for verb in hdx_cli.VERBS:
        assert getattr(hdx_cli, verb).__module__ == "hdx_cli.api"
    with pytest.raises(AttributeError):
        hdx_cli.nothing


def test_run_folder_knows_no_torch() -> None:
    """It is what a person's scripts read; it must work where nothing heavy is installed."""
    outside = {module.split(".")[0] for module in imports_of(PACKAGE / "run_folder.py")} - {"hdx_cli"}
    import sys

    assert outside <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nothing_that_can_run_code_is_loaded(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {module.split(".")[0] for module in imports_of(path)} & {
        "pickle",
        "cPickle",
        "dill",
        "joblib",
        "shelve",
        "marshal",
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "os.system"}, f"{path}:{node.lineno}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called != "torch.load" or given.get("weights_only") == "True", f"{path}:{node.lineno}"
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and called.split(".")[0] in ("np", "numpy"):
                    assert ast.unparse(keyword.value) == "False", f"{path}:{node.lineno}"
                if keyword.arg == "shell":
                    assert ast.unparse(keyword.value) == "False", f"{path}:{node.lineno}"


# simd registers its vector types with numba in a loop; that is what the module is
@pytest.mark.parametrize("path", [path for path in modules() if name_of(path) != "simd"], ids=name_of)
def test_no_work_at_import(path: Path) -> None:
    """At the top of a module there are imports, constants, definitions and nothing that prints, opens or downloads."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.For, ast.While, ast.With)):
            raise AssertionError(f"{path}:{node.lineno} does work at import")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func)
            assert called not in {"print", "open"}, f"{path}:{node.lineno}"


def test_no_trace_of_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    places = [f"/{folder}/".encode() for folder in ("work", "tmp", "root", "home", "Users")]
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content[:8000]:
            continue
        for place in places:
            assert place not in content, f"{name} names {place.decode()}"
