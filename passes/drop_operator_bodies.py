"""Leave out the bodies of operators that our library has kernels for: the model then needs the library.

*Given* nodes of our domain, and the functions that ONNX Runtime runs in their place where our library is not registered.
*Result* the same nodes; of the functions those stay whose operators have no kernel, since they are all that can run.
"""

from collections.abc import Collection

import onnx_ir as ir

from qcompiler.graph.operator_body import is_ours


class DropOperatorBodies(ir.passes.InPlacePass):
    """The pass.

    Args:
        with_kernels: operators of our domain that the library has.
    """

    def __init__(self, with_kernels: Collection[str]) -> None:
        super().__init__()
        self._with_kernels = frozenset(with_kernels)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        dropped = [
            key
            for key, function in model.functions.items()
            if is_ours(function) and function.name in self._with_kernels
        ]
        for key in dropped:
            del model.functions[key]
        return ir.passes.PassResult(model, modified=bool(dropped))
