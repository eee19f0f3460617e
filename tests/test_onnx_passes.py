"""Passes over encoders: the same function, from operators that give the same bits anywhere."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_asr.errors import ExportError
from edge_asr.onnx_passes import part_streams, spell_out_norms


def norm_model(dim: int, bias: bool = True, **attributes: float | int) -> onnx.ModelProto:
    rng = np.random.default_rng(dim)
    constants = [numpy_helper.from_array(rng.normal(1, 0.3, dim).astype(np.float32), "gain")]
    if bias:
        constants.append(numpy_helper.from_array(rng.normal(0, 0.3, dim).astype(np.float32), "bias"))
    inputs = ["x", *(tensor.name for tensor in constants)]
    shape = ["N", "T", dim]
    graph = helper.make_graph(
        [helper.make_node("LayerNormalization", inputs, ["y"], **attributes)],
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@pytest.mark.parametrize("dim", [1, 7, 256])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("attributes", [{}, {"epsilon": 1e-3}, {"axis": -1}])
def test_a_norm_spelt_out_is_that_norm(dim, bias, attributes):
    model = norm_model(dim, bias, **attributes)
    x = np.random.default_rng(0).normal(2, 3, (2, 5, dim)).astype(np.float32)
    x[0, 0] = 0  # silence
    expected = run(model, x=x)
    assert spell_out_norms(model.graph) == 1
    np.testing.assert_allclose(run(model, x=x), expected, atol=1e-5)
    assert "LayerNormalization" not in {node.op_type for node in model.graph.node}
    assert "gain" not in {tensor.name for tensor in model.graph.initializer}  # nothing is kept twice


def test_no_optimiser_puts_the_norm_together_again(tmp_path):
    model = norm_model(16)
    spell_out_norms(model.graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert {"ReduceMean", "ReduceSumSquare"} <= kinds
    assert not any("Norm" in kind for kind in kinds)


def test_a_norm_over_more_than_the_last_axis_is_left_alone():
    model = norm_model(8)
    model.graph.node[0].attribute.append(helper.make_attribute("axis", 1))
    assert spell_out_norms(model.graph) == 0
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization"]


def test_an_lstm_without_its_state_cannot_be_parted():
    node = helper.make_node("DynamicQuantizeLSTM", ["x", "w", "r", "b"], ["y"], domain="com.microsoft")
    graph = helper.make_graph([node], "lstm", [], [])
    with pytest.raises(ExportError, match="needs h and c"):
        part_streams(graph)
