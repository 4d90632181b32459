"""Malformed input gets the error of the rule that it breaks, and the message names the offending thing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from pdref.data.profiles import Profiles
from pdref.model.cache import Cache
from pdref.model.transformer import Config, Transformer
from pdref.ops.multi_token_nll import multi_token_nll
from pdref.ops.plan_marginal import plan_marginal
from pdref.ops.planned_attention import planned_attention
from pdref.ops.planned_nll import planned_nll
from pdref.ops.token_nll import token_nll
from pdref.ops.unmask import unmask
from pdref.text.document import (
    EchoMismatch,
    EmptyPlan,
    EmptyTopic,
    Item,
    LengthOutOfRange,
    MisplacedTag,
    MissingEnd,
    MissingLength,
    PlannedDocument,
    Span,
    SpanCountMismatch,
    Stage,
    TextOutsideSpan,
    TrailingText,
    UnbalancedTag,
    parse,
    parse_plan,
)
from pdref.text.layout import (
    NO_SPAN,
    Grammar,
    Layout,
    LayoutError,
    LengthMismatch,
    TooLong,
    encode,
    prompt_layout,
)
from pdref.text.listing import BadListing, read_items
from pdref.text.mask import dense_mask, may_attend
from pdref.text.tags import DocumentError, TagInText, UnknownTag
from pdref.text.tokenizer import Tokenizer, UnknownWord


@dataclass(frozen=True)
class Malformed:
    """What was done wrong, the error that it must raise, and what the message must say."""

    what: str
    error: type[Exception]
    message: str
    do: Callable[[], object]


def text(what: str, malformed: str, error: type[DocumentError], message: str, echo: bool = False) -> Malformed:
    """A document as text that breaks a rule of the grammar."""
    return Malformed(what, error, message, lambda: parse(malformed, echo))


A, X = "<topic>a 1</topic>", "<async>x</async>"  # a plan of one item, and its span

DOCUMENTS = [
    # Tags that do not balance.
    text(
        "a topic that never closes",
        "p<topic>a 1",
        UnbalancedTag,
        "<topic> is followed by the end of the text",
    ),
    text("a topic closed by its span", f"p<topic>a 1{X}", UnbalancedTag, "<topic> is followed by <async>"),
    text(
        "a topic in a topic",
        f"p<topic>a <topic>b 1</topic>{X}",
        UnbalancedTag,
        "<topic> is followed by <topic>",
    ),
    text(
        "a span that never closes",
        f"p{A}<async>x",
        UnbalancedTag,
        "<async> is followed by the end of the text",
    ),
    text("a span cut by the end", f"p{A}<async>x<eos>", UnbalancedTag, "<async> is followed by <eos>"),
    text(
        "a span closed by a topic",
        f"p{A}<async>x</topic>",
        UnbalancedTag,
        "followed by </topic> before its </async>",
    ),
    text("a span in a span", f"p{A}<async>x{X}</async><eos>", UnbalancedTag, "<async> is followed by <async>"),
    text("a span closed twice", f"p{A}{X}</async><eos>", UnbalancedTag, "</async> closes nothing that is open"),
    text(
        "a topic closed and not opened",
        f"p a 1</topic>{X}",
        UnbalancedTag,
        "</topic> closes nothing that is open",
    ),
    # Tags out of place.
    text(
        "a plan after the spans",
        f"p{A}{X}{A}<eos>",
        MisplacedTag,
        "<topic> stands where <sync/> or <eos> should",
    ),
    text("a second beginning", f"<bos>p{A}{X}<eos>", MisplacedTag, "<bos> stands where <topic> should"),
    text(
        "a mask left in a span",
        f"p{A}<async>x<mask></async><eos>",
        MisplacedTag,
        "<mask> stands where </async>",
    ),
    text(
        "fillers before text",
        f"p{A}<async><pad>x</async><eos>",
        MisplacedTag,
        "stands before the text 'x'",
    ),
    text(
        "a filler in a topic",
        f"p<topic>a 1<pad></topic>{X}",
        MisplacedTag,
        "<pad> stands where </topic> should",
    ),
    text(
        "fillers between spans",
        f"p{A}{X}<pad><eos>",
        MisplacedTag,
        "<pad> stands where <sync/> or <eos> should",
    ),
    # Tags and text where neither belongs.
    text(
        "an unknown tag between spans",
        f"p{A}<plan>{X}<eos>",
        UnknownTag,
        "<plan> is no control tag; known are",
    ),
    text("an unknown closing tag", f"p{A}{X}</spans><eos>", UnknownTag, "</spans> is no control tag; known are"),
    text("a tag half right", f"p{A}{X}<sync>{A}{X}<eos>", UnknownTag, "<sync> is no control tag; known are"),
    text(
        "text between plan and spans",
        f"p{A} so {X}<eos>",
        TextOutsideSpan,
        "' so ' lies in no topic and no span",
    ),
    text("text after a span", f"p{A}{X}\n<eos>", TextOutsideSpan, r"'\n' lies in no topic and no span"),
    text(
        "text after <sync/>",
        f"p{A}{X}<sync/>so{A}{X}<eos>",
        TextOutsideSpan,
        "'so' lies in no topic and no span",
    ),
    # Plans.
    text("nothing at all", "", EmptyPlan, "a stage begins with a plan, not with the end of the text"),
    text("a prompt alone", "p<eos>", EmptyPlan, "a stage begins with a plan, not with <eos>"),
    text("spans without a plan", f"p{X}<eos>", EmptyPlan, "a stage begins with a plan, not with <async>"),
    text(
        "a second stage without a plan",
        f"p{A}{X}<sync/><eos>",
        EmptyPlan,
        "begins with a plan, not with <eos>",
    ),
    text(
        "a topic without words",
        f"p<topic>4</topic>{X}",
        EmptyTopic,
        "words without white space around them, not ''",
    ),
    text("a topic of white space", f"p<topic>  4</topic>{X}", EmptyTopic, "white space around them, not ' '"),
    text("a topic in white space", f"p<topic> a 4</topic>{X}", EmptyTopic, "white space around them, not ' a'"),
    text(
        "a topic without a length",
        f"p<topic>a</topic>{X}",
        MissingLength,
        "topic 'a' does not end in a length",
    ),
    text("an empty topic", f"p<topic></topic>{X}", MissingLength, "topic '' does not end in a length"),
    text(
        "a length in words",
        f"p<topic>a four</topic>{X}",
        MissingLength,
        "topic 'a four' does not end in a length",
    ),
    text(
        "a length glued to a word",
        f"p<topic>a4</topic>{X}",
        MissingLength,
        "topic 'a4' does not end in a length",
    ),
    text(
        "a fractional length",
        f"p<topic>a 1.5</topic>{X}",
        MissingLength,
        "topic 'a 1.5' does not end in a length",
    ),
    text("a length of 0", f"p<topic>a 0</topic>{X}", LengthOutOfRange, "topic 'a' plans 0 cells; 1 to"),
    text("a length below 0", f"p<topic>a -3</topic>{X}", LengthOutOfRange, "topic 'a' plans -3 cells; 1 to"),
    text("a runaway length", f"p<topic>a {'9' * 50}</topic>{X}", LengthOutOfRange, "999 cells; 1 to"),
    # Spans.
    text("a plan without spans", f"p{A}<eos>", SpanCountMismatch, "1 plan items but 0 spans"),
    text("a span too few", f"p{A}{A}{X}<eos>", SpanCountMismatch, "2 plan items but 1 spans"),
    text("a span too many", f"p{A}{X}{X}<eos>", SpanCountMismatch, "1 plan items but 2 spans"),
    text(
        "a span too many, echoed",
        f"p{A}<async>a x</async>{X}<eos>",
        SpanCountMismatch,
        "but 2 spans",
        echo=True,
    ),
    text(
        "a span without its echo",
        f"p{A}{X}<eos>",
        EchoMismatch,
        "'x' does not begin with its topic 'a'",
        echo=True,
    ),
    text(
        "an echo glued on",
        f"p{A}<async>ax</async><eos>",
        EchoMismatch,
        "'ax' does not begin with its topic",
        echo=True,
    ),
    # The end.
    text("no end", f"p{A}{X}", MissingEnd, "the document stops without <eos>"),
    text("text after the end", f"p{A}{X}<eos>more", TrailingText, "'more' follows <eos>"),
    text("two ends", f"p{A}{X}<eos><eos>", TrailingText, "<eos> follows <eos>"),
]

PLANS = [
    Malformed("an empty plan by hand", EmptyPlan, "not with the end of the text", lambda: parse_plan("")),
    Malformed("a plan in no tags", TextOutsideSpan, "'a 1' lies in no", lambda: parse_plan("a 1")),
    Malformed("a plan with a span", MisplacedTag, "<async> stands where the end", lambda: parse_plan(A + X)),
    Malformed("a plan with text behind it", TextOutsideSpan, "'so' lies in no", lambda: parse_plan(A + "so")),
]

ITEM, SPAN = Item("a", 1), Span("x")
STAGE = Stage((ITEM,), (SPAN,))
OBJECTS = [
    Malformed("a tag in a topic", TagInText, "topic holds the control tag <eos>", lambda: Item("a<eos>", 1)),
    Malformed("a tag in a span", TagInText, "span holds the control tag <pad>", lambda: Span("x<pad>")),
    Malformed(
        "a tag in a prompt",
        TagInText,
        "prompt holds the control tag <topic>",
        lambda: PlannedDocument(A, (STAGE,)),
    ),
    Malformed("an item of no cells", LengthOutOfRange, "topic 'a' plans 0 cells", lambda: Item("a", 0)),
    Malformed("an item of 2.5 cells", LengthOutOfRange, "topic 'a' plans 2.5 cells", lambda: Item("a", 2.5)),
    Malformed("an item of True cells", LengthOutOfRange, "topic 'a' plans True cells", lambda: Item("a", True)),
    Malformed("an item without a topic", EmptyTopic, "not ''", lambda: Item("", 1)),
    Malformed("fewer than no fillers", LengthOutOfRange, "cannot hold -1 fillers", lambda: Span("x", -1)),
    Malformed("a stage without items", EmptyPlan, "a stage needs", lambda: Stage((), ())),
    Malformed("a stage of two minds", SpanCountMismatch, "1 plan items but 2", lambda: Stage((ITEM,), (SPAN, SPAN))),
    Malformed("a document without stages", EmptyPlan, "a document needs", lambda: PlannedDocument("p", ())),
]

WORDS = Tokenizer.words(["a", "p", "x", "1", "2", "100"])


def encoded(document: str, grid: int = 1, context: int | None = None) -> Layout:
    return encode(parse(document), WORDS, Grammar(grid, echo=False), context)


def layout() -> Layout:
    return prompt_layout("p", WORDS, Grammar())


LAYOUTS = [
    Malformed(
        "a span that does not fill its cells",
        LengthMismatch,
        "span 'a' has 1 tokens; its plan says 2",
        lambda: encoded(f"p{A}{X}<eos>", grid=2),
    ),
    Malformed(
        "a span that overflows its cells",
        LengthMismatch,
        "span 'a' has 2 tokens; its plan says 1",
        lambda: encoded(f"p{A}<async>x<pad></async><eos>"),
    ),
    Malformed(
        "a span longer than the context",
        LengthOutOfRange,
        "topic 'a' plans 100 tokens; the context has 50",
        lambda: encoded(f"p<topic>a 100</topic>{X}<eos>", context=50),
    ),
    Malformed(
        "a document longer than the context",
        TooLong,
        "the document has 10 tokens; the context has 9",
        lambda: encoded(f"p{A}{X}<eos>", context=9),
    ),
    Malformed("an unknown word", UnknownWord, "'y' is not in the vocabulary", lambda: encoded(f"y{A}{X}<eos>")),
    Malformed("a missing tokenizer", FileNotFoundError, "no tokenizer at", lambda: Tokenizer.load(Path("gone.json"))),
    Malformed(
        "a field of another dtype",
        LayoutError,
        "layout field span has dtype torch.int32, int64 is needed",
        lambda: replace(layout(), span=layout().span.int()),
    ),
    Malformed(
        "a field of another shape",
        LayoutError,
        "layout field role has shape [1, 1], token [1, 2]",
        lambda: replace(layout(), role=layout().role[:, :1]),
    ),
    Malformed(
        "a field on another device",
        LayoutError,
        "layout field position is on meta, token on cpu",
        lambda: replace(layout(), position=layout().position.to("meta")),
    ),
    Malformed("a batch of nothing", LayoutError, "an empty batch has no layout", lambda: Layout.collate([])),
    Malformed(
        "queries and keys on two devices",
        LayoutError,
        "queries are on meta, keys on cpu",
        lambda: dense_mask(layout().map(lambda field: field.to("meta")), layout()),
    ),
    Malformed(
        "unknown siblings",
        ValueError,
        "siblings is 'sparse' or 'dense', not 'loose'",
        lambda: may_attend(layout(), layout(), "loose"),
    ),
]

SEEDS = torch.zeros(3, dtype=torch.int64)


def attend(
    heads: int = 2,
    key_heads: int = 2,
    mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **options: object,
) -> torch.Tensor:
    q = torch.zeros(1, heads, 3, 4)
    k = torch.zeros(1, key_heads, 5, 4, dtype=dtype, device=device)
    return planned_attention(q, k, k, mask, **options)


def draw(**options: object) -> object:
    return unmask(torch.zeros(3, 2), torch.zeros(4, 2), SEEDS, SEEDS, **options)


def nll(hidden: tuple[int, ...] = (3, 2), targets: torch.Tensor = SEEDS, impl: str = "auto") -> torch.Tensor:
    return token_nll(torch.zeros(hidden), torch.zeros(4, 2), targets, impl)


EVERYTHING = torch.ones(1, 1, 3, 5, dtype=torch.bool)


PRIOR = torch.zeros(1, 5)
NOWHERE, TIMES = torch.zeros(1, 2, dtype=torch.bool), torch.ones(1, 2)


def heads(
    hidden: tuple[int, ...] = (1, 3, 2, 2),
    tokens: torch.Tensor = SEEDS[None],
    scored: torch.Tensor = EVERYTHING[0, :, 0, :3],
    dtype: torch.dtype = torch.float32,
    first: int = 1,
    impl: str = "auto",
) -> torch.Tensor:
    return multi_token_nll(torch.zeros(hidden), torch.zeros(4, 2, dtype=dtype), tokens, scored, impl, first)


def plans(
    hidden: tuple[int, ...] = (1, 5, 3, 2),
    targets: torch.Tensor = SEEDS[None],
    prior: torch.Tensor = PRIOR,
    device: str = "cpu",
) -> object:
    return plan_marginal(torch.zeros(hidden), torch.zeros(4, 2, device=device), targets, prior)


def planned(hidden: tuple[int, ...] = (1, 3, 2), masked: torch.Tensor = NOWHERE, times: torch.Tensor = TIMES) -> object:
    """<bos>, and a token in a span, which has a copy."""
    in_span = replace(layout(), span=torch.tensor([[NO_SPAN, 0]]))
    return planned_nll(torch.zeros(hidden), torch.zeros(9, 2), in_span, masked, times)


OPS = [
    Malformed("heads that do not group", ValueError, "4 query heads cannot share 3 key heads", lambda: attend(4, 3)),
    Malformed("a mask of numbers", ValueError, "mask is boolean", lambda: attend(mask=EVERYTHING.float())),
    Malformed(
        "a mask of another length",
        ValueError,
        "mask [1, 1, 3, 4] does not broadcast to [B, 1, T, S] = [1, 1, 3, 5]",
        lambda: attend(mask=EVERYTHING[..., :4]),
    ),
    Malformed(
        "a mask for each head",
        ValueError,
        "mask [1, 2, 3, 5] does not broadcast",
        lambda: attend(mask=EVERYTHING.expand(1, 2, 3, 5)),
    ),
    Malformed("a mask beside causal", ValueError, "never together", lambda: attend(mask=EVERYTHING, causal=True)),
    Malformed("keys of another dtype", ValueError, "q, k, v differ: torch.float32", lambda: attend(dtype=torch.half)),
    Malformed("keys on another device", ValueError, "torch.float32 meta", lambda: attend(device="meta")),
    Malformed("an unknown impl of attention", ValueError, "not 'fast'", lambda: attend(impl="fast")),
    Malformed(
        "queries without heads",
        ValueError,
        "q [3, 4], k [3, 4], v [3, 4] are not [B, H, T, Dh], [B, G, S, Dh]",
        lambda: planned_attention(*[torch.zeros(3, 4)] * 3),
    ),
    Malformed("a temperature below 0", ValueError, "not -0.5 and 1.0", lambda: draw(temperature=-0.5)),
    Malformed(
        "a nucleus of nothing",
        ValueError,
        "top_p in (0, 1], not 1.0 and 0.0",
        lambda: draw(temperature=1.0, top_p=0.0),
    ),
    Malformed("a nucleus of more than all", ValueError, "not 0.0 and 1.5", lambda: draw(top_p=1.5)),
    Malformed(
        "hidden states of another width",
        ValueError,
        "hidden [3, 5] and unembedding [4, 2]",
        lambda: nll((3, 5)),
    ),
    Malformed("targets of another shape", ValueError, "targets are int64 [1, 3], not", lambda: nll((1, 3, 2))),
    Malformed(
        "too few targets",
        ValueError,
        "targets are int64 [3], not torch.int64 [2]",
        lambda: nll(targets=SEEDS[:2]),
    ),
    Malformed("targets of another dtype", ValueError, "not torch.int32 [3]", lambda: nll(targets=SEEDS.int())),
    Malformed("an unknown impl of the loss", ValueError, "not 'fast'", lambda: nll(impl="fast")),
    Malformed("heads without a dimension", ValueError, "[3, 2, 2] and unembedding [4, 2]", lambda: heads((3, 2, 2))),
    Malformed("heads of another width", ValueError, "are not [B, T, n, D], [V, D]", lambda: heads((1, 3, 2, 5))),
    Malformed(
        "an unembedding of another dtype",
        ValueError,
        "hidden is torch.float32, unembedding torch.float16",
        lambda: heads(dtype=torch.half),
    ),
    Malformed(
        "fewer tokens than positions",
        ValueError,
        "tokens are int64 [1, 3], not torch.int64 [1, 2]",
        lambda: heads(tokens=SEEDS[None, :2]),
    ),
    Malformed(
        "scores of numbers", ValueError, "scored is bool [1, 3], not torch.int64", lambda: heads(scored=SEEDS[None])
    ),
    Malformed("a head that looks at itself", ValueError, "at least 1, not 0", lambda: heads(first=0)),
    Malformed("an unknown impl of the heads", ValueError, "not 'fast'", lambda: heads(impl="fast")),
    Malformed("texts without plans", ValueError, "are not [B, K, T, D], [V, D]", lambda: plans((1, 3, 2))),
    Malformed("no plan at all", ValueError, "hidden [1, 0, 3, 2] has no plan", lambda: plans((1, 0, 3, 2))),
    Malformed(
        "targets for each plan",
        ValueError,
        "targets are int64 [1, 3], not torch.int64 [1, 5, 3]",
        lambda: plans(targets=SEEDS.expand(1, 5, 3)),
    ),
    Malformed(
        "a prior of another number of plans",
        ValueError,
        "log_prior is floating-point [1, 5], not torch.float32 [1, 4]",
        lambda: plans(prior=PRIOR[:, :4]),
    ),
    Malformed("a prior of counts", ValueError, "not torch.int64 [1, 5]", lambda: plans(prior=PRIOR.long())),
    Malformed(
        "an unembedding elsewhere", ValueError, "one device is needed, not cpu, meta", lambda: plans(device="meta")
    ),
    Malformed(
        "hidden states without the noised copy",
        ValueError,
        "hidden [1, 2, 2] is not [B, T + U, D] of a layout [1, 2] whose spans hold U = 1",
        lambda: planned((1, 2, 2)),
    ),
    Malformed(
        "masks as numbers", ValueError, "masked is bool [1, 2], not torch.float32", lambda: planned(masked=TIMES)
    ),
    Malformed(
        "one time per document",
        ValueError,
        "times are floating-point [1, 2], not torch.float32 [1, 1]",
        lambda: planned(times=TIMES[:, :1]),
    ),
    Malformed("a masked prompt", ValueError, "tokens outside spans", lambda: planned(masked=~NOWHERE)),
]

MODEL = Transformer(Config(vocabulary=5, context=4, layers=1, width=4, heads=2, key_heads=1))


def forward(token: int = 0, last: int = 2, dtype: torch.dtype = torch.int64, columns: int = 3) -> torch.Tensor:
    return MODEL(torch.full((1, columns), token, dtype=dtype), torch.arange(last - 2, last + 1)[None])


MODELS = [
    Malformed("a model without layers", ValueError, "every size is at least 1: Config(", lambda: Config(5, layers=0)),
    Malformed("heads of odd width", ValueError, "width 6 does not split into 2", lambda: Config(5, width=6, heads=2)),
    Malformed("heads of no whole width", ValueError, "width 8 does not split", lambda: Config(5, width=8, heads=3)),
    Malformed(
        "key heads that do not divide the heads",
        ValueError,
        "4 query heads cannot share 3 key heads evenly",
        lambda: Config(5, width=16, heads=4, key_heads=3),
    ),
    Malformed(
        "tokens of another dtype",
        ValueError,
        "tokens and positions are int64 [B, T]",
        lambda: forward(dtype=torch.int32),
    ),
    Malformed("as many tokens as not positions", ValueError, "[1, 2], [1, 3]", lambda: forward(columns=2)),
    Malformed(
        "a token outside the vocabulary",
        ValueError,
        "tokens reach 5 of a vocabulary of 5",
        lambda: forward(5),
    ),
    Malformed("a position outside the context", ValueError, "positions 4 of a context of 4", lambda: forward(last=4)),
    Malformed(
        "a cache that overflows",
        ValueError,
        "position 3 is outside the cache of 3 slots",
        lambda: Cache(MODEL.config, 1, 3, MODEL.embed.weight).at(torch.arange(4)[None]),
    ),
    Malformed("an unknown difficulty", ValueError, "difficulty is 1, 2 or 3, not 4", lambda: Profiles(4)),
]

LISTINGS = [
    Malformed("a listing without its last sign", BadListing, "'moon 2'", lambda: read_items("sun 4 ; moon 2")),
    Malformed("a listing of nothing", EmptyPlan, "at least one item", lambda: read_items(" ")),
]

ALL = [*DOCUMENTS, *PLANS, *LISTINGS, *OBJECTS, *LAYOUTS, *OPS, *MODELS]


@pytest.mark.parametrize("case", ALL, ids=[case.what for case in ALL])
def test_each_malformed_input_gets_its_named_error(case: Malformed) -> None:
    with pytest.raises(case.error, match=re.escape(case.message)) as caught:
        case.do()
    assert type(caught.value) is case.error, "the very error, not a more general one"


def subclasses(error: type[Exception]) -> Iterator[type[Exception]]:
    for child in error.__subclasses__():
        yield child
        yield from subclasses(child)


def test_there_are_enough_of_them_and_every_rule_of_the_grammar_has_its_breach() -> None:
    assert len({case.what for case in ALL}) == len(ALL) >= 30
    rules = {error for error in subclasses(DocumentError) if error.__module__.startswith("pdref.text")}
    assert rules <= {case.error for case in ALL}
    assert all(issubclass(rule, ValueError) and rule.__doc__ for rule in rules)
