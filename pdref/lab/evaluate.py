"""What a checkpoint is worth: nats against the floor, documents judged by the source, and a race of the samplers."""

from __future__ import annotations

import gzip
import lzma
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Literal

import torch

from pdref.data.profiles import Profiles
from pdref.methods import autoregressive, masked_diffusion, planned_diffusion
from pdref.methods.autoregressive import document_nll
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.denoising import Unmasking
from pdref.methods.generation import Drafted, Generation
from pdref.methods.planned_diffusion import log_likelihood
from pdref.text.document import PlannedDocument
from pdref.text.layout import Layout, Role, encode
from pdref.text.mask import Siblings
from pdref.text.tags import Tag

Method = Literal["autoregressive", "diffusion", "planned"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer a prompt. `response` is the length that diffusion of the whole response starts from.

    `ahead` is how many tokens are drafted at once by a model that can (None: as many as it has further heads).
    """

    method: Method
    step_ratio: float = 1.0
    siblings: Siblings = "sparse"
    response: int = 256
    ahead: int | None = 0

    @property
    def label(self) -> str:
        """As it stands in tables and figures."""
        name = "autoregressive" if self.method == "autoregressive" else f"{self.method} r={self.step_ratio:g}"
        drafted = "" if self.ahead == 0 else " drafted" if self.ahead is None else f" drafted {self.ahead}"
        return name + drafted

    def sample(self, speaker: Speaker, prompts: Sequence[str], draw: Draw | None = None) -> list[Generation]:
        """Answer `prompts` side by side."""
        unmasking, draw = Unmasking(self.step_ratio), replace(draw or Draw(), ahead=self.ahead)
        if self.method == "autoregressive":
            return autoregressive.sample(speaker, prompts, draw)
        if self.method == "diffusion":
            return masked_diffusion.sample(speaker, prompts, self.response, unmasking, draw)
        return planned_diffusion.sample(speaker, prompts, unmasking, draw, siblings=self.siblings)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; shares are of all prompts, costs are means per document."""

    method: str
    label: str
    step_ratio: float
    documents_right: float
    spans_right: float
    nfe: float
    critical_path: float
    tokens: float
    seconds: dict[int, float]  # by batch size, per document: median of the repeats
    shorter_path: float = 1.0  # autoregressive critical path / this one
    speedup: dict[int, float] | None = None  # autoregressive seconds / these, by batch size
    acceptance: tuple[float, ...] = ()  # of drafts, by place; none without drafting
    tokens_per_forward: float = 1.0  # where tokens are written one after the other
    predicted_tokens_per_forward: float = 1.0  # by the acceptance alone


def judge(generations: Sequence[Generation], source: Profiles) -> tuple[float, float]:
    """Shares of documents and of spans that are entirely right; text that is no document counts as wrong."""
    right, spans = [], []
    for generation in generations:
        if generation.document is None:
            right.append(False)
            spans += [False] * max(1, generation.tokens.count(Tag.ASYNC))
        else:
            verdict = source.judge(generation.document)
            right.append(verdict.right)
            spans += verdict.spans
    return mean(right), mean(spans)


def compare(
    speaker: Speaker,
    arms: Sequence[Arm],
    prompts: Sequence[str],
    source: Profiles,
    draw: Draw | None = None,
    batches: Sequence[int] = (1, 16),
    race_prompts: int = 16,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], dict[str, list[Generation]]]:
    """Quality of every arm on `prompts` and its speed on the first `race_prompts`; the first arm is the baseline.

    The arms take turns within a repeat, so that a noisy machine is noisy to all; whole-response diffusion, which is
    slow, is timed once.
    """
    found: dict[str, list[Generation]] = {}
    for arm in arms:
        progress(f"decoding {len(prompts)} prompts: {arm.label}")
        found[arm.label] = arm.sample(speaker, prompts, draw)
    progress("racing")
    seconds = race(speaker, arms, prompts[:race_prompts], batches, repeats)
    rows: list[Row] = []
    for arm in arms:
        generations = found[arm.label]
        documents, spans = judge(generations, source)
        path, drafted = mean(g.critical_path for g in generations), Drafted.total(generations)
        first = rows[0] if rows else None
        rows.append(
            Row(
                arm.method,
                arm.label,
                arm.step_ratio,
                documents,
                spans,
                mean(g.nfe for g in generations),
                path,
                mean(len(g.tokens) - g.prompt_length for g in generations),
                seconds[arm.label],
                first.critical_path / path if first else 1.0,
                {b: (first.seconds if first else seconds[arm.label])[b] / s for b, s in seconds[arm.label].items()},
                tuple(drafted.acceptance),
                drafted.tokens_per_forward if drafted.forwards else 1.0,
                drafted.predicted,
            )
        )
    return rows, found


