"""The command line: text on stdout, status on stderr, an exit code for each kind of trouble."""

import functools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from tones import speak

from edge_asr import errors
from edge_asr.cli import main

GRAPH = "../graphs/words"
MODEL_FILES = ("encoder.int8.onnx", "tokens.txt", "config.json", f"{GRAPH}/graph.fst", f"{GRAPH}/words.txt")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with one good recording."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("good.wav", speak("turn on the light"), 16_000)
    return tmp_path


def test_text_goes_to_stdout_and_figures_to_stderr(transcribe):
    code, out, err = transcribe("good.wav")
    assert (code, out) == (0, "turn on the light\n")
    assert "RTF" in err
    assert "tones int8" in err


def test_quiet_leaves_stderr_empty(transcribe):
    assert transcribe("--quiet", "good.wav") == (0, "turn on the light\n", "")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.flac", {}),
        ("b.ogg", {}),
        ("c.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("d.mp3", {}),
        ("e.wav", {"subtype": "PCM_24"}),
        ("f.wav", {"subtype": "PCM_32"}),
        ("g.wav", {"subtype": "FLOAT"}),
        ("h.wav", {"subtype": "DOUBLE"}),
    ],
)
def test_every_container_is_transcribed(transcribe, name, options):
    soundfile.write(name, np.tile(speak("turn on the light")[:, None], 2), 16_000, **options)
    assert transcribe(name)[:2] == (0, "turn on the light\n")


def test_jsonl_has_one_object_per_file(transcribe):
    soundfile.write("more.flac", speak("one two"), 16_000)
    code, out, _ = transcribe("--output-format", "jsonl", "good.wav", "more.flac")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["audio_filepath"] for row in rows] == ["good.wav", "more.flac"]
    assert [row["text"] for row in rows] == ["turn on the light", "one two"]
    segment = rows[1]["segments"][0]
    assert segment["text"] == "one two"
    assert [word["word"] for word in segment["words"]] == ["one", "two"]
    assert 0 < segment["start"] < segment["end"] < rows[1]["duration"]


@pytest.mark.parametrize("name", ["txt", "srt", "vtt", "tsv", "json", "jsonl"])
def test_an_output_folder_gets_one_file_per_recording(transcribe, folder, name):
    code, out, _ = transcribe("--output-format", name, "--output-dir", "texts", "good.wav")
    assert (code, out) == (0, "")
    assert "turn on the light" in (folder / "texts" / f"good.{name}").read_text()


def test_names_stand_before_the_text_where_asked(transcribe):
    assert transcribe("--with-names", "good.wav")[1] == "good.wav: turn on the light\n"


def test_the_text_is_the_same_for_every_chunk(transcribe):
    for chunk_ms in (40, 320, 640, 5_120):
        assert transcribe("--chunk-ms", chunk_ms, "good.wav")[1] == "turn on the light\n"


def test_a_grammar_replaces_the_graph(transcribe, folder):
    (folder / "grammar.txt").write_text("turn (on | off) the light\n")
    soundfile.write("numbers.wav", speak("one"), 16_000)
    assert transcribe("--grammar", "grammar.txt", "good.wav")[1] == "turn on the light\n"
    assert transcribe("--grammar", "grammar.txt", "numbers.wav")[1] != "one\n"


def float_wav(name: str, samples: np.ndarray, rate_hz: int = 16_000) -> None:
    soundfile.write(name, samples.astype(np.float32), rate_hz, subtype="FLOAT")


def missing() -> None:
    """Nothing is made."""


def directory() -> None:
    os.mkdir("bad.wav")


def empty() -> None:
    open("bad.wav", "wb").close()


def garbage() -> None:
    with open("bad.wav", "wb") as file:
        file.write(np.random.default_rng(0).bytes(10_000))


def header_only() -> None:
    soundfile.write("bad.wav", speak("one"), 16_000)
    with open("bad.wav", "r+b") as file:
        file.truncate(44)


