"""Costs of ONNX graphs against formulas worked out by hand and against ST's published report."""

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import (
    ENCODER_METADATA,
    WAKEWORD_LAYERS,
    Builder,
    attention_encoder,
    i64,
    lstm_encoder,
    save,
    tcn_encoder,
    wakeword,
)
from onnxruntime.quantization import QuantType, quantize_dynamic

from firmware_sim.cost import cost_graph
from firmware_sim.errors import OnnxFileError, OperatorError, ShapeError
from firmware_sim.graph import load_graph
from firmware_sim.ledger import arena_buffers, weight_storage
from firmware_sim.planner import plan_arena
from firmware_sim.target import load_target


def costs(model, tmp_path, frames=None):
    graph = load_graph(save(model, tmp_path / "m.onnx"), frames)
    return graph, cost_graph(graph)


def test_the_published_wakeword_report_is_reproduced_from_the_graph(tmp_path):
    """ST counts one MAC per bias and 15 per softmax element: 827,256; 49,412 B flash, 10,116 B activations."""
    graph, ops = costs(wakeword(), tmp_path)
    per_node = [op.macs + op.bias_elements for op in ops[:-1]]
    published = [3_400, 143_488, 15_488, 393_344, 19_328, 245_888, 2_048, 4_128, 99]
    assert per_node == published
    assert sum(per_node) + 15 * 3 == 827_256
    assert weight_storage(graph)[0] == 49_412
    st = load_target("st-edge-ai")
    plan = plan_arena(arena_buffers(graph, ops, st), st.alignment)
    assert (plan.lower_bound_bytes, plan.arena_bytes) == (10_116, 10_116)


def test_wakeword_layers_run_in_eight_bits_and_depthwise_is_told_apart(tmp_path):
    _, ops = costs(wakeword(), tmp_path)
    assert {op.precision for op in ops} == {"int8"}
    assert [op.kind == "depthwise" for op in ops[:8]] == [layer[0] == "dw" for layer in WAKEWORD_LAYERS]


def test_lstm_reads_its_recurrent_weights_once_a_step(tmp_path):
    dim, steps = 96, 8
    _, ops = costs(lstm_encoder(dim, 1), tmp_path)
    lstm = next(op for op in ops if op.kind == "recurrent")
    assert lstm.macs == steps * 4 * dim * (dim + dim)
    assert lstm.weight_bytes == 4 * (4 * dim * dim * 2 + 8 * dim)
    assert lstm.step_weight_bytes == 4 * 4 * dim * dim
    assert lstm.steps == steps
    assert lstm.traffic_bytes > steps * lstm.step_weight_bytes


def test_chunk_size_scales_macs_but_not_weights(tmp_path):
    _, small = costs(tcn_encoder(), tmp_path, 16)
    _, large = costs(tcn_encoder(), tmp_path, 64)
    assert sum(op.macs for op in large) == 4 * sum(op.macs for op in small)
    assert sum(op.weight_bytes for op in large) == sum(op.weight_bytes for op in small)


def test_at_a_chunk_the_lstm_moves_more_bytes_per_multiply_add_than_tcn_and_attention(tmp_path):
    def intensity(model):
        ops = [op for op in costs(model, tmp_path)[1] if op.kind in ("gemm", "recurrent", "attention")]
        return sum(op.macs for op in ops) / sum(op.traffic_bytes for op in ops)

    lstm, tcn, attention = (intensity(m) for m in (lstm_encoder(256), tcn_encoder(256), attention_encoder(256)))
    assert lstm < 0.6 < 1.5 < tcn
    assert lstm < attention


def test_dynamically_quantised_lstm_keeps_its_multiply_adds_and_quarters_its_weights(tmp_path):
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    save(lstm_encoder(), fp32)
    quantize_dynamic(fp32, int8, op_types_to_quantize=["LSTM"], weight_type=QuantType.QInt8)
    ops = {path: [op for op in cost_graph(load_graph(path)) if op.kind == "recurrent"] for path in (fp32, int8)}
    assert {op.op_type for op in ops[int8]} == {"DynamicQuantizeLSTM"}
    assert {op.precision for op in ops[int8]} == {"int8"}
    assert sum(op.macs for op in ops[int8]) == sum(op.macs for op in ops[fp32])
    ratio = sum(op.weight_bytes for op in ops[fp32]) / sum(op.weight_bytes for op in ops[int8])
    assert 3.5 < ratio <= 4.0


def test_qdq_matmul_is_one_integer_operator(tmp_path):
    _, ops = costs(tcn_encoder(quantised=True), tmp_path)
    products = [op for op in ops if op.kind == "gemm" and op.depth == 3 * 96]
    assert [op.precision for op in products] == ["int8"] * 3
    assert all(op.weight_bytes == 3 * 96 * 2 * 96 for op in products)
    assert not [op for op in ops if op.op_type == "DequantizeLinear"]


def test_attention_products_of_two_activations_carry_no_weights(tmp_path):
    _, ops = costs(attention_encoder(dim=64, past=100, layers=1), tmp_path)
    scores = [op for op in ops if op.kind == "attention"]
    assert [op.macs for op in scores] == [8 * 108 * 64, 8 * 108 * 64]
    assert all(op.weight_bytes == 0 for op in scores)


