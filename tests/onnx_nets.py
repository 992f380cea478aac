"""ONNX nets that answer with constants: whole detectors, without weights.

Every output is multiplied by a gate: 1 when some pixel of the input's last channel is above zero, 0
otherwise. That tells whether a detector hands its net red or blue last; all of ours hand it red.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Box = tuple[float, float, float, float]  # left, top, right, bottom

SCRFD_STRIDES = (8, 16, 32)


def constant_net(
    path: Path, shape: tuple[int | str, ...], outputs: dict[str, NDArray[np.float32]]
) -> Path:
    """Write a net of one input (1, 3, h, w) whose outputs are constants."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pick = np.zeros((1, 3, 1, 1), np.float32)
    pick[0, 2] = 1e6
    constants = {"pick": pick, **{f"{name}_value": value for name, value in outputs.items()}}
    nodes = [
        helper.make_node("Conv", ["input", "pick"], ["picked"]),
        helper.make_node("GlobalMaxPool", ["picked"], ["highest"]),
        helper.make_node("Clip", ["highest"], ["gate"], min=0.0, max=1.0),
    ]
    for name, value in outputs.items():
        gate = f"{name}_gate"
        constants[f"{name}_rank"] = np.ones(value.ndim, np.int64)
        nodes += [
            helper.make_node("Reshape", ["gate", f"{name}_rank"], [gate]),
            helper.make_node("Mul", [f"{name}_value", gate], [name]),
        ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
            for name, value in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # Opset 9: `Clip` still takes its bounds as attributes, which OpenCV reads too.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def scrfd(path: Path, faces: list[tuple[Box, float]], side: int = 512) -> Path:
    """SCRFD that finds these faces, (box in px of its input, score), wherever there is red."""
    values: dict[str, NDArray[np.float32]] = {}
    for kind, width in (("score", 1), ("box", 4), ("points", 10)):
        for stride in SCRFD_STRIDES:
            cells = (side // stride) ** 2 * 2  # two anchors a cell
            values[f"{kind}_{stride}"] = np.zeros((cells, width), np.float32)
    stride = SCRFD_STRIDES[0]
    for (left, top, right, bottom), score in faces:
        x, y = round((left + right) / 2 / stride), round((top + bottom) / 2 / stride)
        cell = 2 * (y * (side // stride) + x)
        away = (x * stride - left, y * stride - top, right - x * stride, bottom - y * stride)
        values[f"score_{stride}"][cell] = score
        values[f"box_{stride}"][cell] = np.array(away) / stride
    return constant_net(path, (1, 3, "height", "width"), values)


def landmarks(path: Path, marks: NDArray[np.float64]) -> Path:
    """The 106-point net: marks (106, 2) from the box's centre in its longer side."""
    # Its input shows 1.5 times the longer side, and 1 in its output is half of that.
    output = (marks / 0.75).astype(np.float32).reshape(1, 212)
    return constant_net(path, (1, 3, 192, 192), {"points": output})


def yunet(
    path: Path, rows: list[tuple[Box, tuple[float, ...], float]], width: int, height: int
) -> Path:
    """YuNet for pictures of one size (multiples of 32): box, 5 points as x, y in px, and score."""
    values: dict[str, NDArray[np.float32]] = {}
    for kind, size in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            cells = (height // stride) * (width // stride)
            values[f"{kind}_{stride}"] = np.zeros((1, cells, size), np.float32)
    stride = 8
    for (left, top, right, bottom), points, score in rows:
        x, y = (left + right) / 2 / stride, (top + bottom) / 2 / stride
        column, row = int(x), int(y)
        cell = row * (width // stride) + column
        values["cls_8"][0, cell] = values["obj_8"][0, cell] = score
        size = np.log(np.array([right - left, bottom - top]) / stride)
        values["bbox_8"][0, cell] = (x - column, y - row, *size)
        values["kps_8"][0, cell] = np.array(points) / stride - np.array([column, row] * 5)
    return constant_net(path, (1, 3, height, width), values)
