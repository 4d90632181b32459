"""What several test files share (they cannot import each other).

Fixtures, all of the session:

    words       a word-level tokenizer over the letters a to z, "of", "music", "the" and the numbers 0 to 99
    byte_pairs  a byte-level tokenizer, which takes any text
    fitted      a function (document, tokenizer, grid) -> document whose lengths and fillers fit its texts
    drawn       a function from a drawing such as "czz<x><y>$" to a `Layout`; its docstring says how

`Item`, `Span`, `Stage` and `PlannedDocument` know how hypothesis draws them: any text that is no control tag,
several stages, fillers, empty spans. Write `@given(document=infer)` or `st.from_type(PlannedDocument)`.

PyTorch runs on one thread, and hypothesis draws the same examples in every run and sets no deadlines.
"""

from __future__ import annotations

import os
import string
from collections.abc import Callable

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton reads this when it is first imported

from hypothesis import settings
from hypothesis import strategies as st

from pdref.text.document import LONGEST, Item, PlannedDocument, Span, Stage
from pdref.text.layout import NO_SPAN, Layout, Role
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

torch.set_num_threads(1)
settings.register_profile("pdref", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("pdref")


def _plain(text: str) -> bool:
    return not any(tag.text in text for tag in Tag)


# Text that looks like structure and is none, beside text at random.
TRICKY = [
    "<",
    ">",
    "</",
    "<b>",
    "</b>",
    "<topic",
    "topic>",
    "< async >",
    "<ASYNC>",
    "<sync>",
    "<eos/>",
    "\n",
    " ",
    "1920s",
]
TRICKY += ["4", "-4", "07", "music 4", "٤", "½", "naïve", "日本語", "🎻", "e\u0301", "\x00", "\u2028", "\t"]
TEXT = st.lists(st.sampled_from(TRICKY) | st.text(max_size=6), max_size=5).map("".join).filter(_plain)
TOPIC = TEXT.map(str.strip).filter(bool)

st.register_type_strategy(Item, st.builds(Item, TOPIC, st.integers(1, 30) | st.integers(1, LONGEST)))
st.register_type_strategy(Span, st.builds(Span, TEXT, st.integers(0, 3)))
_PAIRS = st.lists(st.tuples(st.from_type(Item), st.from_type(Span)), min_size=1, max_size=3)
st.register_type_strategy(Stage, _PAIRS.map(lambda pairs: Stage(*map(tuple, zip(*pairs, strict=True)))))
_STAGES = st.lists(st.from_type(Stage), min_size=1, max_size=3).map(tuple)
st.register_type_strategy(PlannedDocument, st.builds(PlannedDocument, TEXT, _STAGES))


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    return Tokenizer.words([*string.ascii_lowercase, "of", "music", "the", *map(str, range(100))])


@pytest.fixture(scope="session")
def byte_pairs() -> Tokenizer:
    return Tokenizer.byte_pairs(["the cat sat on the mat in 1920 , and the music of the cat was old"] * 4, size=300)


@pytest.fixture(scope="session")
def fitted() -> Callable[[PlannedDocument, Tokenizer, int], PlannedDocument]:
    """Give every item the length that its span needs, and the span the fillers that it then lacks."""

    def fit(document: PlannedDocument, tokenizer: Tokenizer, grid: int) -> PlannedDocument:
        return PlannedDocument(document.prompt, tuple(fit_stage(s, tokenizer, grid) for s in document.stages))

    def fit_stage(stage: Stage, tokenizer: Tokenizer, grid: int) -> Stage:
        sizes = [len(tokenizer.encode(span.text)) for span in stage.spans]
        cells = [max(1, -(-size // grid)) for size in sizes]
        return Stage(
            tuple(Item(item.topic, n) for item, n in zip(stage.plan, cells, strict=True)),
            tuple(Span(s.text, n * grid - m) for s, n, m in zip(stage.spans, cells, sizes, strict=True)),
        )

    return fit


@pytest.fixture(scope="session")
def drawn() -> Callable[[str], Layout]:
    """A one-row layout, a character a token: c prompt, z plan, <xx> a span, | <sync/>, $ <eos>, _ pad."""

    def draw(drawing: str) -> Layout:
        rows: list[tuple[int, Role, int, int]] = []
        stage = spans = 0
        inside = False
        for mark in drawing:
            if mark == "|":
                stage, spans = stage + 1, 0
            token, role = MARKS.get(mark, (len(Tag), Role.CONTENT))
            inside = inside or mark == "<"
            rows.append((int(token), role, stage, spans if inside else NO_SPAN))
            if mark == ">":
                spans, inside = spans + 1, False
        token, role, stage_, span = torch.tensor(rows).T[:, None]
        return Layout(token, role, stage_, span, torch.arange(len(rows))[None], torch.zeros_like(token))

    return draw


MARKS = {
    "c": (len(Tag), Role.PROMPT),
    "z": (len(Tag), Role.PLAN),
    "<": (Tag.ASYNC, Role.TAG),
    ">": (Tag.END_ASYNC, Role.TAG),
    "|": (Tag.SYNC, Role.TAG),
    "$": (Tag.EOS, Role.TAG),
    "_": (Tag.PAD, Role.PAD),
}