def test_macs_of_a_gemm_equal_brute_force_counting(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(10):
        m, k, n = rng.integers(1, 9, 3)
        b = Builder()
        b.node("Gemm", ["x", b.weight(n, k)], outputs=["y"], transB=1)
        _, ops = costs(b.model({"x": [int(m), int(k)]}, {"y": [int(m), int(n)]}), tmp_path)
        assert ops[0].macs == sum(1 for _i in range(m) for _j in range(n) for _l in range(k))


def test_values_known_before_the_run_cost_nothing(tmp_path):
    b = Builder()
    shape = b.node("Shape", ["x"])
    doubled = b.node("Mul", [b.node("Gather", [shape, i64(b, 1)]), i64(b, 2)])
    b.node("Reshape", ["x", b.node("Concat", [i64(b, -1), doubled], axis=0)], outputs=["y"])
    graph, ops = costs(b.model({"x": [4, 6]}, {"y": [2, 12]}), tmp_path)
    assert ops == []
    assert graph.n_folded == 4


def test_nodes_that_no_output_reads_cost_nothing(tmp_path):
    b = Builder()
    b.node("Exp", ["x"])
    b.node("Relu", ["x"], outputs=["y"])
    assert [op.op_type for op in costs(b.model({"x": [2]}, {"y": [2]}), tmp_path)[1]] == ["Relu"]


def test_weight_bytes_equal_the_initialisers_of_the_file(tmp_path):
    model = tcn_encoder()
    graph, _ = costs(model, tmp_path)
    assert sum(weight_storage(graph)) == sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)


def test_streaming_states_are_found_by_name(tmp_path):
    graph, _ = costs(lstm_encoder(layers=1), tmp_path)
    assert graph.states() == [("state_0", "next_state_0"), ("state_1", "next_state_1")]


@pytest.mark.parametrize("content", [b"", b"RIFF0000WAVEfmt ", b"hello", bytes(1000)])
def test_what_is_not_an_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(OnnxFileError, match=r"m\.onnx.*(not an ONNX|0 bytes)"):
        load_graph(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(OnnxFileError, match="have no file"):
        load_graph(tmp_path / "none.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    content = save(tcn_encoder(), tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(OnnxFileError, match=r"cut short|not an ONNX"):
        load_graph(tmp_path / "m.onnx")


def test_a_cyclic_graph_is_refused(tmp_path):
    b = Builder()
    b.node("Add", ["x", "b"], outputs=["a"])
    b.node("Relu", ["a"], outputs=["b"])
    b.node("Relu", ["b"], outputs=["y"])
    with pytest.raises(OnnxFileError, match="cyclic around"):
        costs(b.model({"x": [2]}, {"y": [2]}), tmp_path)


def test_nodes_in_any_order_are_sorted(tmp_path):
    b = Builder()
    b.node("Relu", ["a"], outputs=["y"])
    b.node("Exp", ["x"], outputs=["a"])
    assert [op.op_type for op in costs(b.model({"x": [2]}, {"y": [2]}), tmp_path)[1]] == ["Exp", "Relu"]


def test_a_graph_with_a_missing_value_is_refused(tmp_path):
    b = Builder()
    b.node("Relu", ["ghost"], outputs=["y"])
    with pytest.raises(OnnxFileError, match="'ghost', nothing makes it"):
        costs(b.model({"x": [2]}, {"y": [2]}), tmp_path)


def test_a_value_with_two_producers_is_refused(tmp_path):
    b = Builder()
    b.node("Relu", ["x"], outputs=["y"])
    b.node("Exp", ["x"], outputs=["y"])
    with pytest.raises(OnnxFileError, match="two producers"):
        costs(b.model({"x": [2]}, {"y": [2]}), tmp_path)


def test_an_operator_of_another_domain_is_refused(tmp_path):
    b = Builder()
    b.node("Frobnicate", ["x"], outputs=["y"], domain="com.microsoft")
    with pytest.raises(OperatorError, match="Frobnicate"):
        costs(b.model({"x": [2]}, {"y": [2]}), tmp_path)


def test_an_operator_without_a_cost_rule_is_refused(tmp_path):
    b = Builder()
    b.node("Det", ["x"], outputs=["y"])
    with pytest.raises(OperatorError, match="have Det"):
        costs(b.model({"x": [2, 2]}, {"y": []}), tmp_path)


def test_control_flow_is_refused(tmp_path):
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["z"])], "b", [], [onnx.helper.make_tensor_value_info("z", 1, [2])]
    )
    b = Builder()
    b.node("If", [b.constant(np.array(True))], outputs=["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(OperatorError, match="control flow"):
        costs(b.model({"x": [2]}, {"y": [2]}), tmp_path)


def test_an_open_dimension_is_refused_until_it_is_given(tmp_path):
    b = Builder()
    b.node("Relu", ["z"], outputs=["y"])
    path = save(b.model({"z": ["N", "W"]}, {"y": ["N", "W"]}), tmp_path / "m.onnx")
    with pytest.raises(ShapeError, match=r"open dimension 1 \(W\); give --dim W=N"):
        load_graph(path)
    assert load_graph(path, dims={"W": 7}).values["y"].shape == (1, 7)


def test_shapes_that_do_not_fit_the_chunk_are_refused(tmp_path):
    model = tcn_encoder()
    with pytest.raises(ShapeError, match="chunk"):
        costs(model, tmp_path, 30)


def test_shapes_are_those_of_the_true_run(tmp_path):
    path = save(attention_encoder(), tmp_path / "m.onnx")
    graph = load_graph(path, 48)
    session = onnxruntime.InferenceSession(path)
    feeds = {i.name: np.zeros(graph.values[i.name].shape, np.float32) for i in session.get_inputs()}
    for output, array in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert graph.values[output.name].shape == array.shape
    assert graph.metadata.keys() >= ENCODER_METADATA.keys()
