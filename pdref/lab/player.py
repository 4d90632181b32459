"""A generation's history as an animation: in the terminal, inline in a notebook, and as one HTML page.

All three play the same `frames`. Choices:

- The clock counts sequential forwards (the critical path), so generations that play side by side finish in
  the order in which they would; tokens appear with the forward that predicted them.
- Every token is a cell, tags included, and stands where the finished text has it. In the browser a mask is as
  wide as its word, so nothing jumps.
- `show` and `write_page` run one script (`player.js`, `player.css`) on JSON. It touches no network and writes
  text into the page as text, never as markup. Where scripts do not run, the finished text is shown.
- One palette, safe for colour-blind readers (Okabe and Ito), names the roles here and in `pdref.lab.plots`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from html import escape
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pdref.methods.generation import Generation, Phase
from pdref.text.layout import NO_SPAN, Role
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

ROLE_COLOURS = {
    Role.PROMPT: "#56B4E9",
    Role.PLAN: "#E69F00",
    Role.CONTENT: "#009E73",
    Role.TAG: "#CC79A7",
    Role.PAD: "#BFC4CA",
}
SPAN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # in turn

Area = Literal["prompt", "plan", "span", "between", "beyond"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One token on screen.

    `text` is as written, with the space before it ("" while a mask). `area` is the line it belongs to:
    "between" holds <sync/> and <eos>, "beyond" what a sampler dropped after <eos>. `span` is the span it is
    of or, in a plan, announces. `kind` is what it does there: an echo repeats the topic, a filler is a <pad>.
    """

    position: int
    text: str
    area: Area
    kind: Literal["word", "echo", "filler", "tag"]
    stage: int
    span: int
    state: Literal["mask", "new", "old"] = "new"


@dataclass(frozen=True, slots=True)
class Frame:
    """The screen after one step (of the `steps` in its phase), with `forwards` of the critical path spent."""

    phase: Phase
    step: int
    steps: int
    forwards: int
    cells: tuple[Cell, ...]


def frames(generation: Generation, tokenizer: Tokenizer) -> list[Frame]:
    """Replay a history; the last frame holds the generation's tokens."""
    finished = _finished(generation, tokenizer)
    cells: dict[int, Cell] = {}
    film: list[Frame] = []
    for event, forwards in zip(generation.history, _clock(generation), strict=True):
        if film and (film[-1].phase, film[-1].forwards) == (event.phase, forwards):
            film.pop()  # the spans of one scaffold
        else:
            cells = {p: replace(c, state="old") if c.state == "new" else c for p, c in cells.items()}
        for position, token in zip(event.positions, event.tokens, strict=True):
            known = position < len(finished)
            cell = finished[position] if known else Cell(position, "", "beyond", "filler", 0, NO_SPAN)
            if token == Tag.MASK:
                cell = replace(cell, text="", state="mask")
            elif not known or token != generation.tokens[position]:  # dropped, or revised later
                cell = replace(cell, text=tokenizer.decode([token]))
            cells[position] = cell
        film.append(Frame(event.phase, 0, 0, forwards, tuple(cells[p] for p in sorted(cells))))
    runs = [list(run) for _, run in groupby(film, key=lambda frame: frame.phase)]
    return [replace(frame, step=i, steps=len(run)) for run in runs for i, frame in enumerate(run, 1)]


def _clock(generation: Generation) -> Iterator[int]:
    """The critical path at which each event's tokens are there.

    A forward predicts the tokens that it shows, the end of a plan (then its scaffold is there) or what comes
    after a commit. Prompts and plans given by hand cost nothing to show. Forwards spent on plan items that
    were cut come before the scaffold of those that were kept.
    """
    costs: list[int] = []
    before: Phase | None = None
    for event in generation.history:
        given = event.phase == "prompt" or (event.phase == "plan" and len(event.tokens) > 1)
        costs.append(0 if given or event.phase == before == "scaffold" else 1)
        before = event.phase
    if generation.cuts and "scaffold" in (phases := [event.phase for event in generation.history]):
        costs[phases.index("scaffold")] += max(0, generation.critical_path - sum(costs))
    return accumulate(costs)


def _finished(generation: Generation, tokenizer: Tokenizer) -> list[Cell]:
    """The cells of the final text; tokens that break the grammar still find a line."""
    area: Area = "prompt"
    stage, item, span = 0, NO_SPAN, NO_SPAN
    cells: list[Cell] = []
    for position, (token, text) in enumerate(_spell(generation.tokens, tokenizer)):
        if position == generation.prompt_length or token == Tag.EOS:
            area = "between"
        if area != "prompt":
            if token == Tag.SYNC:
                area, stage, item, span = "between", stage + 1, NO_SPAN, NO_SPAN
            elif token == Tag.TOPIC:
                area, item = "plan", item + 1
            elif token == Tag.ASYNC:
                area, span = "span", span + 1
        kind = "filler" if token == Tag.PAD else "tag" if token < len(Tag) else "word"
        number = {"plan": item, "span": span}.get(area, NO_SPAN)
        cells.append(Cell(position, text, area, kind, stage, number))
        if token in (Tag.END_TOPIC, Tag.END_ASYNC):
            area = "between"
    for position in list(_echoes(generation, cells)):
        cells[position] = replace(cells[position], kind="echo")
    return cells


