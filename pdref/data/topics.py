"""What a span is about: at most three words taken from the span itself.

A span that begins with definitions is about the terms it defines. Any other is about its best run of words
between stop words, numbers and punctuation (as in RAKE, Rose et al. 2010), where a word weighs what its
siblings do not say: its count in the span squared, over that in the whole text, halved if the prompt has it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

TOPIC_WORDS = 3

WORD = re.compile(r"\w[\w.'’-]*\w|\w")
_STOP_WORDS = frozenset(
    WORD.findall(
        """a about above after all also although an and another any are args arguments as at be because
        been before being between both but by call called can cannot changed could default defaults do
        does done e.g each either else etc even every example examples few first following for from
        further get given gives had has have having here how however i i.e if in instead into is it
        its itself just last like made make makes may means might more most much must need needs new
        no nor not note now of off on once one only or other otherwise our out over own parameters per
        possible raises rather return returned returns same see set should similar simply since so
        some still such take takes than that the their them then there therefore these they this those
        through thus to too two under unless until up upon us use used uses using usually value values
        version very via was way we well were what when where whether which while who whose why will
        with within without would yet yields you your"""
    )
)
_TERM = re.compile(r"^[^\w\n(]*(?:class )?([\w.]*\w)(?:\([^\n]*(?:\n|\Z)| +--? |: |\n\s+\S)", re.MULTILINE)


def choose_topics(prompt: str, contents: Sequence[str], text: str) -> list[str]:
    """A topic for each span of a stage: at most three words of its own, where possible none twice."""
    everywhere, given = Counter(words(text)), set(words(prompt))
    chosen: list[str] = []
    for content in contents:
        if terms := _defined(content):
            chosen.append(" ".join(terms[:TOPIC_WORDS]))
            continue
        here = Counter(words(content))
        weight = {word: n * n / everywhere[word] / (1 + (word in given)) for word, n in here.items()}
        ranked = sorted(_runs(content), key=lambda run: -sum(weight[word.lower()] for word in run.split()))
        fallback = [*ranked, *content.split()[:1], ""]
        chosen.append(next((run for run in ranked if run not in chosen), fallback[0]))
    return chosen


def words(text: str) -> list[str]:
    """The words of `text` in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def _runs(text: str) -> list[str]:
    """At most three words without a stop word, number or punctuation between them, in reading order."""
    runs: list[list[str]] = [[]]
    end = 0
    for found in WORD.finditer(text):
        word = found[0]
        gap, end = text[end : found.start()], found.end()
        stops = word.lower() in _STOP_WORDS or word.isdigit() or "n't" in word
        if stops or gap.strip() or len(runs[-1]) == TOPIC_WORDS:
            runs.append([])
        if not stops:
            runs[-1].append(word)
    return [" ".join(run) for run in runs if run]


def _defined(content: str) -> list[str]:
    """The terms of the outermost definitions in a span, if it begins with one."""
    found = [m for m in _TERM.finditer(content) if indentation(m[0]) == indentation(content)]
    if not found or content[: found[0].start()].strip():
        return []
    return list(dict.fromkeys(m[1] for m in found if m[1].lower() not in _STOP_WORDS and not m[1].isdigit()))


def indentation(text: str) -> int:
    """White space before the first word, in its line."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return len(first) - len(first.lstrip())
