"""Outline, then fill: p(x, z | c) = p(z | c) prod_k p(x(k) | z, c, what else section k reads).

The outline z is written token by token, a topic and a length for each section. Then each section x(k) is written
token by token as well, but under a mask (`pdref.text.filling`) that says what it reads beside the prompt and the
whole outline: nothing of its siblings ("parallel"), the sections before it ("sequential"), or drafts of all of them
("drafts"), which a first parallel pass writes. Sections that read no sibling's last word are written side by side.
Training runs whole documents under the same mask, in one forward, and scores the tokens that sampling draws.
Source: Plan-then-Generate, "Outline-then-Fill".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pdref.methods.decoding import Draw, Requests, Speaker
from pdref.methods.generation import Generation
from pdref.methods.planning import Bounds, Sized, plan_stage
from pdref.methods.sections import Section, join, write
from pdref.model.transformer import Transformer
from pdref.ops.impl import Impl
from pdref.ops.multi_token_nll import multi_token_nll
from pdref.text.document import Item
from pdref.text.filling import Filling, filling_mask, require_known
from pdref.text.layout import NO_SPAN, Layout, Role, Stream
from pdref.text.tags import Tag


def drawn(layout: Layout) -> Tensor:
    """Tokens that sampling draws, [B, T] bool: the first plan and its end, all content, what ends a stage.

    The plans of later stages are read off the sections above them; openings and </async> are given.
    """
    ends = (layout.role == Role.TAG) & (layout.span == NO_SPAN)
    return (layout.role == Role.CONTENT) | ends | (layout.planned & (layout.stage == 0))


def nats(
    model: Transformer,
    layout: Layout,
    filling: Filling = "parallel",
    drafts: Layout | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Nats of each token that sampling draws, given what it reads, [B, T]; with drafts [B, T + U], theirs behind.

    `drafts` are the batch with other words in its spans: what a first pass may write of it. Raises ValueError for
    `filling` "drafts" without them or for them with another, or if they are not of the same documents.
    """
    if (drafts is not None) != (filling == "drafts"):
        raise ValueError(f"drafts are for filling 'drafts' and for no other; filling is {filling!r}")
    both, scored = layout, drawn(layout)
    if drafts is not None:
        _require_same_places(layout, drafts)
        copy = drafts.span_copy()[0]  # [B, U]
        both = Layout.concatenate([layout, copy])
        scored = torch.cat([scored, copy.role == Role.CONTENT], 1)
    hidden = model(both.token, both.position, filling_mask(both, both, filling), impl=impl)
    one_head = hidden[:, :, None]  # [B, T + U, 1, D]
    return multi_token_nll(one_head, model.unembed.weight, both.token, scored, impl)[..., 0]


def objective(
    model: Transformer,
    layout: Layout,
    filling: Filling = "parallel",
    drafts: Layout | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Mean over documents of nats per drawn token; a scalar. Arguments as for `nats`."""
    return (nats(model, layout, filling, drafts, impl).sum(1) / drawn(layout).sum(1)).mean()


def _require_same_places(layout: Layout, drafts: Layout) -> None:
    """The fields but for the words inside spans."""
    pairs = {name: (one, other) for (name, one), (_, other) in zip(layout.items(), drafts.items(), strict=True)}
    token, other = pairs.pop("token")
    if any(not torch.equal(*pair) for pair in pairs.values()) or ((token != other) & (layout.span == NO_SPAN)).any():
        raise ValueError("drafts are of the same documents: they differ from them inside spans alone")


@torch.inference_mode()
def sample(
    speaker: Speaker,
    prompts: Sequence[str],
    filling: Filling = "parallel",
    draw: Draw | None = None,
    plans: Sequence[Sequence[Item] | None] | None = None,
    bounds: Bounds | None = None,
    at_once: int | None = None,
    cached: bool = True,
    impl: Impl = "auto",
) -> list[Generation]:
    """Write an outline for each of `prompts`, then its sections.

    `plans` gives outlines by hand (None: the model writes). At most `at_once` sections of a request are written side
    by side (None: all; of no concern for "sequential"): the text is the same. A section takes the tokens that its
    item says; `bounds` cut a runaway outline, which is reported. Raises ValueError for an unknown `filling`, an
    `at_once` below 1, plans that do not match, and `impl` "triton", whose kernels do not know this mask.
    """
    requests = Requests(speaker, prompts, draw or Draw(), cached, impl)
    outlines = begin(requests, plans, bounds or Bounds(), filling, at_once)
    if outlines:
        fill(requests, outlines, 0, filling, at_once)
    for b in outlines:
        requests.add(b, "commit", [Tag.EOS], Role.TAG, 0)
    return requests.finish()


def begin(
    requests: Requests,
    plans: Sequence[Sequence[Item] | None] | None,
    bounds: Bounds,
    filling: Filling,
    at_once: int | None,
) -> dict[int, Sized]:
    """Read the prompts and write the outlines, those given by hand excepted; those that keep the grammar, by request.

    Raises ValueError for what no outline can be filled with: an unknown `filling`, an `at_once` below 1, plans that do
    not match the prompts, and TooLong for one that leaves no room.
    """
    require_known(filling)
    if at_once is not None and at_once < 1:
        raise ValueError(f"at least one section is written at once, not {at_once}")
    with requests.timed("plan"):
        return plan_stage(requests, range(len(requests)), 0, bounds, plans)


def fill(
    requests: Requests,
    outlines: dict[int, Sized],
    stage: int,
    filling: Filling,
    at_once: int | None = None,
    before: Sequence[Section] = (),
) -> list[Section]:
    """Write the sections of `outlines` and put them into their requests; returns their drafts.

    `before` are the drafts of earlier stages.
    """
    sections = [s for b, outline in outlines.items() for s in _sections(requests, b, outline, stage, filling)]
    drafts: list[Section] = []
    if filling == "drafts":
        drafts = [replace(s, stream=Stream.NOISED, content=[]) for s in sections]
        with requests.timed("draft"):
            for turn in _turns(drafts, at_once):
                _lay_out(requests, turn, masked=True)
                write(requests, turn, filling, before)
    with requests.timed("write"):
        for turn in _turns(sections, 1 if filling == "sequential" else at_once):
            _lay_out(requests, turn, masked=not drafts)
            join(requests, turn, write(requests, turn, filling, [*before, *drafts]))
    return drafts


def _sections(requests: Requests, b: int, outline: Sized, stage: int, filling: Filling) -> list[Section]:
    """The sections of an outline, each where the finished document will have it."""
    sections, start = [], requests.length(b)
    for k, (item, length) in enumerate(outline):
        past = start if filling == "sequential" else requests.length(b)
        sections.append(Section(b, stage, k, start, past, requests.opening(item), length))
        start += sections[-1].size
    return sections


def _lay_out(requests: Requests, sections: Sequence[Section], masked: bool) -> None:
    """Show what is given of sections that are about to be written; `masked`, and the room for the rest."""
    for s in sections:
        rest = [Tag.MASK] * s.length + [Tag.END_ASYNC] if masked else []
        requests.record(s.owner, "scaffold", s.start, s.opening + rest)


def _turns(sections: Sequence[Section], at_once: int | None) -> list[list[Section]]:
    """Which sections are written together: so many of each request, in order."""
    size = at_once or len(sections)
    last = max(s.span for s in sections) // size
    return [[s for s in sections if s.span // size == turn] for turn in range(last + 1)]
