"""Level by level: p(x_D, ..., x_1, x_0 | c) = p(x_0 | c) prod_d prod_k p(x_d(k) | x_{d-1}, c, what else it reads).

Level 0 is an outline, written token by token. Level 1 expands each of its items, level 2 each item of level 1, and so
on; the last level is the text. A level is a stage of the document: its spans are what it writes, and where they are
not yet the text they list items ("topic 4 ; topic 12 ;"), which together are the plan of the next stage. So every
item is expanded in sight of the whole level above, all its items and not its own alone, and of the levels before
that. Within a level items are expanded as `outline` fills sections: side by side, in sequence, or over drafts. An
outline that is filled in at once is the hierarchy of depth 1, and `outline.objective` trains any depth.
Source: Plan-then-Generate, "Hierarchical Generation".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdref.methods.decoding import Draw, Requests, Speaker
from pdref.methods.generation import Generation
from pdref.methods.outline import begin, fill
from pdref.methods.planning import Bounds, Sized, encode_plan, end_stage, sized
from pdref.methods.sections import Section
from pdref.ops.impl import Impl
from pdref.text.document import Item
from pdref.text.filling import Filling
from pdref.text.layout import Role
from pdref.text.listing import read_items
from pdref.text.tags import DocumentError, Tag


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
    """Answer `prompts` level by level, until the model ends the document after one.

    Arguments as for `outline.sample`. `bounds.stages` is the most levels under level 0, `bounds.items` the most items
    of a level; where they cut, the generation says so. A level that lists no items although the model wants another
    one is a `problem`, and so is one that leaves no room for the next.
    """
    bounds = bounds or Bounds()
    requests = Requests(speaker, prompts, draw or Draw(), cached, impl)
    outlines = begin(requests, plans, bounds, filling, at_once)
    drafts: list[Section] = []
    level = 0
    while outlines:
        first = {b: requests.length(b) for b in outlines}
        drafts += fill(requests, outlines, level, filling, at_once, drafts)
        deeper = end_stage(requests, [*outlines], level, bounds)
        level += 1
        with requests.timed("plan"):
            outlines = {b: plan for b in deeper if (plan := _read_off(requests, b, first[b], level, bounds))}
            if outlines:
                requests.read([*outlines])
    return requests.finish()


def _read_off(requests: Requests, b: int, first: int, level: int, bounds: Bounds) -> Sized:
    """Give request b the items that its spans list from token `first` on as the plan of `level`; empty on failure."""
    spans: dict[int, list[int]] = {}
    for token, role, _, span in requests.builders[b].rows[first:]:
        if role == Role.CONTENT and token != Tag.PAD:
            spans.setdefault(span, []).append(token)
    start = requests.length(b)
    try:
        items = [item for ids in spans.values() for item in read_items(requests.tokenizer.decode(ids))]
        plan = encode_plan(requests, b, items[: bounds.items])
    except DocumentError as error:
        requests.fail(b, error)
        return []
    if len(items) > bounds.items:
        requests.generations[b].cuts += (f"level {level} ran away: cut after {bounds.items} items",)
    requests.add(b, "plan", plan, Role.PLAN, level)
    return sized(requests, b, start, 1.0)
