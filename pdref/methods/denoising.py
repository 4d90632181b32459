"""Denoising of many spans side by side: how many tokens a step reveals, which ones, and the loop.

A span is a row of masks that one request owns; a whole response is a span too. Rows are evaluated together, whichever
requests they belong to, and leave the batch when they are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pdref.methods.decoding import Requests
from pdref.methods.generation import Event
from pdref.ops.impl import Impl
from pdref.ops.unmask import Drawn, most_confident, unmask
from pdref.ops.unmask.counters import uniform
from pdref.text.layout import Layout, Role, Stream
from pdref.text.mask import Siblings, Sight
from pdref.text.tags import Tag

Order = Literal["entropy", "confidence", "random"]
ThresholdMeaning = Literal["defer", "reveal"]


@dataclass(frozen=True, slots=True)
class Unmasking:
    """How masks are revealed.

    `step_ratio` r in (0, 1]: S = round(r max_k l_k) steps; at r = 1 a span reveals one token a step and is done at
    step l_k, below 1 all spans of a request finish together. `order`: most confident first by entropy, by the
    probability of the drawn token, or at random; above temperature 0, "confidence" reveals where a likely token
    happened to be drawn, so it does not sample the model's own distribution even at r = 1, as the others do.
    `threshold`, compared with that probability: "defer" keeps tokens below it masked beyond their turn (the released
    code; the last step reveals all), "reveal" ignores the quota and reveals every token above it, at least one per
    span and step (Fast-dLLM). Raises ValueError.
    """

    step_ratio: float = 1.0
    order: Order = "entropy"
    threshold: float | None = None
    threshold_meaning: ThresholdMeaning = "defer"

    def __post_init__(self) -> None:
        if not 0 < self.step_ratio <= 1:
            raise ValueError(f"step ratio is in (0, 1], not {self.step_ratio}")
        if self.order not in ("entropy", "confidence", "random"):
            raise ValueError(f"order is 'entropy', 'confidence' or 'random', not {self.order!r}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a probability, not {self.threshold}")
        if self.threshold_meaning not in ("defer", "reveal"):
            raise ValueError(f"a threshold may 'defer' or 'reveal', not {self.threshold_meaning!r}")


@dataclass(frozen=True, slots=True)
class Canvas:
    """K spans to denoise, right-padded to L tokens: their `layout` [K, L], NOISED, and whose they are, [K]."""

    layout: Layout
    request: Tensor

    @classmethod
    def of(cls, spans: Sequence[Layout], request: Sequence[int], starts: Sequence[int]) -> Canvas:
        """Collect spans of one row each; span k begins at position `starts[k]` of request `request[k]`."""
        layout = Layout.collate(spans)
        at = layout.position + torch.tensor(starts, device="cpu")[:, None]
        layout = replace(
            layout,
            position=at * layout.real,  # fillers stay in the context
            stream=torch.full_like(layout.stream, int(Stream.NOISED)),
        )
        return cls(layout, torch.tensor(request, device="cpu"))

    def to(self, device: torch.device) -> Canvas:
        """The same spans on another device."""
        return Canvas(self.layout.map(lambda field: field.to(device)), self.request.to(device))


def quotas(lengths: Tensor, owner: Tensor, step_ratio: float) -> Tensor:
    """How many tokens each span reveals at each step, [K, S]; a row sums to the span's length.

    `lengths` [K] are the spans' tokens, `owner` [K] their requests.
    """
    longest = lengths.new_zeros(int(owner.max()) + 1).scatter_reduce(0, owner, lengths, "amax")
    steps = (step_ratio * longest).round().long().clamp_min(1)[owner]  # [K] steps of the span's request
    at = torch.arange(int(steps.max()) + 1, device=lengths.device)
    if step_ratio == 1:
        done = torch.minimum(at, lengths[:, None])  # [K, S + 1] tokens revealed before each step
    else:
        done = torch.minimum(at, steps[:, None]) * lengths[:, None] // steps[:, None]
    return done.diff(dim=1)


@torch.inference_mode()
def denoise(
    requests: Requests,
    canvas: Canvas,
    unmasking: Unmasking,
    siblings: Siblings = "sparse",
    forbidden: Sequence[int] = (Tag.MASK,),
) -> Tensor:
    """Reveal every <mask> of `canvas`; returns tokens [K, L]. Counts and records each step in `requests`.

    `forbidden` tokens are never written; <mask> must be among them.
    """
    canvas = canvas.to(requests.device)
    tokens = canvas.layout.token.clone()  # [K, L]
    schedule = quotas((tokens == Tag.MASK).sum(1), canvas.request, unmasking.step_ratio)  # [K, S]
    exhausted = schedule.cumsum(1) == schedule.sum(1, keepdim=True)  # [K, S] the last step of each span, and after
    never = torch.tensor([int(tag) for tag in forbidden], device=tokens.device)
    evaluate = _evaluator(requests, canvas, siblings)
    step = 0
    while (open_rows := (tokens == Tag.MASK).any(1).nonzero()[:, 0]).numel():
        hidden = evaluate(open_rows, tokens)  # [K', L, D]
        if requests.shifted:
            hidden = hidden.roll(1, dims=1)  # a span begins with its given <async>, so nothing wraps into a mask
        now = tokens[open_rows]  # [K', L]
        masked = now == Tag.MASK
        positions = canvas.layout.position[open_rows][masked]  # [N]
        seeds = requests.seeds[canvas.request[open_rows]].repeat_interleave(masked.sum(1))  # [N]
        drawn = unmask(
            hidden[masked],
            requests.model.unembed.weight,
            seeds,
            positions,
            step,
            requests.draw.temperature,
            requests.draw.top_p,
            never,
            requests.impl,
        )
        confidence, probability = (
            torch.zeros(masked.shape, dtype=x.dtype, device=x.device).masked_scatter(masked, x)
            for x in (_confidence(unmasking.order, drawn, seeds, positions, step), drawn.probability)
        )
        at = min(step, schedule.shape[1] - 1)
        turn = schedule[open_rows, at], exhausted[open_rows, at]
        chosen = reveal(unmasking, confidence, probability, masked, *turn, requests.impl)
        now = torch.where(chosen, now.masked_scatter(masked, drawn.token), now)
        tokens[open_rows] = now
        _record(requests, canvas, open_rows, chosen, now, siblings)
        step += 1
    return tokens


def reveal(
    unmasking: Unmasking,
    confidence: Tensor,
    probability: Tensor,
    masked: Tensor,
    quota: Tensor,
    last: Tensor,
    impl: Impl = "auto",
) -> Tensor:
    """Which `masked` positions [K, L] to reveal, given each span's `quota` [K] and whether this is its `last` step."""
    if unmasking.threshold is None:
        return most_confident(confidence, masked, quota, impl)
    sure = masked & (probability >= unmasking.threshold)
    if unmasking.threshold_meaning == "reveal":
        return sure | most_confident(confidence, masked, torch.ones_like(quota), impl)
    in_turn = most_confident(confidence, masked, quota, impl) & sure
    return in_turn | most_confident(confidence, masked, quota.clamp_max(1), impl) | (masked & last[:, None])


