"""A real corpus without a download: Python's own documentation (`python_docs`), cut into planned documents.

The choices made:

- A hash of the name decides what is held out, so the parts and members of a thing stay together and the split
  depends on nothing else. A held-out text that repeats training text joins the training split instead.
- The tokenizer is trained on the training split alone.
- Long texts are cut between paragraphs into parts that fit the context; the prompt names the part.
- What cannot be planned is dropped and counted by the name of its error.

The text differs between minor versions of Python: compare losses only within one version.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from rich.table import Table

from pdref.data.annotate import Annotator, RuleAnnotator, annotate_all, blocks
from pdref.data.python_docs import Entry, collect
from pdref.data.topics import indentation
from pdref.text.document import PlannedDocument
from pdref.text.layout import Grammar
from pdref.text.tokenizer import Tokenizer

TEXT_SHARE = 0.6  # of a context is the text before annotation; plan, tags, echoes and pads take the rest
REPEATED = 0.25  # of a text's runs of eight words may also stand in training, if it is to be held out
SHORTEST = 120  # characters under which a part, such as the tail of a text, is no document


def split(entries: Sequence[Entry], share: float = 0.06) -> tuple[list[Entry], list[Entry]]:
    """Training and held-out entries: about `share` of the names, less those that repeat training text."""
    heldout = [entry for entry in entries if _fraction(entry.name) < share]
    moved = [entry for entry in entries if _fraction(entry.name) >= share]
    known: set[tuple[str, ...]] = set()
    while moved:  # what moves to training may be repeated in its turn
        known.update(shingle for entry in moved for shingle in shingles(entry.text))
        names = {entry.name for entry in heldout if overlap(entry.text, known) > REPEATED}
        moved = [entry for entry in heldout if entry.name in names]
        heldout = [entry for entry in heldout if entry.name not in names]
    held = {entry.name for entry in heldout}
    return [entry for entry in entries if entry.name not in held], heldout


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on `name` alone, in every run."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def shingles(text: str, length: int = 8) -> set[tuple[str, ...]]:
    """All runs of `length` words; a shorter text is one run."""
    sequence = text.lower().split()
    return {tuple(sequence[i : i + length]) for i in range(max(len(sequence) - length, 0) + 1)}


def overlap(text: str, known: set[tuple[str, ...]]) -> float:
    """The share of a text's shingles that are in `known`."""
    own = shingles(text)
    return len(own & known) / len(own)


