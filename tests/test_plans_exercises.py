"""The checks of the fourth exercise set: right answers in another form pass, and wrong ones are told why.

Each answer is written once with a switch for every mistake, so that the frame of the mistakes is itself tested.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from laws.cells import ROOT, module
from pdref.data.essays_grammar import ERAS, SUBJECTS, VERBS
from pdref.model.cache import Cache
from pdref.model.transformer import Transformer
from pdref.ops.plan_marginal import plan_marginal
from pdref.ops.token_nll import IGNORE
from pdref.theory import coherence

sys.path.append(str(ROOT / "exercises"))  # its files import one another
checks = module(ROOT / "exercises" / "checks_plans.py")
checks_coherence = sys.modules["checks_coherence"]
checks_sections = sys.modules["checks_sections"]
checks_sums = sys.modules["checks_sums"]


def _marginal(log_prior: Tensor, log_p: Tensor, real: Tensor, bug: str = "") -> tuple[Tensor, ...]:
    """Plan after plan, by logaddexp; the posterior as a softmax."""
    if bug == "nan":
        log_p = log_p * real[:, None]
    elif bug != "padding":
        log_p = torch.where(real[:, None], log_p, 0)
    of_text = log_p.sum(-1) / (real.sum(-1)[:, None] if bug == "mean" else 1)  # [B, K]
    joint = log_prior + of_text if bug != "no prior" else of_text + 0 * log_prior.nan_to_num(neginf=0)
    total = joint[:, 0]
    for z in range(1, joint.shape[1]):
        total = torch.maximum(total, joint[:, z]) if bug == "best" else torch.logaddexp(total, joint[:, z])
    posterior = (of_text if bug == "likelihood" else joint).log_softmax(0 if bug == "over texts" else 1)
    posterior = {"probabilities": posterior.exp(), "joint": joint, "prior": log_prior}.get(bug, posterior)
    if bug == "each token":
        total = torch.where(real, (log_prior[..., None] + log_p).logsumexp(1), 0).sum(-1)
    if bug == "underflow":
        total = joint.exp().sum(1).log()
    if bug == "average of logs":
        total = (log_prior.exp() * of_text).sum(1)
    if bug == "detached":
        total = total.detach()
    if bug == "one number":
        total = total.sum()
    return (total,) if bug == "short" else (total + (bug == "off"), posterior)


def _weighted(log_prior: Tensor, log_p: Tensor, real: Tensor, bug: str = "") -> Tensor:
    """With the impossible plans at a finite log prior from the start."""
    possible = log_prior > -torch.inf
    log_prior = log_prior if bug == "impossible" else torch.where(possible, log_prior, 0)
    of_text = (
        log_p * real[:, None] if bug == "nan" else torch.where(real[:, None] | (bug == "padding"), log_p, 0)
    ).sum(-1)
    joint = log_prior + of_text
    likely = torch.where(possible, joint, -torch.inf).detach()
    weight = (torch.where(possible, joint, -torch.inf) if bug == "not fixed" else likely).softmax(1)
    if bug == "prior":
        weight = torch.where(possible, log_prior.exp(), 0).detach()
    if bug == "best":
        weight = (likely == likely.amax(1, keepdim=True)).double()
    if bug == "logs":
        weight = likely.log_softmax(1)
    if bug == "log p(x)":
        return torch.where(possible, joint, -torch.inf).logsumexp(1)
    value = (weight * (of_text if bug == "no prior" else joint)).sum(1)
    return {"mean": value.mean(), "no gradient": value.detach(), "off": value + 1}.get(bug, value)


def _relay(T: int, eps: float, m: int, bug: str = "") -> tuple[object, ...]:
    """Decision after decision, by the chance to be right after the chance to be right."""
    right, agreement = 1.0, []
    for _ in range(T):
        back = {"to zero": 0, "binary": eps}.get(bug, eps / (m - 1))
        right = right * (1 - eps) + (1 - right) * back
        agreement.append(right)
    if bug == "no chance":
        agreement = [(1 - eps * m / (m - 1)) ** t for t in range(1, T + 1)]
    if bug == "two symbols":
        agreement = [1 / m + (1 - 1 / m) * (1 - 2 * eps) ** t for t in range(1, T + 1)]
    if bug == "lambda":
        agreement = [1 / m + (1 - 1 / m) * (1 - eps) ** t for t in range(1, T + 1)]
    if bug == "early":
        agreement = [1.0, *agreement[:-1]]
    survives = 1 - eps * m / (m - 1)
    total = {
        "agreements": sum(agreement),
        "last": 1 - right,
        "no copying": T * eps,
        "bound": eps * T * (T + 1) / 2,
        "0/0": (1 - 1 / m) * (T - survives * (1 - survives**T) / (1 - survives)) if eps else np.nan,
        "saturated": (1 - 1 / m) * (T - 1 / max(1 - survives, 1e-9)),
        "off": 9.0,
    }.get(bug, T - sum(agreement))
    flawless = {"P last": right, "independent": np.prod(agreement), "P lambda": survives**T}.get(bug, (1 - eps) ** T)
    return (
        (agreement[0], total, flawless) if bug == "one" else (agreement, total, flawless)[: 2 if bug == "short" else 3]
    )


def _planned(T: int, eps_p: float, pi: float, m: int, bug: str = "") -> tuple[object, ...]:
    """By the two ways of being right."""
    cancelled = pi * eps_p / (m - 1)
    one = {
        "plan only": 1 - pi,
        "read only": 1 - eps_p,
        "both right": (1 - pi) * (1 - eps_p),
        "sum": 1 - pi - eps_p,
    }.get(bug, (1 - pi) * (1 - eps_p) + cancelled)
    agreement = _relay(T, eps_p, m)[0] if bug == "relayed" else torch.full((T,), one, dtype=torch.float64)
    total = {"agreements": T * one, "last": 1 - one, "no plan error": T * eps_p, "plan bound": T * (eps_p + pi)}.get(
        bug, T * (1 - one)
    )
    flawless = {
        "P last": one,
        "independent": one**T,
        "no cancelling": (1 - pi) * (1 - eps_p) ** T,
        "P plan only": 1 - pi,
        "P read only": (1 - eps_p) ** T,
    }.get(bug, (1 - pi) * (1 - eps_p) ** T + pi * (eps_p / (m - 1)) ** T)
    return agreement, total, flawless


def _fill(
    model: Transformer,
    prefix: Tensor,
    openings: Tensor,
    lengths: Sequence[int],
    pick: Callable[[Tensor], Tensor],
    bug: str = "",
) -> list[list[int]]:
    """Rows that are finished are written no further; the prefix is read together with nothing else."""
    P, (K, M) = len(prefix), openings.shape
    if bug in ("one by one", "siblings"):
        sections: list[list[int]] = []
        for k in range(K):
            before = [t for o, s in zip(openings.tolist(), sections, strict=False) for t in [*o, *s]]
            start = torch.cat([prefix, torch.tensor(before, dtype=torch.int64) if bug == "siblings" else prefix[:0]])
            sections += _fill(model, start, openings[k : k + 1], lengths[k : k + 1], pick)
        return sections
    if bug == "no cache":
        text = torch.cat([prefix.expand(K, -1), openings], 1)
        for _ in range(max(lengths)):
            hidden = model(text, torch.arange(text.shape[1]).expand(K, -1))[:, -1]
            text = torch.cat([text, pick(model.logits(hidden))[:, None]], 1)
        return [row[:n] for row, n in zip(text[:, P + M :].tolist(), lengths, strict=True)]
    if bug == "second best":
        pick = lambda logits: logits.argmax(-1)  # noqa: E731
    cache = Cache(model.config, K, P + M + max(lengths) + 1, model.embed.weight)
    place = torch.arange(P)[None]
    if bug == "prefix in every row":
        model(prefix.expand(K, -1), place.expand(K, -1), memory=cache.at(place.expand(K, -1)))
    else:
        model(prefix[None], place, memory=cache.at(place, torch.tensor([0])))
    if bug == "no prefix":
        cache.entries.zero_()
    elif bug != "first row":
        cache.entries[:] = cache.entries[:, :1].clone()
    place = (torch.arange(M) + (0 if bug == "restart" else P)).expand(K, -1)
    token, rows, sections = openings, torch.arange(K), [[] for _ in range(K)]
    if bug == "one opening":
        token = openings[:1].expand(K, -1)
    while len(rows):
        hidden = model(token, place, memory=cache.at(place, rows))
        logits = model.logits(hidden[:, 0 if bug == "first state" else -1])
        if bug == "row by row":
            hidden = [model(token[[i]], place[[i]], memory=cache.at(place[[i]], rows[[i]])) for i in range(len(rows))]
        for row, word in zip(rows.tolist(), pick(logits).tolist(), strict=True):
            sections[row].append(word)
        left = torch.tensor([bug == "not cut" or len(sections[row]) < lengths[row] for row in rows.tolist()])
        left = left & (max(map(len, sections)) < max(lengths))
        step = (bug != "same place" or token.shape[1] > 1) + (bug == "gap" and token.shape[1] > 1)
        rows, place = rows[left], place[left][:, -1:] + step
        token = torch.tensor([[sections[row][-1]] for row in rows.tolist()], dtype=torch.int64).view(-1, 1)
    if bug == "openings":
        return [[*o, *s] for o, s in zip(openings.tolist(), sections, strict=True)]
    return [[*s[:-1], 0] for s in sections] if bug == "off" else sections


def _violations(statement: str, text: str, values: dict[str, list[str]], bug: str = "") -> tuple[Counter, list[int]]:
    """By a table of all words that a place allows."""
    said = statement.split()
    place = {kind: i + (bug != "from the kind") for i, kind in enumerate(said) if i % 2 == 0}
    thesis = {kind: said[i + 1] for i, kind in enumerate(said) if i % 2 == 0}
    verbs = {VERBS[kind]: kind for kind in values}
    last, seen, counts, malformed = dict(thesis), {}, Counter(), []
    words = text.split()
    cuts = [*range(0, len(words), 5), len(words)]
    for i, (start, end) in enumerate(pairwise(cuts)):
        sentence = words[start:end]
        if bug == "unfinished" and len(sentence) < 5:
            continue
        places = [ERAS, SUBJECTS, verbs, [], ["."]]
        if bug == "crash" or (len(sentence) == 5 and sentence[2] in verbs):
            kind = verbs[sentence[2]]
            places[3] = [word for each in values.values() for word in each] if bug == "any value" else values[kind]
        if bug == "headings":
            places[:2] = [sentence[:1], sentence[1:2]]
        if len(sentence) < 5 or not all(word in allowed for word, allowed in zip(sentence, places, strict=True)):
            malformed.append(i)
            if bug == "malformed":
                counts["", i] += 1
            if bug == "stops":
                break
            continue
        value = sentence[3]
        against = {"previous": last, "first": seen}.get(bug, thesis)
        seen.setdefault(kind, value)
        if kind in thesis and against[kind] != value:
            at = {"sentences": i, "from the text": start + 3, "from the end": len(said) + start - place[kind]}
            at |= {"skipped": len(said) + start + 3 - place[kind] - 5 * len(malformed)}
            counts[kind, at.get(bug, len(said) + start + 3 - place[kind] + 2 * (bug == "off"))] += 1
        last[kind] = value
    return counts, [i + 1 for i in malformed] if bug == "from one" else malformed


RIGHT_ANSWERS: dict[str, Callable[..., object]] = {
    "marginal": _marginal,
    "weighted": _weighted,
    "relay": _relay,
    "planned": _planned,
    "fill": _fill,
    "violations": _violations,
}
WRONG_ANSWERS: dict[str, dict[str, str]] = {
    "marginal": {
        "each token": "drawn anew for every token",
        "no prior": "not weighed by their prior",
        "average of logs": r"average of log p\(x \| z\)",
        "best": "only the best plan",
        "mean": "averaged over the tokens",
        "padding": "padding counts",
        "nan": "0 times nan is nan",
        "underflow": r"log p\(x\) = -inf for texts of 3,000 tokens: p\(x\) underflows",
        "probabilities": "these are probabilities",
        "joint": r"this is log p\(x, z\)",
        "likelihood": "leaves out the prior",
        "over texts": "normalised over the texts",
        "prior": "this is the prior",
        "detached": "there is no gradient",
        "one number": r"log p\(x\) is \[B\] = \[3\]",
        "short": "two tensors",
        "off": r"log p\(x\) of short texts:",
    },
    "weighted": {
        "not fixed": "gradient of their own: detach",
        "prior": "weights are the prior's",
        "best": "all weight is on the best plan",
        "logs": "a weight is negative, or a log",
        "no prior": r"log p\(z\) is missing",
        "log p(x)": r"this is log p\(x\) itself",
        "padding": "padding counts",
        "nan": "0 times nan is nan",
        "impossible": "0 times -inf is nan",
        "mean": "one number a text",
        "no gradient": "there is no gradient",
        "off": "value of short texts",
    },
    "relay": {
        "to zero": r"decays to 0: with probability eps/\(m - 1\)",
        "no chance": "decays to 0: lambda",
        "lambda": r"lambda is 1 - eps m/\(m - 1\)",
        "two symbols": "holds for m = 2 alone",
        "binary": "a relay of two symbols",
        "early": "t counts from 1",
        "agreements": "decisions that agree",
        "last": "last decision alone",
        "no copying": "a wrong copy is copied on",
        "bound": "may exceed T",
        "saturated": "what it ends like",
        "0/0": "the sum of its powers is T, not 0/0",
        "P last": r"P\(the last decision agrees\)",
        "independent": "as if they were independent",
        "P lambda": r"\(1 - eps\)\^T, not lambda\^T",
        "one": "one number for each of T = 12 decisions",
        "short": "three are asked for",
        "off": r"E\[V\] for T = 12, eps = 0.1, m = 3",
    },
    "planned": {
        "plan only": "the readings are without error",
        "read only": "the plan is without error",
        "both right": "two errors may cancel",
        "sum": "counted twice",
        "relayed": "each reads the plan itself",
        "agreements": "decisions that agree",
        "last": "last decision alone",
        "no plan error": "the plan itself may be wrong",
        "plan bound": "bounds it",
        "P last": r"P\(the last decision agrees\)",
        "independent": "they share their errors",
        "no cancelling": "misread as Theta T times over",
        "P plan only": r"multiply by \(1 - eps_p\)\^T",
        "P read only": "multiply by 1 - pi",
    },
    "fill": {
        "siblings": "read one another",
        "no prefix": "have not read the prefix",
        "first row": "only the first row",
        "restart": "begin at position 0",
        "gap": "a place is left free",
        "same place": "all stand at one place",
        "one opening": "the first one's opening",
        "first state": "at its last",
        "openings": "the openings are returned",
        "second best": "`pick` is ignored",
        "not cut": "their plan says",
        "one by one": "the prefix is read 4 times",
        "prefix in every row": "the prefix is read 4 times",
        "no cache": "the prefix is read 36 times",
        "row by row": "tokens are read where .* are enough",
        "off": "the sections:",
    },
    "violations": {
        "previous": "what the text said last",
        "first": "what the text said first",
        "malformed": "counted as a violation",
        "skipped": "counted without the malformed",
        "stops": "go on with the next five words",
        "sentences": "counted in sentences",
        "from the text": "begin where the text does",
        "from the end": "end where the sentence begins",
        "from the kind": "one word further",
        "headings": "another word for its era",
        "any value": "a value of another kind",
        "unfinished": "left over at the end",
        "crash": "must be reported on; it ended in KeyError",
        "from one": "malformed are the sentences",
        "off": "an essay that goes astray:",
    },
}


@pytest.mark.parametrize("name", RIGHT_ANSWERS)
def test_right_answers_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(checks, f"check_{name}")(RIGHT_ANSWERS[name])
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["marginal", "relay", "planned", "violations"])
def test_the_library_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(checks, f"check_{name}")()
    assert capsys.readouterr().out


@pytest.mark.parametrize(("name", "bug"), [(name, bug) for name, bugs in WRONG_ANSWERS.items() for bug in bugs])
def test_wrong_answers_are_told_why(name: str, bug: str) -> None:
    with pytest.raises(AssertionError, match=WRONG_ANSWERS[name][bug]):
        getattr(checks, f"check_{name}")(partial(RIGHT_ANSWERS[name], bug=bug))


def test_every_known_mistake_shows() -> None:
    """Each mistake that a check can name gives another answer than the right one and than the other mistakes."""
    short = checks._texts(6)
    lists = [
        [checks._summed(short, name)[0] for name in ["", *checks.MARGINAL_MISTAKES]],
        [checks._summed(short, name)[1] for name in ["", *checks.POSTERIOR_MISTAKES]],
        [checks._averaged(short, name) for name in ["", *checks.WEIGHTED_MISTAKES]],
    ]
    for answer, setting in ((checks_coherence._relayed, (12, 0.1, 3)), (checks_coherence._planned, (4, 0.2, 0.3, 3))):
        for i, part in enumerate(("AGREEMENT", "VIOLATION", "FLAWLESS")):
            every = [answer(*setting, name)[i] for name in getattr(checks_coherence, f"{part}_MISTAKES")]
            right = answer(*setting)[i]
            lists.append([right, *[wrong for wrong in every if not checks_sums.same(wrong, right)]])
            assert len(lists[-1]) > 3, "few of these mistakes concern this scheme"
    for answers in lists:
        assert all(not checks_sums.same(a, b) for i, a in enumerate(answers) for b in answers[:i])

    for pick in (checks_sections._best, checks_sections._second):
        filled = [checks_sections._filled(pick, name) for name in ["", *checks_sections.FILL_MISTAKES]]
        assert filled[0] == checks_sections._one_by_one(pick)
        assert all(a != b for i, a in enumerate(filled) for b in filled[:i])

    essays = checks_coherence.ESSAYS.values()
    counted = [[checks_coherence._counted(*e, name) for e in essays] for name in ["", *checks_coherence.COUNT_MISTAKES]]
    assert all(a != b for i, a in enumerate(counted) for b in counted[:i])


@pytest.mark.parametrize("impl", ["naive", "torch"])
def test_the_weighted_average_has_the_gradient_of_the_library(impl: str) -> None:
    """From a network's output: `weighted` and `plan_marginal` send the same back to hidden states and to the prior."""
    draw = torch.Generator().manual_seed(0)
    hidden, words = (torch.randn(*shape, 5, generator=draw, dtype=torch.float64) for shape in ((2, 3, 4), (7,)))
    scores = torch.randn(2, 3, generator=draw, dtype=torch.float64)
    tokens = torch.randint(7, (2, 4), generator=draw)
    real = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    gradients = []
    for by_hand in (True, False):
        leaves = [x.clone().requires_grad_() for x in (hidden, scores)]
        prior = leaves[1].log_softmax(1)
        if by_hand:
            at = tokens[:, None, :, None].expand(2, 3, 4, 1)
            log_p = (leaves[0] @ words.T).log_softmax(-1).gather(-1, at)[..., 0]  # [B, K, T]
            total = _weighted(prior, log_p, real).sum()
        else:
            total = plan_marginal(leaves[0], words, torch.where(real, tokens, IGNORE), prior, impl).log_p.sum()
        gradients.append(torch.autograd.grad(total, leaves))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


