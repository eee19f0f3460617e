"""The ring loses only what it could not hold, says where, and its books balance."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import BufferOverflowError, UsageError
from edge_asr.ring import Gap, RingBuffer


def ramp(first: int, n: int) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.float32)


def test_what_goes_in_comes_out_in_order():
    ring = RingBuffer(10)
    ring.write(ramp(0, 7))
    ring.write(ramp(7, 3))
    assert ring.read(4).samples.tolist() == [0, 1, 2, 3]
    first, samples = ring.read()
    assert first == 4
    assert samples.tolist() == [4, 5, 6, 7, 8, 9]


def test_reading_an_empty_ring_gives_nothing():
    assert RingBuffer(4).read() == (0, pytest.approx([]))


def test_a_stalled_consumer_loses_exactly_what_the_ring_could_not_hold():
    ring = RingBuffer(100)
    ring.write(ramp(0, 40))
    ring.read()
    for first in range(40, 540, 50):
        ring.write(ramp(first, 50))
    assert ring.n_dropped == 400  # known before the consumer wakes up
    first, samples = ring.read()
    assert first == 440
    assert np.array_equal(samples, ramp(440, 100))
    assert list(ring.gaps) == [Gap(40, 400)]
    ring.write(ramp(540, 10))
    assert ring.read().first_sample == 540


def test_a_block_larger_than_the_ring_leaves_its_newest_samples():
    ring = RingBuffer(8)
    ring.write(ramp(0, 3))
    ring.write(ramp(3, 30))
    first, samples = ring.read()
    assert first == 25
    assert np.array_equal(samples, ramp(25, 8))
    assert ring.n_dropped == 25


def test_policy_fail_hands_over_what_it_has_and_then_raises():
    ring = RingBuffer(8, "fail")
    ring.write(ramp(0, 6))
    ring.write(ramp(6, 6))
    ring.write(ramp(12, 1))  # would fit, but then the stream would have a hole
    assert ring.read().samples.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(BufferOverflowError, match="refused 7 samples after sample 6"):
        ring.read()
    assert (ring.n_captured, ring.n_consumed, ring.n_dropped) == (13, 6, 7)


def test_the_list_of_gaps_is_bounded_and_the_total_is_not():
    ring = RingBuffer(1)
    for i in range(3_000):
        ring.write(ramp(2 * i, 2))
        ring.read()
    assert len(ring.gaps) == 1_000
    assert ring.n_dropped == 3_000


@pytest.mark.parametrize(("capacity", "policy"), [(0, "fail"), (-1, "drop-oldest"), (5, "drop-newest")])
def test_a_ring_that_makes_no_sense_is_refused(capacity, policy):
    with pytest.raises(UsageError):
        RingBuffer(capacity, policy)


@given(
    st.integers(1, 20),
    st.sampled_from(["drop-oldest", "fail"]),
    st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=40),
)
def test_captured_equals_consumed_plus_dropped_plus_held(capacity, policy, actions):
    ring = RingBuffer(capacity, policy)
    n_offered, seen, expected_position = 0, [], 0
    for is_write, n in actions:
        if is_write:
            ring.write(ramp(n_offered, n))
            n_offered += n
        else:
            try:
                first, samples = ring.read(n)
            except BufferOverflowError:
                assert policy == "fail"
                continue
            assert first >= expected_position
            assert np.array_equal(samples, ramp(first, len(samples)))  # a sample's value is its position
            expected_position = first + len(samples)
            seen.extend(samples)
        assert ring.n_captured == n_offered
        assert n_offered == ring.n_consumed + ring.n_dropped + len(ring)
        assert ring.n_consumed == len(seen)
        assert 0 <= len(ring) <= capacity
    lost_by_gaps = sum(gap.n_samples for gap in ring.gaps)
    assert policy == "fail" or lost_by_gaps == expected_position - len(seen)


@settings(max_examples=10, deadline=None)
@given(st.integers(50, 3_000), st.integers(1, 400), st.integers(1, 4_000))
def test_two_threads_never_see_a_torn_or_reordered_sample(capacity, block, read_size):
    ring = RingBuffer(capacity)
    n_total, done = 60_000, threading.Event()

    def produce():
        for first in range(0, n_total, block):
            ring.write(ramp(first, min(block, n_total - first)))
        done.set()

    producer = threading.Thread(target=produce)
    producer.start()
    position, n_seen = 0, 0
    while True:
        finished = done.is_set()
        first, samples = ring.read(read_size)
        assert first >= position
        assert np.array_equal(samples, ramp(first, len(samples)))
        position, n_seen = first + len(samples), n_seen + len(samples)
        if finished and len(ring) == 0:
            break
    producer.join()
    assert position == ring.n_captured == n_total
    assert n_total == n_seen + ring.n_dropped
    assert n_seen == ring.n_consumed
