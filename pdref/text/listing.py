"""A plan as plain text: how a span lists items where it is itself an outline, `topic 4 ; topic 12 ;`.

Hierarchical generation reads the plan of a level off the spans of the level above.
"""

from __future__ import annotations

from collections.abc import Iterable

from pdref.text.document import EmptyPlan, Item
from pdref.text.tags import DocumentError

ITEM_END = ";"


class BadListing(DocumentError):
    """Text that should list items and ends in something else."""


def list_items(items: Iterable[Item]) -> str:
    """The items as text; `read_items` reads it back if no topic holds the sign that ends an item."""
    return " ".join(f"{item} {ITEM_END}" for item in items)


def read_items(text: str) -> tuple[Item, ...]:
    """The items that a text lists, at least one.

    Raises EmptyPlan, BadListing for words after the last item, and what `Item.parse` raises.
    """
    *items, rest = text.split(ITEM_END)
    if rest.strip():
        raise BadListing(f"{rest.strip()!r} is not followed by {ITEM_END!r}; an outline lists items as 'topic 4 ;'")
    if not items:
        raise EmptyPlan(f"an outline lists at least one item, as 'topic 4 ;', not {text!r}")
    return tuple(Item.parse(item.strip()) for item in items)
