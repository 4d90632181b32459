"""What all runs of a sweep share: numbers that a command takes as options and a ledger keeps as words."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, fields
from typing import Any, Self

from pdref.lab.recipe import TrainRecipe


class SweepBudget:
    """A frozen dataclass of numbers with defaults derives from this; runs are known by its words, fields in order.

    `rate` is AdamW's and `muon_rate` Muon's (see `TrainRecipe`).
    """

    __slots__ = ()
    steps: int
    batch: int
    rate: float
    muon_rate: float

    def settings(self, seed: int) -> TrainRecipe:
        """As a training recipe."""
        return TrainRecipe(
            steps=self.steps, batch=self.batch, learning_rate=self.rate, muon_rate=self.muon_rate, seed=seed
        )

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())  # type: ignore[call-overload]

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` writes, read back."""
        pairs = (pair.split("=") for pair in text.split())
        return cls(**{name: type(cls._defaults()[name])(value) for name, value in pairs})

    @classmethod
    def add_to(cls, parser: ArgumentParser) -> None:
        """An option for each field."""
        for name, default in cls._defaults().items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)

    @classmethod
    def of(cls, given: Namespace) -> Self:
        """What the options say."""
        return cls(**{name: getattr(given, name) for name in cls._defaults()})

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
