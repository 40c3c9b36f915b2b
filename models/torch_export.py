"""torch.onnx.export as users run it: the dynamo exporter, opset 21, weights in a file beside the model."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from qcompiler.graph.quiet import quiet

OPSET = 21  # the first with blockwise DequantizeLinear and int4


def export_module(
    module: torch.nn.Module,
    inputs: Mapping[str, object],
    dynamic_shapes: Mapping[str, object],
    input_names: Sequence[str],
    output_names: Sequence[str],
    path: Path,
    optimize: bool = True,
) -> None:
    """Write the model to ``path`` and its weights to ``<path>.data``.

    Args:
        module: to export, in evaluation mode.
        inputs: example arguments by name; sizes 0 and 1 would be taken for constants.
        dynamic_shapes: names of dynamic axes by argument, as torch.onnx.export takes them.
        input_names: of the graph, nested arguments flattened.
        output_names: of the graph.
        path: model.onnx.
        optimize: let the exporter fold constants and BatchNorm, as it does by default.
    """
    # It reports that torchvision is absent and that axes of one name are one axis: no concern here.
    chatter = "torch.onnx._internal.exporter._registration"
    with quiet(chatter, logging.ERROR), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (),
            path,
            kwargs=dict(inputs),
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dict(dynamic_shapes),
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
            optimize=optimize,
            verbose=False,
        )
