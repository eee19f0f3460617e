"""Grapheme to phoneme against enumeration of every alignment and every graphone sequence."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr import g2p
from edge_asr.errors import LexiconError, ModelDamagedError
from edge_asr.ngram import BOS, EOS, NgramModel
from edge_asr.tokens import PHONES, Lexicon

GUESSING = Lexicon({}, Lexicon.cmudict().fallback)
PAIRS = [
    ("cat", ("K", "AE", "T")),
    ("tack", ("T", "AE", "K")),
    ("ax", ("AE", "K", "S")),
    ("tax", ("T", "AE", "K", "S")),
    ("at", ("AE", "T")),
    ("act", ("AE", "K", "T")),
    ("kit", ("K", "IH", "T")),
    ("tick", ("T", "IH", "K")),
    ("six", ("S", "IH", "K", "S")),
    ("sit", ("S", "IH", "T")),
]


@pytest.fixture(scope="module")
def toy_model() -> NgramModel:
    return g2p.train({word: [phones] for word, phones in PAIRS}, order=3)


def alignments(word: str, phones: tuple[str, ...]) -> list[list[str]]:
    """Every way to give each letter none to two phones."""
    if not word:
        return [[]] if not phones else []
    return [
        [f"{word[0]}:{'.'.join(phones[:n])}", *rest]
        for n in range(min(g2p.MAX_PHONES, len(phones)) + 1)
        for rest in alignments(word[1:], phones[n:])
    ]


# ----------------------------------------------------------------------------------------------------- alignment


@pytest.mark.parametrize("n_iterations", [1, 2, 5])
def test_alignment_equals_expectation_maximisation_over_every_alignment(n_iterations):
    paths = {pair: alignments(*pair) for pair in PAIRS}
    units = {unit for options in paths.values() for path in options for unit in path}
    probability = dict.fromkeys(units, 1 / len(units))
    for _ in range(n_iterations):
        expected = defaultdict(float)
        for options in paths.values():
            weights = [math.prod(probability[u] for u in path) for path in options]
            for path, weight in zip(options, weights):
                for unit in path:
                    expected[unit] += weight / sum(weights)
        total = sum(expected.values())
        probability = {unit: count / total for unit, count in expected.items()}

    def likelihood(path: list[str]) -> float:
        return math.prod(probability[u] for u in path)

    found = {("".join(unit[0] for unit in path)): path for path in g2p.align(PAIRS, n_iterations)}
    for (word, _), options in paths.items():
        assert likelihood(found[word]) == pytest.approx(max(map(likelihood, options)))


def test_letters_are_aligned_with_the_sounds_they_make():
    found = g2p.align(PAIRS)
    assert ["t:T", "a:AE", "x:K.S"] in found
    assert ["k:K", "i:IH", "t:T"] in found


def test_pairs_with_too_many_phones_for_their_letters_are_left_out():
    assert len(g2p.align([*PAIRS, ("c", ("S", "EH", "N", "T"))])) == len(PAIRS)


def test_training_words_are_checked():
    with pytest.raises(LexiconError, match="have 'naïve'"):
        g2p.train({"naïve": [("N", "AY", "IY", "V")]})


# ------------------------------------------------------------------------------------------------------ decoding


def enumerate_pronunciations(model: NgramModel, word: str) -> dict[tuple[str, ...], float]:
    """Probability of each pronunciation with the word: the sum over every sequence of graphones that spells it."""
    choices = [[unit for unit in model.vocab if unit.startswith(letter + ":")] for letter in word]
    totals = defaultdict(float)
    for path in itertools.product(*choices):
        ids = [model.ids[unit] for unit in (BOS, *path, EOS)]
        log10_prob = sum(
            model.log10_prob(np.array([ids[max(0, i + 1 - model.order) : i + 1]]))[0] for i in range(1, len(ids))
        )
        phones = tuple(phone for unit in path for phone in unit.split(":")[1].split(".") if phone)
        if phones:
            totals[phones] += 10**log10_prob
    return totals


@pytest.mark.parametrize("word", ["cat", "xi", "sack", "tt", "kicks"])
def test_decoding_equals_the_sum_over_every_graphone_sequence(toy_model, word):
    expected = enumerate_pronunciations(toy_model, word)
    found = g2p.GraphemeToPhoneme(toy_model).pronounce(word, n_best=len(expected), beam=10**6)
    assert len(found) == len(expected)
    total = sum(expected.values())
    for phones, share in found:
        assert share == pytest.approx(expected[phones] / total)
    assert [share for _, share in found] == sorted((share for _, share in found), reverse=True)


def test_a_letter_never_seen_in_training_is_refused(toy_model):
    with pytest.raises(LexiconError, match="'zoo'"):
        g2p.GraphemeToPhoneme(toy_model).pronounce("zoo")


def test_a_saved_model_says_the_same(toy_model, tmp_path):
    g2p.save(toy_model, tmp_path / "model.npz")
    copy = g2p.load(tmp_path / "model.npz")
    assert copy.vocab == toy_model.vocab
    for n, (level, other) in enumerate(zip(toy_model.orders, copy.orders), 1):
        assert np.array_equal(toy_model.words(n), copy.words(n))
        listed = level.log10_prob > -255 * g2p.QUANTUM
        np.testing.assert_allclose(other.log10_prob[listed], level.log10_prob[listed], atol=g2p.QUANTUM / 2)


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(ModelDamagedError, match=r"none\.npz"):
        g2p.load(tmp_path / "none.npz")


@pytest.mark.parametrize("damage", ["empty", "rubbish", "cut short", "flipped", "other arrays", "lengths differ"])
def test_a_damaged_model_file_is_named(toy_model, damage, tmp_path):
    path = tmp_path / "model.npz"
    g2p.save(toy_model, path)
    content = bytearray(path.read_bytes())
    if damage == "other arrays":
        np.savez(path, vocab=np.zeros(3, np.uint8))
    elif damage == "lengths differ":
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"unit_2": arrays["unit_2"][:-1]})
    else:
        content[len(content) // 2] ^= 255
        path.write_bytes({"empty": b"", "rubbish": b"rubbish", "cut short": content[:-200]}.get(damage, content))
    with pytest.raises(ModelDamagedError, match=r"model\.npz"):
        g2p.load(path)


# ------------------------------------------------------------------------------------------------- shipped model


@settings(max_examples=200, deadline=None)
@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20))
def test_every_string_of_letters_has_a_pronunciation(word):
    best = g2p.pronounce(word)
    assert 1 <= len(best) <= g2p.N_ALTERNATIVES
    assert all(phones and set(phones) <= set(PHONES) for phones in best)


@settings(max_examples=100, deadline=None)
@given(st.text("'aest", min_size=1, max_size=12).filter(lambda word: word.strip("'")))
def test_apostrophes_anywhere_do_no_harm(word):
    assert all(GUESSING.pronunciations(word))


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("goldenness", "G OW L D AH N N AH S"),
        ("firelight", "F AY ER L AY T"),
        ("prowled", "P R AW L D"),
        ("vestry", "V EH S T R IY"),
        ("waistcoat", "W EY S T K OW T"),
        ("pleasanter", "P L EH Z AH N T ER"),
    ],
)
def test_known_words_outside_the_dictionary_sound_right(word, phones):
    assert " ".join(g2p.pronounce(word)[0]) == phones


def test_the_second_pronunciation_is_given_only_where_it_is_nearly_as_likely():
    decoder = g2p.GraphemeToPhoneme(g2p.load())
    for word in ("vivacity", "quilter", "azof", "campeachy"):
        (_, first), (_, second) = decoder.pronounce(word, 2)
        assert len(g2p.pronounce(word)) == (2 if second >= g2p.ALTERNATIVE_RATIO * first else 1)


def test_the_shipped_model_is_small():
    assert g2p.MODEL_PATH.stat().st_size < 2_000_000


def test_the_command_trains_a_model_from_a_lexicon_file(tmp_path, capsys):
    Lexicon({word: [phones] for word, phones in PAIRS}).save(tmp_path / "lexicon.txt")
    arguments = ["train", "--lexicon", str(tmp_path / "lexicon.txt"), "--output", str(tmp_path / "toy.npz")]
    g2p.main([*arguments, "--order", "2"])
    assert g2p.load(tmp_path / "toy.npz").order == 2
    g2p.main(["pronounce", "cat", "--n-best", "1"])
    assert capsys.readouterr().out.startswith("cat\t")
