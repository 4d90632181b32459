"""Bugs to plant: a change of a few characters in one function of the library, for as long as a test runs."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from dataclasses import dataclass
from functools import reduce
from types import FunctionType
from typing import Any

import pytest


@dataclass(frozen=True)
class Bug:
    """In the function `where` ("package.module:Class.method"), `right` becomes `wrong`; `red` are laws that break."""

    where: str
    right: str
    wrong: str
    red: tuple[str, ...]

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Compile the function with the bug in it and put it wherever the library holds the function."""
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(module_name)
        *owners, name = path.split(".")
        owner: Any = reduce(getattr, owners, module)
        original = inspect.getattr_static(owner, name)
        source = textwrap.dedent(inspect.getsource(_function(original)))
        assert source.count(self.right) == 1, f"{self.where} says {self.right!r} {source.count(self.right)} times"
        planted: dict[str, Any] = {}
        exec(compile(source.replace(self.right, self.wrong), self.where, "exec"), vars(module), planted)
        if owner is not module:
            monkeypatch.setattr(owner, name, planted[name])
            return
        for holder in [m for n, m in sys.modules.items() if n.split(".")[0] == "pdref"]:
            if vars(holder).get(name) is original:
                monkeypatch.setattr(holder, name, planted[name])


def _function(found: Any) -> FunctionType:
    """The function within a property, a static or a class method."""
    return getattr(found, "fget", None) or getattr(found, "__func__", found)
