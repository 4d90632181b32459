"""What is encoded decodes to itself, tags keep their ids, and nothing unknown slips through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, infer
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from pdref.text.document import Item, PlannedDocument, Span, Stage, parse, render
from pdref.text.layout import Grammar, encode
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer, UnknownWord

TAGGED = st.lists(st.sampled_from([tag.text for tag in Tag]) | st.text(max_size=8), max_size=6).map("".join)
KNOWN = st.lists(st.sampled_from(["the", "music", "of", "a", "b", "1", "99"]), max_size=5).map(" ".join)
PARTS = st.lists(
    st.tuples(st.builds(Item, KNOWN.filter(bool), st.just(1)), st.builds(Span, KNOWN)), min_size=1, max_size=3
)
STAGES_OF_WORDS = st.lists(PARTS.map(lambda parts: Stage(*zip(*parts, strict=True))), min_size=1, max_size=3).map(tuple)
Fit = Callable[[PlannedDocument, Tokenizer, int], PlannedDocument]


@pytest.fixture(params=["words", "byte_pairs"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@given(text=TAGGED)
def test_byte_pairs_take_any_text_back(byte_pairs: Tokenizer, text: str) -> None:
    assert byte_pairs.decode(byte_pairs.encode(text)) == text


@given(pieces=st.lists(st.sampled_from([tag.text for tag in Tag]) | KNOWN, max_size=6))
def test_words_take_text_back_up_to_the_width_of_white_space(words: Tokenizer, pieces: list[str]) -> None:
    def spaced(text: str) -> list[str]:
        return text.replace("<", " <").replace(">", "> ").split()

    text = " ".join(pieces)
    assert spaced(words.decode(words.encode(text))) == spaced(text)
    assert words.decode(words.encode("  the \n music ")) == "the music"


@given(document=infer, echo=infer, grid=st.integers(1, 4))
def test_a_document_comes_back_from_its_byte_pairs(
    byte_pairs: Tokenizer, fitted: Fit, document: PlannedDocument, echo: bool, grid: int
) -> None:
    document = fitted(document, byte_pairs, grid)
    ids = encode(document, byte_pairs, Grammar(grid, echo)).token[0].tolist()
    assert ids[0] == Tag.BOS
    assert byte_pairs.decode(ids[1:]) == render(document, echo)
    assert parse(byte_pairs.decode(ids[1:]), echo) == document


@given(stages=STAGES_OF_WORDS, prompt=KNOWN, echo=infer, grid=st.integers(1, 4))
def test_a_document_comes_back_from_its_words(
    words: Tokenizer, fitted: Fit, stages: tuple[Stage, ...], prompt: str, echo: bool, grid: int
) -> None:
    document = fitted(PlannedDocument(prompt, stages), words, grid)
    ids = encode(document, words, Grammar(grid, echo)).token[0].tolist()
    assert parse(words.decode(ids[1:]), echo) == document


def test_tags_keep_their_ids_and_words_and_tags_need_no_space_between_them(tokenizer: Tokenizer) -> None:
    assert [tokenizer.encode(tag.text) for tag in Tag] == [[tag] for tag in Tag]
    assert tokenizer.encode("<topic>a</topic>")[::2] == [Tag.TOPIC, Tag.END_TOPIC]
    assert min(tokenizer.encode("the music of a 1")) >= len(Tag)


def test_many_texts_are_encoded_as_one_by_one(tokenizer: Tokenizer) -> None:
    texts = ["the music", "", "<eos>a b", "1 2"]
    assert tokenizer.encode_all(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_all([]) == []


def test_a_saved_tokenizer_is_read_back_as_it_was(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    text = "<topic>the music of 1 9</topic>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text)) == text
    assert len(again) == len(tokenizer)


def test_the_vocabulary_is_the_tags_and_each_word_once() -> None:
    tokenizer = Tokenizer.words(["b", "a", "b"])
    assert len(tokenizer) == len(Tag) + 2
    assert tokenizer.encode("a b") == [len(Tag), len(Tag) + 1], "words are in order, whatever order they came in"


def test_byte_pairs_have_the_size_asked_for_and_shorten_what_they_know(byte_pairs: Tokenizer) -> None:
    repeated = "the cat sat on the mat and the dog did too, as cats and dogs do at times. " * 4
    assert len(Tokenizer.byte_pairs([repeated], size=290)) == 290
    assert len(byte_pairs.encode("the cat sat")) < len("the cat sat")


def test_digits_stay_single_so_that_a_length_is_spelled_alike_everywhere(byte_pairs: Tokenizer) -> None:
    one, nine, two, zero = (byte_pairs.encode(digit) for digit in "1920")
    assert byte_pairs.encode("1920") == one + nine + two + zero
    assert byte_pairs.encode("cat 1920")[-4:] == one + nine + two + zero


def test_an_unknown_word_is_named(words: Tokenizer) -> None:
    with pytest.raises(UnknownWord, match=f"'violin' is not in the vocabulary of {len(words)} words"):
        words.encode("the music<pad>of violin")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*nowhere\.json"):
        Tokenizer.load(tmp_path / "nowhere.json")


def test_a_backend_with_other_ids_for_the_tags_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer gives <pad> the id None, not 0"):
        Tokenizer(Backend(WordLevel({"the": 0})))
