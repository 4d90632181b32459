"""A batch of requests while they are being written: tokens so far, cache, counters, history.

`read` runs the causal forward over tokens a request has but the model has not seen; `write` draws and reads tokens,
one a forward or, with somebody to draft, as many as the drafts that come true; `Region`s are what diffusion denoises
against the tokens read so far. Cached and uncached requests give the same tokens: the uncached ones run whole
sequences under the mask of `pdref.text.mask`, the cached ones never build it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pdref.methods.draft_tree import grow, lineage, path
from pdref.methods.drafting import DRAFT, Draft, agreeing, drafter_of, log_probabilities, rejection
from pdref.methods.generation import Drafted, Event, Generation, Phase
from pdref.model.cache import Cache
from pdref.model.transformer import Transformer
from pdref.ops.impl import Impl
from pdref.ops.unmask import unmask
from pdref.ops.unmask.counters import gumbel
from pdref.text.document import Item, PlannedDocument, parse
from pdref.text.layout import Grammar, LayoutBuilder, Role, TooLong
from pdref.text.tags import DocumentError
from pdref.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Speaker:
    """A trained model and what it needs to speak: tokenizer and grammar.

    `shifted` models predict a masked token from the position before it (see `planned_diffusion.released_terms`).
    A model with heads drafts for itself; `small`, a model of the same tokens, drafts for it instead.
    """

    model: Transformer
    tokenizer: Tokenizer
    grammar: Grammar
    shifted: bool = False
    small: Transformer | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """How tokens are drawn: temperature (0 takes the best), nucleus, a seed per request.

    `seeds` are drawn from `generator` if not given (both None: from 0), one per request. Where somebody drafts,
    `ahead` is how many tokens at most (None: one per further head, or 4 of a small model), and `rule` says which of
    them stay (see `drafting`); at temperature 0 both rules are greedy. A `tree` of so many drafts takes the place of
    the chain (see `draft_tree`). Raises ValueError for other rules, negative counts and a tree under "rejection".
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seeds: Sequence[int] | None = None
    generator: torch.Generator | None = None
    ahead: int | None = None
    rule: Literal["coupled", "rejection"] = "coupled"
    tree: int = 0

    def __post_init__(self) -> None:
        if self.rule not in ("coupled", "rejection") or (self.ahead is not None and self.ahead < 0):
            raise ValueError(f"rule is 'coupled' or 'rejection', not {self.rule!r}; ahead is at least 0: {self.ahead}")
        if self.tree < 0 or (self.tree and self.rule == "rejection" and self.temperature > 0):
            raise ValueError(
                f"a tree has at least 0 drafts, not {self.tree}, and the rule 'coupled', not {self.rule!r}"
            )

    def request_seeds(self, count: int) -> Tensor:
        """[count] int64. Raises ValueError if there are not as many seeds as requests."""
        if self.seeds is None:
            generator = self.generator or torch.Generator().manual_seed(0)
            return torch.randint(2**31, (count,), generator=generator, device="cpu")
        if len(self.seeds) != count:
            raise ValueError(f"{len(self.seeds)} seeds for {count} requests")
        return torch.tensor(self.seeds, dtype=torch.int64, device="cpu")


class Round(NamedTuple):
    """What a request's drafts came to: how many were offered, how many came true, and the states after each."""

    offered: int
    true: int
    states: Tensor  # [J + 1, D], after none, one, ... of them