def cut(text: str, limit: int, tokenizer: Tokenizer) -> list[str]:
    """Parts of at most `limit` tokens and about equal size, cut between outer paragraphs where possible."""
    units = list(_units(text, limit, tokenizer))
    total = sum(size for _, size in units)
    share = total / -(-total // limit)
    found: list[list[str]] = [[]]
    filled = 0
    for unit, size in units:
        if found[-1] and (filled + size / 2 >= share or filled + size > limit):
            found.append([])
            filled = 0
        found[-1].append(unit)
        filled += size
    return [textwrap.dedent("\n".join(part)).strip("\n") for part in found]


def _units(text: str, limit: int, tokenizer: Tokenizer, level: int = 0) -> Iterator[tuple[str, int]]:
    """The coarsest pieces under `limit` tokens, and their tokens: outer paragraphs, any blocks, or lines."""
    cutters = (_outer_paragraphs, blocks, lambda piece: piece.split("\n"))
    pieces = cutters[level](text)
    for piece, ids in zip(pieces, tokenizer.encode_all(pieces), strict=True):
        if len(ids) <= limit or level == len(cutters) - 1:
            yield piece, len(ids) + 1  # and a line break
        else:
            yield from _units(piece, limit, tokenizer, level + 1)


def _outer_paragraphs(text: str) -> list[str]:
    """Blocks, each with the deeper ones under it, and introductions with what they introduce."""
    found: list[str] = []
    for block in blocks(text):
        if found and (found[-1].rstrip().endswith(":") or indentation(block) > indentation(found[-1])):
            found[-1] += "\n" + block
        else:
            found.append(block)
    return found


REAL_PLANS = {
    "spans per plan: median": "2",
    "spans per plan: mean": "3.1",
    "plans with one span": "34%",
    "span length (tokens): least": "10",
    "span length (tokens): most": "200",
    "stages per document": "2.2",
    "stages that end in <sync/>": "60%",
}
"""Plans of the released sparse checkpoint for AlpacaEval requests, from an independent audit of it."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a set of planned documents looks like, and what was dropped on the way, by the name of the error.

    `plans` has the spans of each stage, `lengths` the planned tokens of each span, `stages` the stages per
    document; `tokens` are those of the content, pads left out.
    """

    plans: tuple[int, ...]
    lengths: tuple[int, ...]
    stages: tuple[int, ...]
    characters: int
    bytes: int
    tokens: int
    dropped: Mapping[str, int]

    @classmethod
    def of(cls, documents: Sequence[PlannedDocument], dropped: Mapping[str, int], grid: int) -> Statistics:
        """Count `documents`, whose plans are in cells of `grid` tokens."""
        stages = [stage for document in documents for stage in document.stages]
        lengths = tuple(item.length * grid for stage in stages for item in stage.plan)
        return cls(
            plans=tuple(len(stage.plan) for stage in stages),
            lengths=lengths,
            stages=tuple(len(document.stages) for document in documents),
            characters=sum(len(document.text) for document in documents),
            bytes=sum(len(document.text.encode()) for document in documents),
            tokens=sum(lengths) - sum(span.pads for stage in stages for span in stage.spans),
            dropped=dict(dropped),
        )

    def rows(self) -> dict[str, str]:
        """Each statistic, written out, by its name."""
        if not self.stages:
            return {"documents": "0", **self._dropped_rows()}
        several = sum(n > 1 for n in self.stages)
        return {
            "documents": f"{len(self.stages):,}",
            "characters": f"{self.characters:,}",
            "tokens": f"{self.tokens:,}",
            "bytes per token": f"{self.bytes / self.tokens:.2f}",
            "spans per plan: median": f"{median(self.plans):g}",
            "spans per plan: mean": f"{mean(self.plans):.1f}",
            "plans with one span": f"{self.plans.count(1) / len(self.plans):.0%}",
            "span length (tokens): least": f"{min(self.lengths)}",
            "span length (tokens): median": f"{median(self.lengths):g}",
            "span length (tokens): most": f"{max(self.lengths)}",
            "stages per document": f"{mean(self.stages):.1f}",
            "documents with several stages": f"{several / len(self.stages):.0%}",
            "stages that end in <sync/>": f"{1 - len(self.stages) / len(self.plans):.0%}",
            **self._dropped_rows(),
        }

    def _dropped_rows(self) -> dict[str, str]:
        return {f"dropped: {name}": f"{count}" for name, count in sorted(self.dropped.items())}


def table(**corpora: Statistics) -> Table:
    """The statistics of each named corpus beside those of real plans; print it with `rich.print`."""
    columns = {name: statistics.rows() for name, statistics in corpora.items()} | {"real plans": REAL_PLANS}
    shown = Table(caption="real plans: Planned Diffusion's sparse checkpoint on AlpacaEval, independent audit")
    for heading in ("", *columns):
        shown.add_column(heading, justify="right" if heading else "left")
    for row in dict.fromkeys(row for rows in columns.values() for row in rows):
        shown.add_row(row, *(rows.get(row, "-") for rows in columns.values()))
    return shown


@dataclass(frozen=True, slots=True)
class Corpus:
    """Planned documents of both splits, the tokenizer of the training split, and what there is of each."""

    train: list[PlannedDocument]
    heldout: list[PlannedDocument]
    tokenizer: Tokenizer
    statistics: dict[str, Statistics]


def build(
    tokenizer_size: int = 2048,
    grammar: Grammar | None = None,
    context: int = 384,
    longest: int = 200,
    annotator: Annotator | None = None,
) -> Corpus:
    """Read, split, cut and annotate Python's documentation, by default with `RuleAnnotator()`.

    No document has over `context` tokens (layout tokens, tags and echoes included), no span over `longest`.
    """
    grammar, annotator = grammar or Grammar(), annotator or RuleAnnotator()
    train, heldout = split(collect())
    tokenizer = Tokenizer.byte_pairs((f"{entry.prompt}\n{entry.text}" for entry in train), tokenizer_size)
    splits: dict[str, list[PlannedDocument]] = {}
    statistics: dict[str, Statistics] = {}
    for name, entries in {"train": train, "heldout": heldout}.items():
        texts = [text for entry in entries for text in parts(entry, int(TEXT_SHARE * context), tokenizer)]
        worth = [(prompt, text) for prompt, text in texts if len(text) >= SHORTEST]
        splits[name], dropped = annotate_all(worth, annotator, tokenizer, grammar, context, longest)
        dropped["TooShort"] = len(texts) - len(worth)
        statistics[name] = Statistics.of(splits[name], dropped, grammar.grid)
    return Corpus(splits["train"], splits["heldout"], tokenizer, statistics)


def parts(entry: Entry, limit: int, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Prompt and text of each part of an entry, of at most `limit` tokens where it has lines to cut at."""
    texts = cut(entry.text, limit, tokenizer)
    if len(texts) == 1:
        return [(entry.prompt, entry.text)]
    return [(f"{entry.prompt} (part {i} of {len(texts)})", text) for i, text in enumerate(texts, 1)]
