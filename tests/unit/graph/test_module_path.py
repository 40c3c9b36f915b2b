"""Blocks as names tell them, of many exporters."""

import onnx_ir as ir
import pytest

from qcompiler.graph.module_path import block_of, exporter_scope, module_of


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("model.layers.3.self_attn.q_proj", "model.layers.3"),
        ("encoder.layer.11.attention.self.query", "encoder.layer.11"),
        ("features.5", "features.5"),
        ("features.5.conv.0.1", "features.5"),
        ("features.0.0", "features.0"),  # a convolution in a Sequential is no block of its own
        ("features.2.0.block.1.0", "features.2.0"),
        ("blocks.2.0.conv_pw", "blocks.2.0"),
        ("layer1.0.conv1", "layer1.0"),
        ("stages.0.blocks.1.attn", "stages.0.blocks.1"),
        ("encoder.block.0.layer.1.DenseReluDense.wi", "encoder.block.0"),
        ("model.layers.3.mlp.experts.5.w1", "model.layers.3"),
        ("StatefulPartitionedCall.block_3_expand", "StatefulPartitionedCall.block_3"),
        ("block5a_expand_conv", "block5a"),
        ("bert.encoder.layer_._4.attention", "bert.encoder.layer_._4"),
        ("model.embed_tokens", ""),
        ("layer_norm", ""),
        ("conv2d_196", ""),
        ("", ""),
        ("0", ""),
    ],
)
def test_block_of_a_path(path: str, block: str) -> None:
    assert block_of(path) == block


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/model/layers.3/mlp/down_proj/MatMul", "model.layers.3.mlp.down_proj"),
        ("/features/features.0/features.0.0/Conv", "features.0.0"),
        ("model.layers.3.mlp.down_proj.weight", "model.layers.3.mlp.down_proj"),
        ("p2o.Add.2", "p2o.Add"),
        ("node_linear_17", ""),
    ],
)
def test_module_of_a_name(name: str, module: str) -> None:
    assert module_of(name) == module


def test_scopes_of_an_exporter() -> None:
    node = ir.node("MatMul", [])
    assert exporter_scope(node) is None
    node.metadata_props["namespace"] = (
        ": models.Llama/model.layers.2: models.Layer/linear: aten.linear.default"
    )
    assert exporter_scope(node) == "model.layers.2"
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'model.layers.1', 'linear']"
    assert exporter_scope(node) == "model.layers.1"
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'unsqueeze']"
    assert exporter_scope(node) == ""
