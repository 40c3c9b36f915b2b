"""Writes models of any size for the memory and load benchmarks, without ever holding one.

python -m benchmarks.synthetic OUT --gb 4          MatMuls of [4096, 4096] with seeded float32 weights
python -m benchmarks.synthetic OUT --decoder 4     a decoder of blocks like those of language models
python -m benchmarks.synthetic OUT --nodes 20000   a long chain of small nodes
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import TensorProto, helper

WIDTH = 4096
DATA = "model.onnx.data"

_ROWS = 256  # rows of a weight made at a time: 4 MB


def weight_rows(seed: int, height: int, width: int, rows: int = _ROWS) -> Iterator[npt.NDArray[np.float32]]:
    """A weight [height, width] in blocks of rows; its scale keeps a chain of MatMuls at the same magnitude."""
    rng = np.random.default_rng(seed)
    for start in range(0, height, rows):
        block = rng.standard_normal((min(rows, height - start), width), dtype=np.float32)
        yield block * np.float32(height**-0.5)


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
            for block in weight_rows(index, width, width):
                data.write(block.astype(stored, copy=False).data)
            weights.append(_external(f"w{index}", elem, (width, width), index * each, each))
            target = "y" if index == count - 1 else f"h{index}"
            source = f"h{index - 1}" if index else "x"
            nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [target], name=f"matmul_{index}"))
    return _write(folder, nodes, weights, elem, ["rows", width])


@dataclass(frozen=True)
class DecoderSizes:
    """Of a decoder; the embedding is also its head."""

    hidden: int = 3072
    inner: int = 8192
    heads: int = 24
    vocabulary: int = 32_000

    def layers(self, nbytes: int) -> int:
        """How many blocks make the float32 weights take ``nbytes`` or a little more."""
        block = 4 * self.hidden**2 + 3 * self.hidden * self.inner
        return max(1, -(-(nbytes // 4 - self.vocabulary * self.hidden) // block))


BLOCK = """
    square{i} = Mul (x{i}, x{i})
    mean{i} = ReduceMean (square{i}, last)
    root{i} = Sqrt (mean{i})
    unit{i} = Div (x{i}, root{i})
    n{i} = Mul (unit{i}, gain_a{i})
    q{i} = MatMul (n{i}, q_proj{i})
    k{i} = MatMul (n{i}, k_proj{i})
    v{i} = MatMul (n{i}, v_proj{i})
    q_split{i} = Reshape (q{i}, split)
    k_split{i} = Reshape (k{i}, split)
    v_split{i} = Reshape (v{i}, split)
    q_heads{i} = Transpose <perm = [0, 2, 1, 3]> (q_split{i})
    k_heads{i} = Transpose <perm = [0, 2, 3, 1]> (k_split{i})
    v_heads{i} = Transpose <perm = [0, 2, 1, 3]> (v_split{i})
    scores{i} = MatMul (q_heads{i}, k_heads{i})
    scaled{i} = Mul (scores{i}, factor)
    attention{i} = Softmax <axis = -1> (scaled{i})
    seen{i} = MatMul (attention{i}, v_heads{i})
    seen_split{i} = Transpose <perm = [0, 2, 1, 3]> (seen{i})
    merged{i} = Reshape (seen_split{i}, merge)
    o{i} = MatMul (merged{i}, o_proj{i})
    a{i} = Add (x{i}, o{i})
    square_m{i} = Mul (a{i}, a{i})
    mean_m{i} = ReduceMean (square_m{i}, last)
    root_m{i} = Sqrt (mean_m{i})
    unit_m{i} = Div (a{i}, root_m{i})
    m{i} = Mul (unit_m{i}, gain_m{i})
    g{i} = MatMul (m{i}, gate_proj{i})
    u{i} = MatMul (m{i}, up_proj{i})
    sigmoid{i} = Sigmoid (g{i})
    silu{i} = Mul (g{i}, sigmoid{i})
    h{i} = Mul (silu{i}, u{i})
    d{i} = MatMul (h{i}, down_proj{i})
    x{j} = Add (a{i}, d{i})"""
"""One block: RMSNorm, attention without mask or positions, RMSNorm, SwiGLU."""


def decoder(folder: Path, nbytes: int, sizes: DecoderSizes) -> Path:
    """input_ids [B, S] -> embedding, blocks, the embedding as head -> logits [B, S, vocabulary]; float32 weights of ``nbytes``.

    Returns:
        The path of the model; its weights are in one external file beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers, hidden = sizes.layers(nbytes), sizes.hidden
    body = "".join(BLOCK.format(i=i, j=i + 1) for i in range(layers))
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
decoder (int64[B,S] input_ids) => (float[B,S,{sizes.vocabulary}] logits) {{
    x0 = Gather <axis = 0> (table, input_ids){body}
    head = Transpose <perm = [1, 0]> (table)
    logits = MatMul (x{layers}, head)
}}"""
    model = onnx.parser.parse_model(text)
    small = {
        "last": np.array([-1], np.int64),
        "split": np.array([0, 0, sizes.heads, hidden // sizes.heads], np.int64),
        "merge": np.array([0, 0, hidden], np.int64),
        "factor": np.float32((hidden // sizes.heads) ** -0.5),
    }
    small |= {f"gain_{at}{i}": np.ones(hidden, np.float32) for i in range(layers) for at in "am"}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in small.items())
    shapes = {"table": (sizes.vocabulary, hidden)}
    for i in range(layers):
        shapes |= {f"{name}_proj{i}": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{name}_proj{i}": (hidden, sizes.inner) for name in ("gate", "up")}
        shapes[f"down_proj{i}"] = (sizes.inner, hidden)
    with (folder / DATA).open("wb") as data:
        for seed, (name, shape) in enumerate(shapes.items()):
            weight = _external(name, TensorProto.FLOAT, shape, data.tell(), 4 * math.prod(shape))
            model.graph.initializer.append(weight)
            for block in weight_rows(seed, *shape):
                data.write(block.data)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


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
    what.add_argument("--decoder", type=float, help="gigabytes of a decoder's weights")
    what.add_argument("--nodes", type=int, help="nodes in the chain")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    given = parser.parse_args()
    if given.nodes:
        print(chain_of_nodes(given.out, given.nodes))
    elif given.decoder:
        print(decoder(given.out, int(given.decoder * 1e9), DecoderSizes()))
    else:
        print(chain_of_matmuls(given.out, int(given.gb * 1e9), width=given.width, dtype=given.dtype))


if __name__ == "__main__":
    main()
