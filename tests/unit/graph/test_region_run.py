"""constant_array: the numbers that a reader sees, whatever lies between it and the initializer."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.graph.region_run import constant_array
from tests.small_models import make_model, weight

STACK = weight(3, 4, 8)
READS = {
    "gathered": ("v = Gather(w, one)", STACK[1:2]),
    "sliced": ("v = Slice(w, one, two, zero)", STACK[1:2]),
    "split": ("u, v, t = Split<axis=0, num_outputs=3>(w)", STACK[1:2]),
    "turned": ("v = Transpose<perm=[0,2,1]>(w)", STACK.transpose(0, 2, 1)),
    "gathered and turned": (
        "u = Gather(w, one) v = Transpose<perm=[0,2,1]>(u)",
        STACK[1:2].transpose(0, 2, 1),
    ),
    "narrowed": ("v = Cast<to=10>(w)", STACK.astype(np.float16)),
}


@pytest.mark.parametrize("name", READS)
def test_a_constant_is_what_its_reader_sees(name: str) -> None:
    text, expected = READS[name]
    integers = {"one": np.array([1]), "two": np.array([2]), "zero": np.array([0])}
    kind = {"float32": "float", "float16": "float16"}[expected.dtype.name]
    sizes = ",".join("ABC"[: expected.ndim])
    loaded = ir.from_proto(
        make_model(f"g () => ({kind}[{sizes}] y) {{ {text} y = Identity(v) }}", {"w": STACK, **integers})
    )
    value = next(node for node in loaded.graph if node.op_type == "Identity").inputs[0]
    assert value is not None
    found = constant_array(loaded, value)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
