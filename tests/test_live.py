"""A live session on a fake device: every word once, at its time, whatever happens to the audio on its way."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import soxr
from fake_microphone import FakeMicrophone
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import speak

from edge_asr.audio import load_audio
from edge_asr.capture import FilePlayer
from edge_asr.errors import AudioNotFoundError, BufferOverflowError, MicrophoneError, OutputError, UsageError
from edge_asr.live import Disconnected, LiveSession, Loss, Progress
from edge_asr.recognizer import Recognizer, Segment
from edge_asr.recording import Recording

RATE = 16_000


@pytest.fixture(scope="module")
def recognizer(tone_model):
    return Recognizer(tone_model)


def hush(seconds: float, rate_hz: int = RATE) -> np.ndarray:
    n = int(rate_hz * seconds)
    return (1e-4 * np.random.default_rng(n).standard_normal(n)).astype(np.float32)


def finals(events: list) -> list[str]:
    return [event.text for event in events if isinstance(event, Segment) and event.is_final]


def losses(events: list) -> list[Loss]:
    return [event for event in events if isinstance(event, Loss)]


TALK = np.concatenate([speak("turn on the light"), hush(2), speak("one two three four"), hush(1.5), speak("five off")])
SAID = ["turn on the light", "one two three four", "five off"]


def test_a_session_hears_what_transcribing_hears(recognizer):
    session = LiveSession(recognizer, FakeMicrophone(TALK))
    segments = [segment for segment in session if segment.is_final]
    assert segments == list(recognizer.transcribe(TALK))
    assert [segment.text for segment in segments] == SAID
    figures = session.figures
    assert figures.audio_s == len(TALK) / RATE
    assert (figures.n_dropped, figures.n_overflows, figures.n_losses, figures.n_finals) == (0, 0, 0, 3)
    assert figures.n_chunks >= len(TALK) // 5_120 - 1
    assert 0 < figures.latency_p50_ms <= figures.latency_p99_ms <= figures.latency_max_ms


def test_partials_show_the_words_as_they_come_and_end_with_the_final(recognizer):
    texts = [(segment.text, segment.is_final) for segment in LiveSession(recognizer, FakeMicrophone(TALK))]
    first = [text for text, _ in texts[: texts.index((SAID[0], True))]]
    assert len(first) >= 2
    assert all(longer.startswith(shorter) and longer != shorter for shorter, longer in pairwise(first))


def test_stable_partials_come_as_many_chunks_later(recognizer):
    appeared_s: dict[int, dict[str, float]] = {}
    for n_chunks in (0, 3):
        session = LiveSession(recognizer, FakeMicrophone(TALK), stable_chunks=n_chunks)
        appeared_s[n_chunks] = {}
        for segment in session:
            if not segment.is_final:
                appeared_s[n_chunks].setdefault(segment.text, session.audio_s)
    shared = [text for text in SAID[:2] if text in appeared_s[0]]
    assert shared == SAID[:2]
    for text in shared:
        assert appeared_s[3][text] - appeared_s[0][text] == pytest.approx(3 * 0.32, abs=0.02)


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_a_device_of_another_rate_is_resampled(recognizer, rate_hz):
    audio = soxr.resample(TALK, RATE, rate_hz)
    segments = [segment for segment in LiveSession(recognizer, FakeMicrophone(audio, rate_hz)) if segment.is_final]
    assert [segment.text for segment in segments] == SAID
    direct = [segment.start for segment in recognizer.transcribe(TALK)]
    assert [segment.start for segment in segments] == pytest.approx(direct, abs=0.05)


def test_stopping_finishes_the_words_that_were_on_their_way(recognizer):
    capture = FakeMicrophone(np.concatenate([speak("one two three", tail_s=0.05), hush(60)]))
    session = LiveSession(recognizer, capture)
    heard = []
    for event in session.events():
        heard.append(event)
        if isinstance(event, Progress) and event.audio_s > len(speak("one two three", tail_s=0.05)) / RATE:
            session.stop()
    assert finals(heard) == ["one two three"]
    assert session.figures.audio_s < 5


@settings(max_examples=8, deadline=None)
@given(st.floats(0.05, 4), st.floats(1, 6))
def test_a_stalled_consumer_loses_exactly_what_the_ring_could_not_hold(recognizer, ring_s, stall_s):
    audio = np.concatenate([speak("one two"), hush(9), speak("three four")])
    capture = FakeMicrophone(audio, ring_s=ring_s)
    session = LiveSession(recognizer, capture)
    heard, stalled = [], False
    for event in session.events():
        heard.append(event)
        if isinstance(event, Progress) and event.audio_s > 3 and not stalled:
            stalled = True
            n_before = capture.ring.n_captured
            capture.pause(stall_s)
            n_lost = max(0, capture.ring.n_captured - n_before - capture.ring.capacity_samples)
    assert finals(heard) == ["one two", "three four"]
    assert session.figures.n_dropped == n_lost
    assert session.figures.audio_s * RATE == pytest.approx(len(audio) - n_lost)
    assert sum(loss.end - loss.start for loss in losses(heard)) * RATE == pytest.approx(n_lost, abs=1e-3)
    *_, last = (event for event in heard if isinstance(event, Segment))
    *_, whole = recognizer.transcribe(audio)
    assert last.start == pytest.approx(whole.start, abs=0.041)  # the loss is a gap in the times, not a splice


def test_words_before_a_loss_are_finished_and_said_before_it(recognizer):
    capture = FakeMicrophone(np.concatenate([speak("one two three"), hush(20)]), ring_s=1)
    session = LiveSession(recognizer, capture)
    heard, stalled = [], False
    for event in session.events():
        heard.append(event)
        if isinstance(event, Progress) and event.audio_s > len(speak("one two three")) / RATE and not stalled:
            stalled = True
            capture.pause(5)
    kinds = [type(event) for event in heard if isinstance(event, Loss) or (isinstance(event, Segment) and event.text)]
    assert kinds[-1] is Loss
    assert finals(heard) == ["one two three"]
    assert "busy" in losses(heard)[0].reason


def test_the_policy_fail_ends_the_session_after_its_last_words(recognizer):
    capture = FakeMicrophone(np.concatenate([speak("one two three"), hush(20)]), ring_s=1, policy="fail")
    heard, stalled = [], False

    def listen():
        nonlocal stalled
        for event in LiveSession(recognizer, capture).events():
            heard.append(event)
            if isinstance(event, Progress) and event.audio_s > len(speak("one two three")) / RATE and not stalled:
                stalled = True
                capture.pause(5)

    with pytest.raises(BufferOverflowError):
        listen()
    assert finals(heard) == ["one two three"]


def test_an_unplugged_device_is_survived(recognizer, tmp_path):
    first, second = np.concatenate([speak("one two", tail_s=0.1), hush(6)]), speak("three four")
    unplugged_s = (len(speak("one two", tail_s=0.1)) / RATE, 5.0)
    capture = FakeMicrophone(np.concatenate([first, second]), unplugged_s=unplugged_s)
    with Recording(tmp_path / "heard.wav") as recording:
        session = LiveSession(recognizer, capture, recording=recording)
        heard = list(session.events())
    assert finals(heard) == ["one two", "three four"]
    (gone,) = [event for event in heard if isinstance(event, Disconnected)]
    assert "unplugged" in gone.reason
    assert gone.at == pytest.approx(unplugged_s[0], abs=0.02)
    (loss,) = losses(heard)
    assert loss.end == pytest.approx(5.0, abs=0.6)  # it is looked for twice a second
    assert session.figures.n_reconnects == 1
    *_, last = (event for event in heard if isinstance(event, Segment))
    assert last.start == pytest.approx(len(first) / RATE + 0.3, abs=0.1)
    assert [s.text for s in recognizer.transcribe(tmp_path / "heard.wav")] == ["one two", "three four"]


def test_a_device_that_stays_away_ends_the_session_after_its_last_words(recognizer):
    capture = FakeMicrophone(np.concatenate([speak("one two", tail_s=0.1), hush(20)]), unplugged_s=(1.2, 99))
    heard = []
    session = LiveSession(recognizer, capture, reconnect_s=2)
    with pytest.raises(MicrophoneError):
        heard.extend(heard.append(event) for event in session.events())
    assert finals(heard) == ["one two"]
    assert not losses(heard)


def test_stopping_while_the_device_is_away_ends_without_error(recognizer):
    capture = FakeMicrophone(np.concatenate([speak("one two", tail_s=0.1), hush(60)]), unplugged_s=(1.2, 99))
    session = LiveSession(recognizer, capture)
    heard = []
    for event in session.events():
        heard.append(event)
        if isinstance(event, Disconnected):
            session.stop()
    assert finals(heard) == ["one two"]


@pytest.mark.parametrize(
    "trouble",
    [
        np.array([np.nan], np.float32),
        np.array([np.inf, -np.inf, 1e30], np.float32),
        np.random.default_rng(3).uniform(-1, 1, RATE).astype(np.float32),
        np.sign(np.random.default_rng(4).standard_normal(RATE)).astype(np.float32),
        np.zeros(60 * RATE, np.float32),
    ],
    ids=["one NaN", "infinities", "loud noise", "clipped noise", "digital silence"],
)
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_the_next_sentence_is_recognised_as_well_as_before(recognizer, trouble, rate_hz):
    sentence = soxr.resample(speak("turn off the light"), RATE, rate_hz)
    audio = np.concatenate([sentence, hush(2, rate_hz), trouble, hush(2.5, rate_hz), sentence]).astype(np.float32)
    session = LiveSession(recognizer, FakeMicrophone(audio, rate_hz))
    heard = finals(list(session.events()))
    assert heard[0] == heard[-1] == "turn off the light"
    assert session.figures.n_replaced == np.count_nonzero(~(np.abs(trouble) < 65_536))


def test_times_do_not_drift_over_a_long_session(recognizer):
    minute = np.concatenate([hush(30), speak("one two three"), hush(30)])[: 60 * RATE]
    session = LiveSession(recognizer, FakeMicrophone(np.tile(minute, 3)))
    starts = [segment.start for segment in session if segment.is_final]
    assert starts == pytest.approx([60 * i + starts[0] for i in range(3)], abs=1e-6)
    assert session.figures.audio_s == 180


def test_what_was_heard_is_kept_exactly(recognizer, tmp_path):
    for rate_hz in (16_000, 44_100):
        path = tmp_path / f"{rate_hz}.wav"
        audio = soxr.resample(TALK, RATE, rate_hz).astype(np.float32)
        with Recording(path) as recording:
            live = finals(list(LiveSession(recognizer, FakeMicrophone(audio, rate_hz), recording=recording).events()))
        kept = load_audio(path)
        assert [segment.text for segment in recognizer.transcribe(path)] == live == SAID
        if rate_hz == RATE:
            assert np.array_equal(kept, TALK)
        assert abs(len(kept) - len(TALK)) <= 1


def test_a_recording_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.wav"):
        Recording(tmp_path / "heard.flac")
    with pytest.raises(OutputError, match="cannot be written"):
        Recording(tmp_path / "no such folder" / "heard.wav")


def test_callbacks_get_the_same_as_the_generator(recognizer):
    final_texts, partial_texts = [], []
    figures = LiveSession(recognizer, FakeMicrophone(TALK)).run(
        on_final=lambda segment: final_texts.append(segment.text),
        on_partial=lambda segment: partial_texts.append(segment.text),
    )
    segments = list(LiveSession(recognizer, FakeMicrophone(TALK)))
    assert final_texts == [segment.text for segment in segments if segment.is_final] == SAID
    assert partial_texts == [segment.text for segment in segments if not segment.is_final]
    assert figures.n_finals == 3


def test_several_sessions_share_one_model(recognizer):
    sentences = ["one two three", "turn off the light", "five four", "the light on"]
    heard: dict[str, list[str]] = {}

    def listen(sentence: str) -> None:
        audio = np.concatenate([speak(sentence), hush(2), speak(sentence)])
        heard[sentence] = finals(list(LiveSession(recognizer, FakeMicrophone(audio)).events()))

    threads = [threading.Thread(target=listen, args=[sentence]) for sentence in sentences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {sentence: [sentence, sentence] for sentence in sentences}


def test_a_file_is_played_at_real_time_and_heard_whole(recognizer, tmp_path):
    path = tmp_path / "speech.flac"
    samples = speak("one two three")
    soundfile.write(path, samples, RATE, subtype="PCM_24")
    with FilePlayer(path) as player:
        session = LiveSession(recognizer, player)
        assert [segment.text for segment in session if segment.is_final] == ["one two three"]
        assert player.last_arrival_s - player.arrival_s(160) >= len(samples) / RATE - 0.05
    assert session.figures.audio_s == len(samples) / RATE
    assert next(recognizer.transcribe(path)).text == "one two three"


def test_a_file_that_is_not_there_is_an_error_before_anything_plays():
    with pytest.raises(AudioNotFoundError):
        FilePlayer("no such file.wav")


def test_arrival_times_are_those_of_the_block_that_brought_the_sample(recognizer):
    capture = FakeMicrophone(np.zeros(30 * RATE, np.float32))
    capture.pause(2)
    assert capture.arrival_s(1) == pytest.approx(0.01)
    assert capture.arrival_s(160) == pytest.approx(0.01)
    assert capture.arrival_s(161) == pytest.approx(0.02)
    assert capture.last_arrival_s == pytest.approx(2)
    capture.pause(20)  # more blocks than are remembered
    assert capture.arrival_s(21 * RATE) == pytest.approx(21)
    assert capture.arrival_s(1) == pytest.approx(22 - 1_022 * 0.01)
