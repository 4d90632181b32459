"""Topics: taken from the span, telling it from its siblings."""

from __future__ import annotations

import pytest

from pdref.data.topics import TOPIC_WORDS, choose_topics, indentation, words


@pytest.mark.parametrize(
    ("content", "topic"),
    [
        ("str.center(width[, fillchar])\n\n   Return centred.", "str.center"),
        ("class Thread\n    A thread of control.", "Thread"),
        ("- host: name to connect to", "host"),
        ("add(x)\n    Add.\n\nclear()\n    Remove all.", "add clear"),
        ("a(x)\n  1\nb(x)\n  2\nc(x)\n  3\nd(x)\n  4", "b c d"),  # "a" is a stop word, and three are enough
        ("The default is to return the value, if it has one: network mask.", "network mask"),
        ("+---+", "+---+"),
    ],
)
def test_the_topic_of_a_span(content: str, topic: str) -> None:
    assert choose_topics("", [content], content) == [topic]


def test_a_topic_is_what_the_siblings_do_not_say() -> None:
    spans = ["The socket sends bytes, the socket is open.", "The socket has a timeout."]
    assert choose_topics("", spans, "\n".join(spans))[1] == "timeout"


def test_what_the_prompt_says_weighs_less() -> None:
    span = "An address, and a port."
    assert choose_topics("", [span], span) == ["address"]
    assert choose_topics("address", [span], span) == ["port"]


def test_equal_spans_get_different_topics_while_there_are_any() -> None:
    span = "An address, and a port."
    assert choose_topics("", [span] * 3, "\n".join([span] * 3)) == ["address", "port", "address"]


def test_a_long_run_of_words_is_cut() -> None:
    text = "binary floating point arithmetic operations"
    [topic] = choose_topics("", [text], text)
    assert topic == "binary floating point"
    assert len(topic.split()) == TOPIC_WORDS


def test_words_and_indentation() -> None:
    assert words("Don't use `os.path`, 3 times.") == ["don't", "use", "os.path", "3", "times"]
    assert indentation("\n\n   x\n y") == 3
    assert indentation(" \n") == 0
