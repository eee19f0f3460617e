"""Every container gives the sound that went in, and joined, tagged or headerless ones give all of it."""

import io
import sys

import av
import numpy as np
import pytest
import soundfile
from broken_audio import RATE_HZ, hum, recordings
from test_audio import strongest_hz, tone

from edge_asr.audio import AudioFile, load_audio
from edge_asr.audio_av import AvReader
from edge_asr.audio_parts import PartFile, mp3_parts, mpeg_frame_bytes
from edge_asr.audio_source import AAC, open_source
from edge_asr.errors import AudioEmptyError, AudioFormatError, AudioTruncatedError, DependencyError

FILES = recordings(tone(seconds=1.0))
NEEDS_PYAV = {"m4a-aac", "m4a-alac", "mp4-fragmented", "webm-opus", "mkv-mp3", "aac", "wma", "3gp", "amr", "mpegts",
              "mov-pcm", "avi", "flv"}  # fmt: skip
LOSSLESS = [name for name in FILES if "-pcm" in name or "alac" in name or "flac" in name]


@pytest.fixture
def no_pyav(monkeypatch):
    for name in [name for name in sys.modules if name == "av" or name.startswith("av.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.parametrize("name", list(FILES))
def test_what_went_in_comes_out_whatever_the_file_is_called(tmp_path, name):
    path = tmp_path / "recording.mp3"
    path.write_bytes(FILES[name])
    with AudioFile(path) as audio:
        samples = np.concatenate(list(audio))
        assert audio.damage is None
    assert len(samples) == pytest.approx(RATE_HZ, abs=1_700)  # codecs pad their frames
    assert strongest_hz(samples[2_000:14_000]) == pytest.approx(440, abs=2)
    assert np.abs(samples[2_000:14_000]).max() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_give_each_sample_once(tmp_path, name):
    path = tmp_path / "recording"
    path.write_bytes(FILES[name])
    samples = load_audio(path)
    assert len(samples) == RATE_HZ
    assert np.allclose(samples, tone(), atol=0.01)  # 8 bits


@pytest.mark.parametrize("name", ["flac-pcm_16", "ogg-opus", "mp3-mpeg_layer_iii", "m4a-aac", "webm-opus", "mp3-id3"])
def test_a_pipe_gives_what_the_file_gives(tmp_path, name):
    path = tmp_path / "recording"
    path.write_bytes(FILES[name])
    assert np.array_equal(load_audio(io.BytesIO(FILES[name])), load_audio(path))


# --- the optional library ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NEEDS_PYAV))
def test_without_pyav_the_message_says_what_to_install(tmp_path, no_pyav, name):
    path = tmp_path / "recording"
    path.write_bytes(FILES[name])
    with pytest.raises(DependencyError, match=r"needs PyAV.*pip install 'edge-asr\[av\]'"):
        load_audio(path)


@pytest.mark.parametrize("name", sorted(set(FILES) - NEEDS_PYAV))
def test_all_else_is_read_without_pyav(tmp_path, no_pyav, name):
    path = tmp_path / "recording"
    path.write_bytes(FILES[name])
    assert len(load_audio(path)) == pytest.approx(RATE_HZ, abs=1_700)


def test_pictures_without_sound_are_named():
    with pytest.raises(AudioFormatError, match="holds video"):
        load_audio(io.BytesIO(_video(None)))


def test_sound_that_begins_late_in_a_video_keeps_its_time():
    sound = load_audio(io.BytesIO(_video(begins_s=2.0)))
    assert len(sound) == pytest.approx(3 * RATE_HZ, abs=3_000)
    assert np.abs(sound[: 2 * RATE_HZ - 2_000]).max() == 0
    assert strongest_hz(sound[2 * RATE_HZ + 2_000 : 3 * RATE_HZ - 2_000]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("name", ["m4a-aac", "webm-opus", "wma", "aac", "mpegts", "flv"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_cut_file_gives_what_it_holds_or_a_typed_error(name, part):
    content = FILES[name][: int(len(FILES[name]) * part)]
    try:
        samples = load_audio(io.BytesIO(content))
    except (AudioFormatError, AudioTruncatedError, AudioEmptyError):
        return
    assert 0 < len(samples) <= RATE_HZ + 1_700


def test_a_damaged_packet_costs_its_own_time_only():
    content = bytearray(FILES["aac"])
    middle = content.index(b"\xff\xf1", len(content) // 2)
    content[middle + 7 : middle + 60] = bytes(53)
    with AudioFile(io.BytesIO(bytes(content))) as audio:
        assert sum(map(len, audio)) == pytest.approx(RATE_HZ, abs=4_000)


def test_the_silence_that_phones_do_not_send_is_kept():
    speech, nothing = FILES["amr"][6:], b"\x7c"  # frame type 15, NO_DATA: 20 ms
    samples = load_audio(io.BytesIO(b"#!AMR\n" + speech + nothing * 50 + speech))
    assert len(samples) == pytest.approx(3 * RATE_HZ, abs=2_000)


@pytest.mark.parametrize(("codec", "layout"), [("aac", "5.1"), ("aac", "7.1"), ("alac", "7.1(wide)")])
def test_the_sound_of_cinemas_becomes_its_mean(codec, layout):
    file = io.BytesIO()
    with av.open(file, "w", format="ipod") as out:
        stream = out.add_stream(codec, rate=RATE_HZ, layout=layout)
        pcm = np.repeat((tone() * 32_767).astype(np.int16), stream.layout.nb_channels)
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", layout)
        frame.sample_rate = RATE_HZ
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    samples = load_audio(io.BytesIO(file.getvalue()))
    assert strongest_hz(samples[2_000:14_000]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("n_channels", [1, 2, 7, 8, 9, 24, 45, 64])
def test_a_frame_of_many_planes_is_read_no_further_than_them(n_channels):
    """PyAV reads planes up to a null pointer, which eight and more do not have; a damaged aac holds 45."""
    frame = av.AudioFrame("fltp", f"{n_channels} channels", 1024)
    frame.sample_rate = RATE_HZ
    reader = AvReader(open_source(io.BytesIO(FILES["aac"])), AAC)
    at_s, rate_hz, samples = reader._samples(frame)
    assert (at_s, rate_hz, samples.shape) == (None, RATE_HZ, (1024, n_channels))
    reader.close()


def _video(begins_s: float | None) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        pictures = out.add_stream("mpeg4", rate=5)
        pictures.width = pictures.height = 32
        pictures.pix_fmt = "yuv420p"
        sound = None if begins_s is None else out.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for _ in range(16):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        if sound is not None:
            pcm = (tone() * 32_767).astype(np.int16)
            for first in range(0, RATE_HZ, 1_600):
                frame = av.AudioFrame.from_ndarray(pcm[None, first : first + 1_600], "s16", "mono")
                frame.sample_rate, frame.pts = RATE_HZ, int(begins_s * RATE_HZ) + first
                out.mux(sound.encode(frame))
            out.mux(sound.encode(None))
    return file.getvalue()


# --- mp3 and ogg as people have them -------------------------------------------------------------------------------

MP3 = FILES["mp3-mpeg_layer_iii"]
LONGER_MP3 = recordings(hum(3.0))["mp3-mpeg_layer_iii"]


def without_header(mp3: bytes) -> bytes:
    """The frames alone: a recording cut out of a longer one."""
    first = mp3.index(b"\xff\xf3")
    return mp3[first + mpeg_frame_bytes(mp3[first : first + 6]) :]


def test_an_mp3_without_a_header_has_its_true_length():
    with AudioFile(io.BytesIO(without_header(LONGER_MP3))) as audio:
        claimed_s = audio.duration_s
        n_samples = sum(map(len, audio))
        assert audio.damage is None
    assert n_samples == pytest.approx(3 * RATE_HZ, abs=2_500)
    assert claimed_s == pytest.approx(3.0, abs=0.2)


def test_a_loud_beginning_does_not_shorten_an_mp3_of_variable_rate():
    """libsndfile takes the length from the first frames' bitrate; here that would be a third of it."""
    noise = (0.5 * np.random.default_rng(0).standard_normal(RATE_HZ // 2)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(
        file, np.concatenate([noise, np.zeros(4 * RATE_HZ, np.float32)]), RATE_HZ, format="MP3",
        subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.0,
    )  # fmt: skip
    assert len(load_audio(io.BytesIO(without_header(file.getvalue())))) == pytest.approx(4.5 * RATE_HZ, abs=3_000)


@pytest.mark.parametrize("second", [MP3, without_header(MP3), FILES["mp3-id3"]])
@pytest.mark.parametrize("between", [b"", b"TAG" + b"title".ljust(125, b"\0"), bytes(5_000)])
def test_joined_mp3s_are_read_to_the_end_of_the_last(second, between):
    with AudioFile(io.BytesIO(LONGER_MP3 + between + second)) as audio:
        assert sum(map(len, audio)) == pytest.approx(4 * RATE_HZ, abs=3_000)


def test_joined_mp3s_of_two_rates_become_one():
    file = io.BytesIO()
    soundfile.write(file, tone(44_100), 44_100, format="MP3", subtype="MPEG_LAYER_III")
    samples = load_audio(io.BytesIO(MP3 + file.getvalue()))
    assert len(samples) == pytest.approx(2 * RATE_HZ, abs=2_500)
    assert strongest_hz(samples[RATE_HZ + 3_000 : -3_000]) == pytest.approx(440, abs=3)


@pytest.mark.parametrize("before", [bytes(5_000), b"\xff" * 3_000, np.random.default_rng(0).bytes(3_000)])
@pytest.mark.parametrize("behind", [b"", np.random.default_rng(1).bytes(30_000), bytes(30_000)])
def test_garbage_around_an_mp3_is_passed(before, behind):
    assert len(load_audio(io.BytesIO(before + MP3 + behind))) == pytest.approx(RATE_HZ, abs=2_500)


def test_a_tag_with_a_large_picture_is_passed():
    size = 3 << 20
    tag = b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)
    assert np.array_equal(load_audio(io.BytesIO(tag + MP3)), load_audio(io.BytesIO(MP3)))
    assert np.array_equal(
        load_audio(io.BytesIO(tag + FILES["flac-pcm_16"])), load_audio(io.BytesIO(FILES["flac-pcm_16"]))
    )


def test_a_cut_mp3_says_that_it_is_cut():
    with AudioFile(io.BytesIO(LONGER_MP3[: len(LONGER_MP3) // 2])) as audio:
        assert 0 < sum(map(len, audio)) < 2 * RATE_HZ
        assert "cut short" in audio.damage


def test_an_mp3_may_end_anywhere():
    for n_bytes in range(1, 300):
        parts = mp3_parts(io.BytesIO(MP3[:n_bytes]))
        assert all(part.end <= n_bytes for part in parts)


@pytest.mark.parametrize("second", ["ogg-vorbis", "ogg-opus"])
def test_a_chain_of_ogg_recordings_is_read_to_the_end_of_the_last(second):
    with AudioFile(io.BytesIO(FILES["ogg-vorbis"] + FILES[second])) as audio:
        assert sum(map(len, audio)) == 2 * RATE_HZ
        assert audio.damage is None


def test_garbage_behind_an_ogg_is_no_damage():
    with AudioFile(io.BytesIO(FILES["ogg-vorbis"] + bytes(200_000))) as audio:
        assert sum(map(len, audio)) == RATE_HZ
        assert audio.damage is None


def test_the_parts_of_a_file_are_its_frames():
    content = MP3 + bytes(2_000) + without_header(MP3)
    parts = mp3_parts(io.BytesIO(content))
    assert [content[part.start : part.start + 1] for part in parts] == [b"\xff"] * 2
    assert parts[-1].end == len(content)
    assert sum(part.duration_s for part in parts) == pytest.approx(2.1, abs=0.15)
    whole = PartFile(io.BytesIO(content), parts[1]).read()
    assert whole == parts[1].prefix + content[parts[1].start :]


def test_remarks_of_the_mp3_library_stay_off_the_screen(capfd):
    load_audio(io.BytesIO(without_header(LONGER_MP3)[1_000:] + np.random.default_rng(0).bytes(9_000)))
    assert capfd.readouterr().err == ""
