"""Exercises 2 and 4 of `plans_and_coherence.ipynb`: how often a text contradicts what was decided first.

Expected, in closed form, for a relay and for a plan; and counted, in a text, with what in it is no sentence at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from checks_sums import Array, array, same, teach

from pdref.data.essays import Essays
from pdref.data.essays_grammar import ERAS, SUBJECTS, VERBS
from pdref.theory import coherence

# Exercise 2: a relay, and a plan.

AGREEMENT_MISTAKES: dict[str, str] = {
    "to zero": "agreement decays to 0: with probability eps/(m - 1) a wrong copy is copied wrongly into the right one",
    "no chance": "agreement decays to 0: lambda^t is what is left over chance, so it goes from 1 to 1/m",
    "lambda": "lambda is 1 - eps m/(m - 1): a copy that goes wrong is one of the *other* m - 1 symbols",
    "two symbols": "lambda = 1 - 2 eps holds for m = 2 alone",
    "binary": "this is a relay of two symbols: m sets the chance level 1/m and lambda = 1 - eps m/(m - 1)",
    "early": "the first decision reads a copy as well: t counts from 1",
    "plan only": "the readings are without error here: decision t agrees if the plan is right *and* well read",
    "read only": "the plan is without error here: decision t agrees if the plan is right *and* well read",
    "both right": "two errors may cancel: add the chance that a wrong plan is misread as Theta, pi eps_p/(m - 1)",
    "sum": "eps_p + pi bounds the chance to disagree: a plan that is wrong *and* misread is counted twice",
    "relayed": "the readings are copied from one another: each reads the plan itself, so nothing depends on t",
}
VIOLATION_MISTAKES: dict[str, str] = {
    "agreements": "these are the decisions that agree: V counts those that do not",
    "last": "this is the last decision alone: add up all T",
    "no copying": "T eps forgets that a wrong copy is copied on",
    "no plan error": "T eps_p forgets that the plan itself may be wrong",
    "plan bound": "T (eps_p + pi) bounds it: a plan that is wrong *and* misread is counted twice",
    "bound": "eps T (T + 1)/2 is what it begins like: it counts errors that have been undone, and may exceed T",
    "saturated": "(1 - 1/m)(T - L) is what it ends like, for T far above L",
}
FLAWLESS_MISTAKES: dict[str, str] = {
    "last": "this is P(the last decision agrees): V = 0 asks it of all of them",
    "independent": "the decisions are multiplied as if they were independent: they share their errors",
    "lambda": "V = 0 asks for T copies without error: (1 - eps)^T, not lambda^T",
    "no cancelling": "a wrong plan can be misread as Theta T times over: add pi (eps_p/(m - 1))^T",
    "plan only": "the plan may be right and misread: multiply by (1 - eps_p)^T",
    "read only": "the plan itself may be wrong: multiply by 1 - pi",
}
RELAYS = ((12, 0.1, 3), (3, 0.2, 2), (60, 0.05, 4), (9, 0.9, 4), (1, 0.3, 2), (5, 0.0, 3))
PLANS = ((4, 0.2, 0.3, 3), (12, 0.02, 0.1, 2), (1, 0.3, 0.4, 4), (6, 0.0, 0.2, 3), (6, 0.1, 0.0, 2))

Figures = tuple[Array, float, float]  # P(decision t agrees) [T], E[V], P(V = 0)


def check_relay(relay: Callable[..., Figures] | None = None) -> None:
    """T, eps, m: relays of every length, with an error above chance, and with none."""
    relay = relay or (lambda T, eps, m: _library_figures(coherence.relay(T, eps, m)))
    _check(relay, _relayed, RELAYS, "T = {}, eps = {}, m = {}")
    print("relay: from 1 to chance, not to 0; the sum of its errors; (1 - eps)^T without any")


def check_planned(planned: Callable[..., Figures] | None = None) -> None:
    """T, eps_p, pi, m: plans that may be wrong, may be misread, or both."""
    planned = planned or (lambda T, eps_p, pi, m: _library_figures(coherence.plan(T, eps_p, pi, m)))
    _check(planned, _planned, PLANS, "T = {}, eps_p = {}, pi = {}, m = {}")
    print("planned: the same at every place; errors of the plan are shared, errors of reading are not")


def _check(answer: Callable[..., Figures], right: Callable[..., Figures], settings: tuple, case: str) -> None:
    parts = (
        ("P(decision t agrees)", AGREEMENT_MISTAKES),
        ("E[V]", VIOLATION_MISTAKES),
        ("P(V = 0)", FLAWLESS_MISTAKES),
    )
    for setting in settings:
        found, where = answer(*setting), case.format(*setting)
        assert len(found) == 3, "three are asked for: P(decision t agrees) [T], E[V], P(V = 0)"
        shape = np.shape(found[0])
        assert shape == setting[:1], f"one number for each of T = {setting[0]} decisions, not {list(shape)}"
        assert not any(np.isnan(array(x)).any() for x in found), (
            f"nan for {where}: without errors lambda is 1, and the sum of its powers is T, not 0/0"
        )
        for i, (what, mistakes) in enumerate(parts):
            wrong = {why: right(*setting, mistake)[i] for mistake, why in mistakes.items()}
            wrong = {why: value for why, value in wrong.items() if not same(value, right(*setting)[i])}
            teach(found[i], right(*setting)[i], wrong, f"{what} for {where}")


def _relayed(T: int, eps: float, m: int, mistake: str = "") -> Figures:
    """Copy by copy: the law of M_t over the m symbols, of which Theta is the first."""
    law, laws = np.eye(m)[0], []
    for _ in range(T):
        law = law @ _channel(eps, m)
        laws.append(law[0])
    t, agreement = np.arange(1, T + 1), np.array(laws)
    chance, disagreement = 1 / m, float((1 - agreement).sum())
    wrong: Mapping[str, object] = {
        "to zero": (1 - eps) ** t,
        "no chance": (1 - eps * m / (m - 1)) ** t,
        "lambda": chance + (1 - chance) * (1 - eps) ** t,
        "two symbols": chance + (1 - chance) * (1 - 2 * eps) ** t,
        "binary": (1 + (1 - 2 * eps) ** t) / 2,
        "early": np.append(1.0, agreement[:-1]),
    }
    spoilt = {
        "agreements": T - disagreement,
        "last": 1 - agreement[-1],
        "no copying": T * eps,
        "bound": eps * T * (T + 1) / 2,
        "saturated": (1 - chance) * (T - (m - 1) / (m * eps)) if eps else disagreement,
    }
    flawless = {"last": agreement[-1], "independent": agreement.prod(), "lambda": (1 - eps * m / (m - 1)) ** T}
    right = float(np.prod([_channel(eps, m)[0, 0]] * T))
    return wrong.get(mistake, agreement), spoilt.get(mistake, disagreement), flawless.get(mistake, right)


def _planned(T: int, eps_p: float, pi: float, m: int, mistake: str = "") -> Figures:
    """Plan by plan: what each of the m symbols makes of a reading, and of T of them."""
    plan, read = _channel(pi, m)[0], _channel(eps_p, m)[:, 0]  # [m] P(plan = z), P(read as Theta | z)
    one = float(plan @ read)
    wrong = {
        "plan only": 1 - pi,
        "read only": 1 - eps_p,
        "both right": (1 - pi) * (1 - eps_p),
        "sum": 1 - pi - eps_p,
        "relayed": _relayed(T, eps_p, m)[0],
    }
    spoilt = {"agreements": T * one, "last": 1 - one, "no plan error": T * eps_p, "plan bound": T * (eps_p + pi)}
    flawless = {
        "last": one,
        "independent": one**T,
        "no cancelling": (1 - pi) * (1 - eps_p) ** T,
        "plan only": 1 - pi,
        "read only": (1 - eps_p) ** T,
    }
    agreement = np.broadcast_to(wrong.get(mistake, one), T)
    return agreement, spoilt.get(mistake, T * (1 - one)), flawless.get(mistake, float(plan @ read**T))


def _channel(error: float, m: int) -> Array:
    """From the symbol that is copied to the copy, [m, m]."""
    return np.full((m, m), error / (m - 1)) + np.eye(m) * (1 - error - error / (m - 1))


def _library_figures(scheme: coherence.Scheme) -> Figures:
    return scheme.agreement, scheme.violations, scheme.flawless


# Exercise 4: what a text contradicts, and where.

COUNT_MISTAKES: dict[str, str] = {
    "previous": "values are compared with what the text said last: a violation that is repeated remains one",
    "first": "values are compared with what the text said first: it is the statement that they must agree with",
    "skipped": "places are counted without the malformed sentences: their words are there and keep the rest apart",
    "stops": "everything behind a malformed sentence is lost: report it and go on with the next five words",
    "sentences": "distances are counted in sentences: they are in tokens, from value to value",
    "from the text": "distances begin where the text does: they begin at the value's own place in the statement",
    "from the end": "distances end where the sentence begins: they end at its value, the fourth word",
    "from the kind": "distances begin at the name of the kind: its value stands one word further",
    "headings": "a sentence with another word for its era or subject passes: then it is none of this source's",
    "any value": "a value of another kind passes: what is `followed` is a guide, never a town",
    "unfinished": "the words left over at the end are dropped: fewer than five are a malformed sentence, too",
}
Count = tuple[Counter[tuple[str, int]], list[int]]
SOURCE = Essays(kinds=4, values=3)  # town, guide, colour, stance
ESSAYS = {  # a statement and its text
    "an essay that keeps to its thesis": (
        "town aston guide nell",
        "ancient trade reached aston . ancient trade followed nell . ancient law reached aston .",
    ),
    "an essay that goes astray": (
        "guide otto town brill stance praise",
        "ancient trade reached brill . ancient trade followed nell . ancient trade deserved blame . "
        "early trade reached brill . early trade followed nell . early trade deserved praise . "
        "ancient law reached aston . ancient law followed petra . ancient law deserved praise .",
    ),
    "a thesis that leaves the stance free": (
        "town aston guide nell",
        "old art deserved praise . old art reached brill . old art deserved blame . old art followed nell .",
    ),
    "an essay with malformed sentences": (
        "town aston guide nell",
        "old art reached brill . old art followed aston . art old reached corfe . old art reached gotham . "
        "old art <mask> otto . old art followed otto . nice art reached brill . old war reached corfe , "
        "old war reached aston . old war reached",
    ),
    "an empty text": ("town aston", ""),
}


def check_violations(violations: Callable[..., Count] | None = None) -> None:
    """Essays that agree, that do not, that are partly or wholly no essays."""
    violations = violations or _library_count
    for what, (statement, text) in ESSAYS.items():
        try:
            counts, malformed = violations(statement, text, SOURCE.words)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise AssertionError(f"{what} must be reported on; it ended in {type(error).__name__}: {error}") from error
        found = {key: n for key, n in dict(counts).items() if n}, [*malformed]
        right = _counted(statement, text)
        for mistake, why in COUNT_MISTAKES.items():
            wrong = _counted(statement, text, mistake)
            assert found != wrong or found == right, why
        more = sum(found[0].values()) - sum(right[0].values())
        assert not 0 < more <= len(right[1]), (
            "what is no sentence is counted as a violation: nobody can say what it contradicts, so report it apart"
        )
        assert found[1] == right[1], f"{what}: malformed are the sentences {right[1]}, not {found[1]}"
        assert found[0] == right[0], f"{what}:\n  yours {found[0]}\n  right {right[0]}"
    print("violations: by kind and distance, against the statement; malformed text is reported")


def _counted(statement: str, text: str, mistake: str = "") -> tuple[dict[tuple[str, int], int], list[int]]:
    """Five words at a time, with a mistake or without."""
    said, words = statement.split(), text.split()
    thesis = dict(zip(said[::2], said[1::2], strict=True))
    counts, malformed, first, last = Counter[tuple[str, int]](), list[int](), dict[str, str](), dict(thesis)
    for at in range(0, len(words) - (4 if mistake == "unfinished" else 0), 5):
        kind, right = _read(words[at : at + 5], mistake)
        if not right:
            malformed.append(at // 5)
            if mistake == "stops":
                break
        elif kind in thesis:
            value, stated_at = words[at + 3], said.index(kind) + 1
            against = {"first": first.setdefault(kind, value), "previous": last[kind]}.get(mistake, thesis[kind])
            distance = len(said) + at + 3 - stated_at
            wrong = {"from the text": at + 3, "from the end": distance - 3, "from the kind": distance + 1}
            wrong |= {"sentences": at // 5, "skipped": distance - 5 * len(malformed)}
            counts[kind, wrong.get(mistake, distance)] += value != against
            last[kind] = value
    return {key: n for key, n in counts.items() if n}, malformed


def _read(words: Sequence[str], mistake: str = "") -> tuple[str, bool]:
    """The kind of a sentence, and whether it is one."""
    if len(words) != 5:
        return "", False
    era, subject, verb, value, end = words
    kind = next((kind for kind in SOURCE.words if VERBS[kind] == verb), "")
    known = SOURCE.words.get(kind, [])
    if mistake == "any value" and known:
        known = [value for values in SOURCE.words.values() for value in values]
    headed = (era in ERAS and subject in SUBJECTS) or mistake == "headings"
    return kind, headed and value in known and end == "."


def _library_count(statement: str, text: str, values: dict[str, list[str]]) -> Count:
    said = statement.split()
    found = SOURCE.violations(text, dict(zip(said[::2], said[1::2], strict=True)))
    counts = Counter((each.kind, each.distance) for each in found if each.kind and each.distance)
    return counts, [each.sentence for each in found if not each.kind]
