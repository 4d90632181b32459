"""Models whose answers are known: they see what attention would let them see, and nothing else.

A seer's keys are token ids and positions. They go through the same cache, prefix, mask and positions as a
transformer's, so a stale key, a leak or a wrong position shows in what it answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pdref.model.transformer import Config, Memory, Transformer
from pdref.ops.planned_attention import Impl
from pdref.text.layout import Layout
from pdref.text.mask import Sight
from pdref.text.tags import Tag

NEVER = -1e3  # log-probability of the impossible; finite, because unembedding multiplies it by 0
UNSEEN = -1


class Seer(Transformer):
    """Log-probabilities as hidden states (the unembedding is the identity), from what each query may see."""

    def __init__(self, vocabulary: int, context: int) -> None:
        nn.Module.__init__(self)
        self.config = Config(vocabulary, context, layers=1, width=2, heads=1, key_heads=1)
        self.embed = nn.Embedding(vocabulary, vocabulary, dtype=torch.float64)  # asked for its shape alone
        self.unembed = nn.Linear(vocabulary, vocabulary, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.unembed.weight.copy_(torch.eye(vocabulary))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None = None,
        memory: Memory | None = None,
        impl: Impl = "auto",
    ) -> Tensor:
        """[B, T, V]; IndexError for positions outside the context, as the transformer's table of turns raises."""
        if int(positions.max()) >= self.config.context:
            raise IndexError(f"position {int(positions.max())} of {self.config.context}")
        keys = torch.stack([tokens, positions], -1)[:, None].to(self.embed.weight.dtype)  # [B, 1, T, 2]
        if memory is not None:
            keys = memory.extend(0, keys.expand(-1, 2, -1, -1))
            mask = memory.mask if mask is None else mask
        key_token, key_position = keys[:, 0].long().unbind(-1)  # [B, S]
        B, T, S = *tokens.shape, key_token.shape[1]
        if mask is not None:
            visible = (mask.dense if isinstance(mask, Sight) else mask).expand(B, 1, T, S)[:, 0]
        else:
            visible = torch.ones(B, T, S, dtype=torch.bool)
            visible = visible.tril() if memory is None else visible
        nowhere = self.config.context
        at = key_position[:, None].expand(B, T, S).masked_fill(~visible, nowhere)
        seen = torch.full((B, T, nowhere + 1), UNSEEN)
        seen = seen.scatter_reduce(2, at, key_token[:, None].expand(B, T, S), "amax")[:, :, :nowhere]
        return self.answer(seen.flatten(0, 1), tokens.flatten(), positions.flatten()).unflatten(0, (B, T))

    @abstractmethod
    def answer(self, seen: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """Log-probabilities [M, V] for queries with a `token` and `position` [M] that see `seen` [M, C].

        At a <mask> they are of the token that stands there, elsewhere of the next one.
        """


class Exact(Seer):
    """The exact conditionals of a finite set of documents and their probabilities, by enumeration.

    With one document per prompt it is an oracle.
    """

    def __init__(
        self, documents: Sequence[Layout], vocabulary: int, context: int, chances: Tensor | None = None
    ) -> None:
        super().__init__(vocabulary, context)
        self.documents = Layout.collate(documents).token  # [N, T]
        grow = context + 1 - self.documents.shape[1]
        self.documents = nn.functional.pad(self.documents, (0, grow), value=int(Tag.PAD))  # [N, C + 1]
        uniform = torch.ones(len(documents), dtype=torch.float64) / len(documents)
        self.chances = uniform if chances is None else chances

    def answer(self, seen: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """See `Seer`; what no document holds is answered by the uniform distribution."""
        free = (seen == UNSEEN) | (seen == Tag.MASK)
        agrees = (free[:, None] | (seen[:, None] == self.documents[None, :, :-1])).all(-1)  # [M, N]
        weights = agrees * self.chances
        asked = torch.where(token == Tag.MASK, position, position + 1)
        p = torch.zeros(len(token), self.config.vocabulary, dtype=torch.float64)
        p = p.scatter_add(1, self.documents[:, asked].T, weights)
        p = torch.where(p.sum(1, keepdim=True) > 0, p, 1.0)
        return (p / p.sum(1, keepdim=True)).log().clamp_min(NEVER)


class Scripted(Seer):
    """Says next what a function of the tokens so far says, and one word at every <mask>."""

    def __init__(self, script: Callable[[list[int]], int], filler: int, vocabulary: int, context: int) -> None:
        super().__init__(vocabulary, context)
        self.script, self.filler = script, filler

    def answer(self, seen: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """See `Seer`."""
        said = [
            self.filler if now == Tag.MASK else self.script([i for i in row[: at + 1] if i != UNSEEN])
            for row, now, at in zip(seen.tolist(), token.tolist(), position.tolist(), strict=True)
        ]
        log_p = torch.full((len(said), self.config.vocabulary), NEVER, dtype=torch.float64)
        return log_p.scatter(1, torch.tensor(said)[:, None], 0.0)


class Grammatical(Transformer):
    """A random transformer that cannot help writing planned documents: a bigram grammar forbids the rest.

    Everything that the grammar leaves open, such as words, lengths, the number of items and of stages, is the
    random model's own choice, made by real attention over the real cache.
    """

    def __init__(self, inner: Transformer, allowed: Tensor) -> None:
        """`allowed` [V, V]: whether column may follow row."""
        nn.Module.__init__(self)
        V, D = inner.config.vocabulary, inner.config.width
        self.config, self.inner = inner.config, inner
        self.forbids = (~allowed).double() * -50.0
        self.embed = nn.Embedding(V, D + V, dtype=torch.float64)  # asked for its shape alone
        self.unembed = nn.Linear(D + V, V, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.unembed.weight.copy_(torch.cat([3 * inner.unembed.weight, torch.eye(V)], 1))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None = None,
        memory: Memory | None = None,
        impl: Impl = "auto",
    ) -> Tensor:
        """[B, T, D + V]."""
        return torch.cat([self.inner(tokens, positions, mask, memory, impl), self.forbids[tokens]], -1)
