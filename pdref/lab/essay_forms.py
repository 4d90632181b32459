"""One model that writes essays in every form: flat, as an outline filled in three ways, and as trees of depth 2 and 3.

    python -m pdref.lab.essay_forms --seeds 3 --out out/essay_forms

trains a model for each seed, whose checkpoint is a folder of --out, and marks it in `results.csv` there. Seed 0 is the
shipped checkpoint "essays", and the results of three seeds are `results/essay_forms.csv`.

Every step takes fresh essays in one form, in turn by lot, and descends `outline.objective` under that form's mask, so
the forms differ in what they ask for and in nothing else. The prompt tells how finely to divide. Outlines that name
the thesis are written in sight of it; for those that do not, the parallel sections cannot know each other's, and
drafts are essays whose sections each have a thesis of their own (`Essays.drafted`), all but the first to be given up.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from statistics import mean

import torch
from tqdm.auto import trange

from pdref.data.essays import WORDS, Essay, Essays
from pdref.lab import ledger
from pdref.lab.checkpoint import save
from pdref.lab.recipe import HELD_OUT_SEED, CorpusRecipe, ModelRecipe, Recipe, TrainRecipe
from pdref.lab.train import descend, make_optimizers, set_rates
from pdref.methods import hierarchy, outline
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.generation import Generation
from pdref.methods.planning import Bounds
from pdref.text.document import PlannedDocument
from pdref.text.filling import Filling
from pdref.text.layout import Layout, encode
from pdref.text.tags import Tag

SOURCE = Essays(kinds=2, values=4, sections=4, paragraphs=4)
EIGHT = replace(SOURCE, sections=8, paragraphs=2)  # as many sentences in shorter sections
BOUNDS = Bounds(items=64)
RECIPE = Recipe(
    CorpusRecipe(name="essays", grid=1),
    ModelRecipe(depth=3, context=1024),
    TrainRecipe(steps=1000, objective="outline", muon_rate=0.005),
)


@dataclass(frozen=True, slots=True)
class Form:
    """How an essay of `source` is asked for and written; depth 0 is flat.

    A training step in this form takes `batch` essays, and `share` says how often there is one.
    """

    name: str
    depth: int
    filling: Filling = "parallel"
    named: bool = True
    source: Essays = SOURCE
    batch: int = 8
    share: float = 1.0

    def document(self, essay: Essay) -> PlannedDocument:
        """The essay in this form."""
        return self.source.tree(essay, self.depth, self.named) if self.depth else self.source.flat(essay)

    def write(
        self, speaker: Speaker, prompts: Sequence[str], draw: Draw | None = None, at_once: int | None = None
    ) -> list[Generation]:
        """What `speaker` writes for prompts of this form."""
        method = hierarchy if self.depth > 1 else outline
        return method.sample(speaker, prompts, self.filling, draw, bounds=BOUNDS, at_once=at_once)


FORMS = {
    form.name: form
    for form in (
        Form("flat", 0, batch=12, share=0.8),
        Form("parallel", 1),
        Form("sequential", 1, "sequential"),
        Form("drafts", 1, "drafts", batch=5, share=0.6),
        Form("depth 2", 2, batch=4, share=1.2),
        Form("depth 3", 3, batch=2, share=1.4),
        Form("eight sections", 1, source=EIGHT),
        Form("parallel, not named", 1, named=False),
        Form("sequential, not named", 1, "sequential", named=False),
        Form("drafts, not named", 1, "drafts", named=False, batch=6, share=1.4),
    )
}


@dataclass(frozen=True, slots=True)
class Marks:
    """Means over essays written in one form.

    `violations` counts sentences that contradict the thesis or are none, `right` the essays without any fault, in
    headings and order as well; `tokens` are all that a generation holds beside its prompt.
    """

    violations: float
    right: float
    nfe: float
    critical_path: float
    tokens: float


def batch(form: Form, speaker: Speaker, seed: int) -> tuple[Layout, Layout | None]:
    """The documents of a step, and their drafts where the form has some."""
    essays = form.source.essays(form.batch, seed)
    drafts = [essay if form.named else form.source.drafted(essay, seed) for essay in essays]
    texts, copies = (
        Layout.collate([encode(form.document(e), speaker.tokenizer, speaker.grammar) for e in some])
        for some in (essays, drafts)
    )
    return texts, copies if form.filling == "drafts" else None


def train(recipe: Recipe = RECIPE, progress: bool = True) -> tuple[Speaker, list[float]]:
    """A writer of all `FORMS`, and the loss of every step. Steps differ in their form and in length."""
    torch.manual_seed(recipe.train.seed)
    other = EIGHT.tokenizer()
    tokenizer = SOURCE.tokenizer(*other.decode(range(len(Tag), len(other))).split())
    speaker = Speaker(recipe.build(len(tokenizer)), tokenizer, recipe.grammar)
    optimizers = make_optimizers(speaker.model, recipe.train)
    rng = random.Random(recipe.train.seed)
    forms, losses = [*FORMS.values()], []
    for step in (steps := trange(recipe.train.steps, disable=not progress)):
        set_rates(optimizers, recipe.train, step)
        [form] = rng.choices(forms, [form.share for form in forms])
        texts, drafts = batch(form, speaker, recipe.train.seed * 1_000_003 + step)
        loss = outline.objective(speaker.model, texts, form.filling, drafts)
        descend(loss, speaker.model, optimizers, recipe.train)
        losses.append(loss.item())
        steps.set_postfix_str(f"nats/token {mean(losses[-50:]):.3f}")
    speaker.model.eval()
    return speaker, losses


def measure(form: Form, speaker: Speaker, count: int, seed: int, temperature: float = 0.0) -> Marks:
    """What the form comes to on `count` essays that no step of training saw."""
    prompts = [form.document(essay).prompt for essay in form.source.essays(count, HELD_OUT_SEED - seed)]
    draw = Draw(temperature, seeds=range(seed * count, (seed + 1) * count))
    found = form.write(speaker, prompts, draw)
    return Marks(
        mean(violations(form, g) for g in found),
        mean(g.document is not None and form.source.judge(g.document).right for g in found),
        mean(g.nfe for g in found),
        mean(g.critical_path for g in found),
        mean(len(g.tokens) - g.prompt_length for g in found),
    )


def clock(forms: Sequence[Form], speaker: Speaker, rounds: int = 5) -> list[float]:
    """Wall clock of an essay alone in each form, in seconds: the least of `rounds`, since other work only adds to it.

    The forms take turns, so that what else the machine does hits all of them alike.
    """
    least = [inf] * len(forms)
    for k in range(rounds):
        for i, form in enumerate(forms):
            [essay] = form.source.essays(1, HELD_OUT_SEED - k)
            [generation] = form.write(speaker, [form.document(essay).prompt])
            least[i] = min(least[i], generation.total_seconds)
    return least


def forwards(document: PlannedDocument, filling: Filling = "parallel", at_once: int | None = None) -> tuple[int, int]:
    """Critical path and nfe of writing a document of words in single tokens, in closed form.

        path = 1 + P + (D - 1) + passes * sum_levels sum_turns max_{k in turn} (n_k + 1)

    One read of the prompt, P forwards for the outline, one for each later level's plan, which is read off; then each
    turn of sections takes what its longest section of n_k tokens does and one to read its end. nfe has the sum over a
    turn's sections in place of the maximum.
    """
    outline_tokens = sum(len(str(item).split()) + 2 for item in document.stages[0].plan)
    path = nfe = 1 + outline_tokens + len(document.stages) - 1
    for stage in document.stages:
        each = [item.length + 1 for item in stage.plan]
        size = 1 if filling == "sequential" else at_once or len(each)
        passes = 2 if filling == "drafts" else 1
        path += passes * sum(max(each[i : i + size]) for i in range(0, len(each), size))
        nfe += passes * sum(each)
    return path, nfe


def violations(form: Form, generation: Generation) -> int:
    """Sentences that contradict the thesis, are none or are missing; all of them where there is no document."""
    source = form.source
    expected = source.sections * source.paragraphs * source.kinds
    if generation.document is None:
        return expected
    text = " ".join(span.text for span in generation.document.stages[-1].spans)
    missing = max(0, expected - len(text.split()) // WORDS)
    return len(source.violations(text, source.thesis(generation.document))) + missing


@dataclass(frozen=True, slots=True)
class Run:
    """A row of the results: a form, written by the model of a training seed, on 32 held-out essays.

    At temperature 0, or at 1 where the thesis is not named, so that somebody has to choose it.
    """

    form: str
    seed: int
    violations: float
    right: float
    nfe: float
    critical_path: float
    tokens: float


def main() -> None:
    """Train, save and mark a model for each seed that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/essay_forms"))
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    results = arguments.out / "results.csv"
    done = {run.seed for run in ledger.read(results, Run)}
    for seed in sorted({*range(arguments.seeds)} - done):
        started = time.process_time()
        speaker, _ = train(RECIPE.with_train(seed=seed))
        print(f"{speaker.model.parameter_count:,} parameters, {time.process_time() - started:.0f} CPU seconds")
        save(arguments.out / str(seed), speaker.model, speaker.tokenizer, RECIPE.with_train(seed=seed))
        for name, form in FORMS.items():
            marks = measure(form, speaker, 32, 9, temperature=0.0 if form.named else 1.0)
            ledger.append(results, Run(name, seed, *(getattr(marks, field.name) for field in fields(marks))))


if __name__ == "__main__":
    main()
