"""Streaming Kaldi filter bank: samples in, (T, 80) float32 frames out, equal to the whole-file result for any split.

Computed by kaldi-native-fbank with the options that icefall trains with and sherpa-onnx feeds.
"""

from __future__ import annotations

import kaldi_native_fbank
import numpy as np

from edge_asr.audio import SAMPLE_RATE
from edge_asr.errors import StreamError

N_MEL = 80
FRAME_MS = 25
HOP_MS = 10
HOP_SAMPLES = SAMPLE_RATE * HOP_MS // 1000
LOW_HZ = 20
HIGH_HZ = -400  # below the Nyquist frequency: 7600 Hz
PREEMPHASIS = 0.97
WINDOW = "povey"

PARAMETERS: dict[str, object] = {
    "type": "kaldi-fbank", "sample_rate": SAMPLE_RATE, "n_mel": N_MEL, "frame_ms": FRAME_MS, "hop_ms": HOP_MS,
    "low_hz": LOW_HZ, "high_hz": HIGH_HZ, "preemphasis": PREEMPHASIS, "window": WINDOW, "dither": 0.0,
    "snip_edges": False, "remove_dc_offset": True,
}  # fmt: skip


def _options() -> kaldi_native_fbank.FbankOptions:
    options = kaldi_native_fbank.FbankOptions()
    frame = options.frame_opts
    frame.samp_freq = SAMPLE_RATE
    frame.frame_length_ms = FRAME_MS
    frame.frame_shift_ms = HOP_MS
    frame.preemph_coeff = PREEMPHASIS
    frame.window_type = WINDOW
    frame.dither = 0  # the library's default is not 0, and would make results differ from run to run
    frame.snip_edges = False
    frame.remove_dc_offset = True
    options.mel_opts.num_bins = N_MEL
    options.mel_opts.low_freq = LOW_HZ
    options.mel_opts.high_freq = HIGH_HZ
    return options


class FbankStream:
    """Frames of one stream. Frame t is centred on sample 160·t + 80; n samples give round(n / 160) frames.

    A frame is out as soon as the 25 ms that it covers are in; the last frames, which mirror the end of the signal,
    come with `flush`. Memory stays flat: frames are handed over, not kept.
    """

    def __init__(self) -> None:
        self._fbank = kaldi_native_fbank.OnlineFbank(_options())
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
        """The frames that reach over the end of the signal, exactly as the whole-file computation has them."""
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


def fbank(samples: np.ndarray) -> np.ndarray:
    """(n,) float32 at 16 kHz → (round(n / 160), 80) frames of a whole signal."""
    stream = FbankStream()
    return np.concatenate([stream.accept(samples), stream.flush()])
