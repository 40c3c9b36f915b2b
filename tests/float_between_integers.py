"""A model on disk that ONNX Runtime computes otherwise as soon as it optimizes."""

from pathlib import Path

import numpy as np

from tests.small_models import make_model, save_model, weight


def float_between_integers(folder: Path) -> Path:
    """Three convolutions on codes, the second with a float weight, which ONNX Runtime rounds by itself from level basic on."""
    text = """g (float[1,8,12,12] x) => (float[1,8,12,12] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
        k1d = DequantizeLinear(k1q, ks)
        c1 = Conv<pads=[1,1,1,1]>(xd, k1d, b)
        c1q = QuantizeLinear(c1, s1, z) c1d = DequantizeLinear(c1q, s1, z)
        c2 = Conv<pads=[1,1,1,1]>(c1d, k2, b)
        c2q = QuantizeLinear(c2, s2, z) c2d = DequantizeLinear(c2q, s2, z)
        k3d = DequantizeLinear(k1q, ks)
        y = Conv<pads=[1,1,1,1]>(c2d, k3d, b)
    }"""
    codes = np.random.default_rng(0).integers(-127, 128, (8, 8, 3, 3)).astype(np.int8)
    spread = np.geomspace(0.01, 3, 8).astype(np.float32)[:, None, None, None]  # one scale does not fit all
    scales = {
        name: np.float32(value) for name, value in {"s": 0.03, "ks": 0.003, "s1": 0.06, "s2": 0.1}.items()
    }
    constants = {
        "z": np.uint8(128), "k1q": codes, "b": weight(8), "k2": weight(8, 8, 3, 3, seed=2) * spread, **scales,
    }  # fmt: skip
    model = make_model(text, constants)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return save_model(model, folder)
