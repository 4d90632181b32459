"""The player: frames replay a history faithfully, and its three forms show what the frames say."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pdref.data.profiles import Profiles
from pdref.lab import player
from pdref.lab.player import Cell, Frame, draw, frames, lines, play_in_terminal, show, topics, write_page
from pdref.methods import autoregressive, masked_diffusion, planned_diffusion
from pdref.methods.decoding import Requests, Speaker
from pdref.methods.denoising import Unmasking
from pdref.methods.generation import Event, Generation
from pdref.methods.planning import Bounds
from pdref.model.transformer import Config, Transformer
from pdref.text.document import PlannedDocument, parse, render
from pdref.text.layout import Grammar, encode
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

SOURCE = Profiles(2, Grammar(grid=4, echo=True))
TOKENIZER = SOURCE.tokenizer()
DOCUMENTS = SOURCE.sample(12, seed=3)
ONE_STAGE = next(d for d in DOCUMENTS if len(d.stages) == 1)
TWO_STAGES = next(d for d in DOCUMENTS if len(d.stages) == 2)


def ids(document: PlannedDocument) -> list[int]:
    return encode(document, TOKENIZER, SOURCE.grammar).token[0].tolist()


@pytest.fixture
def dictate(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[PlannedDocument]], Speaker]:
    """An untrained model whose next token is always the document's; it denoises as it pleases."""

    def dictated(documents: Sequence[PlannedDocument]) -> Speaker:
        texts = [ids(document) for document in documents]

        def next_tokens(requests: Requests, rows: Sequence[int]) -> list[int]:
            cut = [bool(requests.generations[b].cuts) for b in rows]
            return [Tag.EOS if c else texts[b][requests.length(b)] for c, b in zip(cut, rows, strict=True)]

        monkeypatch.setattr(Requests, "next_tokens", next_tokens)
        torch.manual_seed(0)
        model = Transformer(Config.of_depth(1, len(TOKENIZER))).eval()
        return Speaker(model, TOKENIZER, SOURCE.grammar)

    return dictated


SAMPLERS: dict[str, Callable[[Speaker, list[str]], list[Generation]]] = {
    "autoregressive": autoregressive.sample,
    "diffusion": lambda s, p: masked_diffusion.sample(s, p, 100, Unmasking(0.5)),
    "planned r=1": planned_diffusion.sample,
    "planned r=0.34": lambda s, p: planned_diffusion.sample(s, p, Unmasking(0.34)),
    "plan by hand": lambda s, p: planned_diffusion.sample(s, p, plans=[TWO_STAGES.stages[0].plan, None]),
    "plan cut": lambda s, p: planned_diffusion.sample(s, p, bounds=Bounds(plan_tokens=8)),
    "text cut": lambda s, p: autoregressive.sample(s, p, limit=30),
}


@pytest.fixture(params=SAMPLERS)
def generation(request: pytest.FixtureRequest, dictate: Callable[..., Speaker]) -> Generation:
    """What each sampler gives for a document of two stages, beside another one in the batch."""
    both = [TWO_STAGES, ONE_STAGE]
    return SAMPLERS[request.param](dictate(both), [d.prompt for d in both])[0]


def texts(film: list[Frame], where: Callable[[Cell], bool] = lambda cell: True) -> str:
    return "".join(cell.text for cell in film[-1].cells if where(cell))


def test_the_last_frame_holds_the_generation(generation: Generation):
    film = frames(generation, TOKENIZER)
    last = [cell for cell in film[-1].cells if cell.position < len(generation.tokens)]
    assert [cell.position for cell in last] == list(range(len(generation.tokens)))
    assert "".join(cell.text for cell in last) == TOKENIZER.decode(generation.tokens)
    assert all(cell.state != "mask" for cell in film[-1].cells)
    assert all((cell.position >= len(last)) == (cell.area == "beyond") for cell in film[-1].cells)


def test_masks_only_disappear_and_every_token_is_new_once(generation: Generation):
    film = frames(generation, TOKENIZER)
    news: list[int] = []
    for before, after in pairwise([Frame("prompt", 0, 0, 0, ()), *film]):
        states = {cell.position: cell.state for cell in before.cells}
        for cell in after.cells:
            allowed = {"mask": {"mask", "new"}, "new": {"old"}, "old": {"old"}, None: {"mask", "new"}}
            assert cell.state in allowed[states.get(cell.position)]
            assert (cell.text == "") == (cell.state == "mask")
            news += [cell.position] * (cell.state == "new")
    assert sorted(news) == [cell.position for cell in film[-1].cells]


