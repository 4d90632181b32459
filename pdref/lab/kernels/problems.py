"""A problem per op: inputs of a given size and a call that any implementation answers.

Tests, the benchmark, the counting run and the compile lane all take their problems from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pdref.lab.kernels.documents import two_streams
from pdref.ops.impl import Impl
from pdref.ops.multi_token_nll import multi_token_nll
from pdref.ops.plan_marginal import plan_marginal
from pdref.ops.planned_attention import planned_attention
from pdref.ops.planned_nll import planned_nll
from pdref.ops.span_attention import Reach, span_attention
from pdref.ops.token_nll import IGNORE, token_nll
from pdref.ops.unmask import most_confident, unmask
from pdref.text.layout import NO_SPAN, Layout, Role
from pdref.text.mask import Sight
from pdref.text.tags import Tag


@dataclass(frozen=True)
class Problem:
    """Inputs by name and a call: `call(inputs, impl)` gives the op's outputs by name.

    Inputs in floating point are differentiable, and so are the outputs named in `smooth`. `flops` counts the
    multiplications and additions of the forward alone, as the definition does them.
    """

    op: str
    size: Mapping[str, int]
    inputs: Mapping[str, Tensor]
    call: Callable[[Mapping[str, Tensor], Impl], Mapping[str, Tensor]]
    smooth: tuple[str, ...]
    flops: int

    def to(self, device: str | torch.device, dtype: torch.dtype) -> Problem:
        """The same problem elsewhere; floating-point inputs take `dtype`."""
        moved = {k: x.to(device, dtype if x.is_floating_point() else None) for k, x in self.inputs.items()}
        return Problem(self.op, self.size, moved, self.call, self.smooth, self.flops)


def token_nll_problem(N: int = 256, D: int = 64, V: int = 1000, seed: int = 0, scale: float = 1.0) -> Problem:
    """Hidden states of unit variance and targets at random, a tenth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "hidden": scale * torch.randn(N, D, generator=generator),
        "unembedding": torch.randn(V, D, generator=generator) / D**0.5,
        "targets": torch.randint(V, (N,), generator=generator),
    }
    inputs["targets"][torch.rand(N, generator=generator) < 0.1] = -1

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        nats, log_partition = token_nll(x["hidden"], x["unembedding"], x["targets"], impl, log_partition=True)
        return {"nats": nats, "log_partition": log_partition}

    return Problem("token_nll", {"N": N, "D": D, "V": V}, inputs, call, ("nats", "log_partition"), 2 * N * V * D)


