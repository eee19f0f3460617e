"""A batch for people: folders in, texts and subtitles out, standard input, failures told, keywords equal to flags."""

import inspect
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import tree
from tones import speak

import edge_asr
import edge_asr.transcribe_command
import edge_asr.transcription
from edge_asr import errors
from edge_asr.cli import main
from edge_asr.progress import Estimate, Progress, Summary, length, say
from edge_asr.sources import Failure, Recording
from edge_asr.transcribe_command import build_parser

WORDS = ("one", "two", "three", "four", "five")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder; rec/ holds a recording of each of the first three words, in two folders and three formats."""
    monkeypatch.chdir(tmp_path)
    for path, word in (("rec/one.wav", "one"), ("rec/deep/two.flac", "two"), ("rec/deep/three.ogg", "three")):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speak(word), 16_000)
    return tmp_path


# --- keywords and flags ---------------------------------------------------------------------------------------------


def keywords(function) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_flags_and_keywords_have_the_same_names_and_defaults():
    actions = {action.dest: action for action in build_parser()._actions if action.option_strings}
    del actions["help"]
    assert all(action.option_strings == [f"--{name.replace('_', '-')}"] for name, action in actions.items())
    of_one, of_many = keywords(edge_asr.transcribe), keywords(edge_asr.transcribe_files)
    assert set(actions) == set(of_one) | set(of_many)
    assert set(edge_asr.transcription.RECOGNITION_OPTIONS) == set(of_one) - set(edge_asr.transcription.RAW_OPTIONS)
    parsed = vars(build_parser().parse_args(["a.wav"]))
    assert parsed == {"paths": ["a.wav"], **of_one, **of_many}
    assert all(of_one[name] == of_many[name] for name in set(of_one) & set(of_many))


def test_the_recognizer_has_every_keyword_that_is_about_recognition():
    rules = set(edge_asr.transcribe_command.RULES)
    of_recognizer = set(inspect.signature(edge_asr.Recognizer).parameters)
    assert set(edge_asr.transcription.RECOGNITION_OPTIONS) - rules == of_recognizer - {"endpoint"}


def test_an_unknown_keyword_is_an_error_as_of_any_function():
    with pytest.raises(TypeError, match="beem"):
        edge_asr.transcribe_files("a.wav", beem=3)


def test_flags_may_be_written_as_whisper_writes_them(transcribe):
    assert transcribe("--output_dir=out_dir", "--output_format", "srt", "rec/one.wav")[0] == 0
    assert sorted(tree("out_dir")) == ["one.srt"]
    os.rename("rec/one.wav", "--a_b.wav")
    assert transcribe("--", "--a_b.wav")[1] == "one\n"


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["transcribe", "--help"])
    told = capsys.readouterr().out
    for part in ("--max-line-width", "default 42", "--resume", "exit codes", "sox -d", "--rule3-min-utterance-length"):
        assert part in told


# --- from Python ----------------------------------------------------------------------------------------------------


def test_segments_are_lazy_and_have_words_times_and_confidences(tone_model, folder):
    samples = np.concatenate([speak("one two"), np.zeros(48_000, np.float32), speak("three")])
    read: list[float] = []

    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            file = io.BytesIO()
            soundfile.write(file, samples, 16_000, format="WAV")
            self.file = io.BytesIO(file.getvalue() + bytes(3_200_000))

        def readable(self) -> bool:
            return True

        def read(self, n_bytes: int = -1) -> bytes:
            read.append(self.file.tell() / 32_000)
            return self.file.read(n_bytes)

    segments = edge_asr.transcribe(Slow(), model=tone_model, chunk_ms=320)
    assert not read
    first = next(segments)
    assert first.text == "one two"
    assert max(read) < 6  # seconds of the stream: the rest has not been read yet
    assert [word.text for word in first.words] == ["one", "two"]
    assert all(0 < word.start < word.end and 0 < word.confidence <= 1 for word in first.words)
    assert next(segments).text == "three"


def test_an_array_may_have_any_rate_and_a_stream_no_header(tone_model):
    samples = speak("turn on")
    said = [
        edge_asr.transcribe(samples, model=tone_model),
        edge_asr.transcribe(np.repeat(samples, 3), model=tone_model, raw_rate=48_000),
        edge_asr.transcribe(io.BytesIO((samples * 32_767).astype("<i2")), model=tone_model, raw_rate=16_000),
        edge_asr.transcribe(io.BytesIO(samples.astype("<f4")), model=tone_model, raw_rate=16_000, raw_format="f32le"),
    ]
    assert [segment.text for segments in said for segment in segments] == ["turn on"] * 4


def test_the_endpoint_rules_may_be_changed(tone_model):
    samples = np.concatenate([speak("one"), np.zeros(8_000, np.float32), speak("two")])
    segments = list(edge_asr.transcribe(samples, model=tone_model, chunk_ms=40, rule2_min_trailing_silence=0.4))
    assert [segment.text for segment in segments] == ["one", "two"]


def test_a_batch_from_python_returns_what_came_of_it(tone_model, folder, capsys):
    summary = edge_asr.transcribe_files(["rec", "gone.wav"], model=tone_model, output_dir="out", workers=1)
    assert (summary.n_files, summary.n_done, summary.n_words, summary.exit_code) == (4, 3, 3, 11)
    assert [failure.path for failure in summary.failures] == ["gone.wav"]
    assert sorted(tree("out")) == ["deep/three.txt", "deep/two.txt", "one.txt"]
    assert edge_asr.transcribe_files(Path("rec/one.wav"), model=tone_model, quiet=True).n_done == 1
    assert capsys.readouterr().out == "one\n"


# --- outputs --------------------------------------------------------------------------------------------------------


def test_a_folder_gives_every_format_of_every_recording(transcribe):
    code, out, err = transcribe("--output-dir", "out", "--output-format", "all", "rec")
    assert (code, out) == (0, "")
    formats = ("json", "jsonl", "srt", "tsv", "txt", "vtt")
    assert sorted(tree("out")) == sorted(f"{k}.{f}" for k in ("one", "deep/two", "deep/three") for f in formats)
    assert json.loads(tree("out")["deep/two.json"])["audio_filepath"] == "rec/deep/two.flac"
    assert "3 files: " in err
    assert "done         3  " in err


def test_neighbours_of_one_stem_never_overwrite_each_other(transcribe):
    soundfile.write("rec/one.mp3", speak("four"), 16_000)
    transcribe("--output-dir", "out", "rec")
    assert (tree("out")["one.wav.txt"], tree("out")["one.mp3.txt"]) == (b"one\n", b"four\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_texts_on_stdout_come_in_the_order_of_the_arguments(transcribe, workers):
    soundfile.write("long.wav", np.concatenate([speak("five"), np.zeros(160_000, np.float32)]), 16_000)
    code, out, _ = transcribe("--workers", workers, "--with-names", "long.wav", "rec/one.wav", "rec/deep/two.flac")
    assert (code, out) == (0, "long.wav: five\nrec/one.wav: one\nrec/deep/two.flac: two\n")


def test_a_recording_in_which_nothing_is_said_has_a_line_of_its_own(transcribe):
    soundfile.write("quiet.wav", np.zeros(16_000), 16_000)
    assert transcribe("quiet.wav")[1] == "\n"
    assert transcribe("--with-names", "quiet.wav", "rec/one.wav")[1] == "quiet.wav: \nrec/one.wav: one\n"


def test_options_of_subtitles_reach_them(transcribe):
    soundfile.write("a.wav", speak("one two three four"), 16_000)
    _, out, _ = transcribe("--output-format", "srt", "--max-line-width", 9, "--max-line-count", 1, "a.wav")
    assert [line for line in out.splitlines() if line[:1].isalpha()] == ["one two", "three", "four"]
    assert "<u>two</u>" in transcribe("--output-format", "vtt", "--word-timestamps", "a.wav")[1]


def test_a_dry_run_lists_and_does_nothing(transcribe):
    code, out, _ = transcribe("--dry-run", "--output-dir", "out", "rec")
    assert code == 0
    assert "todo\trec/deep/two.flac\tout/deep/two.txt\n" in out
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output-format", "all", "rec"],
        ["--resume", "rec"],
        ["-", "rec/one.wav"],
        ["--output-dir", "out", "--resume", "-"],
        ["--raw-rate", "16000", "rec/one.wav"],
        ["--output-format", "srt", "rec"],
        ["--workers", "0", "rec"],
        ["--batch-size", "0", "rec"],
        ["--ray-address", "auto", "rec"],
        ["--max-line-width", "-1", "rec"],
        ["--rule1-min-trailing-silence", "0", "rec"],
    ],
)
def test_arguments_that_do_not_go_together_are_refused_before_anything_is_done(transcribe, arguments):
    code, out, err = transcribe(*arguments)
    assert (code, out) == (errors.UsageError.exit_code, "")
    assert "error: " in err
    assert not Path("out").exists()


# --- standard input -------------------------------------------------------------------------------------------------


def pipe(tone_model, arguments: list[str], data: bytes) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "edge_asr.cli", "transcribe", "--model", str(tone_model), "-", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True, timeout=300)


def test_standard_input_may_be_wav_of_unknown_length_or_raw(tone_model, folder):
    wav = bytearray(Path("rec/one.wav").read_bytes())
    at = wav.index(b"data") + 4
    wav[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert pipe(tone_model, [], bytes(wav)).stdout == b"one\n"
    raw = np.repeat((speak("two") * 32_767).astype(">i2")[:, None], 2, axis=1)
    done = pipe(tone_model, ["--raw-rate", "16000", "--raw-format", "s16be", "--raw-channels", "2"], raw.tobytes())
    assert done.stdout == b"two\n"
    assert pipe(tone_model, ["--output-dir", "out"], bytes(wav)).stdout == b""
    assert tree("out") == {"stdin.txt": b"one\n"}


def test_what_was_said_comes_out_while_the_stream_still_runs(tone_model, folder):
    command = [sys.executable, "-m", "edge_asr.cli", "transcribe", "--model", tone_model, "-", "--raw-rate", "16000"]
    samples = np.concatenate([speak("one two"), np.zeros(96_000, np.float32)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write((samples * 32_767).astype("<i2").tobytes())
        process.stdin.flush()
        assert process.stdout.readline() == b"one two\n"  # though the input has not ended
        process.stdin.close()
        assert process.wait(timeout=300) == 0


# --- trouble --------------------------------------------------------------------------------------------------------


def test_names_may_hold_spaces_line_breaks_emoji_and_bytes_that_are_not_utf8(transcribe, folder):
    names = ["with space.wav", "two\nlines.wav", "🎙️.wav", os.fsdecode(b"caf\xe9.wav"), "-dash.wav", "[ab]*?.wav"]
    Path("odd").mkdir()
    for name in names:
        soundfile.write("odd/x.wav", speak("four"), 16_000)
        os.rename("odd/x.wav", os.path.join("odd", name))
    code, _, err = transcribe("--output-dir", "out", "--output-format", "all", "odd")
    assert (code, "error" in err) == (0, False)
    assert {name for name in tree("out") if name.endswith(".txt")} == {f"{name[:-4]}.txt" for name in names}
    assert all(text == b"four\n" for name, text in tree("out").items() if name.endswith(".txt"))
    for name, text in tree("out").items():
        if name.endswith("json"):
            json.loads(text.decode("utf-8"))
    assert "done before  6" in transcribe("--output-dir", "out", "--output-format", "all", "--resume", "odd")[2]
    code, out, _ = transcribe("--with-names", *(os.path.join("odd", name) for name in names[:4]))
    assert out == "odd/with space.wav: four\nodd/two\\nlines.wav: four\nodd/🎙️.wav: four\nodd/caf\\xe9.wav: four\n"


def test_failures_are_told_with_a_remedy_and_the_rest_is_done(transcribe):
    Path("rec/empty.wav").touch()
    Path("rec/deep/noise.mp3").write_bytes(np.random.default_rng(0).bytes(5_000))
    os.mkdir("nothing")
    code, _, err = transcribe("--output-dir", "out", "rec", "nothing", "gone.wav")
    assert code == errors.MIXED_FAILURES_EXIT_CODE
    assert len(tree("out")) == 3
    assert "error: rec/empty.wav: is 0 bytes long; nothing to transcribe" in err
    assert "error: nothing: needs recordings" in err
    assert "failed       1  AudioFormatError (exit code 14): rec/deep/noise.mp3" in err


def test_read_only_recordings_are_read(transcribe):
    for path in Path("rec").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert transcribe("--output-dir", "out", "rec")[0] == 0


@pytest.mark.parametrize(
    ("flag", "error"),
    [
        ("--graph", errors.ModelNotFoundError),
        ("--grammar", errors.GrammarError),
        ("--model", errors.ModelNotFoundError),
    ],
)
def test_a_model_graph_or_grammar_that_is_not_there_is_told(transcribe, flag, error):
    code, out, err = transcribe(flag, "nowhere", "--output-dir", "out", "rec")
    assert (code, out, tree("out")) == (error.exit_code, "", {})
    assert "nowhere" in err


def test_an_output_in_the_way_fails_its_recording_only(transcribe):
    os.makedirs("out/one.txt")
    code, _, err = transcribe("--output-dir", "out", "rec")
    assert code == errors.OutputError.exit_code
    assert sorted(tree("out")) == ["deep/three.txt", "deep/two.txt"]
    assert "one.txt: cannot be written" in err


def test_a_cluster_without_ray_says_what_to_install(transcribe, monkeypatch):
    monkeypatch.delitem(sys.modules, "edge_asr.ray_engine", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it now fails as if it were not installed
    code, _, err = transcribe("--engine", "ray", "--output-dir", "out", "rec")
    assert code == errors.DependencyError.exit_code
    assert "pip install 'edge-asr[ray]'" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_standard_output_is_an_error_of_its_own(tone_model, folder):
    command = [sys.executable, "-m", "edge_asr.cli", "transcribe", "--model", str(tone_model), "rec/one.wav"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    assert done.returncode == errors.OutputFullError.exit_code
    assert "standard output: needs" in done.stderr
    assert "Traceback" not in done.stderr


# --- what is told ---------------------------------------------------------------------------------------------------


def recording(name: str, n_bytes: int) -> Recording:
    return Recording(name, name, n_bytes, 0)


def test_what_is_left_is_estimated_by_suffix_from_what_is_done():
    files = [recording("a.wav", 1_000), recording("b.wav", 3_000), recording("c.mp3", 500)]
    estimate = Estimate(files)
    assert estimate.seconds_left is None
    estimate.finished(files[0], 10.0)
    assert estimate.seconds_left == pytest.approx(35.0)  # 30 of the wav file, the mp3 as if it were one
    estimate.finished(files[2], 40.0)
    assert estimate.seconds_left == pytest.approx(30.0)
    estimate.finished(files[1], 0.0)  # it failed
    assert estimate.seconds_left == 0


def test_the_bar_shows_files_audio_speed_and_time_left_and_leaves_nothing(monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = [100.0]
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("edge_asr.progress.time.monotonic", lambda: now[0])
    soundfile.write(tmp_path / "long.wav", np.zeros(160_000), 16_000)
    size = (tmp_path / "long.wav").stat().st_size
    files = [recording(str(tmp_path / "long.wav"), size), recording("gone.wav", 0), recording("short.wav", size // 2)]
    with Progress(files, quiet=False) as progress:
        progress.heard(0.0)
        now[0] += 2
        progress.heard(5.0)  # a third of the 15 s that the header of the longest and the sizes promise
        assert " 33 %|" in sys.stderr.getvalue()
        assert "0/3 files, 5.0/15.0 s, 2.5 × real time, ETA 00:04" in sys.stderr.getvalue()
        now[0] += 1
        progress.finished(files[1], 0.0, failed=True)
        assert "1/3 files" in sys.stderr.getvalue()
        assert "1 failed" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().rsplit("\r", 2)[1].strip() == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(files, quiet=True) as progress:
        progress.finished(files[0], 10.0, failed=False)
    assert sys.stderr.getvalue() == ""


def test_lengths_are_told_in_the_unit_of_the_whole():
    assert [length(3), length(300), length(9_000), length(30, 9_000)] == ["3.0 s", "5.0 min", "2.5 h", "0.0/2.5 h"]


def test_the_table_tells_what_was_done_before_what_failed_and_what_is_left():
    summary = Summary("model m", n_files=20, n_done=5, n_skipped=7, audio_s=50, skipped_s=70, wall_s=2)
    summary.failures = [Failure(f"{i}\n.wav", errors.AudioEmptyError("empty")) for i in range(7)]
    head, *rows = summary.table()
    assert head == "20 files: model m"
    assert rows[0] == "    done         5  50.0 s of audio in 2.0 s, 25.0 × real time (RTF 0.0400)"
    assert [row.split()[:2] for row in rows] == [["done", "5"], ["done", "before"], ["not", "done"], ["failed", "7"]]
    assert rows[-1].endswith("0\\n.wav, 1\\n.wav, 2\\n.wav, 3\\n.wav, 4\\n.wav and 2 more")


def test_status_survives_a_terminal_without_unicode(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    say("25 × real time: 🎙️.wav")
    stream.flush()
    assert stream.buffer.getvalue() == b"edge-asr: 25 \\xd7 real time: \\U0001f399\\ufe0f.wav\n"
