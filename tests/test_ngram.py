"""N-gram models against definitions spelled out with dictionaries."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.arpa import read_arpa, read_text, write_arpa
from edge_asr.errors import LanguageModelError
from edge_asr.ngram import BOS, EOS, NgramModel, estimate, interpolate, perplexity, prune, restrict

texts = st.lists(st.lists(st.sampled_from("abcd"), max_size=6), min_size=1, max_size=12)
orders = st.integers(1, 4)
smoothings = st.sampled_from(["kneser-ney", "witten-bell"])

TEXT = ["a b", "a b", "a c"]
LONGER_TEXT = ["the cat sat", "the cat ran", "a cat sat", "the dog sat down", "a dog ran", "the cat", "sat down"]


def prob(model: NgramModel, *words: str) -> float:
    ids = np.array([[model.ids.get(word, -1) for word in words]])
    return float(10 ** model.log10_prob(ids)[0])


def histories(model: NgramModel) -> list[tuple[str, ...]]:
    """Every history of order − 1 words, seen or not; `<s>` only at the start."""
    words = [w for w in model.vocab if w not in (BOS, EOS)]
    full = itertools.product([*words, BOS], *[words] * (model.order - 2)) if model.order > 1 else [()]
    return list(full)


def all_sum_to_one(model: NgramModel, tolerance: float = 1e-6) -> bool:
    sums = [sum(prob(model, *h, w) for w in model.vocab if w != BOS) for h in histories(model)]
    return all(math.isclose(s, 1, abs_tol=tolerance) for s in sums)


# ---------------------------------------------------------------------------------------------------- estimation


@settings(max_examples=25, deadline=None)
@given(texts, st.integers(1, 3), smoothings, st.sampled_from([(), (1, 1, 2), (1, 2)]))
def test_probabilities_sum_to_one_for_every_history(text, order, smoothing, cutoffs):
    assert all_sum_to_one(estimate(text, order, smoothing, cutoffs))


def test_kneser_ney_gives_the_values_worked_out_by_hand():
    """Bigrams <s>a 3, ab 2, b</s> 2, ac 1, c</s> 1: n1 = n2 = 2, n3 = 1, so y = 1/3 and D = 1/3, 3/2, 3.

    Words before a, b, c, </s>: 1, 1, 1, 2; n3 = 0, so D = 0.5, 1; the rest of 0.5 is uniform over five words.
    """
    model = estimate(TEXT, 2)
    unigrams = {"a": 0.2, "b": 0.2, "c": 0.2, EOS: 0.3, "<unk>": 0.1}
    for word, expected in unigrams.items():
        assert prob(model, word) == pytest.approx(expected)
    backoff_of_a = 1 - (2 - 3 / 2 + 1 - 1 / 3) / 3
    assert prob(model, "a", "b") == pytest.approx((2 - 3 / 2) / 3 + backoff_of_a * 0.2)
    assert prob(model, "a", "c") == pytest.approx((1 - 1 / 3) / 3 + backoff_of_a * 0.2)
    assert prob(model, "a", EOS) == pytest.approx(backoff_of_a * 0.3)


def test_witten_bell_gives_the_values_worked_out_by_hand():
    model = estimate(TEXT, 2, "witten-bell")
    unigram_b = (2 + 4 / 5) / (9 + 4)  # nine tokens of four kinds, five words in the uniform floor
    assert prob(model, "b") == pytest.approx(unigram_b)
    assert prob(model, "a", "b") == pytest.approx((2 + 2 * unigram_b) / (3 + 2))


def reference_kneser_ney(text: list[list[str]], order: int):
    """p(word | history) by the recursion of Chen and Goodman, with plain dictionaries."""
    counts = [Counter() for _ in range(order + 1)]
    for sentence in text:
        words = [BOS, *sentence, EOS]
        for n in range(1, order + 1):
            counts[n].update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    n_words = len({w for (w,) in counts[1]} | {EOS, "<unk>"} - {BOS})
    n_words -= (BOS,) in counts[1]
    used = [Counter() for _ in range(order + 1)]
    for n in range(1, order + 1):
        before = Counter(longer[1:] for longer in counts[n + 1]) if n < order else counts[n]
        used[n] = Counter({g: c if g[0] == BOS else before[g] for g, c in counts[n].items() if g != (BOS,)})
    followers = [defaultdict(dict) for _ in range(order + 1)]
    for n in range(1, order + 1):
        for gram, c in used[n].items():
            followers[n][gram[:-1]][gram[-1]] = c

    def discounts(n: int) -> tuple[float, ...]:
        of = Counter(used[n].values())
        if of[1] and of[2] and of[3]:
            y = of[1] / (of[1] + 2 * of[2])
            d = [k - (k + 1) * y * of[k + 1] / of[k] for k in (1, 2, 3)]
            if all(0 <= x <= k for k, x in enumerate(d, 1)):
                return tuple(d)
        return 0.5, 1.0, 1.5

    def p(word: str, history: tuple[str, ...]) -> float:
        n = len(history) + 1
        lower = p(word, history[1:]) if history else 1 / n_words
        after = followers[n][history]
        if not after:
            return lower
        d, total = discounts(n), sum(after.values())
        freed = sum(d[min(c, 3) - 1] for c in after.values()) / total
        count = after.get(word, 0)
        return (count - d[min(count, 3) - 1] if count else 0) / total + freed * lower

    return p


@settings(max_examples=25, deadline=None)
@given(texts, orders)
def test_kneser_ney_equals_the_recursion_with_dictionaries(text, order):
    model, reference = estimate(text, order), reference_kneser_ney(text, order)
    words = [w for w in model.vocab if w != BOS]
    for history in {tuple(([BOS, *s])[-(order - 1) :]) if order > 1 else () for s in text}:
        for word in words:
            assert prob(model, *history, word) == pytest.approx(reference(word, history))


def test_cutoffs_list_only_what_was_seen_often_enough():
    model = estimate(TEXT, 2, cutoffs=(1, 2))
    listed = {tuple(model.vocab[i] for i in row) for row in model.words(2)}
    assert listed == {(BOS, "a"), ("a", "b"), ("b", EOS)}


def test_a_given_vocabulary_turns_other_words_into_the_unknown_word():
    model = estimate(TEXT, 2, vocab=["a", "b", "z"])
    assert set(model.vocab) == {"<unk>", BOS, EOS, "a", "b", "z"}
    assert prob(model, "a", "<unk>") > prob(model, "a", "z") > 0


@pytest.mark.parametrize(
    "arguments", [{"order": 0}, {"smoothing": "good-turing"}, {"cutoffs": (1, 3, 2)}, {"sentences": []}]
)
def test_impossible_requests_are_refused(arguments):
    with pytest.raises(LanguageModelError, match="need"):
        estimate(**{"sentences": TEXT, **arguments})


def test_sentence_marks_inside_a_sentence_are_refused():
    with pytest.raises(LanguageModelError, match="remove the marks"):
        estimate(["a </s> b"])


def test_rows_are_sorted_under_their_context():
    model = estimate(LONGER_TEXT, 3)
    for n in (2, 3):
        level = model.orders[n - 1]
        assert np.all(np.diff(level.context.astype(np.int64) * len(model.vocab) + level.word) > 0)
        assert np.array_equal(model.rows(model.words(n)), np.arange(len(level)))


# ------------------------------------------------------------------------------------------------------- pruning


def relative_entropy(model: NgramModel, other: NgramModel, judge: NgramModel) -> float:
    """Of bigram models: Σ p(h) p(w|h) log(p(w|h) / p'(w|h)), nats; p(h) by the judge, `<s>` is met as `</s>` is."""
    total = 0.0
    for h, w in itertools.product(model.vocab, model.vocab):
        if h != EOS and w != BOS:
            p = prob(model, h, w)
            total += prob(judge, EOS if h == BOS else h) * p * math.log(p / prob(other, h, w))
    return total


def without(model: NgramModel, row: int) -> NgramModel:
    """The bigram model with one bigram taken out and its history's weight worked out again."""
    level = model.orders[1]
    keep = np.arange(len(level)) != row
    history = level.context[row]
    same = keep & (level.context == history)
    left = 1 - np.sum(10 ** level.log10_prob[same])
    left_below = 1 - np.sum(10 ** model.orders[0].log10_prob[level.word[same]])
    unigrams = model.orders[0]
    backoff = unigrams.log10_backoff.copy()
    backoff[history] = math.log10(left / left_below)
    changed = type(level)(*(getattr(level, f)[keep] for f in ("context", "word", "log10_prob", "log10_backoff")))
    first = type(level)(unigrams.context, unigrams.word, unigrams.log10_prob, backoff)
    return NgramModel(model.vocab, [first, changed])


@pytest.mark.parametrize("threshold", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("history", [None, estimate([*LONGER_TEXT, "cat dog ran the"], 1, "witten-bell")])
def test_pruning_drops_exactly_the_bigrams_that_cost_less_than_the_threshold(threshold, history):
    model = estimate(LONGER_TEXT, 2)
    rises = [relative_entropy(model, without(model, row), history or model) for row in range(len(model.orders[1]))]
    kept = {tuple(row) for row in prune(model, threshold, history).words(2)}
    assert kept == {tuple(row) for row, rise in zip(model.words(2), rises) if math.expm1(rise) >= threshold}


def test_estimation_prunes_with_a_witten_bell_model_of_the_histories():
    pruned = prune(estimate(LONGER_TEXT, 3), 0.004, estimate(LONGER_TEXT, 2, "witten-bell"))
    same = estimate(LONGER_TEXT, 3, prune_threshold=0.004)
    for n in (2, 3):
        assert np.array_equal(pruned.words(n), same.words(n))
        np.testing.assert_allclose(pruned.orders[n - 1].log10_prob, same.orders[n - 1].log10_prob)


@settings(max_examples=20, deadline=None)
@given(texts, st.integers(2, 3), smoothings, st.sampled_from([1e-4, 1e-2, 1.0]))
def test_pruned_models_stay_normalised(text, order, smoothing, threshold):
    assert all_sum_to_one(prune(estimate(text, order, smoothing), threshold))


def test_pruning_keeps_the_prefixes_of_what_it_keeps():
    whole = estimate(LONGER_TEXT, 3)
    model = prune(whole, 0.004)
    assert 0 < len(model.orders[2]) < len(whole.orders[2])
    assert np.all(model.rows(model.words(3)[:, :2]) >= 0)


def test_pruning_with_threshold_zero_changes_no_probability():
    model = estimate(LONGER_TEXT, 3)
    same = prune(model, 0.0)
    for n in (1, 2, 3):
        np.testing.assert_allclose(same.log10_prob(model.words(n)), model.log10_prob(model.words(n)), atol=1e-9)


# -------------------------------------------------------------------------------------- mixing and restricting


def test_a_mixture_weighs_the_probabilities_of_its_parts():
    one, two = estimate(LONGER_TEXT[:4], 3), estimate(LONGER_TEXT[3:], 2)
    mixed = interpolate([one, two], [0.3, 0.7])
    assert mixed.order == 3
    for words in (("the", "cat", "sat"), ("dog", "ran"), ("down",)):
        expected = 0.3 * prob(one, *words) + 0.7 * prob(two, *words[-2:])
        assert prob(mixed, *words) == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(texts, texts, st.integers(1, 3), st.integers(1, 3), st.floats(0.05, 0.95))
def test_mixtures_are_normalised(text, other_text, order, other_order, weight):
    models = [estimate(text, order), estimate(other_text, other_order, "witten-bell")]
    assert all_sum_to_one(interpolate(models, [weight, 1 - weight]))


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [1.5, -0.5]])
def test_mixture_weights_must_be_a_distribution(weights):
    with pytest.raises(LanguageModelError, match="adding up to 1"):
        interpolate([estimate(TEXT), estimate(TEXT)], weights)


