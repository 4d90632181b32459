"""At which sizes the ops are timed: one table for all, and what a person may write instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdref.lab.kernels.problems import PROBLEMS

Size = Mapping[str, int]


@dataclass(frozen=True)
class Sweep:
    """An op's sizes: `check` are posed before anything is timed, ragged, and reach every path of an implementation.

    `small` takes a moment; `cpu` and `cuda` are the sweeps, along one of the sizes; `headline` is what one quotes.
    """

    check: Sequence[Size]
    small: Sequence[Size]
    cpu: Sequence[Size]
    cuda: Sequence[Size]
    headline: Sequence[Size]


def along(name: str, values: Sequence[int], **others: int) -> list[Size]:
    """Sizes that differ in one."""
    return [{name: value, **others} for value in values]


SWEEPS: dict[str, Sweep] = {
    "token_nll": Sweep(
        check=[{"N": 67, "D": 24, "V": 257}, {"N": 1031, "D": 24, "V": 8209}],
        small=along("N", [64, 128], D=32, V=512),
        cpu=along("N", [256, 512, 1024, 2048], D=256, V=16384),
        cuda=along("N", [1024, 2048, 4096, 8192], D=2048, V=65536),
        headline=[{"N": 4096, "D": 512, "V": 49152}],
    ),
    "multi_token_nll": Sweep(
        check=[{"B": 2, "T": 33, "n": 3, "D": 24, "V": 257}, {"B": 2, "T": 257, "n": 3, "D": 16, "V": 8209}],
        small=along("n", [1, 4], B=2, T=32, D=32, V=512),
        cpu=along("n", [1, 2, 4, 8], B=2, T=128, D=256, V=16384),
        cuda=along("n", [1, 2, 4, 8], B=4, T=512, D=2048, V=32768),
        headline=along("n", [1, 4], B=2, T=512, D=512, V=49152),
    ),
    "planned_nll": Sweep(
        check=[{"B": 2, "spans": 3, "L": 9, "D": 24, "V": 257}, {"B": 3, "spans": 7, "L": 16, "D": 16, "V": 32771}],
        small=along("spans", [2, 4], B=2, L=8, D=32, V=512),
        cpu=along("spans", [2, 4, 8, 16], B=2, L=32, D=256, V=16384),
        cuda=along("spans", [2, 4, 8, 16], B=8, L=64, D=2048, V=32768),
        headline=[{"B": 4, "spans": 16, "L": 32, "D": 512, "V": 49152}],
    ),
    "plan_marginal": Sweep(
        check=[{"B": 2, "K": 3, "T": 33, "D": 24, "V": 257}, {"B": 2, "K": 7, "T": 67, "D": 16, "V": 16411}],
        small=along("K", [2, 4], B=2, T=16, D=32, V=512),
        cpu=along("K", [2, 4, 8, 16], B=2, T=64, D=256, V=16384),
        cuda=along("K", [2, 4, 8, 16], B=4, T=256, D=2048, V=32768),
        headline=[{"B": 4, "K": 8, "T": 128, "D": 512, "V": 49152}],
    ),
    "unmask": Sweep(
        check=[{"N": 67, "D": 24, "V": 257, "L": 9}, {"N": 130, "D": 8, "V": 131101, "L": 32}],
        small=along("N", [64, 128], D=32, V=512, L=32),
        cpu=along("N", [128, 256, 512, 1024], D=256, V=16384, L=32),
        cuda=along("N", [256, 512, 1024, 2048, 4096], D=2048, V=65536, L=64),
        headline=[{"N": 1024, "D": 512, "V": 49152, "L": 32}],
    ),
    "planned_attention": Sweep(
        check=[{"B": 2, "T": 67, "spans": 5, "head_width": 32}, {"B": 1, "T": 333, "spans": 5, "head_width": 64}],
        small=along("T", [64, 128], B=1, spans=4),
        cpu=along("T", [256, 512, 1024, 2048], B=1, spans=16, heads=8, key_heads=4, head_width=64),
        cuda=along("T", [1024, 2048, 4096, 8192], B=4, spans=16, heads=16, key_heads=4, head_width=128),
        headline=[{"B": 1, "T": 2048, "spans": 16, "heads": 8, "key_heads": 4, "head_width": 64}],
    ),
    "span_attention": Sweep(
        check=[{"B": 3, "spans": 3, "L": 9, "C": 67, "head_width": 32}],
        small=along("B", [1, 2], spans=4, L=8, C=64),
        cpu=along("B", [1, 2, 4, 8], spans=8, L=32, C=512, heads=8, key_heads=4, head_width=64),
        cuda=along("B", [1, 4, 16, 64], spans=8, L=64, C=2048, heads=16, key_heads=4, head_width=128),
        headline=[{"B": 16, "spans": 8, "L": 32, "C": 512, "heads": 8, "key_heads": 4, "head_width": 64}],
    ),
}

NAMES = ("sweep", "small", "headline")


def sizes(op: str, asked: Sequence[str], device: str) -> list[Size]:
    """The sizes that `asked` means for an op: names of the table, or sizes written as "N=4096,D=512,V=49152".

    Sizes left out take the problem's own. Raises ValueError for what is neither.
    """
    sweep = SWEEPS[op]
    named = {"sweep": sweep.cuda if device == "cuda" else sweep.cpu, "small": sweep.small, "headline": sweep.headline}
    return [size for words in asked for size in (named[words] if words in named else [_written(op, words)])]


def _written(op: str, words: str) -> Size:
    own = {k: p.default for k, p in inspect.signature(PROBLEMS[op]).parameters.items() if type(p.default) is int}
    own.pop("seed", None)
    wanted = f"{', '.join(NAMES)} or sizes of {op} such as {','.join(f'{k}={v}' for k, v in own.items())}"
    found = {}
    for word in words.split(","):
        name, _, value = word.strip().partition("=")
        if name not in own or not value.isdecimal() or int(value) < 1:
            raise ValueError(f"size {words!r}: {word.strip()!r} is not one; write {wanted}")
        found[name] = int(value)
    return own | found
