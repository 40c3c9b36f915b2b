"""The part of an operator's body that turns codes of 3 bits into those of 4 bits that a stock node takes (see quant/three_bits.py).

    blocks = Concat(codes & 0xee, (codes & 0x11) planes)        uint8 [N, G, 4 q] of codes [N, G, 3 q]

planes [3 q, q] moves bit 0 of byte j, q + j and 2 q + j to bit 1, 2 and 3 of byte j: one product of integers, exact, in place of three
shifts and two sums. ONNX Runtime computes it all when it loads the model and keeps what comes in between until it has done so for all
weights: so the fewer and smaller the better.
"""

from qcompiler.quant.three_bits import SPARE

ONCE = f"""
    spare = Constant <value = uint8 {{{SPARE}}}> ()
    kept = Constant <value = uint8 {{{0xFF - SPARE}}}> ()
    zero = Constant <value = uint8 {{0}}> ()
    by_1 = Constant <value = uint8 {{1}}> ()
    by_2 = Constant <value = uint8 {{2}}> ()
    by_3 = Constant <value = uint8 {{3}}> ()
    one = Constant <value_float = 1.0> ()
    half = Constant <value_float = 0.5> ()
    quarters = Constant <value_ints = [3]> ()
    width = Shape <start = 2> (codes_0)
    q = Div (width, quarters)
    square = Concat <axis = 0> (q, q)
    zeros = ConstantOfShape (square)
    unit = EyeLike (zeros)
    same = Cast <to = 2> (unit)
    same_1 = BitShift <direction = "LEFT"> (same, by_1)
    same_2 = BitShift <direction = "LEFT"> (same, by_2)
    same_3 = BitShift <direction = "LEFT"> (same, by_3)
    planes = Concat <axis = 0> (same_1, same_2, same_3)"""
"""Nodes that all products of an operator share."""


def of_product(i: int) -> str:
    """Nodes that make blocks_i and halves_i of codes_i and scales_i."""
    return f"""
    spare_{i} = BitwiseAnd (codes_{i}, spare)
    last_{i} = QLinearMatMul (spare_{i}, one, zero, planes, one, zero, one, zero)
    first_{i} = BitwiseAnd (codes_{i}, kept)
    blocks_{i} = Concat <axis = -1> (first_{i}, last_{i})
    halves_{i} = Mul (scales_{i}, half)"""
