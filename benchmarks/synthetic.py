"""Writes models of any size for the memory and load benchmarks, without ever holding one.

python -m benchmarks.synthetic OUT --gb 4          MatMuls of [4096, 4096] with seeded float32 weights
python -m benchmarks.synthetic OUT --nodes 20000   a long chain of small nodes
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

WIDTH = 4096
DATA = "model.onnx.data"

_ROWS = 256  # rows of a weight made at a time: 4 MB


def weight_rows(seed: int, width: int, rows: int) -> Iterator[npt.NDArray[np.float32]]:
    """A weight [width, width] in blocks of rows; its scale keeps a chain of MatMuls at the same magnitude."""
    rng = np.random.default_rng(seed)
    for start in range(0, width, rows):
        block = rng.standard_normal((min(rows, width - start), width), dtype=np.float32)
        yield block * np.float32(width**-0.5)


def chain_of_matmuls(folder: Path, nbytes: int, *, width: int = WIDTH, dtype: str = "float32") -> Path:
    """y = x @ w0 @ w1 ...: a chain of [width, width] weights that take ``nbytes`` or a little more.

    Returns:
        The path of the model; its weights are in one external file beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.dtype(dtype)
    each = width * width * stored.itemsize
    count = max(1, -(-nbytes // each))
    elem = helper.np_dtype_to_tensor_dtype(stored)
    nodes, weights = [], []
    with (folder / DATA).open("wb") as data:
        for index in range(count):
            for block in weight_rows(index, width, _ROWS):
                data.write(block.astype(stored, copy=False).data)
            weights.append(_external(f"w{index}", elem, (width, width), index * each, each))
            target = "y" if index == count - 1 else f"h{index}"
            source = f"h{index - 1}" if index else "x"
            nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [target], name=f"matmul_{index}"))
    return _write(folder, nodes, weights, elem, ["rows", width])


def chain_of_nodes(folder: Path, nodes: int) -> Path:
    """A chain of ``nodes`` Add and Mul with vectors of 512 floats, every other one in external data."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    chain, weights = [], []
    with (folder / DATA).open("wb") as data:
        for index in range(nodes):
            values = rng.uniform(0.9, 1.1, 512).astype(np.float32)
            if index % 2:
                weights.append(_external(f"w{index}", TensorProto.FLOAT, (512,), data.tell(), values.nbytes))
                data.write(values.data)
            else:
                weights.append(onnx.numpy_helper.from_array(values, f"w{index}"))
            target = "y" if index == nodes - 1 else f"h{index}"
            source, op = f"h{index - 1}" if index else "x", ("Add", "Mul")[index % 2]
            chain.append(helper.make_node(op, [source, f"w{index}"], [target], name=f"node_{index}"))
    return _write(folder, chain, weights, TensorProto.FLOAT, ["rows", 512])


def _external(name: str, elem: int, shape: tuple[int, ...], offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=elem, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": DATA, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _write(folder: Path, nodes: list[Any], weights: list[Any], elem: int, shape: list[Any]) -> Path:
    graph = helper.make_graph(
        nodes,
        "synthetic",
        [helper.make_tensor_value_info("x", elem, shape)],
        [helper.make_tensor_value_info("y", elem, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for model.onnx and its data")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gb", type=float, help="gigabytes (1e9 bytes) of weights")
    what.add_argument("--nodes", type=int, help="nodes in the chain")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    given = parser.parse_args()
    if given.nodes:
        print(chain_of_nodes(given.out, given.nodes))
    else:
        print(chain_of_matmuls(given.out, int(given.gb * 1e9), width=given.width, dtype=given.dtype))


if __name__ == "__main__":
    main()
