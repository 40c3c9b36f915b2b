"""Two-layer decoders in ONNX text with grouped heads, in the spellings of norms, biases and heads that exports have."""

import numpy as np
import onnx

from tests.small_models import Array, make_model, weight

WIDTH, HIDDEN, VOCABULARY, LAYERS = (
    32,
    48,
    1024,
    2,
)  # a head wide enough for one explicit product to be little
TOKENS = np.array([[3, 17, 5, 39, 0, 8, 21]], np.int64)

RMS = """
  {y}_q = Mul({x}, {x}) {y}_m = ReduceMean<keepdims=1>({y}_q, last) {y}_e = Add({y}_m, eps) {y}_s = Sqrt({y}_e) {y}_n = Div({x}, {y}_s)
  {y} = Mul({g}, {y}_n)"""
RMS_POW = """
  {y}_q = Pow({x}, two) {y}_m = ReduceMean<keepdims=1>({y}_q, last) {y}_e = Add({y}_m, eps) {y}_s = Sqrt({y}_e) {y}_r = Reciprocal({y}_s)
  {y}_n = Mul({x}, {y}_r) {y} = Mul({y}_n, {g})"""
RMS_OP = "\n  {y} = RMSNormalization<axis=-1, epsilon=0.00001>({x}, {g})"
LAYER = "\n  {y} = LayerNormalization<axis=-1>({x}, {g}, {b})"
LAYER_PIECES = """
  {y}_u = ReduceMean<keepdims=1>({x}, last) {y}_c = Sub({x}, {y}_u) {y}_q = Mul({y}_c, {y}_c) {y}_m = ReduceMean<keepdims=1>({y}_q, last)
  {y}_e = Add({y}_m, eps) {y}_s = Sqrt({y}_e) {y}_n = Div({y}_c, {y}_s) {y}_w = Mul({y}_n, {g}) {y} = Add({y}_w, {b})"""
NORMS = {
    "rms": RMS,
    "rms_pow": RMS_POW,
    "rms_op": RMS_OP,
    "layer": LAYER,
    "layer_pieces": LAYER_PIECES,
}

BLOCK = """
  {l}q = MatMul({l}a, {l}wq) {l}k = MatMul({l}a, {l}wk) {l}v{raw} = MatMul({l}a, {l}wv){vbias}
  {l}q4 = Reshape({l}q, by_head) {l}qt = Transpose<perm=[0,2,1,3]>({l}q4)
  {l}k5 = Reshape({l}k, by_group) {l}ke = Expand({l}k5, twice) {l}k4 = Reshape({l}ke, by_head) {l}kt = Transpose<perm=[0,2,3,1]>({l}k4)
  {l}v5 = Reshape({l}v, by_group) {l}ve = Expand({l}v5, twice) {l}v4 = Reshape({l}ve, by_head) {l}vt = Transpose<perm=[0,2,1,3]>({l}v4)
  {l}s = MatMul({l}qt, {l}kt) {l}p = Softmax<axis=-1>({l}s) {l}c = MatMul({l}p, {l}vt) {l}ct = Transpose<perm=[0,2,1,3]>({l}c)
  {l}x = Reshape({l}ct, flat) {l}o{raw} = MatMul({l}x, {l}wo){obias} {l}h = Add({h}, {l}o)"""
MLP = "\n  {l}u = MatMul({l}f, {l}wu) {l}r = Gelu({l}u) {l}d = MatMul({l}r, {l}wd) {l}out = Add({l}h, {l}d)"


def decoder(
    norm: str = "rms",
    *,
    tied: bool = False,
    biases: bool = False,
    positions: bool = False,
    outputs: str = "",
    dtype: type[np.floating] = np.float32,
) -> onnx.ModelProto:
    """input_ids [B, S] -> logits [B, S, 1024].

    Args:
        norm: one of ``NORMS``.
        tied: the head is the embedding, transposed.
        biases: of the value and output projections.
        positions: a table of positions is added to the embedding.
        outputs: further outputs, "float[B,S,32] L0h".
        dtype: of all weights and activations.
    """
    name = {np.float32: "float", np.float16: "float16"}[dtype]
    outputs = f", {outputs}" if outputs else ""
    text = (
        f"g (int64[B,S] input_ids) => ({name}[B,S,1024] logits{outputs}) {{\n  h0 = Gather(table, input_ids)"
    )
    stream = "h0"
    if positions:
        text += " wide = Gather(positions, input_ids) sum = Add(wide, h0)"
        stream = "sum"
    raw = "_raw" if biases else ""
    for layer in range(LAYERS):
        fields = {
            "l": f"L{layer}", "h": stream, "raw": raw,
            "vbias": f" L{layer}v = Add(L{layer}bv, L{layer}v_raw)" if biases else "",
            "obias": f" L{layer}o = Add(L{layer}o_raw, L{layer}bo)" if biases else "",
        }  # fmt: skip
        text += NORMS[norm].format(x=stream, y=f"L{layer}a", g=f"L{layer}ga", b=f"L{layer}ba")
        text += BLOCK.format(**fields)
        text += NORMS[norm].format(x=f"L{layer}h", y=f"L{layer}f", g=f"L{layer}gf", b=f"L{layer}bf")
        text += MLP.format(**fields)
        stream = f"L{layer}out"
    text += NORMS[norm].format(x=stream, y="final", g="g", b="b")
    head = " turned = Transpose<perm=[1,0]>(table) logits = MatMul(final, turned)"
    text += (head if tied else " logits = MatMul(final, head)") + "\n}"
    used = {key: value for key, value in _weights(dtype).items() if _is_read(key, text)}
    return make_model(text, used, opset=23 if norm == "rms_op" else 21)


def _is_read(name: str, text: str) -> bool:
    return any(f"{before}{name}{after}" in text for before in ("(", ", ") for after in (")", ","))


def _weights(dtype: type[np.floating]) -> dict[str, Array]:
    """Weights with a few channels of the stream far above the others, and norms' weights and biases all different."""
    random = np.random.default_rng(7)
    constants = {"last": np.array([-1]), "by_head": np.array([0, 0, 4, 8]), "by_group": np.array([0, 0, 2, 1, 8]),
                 "twice": np.array([1, 1, 1, 2, 1]), "flat": np.array([0, 0, -1])}  # fmt: skip
    found: dict[str, Array] = {key: value.astype(np.int64) for key, value in constants.items()}
    floats: dict[str, Array] = {
        "eps": np.array(1e-5),
        "two": np.array(2.0),
        "table": random.standard_normal((VOCABULARY, WIDTH)),
        "positions": random.standard_normal((VOCABULARY, WIDTH)),
        "head": weight(WIDTH, VOCABULARY, seed=1),
        "g": random.uniform(0.5, 2, WIDTH),
        "b": random.standard_normal(WIDTH),
    }
    floats["table"][:, 5] *= 20
    shapes = {"wq": (WIDTH, 32), "wk": (WIDTH, 16), "wv": (WIDTH, 16), "wo": (32, WIDTH), "wu": (WIDTH, HIDDEN),
              "wd": (HIDDEN, WIDTH), "bv": (16,), "bo": (WIDTH,)}  # fmt: skip
    for layer in range(LAYERS):
        for key, shape in shapes.items():
            floats[f"L{layer}{key}"] = random.standard_normal(shape) / np.sqrt(shape[0])
        for key in ("ga", "gf"):
            floats[f"L{layer}{key}"] = random.uniform(0.5, 2, WIDTH)
        for key in ("ba", "bf"):
            floats[f"L{layer}{key}"] = random.standard_normal(WIDTH)
    return found | {key: value.astype(dtype) for key, value in floats.items()}
