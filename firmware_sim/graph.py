"""An ONNX file as a checked list of nodes with every shape known.

Shapes are not inferred but observed: the unoptimised graph runs once on zeros with every value as an output, so contrib
operators (DynamicQuantizeLSTM) and computed shapes are as certain as plain ones. Values that follow from shapes and
constants alone are folded, as every device compiler does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import AttributeProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from edge_asr.onnx_passes import join_streams
from firmware_sim.errors import OnnxFileError, OperatorError, ShapeError

CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
FOLD_NEVER = {"QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike"}
SHAPE_READERS = {"Shape", "Size"}
# onnxruntime's exceptions share no root below Exception
ORT_ERRORS = (
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NotImplemented,
    ort.RuntimeException,
)
ORT_ERRORS += (ort.NoSuchFile, ort.EngineError, ort.EPFail, ort.NoModel, ort.NotFound, RuntimeError, ValueError)


@dataclass(frozen=True)
class Value:
    """A tensor: shape, bytes per element, and whether its contents are known before the run."""

    name: str
    shape: tuple[int, ...]
    item_bytes: int
    is_constant: bool

    @property
    def n_elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def n_bytes(self) -> int:
        return self.n_elements * self.item_bytes


@dataclass(frozen=True)
class Node:
    """One operator; empty names stand for left-out optional inputs."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object]


@dataclass(frozen=True)
class Graph:
    """A folded graph in execution order. `stored_bytes` is what its constants take in the file, by name."""

    path: Path
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stored_bytes: Mapping[str, int]
    n_folded: int
    n_shape_nodes: int  # folded nodes that read an open dimension: an interpreter runs them, a compiler does not
    metadata: Mapping[str, str] = field(default_factory=dict)
    file_bytes: int = 0

    def states(self) -> list[tuple[str, str]]:
        """(input, output) of each streaming state: `state_k` and `next_state_k`."""
        return [(name, f"next_{name}") for name in self.inputs if f"next_{name}" in self.outputs]


def read_model(path: str | Path) -> onnx.ModelProto:
    """Parse and check an ONNX file. Raises OnnxFileError for anything that is not a whole, acyclic graph."""
    path = Path(path)
    if not path.is_file():
        raise OnnxFileError(f"need an ONNX file, have no file {path}")
    if path.stat().st_size == 0:
        raise OnnxFileError(f"{path}: need an ONNX file, have 0 bytes; export the model again")
    try:
        model = onnx.load(str(path))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise OnnxFileError(
            f"{path}: not an ONNX file, or cut short at {path.stat().st_size} bytes: {first_line(error)}; export again"
        ) from error
    if model.ir_version == 0 or not model.opset_import:
        raise OnnxFileError(f"{path}: not an ONNX file (no IR version or operator set); export it again")
    if not model.graph.node or not model.graph.output:
        raise OnnxFileError(
            f"{path}: need nodes and outputs, have an empty graph; the file may be cut short, export it again"
        )
    join_streams(model.graph)  # a loop over the streams of a batch, of which there is one here
    refuse_control_flow(model.graph, path)
    sort_nodes(model.graph, path)
    return model


def refuse_control_flow(graph: onnx.GraphProto, path: Path) -> None:
    """A loop's cost depends on data: refuse rather than guess."""
    found = sorted({node.op_type for node in graph.node if node.op_type in CONTROL_FLOW})
    if found:
        raise OperatorError(
            f"{path}: need a fixed path of execution, have control flow ({', '.join(found)}); export without loops"
        )


def sort_nodes(graph: onnx.GraphProto, path: Path) -> None:
    """Put the nodes into execution order in place. Raises OnnxFileError for cycles, missing and doubled values."""
    known = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    known |= {v.name for v in graph.input} | {""}
    producers: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in producers or name in known:
                raise OnnxFileError(f"{path}: value {name!r} has two producers; the graph is damaged, export it again")
            producers[name] = i
    wanted = [(node.name or node.op_type, name) for node in graph.node for name in node.input]
    wanted += [("output", output.name) for output in graph.output]
    for user, name in wanted:
        if name not in known and name not in producers:
            raise OnnxFileError(
                f"{path}: {user} needs value {name!r}, nothing makes it; the graph is cut short, export it again"
            )
    waiting = [{producers[name] for name in node.input if name in producers} for node in graph.node]
    users: dict[int, list[int]] = {}
    for i, needs in enumerate(waiting):
        for j in needs:
            users.setdefault(j, []).append(i)
    order = [i for i, needs in enumerate(waiting) if not needs]
    for i in order:  # grows while it is read (Kahn 1962)
        for j in users.get(i, []):
            waiting[j].discard(i)
            if not waiting[j]:
                order.append(j)
    if len(order) < len(graph.node):
        stuck = [graph.node[i].name or graph.node[i].op_type for i, needs in enumerate(waiting) if needs]
        raise OnnxFileError(f"{path}: the graph is cyclic around {', '.join(stuck[:4])}; export it again")
    if order != sorted(order):
        nodes = [graph.node[i] for i in order]
        sorted_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(sorted_nodes)


