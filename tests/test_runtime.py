"""An encoder file streams exactly: any chunk, any split, any batch gives the vectors of one long chunk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import LEXICON, LOOKAHEAD_FRAMES, PHONES, speak, write_tone_encoder

from edge_asr.errors import ModelDamagedError, ModelNotFoundError, StreamError, UsageError
from edge_asr.features import SILENCE, fbank
from edge_asr.runtime import EncoderSession, EncoderStream, advance

FEATURES = fbank(speak("one two three four five"))


@pytest.fixture(scope="module")
def session(tone_encoder):
    return EncoderSession(tone_encoder)


def run(session: EncoderSession, stream: EncoderStream, pieces: list[np.ndarray]) -> np.ndarray:
    outputs = []
    for piece in pieces:
        stream.accept(piece)
        while stream.n_ready_frames:
            outputs += advance(session, [stream])
    stream.finish()
    while stream.n_ready_frames:
        outputs += advance(session, [stream])
    return np.concatenate([np.zeros((0, session.n_tokens), np.float32), *outputs])


def offline(session: EncoderSession, features: np.ndarray) -> np.ndarray:
    """One long chunk by hand: pad the last group, add the look-ahead, drop the delay."""
    pad = np.full((-len(features) % 4 + LOOKAHEAD_FRAMES, 80), SILENCE, np.float32)
    log_probs, _ = session.step(np.concatenate([features, pad])[None], session.initial_states())
    return log_probs[0, LOOKAHEAD_FRAMES // 4 :]


def test_tones_are_heard_as_their_phones(session):
    best = offline(session, FEATURES).argmax(axis=1)
    heard = [PHONES.symbols[k] for i, k in enumerate(best) if k and (i == 0 or best[i - 1] != k)]
    assert heard == [phone for word in "one two three four five".split() for phone in LEXICON[word].split()]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, len(FEATURES)), st.sampled_from([4, 8, 32, 64, 400]), st.lists(st.integers(0, 90), max_size=10))
def test_any_chunk_and_split_gives_the_vectors_of_one_long_chunk(session, n_frames, chunk_frames, sizes):
    features = FEATURES[:n_frames]
    bounds = np.minimum(np.cumsum([0, *sizes]), n_frames)
    pieces = [features[a:b] for a, b in zip(bounds, [*bounds[1:], n_frames])]
    streamed = run(session, EncoderStream(session, chunk_frames), pieces)
    assert streamed.shape == (-(-n_frames // 4), 40)
    if n_frames:
        assert np.abs(streamed - offline(session, features)).max() < 1e-4


def test_streams_in_one_batch_do_not_touch_each_other(session):
    clips = [FEATURES, FEATURES[37:200], FEATURES[:101], FEATURES[:1], FEATURES[:0]]
    streams = [EncoderStream(session, 32) for _ in clips]
    for stream, clip in zip(streams, clips):
        stream.accept(clip)
        stream.finish()
    outputs = [[] for _ in clips]
    while any(stream.n_ready_frames for stream in streams):
        for output, emissions in zip(outputs, advance(session, streams)):
            output.append(emissions)
    for output, clip in zip(outputs, clips):
        alone = run(session, EncoderStream(session, 32), [clip])
        assert np.abs(np.concatenate([*output, alone[:0]]) - alone).max(initial=0) < 1e-5


def test_many_streams_are_several_batches(session, monkeypatch):
    steps = []
    step = session.step
    monkeypatch.setattr(session, "step", lambda x, states: (steps.append(x.shape[:2]), step(x, states))[1])
    streams = [session.create_stream(256) for _ in range(6)]
    for stream in streams:
        stream.accept(np.resize(FEATURES, (256, 80)))
    emissions = advance(session, streams)
    assert steps == [(4, 256), (2, 256)]  # 1,024 frames at most
    for row in emissions[1:]:
        np.testing.assert_array_equal(row, emissions[0])


def test_a_new_stream_starts_from_zero_states(session):
    states = EncoderStream(session).states
    assert [state.shape for state in states] == [(1, 3, 40), (1, 1)]
    assert not any(state.any() for state in states)


def test_states_that_were_handed_out_are_never_changed(session):
    before = session.initial_states()
    _, after = session.step(FEATURES[None, :32], before)
    assert not any(state.any() for state in before)
    kept = [state.copy() for state in after]
    session.step(FEATURES[None, 32:64], after)
    assert all(np.array_equal(a, b) for a, b in zip(kept, after))


def test_a_finished_stream_refuses_more_features(session):
    stream = EncoderStream(session)
    stream.finish()
    stream.finish()
    with pytest.raises(StreamError, match="finished"):
        stream.accept(FEATURES)


@pytest.mark.parametrize("chunk_frames", [0, -4, 30])
def test_a_chunk_that_is_no_multiple_of_40_ms_is_refused(session, chunk_frames):
    with pytest.raises(UsageError, match="multiple of 40 ms"):
        EncoderStream(session, chunk_frames)


def test_a_chunk_beyond_the_models_limit_is_refused(tmp_path):
    write_tone_encoder(tmp_path / "encoder.onnx", max_chunk_frames="64")
    with pytest.raises(UsageError, match="at most 640 ms"):
        EncoderStream(EncoderSession(tmp_path / "encoder.onnx"), 128)


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"encoder\.onnx"):
        EncoderSession(tmp_path / "encoder.onnx")


@pytest.mark.parametrize("keep", [0, 10, 1_000, 20_000])
def test_a_truncated_encoder_is_named(tmp_path, tone_encoder, keep):
    path = tmp_path / "encoder.int8.onnx"
    path.write_bytes(tone_encoder.read_bytes()[:keep])
    with pytest.raises(ModelDamagedError, match=r"encoder\.int8\.onnx"):
        EncoderSession(path)


@pytest.mark.parametrize(("key", "value"), [("lookahead_frames", ""), ("chunk_frames", "[1, 2"), ("subsampling", "x")])
def test_metadata_that_lack_or_lie_are_named(tmp_path, key, value):
    write_tone_encoder(tmp_path / "encoder.onnx", **{key: value})
    with pytest.raises(ModelDamagedError, match="metadata"):
        EncoderSession(tmp_path / "encoder.onnx")
