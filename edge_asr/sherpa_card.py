"""The README of a directory for sherpa-onnx: the commands that use it, and what differs from our own runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLES_PER_MS = 16
PROGRAM_TAIL_MS = 800  # silence that the program sherpa-onnx appends to a file

_HEAD = """\
# {model} for sherpa-onnx

A streaming English model in the zipformer2-ctc layout of [sherpa-onnx](https://github.com/k2-fsa/sherpa-onnx), so that
it runs wherever sherpa-onnx runs. Written by `edge-asr export --target sherpa-onnx`; tested with sherpa-onnx 1.13 and
2.0. The encoder is no Zipformer: it travels in that layout, with its state packed into the convolution caches.

| file | what it is |
|---|---|
| `model.int8.onnx` ({int8_mb:.1f} MB) | quantised encoder: take this one |
| `model.onnx` ({fp32_mb:.1f} MB) | the encoder with weights in 16 bits, computed in 32 |
| `tokens.txt` | what the encoder emits |
"""

_GRAPH_ROWS = """\
| `graph.fst` ({graph_mb:.1f} MB) | decoding graph for `ctc_graph`: lexicon, language model and CTC topology |
| `words.txt` | the graph's words: `word id` |
"""

_COMMAND = """
## Command line

```sh
pip install sherpa-onnx-bin    # or the programs of a release of sherpa-onnx
sherpa-onnx \\
  --tokens=tokens.txt \\
  --zipformer2-ctc-model=model.int8.onnx \\
{graph_options}  --num-threads=1 \\
  recording.wav{to_words}
```

"""

_GRAPH_OPTIONS = """\
  --ctc-graph=graph.fst \\
  --ctc-max-active={max_active} \\
"""

_TO_WORDS = r""" 2>&1 |
  sed -n 's/.*"words": \[\([0-9, ]*\)\].*/\1/p' | tr -d ' ' | tr , '\n' |
  awk 'NR == FNR { word[$2] = $1; next } { printf "%s ", word[$1] } END { print "" }' words.txt -"""

_PYTHON = """
## Python

```python
{imports}import numpy as np
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
    tokens="tokens.txt", model="model.int8.onnx", num_threads=1{graph_arguments}
)
stream = recognizer.create_stream()
samples, rate = soundfile.read("recording.wav", dtype="float32")
stream.accept_waveform(rate, samples)
stream.accept_waveform(rate, np.zeros(rate * {tail_ms} // 1000, np.float32))
stream.input_finished()
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
{show}```
"""

_SHOW_WORDS = """\
words = dict(reversed(line.split()) for line in Path("words.txt").read_text(encoding="utf-8").splitlines())
print(" ".join(words[str(i)] for i in recognizer.get_result_all(stream).words))
"""

_SHOW_TOKENS = """\
print(recognizer.tokens(stream))
"""

_ABOUT_WORDS = """\
The last two lines turn the result's `words`, ids of `words.txt`, into words; without them all of the result is shown,
whose `text` is the tokens run together. Words are there as soon as the best path may end, so they may lag behind by a
word until the audio is over.
Without the graph the search is greedy and the result is tokens.
"""

_ABOUT_TOKENS = """\
Without a graph the search is greedy and the result is the tokens of `tokens.txt`.
"""

_NOTES = """
## What to know

- **Append {tail_ms} ms of silence ({tail_samples} zero samples at 16 kHz) before `input_finished`.** sherpa-onnx
  decodes whole chunks of {chunk_ms} ms once a frame more is there, never the rest, and the encoder's output is
  {lookahead_ms} ms late. The command-line program appends {program_tail_ms} ms by itself{enough}; it also puts 300 ms
  (1.13.4) or 500 ms (1.13.8, 2.0; there `--left-padding=0` leaves it out) in front, so its times are later by that.
- Token times are {lookahead_ms} ms late, for sherpa-onnx knows nothing of that delay: subtract it.
- The tokens equal those of edge-asr given the same samples, silence included, and `--features kaldi`. By default it
  computes features in another way, whose last bits may tip a token of an int8 encoder; given the recording alone it may
  differ at the very end, where it pads in another way.
{search_note}"""

_SEARCH_NOTE = """\
- The beam of sherpa-onnx is fixed at 16. The costs of `graph.fst` and the output of the encoder are scaled so that this
  is the beam that the model was tuned for; so the graph belongs to the encoders beside it and to no other. The output
  is therefore {emission_scale:g} times a log-probability; greedy search does not see it.
"""


def card(report: Mapping[str, Any]) -> str:
    """Markdown from the report of an export."""
    has_graph = "graph_bytes" in report
    values = {
        **report,
        "int8_mb": report["int8_bytes"] / 1e6,
        "fp32_mb": report["fp32_bytes"] / 1e6,
        "graph_mb": report.get("graph_bytes", 0) / 1e6,
        "tail_samples": report["tail_ms"] * SAMPLES_PER_MS,
        "program_tail_ms": PROGRAM_TAIL_MS,
        "enough": "" if report["tail_ms"] <= PROGRAM_TAIL_MS else ", but too little for this chunk",
        "graph_options": _GRAPH_OPTIONS.format_map(report) if has_graph else "",
        "to_words": _TO_WORDS if has_graph else "",
        "imports": "from pathlib import Path\n\n" if has_graph else "",
        "graph_arguments": f',\n    ctc_graph="graph.fst", ctc_max_active={report["max_active"]},' if has_graph else "",
        "show": _SHOW_WORDS if has_graph else _SHOW_TOKENS,
        "search_note": _SEARCH_NOTE.format_map(report) if has_graph else "",
    }
    parts = [_HEAD, _GRAPH_ROWS if has_graph else "", _COMMAND, _ABOUT_WORDS if has_graph else _ABOUT_TOKENS]
    return "".join(part.format_map(values) for part in [*parts, _PYTHON, _NOTES])