def unmask_problem(
    N: int = 128, D: int = 64, V: int = 1000, L: int = 32, temperature: float = 1.0, seed: int = 0, scale: float = 1.0
) -> Problem:
    """N masked positions, in spans of L, a few forbidden words; then half of each span's positions are revealed."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "hidden": scale * torch.randn(N, D, generator=generator),
        "unembedding": torch.randn(V, D, generator=generator) / D**0.5,
        "seeds": torch.randint(2**31, (N,), generator=generator),
        "positions": torch.arange(N),
        "forbidden": torch.arange(0, V - 1, 7),
        "masked": torch.rand(-(-N // L), L, generator=generator) < 0.7,
        "confidence": torch.randint(-4, 4, (-(-N // L), L), generator=generator).float(),  # many ties
    }

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        arguments = x["hidden"], x["unembedding"], x["seeds"], x["positions"]
        drawn = unmask(*arguments, step=3, temperature=temperature, forbidden=x["forbidden"], impl=impl)
        chosen = most_confident(x["confidence"], x["masked"], x["masked"].sum(1) // 2, impl)
        return {**drawn._asdict(), "chosen": chosen}

    return Problem("unmask", {"N": N, "D": D, "V": V, "L": L}, inputs, call, (), 2 * N * V * D)


def multi_token_nll_problem(
    B: int = 2, T: int = 64, n: int = 4, D: int = 64, V: int = 1000, seed: int = 0, scale: float = 1.0
) -> Problem:
    """Sequences of unequal length, their first tokens given."""
    generator = torch.Generator().manual_seed(seed)
    end = torch.randint(T // 2, T + 1, (B, 1), generator=generator)
    at = torch.arange(T)
    inputs = {
        "hidden": scale * torch.randn(B, T, n, D, generator=generator),
        "unembedding": torch.randn(V, D, generator=generator) / D**0.5,
        "tokens": torch.randint(V, (B, T), generator=generator),
        "scored": (at >= T // 8) & (at < end),
    }

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        return {"nats": multi_token_nll(x["hidden"], x["unembedding"], x["tokens"], x["scored"], impl)}

    size = {"B": B, "T": T, "n": n, "D": D, "V": V}
    return Problem("multi_token_nll", size, inputs, call, ("nats",), 2 * B * T * n * V * D)


def planned_nll_problem(
    B: int = 2, spans: int = 3, L: int = 16, D: int = 64, V: int = 1000, seed: int = 0, scale: float = 1.0
) -> Problem:
    """Documents of one to `spans` spans of L tokens, after a prompt and a plan; a noise level each."""
    generator = torch.Generator().manual_seed(seed)
    rows = [_document(1 + b % spans if b else spans, L, V, generator) for b in range(B)]
    layout = Layout.collate(rows)
    copied = layout.span_copy()[0].shape[1]
    times = torch.rand(layout.shape[0], 1, generator=generator).clamp_min(0.05).half().expand(layout.shape)
    inputs = {
        "hidden": scale * torch.randn(B, layout.shape[1] + copied, D, generator=generator),
        "unembedding": torch.randn(V, D, generator=generator) / D**0.5,
        "masked": (layout.role == Role.CONTENT) & (torch.rand(layout.shape, generator=generator) < times),
        **dict(layout.items()),
    }

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        layout = Layout(*(x[name] for name in ("token", "role", "stage", "span", "position", "stream")))
        levels = times.to(x["hidden"])  # half-precision numbers: the same ones in any dtype
        clean, diffusion = planned_nll(x["hidden"], x["unembedding"], layout, x["masked"], levels, impl)
        return {"clean": clean, "diffusion": diffusion}

    size = {"B": B, "spans": spans, "L": L, "D": D, "V": V}
    flops = 2 * inputs["hidden"].numel() * V
    return Problem("planned_nll", size, inputs, call, ("clean", "diffusion"), flops)


def _document(spans: int, L: int, V: int, generator: torch.Generator) -> Layout:
    """A prompt and a plan of some tokens, `spans` spans of L between their tags, and an end."""
    pieces = [(5, Role.PROMPT, NO_SPAN), (2 * spans, Role.PLAN, NO_SPAN)]
    for k in range(spans):
        pieces += [(1, Role.TAG, k), (L, Role.CONTENT, k), (1, Role.TAG, k)]
    pieces += [(1, Role.TAG, NO_SPAN)]
    role, span = (torch.tensor([piece[i] for piece in pieces for _ in range(piece[0])])[None] for i in (1, 2))
    none = torch.zeros_like(role)
    token = torch.randint(len(Tag), V, role.shape, generator=generator)
    return Layout(token, role, none, span, torch.arange(role.shape[1])[None], none)


def plan_marginal_problem(
    B: int = 2, K: int = 5, T: int = 24, D: int = 64, V: int = 1000, seed: int = 0, scale: float = 1.0
) -> Problem:
    """Texts of unequal length under K plans, one of which is ruled out beforehand; no two texts favour the same."""
    generator = torch.Generator().manual_seed(seed)
    end = torch.randint(T // 2, T + 1, (B, 1), generator=generator)
    log_prior = torch.randn(B, K, generator=generator).log_softmax(1)
    if K > 1:
        log_prior[:, K // 2] = -torch.inf
    inputs = {
        # What plans differ in is small beside what they share: posteriors that are neither flat nor certain.
        "hidden": scale
        * (torch.randn(B, 1, T, D, generator=generator) + 0.2 * torch.randn(B, K, T, D, generator=generator)),
        "unembedding": torch.randn(V, D, generator=generator) / D**0.5,
        "targets": torch.randint(V, (B, T), generator=generator).masked_fill(torch.arange(T) >= end, IGNORE),
        "log_prior": log_prior,
    }

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        return plan_marginal(x["hidden"], x["unembedding"], x["targets"], x["log_prior"], impl)._asdict()

    size = {"B": B, "K": K, "T": T, "D": D, "V": V}
    return Problem("plan_marginal", size, inputs, call, ("log_p", "log_posterior"), 2 * B * K * T * V * D)


def planned_attention_problem(
    B: int = 2,
    T: int = 200,
    spans: int = 4,
    heads: int = 4,
    key_heads: int = 2,
    head_width: int = 32,
    stages: int = 1,
    seed: int = 0,
    scale: float = 1.0,
) -> Problem:
    """Documents of T tokens in two streams, each with other spans, under the sparse rule."""
    generator = torch.Generator().manual_seed(seed)
    layouts = [two_streams(T, spans, stages, seed + b) for b in range(B)]
    layout = Layout(**{name: torch.cat([getattr(x, name) for x in layouts]) for name, _ in layouts[0].items()})
    sight = Sight.of(layout, layout)
    widths = {"q": heads, "k": key_heads, "v": key_heads}
    inputs = {
        # Heads lie side by side, as a transformer's projection leaves them.
        **{x: torch.randn(B, T, h, head_width, generator=generator).transpose(1, 2) for x, h in widths.items()},
        "query": sight.query,
        "key": sight.key,
    }
    inputs["q"] *= scale

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        return {"out": planned_attention(x["q"], x["k"], x["v"], Sight(x["query"], x["key"]), impl=impl)}

    size = {"B": B, "T": T, "spans": spans, "heads": heads, "key_heads": key_heads, "head_width": head_width}
    return Problem("planned_attention", size, inputs, call, ("out",), 4 * B * heads * T * T * head_width)


def span_attention_problem(
    B: int = 3,
    spans: int = 4,
    L: int = 24,
    C: int = 160,
    heads: int = 4,
    key_heads: int = 2,
    head_width: int = 32,
    seed: int = 0,
    scale: float = 1.0,
) -> Problem:
    """`spans` unfinished spans of each of B requests, up to L tokens long, after pasts of up to C tokens."""
    generator = torch.Generator().manual_seed(seed)
    K, D = B * spans, head_width
    owner = torch.arange(B).repeat_interleave(spans)
    inputs = {
        "q": scale * torch.randn(K, heads, L, D, generator=generator),
        "own": torch.randn(K, 2 * key_heads, L, D, generator=generator),
        "past": torch.randn(B, 2 * key_heads, C, D, generator=generator),
        "owner": owner,
        "slots": torch.randint(C // 2, C + 1, (B,), generator=generator)[owner],
        "length": torch.randint(1, L + 1, (K,), generator=generator),
    }

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        reach = Reach(x["owner"], x["slots"], x["length"], L)
        return {"out": span_attention(x["q"], x["own"], x["past"], reach, impl)}

    size = {"B": B, "spans": spans, "L": L, "C": C, "heads": heads, "key_heads": key_heads, "head_width": D}
    pairs = L * int((inputs["slots"] + inputs["length"]).sum())
    return Problem("span_attention", size, inputs, call, (), 4 * heads * pairs * D)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "token_nll": token_nll_problem,
    "multi_token_nll": multi_token_nll_problem,
    "planned_nll": planned_nll_problem,
    "plan_marginal": plan_marginal_problem,
    "unmask": unmask_problem,
    "planned_attention": planned_attention_problem,
    "span_attention": span_attention_problem,
}