@settings(max_examples=15, deadline=None)
@given(texts, st.integers(1, 3), st.sets(st.sampled_from("abcdz")))
def test_restricted_models_are_normalised_over_what_is_left(text, order, words):
    model = restrict(estimate(text, order), words)
    assert set(model.vocab) <= words | {"<unk>", BOS, EOS}
    assert all_sum_to_one(model)


def test_restricting_keeps_the_listed_probabilities_of_the_words_left():
    model = estimate(LONGER_TEXT, 3)
    small = restrict(model, ["the", "cat", "sat"])
    assert prob(small, "the", "cat", "sat") == pytest.approx(prob(model, "the", "cat", "sat"))


# ---------------------------------------------------------------------------------------------------- perplexity


@settings(max_examples=20, deadline=None)
@given(texts, texts, orders)
def test_perplexity_equals_a_direct_computation(text, test_text, order):
    model = estimate(text, order)
    log10_prob, n_tokens, n_unknown = 0.0, 0, 0
    for sentence in test_text:
        words = [BOS, *sentence, EOS]
        for i in range(1, len(words)):
            if words[i] not in model.ids:
                n_unknown += 1
                continue
            history = [w if w in model.ids else "<unk>" for w in words[max(0, i - order + 1) : i]]
            log10_prob += math.log10(prob(model, *history, words[i]))
            n_tokens += 1
    result = perplexity(model, test_text)
    assert result.log10_prob == pytest.approx(log10_prob)
    assert result.n_unknown == n_unknown
    assert result.perplexity == pytest.approx(10 ** (-log10_prob / n_tokens))


