"""A generation's history as an animation: in the terminal, inline in a notebook, and as one HTML page.

All three play the same `frames`. Choices:

- The clock counts sequential forwards (the critical path), so generations that play side by side finish in the order
  in which they would; tokens appear with the forward that predicted them.
- Every token is a cell, tags included, and stands where the finished text has it: a span's line is where it will be
  from the first frame on, and a mask is as wide as its word, so nothing jumps.
- `show` and `write_page` are one script (`player.js`, `player.css`) fed with JSON; it touches no network, and writes
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
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
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
SPAN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # one per span, then again

Area = Literal["prompt", "plan", "span", "between", "beyond"]
Kind = Literal["word", "echo", "filler", "tag"]
State = Literal["mask", "new", "old"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One token on screen.

    `text` is the token as written, with the space before it ("" while it is a mask). `area` says which line it belongs
    to ("between" holds <sync/> and <eos>, "beyond" what a sampler dropped after <eos>), `span` which span it is of or,
    in a plan, which one it announces. `kind` says what it is there: an echo repeats the topic, a filler is a <pad>.
    """

    position: int
    text: str
    area: Area
    kind: Kind
    stage: int
    span: int
    state: State


@dataclass(frozen=True, slots=True)
class Frame:
    """The screen after one step: step `step` of the `steps` in its phase, `forwards` of the critical path spent."""

    phase: Phase
    step: int
    steps: int
    forwards: int
    cells: tuple[Cell, ...]


def frames(generation: Generation, tokenizer: Tokenizer) -> list[Frame]:
    """Replay a history; the last frame holds the generation's tokens."""
    places = _places(generation, tokenizer)
    cells: dict[int, Cell] = {}
    film: list[Frame] = []
    for event, forwards in zip(generation.history, _clock(generation), strict=True):
        merged = bool(film) and film[-1].phase == event.phase and film[-1].forwards == forwards
        if not merged:
            cells = {p: replace(c, state="old") if c.state == "new" else c for p, c in cells.items()}
        for position, token in zip(event.positions, event.tokens, strict=True):
            if position < len(places) and token == generation.tokens[position]:
                cells[position] = places[position]
            else:
                place = places[position] if position < len(places) else _BEYOND
                masked = token == Tag.MASK
                text = "" if masked else tokenizer.decode([token])
                cells[position] = replace(place, position=position, text=text, state="mask" if masked else "new")
        if merged:
            film.pop()
        film.append(Frame(event.phase, 0, 0, forwards, tuple(cells[p] for p in sorted(cells))))
    return [
        replace(frame, step=step, steps=len(run))
        for run in (list(run) for _, run in groupby(film, key=lambda frame: frame.phase))
        for step, frame in enumerate(run, 1)
    ]


_BEYOND = Cell(0, "", "beyond", "filler", 0, NO_SPAN, "new")


def _clock(generation: Generation) -> Iterator[int]:
    """The critical path at which each event's tokens are there.

    A forward predicts the token that it shows, the end of a plan (then its scaffold is there) or what follows a commit;
    prompts and plans given by hand cost nothing to show. Forwards spent on plan items that were cut come before the
    scaffold that replaces them.
    """
    costs = []
    before: Phase | None = None
    for event in generation.history:
        given = event.phase == "prompt" or (event.phase == "plan" and len(event.tokens) > 1)
        costs.append(0 if given or event.phase == before == "scaffold" else 1)
        before = event.phase
    scaffolds = [i for i, event in enumerate(generation.history) if event.phase == "scaffold"]
    if generation.cuts and scaffolds:
        costs[scaffolds[0]] += max(0, generation.critical_path - sum(costs))
    forwards = 0
    for cost in costs:
        forwards += cost
        yield forwards


def _places(generation: Generation, tokenizer: Tokenizer) -> list[Cell]:
    """The finished text as cells; tokens that break the grammar still find a line."""
    texts = _spell(generation.tokens, tokenizer)
    area: Area = "between"
    stage, item, span = 0, NO_SPAN, NO_SPAN
    cells: list[Cell] = []
    for position, (token, text) in enumerate(zip(generation.tokens, texts, strict=True)):
        if position < generation.prompt_length:
            cells.append(Cell(position, text, "prompt", _kind(token), 0, NO_SPAN, "new"))
            continue
        if token == Tag.SYNC:
            area, stage, item, span = "between", stage + 1, NO_SPAN, NO_SPAN
        elif token == Tag.EOS:
            area = "between"
        elif token == Tag.TOPIC:
            area, item = "plan", item + 1
        elif token == Tag.ASYNC:
            area, span = "span", span + 1
        number = {"plan": item, "span": span}.get(area, NO_SPAN)
        cells.append(Cell(position, text, area, _kind(token), stage, number, "new"))
        if token in (Tag.END_TOPIC, Tag.END_ASYNC):
            area = "between"
    for position in _echoes(generation, cells):
        cells[position] = replace(cells[position], kind="echo")
    return cells


