"""A batch of requests while they are being written: tokens so far, cache, counters, history.

`read` runs the causal forward over tokens a request has but the model has not seen; `write` draws and reads tokens one
by one; `Region`s are what diffusion denoises against the tokens read so far. Cached and uncached requests give the
same tokens: the uncached ones run whole sequences under the mask of `pdref.text.mask`, the cached ones never build it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pdref.methods.generation import Event, Generation, Phase
from pdref.model.cache import Cache
from pdref.model.transformer import Transformer
from pdref.ops.planned_attention import Impl
from pdref.ops.unmask import unmask
from pdref.text.document import Item, PlannedDocument, parse
from pdref.text.layout import Grammar, LayoutBuilder, Role, TooLong
from pdref.text.tags import DocumentError, Tag
from pdref.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Speaker:
    """A trained model and what it needs to speak: tokenizer and grammar.

    `shifted` models predict a masked token from the position before it (see `planned_diffusion.released_terms`).
    """

    model: Transformer
    tokenizer: Tokenizer
    grammar: Grammar
    shifted: bool = False


@dataclass(frozen=True, slots=True)
class Draw:
    """How tokens are drawn: temperature (0 takes the best), nucleus, a seed per request.

    `seeds` are drawn from `generator` if not given (both None: from 0), one per request.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seeds: Sequence[int] | None = None
    generator: torch.Generator | None = None

    def request_seeds(self, count: int) -> Tensor:
        """[count] int64. Raises ValueError if there are not as many seeds as requests."""
        if self.seeds is None:
            generator = self.generator or torch.Generator().manual_seed(0)
            return torch.randint(2**31, (count,), generator=generator)
        if len(self.seeds) != count:
            raise ValueError(f"{len(self.seeds)} seeds for {count} requests")
        return torch.tensor(self.seeds, dtype=torch.int64)


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

    def read(self, rows: Sequence[int]) -> None:
        """One causal forward over the unread tokens of `rows`."""
        if not self.cached:
            for b in rows:
                self.seen[b] = 0
        unread = [[row[0] for row in self.builders[b].rows[self.seen[b] :]] for b in rows]
        longest = max(map(len, unread))
        tokens = torch.tensor([ids + [int(Tag.PAD)] * (longest - len(ids)) for ids in unread], device=self.device)
        starts = torch.tensor([self.seen[b] for b in rows], device=self.device)
        positions = starts[:, None] + torch.arange(longest, device=self.device)
        positions.clamp_(max=self.context - 1)  # fillers may run past the end; nobody reads them
        if self.cache is None:
            hidden = self.model(tokens, positions, impl=self.impl)
        else:
            everyone = len(rows) == len(self)
            writer = self.cache.at(positions, None if everyone else torch.tensor(rows, device=self.device))
            hidden = self.model(tokens, positions, writer.mask, writer, self.impl)
        for i, b in enumerate(rows):
            self.hidden[b] = hidden[i, len(unread[i]) - 1]
            self.seen[b] = self.length(b)
            self.count(b)

    def next_tokens(self, rows: Sequence[int]) -> list[int]:
        """Draw the token after the last one of each of `rows`."""
        hidden = self.hidden if len(rows) == len(self) else self.hidden[list(rows)]
        if self.draw.temperature == 0:
            return F.linear(hidden, self.model.unembed.weight).argmax(-1).tolist()
        positions = torch.tensor([self.length(b) for b in rows], device=self.device)
        drawn = unmask(
            hidden,
            self.model.unembed.weight,
            self.seeds[list(rows)],
            positions,
            temperature=self.draw.temperature,
            top_p=self.draw.top_p,
        )
        return drawn.token.tolist()

    def write(
        self, rows: Sequence[int], phase: Phase, stop: Callable[[int, int], bool], limit: int, stage: int = 0
    ) -> dict[int, int]:
        """Draw and read tokens until `stop(b, token)`; returns the stopping token of each request that met one.

        Requests that write `limit` tokens, or reach the end of the context, are left out of the result. The
        stopping token is not added.
        """
        stopped: dict[int, int] = {}
        active = [b for b in rows if self.room(b) > 0]
        for _ in range(limit):
            if not active:
                break
            going = []
            for b, token in zip(active, self.next_tokens(active), strict=True):
                if stop(b, token):
                    stopped[b] = token
                else:
                    self.add(b, phase, [token], Role.PLAN, stage)
                    going.append(b)
            if going:
                self.read(going)
            active = [b for b in going if self.room(b) > 0]
        return stopped

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