def test_a_model_foretells_its_own_text_better_with_longer_histories():
    values = [perplexity(estimate(LONGER_TEXT, order), LONGER_TEXT).perplexity for order in (1, 2, 3)]
    assert values == sorted(values, reverse=True)


# ---------------------------------------------------------------------------------------------------------- ARPA


@pytest.mark.parametrize("suffix", ["arpa", "arpa.gz", "arpa.xz"])
def test_arpa_files_give_the_model_back(suffix, tmp_path):
    model = estimate(LONGER_TEXT, 3)
    write_arpa(model, tmp_path / f"lm.{suffix}")
    copy = read_arpa(tmp_path / f"lm.{suffix}")
    assert copy.vocab == model.vocab
    for n, (level, other) in enumerate(zip(model.orders, copy.orders), 1):
        assert np.array_equal(model.words(n), copy.words(n))
        np.testing.assert_allclose(level.log10_prob, other.log10_prob, atol=1e-6)
        np.testing.assert_allclose(level.log10_backoff, other.log10_backoff, atol=1e-6)


ARPA = r"""
\data\
ngram 1=4
ngram 2=2
ngram 3=1

\1-grams:
-99 <s> -0.3
-0.5 </s>
-0.6 a -0.2
-0.7	b

\2-grams:
-0.25 b a -0.1
-0.125 <s> a

\3-grams:
-0.0625 a b a

\end\
"""


