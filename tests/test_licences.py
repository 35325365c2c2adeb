"""What is listed for an avatar is what it was made with, and its terms are those that the packages declare."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hdx_cli import licences
from hdx_cli.errors import HdxError, NothingToDo, UsageError

PACKAGE = Path(licences.__file__).parent
MODULES = {  # import name: distribution, where they differ
    "cv2": "opencv-python", "PIL": "pillow", "pillow_heif": "pillow-heif", "imageio_ffmpeg": "imageio-ffmpeg",
    "huggingface_hub": "huggingface-hub",
}  # fmt: skip


def records(*products: str, **changes: object) -> dict:
    known = {"coarse": {"completion": True}, "observation": {"matting": None}}
    made = {name: {"config": known.get(name, {}), "device": "cpu"} for name in products}
    return {"format": 1, "hdx": "0.1.0", "photo": "photo.jpg", "products": made, **changes}


def names(found: dict) -> set[str]:
    return {part.name for part in licences.parts_of(found) if part.used}


@pytest.mark.parametrize("name", [*licences.PACKAGES, *licences.UNUSED])
def test_the_terms_are_those_that_the_package_declares(name) -> None:
    try:
        told = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    texts = [
        told.get("License-Expression") or "",
        (told.get("License") or "")[:200],
        *(line for line in told.get_all("Classifier", []) if line.startswith("License")),
    ]
    for file in importlib.metadata.files(name) or ():
        if file.name.upper().startswith("LICENSE") and ".dist-info" in str(file):
            texts.append(file.read_text()[:300])
    declared = re.sub("Apache (2.0|Software|License)", "Apache-2.0", " ".join(texts))
    if not declared.strip():
        pytest.skip(f"{name} declares none")
    ours = licences.PACKAGES.get(name, licences.UNUSED.get(name))[0]
    families = [family for family in ("Apache-2.0", "BSD", "MIT", "non-commercial") if family in ours]
    assert families and any(family in declared for family in families), declared


def test_every_library_that_the_program_imports_has_its_terms_here() -> None:
    import sys

    found, importers = set(), {}
    for path in PACKAGE.rglob("*.py"):
        if {"training", "evaluation"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules = [node.module]
            found |= {module.split(".")[0] for module in modules}
            importers |= {module.split(".")[0]: path.name for module in modules}
    outside = {MODULES.get(name, name) for name in found - set(sys.stdlib_module_names) - {"hdx_cli"}}
    assert {"torch", "numpy", "mediapipe"} <= outside
    assert outside - set(licences.PACKAGES) <= {"ray", "psutil"} | set(licences.UNUSED)  # the first two make no avatar
    # what is not free is imported at one place each, which a person has to ask for
    assert {importers[name] for name in licences.UNUSED} == {"smpl_body.py", "arcface.py"}


def test_only_what_was_used_is_listed() -> None:
    photo = names(records("observation"))
    assert "MediaPipe's models of pose, hands and face" in photo and "mediapipe" in photo
    assert not photo & {
        "Anny",
        "lifting network",
        "HumanFixer network",
        "diffusers",
        "ffmpeg",
        "BiRefNet",
        "pillow-heif",
    }
    coarse = names(records("observation", "body.npz", "coarse"))
    assert coarse - photo == {"Anny", "lifting network", "completion network", "safetensors", "numba", "llvmlite"}
    refined = names(records("observation", "body.npz", "coarse", "restored", "refined"))
    assert refined - coarse == {"HumanFixer network", "diffusers", "huggingface-hub"}
    assert names(records("exports/turntable.mp4")) - names(records()) == {"ffmpeg", "imageio-ffmpeg"}
    assert names(records("exports/a.spz")) - names(records()) == {"gaussforge"}


def test_options_change_what_is_listed() -> None:
    made = records("observation", "coarse")
    made["products"]["coarse"]["config"] = {"completion": False}
    assert "completion network" not in names(made)
    made["products"]["observation"]["config"] = {"matting": "birefnet"}
    assert {"BiRefNet", "transformers"} <= names(made)
    made["products"]["coarse"]["device"] = "cuda"
    assert "gsplat" in names(made)
    assert "pillow-heif" in names({**made, "photo": "photo.heic"})


def test_the_answer_is_that_of_the_strictest_part() -> None:
    parts = licences.parts_of(records("observation", "body.npz", "coarse", "restored", "refined"))
    assert licences.commercial_use(parts) is True
    assert any(part.commercial is False and not part.used for part in parts)  # installed is not used
    unknown = replace(licences.HDX, commercial=None)
    forbidden = replace(licences.HDX, commercial=False)
    assert licences.commercial_use((*parts, unknown)) is None
    assert licences.commercial_use((*parts, unknown, forbidden)) is False
    assert "NOT allowed" in licences.lines((*parts, forbidden))[0]


def test_a_motion_of_ones_own_is_of_unknown_terms() -> None:
    made = records("exports/walk.mp4", "exports/viewer.html")
    made["products"]["exports/walk.mp4"]["config"] = {"motion": "walk"}
    made["products"]["exports/viewer.html"]["config"] = {"motions": ["wave", "dance"], "pose": "photo"}
    assert licences.commercial_use(licences.parts_of(made)) is True
    made["products"]["exports/viewer.html"]["config"]["motions"].append("captured\x1b[2J.bvh")
    parts = licences.parts_of(made)
    assert [part.name for part in parts if part.kind == "motion"] == ["captured?[2J.bvh"]
    assert licences.commercial_use(parts) is None


def test_the_forms_say_the_same() -> None:
    parts = licences.parts_of(records("observation", "body.npz", "coarse", "exports/turntable.mp4"))
    block = json.loads(json.dumps(licences.block(parts)))
    assert block["commercial_use"] is True
    text, rows = "\n".join(licences.lines(parts)), licences.rows(parts)
    shown = ", ".join(label for label, _ in rows)
    for part in block["parts"]:
        assert part["name"] in text and part["licence"] in text
        assert (part["name"] in shown) == part["used"]
    assert all(terms for _, terms in rows)


def test_a_real_run_folder(toy_run) -> None:
    found = names(licences.read_records(toy_run))
    assert {"hdx", "Anny", "mediapipe", "torch"} <= found and "HumanFixer network" not in found


def test_what_is_no_run_folder(tmp_path) -> None:
    with pytest.raises(NothingToDo) as told:
        licences.read_records(tmp_path)
    assert told.value.code == "E_NO_RUN"
    for content in (b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"products": []}', b'{"products": {"a": 1}}',
                    b'{"products": {"a": {"config": 3}}}'):  # fmt: skip
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(UsageError, match="damaged"):
            licences.read_records(tmp_path)


values = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=2)
keys = st.sampled_from(["observation", "body.npz", "coarse", "restored", "refined", "exports/a.mp4", "x"])
config = st.dictionaries(st.sampled_from(["motion", "motions", "pose", "matting", "completion"]), values, max_size=3)
record = st.fixed_dictionaries({"config": config | values, "device": values}) | values


@settings(suppress_health_check=list(HealthCheck), max_examples=60, deadline=None)
@given(st.dictionaries(keys, record, max_size=3), values, values)
def test_any_records_are_listed_or_refused(tmp_path, products, photo, version) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"products": products, "photo": photo, "hdx": version}))
    try:
        found = licences.parts_of(licences.read_records(tmp_path))
    except HdxError as error:
        assert error.code == "E_RUN_FORMAT" and "\n" not in error.message
    else:
        assert all(line.isprintable() for line in licences.lines(found) if line)
        json.dumps(licences.block(found))
