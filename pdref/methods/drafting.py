"""Drafting and verifying: several tokens a forward, and not one of them another than without.

A drafter proposes the tokens after the next one, the model reads them all in one forward, and a prefix of them
stays. Three rules decide which:

    greedy      the draft that is the model's own best token
    coupled     the draft that the model itself would draw there: draft and model draw with the same random numbers,
                which depend on seed and position alone, so the text is, token for token, the text without drafts
    rejection   a draft d with probability min(1, p(d) / q(d)), and where the first one falls, a token drawn from
                max(p - q, 0), normalised (Leviathan et al. 2211.17192; Chen et al. 2302.01318): the same distribution

The further heads of a `MultiToken` draft for their own trunk; a small model drafts for a large one. The first is
multi-token prediction put to use, the second needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pdref.model.cache import Cache
from pdref.model.heads import MultiToken
from pdref.model.transformer import Memory, Transformer
from pdref.ops.impl import Impl
from pdref.ops.unmask.counters import gumbel, uniform
from pdref.ops.unmask.naive import nucleus

Pick = Callable[[Tensor, int], Tensor]
"""Draws tokens [R, j] from hidden states [R, j, D] of heads, the first of which speaks of the k-th place unknown."""

# Which random numbers of a position are whose. A plain sampler's, with which the coupled rule draws all, have step 0.
DRAFT, ACCEPT, REPLACE = 1, 2, 3


class Draft(NamedTuple):
    """Proposed tokens [R, J] and the hidden states [R, J, D] they were drawn from."""

    tokens: Tensor
    hidden: Tensor


class Drafter(Protocol):
    """Follows a batch of requests and proposes what comes after the one token that the model has not read yet."""

    most: int
    """Drafts a round."""

    unembedding: Tensor
    """[V, D], for the drafter's hidden states."""

    branches: bool
    """Whether the model may read a tree of its drafts: the drafter remembers nothing of what it overhears."""

    def forward(
        self, rows: Sequence[int], tokens: Tensor, positions: Tensor, memory: Memory | None, impl: Impl
    ) -> Tensor:
        """The model's own forward for the requests `rows`, overheard."""
        ...

    def propose(
        self, rows: Sequence[int], text: Callable[[int], list[int]], hidden: Tensor, pick: Pick, impl: Impl
    ) -> Draft:
        """Drafts for the requests `rows`, of which `text(b)` are the tokens, the last one unread.

        `hidden` [B, D] is what the model, for each request, made of the last token that it read.
        """
        ...


class Residual:
    """Medusa's heads: they need what the trunk made of the last token that it read, and nothing else."""

    branches = True

    def __init__(self, model: MultiToken, most: int) -> None:
        self.model, self.most, self.unembedding = model, most, model.unembed.weight

    def forward(
        self, rows: Sequence[int], tokens: Tensor, positions: Tensor, memory: Memory | None, impl: Impl
    ) -> Tensor:
        """See `Drafter`."""
        return self.model.forward(tokens, positions, memory=memory, impl=impl)

    def propose(
        self, rows: Sequence[int], text: Callable[[int], list[int]], hidden: Tensor, pick: Pick, impl: Impl
    ) -> Draft:
        """See `Drafter`."""
        heads = self.model.heads.forward(hidden if len(rows) == len(hidden) else hidden[list(rows)])  # [R, n - 1, D]
        return Draft(pick(heads, 0), heads)


class Attentive:
    """Heads with attention: their keys, the trunk's output and the text lie in the slots of their positions.

    A position is read by the heads once the text says all that they ask of it. For the last positions of a
    sequential model drafts stand in for text; they are read again in the next round.
    """

    branches = False

    def __init__(self, model: MultiToken, most: int, batch: int) -> None:
        self.model, self.most, self.unembedding = model, most, model.unembed.weight
        config = replace(model.config, layers=model.n - 1)
        self.cache = Cache(config, batch, config.context, self.unembedding)
        self.z = self.unembedding.new_zeros(batch, config.context, config.width)
        self.read = Read(batch, config.context + model.n, self.unembedding.device)

    def forward(
        self, rows: Sequence[int], tokens: Tensor, positions: Tensor, memory: Memory | None, impl: Impl
    ) -> Tensor:
        """See `Drafter`."""
        z = self.model.trunk(tokens, positions, memory=memory, impl=impl)
        self.z[torch.tensor(rows, device=z.device)[:, None], positions] = z
        return self.model.first(z, positions, memory=memory, impl=impl)

    def propose(
        self, rows: Sequence[int], text: Callable[[int], list[int]], hidden: Tensor, pick: Pick, impl: Impl
    ) -> Draft:
        """See `Drafter`."""
        which, positions = self.read.on(rows, [text(b) for b in rows], unread=1, again=self.model.reach)
        each, end = which[:, None], positions[:, -1] + 1
        heads = self.model.further(
            self.z[each, positions],
            positions,
            lambda k: self.read.tokens[each, positions + k],
            memory=self.cache.at(positions, which),
            impl=impl,
        )
        drawn, states = [], []
        for k, head in enumerate(heads):
            states.append(head[:, -1:])
            drawn.append(pick(states[-1], k))
            self.read.tokens[which, end + 1 + k] = drawn[-1][:, 0]
        return Draft(torch.cat(drawn, 1), torch.cat(states, 1))