def test_the_clock_is_the_critical_path(generation: Generation):
    film = frames(generation, TOKENIZER)
    clock = [frame.forwards for frame in film]
    assert clock[0] == 0 and clock == sorted(clock)
    unfinished = generation.tokens[-1] != Tag.EOS and film[-1].phase == "write"
    assert clock[-1] == generation.critical_path - unfinished, "the forward over the last token shows nothing"


def test_every_denoising_step_is_one_forward(dictate: Callable[..., Speaker]):
    speaker = dictate([ONE_STAGE])
    generation = planned_diffusion.sample(speaker, [ONE_STAGE.prompt], Unmasking(0.25))[0]
    film = [frame for frame in frames(generation, TOKENIZER) if frame.phase == "denoise"]
    steps = round(0.25 * 4 * max(item.length for item in ONE_STAGE.stages[0].plan))
    assert [(frame.step, frame.steps) for frame in film] == [(i + 1, steps) for i in range(steps)]
    assert [b.forwards - a.forwards for a, b in pairwise(film)] == [1] * (steps - 1)


def test_forwards_spent_on_a_cut_plan_come_before_its_scaffold(dictate: Callable[..., Speaker]):
    speaker = dictate([TWO_STAGES])
    cut = planned_diffusion.sample(speaker, [TWO_STAGES.prompt], bounds=Bounds(plan_tokens=8))[0]
    film = frames(cut, TOKENIZER)
    assert cut.cuts and sum(frame.phase == "plan" for frame in film) < 8
    assert next(frame for frame in film if frame.phase == "scaffold").forwards == 8 + 1


def written(document: PlannedDocument) -> Generation:
    """A document as autoregression would have written it."""
    tokens = ids(document)
    start = len(TOKENIZER.encode(document.prompt)) + 1
    history = [Event("prompt", tuple(range(start)), tuple(tokens[:start]))]
    history += [Event("write", (i,), (tokens[i],)) for i in range(start, len(tokens))]
    return Generation(tokens, start, document, critical_path=len(tokens) - start, history=history)


def test_lines_are_the_document():
    film = frames(written(TWO_STAGES), TOKENIZER)
    items = [(s, k, item) for s, stage in enumerate(TWO_STAGES.stages) for k, item in enumerate(stage.plan)]
    assert topics(film[-1].cells) == {(s, k): item.topic for s, k, item in items}
    found = [(stage, span, line) for area, stage, span, line in lines(film[-1].cells) if area == "span"]
    assert [(s, k) for s, k, _ in found] == [(s, k) for s, k, _ in items]
    for stage, span, line in found:
        item, content = TWO_STAGES.stages[stage].plan[span], TWO_STAGES.stages[stage].spans[span]
        told = {kind: "".join(c.text for c in line if c.kind == kind).strip() for kind in ("echo", "word")}
        assert told == {"echo": item.topic, "word": content.text}
        assert [c.kind for c in line].count("filler") == content.pads


def test_a_span_that_begins_like_its_topic_is_no_echo_if_the_scaffold_gave_none():
    tokenizer = Tokenizer.words(["say", "the", "cat", "sat", "1"])
    grammar = Grammar(grid=3, echo=False)
    document = parse("say<topic>the cat 1</topic><async>the cat sat</async><eos>")
    row = encode(document, tokenizer, grammar).token[0].tolist()
    scaffold = [Tag.ASYNC, Tag.MASK, Tag.MASK, Tag.MASK, Tag.END_ASYNC]
    history = [
        Event("prompt", (0, 1), tuple(row[:2])),
        Event("plan", tuple(range(2, 7)), tuple(row[2:7])),
        Event("scaffold", tuple(range(7, 12)), tuple(scaffold)),
        Event("denoise", (8, 9, 10), tuple(row[8:11])),
        Event("commit", (12,), (Tag.EOS,)),
    ]
    generation = Generation(row, 2, critical_path=3, history=history)
    film = frames(generation, tokenizer)
    assert texts(film, lambda c: c.area == "span" and c.kind == "word") == "the cat sat"
    assert film[-1].forwards == 3
    assert "the cat the cat sat" in shown(film[-1], generation), "the line still begins with its topic"


def test_a_revised_token_and_a_mask_that_returns_are_shown():
    cat, dog = TOKENIZER.encode("cat dog")
    history = [Event("prompt", (0,), (Tag.BOS,))]
    history += [Event("denoise", (1,), (token,)) for token in (dog, Tag.MASK, cat)]
    generation = Generation([Tag.BOS, cat], 1, critical_path=3, history=history)
    film = frames(generation, TOKENIZER)
    states = [(frame.cells[1].text, frame.cells[1].state) for frame in film[1:]]
    assert states == [("dog", "new"), ("", "mask"), ("cat", "new")]
    assert show(generation, TOKENIZER).films[0]["lines"][0][-1] == [["word", 1, "dog", 2, None, 3, "cat"]]