def race(
    speaker: Speaker, arms: Sequence[Arm], prompts: Sequence[str], batches: Sequence[int], repeats: int
) -> dict[str, dict[int, float]]:
    """Median seconds per document of each arm at each batch size."""
    times: dict[tuple[str, int], list[float]] = {}
    for arm in arms:
        arm.sample(speaker, prompts[:1])  # first calls allocate
    for repeat in range(repeats):
        for batch in batches:
            for arm in arms:
                if repeat and arm.method == "diffusion":
                    continue
                some = prompts[: batch * 2] if arm.method == "diffusion" and batch == 1 else prompts
                start = time.perf_counter()
                for i in range(0, len(some), batch):
                    arm.sample(speaker, some[i : i + batch])
                times.setdefault((arm.label, batch), []).append((time.perf_counter() - start) / len(some))
    return {arm.label: {b: median(times[arm.label, b]) for b in batches} for arm in arms}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Nats per document on held-out documents, by who pays; `floor_*` is what the source itself pays, if known."""

    documents: int
    plan: float  # the planner's tokens, <sync/> and <eos> included
    content: float  # content and tags, token by token
    bound: float  # content, by diffusion: the ELBO
    bound_error: float  # its Monte-Carlo standard error
    response_tokens: float
    content_tokens: float
    planned_tokens: float
    floor_plan: float | None = None
    floor_content: float | None = None

    @property
    def autoregressive_excess(self) -> float | None:
        """Autoregressive nats above the floor, as a share of the floor (None where it is 0 or unknown)."""
        if self.floor_plan is None or self.floor_content is None or not self.floor_plan + self.floor_content:
            return None
        return (self.plan + self.content) / (self.floor_plan + self.floor_content) - 1

    @property
    def floor_per_token(self) -> dict[str, float]:
        """The source's own nats per planner's token and per content token, as training logs count them."""
        if self.floor_plan is None or self.floor_content is None:
            return {}
        content = self.floor_content / self.content_tokens
        return {"plan": self.floor_plan / self.planned_tokens, "content": content, "diffusion": content}

    @property
    def plan_excess(self) -> float | None:
        """The plan's nats above the floor, as a share of the floor."""
        return self.plan / self.floor_plan - 1 if self.floor_plan else None


def held_out(
    speaker: Speaker,
    documents: Sequence[PlannedDocument],
    source: Profiles | None = None,
    samples: int = 8,
    batch: int = 32,
    siblings: Siblings = "sparse",
) -> HeldOut:
    """Measure nats on `documents`, every model term beside the source's own on the same documents."""
    layouts = [encode(document, speaker.tokenizer, speaker.grammar) for document in documents]
    generator = torch.Generator().manual_seed(0)
    plan = content = bound = variance = tokens = content_tokens = planned = 0.0
    for start in range(0, len(layouts), batch):
        layout = Layout.collate(layouts[start : start + batch])
        with torch.no_grad():
            nats = document_nll(speaker.model, layout)
        found = log_likelihood(speaker.model, layout, samples, generator, siblings)
        plan += (nats * layout.planned).sum().item()
        content += (nats * ~layout.planned).sum().item()
        bound -= found.spans.mean.sum().item()
        variance += found.spans.error.square().sum().item()
        tokens += int(layout.response.sum())
        planned += int(layout.planned.sum())
        content_tokens += int((layout.role == Role.CONTENT).sum())
    n = len(documents)
    floors = [source.nats(document) for document in documents] if source else []
    return HeldOut(
        n,
        plan / n,
        content / n,
        bound / n,
        math.sqrt(variance) / n,
        tokens / n,
        content_tokens / n,
        planned / n,
        mean(f.plan + f.tag for f in floors) if floors else None,
        mean(f.content for f in floors) if floors else None,
    )


def compressors(texts: Sequence[str]) -> dict[str, float]:
    """Nats per byte of gzip and xz, each at its best setting, on all `texts` as one file."""
    data = "\n\n".join(texts).encode()
    sizes = {
        "gzip -9": len(gzip.compress(data, 9)),
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: size * 8 * math.log(2) / len(data) for name, size in sizes.items()}


def per_byte(found: HeldOut, documents: Sequence[PlannedDocument]) -> dict[str, float]:
    """Nats per byte of the documents' texts; the plan is paid for in both."""
    size = mean(len(document.text.encode()) for document in documents)
    return {
        "autoregressive": (found.plan + found.content) / size,
        "planned diffusion": (found.plan + found.bound) / size,
    }
