"""A model's fingerprint follows what it computes, and nothing else."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler.graph import model_file
from qcompiler.graph.model_fingerprint import model_fingerprint
from tests import command_models as models
from tests.small_models import save_model


def _fingerprint(model: onnx.ModelProto, folder: Path) -> str:
    return model_fingerprint(model_file.load(save_model(model, folder, "changed.onnx")))


def test_where_the_data_lie_does_not_matter(tmp_path: Path) -> None:
    inside = model_fingerprint(model_file.load(models.mlp(tmp_path, name="inside.onnx")))
    assert model_fingerprint(model_file.load(models.external_mlp(tmp_path))) == inside


def test_notes_do_not_matter(tmp_path: Path) -> None:
    model = onnx.load(models.mlp(tmp_path))
    plain = _fingerprint(model, tmp_path)
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="somewhere")
    model.graph.node[0].doc_string = "something"
    assert _fingerprint(model, tmp_path) == plain


@pytest.mark.parametrize("what", ["weight", "name", "operator"])
def test_anything_else_does(tmp_path: Path, what: str) -> None:
    model = onnx.load(models.mlp(tmp_path))
    plain = _fingerprint(model, tmp_path)
    if what == "weight":
        array = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
        array[0, 0] = np.nextafter(array[0, 0], np.float32(9))
        model.graph.initializer[0].CopyFrom(
            onnx.numpy_helper.from_array(array, model.graph.initializer[0].name)
        )
    elif what == "name":
        model.graph.node[0].output[0] = model.graph.node[1].input[0] = "renamed"
    else:
        model.graph.node[1].op_type = "Sigmoid"
    assert _fingerprint(model, tmp_path) != plain