def _kind(token: int) -> Kind:
    return "filler" if token == Tag.PAD else "tag" if token < len(Tag) else "word"


def _spell(tokens: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Each token as written; joined, they are the text. Bytes of one character are all written by their last token."""
    texts: list[str] = []
    start, written = 0, ""
    for i, token in enumerate(tokens):
        if token < len(Tag):
            texts.append(Tag(token).text)
            start, written = i + 1, ""
        else:
            whole = tokenizer.decode(tokens[start : i + 1]).rstrip("\ufffd")
            texts.append(whole[len(written) :])
            written = whole
    return texts


def topics(cells: Sequence[Cell]) -> dict[tuple[int, int], str]:
    """The topic, without its length, of each (stage, span) that `cells` plan."""
    words: dict[tuple[int, int], str] = {}
    for cell in cells:
        if cell.area == "plan" and cell.kind == "word":
            words[cell.stage, cell.span] = words.get((cell.stage, cell.span), "") + cell.text
    return {key: text.rstrip("0123456789").strip() or text for key, text in words.items()}


def _echoes(generation: Generation, cells: Sequence[Cell]) -> Iterator[int]:
    """Positions where a span repeats its topic: what a scaffold gave or, without one, what reads like it."""
    scaffold: dict[int, int] = {}
    for event in generation.history:
        if event.phase == "scaffold":
            scaffold |= dict(zip(event.positions, event.tokens, strict=True))
    topic = topics(cells)
    for area, stage, span, line in lines(cells):
        words = [cell for cell in line if area == "span" and cell.kind == "word"]
        if words and scaffold.get(line[0].position) == Tag.ASYNC:
            yield from (cell.position for cell in words if scaffold[cell.position] >= len(Tag))
        else:
            read = [i for i in range(len(words)) if "".join(c.text for c in words[: i + 1]).strip() == topic.get((stage, span))]
            yield from (cell.position for cell in words[: read[-1] + 1 if read else 0])


def lines(cells: Sequence[Cell]) -> list[tuple[Area, int, int, list[Cell]]]:
    """Cells by the line they stand on: (area, stage, span, cells); the items of a plan are a line each."""
    runs = groupby(cells, key=lambda cell: (cell.area, cell.stage, cell.span))
    return [(area, stage, span, list(run)) for (area, stage, span), run in runs]


# In the terminal.

PHASES: dict[Phase, str] = {
    "prompt": "reads the prompt",
    "plan": "plans",
    "write": "writes",
    "scaffold": "lays out masks",
    "denoise": "denoises",
    "commit": "commits",
}


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


def draw(frame: Frame, generation: Generation) -> Group:
    """One frame for rich: a header, the prompt, a line per plan and per span."""
    steps = f" {frame.step}/{frame.steps}" if frame.steps > 1 else ""
    header = Text.assemble(
        (f" {PHASES[frame.phase]}{steps} ", "reverse bold"),
        f"  forwards one after another: {frame.forwards} of {generation.critical_path}",
    )
    rows: list[Text] = []
    for area, _, span, cells in lines(frame.cells):
        colour = SPAN_COLOURS[span % len(SPAN_COLOURS)] if span != NO_SPAN else "default"
        row = Text(overflow="fold")
        if area == "prompt":
            row.append("prompt ", ROLE_COLOURS[Role.PROMPT])
        elif area == "plan":
            if not span:
                rows.append(Text("plan", ROLE_COLOURS[Role.PLAN]))
        elif area == "span":
            row.append("▌ ", colour)
        for cell in cells:
            row.append(*_drawn(cell, colour))
        if area == "plan" and span != NO_SPAN:
            rows[-1].append("  ").append_text(row)
        else:
            rows.append(row)
    return Group(header, *rows)


def _drawn(cell: Cell, colour: str) -> tuple[str, str]:
    if cell.state == "mask":
        return " ░░", f"dim {colour}"
    if cell.kind == "tag":
        return _TAGS_DRAWN.get(cell.text, ""), f"dim {colour}"
    if cell.kind == "filler":
        return " ·", "dim"
    style = f"{colour} bold" if cell.kind == "echo" or cell.area == "plan" else "default"
    return cell.text, f"{style} reverse" if cell.state == "new" and cell.area != "prompt" else style


_TAGS_DRAWN = {Tag.TOPIC.text: "‹", Tag.END_TOPIC.text: "›", Tag.SYNC.text: "── sync ──", Tag.EOS.text: "■"}


# In a browser.


class Player:
    """An animation that a notebook shows as the value of a cell."""

    def __init__(self, generations: Mapping[str, Generation], tokenizer: Tokenizer, keys: bool = False) -> None:
        films = [_film(name, generation, tokenizer) for name, generation in generations.items()]
        if not films:
            raise ValueError("nothing to play: give at least one generation")
        self.data = {"films": films, "keys": keys}
        self.texts = {name: _plain(generation, tokenizer) for name, generation in generations.items()}

    def _repr_html_(self) -> str:
        """An HTML fragment; what it shows without its script is the finished text."""
        script = (_HERE / "player.js").read_text()
        style = _palette() + (_HERE / "player.css").read_text()
        data = _as_script(self.data)
        name = f"pdref-{sha256(data.encode()).hexdigest()[:12]}"
        finished = "".join(f"<p><b>{escape(n)}</b><br>{escape(text)}</p>" for n, text in self.texts.items())
        return (
            f'<div id="{name}">{finished}</div>\n<script>\n(() => {{\n{script}\n'
            f'for (const host of document.querySelectorAll("#{name}:not([data-ready])"))'
            f" play(host, {_as_script(style)}, {data});\n}})();\n</script>"
        )


def show(generation: Generation | Mapping[str, Generation], tokenizer: Tokenizer) -> Player:
    """Play one generation, or several by name side by side, inline in a notebook."""
    return Player(generation if isinstance(generation, Mapping) else {"": generation}, tokenizer)


def write_page(
    path: Path | str, generations: Mapping[str, Generation], tokenizer: Tokenizer, title: str = "Plan, then generate"
) -> Path:
    """Write one self-contained HTML page that plays `generations` side by side on one clock; returns its path."""
    player = Player(generations, tokenizer, keys=True)
    page = (_HERE / "player.html").read_text()
    parts = {"title": escape(title), "lead": _LEAD if len(generations) > 1 else _TICK, "player": player._repr_html_()}
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


_TICK = "One tick of the clock is one forward pass that had to wait for the one before it."
_LEAD = f"The same prompt, answered in several ways. {_TICK} Whoever finishes first has the shortest critical path."
_HERE = Path(__file__).parent


def _film(name: str, generation: Generation, tokenizer: Tokenizer) -> dict[str, Any]:
    """The frames as JSON, by cell: [kind, clock, text, clock, text, ...] with null for a mask."""
    film = frames(generation, tokenizer)
    changes: dict[int, list[Any]] = {}
    for frame in film:
        for cell in frame.cells:
            if cell.state == "new" or (cell.state == "mask" and changes.get(cell.position, [""])[-1] is not None):
                text = None if cell.state == "mask" else cell.text
                changes.setdefault(cell.position, [cell.kind]).extend([frame.forwards, text])
    topic = topics(film[-1].cells)
    return {
        "name": name,
        "prompt": "".join(c.text for c in film[-1].cells if c.area == "prompt" and c.kind == "word"),
        "frames": [[PHASES[f.phase], f.step, f.steps, f.forwards] for f in film],
        "path": generation.critical_path,
        "nfe": generation.nfe,
        "notes": [*generation.cuts, *([generation.problem] if generation.problem else [])],
        "spent": _spent(film, generation),
        "lines": [
            [area, stage, span, topic.get((stage, span), ""), [changes[c.position] for c in line]]
            for area, stage, span, line in lines(film[-1].cells)
            if area != "prompt"
        ],
    }


def _spent(film: Sequence[Frame], generation: Generation) -> list[list[Any]]:
    """What the forwards went into, as runs [what, until] on the clock."""
    runs: list[list[Any]] = []
    for frame in film:
        new = {cell.area for cell in frame.cells if cell.state == "new"}
        if frame.phase == "scaffold":
            what = runs[-1][0]  # the forward that ended the plan
        else:
            written = "plan" if "plan" in new else "span"
            what = {"plan": "plan", "write": written, "denoise": "span"}.get(frame.phase, "rest")
        if runs and runs[-1][0] == what:
            runs[-1][1] = frame.forwards
        else:
            runs.append([what, frame.forwards])
    return [*runs, ["rest", generation.critical_path]]


def _palette() -> str:
    """The colours as CSS variables."""
    colours = {role.name.lower(): colour for role, colour in ROLE_COLOURS.items()}
    colours |= {f"span-{i}": colour for i, colour in enumerate(SPAN_COLOURS)}
    return f":host{{{';'.join(f'--{name}:{colour}' for name, colour in colours.items())}}}\n"


def _plain(generation: Generation, tokenizer: Tokenizer) -> str:
    cells = frames(generation, tokenizer)[-1].cells
    return "".join(c.text for c in cells if c.area == "span" and c.kind in ("word", "echo")) or "".join(
        c.text for c in cells if c.area != "prompt" and c.kind == "word"
    )


def _as_script(value: object) -> str:
    """JSON that is safe between <script> tags."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
