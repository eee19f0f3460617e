"""Many files at once: each file's text is what it gives alone, and no file's trouble is another's."""

import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
import soundfile
from tones import speak

from edge_asr import batch
from edge_asr.batch import FileResult, run_workers, transcribe_files
from edge_asr.engines import DEFAULT_BATCH, files_at_a_time
from edge_asr.errors import AudioFormatError, AudioNotFoundError, ModelNotFoundError, WorkerError
from edge_asr.model_files import own_graph
from edge_asr.recognizer import Recognizer

SENTENCES = ["one two", "turn off the light", "five four three two one", "on", "", "the light", "turn on", "three"]


@pytest.fixture(scope="module")
def recognizer(tone_model):
    return Recognizer(tone_model, chunk_ms=640)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Path → words, of recordings of unequal length, the last with a pause that ends an utterance."""
    directory = tmp_path_factory.mktemp("recordings")
    spoken = {}
    for number, sentence in enumerate(SENTENCES):
        path = directory / f"{number}.wav"
        soundfile.write(path, speak(sentence), 16_000, "FLOAT")
        spoken[path] = sentence
    path = directory / "pause.wav"
    pause = 1e-4 * np.random.default_rng(1).standard_normal(32_000).astype(np.float32)
    soundfile.write(path, np.concatenate([speak("one two three"), pause, speak("four five")]), 16_000, "FLOAT")
    return {**spoken, path: "one two three | four five"}


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.wav"
    path.write_bytes(b"this is no sound")
    return path


def text(result: FileResult) -> str:
    return " | ".join(segment.text for segment in result.segments)


@pytest.mark.parametrize("n_streams", [1, 2, 3, 16])
def test_every_file_gives_what_it_gives_alone(recognizer, recordings, n_streams):
    results = list(transcribe_files(recognizer, recordings, n_streams))
    assert {result.source: text(result) for result in results} == recordings
    for result in results:
        assert result.segments == list(recognizer.transcribe(result.source))
        assert result.duration_s == pytest.approx(soundfile.info(result.source).duration)
        assert result.error is None
        assert result.warnings == []


def test_files_are_opened_only_when_a_lane_is_free(recognizer, recordings):
    taken = []

    def paths():
        for path in recordings:
            taken.append(path)
            yield path

    results = transcribe_files(recognizer, paths(), n_streams=2)
    assert taken == []
    for n_done, _ in enumerate(results, 1):
        assert len(taken) <= n_done + 2


def test_no_files_give_no_results(recognizer, tone_model):
    assert list(transcribe_files(recognizer, [])) == []
    assert list(run_workers({"model": tone_model}, [], 2)) == []


def test_a_bad_file_is_an_error_of_its_own(recognizer, recordings, broken, tmp_path):
    missing = tmp_path / "missing.wav"
    results = {result.source: result for result in transcribe_files(recognizer, [broken, *recordings, missing], 3)}
    assert isinstance(results.pop(broken).error, AudioFormatError)
    assert isinstance(results.pop(missing).error, AudioNotFoundError)
    assert {source: text(result) for source, result in results.items()} == recordings


def test_what_could_be_passed_over_is_a_warning(recognizer, tmp_path):
    samples = speak("one two three")
    samples[5_000] = np.nan
    path = tmp_path / "damaged.wav"
    soundfile.write(path, samples, 16_000, "FLOAT")
    path.write_bytes(path.read_bytes()[:-400])
    (result,) = transcribe_files(recognizer, [path])
    assert text(result) == "one two three"
    assert any("1 sample" in warning for warning in result.warnings)
    assert any("cut short" in warning for warning in result.warnings)


def test_a_file_may_come_twice(recognizer, recordings):
    path = next(iter(recordings))
    assert [text(result) for result in transcribe_files(recognizer, [path, path])] == [recordings[path]] * 2


@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_give_what_one_process_gives(tone_model, recordings, broken, n_workers):
    results = list(run_workers({"model": tone_model, "chunk_ms": 640}, [broken, *recordings], n_workers, n_streams=2))
    assert {r.source: text(r) for r in results if r.error is None} == recordings
    assert [type(r.error) for r in results if r.error is not None] == [AudioFormatError]


def test_greedy_workers_and_grammar_workers_work_as_well(tone_model, recordings, tmp_path):
    greedy = Recognizer(tone_model, decoder="greedy", chunk_ms=None)
    expected = Counter(text(result) for result in transcribe_files(greedy, recordings))
    options = {"model": tone_model, "decoder": "greedy", "chunk_ms": None}
    assert Counter(text(result) for result in run_workers(options, recordings, 2)) == expected
    grammar = tmp_path / "grammar.txt"
    grammar.write_text("turn (on | off) the light\n")
    (result,) = run_workers({"model": tone_model, "grammar": grammar}, list(recordings)[1:2], 2)
    assert text(result) == "turn off the light"


def test_an_error_of_the_model_is_raised_before_any_file(tone_model, tmp_path):
    for n_workers in (1, 2):
        with pytest.raises(ModelNotFoundError):
            run_workers({"model": tmp_path / "none"}, [], n_workers)


@pytest.mark.parametrize("n_streams", [1, 4])
def test_a_file_that_kills_its_worker_is_found_and_the_rest_are_done(
    tone_model, recordings, broken, monkeypatch, n_streams
):
    real = batch.AudioFile

    def deadly(source, *arguments):
        if source == broken:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, *arguments)

    monkeypatch.setattr(batch, "AudioFile", deadly)
    sources = list(recordings)
    sources.insert(3, broken)
    results = {r.source: r for r in run_workers({"model": tone_model}, sources, 2, n_streams)}
    assert isinstance(results[broken].error, WorkerError)
    assert "Killed" in str(results.pop(broken).error)
    assert {source: text(result) for source, result in results.items()} == recordings


def test_leaving_early_ends_the_workers(tone_model, recordings):
    results = run_workers({"model": tone_model}, recordings, 2, n_streams=1)
    next(results)
    results.close()
    assert multiprocessing.active_children() == []


def test_files_at_a_time_by_default(tone_model, tmp_path):
    """One beside a graph, whose memory counts; several where the encoder is all there is to do."""
    assert own_graph(tone_model) is not None
    bare = tmp_path / "bare"
    shutil.copytree(tone_model, bare)
    config = json.loads((bare / "config.json").read_text())
    del config["graph"]
    (bare / "config.json").write_text(json.dumps(config))
    for options, expected in (
        ({"model": tone_model}, 1),
        ({"model": tone_model, "decoder": "greedy"}, DEFAULT_BATCH),
        ({"model": bare}, DEFAULT_BATCH),
        ({"model": bare, "grammar": "digits.txt"}, 1),
        ({"model": bare, "graph": tone_model / "graph"}, 1),
    ):
        assert files_at_a_time(options) == expected