class Small:
    """Another model, which drafts token by token: speculative decoding that owes multi-token prediction nothing.

    The candidates of a tree are those beside its own chain.
    """

    branches = True

    def __init__(self, model: Transformer, small: Transformer, most: int, batch: int) -> None:
        self.model, self.small, self.most, self.unembedding = model, small, most, small.unembed.weight
        self.cache = Cache(small.config, batch, small.config.context, self.unembedding)
        self.read = Read(batch, small.config.context, self.unembedding.device)

    def forward(
        self, rows: Sequence[int], tokens: Tensor, positions: Tensor, memory: Memory | None, impl: Impl
    ) -> Tensor:
        """See `Drafter`."""
        return self.model.forward(tokens, positions, memory=memory, impl=impl)

    def propose(
        self, rows: Sequence[int], text: Callable[[int], list[int]], hidden: Tensor, pick: Pick, impl: Impl
    ) -> Draft:
        """See `Drafter`."""
        which, positions = self.read.on(rows, [text(b) for b in rows])
        tokens = self.read.tokens[which[:, None], positions]
        drawn, states = [], []
        for k in range(self.most):
            hidden = self.small.forward(tokens, positions, memory=self.cache.at(positions, which), impl=impl)
            states.append(hidden[:, -1:])
            drawn.append(pick(states[-1], k))
            tokens, positions = drawn[-1], positions[:, -1:] + 1
            positions = positions.clamp_max(self.cache.capacity - 1)  # no draft past the end is ever offered
        return Draft(torch.cat(drawn, 1), torch.cat(states, 1))


class Read:
    """The texts of requests by position, [B, C], and how far a drafter has read each for good."""

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        self.tokens = torch.zeros(batch, capacity, dtype=torch.int64, device=device)
        self.done = [0] * batch

    def on(
        self, rows: Sequence[int], texts: Sequence[list[int]], unread: int = 0, again: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The requests `rows` as a tensor [R] and their positions [R, W] to be read now, up to the last but `unread`.

        The last `again` of them will come again next time. W is what the request needs that is furthest behind;
        others read some positions twice, to the same effect.
        """
        device = self.tokens.device
        for b, text in zip(rows, texts, strict=True):
            self.tokens[b, self.done[b] : len(text)] = torch.tensor(text[self.done[b] :], device=device)
        ends = [len(text) - unread for text in texts]
        width = max(end - self.done[b] for b, end in zip(rows, ends, strict=True))
        for b, end in zip(rows, ends, strict=True):
            self.done[b] = max(0, end - again)
        positions = torch.tensor(ends, device=device)[:, None] + torch.arange(-width, 0, device=device)
        return torch.tensor(rows, device=device), positions.clamp_min(0)


def drafter_of(model: Transformer, small: Transformer | None, ahead: int | None, batch: int) -> Drafter | None:
    """Who drafts for a batch: the small model if there is one, else the model's heads, else nobody.

    Raises ValueError for a small model of another vocabulary or of less context.
    """
    if ahead == 0:
        return None
    if small is not None:
        one, other = small.config, model.config
        if one.vocabulary != other.vocabulary or one.context < other.context:
            raise ValueError(
                f"a small model drafts in the same {other.vocabulary} tokens and at least {other.context} positions, "
                f"not in {one.vocabulary} and {one.context}"
            )
        return Small(model, small, ahead or SMALL_AHEAD, batch)
    if not isinstance(model, MultiToken):
        return None
    most = min(model.n - 1, ahead or model.n)
    return Attentive(model, most, batch) if model.attends else Residual(model, most)


SMALL_AHEAD = 4


def agreeing(drafts: Sequence[int], exact: Sequence[int]) -> int:
    """How many drafts from the first on are the tokens that the model says."""
    return next((j for j, draft in enumerate(drafts) if draft != exact[j]), len(drafts))


def rejection(
    log_p: Tensor, log_q: Tensor, drafts: Tensor, counts: Tensor, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """How many drafts stay, [R], and the token after them, [R], which together have the model's distribution.

    The model gives tokens log_p [R, J + 1, V] after 0..J drafts, the drafter drew `drafts` [R, J] from log_q
    [R, J, V]; only the first `counts` [R] of a request's are offered. `positions` [R] are those of the first draft.
    """
    R, J = drafts.shape
    offered = torch.arange(J, device=drafts.device) < counts[:, None]
    places = positions[:, None] + torch.arange(J, device=drafts.device)
    ratio = (log_p[:, :J] - log_q).gather(-1, drafts[..., None])[..., 0].exp()  # p(d) / q(d), [R, J]
    kept = (uniform(seeds[:, None], places, ACCEPT, 0) < ratio) & offered
    accepted = kept.cumprod(1).sum(1)  # [R]
    at = accepted[:, None, None].expand(-1, 1, log_p.shape[-1])
    p = log_p.gather(1, at)[:, 0].exp()  # [R, V]
    q = F.pad(log_q.exp().masked_fill(~offered[..., None], 0.0), (0, 0, 0, 1)).gather(1, at)[:, 0]  # 0: nothing fell
    left = (p - q).clamp_min(0)
    left = torch.where(left.any(-1, keepdim=True), left, p)  # p = q: only rounding can have let a draft fall
    noise = gumbel(seeds, positions + accepted, REPLACE, p.shape[-1])
    return accepted, (left.log() + noise).argmax(-1)


def log_probabilities(hidden: Tensor, unembedding: Tensor, temperature: float, top_p: float) -> Tensor:
    """What tokens are drawn from, [..., D] -> [..., V], as `unmask` has it."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    log_p = (F.linear(hidden.to(wide), unembedding.to(wide)) / temperature).log_softmax(-1)
    return log_p if top_p == 1 else nucleus(log_p.flatten(0, -2), top_p).view_as(log_p)
