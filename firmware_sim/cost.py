"""What each operator of a graph costs: multiply-adds, element operations, bytes of weights and activations.

QDQ graphs are costed as the integer kernels they become: an operator between DequantizeLinear and QuantizeLinear counts
once, with 8-bit operands. A multiply-add is one multiplication and one addition; a bias addition is none (ST counts
one, see `OpCost.bias_elements`). Activations are what an operator reads and writes; caches are `latency`'s business.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from firmware_sim.errors import OperatorError
from firmware_sim.graph import Graph, Node, Value
from firmware_sim.operators import (
    ABSORBS_QDQ,
    CONVOLUTIONS,
    GATHER,
    INTEGER_OPERATORS,
    KNOWN,
    MOVE,
    NORM,
    PARAMETER_SLOTS,
    PLAIN,
    PRODUCTS,
    QUANTISE,
    RECURRENT_GATES,
    REDUCE,
    SOFTMAX,
    TRANSCENDENTAL,
    VIEWS,
)

WITH_MACS = ("gemm", "conv", "depthwise", "recurrent", "attention")
KINDS = (*WITH_MACS, "elementwise", "norm", "move", "gather", "transpose", "quantise", "shape", "frontend", "search")

INDEX_BYTES = 8  # 64-bit constants are axes, shapes and indices, not weights


@dataclass(frozen=True)
class OpCost:
    """One operator. `step_weight_bytes` of the weights are read again at each of `steps` (a recurrence)."""

    name: str
    op_type: str
    kind: str
    precision: str  # "int8" or "fp32"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    macs: int = 0
    elements: int = 0
    transcendentals: int = 0
    weight_bytes: int = 0
    step_weight_bytes: int = 0
    steps: int = 1
    read_bytes: int = 0
    write_bytes: int = 0
    bias_elements: int = 0
    rows: int = 0  # of the product: rows × depth by depth × columns
    columns: int = 0
    depth: int = 0
    kernel: int = 1
    nodes: int = 1  # of the graph that this entry stands for
    channels_in: int = 0
    random_reads: int = 0  # dependent reads with no locality
    arcs: int = 0  # arcs of the decoding graph that a search walks
    spread: tuple[float, float] = (
        1.0,
        1.0,
    )  # least and most of this work, as factors: a search depends on what is said

    @property
    def traffic_bytes(self) -> int:
        """Bytes the core pulls and pushes if nothing stays in a register: every step reads its weights again."""
        return self.weight_bytes + self.step_weight_bytes * (self.steps - 1) + self.read_bytes + self.write_bytes

    @property
    def intensity(self) -> float:
        """Multiply-adds per byte moved."""
        return self.macs / self.traffic_bytes if self.traffic_bytes else 0.0


@dataclass(frozen=True)
class Work:
    """A node after fusion, with its operands split into live values and constants."""

    node: Node
    inputs: tuple[Value, ...]  # live
    constants: tuple[Value, ...]
    outputs: tuple[Value, ...]
    precision: str
    slots: tuple[Value | None, ...]  # all inputs by position


def cost_graph(graph: Graph) -> list[OpCost]:
    """Costs of a folded graph in execution order, QDQ pairs fused, views (free) left out.

    Raises OperatorError naming every operator without a cost rule."""
    unknown = sorted({node.op_type for node in graph.nodes} - KNOWN)
    if unknown:
        near = difflib.get_close_matches(unknown[0], KNOWN, n=2)
        hint = f" (nearest known: {', '.join(near)})" if near else ""
        raise OperatorError(
            f"{graph.path}: need operators with a cost rule, have {', '.join(unknown)}{hint}; "
            "export without them or add a rule to firmware_sim.cost"
        )
    roots = view_roots(graph)
    return [cost_node(work, roots) for work in fuse(graph) if work.node.op_type not in VIEWS]


def fuse(graph: Graph) -> list[Work]:
    """Nodes with QDQ pairs absorbed into integer operators."""
    producer = {name: node for node in graph.nodes for name in node.outputs if name}
    users: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in filter(None, node.inputs):
            users.setdefault(name, []).append(node)
    integer = {id(node) for node in graph.nodes if reads_only_quantised(node, graph, producer)}
    output_of: dict[str, str] = {}  # float result → its only quantised form
    for node in graph.nodes:
        name = node.outputs[0]
        after = users.get(name, [])
        if (
            id(node) in integer
            and len(after) == 1
            and after[0].op_type == "QuantizeLinear"
            and name not in graph.outputs
        ):
            output_of[name] = after[0].outputs[0]
        elif id(node) in integer and node.op_type not in PRODUCTS | CONVOLUTIONS:
            integer.discard(id(node))  # integer in, float out exists for products only
    absorbed = set(output_of.values())
    works = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and node.outputs[0] in absorbed:
            continue
        if node.op_type == "DequantizeLinear" and is_absorbed(node.outputs[0], users, integer, graph):
            continue
        works.append(work_of(node, graph, producer, id(node) in integer, output_of))
    return works


def dequantiser(name: str, producer: Mapping[str, Node]) -> Node | None:
    """The DequantizeLinear that makes this value, seen through views."""
    source = producer.get(name)
    while source is not None and source.op_type in VIEWS:
        source = producer.get(source.inputs[0])
    return source if source is not None and source.op_type == "DequantizeLinear" else None


def reads_only_quantised(node: Node, graph: Graph, producer: Mapping[str, Node]) -> bool:
    """True where every float operand of the node comes from DequantizeLinear (a float bias constant may stay)."""
    if node.op_type not in ABSORBS_QDQ:
        return False
    quantised = False
    for slot, name in enumerate(node.inputs):
        is_index = bool(name) and graph.values[name].is_constant and (slot > 1 or graph.values[name].item_bytes == 8)
        is_condition = node.op_type == "Where" and slot == 0
        if not name or is_index or is_condition:
            continue
        if dequantiser(name, producer) is None:
            return False
        quantised = True
    return quantised


def is_absorbed(name: str, users: Mapping[str, list[Node]], integer: set[int], graph: Graph) -> bool:
    """True where nobody reads the float value: all users, seen through views, are integer operators."""
    if name in graph.outputs:
        return False
    return all(
        id(user) in integer or (user.op_type in VIEWS and is_absorbed(user.outputs[0], users, integer, graph))
        for user in users.get(name, [])
    )


def work_of(
    node: Node, graph: Graph, producer: Mapping[str, Node], integer: bool, output_of: Mapping[str, str]
) -> Work:
    """Operands of a node after fusion: an integer operator reads what DequantizeLinear would have read."""

    def operand(name: str) -> Value | None:
        if not name:
            return None
        source = dequantiser(name, producer) if integer else None
        if source is None:
            return graph.values[name]
        stored = graph.values[source.inputs[0]]
        return replace(stored, shape=graph.values[name].shape)

    slots = tuple(operand(name) for name in node.inputs)
    parameters = PARAMETER_SLOTS.get(node.op_type, ())
    operands = [v for i, v in enumerate(slots) if v is not None and i not in parameters]
    outputs = [output_of.get(name, name) if integer else name for name in node.outputs if name]
    precision = "int8" if integer or node.op_type in INTEGER_OPERATORS else "fp32"
    return Work(
        node,
        tuple(v for v in operands if not v.is_constant),
        tuple(v for v in operands if v.is_constant),
        tuple(graph.values[name] for name in outputs),
        precision,
        slots,
    )


def view_roots(graph: Graph) -> dict[str, str]:
    """Views and the value whose memory they share."""
    roots: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in VIEWS and node.inputs[0]:
            roots[node.outputs[0]] = roots.get(node.inputs[0], node.inputs[0])
    return roots


def cost_node(work: Work, roots: Mapping[str, str]) -> OpCost:
    """Cost of one fused node by the rule of its operator."""
    out_elements = sum(v.n_elements for v in work.outputs)
    base = OpCost(
        name=work.node.name,
        op_type=work.node.op_type,
        kind="elementwise",
        precision=work.precision,
        inputs=tuple(dict.fromkeys(roots.get(v.name, v.name) for v in work.inputs)),
        outputs=tuple(roots.get(v.name, v.name) for v in work.outputs),
        weight_bytes=sum(v.n_bytes for v in work.constants if v.item_bytes != INDEX_BYTES),
        read_bytes=sum(v.n_bytes for v in work.inputs),
        write_bytes=sum(v.n_bytes for v in work.outputs),
        elements=out_elements,
    )
    for operators, rule in RULES:
        if work.node.op_type in operators:
            return rule(work, base)
    raise OperatorError(f"{work.node.op_type} has no cost rule; add one to firmware_sim.cost")


def cost_plain(work: Work, base: OpCost) -> OpCost:
    return base


def cost_transcendental(work: Work, base: OpCost) -> OpCost:
    return replace(base, elements=0, transcendentals=base.elements)


def cost_softmax(work: Work, base: OpCost) -> OpCost:
    return replace(base, kind="norm", elements=3 * base.elements, transcendentals=base.elements)


def cost_reduce(work: Work, base: OpCost) -> OpCost:
    return replace(base, kind="norm", elements=sum(v.n_elements for v in work.inputs))


def cost_norm(work: Work, base: OpCost) -> OpCost:
    """Mean, variance, scale: four passes over the elements, one square root a row."""
    n = work.outputs[0].n_elements
    rows = n // max(work.outputs[0].shape[-1], 1) if work.outputs[0].shape else 1
    return replace(base, kind="norm", elements=4 * n, transcendentals=rows)


def cost_move(work: Work, base: OpCost) -> OpCost:
    """Copies; a slice reads no more than it writes."""
    if work.node.op_type == "Slice":
        return replace(base, kind="move", read_bytes=base.write_bytes)
    return replace(base, kind="transpose" if work.node.op_type == "Transpose" else "move")


def cost_gather(work: Work, base: OpCost) -> OpCost:
    """Pieces picked by index: reads what it writes; `elements` counts the pieces, each a copy of its own."""
    table, out = work.slots[0], work.outputs[0]
    pieces = out.n_elements
    if work.node.op_type == "Gather" and table is not None:
        axis = int(work.node.attributes.get("axis", 0)) % max(len(table.shape), 1)
        pieces //= max(int(np.prod(table.shape[axis + 1 :], dtype=np.int64)), 1)
    constant = table is not None and table.is_constant
    return replace(
        base,
        kind="gather",
        elements=pieces,
        weight_bytes=base.write_bytes if constant else 0,
        read_bytes=0 if constant else base.write_bytes,
    )


def shape_cost(graph: Graph) -> OpCost:
    """Nodes that move no data but that an interpreter still visits: shape arithmetic and views."""
    views = sum(node.op_type in VIEWS for node in graph.nodes)
    return OpCost("shapes and views", "Shape", "shape", "fp32", nodes=graph.n_shape_nodes + views)


def cost_quantise(work: Work, base: OpCost) -> OpCost:
    return replace(base, kind="quantise", precision="fp32")


def cost_product(work: Work, base: OpCost) -> OpCost:
    """Matrix product; operand positions differ between MatMul and QLinearMatMul."""
    left, right = product_operands(work)
    out = work.outputs[0]
    depth = left.shape[0] if work.node.attributes.get("transA", 0) else left.shape[-1]
    columns = out.shape[-1] if len(right.shape) > 1 and out.shape else 1
    kind = "gemm" if left.is_constant or right.is_constant else "attention"
    biases = [v for v in work.constants if v.name not in (left.name, right.name)]
    return replace(
        base,
        kind=kind,
        macs=out.n_elements * depth,
        elements=0,
        rows=out.n_elements // max(columns, 1),
        columns=columns,
        depth=depth,
        channels_in=depth,
        bias_elements=max((v.n_elements for v in biases), default=0),
    )


def product_operands(work: Work) -> tuple[Value, Value]:
    second = 3 if work.node.op_type in {"QLinearMatMul", "QGemm"} else 1
    left, right = work.slots[0], work.slots[second]
    if left is None or right is None:
        raise OperatorError(
            f"{work.node.name}: {work.node.op_type} needs two operands, has one; export the model again"
        )
    return left, right


def cost_conv(work: Work, base: OpCost) -> OpCost:
    """Convolution of any rank; one channel a group is depthwise."""
    weight = work.slots[3] if work.node.op_type == "QLinearConv" else work.slots[1]
    out = work.outputs[0]
    group = int(work.node.attributes.get("group", 1))
    kernel = int(np.prod(weight.shape[2:], dtype=np.int64))
    depth = weight.shape[1] * kernel
    biases = [v for v in work.constants if v.name != weight.name]
    return replace(
        base,
        kind="depthwise" if group > 1 and weight.shape[1] == 1 else "conv",
        macs=out.n_elements * depth,
        elements=0,
        rows=out.n_elements // max(out.shape[1], 1),
        columns=out.shape[1],
        depth=depth,
        kernel=kernel,
        channels_in=weight.shape[1] * group,
        bias_elements=max((v.n_elements for v in biases), default=0),
    )


def cost_recurrent(work: Work, base: OpCost) -> OpCost:
    """LSTM, GRU, RNN: the input product reads its weights once a chunk, the recurrent product once a step."""
    gates = RECURRENT_GATES[work.node.op_type]
    x, w, r = work.slots[:3]
    hidden = int(work.node.attributes["hidden_size"])
    directions = w.shape[0]
    steps = x.shape[1] if work.node.attributes.get("layout", 0) else x.shape[0]
    batch = x.shape[0] if work.node.attributes.get("layout", 0) else x.shape[1]
    cells = directions * steps * batch * hidden
    return replace(
        base,
        kind="recurrent",
        macs=cells * gates * (x.shape[-1] + hidden),
        elements=4 * cells,
        transcendentals=cells * {4: 5, 3: 3, 1: 1}[gates],
        step_weight_bytes=r.n_bytes,
        steps=steps,
        rows=steps * batch,
        columns=gates * hidden * directions,
        depth=x.shape[-1] + hidden,
        channels_in=x.shape[-1],
    )


RULES: tuple[tuple[set[str], Callable[[Work, OpCost], OpCost]], ...] = (
    (PRODUCTS, cost_product),
    (CONVOLUTIONS, cost_conv),
    (set(RECURRENT_GATES), cost_recurrent),
    (SOFTMAX, cost_softmax),
    (TRANSCENDENTAL, cost_transcendental),
    (NORM, cost_norm),
    (REDUCE, cost_reduce),
    (GATHER, cost_gather),
    (MOVE, cost_move),
    (QUANTISE, cost_quantise),
    (PLAIN, cost_plain),
)


def quantisation_parameters(graph: Graph) -> set[str]:
    """Constants that are only scales and zero points."""
    parameters, others = set(), set()
    for node in graph.nodes:
        slots = PARAMETER_SLOTS.get(node.op_type, ())
        for slot, name in enumerate(node.inputs):
            (parameters if slot in slots else others).add(name)
    return parameters - others
