"""What the answers to `planned_diffusion.ipynb` must do, checked by example.

Every check takes your function; without one it takes the library's, so one file serves students and tests.
The right answers are computed here a second time, by plain loops over tokens that owe the library nothing but
its layouts. Where an answer is wrong in a known way, the check makes the same mistake and says what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from pdref.methods import planned_diffusion
from pdref.methods.denoising import Canvas
from pdref.ops.unmask import most_confident, unmask
from pdref.text import mask
from pdref.text.document import Item, parse
from pdref.text.layout import NO_SPAN, Grammar, Layout, LayoutBuilder, Role, Stream, encode
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

GRAMMAR = Grammar(grid=1, echo=False)
WORDS = "ada oslo pet home again a cat slept in may old friends 1 2 3 4 5"
TOKENIZER = Tokenizer.words(WORDS.split())
TEXTS = (
    "ada oslo<topic>pet 3</topic><topic>home 2</topic><async>a cat slept</async><async>in oslo</async>"
    "<sync/><topic>again 2</topic><async>a cat</async><eos>",
    "ada<topic>home 1</topic><topic>pet 2</topic><async>oslo</async><async>a cat</async><eos>",
)

Rule = Callable[[Layout, Layout, mask.Siblings], Tensor]
Loss = Callable[[Tensor, Tensor, Layout, Tensor, Tensor], Tensor]
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
Scaffold = Callable[[Sequence[Item], int, int, Tokenizer, Grammar], Layout]


def documents() -> Layout:
    """Two documents [2, T]: one with two stages; one shorter, so that its row ends in padding."""
    return Layout.collate([encode(parse(text), TOKENIZER, GRAMMAR) for text in TEXTS])


# Exercise 1: who may see whom.


def check_attention_rule(rule: Rule | None = None) -> None:
    """Every pair of tokens of two documents, clean stream and noised copy, sparse and dense siblings."""
    rule = rule or mask.may_attend
    clean = documents()
    both = Layout.concatenate([clean, clean.span_copy()[0]])
    query, key = both.map(lambda f: f[:, :, None]), both.map(lambda f: f[:, None, :])
    wanted = torch.Size((both.shape[0], both.shape[1], both.shape[1]))
    for siblings in ("sparse", "dense"):
        found = rule(query, key, siblings)  # type: ignore[arg-type]
        assert isinstance(found, Tensor) and found.dtype == torch.bool, (
            "the rule answers yes or no: combine comparisons with & | ~ into a boolean tensor"
        )
        assert found.shape == wanted, (
            f"the answer has shape {list(found.shape)}, not {list(wanted)}: let the fields broadcast"
        )
        for b, q, k in torch.cartesian_prod(*map(torch.arange, wanted)).tolist():
            if both.role[b, q] == Role.PAD:
                continue  # padding asks for nothing
            right, why = _verdict(both, b, q, k, siblings)
            sees = f"{'does not see' if right else 'sees'} {_name(both, b, k)}"
            assert bool(found[b, q, k]) == right, f"{siblings}: {_name(both, b, q)} {sees}: {why}"
    print(f"attention rule: all {2 * wanted.numel():,} pairs are right")


def _verdict(layout: Layout, b: int, q: int, k: int, siblings: str) -> tuple[bool, str]:
    """Whether token q of document b sees token k, and the sentence of the rule that says so."""
    if layout.role[b, k] == Role.PAD:
        return False, "nobody sees padding; look at the key's role"
    noised_key = bool(layout.stream[b, k] == Stream.NOISED)
    past = bool(layout.position[b, k] <= layout.position[b, q])
    if layout.stream[b, q] == Stream.CLEAN:
        if noised_key:
            return (
                False,
                "a clean token never reads a noised copy, it reads finished text; look at the key's stream",
            )
        if not past:
            return False, "clean tokens are causal; compare positions"
        return (
            True,
            "a clean token sees all clean tokens up to itself, finished spans and its own place included",
        )
    same_stage = bool(layout.stage[b, k] == layout.stage[b, q])
    same_span = bool(layout.span[b, k] == layout.span[b, q])
    if noised_key and not same_stage:
        return False, "noised copies of different stages never meet; compare stages as well as span numbers"
    if noised_key and same_span:
        return (
            True,
            "a noised span is bidirectional inside itself, its tags included; positions do not matter there",
        )
    if noised_key and siblings == "sparse":
        return False, "siblings must be blind to each other; compare span numbers as well as stages"
    if noised_key:
        return True, "dense siblings form one bidirectional region per stage; leave the span numbers out"
    if same_stage and layout.span[b, k] != NO_SPAN:
        whose = "its own answer" if same_span else "a sibling that is written at the same time"
        return (
            False,
            f"the clean copy of this stage's spans is {whose}; forbid clean keys in spans of the same stage",
        )
    if not past:
        return (
            False,
            "what comes later does not exist yet; clean keys must lie in the past of a noised query too",
        )
    return True, "a span sees the prompt, all of its stage's plan and the clean text of earlier stages"


def _name(layout: Layout, b: int, i: int) -> str:
    role, stage, span = (int(field[b, i]) for field in (layout.role, layout.stage, layout.span))
    stream = "noised" if layout.stream[b, i] == Stream.NOISED else "clean"
    if role == Role.PAD:
        return "padding"
    if span != NO_SPAN:
        return f"span {span + 1} of stage {stage + 1} ({stream})"
    if role == Role.PLAN:
        return f"the plan of stage {stage + 1}"
    return "the prompt" if role == Role.PROMPT else Tag(int(layout.token[b, i])).text


# Exercise 2: the loss.


class _Logits(NamedTuple):
    """What a loss gets: logits of both streams [B, T, V], the layout, what is masked [B, T], and t [B]."""

    clean: Tensor
    noised: Tensor
    layout: Layout
    masked: Tensor
    t: Tensor


LOSS_MISTAKES: dict[str, str] = {
    "no 1/t": "the diffusion term lacks its weight 1/t: without it the sum is no bound on the likelihood",
    "1/t on the plan": "1/t scales the plan term too: it belongs to the diffusion term alone",
    "plan not shifted": "the plan's labels are not shifted: clean logits at i have read i and predict i + 1",
    "diffusion shifted": "the diffusion labels are shifted: noised logits at i predict the mask at i",
    "visible tokens": "visible content is scored: only masked tokens belong to the diffusion term",
    "all clean tokens": "the clean term scores content too: it is for `layout.planned` alone",
    "mean over T": "the sum is divided by T: |Y| counts the response, without prompt and padding",
    "mean over scored": "the sum is divided by the scored tokens: |Y| counts the whole response",
    "one mean for the batch": "all tokens share one mean: divide each document by its |Y|, then average",
    "sum over documents": "the documents are added up: the expectation over Y is their mean",
}


def check_loss(loss: Loss | None = None) -> None:
    """The loss of random logits, two documents, against the formula token by token."""
    loss = loss or _library_loss
    case = _logits()
    found = loss(*case)
    assert isinstance(found, Tensor) and found.dim() == 0, "the loss is one number: a tensor without dimensions"
    assert found.requires_grad, "no gradient reaches the logits: keep to tensor operations, without .item() or .data"
    mistakes = {why: _formula(case, name) for name, why in LOSS_MISTAKES.items()}
    _teach(found.item(), _formula(case), mistakes, "the loss")
    gradients = torch.autograd.grad(found, [case.clean, case.noised])
    assert all(g.isfinite().all() for g in gradients), "a gradient is not finite"
    print("loss: the formula's value, token by token, and finite gradients")


def _logits() -> _Logits:
    layout = documents()
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0.4, 0.8])
    masked = (layout.role == Role.CONTENT) & (torch.rand(layout.shape, generator=generator) < t[:, None])
    shape = (*layout.shape, len(TOKENIZER))
    clean, noised = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return _Logits(clean.requires_grad_(), noised.requires_grad_(), layout, masked, t)


def _formula(case: _Logits, mistake: str = "") -> float:
    """1/|Y| sum_i [ 1(y_i in Z) CE + 1/t 1(y_i in X) CE ], averaged over documents; or with a mistake."""
    layout, sums, sizes = case.layout, [], []
    for b in range(layout.shape[0]):
        t = float(case.t[b])
        response = [i for i in range(layout.shape[1]) if layout.role[b, i] not in (Role.PROMPT, Role.PAD)]
        total, scored = 0.0, 0
        for i in response:
            if layout.planned[b, i] or mistake == "all clean tokens":
                nats = _nats(case.clean[b, i if mistake == "plan not shifted" else i - 1], layout.token[b, i])
                total += nats / t if mistake == "1/t on the plan" else nats
                scored += 1
            content = layout.role[b, i] == Role.CONTENT
            if case.masked[b, i] or (content and mistake == "visible tokens"):
                nats = _nats(case.noised[b, i - 1 if mistake == "diffusion shifted" else i], layout.token[b, i])
                total += nats if mistake == "no 1/t" else nats / t
                scored += 1
        sums.append(total)
        sizes.append({"mean over T": layout.shape[1], "mean over scored": scored}.get(mistake, len(response)))
    if mistake == "one mean for the batch":
        return sum(sums) / sum(sizes)
    each = [total / size for total, size in zip(sums, sizes, strict=True)]
    return sum(each) / (1 if mistake == "sum over documents" else len(each))


def _nats(scores: Tensor, target: Tensor) -> float:
    values = scores.tolist()
    return math.log(sum(math.exp(v) for v in values)) - values[int(target)]


def _library_loss(clean: Tensor, noised: Tensor, layout: Layout, masked: Tensor, t: Tensor) -> Tensor:
    """`planned_diffusion.terms` on a model whose hidden states are the given logits."""

    def model(*_: object, **__: object) -> Tensor:
        index = layout.span_copy()[1]
        return torch.cat([clean, noised.gather(1, index[:, :, None].expand(-1, -1, noised.shape[2]))], 1)

    model.unembed = SimpleNamespace(weight=torch.eye(clean.shape[2], dtype=clean.dtype))  # type: ignore[attr-defined]
    same_noise = torch.Generator().manual_seed(0)
    times = t[:, None].expand(layout.shape)
    return planned_diffusion.terms(model, layout, same_noise, times).loss()  # type: ignore[arg-type]


# Exercise 3: one step of unmasking.

STEP_MISTAKES: dict[str, str] = {
    "one too many": "a span reveals one token more than its quota: ranks count from 0, so compare with <",
    "one too few": "a span reveals one token less than its quota: ranks count from 0, so compare with <",
    "least confident": "the least confident tokens come first: low entropy is high confidence",
    "left to right": "the quota is taken from left to right: the most confident masks come first",
    "probability": "the order is that of the best token's probability: this step goes by entropy",
    "everything": "all masks are revealed: each span reveals its quota",
    "visible compete": "visible tokens use up the quota: only masks compete, so rank the others last",
    "visible overwritten": "visible tokens are overwritten: change only masks that are revealed now",
    "writes <mask>": "<mask> is written where it is likely: give it no probability before anything else",
    "one quota": "all spans share one ranking: every row ranks its own masks and has its own quota",
}


def check_unmask_step(step: Step | None = None) -> None:
    """Sixteen batches of three spans, among them a finished one and one in its last step."""
    step = step or _library_step
    for seed in range(16):
        logits, tokens, quota = _spans(seed)
        before = tokens.clone()
        found = step(logits, tokens, quota)
        assert torch.equal(tokens, before), "the tokens given were changed in place: work on a clone"
        assert found.shape == tokens.shape and found.dtype == torch.int64, (
            f"the answer is {found.dtype} {list(found.shape)}: tokens [K, L], int64, are asked for"
        )
        right = _step(logits, tokens, quota)
        mistakes = {why: _step(logits, tokens, quota, name) for name, why in STEP_MISTAKES.items()}
        _teach(found.tolist(), right, mistakes, "the tokens after one step")
    print("unmasking step: the most confident masks are revealed, each span its quota")


def _spans(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [3, 6, V], tokens [3, 6] and quotas [3]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 6, len(TOKENIZER), generator=generator)
    visible = len(Tag) + torch.randint(len(TOKENIZER) - len(Tag), (3, 6), generator=generator)
    hidden = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]).bool()
    logits[hidden] -= 4 * torch.nn.functional.one_hot(torch.tensor(Tag.MASK), len(TOKENIZER))
    logits[0, 4, Tag.MASK] = 9.0  # an untrained model may well like <mask>
    logits[~hidden] *= 4  # it is sure of what it sees
    return logits, visible.masked_fill(hidden, Tag.MASK), torch.tensor([2, 3, 0])


def _step(logits: Tensor, tokens: Tensor, quota: Tensor, mistake: str = "") -> list[list[int]]:
    """The step by loops over spans and places, with a mistake or without."""
    result = tokens.tolist()
    offered: list[tuple[float, int, int, int]] = []
    for k, row in enumerate(tokens.tolist()):
        places = []
        for i, token in enumerate(row):
            scores = {v: s for v, s in enumerate(logits[k, i].tolist()) if v != Tag.MASK or mistake == "writes <mask>"}
            if token != Tag.MASK and mistake not in ("visible compete", "visible overwritten"):
                continue
            total = sum(math.exp(s) for s in scores.values())
            chances = {v: math.exp(s) / total for v, s in scores.items()}
            entropy = -sum(p * math.log(p) for p in chances.values() if p)
            best = max(chances, key=lambda v: chances[v])
            rank = {"least confident": -entropy, "left to right": i, "probability": -chances[best]}
            places.append((rank.get(mistake, entropy), k, i, best))
        take = int(quota[k]) + {"one too many": 1, "one too few": -1, "everything": 99}.get(mistake, 0)
        offered += places if mistake == "one quota" else sorted(places)[: max(0, take)]
    if mistake == "one quota":
        offered = sorted(offered)[: int(quota.sum())]
    for _, k, i, best in offered:
        if result[k][i] == Tag.MASK or mistake == "visible overwritten":
            result[k][i] = best
    return result


def _library_step(logits: Tensor, tokens: Tensor, quota: Tensor) -> Tensor:
    """`unmask` and `most_confident`, as `denoising.denoise` uses them."""
    masked = tokens == Tag.MASK
    nobody = torch.zeros(int(masked.sum()), dtype=torch.int64)  # seeds and places: temperature 0 draws nothing
    drawn = unmask(logits[masked], torch.eye(logits.shape[2]), nobody, nobody, forbidden=torch.tensor([Tag.MASK]))
    confidence = torch.zeros(tokens.shape).masked_scatter(masked, -drawn.entropy)
    chosen = most_confident(confidence, masked, quota)
    return torch.where(chosen, tokens.masked_scatter(masked, drawn.token), tokens)


# Exercise 4: the scaffold.

SCAFFOLD_MISTAKES: dict[str, str] = {
    "grid ignored": "a span has too few masks: a plan counts grid cells, so a span has length * grid",
    "no echo": "the topic is not repeated: with `grammar.echo`, it follows <async>",
    "echo always": "the topic is repeated although `grammar.echo` is False",
    "echo with length": "the echo repeats the length too: it is the item's topic alone",
    "echo masked": "the echo is masked: it is given, as the tags are",
    "not closed": "</async> is missing: both tags of a span are given",
    "tags outside": "the tags belong to no span: <async>, echo and </async> carry the span's number too",
    "echo is content": "the echo has the role CONTENT: what a span is given is TAG, never scored",
    "masks are tags": "the masks have the role TAG: what is to be written is CONTENT",
    "spans from one": "spans are counted from 1: the first span of a stage is 0",
    "stage ignored": "the stage is always 0: the scaffold belongs to the stage that planned it",
    "positions from 0": "positions begin at 0: the scaffold goes on where the text so far ends, at `start`",
    "positions restart": "every span begins at `start`: span 2 stands where span 1 ends, as in any text",
    "shared clock": "positions do not count the given tokens: they run on across tags and echo",
    "clean stream": "the scaffold is in the CLEAN stream: it is NOISED until its spans are finished",
}


def check_scaffold(scaffold: Scaffold | None = None) -> None:
    """Plans of one and three items, with and without echo, on grids of 1 and 3, in both stages."""
    scaffold = scaffold or _library_scaffold
    plans = [(Item("pet", 1),), (Item("old friends", 2), Item("home", 1), Item("a cat", 3))]
    for plan in plans:
        for stage, start, grammar in (
            (1, 17, Grammar(3, True)),
            (0, 5, Grammar(1, False)),
            (1, 40, Grammar(2, True)),
        ):
            found = scaffold(plan, start, stage, TOKENIZER, grammar)
            assert isinstance(found, Layout), "the scaffold is a Layout: see what `Layout(...)` takes"
            right = _scaffold(plan, start, stage, grammar)
            mistakes = {why: _scaffold(plan, start, stage, grammar, name) for name, why in SCAFFOLD_MISTAKES.items()}
            got = {name: field.tolist() for name, field in found.items()}
            assert found.token.dim() == 2 and found.shape[0] == 1, (
                f"fields have shape {list(found.shape)}: one row, [1, U], is asked for"
            )
            _teach(got, right, mistakes, f"the scaffold of {', '.join(map(str, plan))}")
    print("scaffold: every token has its role, stage, span, position and stream")


def _scaffold(
    plan: Sequence[Item], start: int, stage: int, grammar: Grammar, mistake: str = ""
) -> dict[str, list[list[int]]]:
    """The fields of a scaffold by loops over items, with a mistake or without."""
    rows: list[tuple[int, ...]] = []
    first = 0 if mistake == "positions from 0" else start
    for k, item in enumerate(plan):
        words = TOKENIZER.encode(str(item) if mistake == "echo with length" else item.topic)
        echo = words if (grammar.echo and mistake != "no echo") or mistake == "echo always" else []
        cells = item.length * (1 if mistake == "grid ignored" else grammar.grid)
        pieces = [
            *((token, Role.TAG) for token in [Tag.ASYNC]),
            *((Tag.MASK, Role.CONTENT) if mistake == "echo masked" else (token, Role.TAG) for token in echo),
            *((Tag.MASK, Role.TAG if mistake == "masks are tags" else Role.CONTENT) for _ in range(cells)),
            *((token, Role.TAG) for token in ([] if mistake == "not closed" else [Tag.END_ASYNC])),
        ]
        for offset, (token, role) in enumerate(pieces):
            if mistake == "echo is content" and role == Role.TAG and token not in (Tag.ASYNC, Tag.END_ASYNC):
                role = Role.CONTENT
            span = NO_SPAN if mistake == "tags outside" and role == Role.TAG else k + (mistake == "spans from one")
            at = {"positions restart": first + offset, "shared clock": first + k * cells + offset}
            stream = Stream.CLEAN if mistake == "clean stream" else Stream.NOISED
            fields = token, role, 0 if mistake == "stage ignored" else stage, span
            rows.append((*map(int, fields), at.get(mistake, first + len(rows)), int(stream)))
    names = ("token", "role", "stage", "span", "position", "stream")
    return {name: [list(column)] for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _library_scaffold(plan: Sequence[Item], start: int, stage: int, tokenizer: Tokenizer, grammar: Grammar) -> Layout:
    """`LayoutBuilder` and `Canvas`, as `planned_diffusion.sample` uses them; all spans in one row."""
    spans, starts = [], []
    for k, item in enumerate(plan):
        builder = LayoutBuilder(tokenizer, grammar)
        builder.open_span(item, stage, k)
        builder.add([Tag.MASK] * (item.length * grammar.grid), Role.CONTENT, stage, k)
        builder.close_span(stage, k)
        spans.append(builder.build())
        starts.append(start)
        start += len(builder.rows)
    canvas = Canvas.of(spans, [0] * len(spans), starts).layout  # [K, L]
    rows = [canvas.map(lambda f, k=k, n=span.shape[1]: f[k : k + 1, :n]) for k, span in enumerate(spans)]
    return Layout.concatenate(rows)


# How a check answers.


def _teach(found: object, right: object, mistakes: Mapping[str, object], what: str) -> None:
    """Pass if `found` is `right`; else name the known mistake that gives `found`, or show what differs."""
    if _same(found, right):
        return
    for why, wrong in mistakes.items():
        assert not _same(found, wrong), why
    if isinstance(found, dict) and isinstance(right, dict):
        name = next(name for name in right if found[name] != right[name])
        what, found, right = f"{what}, field {name}", found[name], right[name]
    raise AssertionError(f"{what}:\n  yours {found}\n  right {right}")


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5)
    return a == b
