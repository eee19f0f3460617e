"""Endpoint rules, asked frame by frame."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.endpoint import Endpoint, EndpointRules
from edge_asr.errors import UsageError

NEVER = math.inf


def first_endpoint(said: list[bool], rules: EndpointRules | None = None) -> int | None:
    """Frames until the first endpoint; said: whether a token is on the best path in each frame."""
    endpoint, silence = Endpoint(rules), 0
    for n_frames, token in enumerate(said, 1):
        silence = 0 if token else silence + 1
        if endpoint.detected(n_frames, silence):
            return n_frames
    return None


def test_silence_alone_ends_after_rule_1() -> None:
    assert first_endpoint([False] * 100) == 60  # 2.4 s


def test_silence_after_a_word_ends_after_rule_2() -> None:
    assert first_endpoint([False] * 10 + [True] + [False] * 100) == 11 + 30  # 1.2 s


def test_a_pause_shorter_than_rule_2_ends_nothing() -> None:
    assert first_endpoint(([True] + [False] * 29) * 9) is None


def test_speech_without_a_pause_ends_after_rule_3() -> None:
    assert first_endpoint([True] * 1000) == 500  # 20 s


def test_a_pause_ends_a_long_utterance_before_rule_3_cuts_a_word() -> None:
    pause = [False] * 10  # 0.4 s
    assert first_endpoint([True] * 200 + pause + [True] * 104 + pause + [True] * 400) == 324  # the one after 12 s
    assert first_endpoint(([True] + [False] * 9) * 400) == 500  # none is long enough
    longer = EndpointRules(rule4_min_trailing_silence=0.48, rule4_min_utterance_length=2.0)
    assert first_endpoint([True] * 60 + pause + [True] * 30 + [False] * 20, longer) == 112


def test_each_rule_can_be_switched_off() -> None:
    assert first_endpoint([False] * 400, EndpointRules(rule1_min_trailing_silence=NEVER)) is None
    assert first_endpoint([True] * 5000, EndpointRules(rule3_min_utterance_length=NEVER)) is None
    assert first_endpoint(([True] * 9 + [False] * 9) * 200, EndpointRules.never()) is None


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_a_rule_of_no_length_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="rule2_min_trailing_silence"):
        EndpointRules(rule2_min_trailing_silence=seconds)


@given(st.integers(0, 600), st.integers(0, 600), st.integers(0, 600))
def test_what_is_detected_was_possible(n_frames: int, n_trailing_blank: int, more: int) -> None:
    endpoint = Endpoint()
    if endpoint.detected(n_frames, n_trailing_blank):
        assert endpoint.possible(n_frames, n_trailing_blank + more)
