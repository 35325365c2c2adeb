"""A pack of models in InsightFace's layout, small enough for a test: a detector of red and a linear recogniser.

Names and order of inputs and outputs are those of buffalo_l's det_10g.onnx and w600k_r50.onnx, as InsightFace reads
them: nine outputs (scores, boxes and points at strides of 8, 16 and 32, two anchors each), and one of 512 numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BOX = np.array([0.5, 0.5, 1.5, 2.0], np.float32)  # left, top, right, bottom of a cell's corner, in strides
POINTS = np.array([[0.2, 0.4], [0.9, 0.4], [0.5, 0.8], [0.3, 1.2], [0.8, 1.2]], np.float32)  # the same
PIXELS = 28  # side of what the recogniser sees of its 112


def weights_of_recogniser(seed: int = 0) -> np.ndarray:
    """[512, 3 * 28 * 28]."""
    return np.random.default_rng(seed).normal(size=(512, 3 * PIXELS**2)).astype(np.float32) / 100


def _save(path: Path, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]) -> None:
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_detector(path: Path) -> None:
    """Finds cells of 32 pixels that are far redder than blue; other strides find nothing."""
    nodes, outputs, constants = [], {}, {"column": np.array([-1, 1], np.int64)}
    for stride in (8, 16, 32):
        red = np.zeros((2, 3, stride, stride), np.float32)
        red[0, 0], red[0, 2] = 10.0 / stride**2, -10.0 / stride**2  # the second anchor never fires
        constants |= {f"red{stride}": red, f"bias{stride}": np.array([-5.0 if stride == 32 else -99, -99], np.float32)}
        nodes.append(helper.make_node("Conv", ["input.1", f"red{stride}", f"bias{stride}"], [f"logit{stride}"],
                                      kernel_shape=[stride, stride], strides=[stride, stride]))  # fmt: skip
        nodes.append(helper.make_node("Sigmoid", [f"logit{stride}"], [f"grid{stride}"]))
        for kind, values in (("score", None), ("bbox", BOX), ("kps", POINTS.ravel())):
            name = f"{kind}_{stride}"
            grid = f"grid{stride}"
            if values is not None:  # constants everywhere: 0 times the grid, and a bias
                per = np.tile(values, 2)
                constants |= {f"w{name}": np.zeros((len(per), 2, 1, 1), np.float32), f"b{name}": per}
                nodes.append(helper.make_node("Conv", [grid, f"w{name}", f"b{name}"], [f"map{name}"]))
                grid = f"map{name}"
            width = 1 if values is None else len(values)
            constants[f"shape{name}"] = np.array([-1, width], np.int64)
            nodes.append(helper.make_node("Transpose", [grid], [f"last{name}"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"last{name}", f"shape{name}"], [name]))
            outputs[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n" + name, width])
    ordered = [outputs[f"{kind}_{stride}"] for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "h", "w"])
    _save(path, nodes, [image], ordered, constants)


def write_recogniser(path: Path, weights: np.ndarray | None = None) -> None:
    """A linear function of the aligned face, averaged over squares of 4 pixels."""
    weights = weights_of_recogniser() if weights is None else weights
    nodes = [
        helper.make_node("AveragePool", ["input.1"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["small"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["683"]),
    ]
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["None", 3, 112, 112])
    output = helper.make_tensor_value_info("683", TensorProto.FLOAT, ["None", len(weights)])
    _save(path, nodes, [image], [output], {"weights": np.ascontiguousarray(weights.T)})


def write_pack(root: Path, name: str = "buffalo_l") -> Path:
    """ROOT/models/NAME with a detector and a recogniser."""
    folder = root / "models" / name
    folder.mkdir(parents=True)
    write_detector(folder / "det_10g.onnx")
    write_recogniser(folder / "w600k_r50.onnx")
    return folder
