"""Streaming Kaldi filter bank: samples in, (T, 80) float32 frames out, equal to the whole-file result for any split.

Computed with numpy, many frames at once, a third of the CPU time that frame after frame takes through
kaldi-native-fbank, which icefall and sherpa-onnx use; the tests hold both together.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from edge_asr.audio import SAMPLE_RATE
from edge_asr.errors import DependencyError, StreamError

N_MEL = 80
FRAME_MS = 25
HOP_MS = 10
FRAME_SAMPLES = SAMPLE_RATE * FRAME_MS // 1000
HOP_SAMPLES = SAMPLE_RATE * HOP_MS // 1000
LEAD_SAMPLES = (FRAME_SAMPLES - HOP_SAMPLES) // 2  # of frame 0 before the signal begins; the begin is mirrored there
FFT_SAMPLES = 512
LOW_HZ = 20
HIGH_HZ = -400  # below the Nyquist frequency: 7600 Hz
PREEMPHASIS = 0.97
WINDOW = "povey"
FLOOR = np.finfo(np.float32).eps  # of a band's energy
SILENCE = float(np.log(FLOOR))  # each band of digital silence: what follows the end of an utterance
BLOCK_FRAMES = 32  # in one matrix product, always as many: with fewer rows it may round otherwise

PARAMETERS: dict[str, object] = {
    "type": "kaldi-fbank", "sample_rate": SAMPLE_RATE, "n_mel": N_MEL, "frame_ms": FRAME_MS, "hop_ms": HOP_MS,
    "low_hz": LOW_HZ, "high_hz": HIGH_HZ, "preemphasis": PREEMPHASIS, "window": WINDOW, "dither": 0.0,
    "snip_edges": False, "remove_dc_offset": True,
}  # fmt: skip


def _povey_window() -> np.ndarray:
    """(400,): a Hann window to the power of 0.85; its first value is 0."""
    phase = 2 * np.pi * np.arange(FRAME_SAMPLES) / (FRAME_SAMPLES - 1)
    return ((0.5 - 0.5 * np.cos(phase)) ** 0.85).astype(np.float32)


def _mel_weights() -> np.ndarray:
    """(257, 80): triangles on Kaldi's mel scale; the bin at the Nyquist frequency belongs to none."""

    def mel(hz: np.ndarray | float) -> np.ndarray:
        return 1127 * np.log1p(np.asarray(hz) / 700)

    edges = np.linspace(mel(LOW_HZ), mel(SAMPLE_RATE / 2 + HIGH_HZ), N_MEL + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = mel(np.arange(FFT_SAMPLES // 2 + 1) * SAMPLE_RATE / FFT_SAMPLES)[:, None]
    weights = np.maximum(0, np.minimum((at - left) / (centre - left), (right - at) / (right - centre)))
    weights[-1] = 0
    return weights.astype(np.float32)


_POVEY_INSIDE = _povey_window()[1:]
_MEL = _mel_weights()


class FbankStream:
    """Frames of one stream. Frame t is centred on sample 160·t + 80; n samples give round(n / 160) frames.

    A frame is out as soon as the 25 ms that it covers are in; the last frames, which mirror the end of the signal,
    come with `flush`. Memory stays flat: frames are handed over, not kept.
    """

    def __init__(self) -> None:
        self._n_samples = 0
        self._n_frames = 0
        self._kept = np.zeros(0, np.float32)  # from the first sample of the next frame on, mirrored begin included
        self._finished = False

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """(n,) float32 at 16 kHz in ±1 → (T, 80) frames that are now complete, maybe none."""
        if self._finished:
            raise StreamError("the feature stream was flushed and takes no more samples; make a new one")
        self._n_samples += len(samples)
        self._kept = np.concatenate([self._kept, samples], dtype=np.float32)
        if self._n_frames == 0:
            if self._n_samples < FRAME_SAMPLES - LEAD_SAMPLES:
                return np.zeros((0, N_MEL), np.float32)
            self._kept = np.pad(self._kept, (LEAD_SAMPLES, 0), "symmetric")
        n_new = max(0, (len(self._kept) - FRAME_SAMPLES) // HOP_SAMPLES + 1)
        return self._compute(n_new)

    def flush(self) -> np.ndarray:
        """The frames that reach over the end of the signal, exactly as the whole-file computation has them."""
        n_new = 0 if self._finished else (self._n_samples + HOP_SAMPLES // 2) // HOP_SAMPLES - self._n_frames
        self._finished = True
        if n_new:
            lead = 0 if self._n_frames else LEAD_SAMPLES
            n_needed = (n_new - 1) * HOP_SAMPLES + FRAME_SAMPLES
            self._kept = np.pad(self._kept, (lead, n_needed - lead - len(self._kept)), "symmetric")
        return self._compute(n_new)

    def _compute(self, n_frames: int) -> np.ndarray:
        """The next `n_frames` frames, whose samples must be there."""
        strides = HOP_SAMPLES * self._kept.itemsize, self._kept.itemsize
        inputs = as_strided(self._kept, (n_frames, FRAME_SAMPLES), strides)
        frames = np.empty((n_frames, N_MEL), np.float32)
        for first in range(0, n_frames, BLOCK_FRAMES):
            block = slice(first, first + BLOCK_FRAMES)
            frames[block] = _log_mel(inputs[block])
        self._kept = self._kept[n_frames * HOP_SAMPLES :].copy()
        self._n_frames += n_frames
        return frames


class KaldiFbankStream:
    """The same from kaldi-native-fbank, frame after frame: three times the CPU time, the bits of sherpa-onnx.

    The two differ by 3e-6 on average, 1e-3 at most; an int8 encoder may round such a bit to another step.
    """

    def __init__(self) -> None:
        try:
            import kaldi_native_fbank
        except ImportError as error:
            raise DependencyError(
                "features='kaldi' needs the package kaldi-native-fbank, which is not installed; "
                "pip install kaldi-native-fbank, or leave the default"
            ) from error
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.dither = 0  # the library's default is not 0, and would make results differ from run to run
        options.frame_opts.snip_edges = False
        options.mel_opts.num_bins = N_MEL
        options.mel_opts.low_freq = LOW_HZ
        options.mel_opts.high_freq = HIGH_HZ
        self._fbank = kaldi_native_fbank.OnlineFbank(options)
        self._n_frames = 0
        self._finished = False

    def accept(self, samples: np.ndarray) -> np.ndarray:
        """(n,) float32 at 16 kHz in ±1 → (T, 80) frames that are now complete, maybe none."""
        if self._finished:
            raise StreamError("the feature stream was flushed and takes no more samples; make a new one")
        if len(samples):
            self._fbank.accept_waveform(SAMPLE_RATE, samples.tolist())  # a list converts faster than an array
        return self._pop()

    def flush(self) -> np.ndarray:
        """The frames that reach over the end of the signal."""
        if not self._finished:
            self._finished = True
            self._fbank.input_finished()
        return self._pop()

    def _pop(self) -> np.ndarray:
        n_new = self._fbank.num_frames_ready - self._n_frames
        frames = np.empty((n_new, N_MEL), np.float32)
        for i in range(n_new):
            frames[i] = self._fbank.get_frame(self._n_frames + i)  # a view that dies with pop, so it is copied here
        self._fbank.pop(n_new)
        self._n_frames += n_new
        return frames


FEATURE_STREAMS: dict[str, type[FbankStream | KaldiFbankStream]] = {"numpy": FbankStream, "kaldi": KaldiFbankStream}


def _log_mel(inputs: np.ndarray) -> np.ndarray:
    """Frames of samples (n, 400), at most a block → (n, 80)."""
    n_frames = len(inputs)
    frames = inputs - np.add.reduce(inputs, axis=1, keepdims=True) / np.float32(FRAME_SAMPLES)
    windowed = np.zeros((n_frames, FFT_SAMPLES), np.float32)
    inside = windowed[:, 1:FRAME_SAMPLES]  # the window is 0 at a frame's first sample
    np.multiply(frames[:, :-1], np.float32(-PREEMPHASIS), out=inside)
    inside += frames[:, 1:]
    inside *= _POVEY_INSIDE
    squares = np.fft.rfft(windowed).astype(np.complex64, copy=False).view(np.float32)
    squares *= squares
    power = np.zeros((BLOCK_FRAMES, len(_MEL)), np.float32)
    np.add(squares[:, ::2], squares[:, 1::2], out=power[:n_frames])
    energies = power @ _MEL
    return np.log(np.maximum(energies, FLOOR, out=energies), out=energies)[:n_frames]


def fbank(samples: np.ndarray) -> np.ndarray:
    """(n,) float32 at 16 kHz → (round(n / 160), 80) frames of a whole signal."""
    stream = FbankStream()
    return np.concatenate([stream.accept(samples), stream.flush()])