def test_characters_cut_by_byte_pairs_are_written_once(byte_pairs: Tokenizer):
    tokens = [int(Tag.BOS), *byte_pairs.encode("naïve 日本語 🎻<topic>1920s music 12</topic>")]
    history = [Event("prompt", (0,), (tokens[0],))]
    history += [Event("write", (i,), (t,)) for i, t in enumerate(tokens[1:], 1)]
    film = frames(Generation(tokens, 1, history=history), byte_pairs)
    assert texts(film) == "<bos>naïve 日本語 🎻<topic>1920s music 12</topic>"
    assert topics(film[-1].cells) == {(0, 0): "1920s music"}


@given(tokens=st.lists(st.sampled_from([*Tag, *range(9, 14)]), max_size=30))
def test_any_tokens_can_be_played(tokens: list[int]):
    row = [int(Tag.BOS), *map(int, tokens)]
    history = [Event("prompt", (0,), (Tag.BOS,))]
    history += [Event("write", (i,), (t,)) for i, t in enumerate(row[1:], 1)]
    generation = Generation(row, 1, problem="anything", critical_path=len(row), history=history)
    visible = "".join(c.text or Tag.MASK.text for c in frames(generation, TOKENIZER)[-1].cells)
    assert visible == TOKENIZER.decode(row)
    assert show(generation, TOKENIZER)._repr_html_() and shown(frames(generation, TOKENIZER)[-1], generation)


# In the terminal.


def shown(frame: Frame, generation: Generation) -> str:
    page = io.StringIO()
    Console(file=page, width=200).print(draw(frame, generation))
    return page.getvalue()


@pytest.fixture
def planned(dictate: Callable[..., Speaker]) -> Generation:
    speaker = dictate([TWO_STAGES])
    return planned_diffusion.sample(speaker, [TWO_STAGES.prompt], Unmasking(0.34))[0]


def test_the_terminal_shows_plan_then_masks_then_words(planned: Generation):
    film = frames(planned, TOKENIZER)
    scaffold = next(i for i, frame in enumerate(film) if frame.phase == "scaffold")
    masks = sum(item.length for item in TWO_STAGES.stages[0].plan) * 4
    assert "░" not in shown(film[scaffold - 1], planned)
    assert shown(film[scaffold], planned).count("░░") == masks
    assert 0 < shown(film[scaffold + 1], planned).count("░░") < masks
    first, last = shown(film[3], planned), shown(film[-1], planned)
    assert "plans 3/" in first and f"forwards, one after another: 3 of {planned.critical_path}" in first
    assert all(f"‹{item}›" in last for stage in TWO_STAGES.stages for item in stage.plan)
    assert last.count("▌") == sum(len(stage.plan) for stage in TWO_STAGES.stages)
    assert "── sync ──" in last and "░" not in last


def test_new_tokens_are_highlighted_in_their_frame_alone(planned: Generation):
    film = frames(planned, TOKENIZER)
    console = Console(record=True, force_terminal=True, color_system="truecolor", file=io.StringIO())
    for i in (2, 3):
        console.print(draw(film[i], planned))
    kind = TOKENIZER.decode(planned.tokens[planned.prompt_length + 1 : planned.prompt_length + 2])
    before, after = console.export_text(styles=True).split("plans 3/")
    assert re.search(rf"\x1b\[1;7;[0-9;]*m{kind}\x1b", before), "just set"
    assert not re.search(rf"\x1b\[1;7;[0-9;]*m{kind}\x1b", after)


def test_a_terminal_plays_all_frames_and_keeps_the_last(planned: Generation):
    page, file = io.StringIO(), io.StringIO()
    play_in_terminal(planned, TOKENIZER, 0, Console(file=page, force_terminal=True, width=200, height=60))
    play_in_terminal(planned, TOKENIZER, 9, Console(file=file, force_terminal=False, width=200))
    film = frames(planned, TOKENIZER)
    played = re.findall(r"one after another: (\d+) of", page.getvalue())
    assert list(dict.fromkeys(map(int, played))) == [frame.forwards for frame in film]
    assert file.getvalue() == shown(film[-1], planned), "no animation, and no waiting, where nobody watches"


def test_markup_in_text_is_text():
    tokenizer = Tokenizer.words(["[bold]", "[/red]"])
    tokens = [int(Tag.BOS), *tokenizer.encode("[bold] [/red]")]
    generation = Generation(tokens, 3, history=[Event("prompt", (0, 1, 2), tuple(tokens))])
    assert "[bold] [/red]" in shown(frames(generation, tokenizer)[-1], generation)


# In a browser.

EVIL = ["<script>alert(1)</script>", "</script>", "&amp;", '"><img/src=x>', "{{title}}", "<!--"]


