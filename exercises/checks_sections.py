"""Exercise 3 of `plans_and_coherence.ipynb`: sections that are written at the same time, each as if it were alone.

What must come out is written a second time, section by section and without a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pdref.model.cache import Cache
from pdref.model.transformer import Config, Transformer

# Exercise 3: sections as rows that share a prefix.

FILL_MISTAKES: dict[str, str] = {
    "siblings": "the sections read one another: each is a row of its own, behind the prefix and its opening",
    "no prefix": "the rows have not read the prefix: copy the keys and values of its one row into every row",
    "first row": "only the first row has the prefix: copy its keys and values into every row",
    "restart": "the rows begin at position 0, where the prefix stands: the openings follow it, at P, P + 1, ...",
    "gap": "a place is left free between opening and section: the first token written stands at P + M",
    "same place": "the tokens written all stand at one place: each comes a position after the one before",
    "one opening": "all sections have the first one's opening: row k begins with openings[k]",
    "first state": "the first token is read off the opening's first place: what comes next is said at its last",
}
Pick = Callable[[Tensor], Tensor]


class _Book(Transformer):
    """A network of random numbers that attends sharply, float64, which keeps account of what it reads."""

    def __init__(self) -> None:
        super().__init__(Config(vocabulary=40, context=64, layers=2, width=32, heads=2, key_heads=2))
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() == 2:
                    scale = 1 if "embed" in name else (6 if "qkv" in name else 3) / weight.shape[1] ** 0.5
                    weight.copy_(scale * torch.randn(weight.shape, generator=draw))
        self.double().requires_grad_(False)
        self.forwards = self.tokens = self.of_prefix = 0

    def forward(self, tokens: Tensor, positions: Tensor, *rest: Any, **named: Any) -> Tensor:
        """As a transformer, and counts."""
        self.forwards += 1
        self.tokens += tokens.numel()
        self.of_prefix += int((positions < len(PREFIX)).sum())
        return super().forward(tokens, positions, *rest, **named)


PREFIX = torch.arange(3, 12)  # [P]
OPENINGS = torch.tensor([[20, 31], [21, 32], [22, 33], [23, 34]])  # [K, M]
LENGTHS = (6, 3, 9, 1)


def check_fill(fill: Callable[..., list[list[int]]]) -> None:
    """Four sections of 1 to 9 tokens, token by token those of one at a time; then what reading them has cost."""
    for pick in (_best, _second):
        book = _Book()
        found = [[int(token) for token in row] for row in fill(book, PREFIX, OPENINGS, LENGTHS, pick)]
        right = _one_by_one(pick)
        assert found != [[*o, *r] for o, r in zip(OPENINGS.tolist(), right, strict=True)], (
            "the openings are returned as well: only what was written is asked for"
        )
        assert pick is _best or found != _one_by_one(_best), "`pick` is ignored: it chooses the tokens, argmax or not"
        sizes = [len(row) for row in found]
        assert sizes == [*LENGTHS], f"the sections have {sizes} tokens, their plan says {[*LENGTHS]}"
        for mistake, why in FILL_MISTAKES.items():
            assert found != _filled(pick, mistake), why
        assert found == right, f"the sections:\n  yours      {found}\n  one by one {right}"
    P, (K, M), steps = len(PREFIX), OPENINGS.shape, max(LENGTHS)
    assert book.of_prefix <= P, (
        f"the prefix is read {book.of_prefix // P} times: read it in one row, and copy its keys and values"
    )
    enough = P + K * (M + steps - 1)
    assert book.tokens <= enough, (
        f"{book.tokens} tokens are read where {enough} are enough: keep a cache, and read only what is new"
    )
    assert book.forwards <= 1 + steps, (
        f"{book.forwards} forwards where {1 + steps} are enough: all sections take a step in one forward"
    )
    print(f"fill: four sections, token by token as one by one, in {1 + steps} forwards instead of {sum(LENGTHS)}")


def _best(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _second(logits: Tensor) -> Tensor:
    return logits.topk(2).indices[:, 1]


def _one_by_one(pick: Pick, siblings: bool = False) -> list[list[int]]:
    """Without a cache; with `siblings`, behind one another."""
    book, sections, before = _Book(), [], PREFIX.tolist()
    for opening, length in zip(OPENINGS.tolist(), LENGTHS, strict=True):
        text = before + opening
        for _ in range(length):
            hidden = book(torch.tensor([text]), torch.arange(len(text))[None])[:, -1]
            text = [*text, int(pick(book.logits(hidden)))]
        sections.append(text[len(text) - length :])
        before = text if siblings else before
    return sections


def _filled(pick: Pick, mistake: str = "") -> list[list[int]]:
    """Side by side, with a mistake or without."""
    if mistake == "siblings":
        return _one_by_one(pick, siblings=True)
    book, P, (K, M) = _Book(), len(PREFIX), OPENINGS.shape
    caches = [Cache(book.config, rows, 64, book.embed.weight) for rows in (1, K)]
    at = torch.arange(P)[None]
    book(PREFIX[None], at, memory=caches[0].at(at))
    if mistake != "no prefix":
        rows = slice(1) if mistake == "first row" else slice(None)
        caches[1].entries[:, rows] = caches[0].entries
    token = OPENINGS[:1].expand(K, M) if mistake == "one opening" else OPENINGS
    at = (torch.arange(M) + P * (mistake != "restart")).expand(K, M)
    written: list[Tensor] = []
    while len(written) < max(LENGTHS):
        hidden = book(token, at, memory=caches[1].at(at))[:, 0 if mistake == "first state" else -1]
        token = pick(book.logits(hidden))[:, None]
        at = at[:, -1:] + (mistake != "same place" or not written) + (mistake == "gap" and not written)
        written.append(token)
    return [row[:n] for row, n in zip(torch.cat(written, 1).tolist(), LENGTHS, strict=True)]
