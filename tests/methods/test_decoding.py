"""Requests in flight: seeds, reading in pieces and in company, writing up to a bound, cutting, reading back."""

from __future__ import annotations

import pytest
import torch

from laws import worlds
from pdref.methods.decoding import Draw, Requests, read_document
from pdref.text.document import MissingLength
from pdref.text.layout import Grammar, Role, TooLong
from pdref.text.tags import Tag

PROMPTS = ["ada", "bo bo cy", "cy ada dee dee"]


def in_flight(cached: bool = True, draw: Draw | None = None, context: int = 60) -> Requests:
    """Requests to a random model."""
    return Requests(worlds.inventor(context=context), PROMPTS, draw or Draw(), cached)


def extend(requests: Requests, b: int, text: str) -> None:
    """Give a request tokens that it has not read."""
    requests.add(b, "plan", worlds.ids(text), Role.PLAN, 0)


# Seeds.


def test_seeds_are_those_given_or_drawn_from_the_generator() -> None:
    assert Draw(seeds=[3, 1]).request_seeds(2).tolist() == [3, 1]
    by_default = Draw().request_seeds(3)
    assert torch.equal(by_default, Draw().request_seeds(3)), "from seed 0"
    generator = torch.Generator().manual_seed(1)
    first, second = (Draw(generator=generator).request_seeds(3) for _ in range(2))
    assert not torch.equal(first, second), "a generator goes on"
    assert len({*by_default.tolist(), *first.tolist(), *second.tolist()}) == 9


def test_as_many_seeds_as_requests() -> None:
    with pytest.raises(ValueError, match="1 seeds for 3 requests"):
        in_flight(draw=Draw(seeds=[1]))


# Prompts.


def test_no_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        Requests(worlds.inventor(), [], Draw())


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(TooLong, match="a prompt of 5 tokens fills the context of 5"):
        in_flight(context=5)
    assert in_flight(context=6).room(2) == 1


# Reading.


@pytest.mark.parametrize("cached", [True, False])
def test_reading_in_pieces_and_in_company_is_reading_at_once_and_alone(cached: bool) -> None:
    pieces = ["<topic>sun", " moon 2", "</topic><topic>1920s 3</topic>"]
    requests = in_flight(cached)
    requests.read(range(3))
    for i, piece in enumerate(pieces):
        extend(requests, 0, piece)
        extend(requests, 2, pieces[-1] if i == 1 else piece)
        requests.read([0, 2])  # request 1 waits
    for b in (0, 2):
        tokens = torch.tensor([requests.tokens(b)])
        alone = requests.model(tokens, torch.arange(tokens.shape[1])[None])
        assert torch.allclose(requests.hidden[b], alone[0, -1], atol=1e-12)
        assert requests.generations[b].nfe == requests.generations[b].critical_path == 4
    assert requests.generations[1].nfe == 1


def test_drawing_asks_the_hidden_state_of_each_last_token() -> None:
    requests = in_flight()
    requests.read(range(3))
    best = requests.model.logits(requests.hidden).argmax(-1)
    assert requests.next_tokens([0, 1, 2]) == best.tolist()
    assert requests.next_tokens([2, 0]) == best[[2, 0]].tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nobody_to_write_for_is_no_error(temperature: float) -> None:
    assert in_flight(draw=Draw(temperature)).write([], "plan", lambda *_: True, 10) == {}


# Writing.


@pytest.mark.parametrize(("limit", "written"), [(0, 0), (3, 3), (100, 6)])
def test_writing_ends_at_the_limit_or_the_context(limit: int, written: int) -> None:
    requests = Requests(worlds.scripted(lambda _: Tag.TOPIC, context=8), ["ada"], Draw())
    requests.read([0])
    assert requests.write([0], "plan", lambda *_: False, limit) == {}
    assert requests.tokens(0)[2:] == [Tag.TOPIC] * written
    assert requests.generations[0].critical_path == 1 + written


def test_the_token_that_stops_is_told_and_not_written() -> None:
    words = dict(zip(worlds.ids("ada bo"), (4, 6), strict=True))  # each prompt stops at its own length
    speaker = worlds.scripted(lambda said: Tag.SYNC if len(said) == words[said[1]] else Tag.TOPIC)
    requests = Requests(speaker, ["ada", "bo"], Draw())
    requests.read([0, 1])
    assert requests.write([0, 1], "plan", lambda b, token: token == Tag.SYNC, 20) == {
        0: Tag.SYNC,
        1: Tag.SYNC,
    }
    assert [requests.length(b) for b in (0, 1)] == [4, 6]
    assert [g.critical_path for g in requests.generations] == [3, 5]


# Cutting and reading back.


@pytest.mark.parametrize("length", [6, 5, 4, 3, 2])
def test_a_cut_shortens_tokens_and_history_alike(length: int) -> None:
    requests = in_flight()
    extend(requests, 0, "<topic>sun")
    extend(requests, 0, "moon 2")
    requests.read([0])
    requests.cut(0, length, "enough")
    generation = requests.generations[0]
    assert generation.cuts == ("enough",)
    assert worlds.replayed(generation) == requests.tokens(0)
    assert requests.length(0) == requests.seen[0] == length


def test_a_cut_request_reads_on_as_if_it_had_never_been_longer() -> None:
    requests, other = in_flight(), in_flight()
    for request, first in ((requests, "<topic>sun moon 5"), (other, "<topic>sun")):
        extend(request, 0, first)
        request.read([0])
    requests.cut(0, other.length(0), "enough")
    for request in (requests, other):
        extend(request, 0, "1920s 2")
        request.read([0])
    assert torch.equal(requests.hidden[0], other.hidden[0])


def test_tokens_become_a_document_or_say_why_not() -> None:
    grammar = Grammar(grid=1, echo=False)
    text = "ada<topic>sun 2</topic><async>ant bee</async><eos>"
    document, problem = read_document([Tag.BOS, *worlds.ids(text)], worlds.TOKENIZER, grammar)
    assert problem is None and document and document.text == "ant bee"
    broken = [Tag.BOS, *worlds.ids(text.replace("sun 2", "sun"))]
    document, problem = read_document(broken, worlds.TOKENIZER, grammar)
    assert document is None and str(problem).startswith(MissingLength.__name__)
