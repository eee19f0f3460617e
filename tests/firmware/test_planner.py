"""The arena planner against exhaustive search and ST's published streaming-wakeword report."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_sim.errors import PlanError
from firmware_sim.planner import Buffer, lower_bound, place, plan_arena

# ST Edge AI Core 1.0, streaming wakeword, published: output bytes and scratch bytes of nodes 0 … 9.
ST_INPUT_BYTES = 1200
ST_OUTPUTS = (1120, 3584, 3072, 3072, 1920, 1920, 128, 32, 3, 3)
ST_SCRATCH = (761, 1440, 3201, 1792, 5121, 1792, 7041, 832, 64, 496)


def st_buffers() -> list[Buffer]:
    buffers = [Buffer("input", ST_INPUT_BYTES, 0, 0)]
    for i, (output, scratch) in enumerate(zip(ST_OUTPUTS, ST_SCRATCH, strict=True)):
        buffers += [Buffer(f"output {i}", output, i, min(i + 1, 9)), Buffer(f"scratch {i}", scratch, i, i)]
    return buffers


def brute_force(buffers: list[Buffer], alignment: int) -> int:
    """Smallest arena over all placement orders with first fit (some order is always optimal)."""
    sizes = [-(-b.n_bytes // alignment) * alignment for b in buffers]
    rivals = [[j for j, o in enumerate(buffers) if j != i and sizes[j] and b.meets(o)] for i, b in enumerate(buffers)]
    return min(place(order, sizes, rivals)[0] for order in itertools.permutations(range(len(buffers))))


small_graphs = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 6), st.integers(0, 4)).map(
        lambda t: Buffer("b", t[0], t[1], t[1] + t[2])
    ),
    max_size=6,
)


def test_published_wakeword_arena_is_the_lower_bound_and_is_reached():
    plan = plan_arena(st_buffers(), alignment=4)
    assert plan.lower_bound_bytes == 10_116
    assert plan.arena_bytes == 10_116
    assert plan.peak_step == 4


def test_greedy_by_size_alone_misses_the_published_arena():
    buffers = st_buffers()
    sizes = [-(-b.n_bytes // 4) * 4 for b in buffers]
    rivals = [[j for j, o in enumerate(buffers) if j != i and b.meets(o)] for i, b in enumerate(buffers)]
    order = sorted(range(len(buffers)), key=lambda i: -sizes[i])
    assert place(order, sizes, rivals)[0] > 10_116


@given(small_graphs, st.sampled_from([1, 4, 16]))
@settings(max_examples=60, deadline=None)
def test_small_graphs_get_the_exhaustive_optimum(buffers, alignment):
    plan = plan_arena(buffers, alignment)
    best = brute_force(buffers, alignment) if buffers else 0
    assert plan.lower_bound_bytes <= best <= plan.arena_bytes
    assert plan.arena_bytes == best


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 9)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_live_buffers_never_overlap_and_the_bound_holds(rows):
    buffers = [Buffer(str(i), size, first, first + life) for i, (size, first, life) in enumerate(rows)]
    plan = plan_arena(buffers, alignment=8, rounds=50)
    assert plan.arena_bytes >= plan.lower_bound_bytes
    for (a, low_a), (b, low_b) in itertools.combinations(zip(buffers, plan.offsets, strict=True), 2):
        if a.meets(b) and a.n_bytes and b.n_bytes:
            assert low_a + a.n_bytes <= low_b or low_b + b.n_bytes <= low_a
    assert all(offset % 8 == 0 for offset in plan.offsets)
    assert all(offset + b.n_bytes <= plan.arena_bytes for b, offset in zip(buffers, plan.offsets, strict=True))


def test_lower_bound_counts_every_step():
    buffers = [Buffer("a", 10, 0, 5), Buffer("b", 20, 2, 2), Buffer("c", 7, 4, 9)]
    by_step = [sum(b.n_bytes for b in buffers if b.first <= s <= b.last) for s in range(10)]
    assert lower_bound(buffers, [b.n_bytes for b in buffers]) == (max(by_step), 2)


def test_no_buffers_need_no_arena():
    assert plan_arena([]).arena_bytes == 0


@pytest.mark.parametrize("buffer", [Buffer("x", -1, 0, 0), Buffer("x", 1, 3, 2)])
def test_impossible_buffers_are_refused(buffer):
    with pytest.raises(PlanError, match="buffer x"):
        plan_arena([buffer])