def zero_samples() -> None:
    float_wav("bad.wav", np.zeros(0))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (missing, errors.AudioNotFoundError),
        (directory, errors.AudioDirectoryError),
        (empty, errors.AudioEmptyError),
        (garbage, errors.AudioFormatError),
        (header_only, errors.AudioTruncatedError),
        (zero_samples, errors.AudioEmptyError),
    ],
)
def test_a_file_that_is_no_recording_has_its_exit_code_and_the_rest_is_transcribed(transcribe, make, error):
    make()
    code, out, err = transcribe("bad.wav", "good.wav")
    assert code == error.exit_code
    assert out == "turn on the light\n"
    assert "error: bad.wav" in err


def test_failures_of_several_kinds_have_a_code_of_their_own(transcribe):
    empty()
    code, out, err = transcribe("bad.wav", "good.wav", "gone.wav")
    assert code == errors.MIXED_FAILURES_EXIT_CODE
    assert out == "turn on the light\n"
    assert "3 files: " in err
    assert "failed       1  AudioNotFoundError (exit code 11): gone.wav" in err


def test_every_kind_of_error_has_an_exit_code_of_its_own():
    def family(kind: type) -> list[type]:
        return [kind, *(member for child in kind.__subclasses__() for member in family(child))]

    kinds = {kind for kind in family(errors.EdgeAsrError) if kind.__module__ == errors.__name__}
    codes = [kind.exit_code for kind in kinds]
    taken = {0, errors.MIXED_FAILURES_EXIT_CODE, errors.INTERRUPTED_EXIT_CODE}
    assert len(set(codes)) == len(codes)
    assert taken.isdisjoint(codes)
    for kind in kinds:
        assert f"{kind.__name__} " in errors.__doc__
        assert str(kind.exit_code) in errors.__doc__


SPEECH = speak("turn on the light")


