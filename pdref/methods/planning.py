"""Plans while they are being written: given by hand or token by token, sized to the context, cut where they run away.

A stage begins with a plan (`plan_stage`) and ends with the token that says whether another one follows (`end_stage`);
between the two a method fills the spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pdref.methods.decoding import Requests
from pdref.text.document import Item, LengthOutOfRange, MisplacedTag, parse_plan, render_plan
from pdref.text.layout import Role, TooLong
from pdref.text.tags import DocumentError, Tag


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a runaway request is cut: plan items and plan tokens per stage, stages per document."""

    items: int = 32
    plan_tokens: int = 256
    stages: int = 8


Sized = list[tuple[Item, int]]  # plan items and their lengths in tokens


def plan_stage(
    requests: Requests,
    rows: Sequence[int],
    stage: int,
    bounds: Bounds,
    plans: Sequence[Sequence[Item] | None] | None = None,
    factor: float = 1.0,
) -> dict[int, Sized]:
    """Read what `rows` have not read and write their plans; those that keep the grammar, by request.

    `plans` gives one for each request by hand (None or empty: the model writes it); `factor` scales the lengths.
    Raises ValueError for plans that do not match the requests, TooLong for one that leaves no room.
    """
    if plans is not None and len(plans) != len(requests):
        raise ValueError(f"{len(plans)} plans for {len(requests)} prompts")
    given = {b: plans[b] if plans else None for b in rows}
    starts = {b: requests.length(b) for b in rows}
    for b in rows:
        requests.add(b, "plan", encode_plan(requests, b, given[b] or ()), Role.PLAN, stage)
    requests.read(rows)
    _write(requests, [b for b in rows if not given[b]], stage, bounds)
    return {b: plan for b in rows if (plan := sized(requests, b, starts[b], factor))}


def end_stage(requests: Requests, rows: Sequence[int], stage: int, bounds: Bounds) -> list[int]:
    """Draw and add what follows the finished stage, which `rows` have read; those in which another one begins."""
    after = zip(rows, requests.next_tokens(rows), strict=True)
    return [b for b, token in after if _go_on(requests, b, token, stage, bounds)]


def encode_plan(requests: Requests, b: int, plan: Sequence[Item]) -> list[int]:
    """Token ids of a plan given by hand. Raises TooLong if request b has no room for them."""
    ids = requests.tokenizer.encode(render_plan(plan))
    if len(ids) > requests.room(b):
        raise TooLong(f"plan {b} has {len(ids)} tokens; {requests.room(b)} of {requests.context} are left")
    return ids


def _write(requests: Requests, rows: Sequence[int], stage: int, bounds: Bounds) -> None:
    """Let the model write the plans of `rows`, each up to the <async> that ends it or to a bound."""
    starts = {b: requests.length(b) for b in rows}
    items = dict.fromkeys(rows, 0)

    def stop(b: int, token: int) -> bool:
        items[b] += token == Tag.TOPIC
        return token in (Tag.ASYNC, Tag.SYNC, Tag.EOS) or items[b] > bounds.items

    stopped = requests.write(rows, "plan", stop, bounds.plan_tokens, stage)
    for b in rows:
        end = stopped.get(b)
        if end in (Tag.SYNC, Tag.EOS):
            requests.fail(b, MisplacedTag(f"the plan of stage {stage} ends in {Tag(end).text}"))
        elif end != Tag.ASYNC:
            _keep_items(requests, b, starts[b], requests.tokens(b)[starts[b] :].count(Tag.END_TOPIC), "ran away")


def sized(requests: Requests, b: int, start: int, factor: float) -> Sized:
    """The plan that request b holds from `start` on, in tokens, cut to what fits; empty if it breaks the grammar."""
    if requests.generations[b].problem:
        return []
    try:
        plan = parse_plan(requests.tokenizer.decode(requests.tokens(b)[start:]))
    except DocumentError as error:
        requests.fail(b, error)
        return []
    room = requests.room(b) - 1  # one token is kept for what ends the stage
    fitting: Sized = []
    for item in plan:
        length = max(1, round(item.length * requests.grammar.grid * factor))
        room -= length + len(requests.opening(item)) + 1
        if room < 0:
            break
        fitting.append((item, length))
    if not fitting:
        requests.fail(b, LengthOutOfRange(f"{plan[0].topic!r} plans more than the context of {requests.context} holds"))
    elif len(fitting) < len(plan):
        _keep_items(requests, b, start, len(fitting), f"does not fit the context of {requests.context}")
    return fitting


def _keep_items(requests: Requests, b: int, start: int, count: int, why: str) -> None:
    """Cut a plan after its first `count` items and report it."""
    ends = [i for i, token in enumerate(requests.tokens(b)) if i >= start and token == Tag.END_TOPIC]
    requests.cut(b, ends[count - 1] + 1 if count else start, f"a plan {why}: cut after {count} items")


def _go_on(requests: Requests, b: int, after: int, stage: int, bounds: Bounds) -> bool:
    """Add what follows the finished stage; whether another stage begins."""
    if after == Tag.ASYNC and requests.generations[b].cuts:
        after = Tag.EOS  # the model would go on with the items that were cut
    if after == Tag.SYNC and stage + 1 < bounds.stages:
        requests.add(b, "commit", [after], Role.TAG, stage + 1)
        return True
    if after == Tag.SYNC:
        requests.generations[b].cuts += (f"the document was ended after {bounds.stages} stages",)
    elif after != Tag.EOS:
        requests.fail(b, MisplacedTag(f"stage {stage} is followed by token {after}, not by <sync/> or <eos>"))
        return False
    requests.add(b, "commit", [Tag.EOS], Role.TAG, stage)
    return False
