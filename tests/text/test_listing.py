"""Listings: items there and back, and what is no listing is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdref.text.document import EmptyPlan, EmptyTopic, Item, LengthOutOfRange, MissingLength
from pdref.text.listing import ITEM_END, BadListing, list_items, read_items


@given(st.lists(st.from_type(Item).filter(lambda item: ITEM_END not in item.topic), min_size=1, max_size=5))
def test_what_is_listed_is_read_back(items: list[Item]) -> None:
    assert read_items(list_items(items)) == tuple(items)


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("", EmptyPlan, "''"),
        ("  ", EmptyPlan, "at least one"),
        ("sun 4", BadListing, "'sun 4'"),
        ("sun 4 ; moon 2", BadListing, "'moon 2'"),
        ("sun ;", MissingLength, "'sun'"),
        ("sun 4 ; ;", MissingLength, "''"),
        ("4 ;", EmptyTopic, "''"),
        ("sun 0 ;", LengthOutOfRange, "'sun'"),
    ],
)
def test_what_is_no_listing_is_refused_by_name(text: str, error: type[ValueError], named: str) -> None:
    with pytest.raises(error, match=named):
        read_items(text)