def read(text: str, tmp_path) -> NgramModel:
    path = tmp_path / "lm.arpa"
    path.write_text(text)
    return read_arpa(path)


def test_back_offs_may_be_left_out_and_order_is_free(tmp_path):
    model = read(ARPA, tmp_path)
    assert prob(model, BOS, "a") == pytest.approx(10**-0.125)
    assert prob(model, "b", "b") == pytest.approx(10**-0.7)
    assert prob(model, BOS, "b") == pytest.approx(10 ** (-0.3 - 0.7))


def test_a_prefix_that_the_file_lacks_is_filled_in_as_it_would_back_off(tmp_path):
    model = read(ARPA, tmp_path)
    assert len(model.orders[1]) == 3  # "a b" joined for "a b a"
    assert prob(model, "a", "b") == pytest.approx(10 ** (-0.2 - 0.7))
    assert prob(model, "a", "b", "a") == pytest.approx(10**-0.0625)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\\nngram 1=4\nngram 2=2\nngram 3=1\n", "", "check that it is an ARPA file"),
        ("ngram 2=2", "ngram 2=3", "need 3 2-grams"),
        ("\\3-grams:", "", "need 2 2-grams"),
        ("\\end\\", "", "cut short"),
        (ARPA[ARPA.index("\\2-grams") :], "", "need the section of 1-grams"),
        ("-0.0625 a b a", "-0.0625 a b z", "'z' in a 3-gram"),
        ("-0.125 <s> a", "-0.125 b a", "have one twice"),
        ("-0.5 </s>", "-0.5 a", "need distinct 1-grams"),
        ("-0.0625", "nought", "need log10 numbers"),
        ("-0.0625", "0.5", "at most 0"),
        ("-0.0625", "nan", "at most 0"),
    ],
)
def test_a_damaged_arpa_file_says_what_is_wrong(old, new, message, tmp_path):
    with pytest.raises(LanguageModelError, match=message):
        read(ARPA.replace(old, new), tmp_path)


def test_a_missing_or_garbled_file_is_named(tmp_path):
    garbled = tmp_path / "lm.arpa.xz"
    garbled.write_bytes(b"not xz at all")
    for path in (garbled, tmp_path / "none.arpa", tmp_path):
        with pytest.raises(LanguageModelError, match=path.name):
            read_arpa(path)


def test_compressed_text_reads_as_plain_text(tmp_path):
    import gzip
    import lzma

    for opener, name in ((open, "t.txt"), (gzip.open, "t.txt.gz"), (lzma.open, "t.txt.xz")):
        with opener(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write("naïve words\n")
        assert read_text(tmp_path / name) == "naïve words\n"
