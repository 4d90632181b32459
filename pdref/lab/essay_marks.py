"""What essays came to: which sentences contradict the thesis, whether they fail together, and what a writer meant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from pdref.data.essays import VALUE_AT, WORDS, Essays
from pdref.lab.essay_writers import Values, Writer
from pdref.lab.recipe import HELD_OUT_SEED
from pdref.methods.autoregressive import next_token_nll
from pdref.text.layout import Layout, Role


def failures(source: Essays, texts: Iterable[str], theses: Iterable[Values]) -> tuple[np.ndarray, float]:
    """Which sentences contradict the thesis or are none, bool [E, T, K], and the share of those that are none."""
    wrong, malformed = [], 0
    for text, thesis in zip(texts, theses, strict=True):
        row = np.zeros(len(text.split()) // WORDS, bool)
        for violation in source.violations(text, thesis):
            row[violation.sentence] = True
            malformed += violation.kind is None
        wrong.append(row.reshape(-1, source.kinds))
    found = np.stack(wrong)
    return found, malformed / found.size


def alike(wrong: np.ndarray) -> float | None:
    """The correlation between two failures of a kind in an essay, of `wrong` [E, T, K]; None if nothing varies."""
    p = wrong.mean(0)
    apart = p * (1 - p)  # [T, K]
    pairs = (np.sqrt(apart).sum(0) ** 2 - apart.sum(0)).sum()
    return float((wrong.sum(1).var(0) - apart.sum(0)).sum() / pairs) if pairs > 1e-12 else None


class Forced(NamedTuple):
    """What teacher forcing on held-out essays shows; see `Row`."""

    eps: float
    eps_first: float
    nats: float
    source_nats: float


@torch.no_grad()
def forced(writer: Writer, count: int = 64) -> Forced:
    """Chances of stating another value than the one in sight, and nats, on essays of the writer's source."""
    source, essays = writer.source, writer.source.essays(count, HELD_OUT_SEED)
    layout = Layout.collate([writer.layout(e.thesis, e.thesis, e.text) for e in essays])
    hidden = writer.hidden(layout)
    content = layout.role == Role.CONTENT
    nats = (next_token_nll(writer.model, hidden, layout) * content).sum(1).mean().item()
    start, K = int((~content)[0].sum()), source.kinds
    at = (start + VALUE_AT + WORDS * torch.arange(len(essays[0].sentences))).unflatten(0, (-1, K))  # [T, K]
    said = layout.token[:, at]  # [E, T, K]
    thesis = torch.tensor([writer.tokenizer.encode(" ".join(e.thesis.values())) for e in essays])[:, None]  # [E, 1, K]
    follows = torch.cat([thesis, said[:, :-1]], 1) if writer.arm.name == "windowed" else thesis.expand_as(said)
    values = torch.tensor([writer.tokenizer.encode(" ".join(words)) for words in source.words.values()])  # [K, m]
    logits = writer.model.logits(hidden[:, at - 1])  # [E, T, K, V]
    chances = logits.gather(-1, values.expand(*said.shape, -1)).softmax(-1)  # [E, T, K, m], by the grammar, as written
    other = (chances * (values != follows[..., None])).sum(-1)
    exact = [source.nats(essay) for essay in essays]
    source_nats = sum(one.plan + one.content for one in exact) / count
    return Forced(other[:, 1:].mean().item(), other[:, 0].mean().item(), nats, source_nats)
