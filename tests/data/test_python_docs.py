"""Python's documentation as texts: read without running, without repetitions, always in the same order."""

from __future__ import annotations

import builtins

import pytest

from pdref.data import python_docs
from pdref.data.python_docs import SHORT, Entry, clean, module_paths, read_compiled, read_source, read_symbols

LONG = " ".join(["Words about it."] * 20)
SOURCE = f'''
"""{LONG} Module."""

raise SystemExit("sources are read, not run")

class Thing(Base):
    """{LONG} Class."""

    def do(self, x: int, *, y: str = "z") -> None:
        """{LONG} Method."""

    def short(self, n):
        """Say it briefly.

        In two paragraphs, each of some length and of no other interest, so that the list is kept.
        """

    async def other(cls, *args):
        """Another brief one, which is listed under the one above it, and is about as long."""

    def last(self):
        """The last brief one."""

    def silent(self):
        pass

def repeated():
    """{LONG}   CLASS."""
'''


def test_a_source_is_read_without_running_it() -> None:
    entries = list(read_symbols(read_source("pkg.mod", SOURCE), set()))
    assert [entry.name for entry in entries] == [
        "pkg.mod",
        "pkg.mod.Thing",
        "pkg.mod.Thing.do",
        "pkg.mod.Thing",
    ], "long docstrings stand alone, short ones are listed under their class, and repetitions are left out"
    assert [entry.prompt for entry in entries] == [
        "module pkg.mod",
        "class pkg.mod.Thing",
        "pkg.mod.Thing.do(x, *, y='z')",
        "class pkg.mod.Thing: methods",
    ]
    assert entries[0].text == f"{LONG} Module."
    listed = entries[-1].text
    assert listed.startswith("short(n)\n    Say it briefly.\n\n    In two paragraphs,")
    assert "\n\nother(*args)\n    Another brief one" in listed
    assert "silent" not in listed


def test_a_long_signature_is_left_out() -> None:
    arguments = ", ".join(f"argument_{i}=None" for i in range(20))
    source = f'def f({arguments}):\n    """{LONG}"""'
    [entry] = read_symbols(read_source("m", source), set())
    assert entry.prompt == "m.f(...)"


def test_clean_removes_margins_and_keeps_code() -> None:
    assert clean("\n    One.  \n\n\n\n        >>> f( x )\n\t\n    ") == "One.\n\n    >>> f( x )"


def test_compiled_modules_list_what_is_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def display() -> None:
        """What a notebook adds to the builtins."""

    def names() -> list[str]:
        symbol = read_compiled("builtins")
        assert symbol is not None
        return [member.name for member in symbol.members]

    before = names()
    monkeypatch.setattr(builtins, "display", display, raising=False)
    monkeypatch.setattr(builtins, "input", display)
    assert names() == before
    assert {"builtins.len", "builtins.dict", "builtins.ValueError"} <= set(before)


def test_a_compiled_signature_has_no_self() -> None:
    symbol = read_compiled("builtins")
    assert symbol is not None
    members = {member.name: member for member in symbol.members}
    assert members["builtins.len"].signature == "builtins.len(obj, /)"
    methods = {method.name: method for method in members["builtins.str"].members}
    assert "\n" not in members["builtins.__import__"].signature
    assert methods["builtins.str.split"].signature == "builtins.str.split(sep=None, maxsplit=-1)"


def test_a_module_that_the_platform_lacks_is_left_out() -> None:
    assert read_compiled("_no_such_module") is None


def test_modules_come_in_alphabetical_order_without_tests_and_games() -> None:
    names = [name for name, _ in module_paths()]
    assert [name.split(".")[0] for name in names] == sorted(name.split(".")[0] for name in names)
    assert {"textwrap", "json.decoder", "asyncio"} <= set(names)
    assert not [name for name in names if name.split(".")[0] in python_docs.LEFT_OUT or ".test" in name]


def test_topics_are_cut_at_their_headings() -> None:
    entries = list(python_docs.read_topics())
    assert all(isinstance(entry, Entry) and entry.text.strip() for entry in entries)
    prompts = [entry.prompt for entry in entries]
    assert 'The "for" statement' in prompts
    assert 'Compound statements: The "for" statement' in prompts
    assert not [entry for entry in entries if "\n******" in entry.text], "a heading is left in a text"
    assert sum(len(entry.text) >= SHORT for entry in entries) > 150
