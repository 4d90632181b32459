"""The postcards' joint law against counting, its price of independence against closed forms, and reading."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from laws import independence
from laws.independence import ALL, H
from pdref.data.postcards import CHOICES, GRAMMAR, SHARED, UNREADABLE, Postcards
from pdref.text.document import Span, Stage
from pdref.text.layout import encode
from pdref.theory.independence import conditional_entropy, impossible, total_correlation


@pytest.mark.parametrize("named", ALL, ids=" ".join)
def test_the_price_of_every_plan_in_closed_form(named: tuple[str, ...]) -> None:
    independence.the_price_is_the_closed_form(named)


def test_a_plan_that_names_what_is_shared_costs_nothing() -> None:
    assert total_correlation(Postcards().joint) == pytest.approx(0, abs=1e-12)
    assert impossible(Postcards().joint) == pytest.approx(0, abs=1e-12)
    assert conditional_entropy(Postcards().joint) == pytest.approx(H["verb"]), "and may leave the verb to its sentence"
    for count in range(4):
        for named in combinations(SHARED, count):
            assert total_correlation(Postcards(named).joint) > 0.5


def test_the_joint_is_the_law_of_the_samples() -> None:
    source = Postcards(("place",))
    assert source.chances.sum() == pytest.approx(1) and source.joint.sum() == pytest.approx(1)
    assert len({document.text for document in source.documents}) == len(source.documents) == 108
    count = 20_000
    seen = Counter(document.text for document in source.sample(count, 0))
    expected = {
        document.text: count * chance for document, chance in zip(source.documents, source.chances, strict=True)
    }
    chi = sum((seen[text] - mean) ** 2 / mean for text, mean in expected.items())
    assert abs(chi - 107) < 4 * (2 * 107) ** 0.5
    assert source.sample(5, 1) == source.sample(5, 1) != source.sample(5, 2)


def test_a_postcard() -> None:
    source = Postcards(("place", "season"))
    assert source.named == ("season", "place"), "in one order"
    document = source.documents[0]
    assert document.prompt == "name season place"
    assert [str(item) for item in document.stages[0].plan] == ["arrival summer coast 1", "days 1", "evening 1"]
    assert document.text == "summer coast with friends\nsummer sun over coast\nfriends watched coast sun"
    tokenizer = Postcards.tokenizer()
    for named in ALL:
        assert encode(Postcards(named).documents[7], tokenizer, GRAMMAR).shape[0] == 1


def rewritten(source: Postcards, *texts: str) -> tuple[str, ...]:
    """What the first postcard contradicts itself on with other sentences."""
    document = source.documents[0]
    spans = tuple(Span(text) for text in texts)
    return source.contradictions(replace(document, stages=(replace(document.stages[0], spans=spans),)))


def test_contradictions_are_found_by_choice() -> None:
    arrival, days, evening = "summer coast with friends", "summer sun over coast", "friends watched coast sun"
    none, place = Postcards(()), Postcards(("place",))
    assert all(source.contradictions(document) == () for source in (none, place) for document in source.documents)
    assert rewritten(none, arrival, "winter sun over coast", evening) == ("season",)
    assert rewritten(none, arrival, "summer rain over hills", evening) == ("place", "weather")
    assert rewritten(none, arrival, days, "family loved coast sun") == ("company",)
    hills = [text.replace("coast", "hills") for text in (arrival, days, evening)]
    assert rewritten(none, *hills) == () and rewritten(place, *hills) == ("place",), "all sentences against the plan"


def test_what_is_no_postcard_is_unreadable() -> None:
    source = Postcards(())
    good = ("summer coast with friends", "summer sun over coast")
    for bad in (
        "",
        "friends watched coast",
        "friends watched coast sun sun",
        "friends over coast sun",
        "coast watched coast sun",
    ):
        assert rewritten(source, *good, bad) == (UNREADABLE,)
    document = source.documents[0]
    two = replace(document, stages=(Stage(document.stages[0].plan[:2], document.stages[0].spans[:2]),))
    assert source.contradictions(two) == (UNREADABLE,)
    assert Postcards(("place",)).contradictions(document) == (UNREADABLE,), "its plan names nothing"


@pytest.mark.parametrize("named", [(), ("place",), ("season", "place"), ("season", "company", "weather"), CHOICES])
def test_independent_sentences_contradict_each_other_as_often_as_computed(named: tuple[str, ...]) -> None:
    independence.contradictions_are_what_the_source_cannot_write(named)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="no choice of hotel; a plan may name season, place"):
        Postcards(("place", "hotel"))