def load_graph(
    path: str | Path,
    chunk_frames: int | None = None,
    dims: Mapping[str, int] | None = None,
    model: onnx.ModelProto | None = None,
) -> Graph:
    """Load, resolve every shape for a batch of one and a chunk of `chunk_frames` feature frames, fold constants.

    `dims` names further open dimensions. Raises OnnxFileError, OperatorError or ShapeError."""
    path = Path(path)
    model = read_model(path) if model is None else model
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    stored = {t.name: tensor_bytes(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            stored[node.output[0]] = constant_bytes(node)
    frames = chunk_frames or metadata_int(metadata, "chunk_frames")
    if frames is not None and frames < 1:
        raise ShapeError(f"{path}: need chunk_frames above 0 in the metadata, have {frames}; give --chunk-ms")
    feeds = {
        v.name: feed(v, frames, dims or {}, path)
        for v in model.graph.input
        if v.name not in {t.name for t in model.graph.initializer}
    }
    values = observe(model, feeds, path)
    constants = {t.name for t in model.graph.initializer}
    nodes, n_folded = [], 0
    from_shapes: set[str] = set()
    is_open = any(not d.HasField("dim_value") for v in model.graph.input for d in v.type.tensor_type.shape.dim)
    n_shape_nodes = 0
    for node in model.graph.node:
        outputs = [name for name in node.output if name in values or not name]
        if is_foldable(node, constants):
            constants |= set(filter(None, node.output))
            n_folded += node.op_type != "Constant"
            if is_open and (node.op_type in SHAPE_READERS or from_shapes & set(node.input)):
                from_shapes |= set(node.output)
                n_shape_nodes += 1
            continue
        attributes = {a.name: attribute_value(a) for a in node.attribute}
        if is_idle_cast(node, values):
            node.op_type = "Identity"
        name = node.name or f"{node.op_type}_{len(nodes)}"
        nodes.append(Node(name, node.op_type, tuple(node.input), tuple(outputs), attributes))
    named = {name: Value(name, shape, dtype.itemsize, name in constants) for name, (shape, dtype) in values.items()}
    return Graph(
        path=path,
        nodes=tuple(drop_dead(nodes, [o.name for o in model.graph.output])),
        values=named,
        inputs=tuple(feeds),
        outputs=tuple(o.name for o in model.graph.output),
        stored_bytes=stored,
        n_folded=n_folded,
        n_shape_nodes=n_shape_nodes,
        metadata=metadata,
        file_bytes=path.stat().st_size if path.is_file() else 0,
    )


def is_foldable(node: onnx.NodeProto, constants: set[str]) -> bool:
    """True where the node's result is known before the run."""
    if node.op_type in FOLD_NEVER:
        return False
    return node.op_type in SHAPE_READERS or all(name in constants for name in node.input if name)


def is_idle_cast(node: onnx.NodeProto, values: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> bool:
    """A Cast to the type that the value already has: every runtime drops it."""
    return node.op_type == "Cast" and values[node.input[0]][1] == values[node.output[0]][1]


def drop_dead(nodes: list[Node], outputs: list[str]) -> list[Node]:
    """Nodes whose results nobody reads cost nothing on a device."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            wanted |= set(node.inputs)
            kept.append(node)
    return kept[::-1]


def feed(info: onnx.ValueInfoProto, frames: int | None, dims: Mapping[str, int], path: Path) -> np.ndarray:
    """Zeros for one graph input, its open dimensions resolved."""
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ShapeError(f"{path}: input {info.name} needs a tensor shape, has none; export with shapes")
    shape = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            shape.append(dim.dim_value)
        elif dim.dim_param in dims:
            shape.append(dims[dim.dim_param])
        elif axis == 0:
            shape.append(1)  # the batch: a device hears one room
        elif info.name == "x" and axis == 1 and frames:
            shape.append(frames)
        else:
            label = dim.dim_param or "unnamed"
            raise ShapeError(
                f"{path}: input {info.name} has an open dimension {axis} ({label}); "
                + (f"give --dim {label}=N" if dim.dim_param else "name it or fix it when exporting, or give --chunk-ms")
            )
    return np.zeros(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def observe(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], path: Path
) -> dict[str, tuple[tuple[int, ...], int]]:
    """(shape, type) of every value, by running the graph once without optimisation."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    declared = {o.name for o in probe.graph.output}
    produced = [name for node in probe.graph.node for name in node.output if name and name not in declared]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in produced)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        results = session.run(names, dict(feeds))
    except ORT_ERRORS as error:
        raise refusal(error, path) from error
    values = {name: (tuple(np.shape(v)), np.asarray(v).dtype) for name, v in zip(names, results, strict=True)}
    values |= {name: (array.shape, array.dtype) for name, array in feeds.items()}
    for tensor in probe.graph.initializer:
        values[tensor.name] = (tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return values


def refusal(error: Exception, path: Path) -> OnnxFileError | OperatorError | ShapeError:
    """onnxruntime's complaint in the words of this package."""
    message = first_line(error)
    lowered = message.lower()
    if (
        "not a registered function/op" in lowered
        or "no op registered" in lowered
        or "could not find an implementation" in lowered
    ):
        return OperatorError(f"{path}: the graph holds an operator that no runtime here knows: {message}")
    if "dimension" in lowered or "shape" in lowered:
        return ShapeError(
            f"{path}: the shapes do not fit together at this chunk size: {message}; try another --chunk-ms"
        )
    return OnnxFileError(f"{path}: the graph cannot run: {message}; export it again")


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def metadata_int(metadata: Mapping[str, str], key: str) -> int | None:
    """A whole number from the metadata, None where absent or not a number."""
    try:
        return int(json.loads(metadata[key])) if key in metadata else None
    except (ValueError, TypeError):
        return None


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a stored tensor (4-bit types count a byte an element: onnxruntime unpacks them)."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def constant_bytes(node: onnx.NodeProto) -> int:
    """Bytes of a Constant node's tensor."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            return tensor_bytes(attribute.t)
        if attribute.type in (AttributeProto.FLOAT, AttributeProto.INT):
            return 4 if attribute.type == AttributeProto.FLOAT else 8
        if attribute.type in (AttributeProto.FLOATS, AttributeProto.INTS):
            return 4 * len(attribute.floats) + 8 * len(attribute.ints)
    return 0


def attribute_value(attribute: AttributeProto) -> object:
    """Python value of an attribute; tensors as arrays."""
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(attribute.t)
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
