"""When an utterance is over: Kaldi's three rules, by the names and defaults of sherpa-onnx, and a fourth."""

import math
from dataclasses import dataclass, fields

from edge_asr.errors import UsageError

FRAME_S = 0.04  # of the encoder's output


@dataclass(frozen=True)
class EndpointRules:
    """Seconds; an utterance ends as soon as one rule holds. Infinity switches a rule off."""

    rule1_min_trailing_silence: float = 2.4  # though nothing was said
    rule2_min_trailing_silence: float = 1.2  # after something was said
    rule3_min_utterance_length: float = 20.0  # whatever happens: it bounds the memory of the search
    rule4_min_utterance_length: float = 12.0  # rule 3 is near and may cut a word: better the next pause
    rule4_min_trailing_silence: float = 0.4  # such a pause

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if not seconds > 0:
                raise UsageError(f"{field.name} must be more than 0 seconds, have {seconds}; inf switches the rule off")

    @classmethod
    def never(cls) -> "EndpointRules":
        """No rule: an utterance lasts as long as its stream."""
        return cls(*(math.inf for _ in fields(cls)))


class Endpoint:
    """Asks the rules; frames are counted since the decoder's last reset, so it keeps no state of its own."""

    def __init__(self, rules: EndpointRules | None = None) -> None:
        self.rules = EndpointRules() if rules is None else rules

    def possible(self, n_frames: int, most_trailing_blank: int) -> bool:
        """Whether `detected` may hold where no more than so many frames are blank at the end."""
        return self._holds(n_frames, most_trailing_blank, said_something=True)

    def detected(self, n_frames: int, n_trailing_blank: int) -> bool:
        """n_frames: decoded so far; n_trailing_blank: those since the last token on the decoder's best path."""
        return self._holds(n_frames, n_trailing_blank, said_something=n_frames > n_trailing_blank)

    def _holds(self, n_frames: int, n_trailing_blank: int, said_something: bool) -> bool:
        rules, length_s, silence_s = self.rules, n_frames * FRAME_S, n_trailing_blank * FRAME_S
        pause_s = rules.rule2_min_trailing_silence
        if length_s >= rules.rule4_min_utterance_length:
            pause_s = min(pause_s, rules.rule4_min_trailing_silence)
        return (
            silence_s >= rules.rule1_min_trailing_silence
            or (said_something and silence_s >= pause_s)
            or length_s >= rules.rule3_min_utterance_length
        )
