"""Is the baseline a strong one? Our decoding and training beside those that people know, in one run.

Hugging Face `generate` (a Llama of the same shape) runs if transformers is installed; nanoGPT runs from the path of
its `model.py`. Neither is a dependency. The sides take turns, so that a noisy machine is noisy to both.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from pdref.model.cache import Cache
from pdref.model.transformer import Config, Transformer

PROMPT = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens per second of one job, and how many times as many ours does; medians over the repeats."""

    job: str
    who: str
    tokens_per_second: float
    ours: float


def run(
    depth: int = 3, vocabulary: int = 256, tokens: int = 128, repeats: int = 5, nanogpt: Path | None = None
) -> list[Measured]:
    """Decode `tokens` tokens at batch 1 and 16, and train on batches of 32 x 128; all with `depth` layers."""
    config = Config.of_depth(depth, vocabulary, context=max(256, PROMPT + tokens))
    model = Transformer(config)
    jobs: dict[str, dict[str, Callable[[], int]]] = {}
    llama = _llama(config)
    for batch in (1, 16):
        prompt = torch.randint(9, vocabulary, (batch, PROMPT))
        sides: dict[str, Callable[[], int]] = {"pdref": lambda p=prompt: decode(model, p, tokens)}
        if llama is not None:
            sides["transformers generate"] = lambda p=prompt: _generate(llama, p, tokens)
        jobs[f"decode, batch {batch}"] = sides
    data = torch.randint(9, vocabulary, (32, 129))
    jobs["train, batch 32 of 128"] = {"pdref": _trainer(model, _our_loss, _our_optimizer(model), data)}
    if nanogpt is not None:
        theirs, loss, optimizer = _nanogpt(nanogpt, config)
        jobs["train, batch 32 of 128"]["nanoGPT"] = _trainer(theirs, loss, optimizer, data)
    return [measured for job, sides in jobs.items() for measured in _take_turns(job, sides, repeats)]


@torch.inference_mode()
def decode(model: Transformer, prompt: Tensor, tokens: int) -> int:
    """Greedy cached decoding of `prompt` [B, P]; returns how many tokens were written."""
    model.eval()
    batch, start = prompt.shape
    cache = Cache(model.config, batch, start + tokens, model.embed.weight)
    ids, positions = prompt, torch.arange(start).expand(batch, -1)
    for _ in range(tokens):
        writer = cache.at(positions)
        hidden = model(ids, positions, writer.mask, writer)
        ids = model.logits(hidden[:, -1:]).argmax(-1)
        positions = positions[:, -1:] + 1
    return batch * tokens


def table(rows: list[Measured]) -> Table:
    """What was measured, as people read it."""
    shown = Table(title="Tokens per second, medians, sides taking turns")
    for name in ("job", "who", "tokens/s", "pdref is faster by"):
        shown.add_column(name, justify="left" if name in ("job", "who") else "right")
    for row in rows:
        shown.add_row(row.job, row.who, f"{row.tokens_per_second:,.0f}", f"{row.ours:.2f}x")
    return shown


def _take_turns(job: str, sides: dict[str, Callable[[], int]], repeats: int) -> list[Measured]:
    speeds: dict[str, list[float]] = {who: [] for who in sides}
    for repeat in range(repeats + 1):
        for who, work in sides.items():
            start = time.perf_counter()
            done = work()
            if repeat:  # the first round warms up
                speeds[who].append(done / (time.perf_counter() - start))
    ours = median(speeds["pdref"])
    return [Measured(job, who, median(found), ours / median(found)) for who, found in speeds.items()]


def _trainer(
    model: torch.nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    data: Tensor,
) -> Callable[[], int]:
    def steps(count: int = 5) -> int:
        model.train()
        for _ in range(count):
            loss(model, data).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return count * data[:, 1:].numel()

    return steps


def _our_loss(model: Transformer, data: Tensor) -> Tensor:
    positions = torch.arange(data.shape[1] - 1).expand(len(data), -1)
    logits = model.logits(model(data[:, :-1], positions))
    return F.cross_entropy(logits.flatten(0, 1), data[:, 1:].flatten())


def _our_optimizer(model: Transformer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def _nanogpt(path: Path, config: Config) -> tuple[Any, Callable[[Any, Tensor], Tensor], torch.optim.Optimizer]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no nanoGPT at {path}: give the path of its model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    shape = module.GPTConfig(
        block_size=config.context, vocab_size=config.vocabulary, n_layer=config.layers, n_head=config.heads,
        n_embd=config.width, dropout=0.0, bias=False,
    )  # fmt: skip
    model = module.GPT(shape)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    return model, lambda m, data: m(data[:, :-1].contiguous(), data[:, 1:].contiguous())[1], optimizer


def _llama(config: Config) -> Any:
    transformers = _optional("transformers")
    if transformers is None:
        return None
    shape = transformers.LlamaConfig(
        vocab_size=config.vocabulary, hidden_size=config.width, intermediate_size=4 * config.width,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.key_heads,
        max_position_embeddings=config.context, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(shape).eval()


def _generate(model: Any, prompt: Tensor, tokens: int) -> int:
    mask = torch.ones_like(prompt)
    out = model.generate(
        prompt,
        attention_mask=mask,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
    )
    return out[:, prompt.shape[1] :].numel()


def _optional(name: str) -> ModuleType | None:
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name)