def _spell(tokens: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """Each token and its text, spaces included; a character is written by the token of its last byte."""
    start, written = 0, ""
    for i, token in enumerate(tokens):
        if token < len(Tag):
            start, written = i + 1, ""
            yield token, Tag(token).text
        else:
            whole = tokenizer.decode(tokens[start : i + 1]).rstrip("\ufffd")
            yield token, whole[len(written) :]
            written = whole


def _echoes(generation: Generation, cells: Sequence[Cell]) -> Iterator[int]:
    """Positions where a span repeats its topic: given by its scaffold or, without one, reading the same."""
    scaffold = dict(
        pair
        for event in generation.history
        if event.phase == "scaffold"
        for pair in zip(event.positions, event.tokens, strict=True)
    )
    topic = topics(cells)
    for area, stage, span, line in lines(cells):
        words = [cell for cell in line if area == "span" and cell.kind == "word"]
        if words and scaffold.get(line[0].position) == Tag.ASYNC:
            yield from (cell.position for cell in words if scaffold[cell.position] >= len(Tag))
        else:
            texts = [text.strip() for text in accumulate(cell.text for cell in words)]
            count = texts.index(topic[stage, span]) + 1 if topic.get((stage, span)) in texts else 0
            yield from (cell.position for cell in words[:count])


def lines(cells: Sequence[Cell]) -> list[tuple[Area, int, int, list[Cell]]]:
    """Cells by the line they stand on: (area, stage, span, cells); the items of a plan are a line each."""
    runs = groupby(cells, key=lambda cell: (cell.area, cell.stage, cell.span))
    return [(*key, list(run)) for key, run in runs]


def topics(cells: Sequence[Cell]) -> dict[tuple[int, int], str]:
    """The topic, without its length, of each (stage, span) that is planned."""
    words: dict[tuple[int, int], str] = {}
    for area, stage, span, line in lines(cells):
        if area == "plan":
            text = "".join(cell.text for cell in line if cell.kind == "word")
            words[stage, span] = re.sub(r"\s*\d+$", "", text.strip())
    return words


# In the terminal.

PHASES: dict[Phase, str] = {
    "prompt": "reads the prompt",
    "plan": "plans",
    "write": "writes",
    "scaffold": "lays out masks",
    "denoise": "denoises",
    "commit": "commits",
}
_DRAWN = {Tag.TOPIC.text: "‹", Tag.END_TOPIC.text: "›", Tag.SYNC.text: "── sync ──", Tag.EOS.text: "■"}


def play_in_terminal(
    generation: Generation, tokenizer: Tokenizer, delay: float = 0.08, console: Console | None = None
) -> None:
    """Play a generation, `delay` seconds a frame; where output is no terminal, print its last frame."""
    console = console or Console()
    film = frames(generation, tokenizer)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            for frame in film:
                live.update(draw(frame, generation), refresh=True)
                time.sleep(delay)
    console.print(draw(film[-1], generation))


def draw(frame: Frame, generation: Generation) -> RenderableType:
    """One frame for rich: a header, the prompt, a line per plan and per span."""
    steps = f" {frame.step}/{frame.steps}" if frame.steps > 1 else ""
    spent = f"  forwards, one after another: {frame.forwards} of {generation.critical_path}"
    rows = Table.grid(padding=(0, 1))
    topic = topics(frame.cells)
    plan: Text | None = None
    for area, stage, span, cells in lines(frame.cells):
        colour = "default" if span == NO_SPAN else SPAN_COLOURS[span % len(SPAN_COLOURS)]
        text = Text.assemble(*(piece for cell in cells for piece in _pieces(cell, colour)))
        if area == "span" and all(cell.kind != "echo" for cell in cells):
            text = Text.assemble((f"{topic.get((stage, span), '')} ", f"bold {colour}"), text)
        if area == "plan" and plan is not None:
            plan.append("  ").append_text(text)
            continue
        text = Text(text.plain.lstrip()) if area == "prompt" else text
        plan = text if area == "plan" else None
        margin = {
            "prompt": Text("prompt", ROLE_COLOURS[Role.PROMPT]),
            "plan": Text("plan", ROLE_COLOURS[Role.PLAN]),
            "span": Text("▌", colour, justify="right"),
        }
        rows.add_row(margin.get(area, ""), text)
    return Group(Text.assemble((f" {PHASES[frame.phase]}{steps} ", "reverse bold"), spent), rows)


def _pieces(cell: Cell, colour: str) -> list[tuple[str, str]]:
    """A cell as text and style, the space before it apart."""
    if cell.state == "mask":
        return [(" ", ""), ("░░", colour)]
    if cell.kind in ("tag", "filler"):
        return [(" ·" if cell.kind == "filler" else _DRAWN.get(cell.text, ""), "dim")]
    style = f"bold {colour}" if cell.kind == "echo" or cell.area == "plan" else ""
    body = cell.text.lstrip()
    new = " reverse" if cell.state == "new" and cell.area != "prompt" else ""
    return [(cell.text[: len(cell.text) - len(body)], ""), (body, style + new)]


# In a browser.

_HERE = Path(__file__).parent
_TICK = "One tick of the clock is one forward pass that had to wait for the one before it."
_RACE = f"One prompt, several ways to answer it. {_TICK} Who finishes first has the shortest critical path."


class Player:
    """An animation that a notebook shows as the value of a cell. Raises ValueError with nothing to play.

    `keys` makes the whole page listen to the keyboard, not only the focused player.
    """

    def __init__(self, generations: Mapping[str, Generation], tokenizer: Tokenizer, keys: bool = False) -> None:
        if not generations:
            raise ValueError("nothing to play: give at least one generation")
        self.films = [_film(name, generation, tokenizer) for name, generation in generations.items()]
        self.keys = keys

    def _repr_html_(self) -> str:
        """An HTML fragment; what it shows without its script is the finished text."""
        data = _json({"films": self.films, "keys": self.keys})
        name = f"pdref-{sha256(data.encode()).hexdigest()[:12]}"
        text = "".join(_plain(film) for film in self.films)
        script = (_HERE / "player.js").read_text(encoding="utf-8")
        style = _palette() + (_HERE / "player.css").read_text(encoding="utf-8")
        hosts = f'document.querySelectorAll("#{name}:not([data-ready])")'
        start = f"for (const host of {hosts}) play(host, {_json(style)}, {data});"
        return f'<div id="{name}">{text}</div>\n<script>\n(() => {{\n{script}\n{start}\n}})();\n</script>'


def show(generation: Generation | Mapping[str, Generation], tokenizer: Tokenizer) -> Player:
    """Play one generation, or several by name side by side, inline in a notebook."""
    return Player(generation if isinstance(generation, Mapping) else {"": generation}, tokenizer)


def write_page(
    path: Path | str,
    generations: Mapping[str, Generation],
    tokenizer: Tokenizer,
    title: str = "Plan, then generate",
) -> Path:
    """Write one self-contained HTML page that plays `generations` by name, side by side; returns its path."""
    parts = {
        "title": escape(title),
        "lead": _RACE if len(generations) > 1 else _TICK,
        "player": Player(generations, tokenizer, keys=True)._repr_html_(),
    }
    page = (_HERE / "player.html").read_text(encoding="utf-8")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page), encoding="utf-8")
    return path