def evil() -> tuple[Generation, Tokenizer]:
    tokenizer = Tokenizer.words([*EVIL, "1"])
    text = " ".join(EVIL)
    tokens = [int(Tag.BOS), *tokenizer.encode(f"{text}<topic>{text} 1</topic><async>{text}</async><eos>")]
    start = len(EVIL) + 1
    history = [Event("prompt", tuple(range(start)), tuple(tokens[:start]))]
    history += [Event("write", (i,), (t,)) for i, t in enumerate(tokens) if i >= start]
    return Generation(tokens, start, problem=f"\u2028 {text}", critical_path=9, history=history), tokenizer


def films(page: str) -> list[dict]:
    """The data that a page hands to its script."""
    found = re.search(r"play\(host, (.*)\);\n\}\)\(\);", page)
    assert found
    return json.loads(f"[{found[1]}]")[1]["films"]


def test_text_never_becomes_markup(tmp_path: Path):
    generation, tokenizer = evil()
    name = " ".join(EVIL)
    page = write_page(tmp_path / "new" / "p.html", {name: generation}, tokenizer, name).read_text("utf-8")
    assert page.count("<script") == page.count("</script") == 1
    assert "<img" not in page and "<!--" not in page.replace("<!doctype", "") and "\u2028" not in page
    film = films(page)[0]
    assert film["name"] == film["prompt"] == name and film["notes"] == [generation.problem], "none is lost"
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3, "title, heading, text without scripts"


def test_a_page_is_self_contained(tmp_path: Path, planned: Generation):
    both = {"planned": planned, "token by token": written(TWO_STAGES)}
    page = write_page(tmp_path / "p.html", both, TOKENIZER, "A race").read_text("utf-8")
    assert not re.search(r"https?:|//\w|\b(src|href)\s*=|@import|url\(|\bfetch\b|XMLHttp|import\(", page)
    assert "default-src 'none'" in page and "<title>A race</title>" in page
    assert [film["name"] for film in films(page)] == list(both)
    assert "{{" not in page


def test_a_page_speaks_to_keyboards_and_readers(planned: Generation):
    html = show(planned, TOKENIZER)._repr_html_()
    for needed in ("ArrowLeft", "ArrowRight", "aria-label", "prefers-reduced-motion", "light-dark("):
        assert needed in html
    for colour in (*player.ROLE_COLOURS.values(), *player.SPAN_COLOURS):
        assert colour in html


def test_a_notebook_cell_is_light_and_repeatable(planned: Generation):
    html = show(planned, TOKENIZER)._repr_html_()
    assert len(html.encode()) < 60_000
    assert html == show(planned, TOKENIZER)._repr_html_()
    assert films(html) == json.loads(json.dumps(show({"": planned}, TOKENIZER).films))
    before_script = html.split("<script>")[0]
    for _, _, _, line in (x for x in lines(frames(planned, TOKENIZER)[-1].cells) if x[0] == "span"):
        assert "".join(c.text for c in line if c.kind in ("echo", "word")) in before_script


def test_the_script_is_fed_the_frames(generation: Generation):
    """Replaying the data as the script does gives the frames, cell by cell."""
    film = show(generation, TOKENIZER).films[0]
    cells = [cell for *_, line in film["lines"] for cell in line]
    for frame in {frame.forwards: frame for frame in frames(generation, TOKENIZER)}.values():
        now = []
        for _, *changes in cells:
            pairs = zip(changes[::2], changes[1::2], strict=True)
            past = [text or "" for at, text in pairs if at <= frame.forwards]
            now += past[-1:]
        assert now == [cell.text for cell in frame.cells if cell.area != "prompt"]
    assert [f[3] for f in film["frames"]] == [frame.forwards for frame in frames(generation, TOKENIZER)]
    assert film["path"] == film["spent"][-1][1] == generation.critical_path


def test_what_the_forwards_went_into():
    film = show(written(TWO_STAGES), TOKENIZER).films[0]
    assert [what for what, _ in film["spent"]] == ["rest", "plan", "span", "plan", "span", "rest"]
    response = render(TWO_STAGES, echo=True)[len(TWO_STAGES.prompt) :]
    plan = response[: response.index(Tag.ASYNC.text)]
    assert film["spent"][1][1] == len(TOKENIZER.encode(plan))


def test_nothing_to_play():
    with pytest.raises(ValueError, match="nothing to play"):
        show({}, TOKENIZER)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to read the script with")
def test_the_script_is_javascript(tmp_path: Path, planned: Generation):
    html = show(planned, TOKENIZER)._repr_html_()
    script = tmp_path / "player.mjs"
    script.write_text(html.split("<script>")[1].split("</script>")[0])
    subprocess.run(["node", "--check", script], check=True, timeout=30)
