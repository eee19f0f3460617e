"""Weighted transducers as numpy columns, passed to and from kaldifst in bulk.

kaldifst's Python calls cost a microsecond for each arc, and a decoding graph has millions. So graphs pass as the bytes
of an OpenFst `const` file (20 bytes for each state, 16 for each arc), a fixed layout that numpy reads and writes.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import kaldifst
import numpy as np
from kaldifst.lib import _kaldifst

from edge_asr.errors import GraphError

ARC = np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("weight", "<f4"), ("nextstate", "<i4")])
STATE = np.dtype([("final", "<f4"), ("pos", "<u4"), ("n_arcs", "<u4"), ("n_ieps", "<u4"), ("n_oeps", "<u4")])

_HEADER = struct.Struct("<i i5s i8s i i Q q q q")  # magic, type, arc type, version, flags, properties, start, S, A
_MAGIC = 2125659606
_VERSION = 2
_ALIGNED = 4  # the flag that says so: states and arcs each begin at a multiple of 16, so that they can be mapped
_ALIGNMENT = 16
_EXPANDED = 1  # the one property that every const FST has; the rest are unknown


@dataclass(frozen=True)
class Transducer:
    """S states and A arcs, the arcs in the order of their source; weights are costs (−ln), tropical semiring."""

    start: int
    final: np.ndarray  # (S,) float32, +inf where a state is not final
    first: np.ndarray  # (S + 1,) int64, first arc of each state
    ilabel: np.ndarray  # (A,) int32
    olabel: np.ndarray  # (A,) int32
    weight: np.ndarray  # (A,) float32
    nextstate: np.ndarray  # (A,) int32

    @property
    def n_states(self) -> int:
        return len(self.final)

    @property
    def n_arcs(self) -> int:
        return len(self.ilabel)

    @property
    def source(self) -> np.ndarray:
        """(A,) int32, the state that each arc leaves."""
        return np.repeat(np.arange(self.n_states, dtype=np.int32), np.diff(self.first))


def from_arcs(
    start: int,
    final: np.ndarray,
    source: np.ndarray,
    ilabel: np.ndarray,
    olabel: np.ndarray,
    weight: np.ndarray,
    nextstate: np.ndarray,
) -> Transducer:
    """A transducer from arcs in any order; those of one state keep theirs."""
    order = np.argsort(source, kind="stable")
    first = np.zeros(len(final) + 1, np.int64)
    np.cumsum(np.bincount(source, minlength=len(final)), out=first[1:])
    labels = (np.asarray(column)[order].astype(np.int32) for column in (ilabel, olabel))
    costs = np.asarray(weight)[order].astype(np.float32)
    ahead = np.asarray(nextstate)[order].astype(np.int32)
    return Transducer(int(start), np.asarray(final, np.float32), first, *labels, costs, ahead)


def to_kaldifst(fst: Transducer) -> kaldifst.StdConstFst:
    arcs = np.empty(fst.n_arcs, ARC)
    for field in ARC.names:
        arcs[field] = getattr(fst, field)
    return assemble(fst.start, fst.n_states, fst.n_arcs, [states_of(fst.final, np.diff(fst.first))], [arcs])


def states_of(final: np.ndarray, n_arcs: np.ndarray, position: int = 0) -> np.ndarray:
    """(S,) STATE, from final costs and numbers of arcs; `position` is that of the first arc of the first state."""
    states = np.zeros(len(final), STATE)
    states["final"] = final
    states["n_arcs"] = n_arcs
    states["pos"] = position + np.cumsum(n_arcs) - n_arcs
    return states


def assemble(
    start: int, n_states: int, n_arcs: int, states: Iterable[np.ndarray], arcs: Iterable[np.ndarray]
) -> kaldifst.StdConstFst:
    """A const FST from its states (dtype STATE) and arcs (ARC) in blocks, so that they are never held twice.

    Its memory is mapped where kaldifst can do that: pages that no search has visited do not count to the process, and
    processes forked later share the rest.
    The counts of epsilons of a state, which no search here reads, stay zero.
    """
    header = (_MAGIC, 5, b"const", 8, b"standard", _VERSION, _ALIGNED, _EXPANDED, start, n_states, n_arcs)
    with _memory_file() as path:
        with open(path, "wb") as file:
            file.write(_HEADER.pack(*header))
            for blocks in (states, arcs):
                _align(file)
                for block in blocks:
                    file.write(block.data)
        with _reading_by_mapping():
            fst = kaldifst.StdConstFst.read(path)
    if fst is None:
        raise GraphError(f"kaldifst refused a graph of {n_states} states; check free memory and disk space")
    return fst


def from_kaldifst(fst: kaldifst.StdFst) -> Transducer:
    with _memory_file() as path:
        kaldifst.StdConstFst(fst).write(path)
        with open(path, "rb") as file:
            *_, start, n_states, n_arcs = _HEADER.unpack(file.read(_HEADER.size))
            states = np.fromfile(file, STATE, n_states)
            arcs = np.fromfile(file, ARC, n_arcs)
    first = np.append(states["pos"], n_arcs).astype(np.int64)
    return Transducer(start, states["final"].copy(), first, *(arcs[field].copy() for field in ARC.names))


def arcs_of(first: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """→ (arc, owner): the arcs that leave `states`, and for each the position in `states` that it belongs to."""
    n_arcs = first[states + 1] - first[states]
    owner = np.repeat(np.arange(len(states)), n_arcs)
    return np.arange(len(owner)) + np.repeat(first[states] - (np.cumsum(n_arcs) - n_arcs), n_arcs), owner


def breadth_first(fst: Transducer) -> Transducer:
    """The states that can be reached, numbered as a breadth-first walk finds them, so that references pack well."""
    number = np.full(fst.n_states, -1, np.int64)
    number[fst.start] = 0
    found = [np.array([fst.start])]
    n_found = 1
    while len(found[-1]):
        arc, _ = arcs_of(fst.first, found[-1])
        ahead = fst.nextstate[arc]
        new, seen = np.unique(ahead[number[ahead] < 0], return_index=True)
        new = new[np.argsort(seen)]
        number[new] = n_found + np.arange(len(new))
        n_found += len(new)
        found.append(new)
    order = np.concatenate(found)
    arc, owner = arcs_of(fst.first, order)
    columns = fst.ilabel[arc], fst.olabel[arc], fst.weight[arc], number[fst.nextstate[arc]]
    return from_arcs(0, fst.final[order], owner, *columns)


def without_epsilon_tails(fst: Transducer) -> Transducer:
    """Arcs into a state whose only way on is an epsilon go on at once, where both arcs together put out one word."""
    while True:
        ahead = np.minimum(fst.first[:-1], fst.n_arcs - 1)  # the one arc of a state that has one
        passing = (np.diff(fst.first) == 1) & np.isinf(fst.final) & (fst.ilabel[ahead] == 0)
        tail = ahead[fst.nextstate]
        joined = passing[fst.nextstate] & ~passing[fst.source] & ((fst.olabel == 0) | (fst.olabel[tail] == 0))
        if not joined.any():
            return fst
        fst = Transducer(
            fst.start,
            fst.final,
            fst.first,
            fst.ilabel,
            np.where(joined, np.maximum(fst.olabel, fst.olabel[tail]), fst.olabel),
            np.where(joined, fst.weight + fst.weight[tail], fst.weight),
            np.where(joined, fst.nextstate[tail], fst.nextstate),
        )


def n_bytes(fst: kaldifst.StdConstFst) -> int:
    """Memory that a const FST takes."""
    n_arcs = sum(map(fst.num_arcs, range(fst.num_states)))
    return fst.num_states * STATE.itemsize + n_arcs * ARC.itemsize


def _align(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


@contextmanager
def _reading_by_mapping() -> Iterator[None]:
    """OpenFst maps files instead of reading them while its flag says so; kaldifst has it, but no Python name for it."""
    set_flags = getattr(ctypes.CDLL(_kaldifst.__file__), "_Z8SetFlagsPKcPiPPPcbS0_", None)
    if set_flags is None:  # another compiler, or a release without it: then files are read
        yield
        return

    def set_mode(mode: bytes) -> None:
        arguments = (ctypes.c_char_p * 3)(b"edge-asr", b"--fst_read_mode=" + mode, None)
        position = ctypes.cast(arguments, ctypes.POINTER(ctypes.c_char_p))
        set_flags(b"", ctypes.byref(ctypes.c_int(2)), ctypes.byref(position), ctypes.c_bool(False), b"")

    set_mode(b"map")
    try:
        yield
    finally:
        set_mode(b"read")


@contextmanager
def _memory_file() -> Iterator[str]:
    """A path whose bytes stay in memory where the system can do that, else a temporary file; gone afterwards."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("graph")
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            yield os.path.join(folder, "graph.fst")