class Requests:
    """B requests in flight. Raises ValueError without prompts, TooLong for a prompt that fills the context."""

    def __init__(
        self, speaker: Speaker, prompts: Sequence[str], draw: Draw, cached: bool = True, impl: Impl = "auto"
    ) -> None:
        if not prompts:
            raise ValueError("no prompts: a sampler needs at least one")
        self.model, self.tokenizer, self.grammar = speaker.model, speaker.tokenizer, speaker.grammar
        self.draw, self.cached, self.impl, self.shifted = draw, cached, impl, speaker.shifted
        self.context = self.model.config.context
        self.builders = [LayoutBuilder(self.tokenizer, self.grammar) for _ in prompts]
        for builder, prompt in zip(self.builders, prompts, strict=True):
            builder.prompt(prompt)
            if len(builder.rows) >= self.context:
                raise TooLong(f"a prompt of {len(builder.rows)} tokens fills the context of {self.context}")
        self.generations = [Generation([], len(builder.rows)) for builder in self.builders]
        self.device = self.model.device
        self.seeds = draw.request_seeds(len(prompts)).to(self.device)
        weight = self.model.embed.weight
        self.cache = Cache(self.model.config, len(prompts), self.context, weight) if cached else None
        self.drafter = drafter_of(self.model, speaker.small, draw.ahead, len(prompts))
        if draw.tree and not (self.drafter and self.drafter.branches and cached):
            raise ValueError("a tree of drafts takes a cache, and Medusa's heads or a small model to draft")
        self.rounds: dict[int, Round] = {}  # the latest of each request, until it is settled
        for generation in self.generations if self.drafter else ():
            generation.drafted = Drafted()
        self.hidden = weight.new_zeros(len(prompts), weight.shape[1])  # after each request's last token
        self.seen = [0] * len(prompts)
        for b in range(len(prompts)):
            self.record(b, "prompt", 0, self.tokens(b))

    def __len__(self) -> int:
        return len(self.builders)

    def tokens(self, b: int) -> list[int]:
        """Token ids of request b so far."""
        return [row[0] for row in self.builders[b].rows]

    def length(self, b: int) -> int:
        """Tokens of request b so far."""
        return len(self.builders[b].rows)

    def room(self, b: int) -> int:
        """Tokens that still fit the context."""
        return self.context - self.length(b)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time inside to `phase` of every request."""
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        for generation in self.generations:
            generation.seconds[phase] = generation.seconds.get(phase, 0.0) + elapsed

    def count(self, b: int, evaluations: int = 1) -> None:
        """One more step on request b's critical path, of so many forward evaluations."""
        self.generations[b].nfe += evaluations
        self.generations[b].critical_path += 1

    def record(self, b: int, phase: Phase, start: int, tokens: Sequence[int]) -> None:
        """Add tokens at consecutive positions to the history."""
        self.generations[b].history.append(Event(phase, tuple(range(start, start + len(tokens))), tuple(tokens)))

    def add(self, b: int, phase: Phase, tokens: Sequence[int], role: Role, stage: int) -> None:
        """Give request b tokens, to be read later."""
        if tokens:
            self.record(b, phase, self.length(b), tokens)
            self.builders[b].add(tokens, role, stage)

    def cut(self, b: int, length: int, why: str) -> None:
        """Shorten request b to `length` tokens and report it."""
        generation = self.generations[b]
        generation.cuts += (why,)
        generation.history = [kept for event in generation.history if (kept := event.before(length)).positions]
        del self.builders[b].rows[length:]
        self.seen[b] = min(self.seen[b], length)

    def fail(self, b: int, error: DocumentError) -> None:
        """Report that request b broke the grammar."""
        self.generations[b].problem = f"{type(error).__name__}: {error}"

    def opening(self, item: Item) -> list[int]:
        """The tokens that open an item's span."""
        builder = LayoutBuilder(self.tokenizer, self.grammar)
        builder.open_span(item, 0, 0)
        return [row[0] for row in builder.rows]

    def read(self, rows: Sequence[int], drafts: Sequence[list[int]] | None = None) -> Tensor:
        """One causal forward over the unread tokens of `rows`; over drafts behind them, too, which stay unread.

        Returns the hidden states [R, T, D] of unread tokens and drafts.
        """
        if not self.cached:
            for b in rows:
                self.seen[b] = 0
        unread = [[row[0] for row in self.builders[b].rows[self.seen[b] :]] for b in rows]
        given = unread if drafts is None else [ids + more for ids, more in zip(unread, drafts, strict=True)]
        longest = max(map(len, given))
        # Nobody reads a filler; where the context ends, it may fall on its request's last token, and is the same.
        filled = [ids + ids[-1:] * (longest - len(ids)) for ids in given]
        tokens = torch.tensor(filled, device=self.device)
        starts = torch.tensor([self.seen[b] for b in rows], device=self.device)
        positions = (starts[:, None] + torch.arange(longest, device=self.device)).clamp_(max=self.context - 1)
        memory = None
        if self.cache is not None:
            everyone = len(rows) == len(self)
            memory = self.cache.at(positions, None if everyone else torch.tensor(rows, device=self.device))
        if self.drafter is None:
            hidden = self.model(tokens, positions, memory=memory, impl=self.impl)
        else:
            hidden = self.drafter.forward(rows, tokens, positions, memory, self.impl)
        for i, b in enumerate(rows):
            self.hidden[b] = hidden[i, len(unread[i]) - 1]
            self.seen[b] = self.length(b)
            self.count(b)
        return hidden

    def next_tokens(self, rows: Sequence[int]) -> list[int]:
        """Draw the token after the last one of each of `rows`."""
        hidden = self.hidden if len(rows) == len(self) else self.hidden[list(rows)]
        if self.draw.temperature == 0:
            return F.linear(hidden, self.model.unembed.weight).argmax(-1).tolist()
        return self.tokens_after(rows, hidden[:, None])[:, 0].tolist()

    def tokens_after(
        self, rows: Sequence[int], hidden: Tensor, ahead: int = 0, step: int = 0, unembedding: Tensor | None = None
    ) -> Tensor:
        """Draw the tokens [R, j] that stand `ahead`, `ahead` + 1, ... places behind the last ones of `rows`.

        They are drawn from `hidden` [R, j, D], by the model's unembedding if no other is given.
        """
        starts = torch.tensor([self.length(b) + ahead for b in rows], dtype=torch.int64, device=self.device)
        places = starts[:, None] + torch.arange(hidden.shape[1], device=self.device)
        return self.drawn(rows, hidden, places, step, unembedding)

    def drawn(
        self, rows: Sequence[int], hidden: Tensor, places: Tensor, step: int = 0, unembedding: Tensor | None = None
    ) -> Tensor:
        """Draw the tokens [R, j] at `places` [R, j] of `rows` from `hidden` [R, j, D]."""
        unembedding = self.model.unembed.weight if unembedding is None else unembedding
        if self.draw.temperature == 0:
            return F.linear(hidden, unembedding).argmax(-1)
        found = unmask(
            hidden.flatten(0, 1),
            unembedding,
            self.seeds[list(rows), None].expand_as(places).flatten(),
            places.flatten(),
            step,
            self.draw.temperature,
            self.draw.top_p,
            impl=self.impl,
        )
        return found.token.view_as(places)

    def write(
        self, rows: Sequence[int], phase: Phase, stop: Callable[[int, int], bool], limit: int, stage: int = 0
    ) -> dict[int, int]:
        """Draw and read tokens until `stop(b, token)`; returns the stopping token of each request that met one.

        Requests that write `limit` tokens, or reach the end of the context, are left out of the result. The
        stopping token is not added.
        """
        stopped: dict[int, int] = {}
        left = {b: min(limit, self.room(b)) for b in rows}
        active = [b for b in rows if left[b] > 0]
        said = [[token] for token in self.next_tokens(active)]
        while active:
            going = []
            for b, tokens in zip(active, said, strict=True):
                for i, token in enumerate(tokens):
                    if stop(b, token):
                        stopped[b], tokens = token, tokens[:i]
                        break
                else:
                    going.append(b)
                self.add(b, phase, tokens, Role.PLAN, stage)
                left[b] -= len(tokens)
                if self.drafter is not None:
                    self._settle(b, len(tokens))
            said = self._advance(going, left) if going else []
            said = [tokens for b, tokens in zip(going, said, strict=True) if left[b] > 0]
            active = [b for b in going if left[b] > 0]
        return stopped

    def _settle(self, b: int, kept: int) -> None:
        """Keep the books of a round of which request b has kept so many tokens."""
        drafted = self.generations[b].drafted
        drafted.tokens += kept
        if b in self.rounds:
            offered, true, states = self.rounds.pop(b)
            # The draft that stops a request was looked at and has come true, and nothing after it counts.
            drafted.count(tried=min(true + 1, kept + 1, offered), accepted=min(true, kept + 1))
            read = min(true, kept)
            self.hidden[b], self.seen[b] = states[read], self.seen[b] + read

    def _advance(self, rows: Sequence[int], left: dict[int, int]) -> list[list[int]]:
        """One forward over the token that each of `rows` has not read, and what follows it for sure.

        That is the drafts that come true and one more token; the requests have room for `left` tokens.
        """
        if self.drafter is None:
            self.read(rows)
            return [[token] for token in self.next_tokens(rows)]
        for b in rows:
            self.generations[b].drafted.forwards += 1
        offered = [max(0, min(self.drafter.most, left[b] - 1)) for b in rows]
        if not any(offered):
            self.read(rows)
            return [[token] for token in self.next_tokens(rows)]
        coupled = self.draw.temperature == 0 or self.draw.rule == "coupled"
        pick = partial(self.tokens_after, rows, step=0 if coupled else DRAFT, unembedding=self.drafter.unembedding)
        draft = self.drafter.propose(rows, self.tokens, self.hidden, pick, self.impl)
        if self.draw.tree:
            return self._climb(rows, offered, draft)
        drafts = [ids[:n] for ids, n in zip(draft.tokens.tolist(), offered, strict=True)]
        states = self.read(rows, drafts)
        if not self.cached:  # the whole texts were read
            js, ends = range(max(offered) + 1), [self.length(b) - 1 for b in rows]
            places = [[end + min(j, n) for j in js] for end, n in zip(ends, offered, strict=True)]
            states = states[torch.arange(len(rows))[:, None], torch.tensor(places)]
        if coupled:
            exact = self.tokens_after(rows, states).tolist()
            true = [agreeing(ids, tokens) for ids, tokens in zip(drafts, exact, strict=True)]
            after = [tokens[n] for tokens, n in zip(exact, true, strict=True)]
        else:
            true, after = self._reject(rows, offered, draft, states)
        self.rounds = {b: Round(*found) for b, *found in zip(rows, offered, true, states, strict=True) if found[0]}
        return [[*ids[:n], token] for ids, n, token in zip(drafts, true, after, strict=True)]

    def _climb(self, rows: Sequence[int], offered: Sequence[int], draft: Draft) -> list[list[int]]:
        """Read a tree of drafts after each request's unread token; the path that comes true, and one token more."""
        log_q = self._scores(rows, draft)
        trees = [grow(scores[:n], self.draw.tree) for scores, n in zip(log_q, offered, strict=True)]
        width = 1 + max(map(len, trees))
        ends = [self.length(b) - 1 for b in rows]
        # What fills a tree up repeats its root and leads nowhere.
        tokens = [
            [self.builders[b].rows[-1][0], *(node.token for node in tree)] for b, tree in zip(rows, trees, strict=True)
        ]
        places = [[end, *(end + node.depth for node in tree)] for end, tree in zip(ends, trees, strict=True)]
        token, place = (
            torch.tensor([row + row[:1] * (width - len(row)) for row in table], device=self.device)
            for table in (tokens, places)
        )
        reads = torch.stack([lineage(tree, width) for tree in trees]).to(self.device)
        fork = self.cache.fork(place, torch.tensor(rows, device=self.device), reads)
        states = self.drafter.forward(rows, token, place, fork, self.impl)  # [R, T, D]
        exact = self.drawn(rows, states, place + 1).tolist()
        paths = [path(tree, said) for tree, said in zip(trees, exact, strict=True)]
        longest = max(map(len, paths))
        which = [[0, *(i + 1 for i in true)] for true in paths]
        padded = [row + row[-1:] * (longest + 1 - len(row)) for row in which]
        fork.keep(torch.tensor(padded, device=self.device))
        for i, (b, tree, true) in enumerate(zip(rows, trees, which, strict=True)):
            self.count(b)
            self.hidden[b], self.seen[b] = states[i, 0], self.length(b)
            goes_on = any(node.parent + 1 == true[-1] for node in tree)
            self.rounds[b] = Round(len(true) - 1 + goes_on, len(true) - 1, states[i, true])
        return [[said[i] for i in true] for said, true in zip(exact, which, strict=True)]

    def _scores(self, rows: Sequence[int], draft: Draft) -> Tensor:
        """How much a drafter believes in each token at each place [R, J, V], the model's noise included."""
        scores = F.linear(draft.hidden, self.drafter.unembedding).float()
        if self.draw.temperature > 0:
            J, V = scores.shape[1:]
            places = [self.length(b) + k for b in rows for k in range(J)]
            seeds = self.seeds[list(rows)].repeat_interleave(J)
            noise = gumbel(seeds, torch.tensor(places, device=self.device), 0, V).view_as(scores)
            scores = scores / self.draw.temperature + noise
        return scores.log_softmax(-1)

    def _reject(
        self, rows: Sequence[int], offered: Sequence[int], draft: Draft, states: Tensor
    ) -> tuple[list[int], list[int]]:
        """How many drafts the rejection rule keeps, and which token it puts after them."""
        J, how = max(offered), (self.draw.temperature, self.draw.top_p)
        kept, tokens = rejection(
            log_probabilities(states, self.model.unembed.weight, *how),
            log_probabilities(draft.hidden[:, :J], self.drafter.unembedding, *how),
            draft.tokens[:, :J],
            torch.tensor(offered, device=self.device),
            self.seeds[list(rows)],
            torch.tensor([self.length(b) for b in rows], device=self.device),
        )
        return kept.tolist(), tokens.tolist()

    def finish(self) -> list[Generation]:
        """Close the books: tokens and, where they keep the grammar, the document."""
        for b, generation in enumerate(self.generations):
            generation.tokens = self.tokens(b)
            if generation.problem is None:
                generation.document, generation.problem = read_document(generation.tokens, self.tokenizer, self.grammar)
        return self.generations


def read_document(
    tokens: Sequence[int], tokenizer: Tokenizer, grammar: Grammar
) -> tuple[PlannedDocument | None, str | None]:
    """The document that tokens (with their <bos>) spell, or why they spell none."""
    try:
        return parse(tokenizer.decode(tokens[1:]), grammar.echo), None
    except DocumentError as error:
        return None, f"{type(error).__name__}: {error}"