def _confidence(order: Order, drawn: Drawn, seeds: Tensor, positions: Tensor, step: int) -> Tensor:
    if order == "entropy":
        return -drawn.entropy
    if order == "confidence":
        return drawn.probability
    return uniform(seeds, positions, step, -1)  # a lane that no token's noise uses


def _evaluator(requests: Requests, canvas: Canvas, siblings: Siblings) -> Callable[[Tensor, Tensor], Tensor]:
    """A function from open rows [K'] and all tokens [K, L] to the hidden states [K', L, D] of those rows."""
    model, layout, owner = requests.model, canvas.layout, canvas.request
    starts = torch.tensor([requests.length(b) for b in owner.tolist()], device=layout.token.device)  # [K]
    if requests.cache is not None and siblings == "sparse":
        prefix = requests.cache.prefix(owner, starts, layout.real)

        def rows_alone(rows: Tensor, tokens: Tensor) -> Tensor:
            memory = prefix if len(rows) == len(tokens) else prefix.select(rows)
            return model(tokens[rows], layout.position[rows], memory=memory, impl=requests.impl)

        return rows_alone

    # Rows of one request side by side, under the rule of `pdref.text.mask`.
    owners = owner.unique()
    members = [(owner == b).nonzero()[:, 0] for b in owners]
    group = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)  # [Q, M]
    together = layout.map(lambda field: field[group].flatten(1))  # [Q, M L]
    together = replace(together, role=together.role.where((group >= 0).repeat_interleave(layout.shape[1], 1), Role.PAD))
    past = Layout.collate([requests.builders[b].build() for b in owners.tolist()])  # [Q, P]
    past = past.map(lambda field: field.to(starts.device))
    lengths = torch.stack([starts[m[0]] for m in members])  # [Q]
    memory = requests.cache and requests.cache.prefix(owners, lengths, together.real)
    query = together if memory else Layout.concatenate([past, together])
    mask = Sight.of(query, Layout.concatenate([past, together]), siblings)

    def rows_together(rows: Tensor, tokens: Tensor) -> Tensor:
        fresh = tokens[group].flatten(1)  # [Q, M L]
        ids = fresh if memory else torch.cat([past.token, fresh], 1)
        hidden = model(ids, query.position, mask, memory, requests.impl)[:, -fresh.shape[1] :]
        hidden = hidden.unflatten(1, (group.shape[1], -1))  # [Q, M, L, D]
        return hidden[group >= 0][torch.cat(members).argsort()][rows]

    return rows_together


def _record(
    requests: Requests, canvas: Canvas, rows: Tensor, chosen: Tensor, tokens: Tensor, siblings: Siblings
) -> None:
    """Count the step and add it to the history of every request that took part."""
    owners = canvas.request[rows].tolist()
    where, column = chosen.nonzero(as_tuple=True)
    found: dict[int, list[tuple[int, int]]] = {b: [] for b in owners}
    positions = canvas.layout.position[rows][where, column].tolist()
    for row, position, token in zip(where.tolist(), positions, tokens[where, column].tolist(), strict=True):
        found[owners[row]].append((position, token))
    for b, pairs in found.items():
        requests.count(b, owners.count(b) if siblings == "sparse" else 1)
        if pairs:
            at, ids = zip(*sorted(pairs), strict=True)
            requests.generations[b].history.append(Event("denoise", at, ids))