@pytest.mark.parametrize("setting", checks_coherence.RELAYS)
def test_copy_by_copy_is_the_library_in_closed_form_and_by_enumeration(setting: tuple[int, float, int]) -> None:
    scheme, figures = coherence.relay(*setting), checks_coherence._relayed(*setting)
    assert figures[0] == pytest.approx(scheme.agreement, abs=1e-12)
    assert figures[1] == pytest.approx(float(scheme.law @ np.arange(setting[0] + 1)), abs=1e-10)
    assert figures[2] == pytest.approx(float(scheme.law[0]), abs=1e-12)


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_essays_of_the_source_are_counted_as_the_library_counts(slip: float) -> None:
    """By kind and distance; whole, with words missing, and with words that are not there."""
    source = checks_coherence.SOURCE
    for i, essay in enumerate(replace(source, slip=slip).essays(30, seed=1)):
        words = essay.text.split()
        for text in (
            essay.text,
            " ".join(words[: len(words) - i % 7]),
            " ".join([*words[:i], "<mask>", *words[i + 1 :]]),
        ):
            library = checks_coherence._library_count(essay.statement, text, source.words)
            assert checks_coherence._counted(essay.statement, text) == (dict(library[0]), library[1])
            assert _violations(essay.statement, text, source.words) == library
