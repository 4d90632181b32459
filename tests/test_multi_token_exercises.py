"""The checks of the third exercise set: right answers in another form pass, and wrong ones are told why.

Each answer is written once with a switch for every mistake, so that the frame of the mistakes is itself tested.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from operator import eq

import pytest
import torch
from torch import Tensor, nn

from laws.cells import ROOT, module

sys.path.append(str(ROOT / "exercises"))  # its files import one another
checks = module(ROOT / "exercises" / "checks_multi_token.py")
checks_drafts = sys.modules["checks_drafts"]
checks_sums = sys.modules["checks_sums"]


def _nll(hidden: Tensor, words: Tensor, tokens: Tensor, real: Tensor, first: int = 1, bug: str = "") -> Tensor:
    """By gathering: the place each head reads, clamped into the row, and a mask of what counts."""
    T, n = hidden.shape[1:3]
    place, offset = torch.arange(T)[:, None], first + torch.arange(n)[None]
    offset = {"no shift": 0 * offset, "one shift": 1 + 0 * offset, "near": offset - 1, "far": offset + 1}.get(
        bug, 1 + torch.arange(n)[None] if bug == "first" else offset
    )
    source = place - offset  # [T, n]
    h = hidden[:, source % T if bug == "roll" else source.clamp(min=0), torch.arange(n)]  # [B, T, n, D]
    scores = h @ words.T
    log_p = scores if bug == "scores" else scores.log_softmax(-1)
    nats = -log_p.gather(-1, tokens[:, :, None, None].expand(-1, -1, n, 1))[..., 0]
    judged = real[:, source.clamp(min=0)] if bug == "padding by source" else real[..., None]
    counts = (judged | (bug == "padding")) & ((source >= 0) | (bug == "roll"))
    nats = torch.where(counts, nats, 0)
    if bug == "by source":
        pairs = zip(nats.unbind(-1), offset[0].tolist(), strict=True)
        nats = torch.stack([torch.cat([head[:, k:], 0 * head[:, : min(k, T)]], 1) for head, k in pairs], -1)
    return {"sign": -nats, "mean": nats.mean(), "twice": 2 * nats}.get(bug, nats)


def _by_heads(
    z: Tensor, heads: Sequence[nn.Module], words: Tensor, tokens: Tensor, real: Tensor, bug: str = ""
) -> Tensor:
    """With one gradient of the trunk added up by hand."""
    at_trunk, losses = torch.zeros_like(z), []
    copy = z if bug in ("joint", "through the trunk") else z.detach().requires_grad_()
    for k, head in enumerate(heads, 1):
        nats = _nll(head(copy)[:, :, None], words, tokens, real, 1 if bug == "next token" else k)
        loss = nats.sum() / {"own means": real[:, k:].sum(), "sum": 1}.get(bug, real.sum())
        losses.append(loss / (len(heads) if bug == "mean of heads" else 1))
        if bug != "joint":
            losses[-1].backward(retain_graph=bug in ("through the trunk", "retained"))
        if copy is not z and (bug != "first head" or k == 1):
            at_trunk = copy.grad if bug == "last head" else at_trunk + copy.grad
            copy.grad = None
        if bug == "first head":
            copy = z.detach()
    total = sum(losses[1:], losses[0])
    if bug == "joint":
        total.backward()
    elif bug not in ("no trunk", "through the trunk"):
        z.backward(2 * at_trunk if bug == "twice" else at_trunk)
    return total if bug == "with graph" else total.detach() + (bug == "loss")


def _verify(drafts: Tensor, best: Tensor, bug: str = "") -> tuple[Tensor, ...]:
    rows, following = [], []
    for given, said in zip(drafts.tolist(), best.tolist(), strict=True):
        agrees = list(map(eq, given, said[1:] if bug == "misaligned" else said))
        n = sum(agrees) if bug == "every agreement" else len(list(takewhile(bool, agrees)))
        n = 0 if bug == "all or none" and n < len(given) else n
        following.append(said[{"first": 0, "last": -1}.get(bug, n)])
        if bug == "fallen draft" and n < len(given):
            following[-1] = given[n]
        rows.append(n + (bug == "one more"))
    accepted = torch.tensor(rows, dtype=torch.float if bug == "floats" else torch.int64)
    return (accepted,) if bug == "short" else (accepted, torch.tensor(following))


def _generate(best: Callable, propose: Callable, prompt: list[int], length: int, bug: str = "") -> list[int]:  # type: ignore[type-arg]
    text, end = (prompt if bug == "in place" else prompt[:]), len(prompt) + length
    start = len(prompt)
    while len(text) < end:
        drafts = [] if bug == "no drafts" else propose(text)
        said = best(text + drafts)
        if bug == "reads twice":
            best(text)
        if bug != "from the start":
            said = said[len(text) - 1 :]
        n = len(drafts) if bug == "unchecked" else len(list(takewhile(bool, map(eq, drafts, said))))
        text += drafts[:n]
        if not (bug == "never its own" or (bug == "no correction" and drafts and n == len(drafts))):
            text.append(said[n] + (bug == "another" and len(text) >= start + 3))
    return {"too long": text, "no prompt": text[start:end]}.get(bug, text[:end])


def _speculative(p: Tensor, q: Tensor, draft: Tensor, generator: torch.Generator, bug: str = "") -> tuple[Tensor, ...]:
    """By inverting the cumulative sums of what is left."""
    rows = torch.arange(len(draft))
    ratio = p[rows, draft] / q[rows, draft]
    u = torch.rand(1 if bug == "one number" else len(draft), generator=generator, dtype=p.dtype)
    accepted = {
        "always": u < 2,
        "never": u > 2,
        "accept by p": u < p[rows, draft],
        "upside down": u * ratio < 1,
        "threshold": ratio >= 1,
        "half": ratio > 0.5,
        "timid": u < 0.8 * ratio,
    }.get(bug, u < ratio)
    over = (p - q).clamp(min=0)
    only = torch.nn.functional.one_hot(draft, p.shape[1])
    left = {
        "left of p": p,
        "left of q": q,
        "absolute": (p - q).abs(),
        "wrong way": (q - p).clamp(min=0),
        "best": (over == over.amax(1, keepdim=True)).double(),
        "uniform": torch.ones_like(p),
        "p without the draft": p * (1 - only),
        "squared": over**2,
    }.get(bug, over)
    sums = left.cumsum(1)
    sums = torch.where(sums[:, -1:] > 0, sums, p.cumsum(1))
    spot = torch.rand(len(draft), 1, generator=generator, dtype=p.dtype) * sums[:, -1:]
    replacement = (sums <= spot).sum(1).clamp(max=p.shape[1] - 1)
    token = torch.where(accepted, draft, replacement)
    if bug == "lies":
        accepted = accepted | True
    token = token.float() if bug == "floats" else token
    return (token,) if bug == "short" else (token, accepted)


RIGHT_ANSWERS: dict[str, Callable[..., object]] = {
    "multi_token_nll": _nll,
    "head_by_head": _by_heads,
    "verify": _verify,
    "generate": _generate,
    "speculative": _speculative,
}
WRONG_ANSWERS: dict[str, dict[str, str]] = {
    "multi_token_nll": {
        "no shift": "nothing is shifted",
        "one shift": "every head is asked for the next token",
        "near": "one place too near",
        "far": "one place too far",
        "first": "`first` is ignored",
        "roll": "the tail wraps round",
        "padding": "padding is scored",
        "padding by source": "whether its target is real",
        "by source": "at the place of the token that is predicted",
        "scores": "scores, not probabilities",
        "sign": "sign is wrong",
        "mean": "one number per token and head",
        "twice": "nats of three heads",
    },
    "head_by_head": {
        "no trunk": "the trunk has no gradient",
        "last head": "only the last head",
        "first head": "only the first head",
        "next token": "pass first=k",
        "mean of heads": "averaged: their losses are summed",
        "own means": "averaged over the tokens it reaches",
        "sum": "not divided by the number of real tokens",
        "twice": "gradient of the trunk",
        "loss": "the loss that is returned:",
        "with graph": "detach it",
        "through the trunk": "ran backward 4 times",
        "joint": "4 heads kept .* before the next goes forward",
        "retained": "retain no graph",
    },
    "verify": {
        "every agreement": "every agreement is counted",
        "misaligned": "compared with the wrong choices",
        "all or none": "costs all of them",
        "one more": "counted as a draft",
        "first": r"always best\[:, 0\]",
        "last": "always the last choice",
        "fallen draft": "the draft that fell follows",
        "floats": "both are int64",
        "short": "two tensors",
    },
    "generate": {
        "unchecked": "taken unread",
        "from the start": "choices at the start",
        "no correction": "25 forwards for 40 tokens where 24 are enough.* own token",
        "never its own": "no end in sight",
        "too long": "cut them off",
        "no prompt": "the prompt is missing",
        "in place": "changed in place",
        "no drafts": "40 forwards for 40 tokens where 24 are enough",
        "reads twice": "are enough",
        "another": "40 tokens:",
    },
    "speculative": {
        "always": "every draft stays",
        "never": "no draft ever stays",
        "accept by p": r"divide by q\(d\)",
        "upside down": "ratio is upside down",
        "threshold": "all stay or all fall",
        "half": "all stay or all fall",
        "one number": "each row with its own",
        "timid": "how often a draft of each token stays",
        "left of p": "drawn from p: what both like",
        "left of q": "drawn from q: what is missing",
        "absolute": r"drawn from \|p - q\|",
        "wrong way": "the other way round",
        "best": "always the best token",
        "uniform": "uniform over the tokens",
        "p without the draft": "from p without the draft",
        "squared": "what replaces a draft that fell",
        "lies": "another token returned",
        "floats": "tokens are int64",
        "short": "two tensors",
    },
}


@pytest.mark.parametrize("name", RIGHT_ANSWERS)
def test_right_answers_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(checks, f"check_{name}")(RIGHT_ANSWERS[name])
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["multi_token_nll", "head_by_head", "verify", "speculative"])
def test_the_library_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(checks, f"check_{name}")()
    assert capsys.readouterr().out


@pytest.mark.parametrize(("name", "bug"), [(name, bug) for name, bugs in WRONG_ANSWERS.items() for bug in bugs])
def test_wrong_answers_are_told_why(name: str, bug: str) -> None:
    with pytest.raises(AssertionError, match=WRONG_ANSWERS[name][bug]):
        getattr(checks, f"check_{name}")(partial(RIGHT_ANSWERS[name], bug=bug))


@pytest.mark.parametrize("seed", range(20))
def test_luck_fails_no_right_rule(seed: int) -> None:
    """The check draws with one seed; with others, as another right answer would use them up, it passes as well."""
    checks.check_speculative(_speculative, seed)


def test_every_known_mistake_shows() -> None:
    """Each mistake that a check can name gives another answer than the right one and than the other mistakes."""
    case = checks._case(7, 3)
    drafts, best = (
        torch.tensor([[5, 1, 3], [5, 6, 2], [5, 6, 7]]),
        torch.tensor([[5, 6, 3, 4], [5, 6, 7, 8], [5, 6, 7, 8]]),
    )
    lists = [
        [checks._nats(case, name) for name in ["", *checks.NLL_MISTAKES] if name != "first"],
        [checks._nats(checks._case(7, 2, 3), name) for name in ["", "first"]],
        [checks._joint(checks.World(), name)[1:] for name in ["", *checks.BACKWARD_MISTAKES]],
        [checks_drafts._verified(drafts.numpy(), best.numpy(), name) for name in ["", *checks_drafts.VERIFY_MISTAKES]],
        [torch.tensor(checks_drafts._generated(40, n)[0]) for n in ("", "unchecked", "from the start")],
        *(
            [rule(*pair, name) for name in ["", *names]]
            for rule, names in (
                (checks_drafts._accept, checks_drafts.ACCEPT_MISTAKES),
                (checks_drafts._left, checks_drafts.LEFT_MISTAKES.keys() - {"p without the draft"}),
            )
            for pair in [[torch.tensor(side).numpy() for side in checks_drafts.PAIRS["p and q overlap"]]]
        ),
    ]
    for answers in lists:
        assert all(not checks_sums.same(a, b) for i, a in enumerate(answers) for b in answers[:i])


def test_what_graphs_keep_is_counted() -> None:
    """Two numbers for the backward pass of a square, none afterwards."""
    x = torch.ones(2, requires_grad=True)
    with checks.Kept() as kept:
        (x**2).sum().backward()
        assert (kept.now, kept.most) == (0, 2)
        kept_alive = (x**2).sum()
    assert kept.now == 2
    del kept_alive
    assert kept.now == 0


def test_laws_are_told_apart() -> None:
    law = torch.tensor([0.5, 0.3, 0.2 - 1e-4, 1e-4])
    tokens = torch.multinomial(law, 10_000, replacement=True, generator=torch.Generator().manual_seed(0))
    assert checks.law_of(tokens, law) > 0.01
    assert checks.law_of(tokens, law[[1, 0, 2, 3]]) < 1e-6
