"""Ledgers, lifetimes and the work of a chunk: sums add up, states are counted, the search and its graph too."""

import itertools
import json

import pytest
from graphs import attention_encoder, lstm_encoder, model_directory, save, tcn_encoder

from firmware_sim.device import load_device
from firmware_sim.errors import BudgetError, OnnxFileError
from firmware_sim.ledger import arena_buffers, flash_ledger, plan_model, ram_ledger
from firmware_sim.model import load_model
from firmware_sim.target import load_target
from firmware_sim.verdict import Setup, assess, first_to_break

ENCODERS = {"lstm": lstm_encoder, "tcn": tcn_encoder, "attention": attention_encoder}


@pytest.fixture(params=ENCODERS)
def model(request, tmp_path):
    return load_model(save(ENCODERS[request.param](), tmp_path / "m.onnx"))


@pytest.mark.parametrize("runtime", ["onnxruntime", "st-edge-ai", "tflite-micro"])
def test_every_operand_is_alive_while_it_is_used(model, runtime):
    target = load_target(runtime)
    buffers = {b.name: b for b in arena_buffers(model.graph, model.ops, target)}
    aside = {name for pair in model.graph.states() for name in pair}
    for step, op in enumerate(model.ops):
        for name in (*op.inputs, *op.outputs):
            if name in buffers:
                assert buffers[name].first <= step
                if not target.in_place:
                    assert step <= buffers[name].last
            else:
                assert (
                    name in aside or target.in_place or model.graph.values[name].n_bytes == 0 or is_state(model, name)
                )
    assert not aside & set(buffers)


def is_state(model, name):
    """A value that a view turns into a next state lives in the state ledger."""
    return any(node.inputs[0] == name and node.outputs[0].startswith("next_state") for node in model.graph.nodes)


def test_the_plan_never_overlaps_live_tensors_of_an_encoder(model):
    plan = plan_model(model, load_target("onnxruntime"))
    placed = list(zip(plan.buffers, plan.offsets, strict=True))
    assert plan.arena_bytes >= plan.lower_bound_bytes
    for (a, at), (b, bt) in itertools.combinations(placed, 2):
        if a.meets(b) and a.n_bytes and b.n_bytes:
            assert at + a.n_bytes <= bt or bt + b.n_bytes <= at


def test_writing_in_place_never_needs_more_arena(model):
    in_place = sum(b.n_bytes for b in arena_buffers(model.graph, model.ops, load_target("onnxruntime")))
    apart = sum(
        b.n_bytes for b in arena_buffers(model.graph, model.ops, load_target("st-edge-ai")) if "scratch" not in b.name
    )
    assert in_place <= apart + sum(
        b.n_bytes for b in arena_buffers(model.graph, model.ops, load_target("onnxruntime")) if "scratch" in b.name
    )


def test_flash_holds_the_whole_file_and_the_reserves(model):
    device, target = load_device("echo-dot-3"), load_target("onnxruntime")
    ledger = flash_ledger(model, device, target)
    own = [e.n_bytes for e in ledger.entries if e.label.startswith("encoder") or "scales" in e.label]
    assert sum(own) == model.graph.file_bytes
    assert ledger.used_bytes == sum(e.n_bytes for e in ledger.entries)
    assert ledger.margin_bytes == ledger.budget_bytes - ledger.used_bytes


def test_weights_that_stay_in_flash_take_no_ram(model):
    device, target = load_device("stm32h743"), load_target("st-edge-ai")
    ledger = ram_ledger(model, device, target, plan_model(model, target), 1.0)
    assert "encoder weights" not in {e.label for e in ledger.entries}


@pytest.mark.parametrize("ring_s", [0, -1, float("nan"), 1e9])
def test_an_impossible_ring_is_refused(model, ring_s):
    device, target = load_device("echo-dot-3"), load_target("onnxruntime")
    with pytest.raises(BudgetError, match="ring buffer"):
        ram_ledger(model, device, target, plan_model(model, target), ring_s)


@pytest.fixture
def with_graph(tmp_path):
    folder = model_directory(tmp_path / "toy", tcn_encoder(), tcn_encoder(quantised=True))
    graph = tmp_path / "graphs" / "small"
    graph.mkdir(parents=True)
    (graph / "graph.fst").write_bytes(bytes(300_000))
    (graph / "words.txt").write_text("<eps> 0\n")
    (graph / "config.json").write_text(json.dumps({"n_states": 10_000, "n_arcs": 25_000}))
    (folder / "config.json").write_text(json.dumps({"graph": "../graphs/small", "decoder": {"max_active": 2000}}))
    return folder


def test_a_decoding_graph_enters_flash_ram_and_time(with_graph):
    model = load_model(with_graph)
    device, target = load_device("echo-dot-3"), load_target("onnxruntime")
    flash = {e.label: e.n_bytes for e in flash_ledger(model, device, target).entries}
    ram = {e.label: e.n_bytes for e in ram_ledger(model, device, target, plan_model(model, target), 1.0).entries}
    assert flash["decoding graph"] == 300_000
    assert ram["decoding graph"] == 10_000 * 20 + 25_000 * 16
    assert ram["search tokens"] > 0
    assert model.search_op.arcs == 8 * 500 * 2.5  # vectors, a quarter of max_active, arcs per state
    worst = assess(model, device, Setup(seconds=5)).latency
    (with_graph / "config.json").write_text("{}")
    assert assess(load_model(with_graph), device, Setup(seconds=5)).latency.high < worst.high


def test_a_graph_that_is_named_and_missing_is_refused(with_graph):
    (with_graph / "config.json").write_text(json.dumps({"graph": "../graphs/none"}))
    with pytest.raises(OnnxFileError, match="need the decoding graph"):
        load_model(with_graph)


def test_a_precision_that_a_model_lacks_is_refused(with_graph):
    (with_graph / "encoder.onnx").unlink()
    with pytest.raises(OnnxFileError, match=r"need encoder\.onnx for --precision fp32"):
        load_model(with_graph, "fp32")


def test_the_verdict_turns_where_the_breaking_point_says(tmp_path):
    model = load_model(save(lstm_encoder(320, 3), tmp_path / "m.onnx"))
    device, setup = load_device("echo-dot-3"), Setup(seconds=13, governor="performance", ring_s=5)
    a = assess(model, device, setup)
    keys = {"core clock": "cpu.clock_hz", "RAM bandwidth": "memory.ram_bytes_per_s"}
    for breaking in a.breaking:
        if breaking.label in keys and breaking.factor:
            key = keys[breaking.label]
            better = assess(model, device.with_value(key, breaking.value * 1.02), setup)
            worse = assess(model, device.with_value(key, breaking.value * 0.90), setup)
            assert "deadline" not in better.broken
            assert worse.worst_response_s is None or worse.worst_response_s > model.period_s
    assert first_to_break(a.breaking).factor == min(
        (b.factor for b in a.breaking if b.factor), key=lambda f: max(f, 1 / f)
    )