@pytest.mark.parametrize(
    ("samples", "rate_hz", "expected"),
    [
        (np.zeros(1), 16_000, ""),
        (np.zeros(32_000), 16_000, ""),
        (np.sign(np.sin(np.arange(32_000) / 3)), 16_000, None),
        (np.full(32_000, np.nan), 16_000, ""),
        (np.where(np.arange(len(SPEECH)) % 5_000 == 77, np.inf, SPEECH), 16_000, "turn on the light"),
        (np.clip(100 * SPEECH, -1, 1), 16_000, None),  # clipped tones have harmonics, which are other tones
        (np.repeat(SPEECH, 12), 192_000, "turn on the light"),
        (np.tile(SPEECH[:, None], (1, 8)), 16_000, "turn on the light"),
        (SPEECH[::2], 8_000, None),
    ],
    ids=["one sample", "zeros", "square", "all NaN", "some Inf", "clipped", "192 kHz", "8 channels", "8 kHz"],
)
def test_strange_audio_gets_text_and_no_error(transcribe, samples, rate_hz, expected):
    float_wav("strange.wav", np.asarray(samples), rate_hz)
    code, out, err = transcribe("strange.wav")
    assert code == 0
    assert expected is None or out == f"{expected}\n"
    assert ("NaN" in err) == (not np.isfinite(samples).all())


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_truncated_recording_gives_the_text_so_far_and_a_warning(transcribe, folder, suffix):
    rng = np.random.default_rng(0)
    long = np.concatenate([speak("turn on the light"), 0.01 * rng.standard_normal(160_000).astype(np.float32)])
    soundfile.write(f"whole.{suffix}", long, 16_000)
    content = (folder / f"whole.{suffix}").read_bytes()
    (folder / f"cut.{suffix}").write_bytes(content[: len(content) * 6 // 10])
    code, out, err = transcribe(f"cut.{suffix}")
    assert code == 0
    assert out.startswith("turn on the light")
    assert f"warning: cut.{suffix}" in err


def test_a_wav_header_that_says_zero_bytes_is_read_to_the_end(transcribe, folder):
    content = bytearray((folder / "good.wav").read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 0)
    (folder / "streamed.wav").write_bytes(content)
    assert transcribe("streamed.wav")[:2] == (0, "turn on the light\n")


def test_a_long_file_takes_no_more_memory_than_a_short_one(transcribe):
    resource = pytest.importorskip("resource")

    def write(name: str, minutes: int) -> None:
        with soundfile.SoundFile(name, "w", 16_000, 1) as file:
            for _ in range(minutes * 6):
                file.write(np.concatenate([speak("one two three"), np.zeros(160_000, np.float32)])[:160_000])

    write("short.flac", 2)
    write("long.flac", 20)
    transcribe("short.flac")
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, _ = transcribe("long.flac")
    assert code == 0
    assert out == "one two three\n" * 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 8_000  # its samples would take 77 MB


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize("damage", ["cut", "remove", "garbage"])
def test_a_damaged_model_says_which_file_is_wrong(tone_model, folder, capsys, name, damage):
    shutil.copytree(tone_model, "models/tones")
    shutil.copytree(tone_model / "../graphs", "models/graphs")
    path = folder / "models" / "tones" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\x93garbage" * 50)
    code = main(["transcribe", "--model", "models/tones", "good.wav"])
    output = capsys.readouterr()
    assert code in (errors.ModelNotFoundError.exit_code, errors.ModelDamagedError.exit_code)
    assert path.name in output.err
    assert output.out == ""


def test_an_unknown_model_is_an_error_that_names_the_known(folder, tone_model, monkeypatch, capsys):
    monkeypatch.setenv("EDGE_ASR_MODELS", str(tone_model.parent))
    assert main(["transcribe", "--model", "budgie", "good.wav"]) == errors.ModelNotFoundError.exit_code
    assert "tones" in capsys.readouterr().err
    assert main(["models"]) == 0
    assert str(tone_model) in capsys.readouterr().out


def test_an_output_folder_that_cannot_be_made_is_an_error(transcribe, folder):
    (folder / "file").write_text("in the way")
    code, _, err = transcribe("--output-dir", "file", "good.wav")
    assert code == errors.OutputError.exit_code
    assert "cannot be written" in err


@pytest.mark.parametrize("arguments", [[], ["transcribe"], ["fly"], ["transcribe", "--output-format", "doc", "a.wav"]])
def test_arguments_that_make_no_sense_leave_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == errors.UsageError.exit_code
    assert "usage:" in capsys.readouterr().err


def test_a_chunk_that_makes_no_sense_leaves_with_2(transcribe):
    assert transcribe("--chunk-ms", 50, "good.wav")[0] == errors.UsageError.exit_code


def test_g2p_pronounces_known_and_unknown_words(capsys):
    assert main(["g2p", "Light", "blorptastic"]) == 0
    light, *unknown = capsys.readouterr().out.splitlines()
    assert light == "light L AY T"
    assert unknown[0].startswith("blorptastic B ")
    assert main(["g2p", "42"]) == errors.LexiconError.exit_code


def test_a_command_whose_packages_are_missing_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "edge_asr.train", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now fails as if it were not installed
    assert main(["train"]) == errors.DependencyError.exit_code
    assert "pip install 'edge-asr[train]'" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error(tone_model, folder):
    for i in range(50):
        shutil.copy("good.wav", f"{i}.wav")
    command = f"{sys.executable} -m edge_asr.cli transcribe --quiet --model {tone_model} [0-9]*.wav"
    done = subprocess.run(f"{command} | head -n 1", shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "turn on the light\n"
    assert done.stderr == ""


def test_interrupting_leaves_with_130(tone_model, folder):
    with soundfile.SoundFile("long.flac", "w", 16_000, 1) as file:
        for _ in range(600):
            file.write(np.concatenate([speak("one two three"), np.zeros(160_000, np.float32)])[:160_000])
    command = [sys.executable, "-m", "edge_asr.cli", "transcribe", "--model", str(tone_model), "long.flac"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    with subprocess.Popen(command, preexec_fn=heeding, **pipes) as process:
        assert process.stdout.readline() == "one two three\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == errors.INTERRUPTED_EXIT_CODE
    assert "Traceback" not in err
