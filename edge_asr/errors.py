"""Every error this package raises on purpose, under one root.

EdgeAsrError                    1
├── UsageError                  2   an argument makes no sense (argparse leaves with 2 as well)
├── StreamError                 4   a verb was called in the wrong order
├── OutputError                 5   a result cannot be written
│   └── OutputFullError         7   no room where results are written; the batch stops, --resume goes on
├── DependencyError             6   an optional package or system library is missing
├── WorkerError                 8   a process that transcribed a file died
├── AudioError                 10
│   ├── AudioNotFoundError     11   no such file, or not readable by this user
│   ├── AudioDirectoryError    12   a folder where a file was expected, or one without recordings
│   ├── AudioEmptyError        13   zero bytes, or zero samples
│   ├── AudioFormatError       14   not audio, or a header that cannot be
│   └── AudioTruncatedError    15   the file ends before its header says so, and holds nothing to transcribe
├── ModelError                 20
│   ├── ModelNotFoundError     21   no model of that name, or the folder lacks a file
│   ├── ModelDamagedError      22   a file of the model is damaged; the message names it
│   └── ModelMismatchError     23   two files of the model do not belong together
├── GraphError                 30
│   ├── GrammarError           31   a phrase of a grammar cannot be parsed
│   └── SearchError            32   the search was given emissions that it cannot use
├── LexiconError               33   a token table, lexicon or pronunciation is wrong
├── LanguageModelError         34   an ARPA file or its text is wrong
├── ManifestError              40   a line of a manifest is wrong
├── BufferOverflowError        50   a ring buffer with policy "fail" ran over
├── MicrophoneError            51   no device, a busy device, a device that went away
├── TrainingError              60
│   └── CheckpointError        61   a checkpoint is damaged or belongs to another configuration
├── ExportError                62   an exported model is not the model that was trained
├── AlignmentError             63   a text and its audio cannot be laid beside each other
└── SimulationError            70   a device profile or model that the simulator cannot run

The number is the exit code of a command that ends with that error (`exit_code`). A command that met errors of
several kinds leaves with `MIXED_FAILURES_EXIT_CODE`. Messages say what is needed, what was found, and the remedy.
"""

from __future__ import annotations

MIXED_FAILURES_EXIT_CODE = 3
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it


class EdgeAsrError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1


class UsageError(EdgeAsrError):
    exit_code = 2


class StreamError(EdgeAsrError):
    exit_code = 4


class OutputError(EdgeAsrError):
    exit_code = 5


class OutputFullError(OutputError):
    exit_code = 7


class DependencyError(EdgeAsrError):
    exit_code = 6


class WorkerError(EdgeAsrError):
    exit_code = 8


class AudioError(EdgeAsrError):
    exit_code = 10


class AudioNotFoundError(AudioError):
    exit_code = 11


class AudioDirectoryError(AudioError):
    exit_code = 12


class AudioEmptyError(AudioError):
    exit_code = 13


class AudioFormatError(AudioError):
    exit_code = 14


class AudioTruncatedError(AudioError):
    exit_code = 15


class ModelError(EdgeAsrError):
    exit_code = 20


class ModelNotFoundError(ModelError):
    exit_code = 21


class ModelDamagedError(ModelError):
    exit_code = 22


class ModelMismatchError(ModelError):
    exit_code = 23


class GraphError(EdgeAsrError):
    exit_code = 30


class GrammarError(GraphError):
    exit_code = 31


class SearchError(GraphError):
    exit_code = 32


class LexiconError(EdgeAsrError):
    exit_code = 33


class LanguageModelError(EdgeAsrError):
    exit_code = 34


class ManifestError(EdgeAsrError):
    exit_code = 40


class BufferOverflowError(EdgeAsrError):
    exit_code = 50


class MicrophoneError(EdgeAsrError):
    exit_code = 51


class TrainingError(EdgeAsrError):
    exit_code = 60


class CheckpointError(TrainingError):
    exit_code = 61


class ExportError(EdgeAsrError):
    exit_code = 62


class AlignmentError(EdgeAsrError):
    exit_code = 63


class SimulationError(EdgeAsrError):
    exit_code = 70
