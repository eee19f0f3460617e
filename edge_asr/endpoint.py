"""When an utterance is over: Kaldi's three rules, with the names and defaults that sherpa-onnx users know."""

from dataclasses import dataclass, fields

from edge_asr.errors import UsageError

FRAME_S = 0.04  # of the encoder's output


@dataclass(frozen=True)
class EndpointRules:
    """Seconds; an utterance ends as soon as one rule holds. Infinity switches a rule off."""

    rule1_min_trailing_silence: float = 2.4  # though nothing was said
    rule2_min_trailing_silence: float = 1.2  # after something was said
    rule3_min_utterance_length: float = 20.0  # whatever happens: it bounds the memory of the search

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if not seconds > 0:
                raise UsageError(f"{field.name} must be more than 0 seconds, have {seconds}; inf switches the rule off")


class Endpoint:
    """Asks the rules; frames are counted since the decoder's last reset, so it keeps no state of its own."""

    def __init__(self, rules: EndpointRules | None = None) -> None:
        self.rules = EndpointRules() if rules is None else rules

    def possible(self, n_frames: int, most_trailing_blank: int) -> bool:
        """Whether `detected` may hold where no more than so many frames are blank at the end."""
        least_s = min(self.rules.rule1_min_trailing_silence, self.rules.rule2_min_trailing_silence)
        return most_trailing_blank * FRAME_S >= least_s or n_frames * FRAME_S >= self.rules.rule3_min_utterance_length

    def detected(self, n_frames: int, n_trailing_blank: int) -> bool:
        """n_frames: decoded so far; n_trailing_blank: those since the last token on the decoder's best path."""
        silence_s = n_trailing_blank * FRAME_S
        said_something = n_frames > n_trailing_blank
        return (
            silence_s >= self.rules.rule1_min_trailing_silence
            or (said_something and silence_s >= self.rules.rule2_min_trailing_silence)
            or n_frames * FRAME_S >= self.rules.rule3_min_utterance_length
        )
