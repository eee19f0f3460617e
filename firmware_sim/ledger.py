"""Flash and RAM, entry by entry, against the device's budget. A ledger that does not balance refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firmware_sim.cost import OpCost, quantisation_parameters, view_roots
from firmware_sim.device import Device
from firmware_sim.errors import BudgetError
from firmware_sim.graph import Graph
from firmware_sim.model import FRONTEND_RAM_BYTES, FRONTEND_TABLE_BYTES, SAMPLE_RATE, Model
from firmware_sim.planner import Buffer, Plan, plan_arena
from firmware_sim.target import Target, scratch_bytes

SAMPLE_BYTES = 4  # the ring holds float32
EXACT = "exact"  # counted in the files, not estimated
IN_PLACE_KINDS = ("elementwise",)


@dataclass(frozen=True)
class Entry:
    """Bytes of one use; `kind` is EXACT or the kind of the figure behind the number."""

    label: str
    n_bytes: int
    kind: str
    note: str = ""


@dataclass(frozen=True)
class Ledger:
    """Uses of one memory and what it may hold."""

    name: str
    entries: tuple[Entry, ...]
    budget_bytes: int

    @property
    def used_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self.entries)

    @property
    def margin_bytes(self) -> int:
        return self.budget_bytes - self.used_bytes

    @property
    def is_kept(self) -> bool:
        return self.margin_bytes >= 0

    def share_assumed(self) -> float:
        """Share of the used bytes that rests on assumptions."""
        assumed = sum(entry.n_bytes for entry in self.entries if entry.kind == "assumed")
        return assumed / self.used_bytes if self.used_bytes else 0.0


def arena_buffers(graph: Graph, ops: Sequence[OpCost], target: Target) -> list[Buffer]:
    """Lifetimes of all activations and of each kernel's scratch. Streaming states live in a ledger of their own."""
    views = view_roots(graph)
    states = graph.states()
    aside = {name for name, _ in states} | state_roots(graph, ops)
    last = {name: i for i, op in enumerate(ops) for name in op.inputs}
    first = dict.fromkeys(graph.inputs, 0) | {name: i for i, op in enumerate(ops) for name in op.outputs}
    for name in graph.outputs:  # results must survive to the end, seen through views
        last[views.get(name, name)] = len(ops) - 1
    hosts: dict[str, str] = {}  # output → buffer it overwrites
    for i, op in enumerate(ops):
        if not (target.in_place and op.kind in IN_PLACE_KINDS and len(op.outputs) == 1):
            continue
        size = graph.values[op.outputs[0]].n_bytes
        for name in op.inputs:
            free = last.get(name) == i and name not in aside and name not in graph.inputs and op.outputs[0] not in aside
            if free and graph.values[name].n_bytes == size:
                hosts[op.outputs[0]] = hosts.get(name, name)
                break
    ends: dict[str, int] = {}
    for name in first:
        host = hosts.get(name, name)
        ends[host] = max(ends.get(host, 0), last.get(name, first[name]))
    buffers = [
        Buffer(name, graph.values[name].n_bytes, first[name], max(end, first[name]))
        for name, end in ends.items()
        if name not in aside and name in graph.values
    ]
    scratch = [(i, op, scratch_bytes(op, target)) for i, op in enumerate(ops)]
    return buffers + [Buffer(f"scratch of {op.name}", size, i, i) for i, op, size in scratch if size]


def state_roots(graph: Graph, ops: Sequence[OpCost]) -> set[str]:
    """Values that carry a next state, seen through views: they are written straight into the state's second buffer."""
    wanted = {name for _, name in graph.states()}
    for node in reversed(graph.nodes):
        if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity") and node.outputs[0] in wanted:
            wanted.add(node.inputs[0])
    return wanted & {name for op in ops for name in op.outputs}


def plan_model(model: Model, target: Target) -> Plan:
    """The encoder's arena on a target runtime."""
    return plan_arena(arena_buffers(model.graph, model.ops, target), target.alignment)


