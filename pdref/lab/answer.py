"""Answer one prompt by any method, and show the answer as it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from pdref.lab import player
from pdref.lab.checkpoint import Checkpoint
from pdref.lab.recipe import build_corpus
from pdref.lab.train import trained_response_length
from pdref.methods import autoregressive, hierarchy, masked_diffusion, planned_diffusion
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.denoising import Order, ThresholdMeaning, Unmasking
from pdref.methods.generation import Generation
from pdref.text.document import Item, parse_plan
from pdref.text.filling import Filling


@dataclass(frozen=True, slots=True)
class Request:
    """What to answer and how; the fields are those of the samplers.

    A `prompt` of None takes a held-out one, a `method` of None the one that the checkpoint was trained for.
    """

    prompt: str | None = None
    method: str | None = None
    plan: str | None = None
    step_ratio: float = 1.0
    order: Order = "entropy"
    threshold: float | None = None
    threshold_meaning: ThresholdMeaning = "defer"
    length_factor: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    filling: Filling = "parallel"


def answer(checkpoint: Checkpoint, request: Request) -> Generation:
    """Raises ValueError for a plan by hand with a method that has none, and what the samplers raise."""
    method = request.method or ("hierarchy" if checkpoint.recipe.train.objective == "outline" else "planned")
    if request.plan is not None and method not in ("planned", "hierarchy"):
        raise ValueError(f"a plan by hand is for the methods 'planned' and 'hierarchy', not {method!r}")
    speaker = checkpoint.speaker
    corpus = build_corpus(checkpoint.recipe) if request.prompt is None or method == "diffusion" else None
    prompt = request.prompt
    if prompt is None:
        prompt = corpus.held_out[request.seed % len(corpus.held_out)].prompt
    draw = Draw(request.temperature, request.top_p, seeds=[request.seed])
    unmasking = Unmasking(request.step_ratio, request.order, request.threshold, request.threshold_meaning)
    if method == "autoregressive":
        return autoregressive.sample(speaker, [prompt], draw)[0]
    if method == "diffusion":
        length = trained_response_length(checkpoint.recipe, corpus)
        return masked_diffusion.sample(speaker, [prompt], length, unmasking, draw)[0]
    plans = None if request.plan is None else [read_plan(request.plan)]
    if method == "hierarchy":
        return hierarchy.sample(speaker, [prompt], request.filling, draw, plans)[0]
    return planned_diffusion.sample(speaker, [prompt], unmasking, draw, request.length_factor, plans=plans)[0]


def read_plan(text: str) -> tuple[Item, ...]:
    """A plan by hand: `<topic>` tags, or items `words N` separated by commas. Raises DocumentError."""
    if "<" in text:
        return parse_plan(text)
    return tuple(Item.parse(item.strip()) for item in text.split(","))


def show(generation: Generation, speaker: Speaker, console: Console, play: bool = False) -> None:
    """Print (or animate) the plan, the spans and what they cost."""
    if play:
        player.play_in_terminal(generation, speaker.tokenizer)
    prompt = speaker.tokenizer.decode(generation.tokens[1 : generation.prompt_length])
    console.print(Text("prompt  ", "bold") + Text(prompt))
    if generation.document is None:
        console.print(Text(f"no document: {generation.problem}", "red"))
        console.print(Text(speaker.tokenizer.decode(generation.tokens[generation.prompt_length :])))
    else:
        for number, stage in enumerate(generation.document.stages):
            console.print(Text(f"stage {number}", "bold"))
            for item, span in zip(stage.plan, stage.spans, strict=True):
                console.print(Text(f"  {item}  ", "cyan") + Text(span.text))
    for cut in generation.cuts:
        console.print(Text(f"cut: {cut}", "yellow"))
    phases = ", ".join(f"{phase} {1e3 * seconds:.1f} ms" for phase, seconds in generation.seconds.items())
    console.print(
        f"{len(generation.tokens) - generation.prompt_length} tokens, critical path {generation.critical_path} "
        f"forwards, nfe {generation.nfe}; {phases}"
    )


def as_record(generation: Generation, speaker: Speaker) -> dict[str, Any]:
    """A generation as JSON takes it."""
    record = asdict(generation)
    return {"text": speaker.tokenizer.decode(generation.tokens), **record}