def _film(name: str, generation: Generation, tokenizer: Tokenizer) -> dict[str, Any]:
    """The frames as JSON, by cell: [kind, clock, text, clock, text, ...] with null for a mask."""
    film = frames(generation, tokenizer)
    changes: dict[int, list[Any]] = {}
    for frame in film:
        for cell in frame.cells:
            change = changes.setdefault(cell.position, [cell.kind])
            if cell.state == "new":
                change += [frame.forwards, cell.text]
            elif cell.state == "mask" and change[-1] is not None:
                change += [frame.forwards, None]
    cells = film[-1].cells
    topic = topics(cells)
    return {
        "name": name,
        "prompt": "".join(c.text for c in cells if c.area == "prompt" and c.kind == "word"),
        "frames": [[PHASES[f.phase], f.step, f.steps, f.forwards] for f in film],
        "path": generation.critical_path,
        "notes": [*generation.cuts, *filter(None, [generation.problem])],
        "spent": _spent(film, generation.critical_path),
        "lines": [
            [area, stage, span, topic.get((stage, span), ""), [changes[cell.position] for cell in line]]
            for area, stage, span, line in lines(cells)
            if area != "prompt"
        ],
    }


def _plain(film: Mapping[str, Any]) -> str:
    """The finished text as HTML."""
    spans = ["".join(cell[-1] for cell in line[-1] if cell[0] in ("word", "echo")) for line in film["lines"]]
    return f"<p><b>{escape(film['name'])}</b>{''.join(f'<br>{escape(text)}' for text in spans if text)}</p>"


def _spent(film: Sequence[Frame], path: int) -> list[tuple[str, int]]:
    """What the forwards went into, as (what, until when)."""
    runs: list[tuple[str, int]] = []
    for frame in film:
        what = {"plan": "plan", "write": "span", "denoise": "span"}.get(frame.phase, "rest")
        if frame.phase == "scaffold":
            what = runs[-1][0]  # the forward that ended the plan
        elif frame.phase == "write" and frame.cells[-1].area == "plan":
            what = "plan"
        runs[-1 if runs and runs[-1][0] == what else len(runs) :] = [(what, frame.forwards)]
    return [*runs, ("rest", path)]


def _palette() -> str:
    """The colours as CSS variables."""
    colours = {role.name.lower(): colour for role, colour in ROLE_COLOURS.items()}
    colours |= {f"span-{i}": colour for i, colour in enumerate(SPAN_COLOURS)}
    return f":host{{{';'.join(f'--{name}:{colour}' for name, colour in colours.items())}}}\n"


def _json(value: object) -> str:
    """JSON that is safe between <script> tags."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