def weight_storage(graph: Graph) -> tuple[int, int]:
    """(bytes of weights, bytes of scales and zero points) as stored in the file."""
    parameters = quantisation_parameters(graph)
    total = sum(graph.stored_bytes.values())
    scales = sum(size for name, size in graph.stored_bytes.items() if name in parameters)
    return total - scales, scales


def flash_ledger(model: Model, device: Device, target: Target, budget_bytes: float | None = None) -> Ledger:
    """What has to be stored on the device."""
    weights, scales = weight_storage(model.graph)
    structure = max(model.graph.file_bytes - weights - scales, 0)
    code, system = target.figures["code_bytes"], device.figures["budget.system_flash_bytes"]
    entries = (
        Entry("system reserve", int(system.value), system.kind, system.source),
        Entry("runtime code", int(code.value), code.kind, code.source),
        Entry("encoder weights", weights, EXACT),
        Entry("scales and zero points", scales, EXACT),
        Entry("encoder structure and metadata", structure, EXACT),
        Entry("decoding graph", model.search.graph_bytes, EXACT),
        Entry("tokens and words", model.search.symbol_bytes, EXACT),
        Entry("front end tables", FRONTEND_TABLE_BYTES, EXACT),
    )
    return Ledger("flash", kept(entries), budget(budget_bytes, device["budget.flash_bytes"], "flash"))


def ram_ledger(
    model: Model,
    device: Device,
    target: Target,
    plan: Plan,
    ring_s: float,
    alias_state: bool = False,
    budget_bytes: float | None = None,
) -> Ledger:
    """What has to be in RAM while a stream runs. States are doubled unless the runtime may overwrite them."""
    heap, copies, system = (
        target.figures["heap_bytes"],
        target.figures["weight_copies"],
        device.figures["budget.system_ram_bytes"],
    )
    in_ram = device.weights_in == "ram"
    weights = int(sum(weight_storage(model.graph)) * copies.value) if in_ram else 0
    graph_bytes, symbol_bytes = (model.search.loaded_bytes, model.search.symbol_bytes) if in_ram else (0, 0)
    entries = (
        Entry("system reserve", int(system.value), system.kind, system.source),
        Entry("runtime heap", int(heap.value), heap.kind, heap.source),
        Entry("encoder weights", weights, copies.kind, f"{copies.value:g} bytes per stored byte: {copies.source}"),
        Entry("arena", plan.arena_bytes, EXACT, f"lower bound {plan.lower_bound_bytes:,} bytes"),
        Entry(
            "streaming state",
            model.state_bytes * (1 if alias_state else 2),
            EXACT,
            "in place" if alias_state else "two buffers",
        ),
        Entry("ring buffer", ring_samples(ring_s) * SAMPLE_BYTES, EXACT, f"{ring_s:g} s of float32"),
        Entry("front end", FRONTEND_RAM_BYTES, "assumed", "two frames, transform and mel buffers"),
        Entry("decoding graph", graph_bytes, EXACT, "unpacked for the search"),
        Entry("tokens and words", symbol_bytes, EXACT, "as text, a table takes more"),
        Entry("search tokens", model.search.token_bytes, "assumed", f"max_active {model.search.max_active}"),
    )
    return Ledger("RAM", kept(entries), budget(budget_bytes, device["budget.ram_bytes"], "RAM"))


def kept(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if entry.n_bytes)


def ring_samples(ring_s: float) -> int:
    """Capacity of the ring. Raises BudgetError unless above zero."""
    if not 0 < ring_s < 3600:
        raise BudgetError(f"need a ring buffer above 0 and below 3600 s, have {ring_s} s")
    return round(ring_s * SAMPLE_RATE)


def budget(override: float | None, own: float, name: str) -> int:
    """The budget in force. Raises BudgetError for one that is not above zero."""
    if override is None:
        return int(own)
    if not override > 0:
        raise BudgetError(f"need a {name} budget above zero bytes, have {override:g}")
    return int(override)
