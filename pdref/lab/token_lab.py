"""Small learners on sources whose law is known, many at once: what n heads cost, and what a hidden state comes to hold.

A learner maps tokens [B, T] to its hidden states [B, T, D] and to the nats [B, T, n] that its heads pay, by the place
of the prediction. There are two.

`Headed` is a transformer with the heads of pdref/model/heads.py. `Narrow` is the setting of the representation claim
(pdref/theory/representation.py): a trunk reads the past into a hidden state h of few numbers, and heads read h alone,

    parallel      p_k(x_{t+k} | h_t)                            k = 1..n
    sequential    p_k(x_{t+k} | h_t, x_{t+1}, ..., x_{t+k-1})

whereas a head that is a layer attends to earlier positions, and what it needs may stand there instead of in h_t.

Learners of one shape are learned side by side: parameters are stacked and each operation is done for all in one call,
several times faster than one after the other. Seeds, sources and the width of a `Narrow` may differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pdref.data.token_source import TokenSource
from pdref.model.heads import Kind, MultiToken
from pdref.model.norm import EPSILON, RMSNorm
from pdref.model.transformer import Config, Transformer
from pdref.ops.impl import Impl
from pdref.ops.multi_token_nll.offsets import ahead
from pdref.text.mask import Sight
from pdref.theory.representation import Heads

INNER = 32  # hidden units of a `Narrow`'s heads
WARM_UP = 20  # steps


class Myopic:
    """A memory that lets every position see the past but not shape it: past keys and values are detached.

    What is left of the gradient at a position is that of its own loss: no pre-caching (arXiv 2404.00859).
    """

    mask = None

    def extend(self, layer: int, entries: Tensor) -> Tensor:
        """Nothing is remembered from one forward to the next."""
        return entries

    def attend(self, layer: int, q: Tensor, entries: Tensor, mask: Tensor | Sight | None, impl: Impl) -> Tensor:
        """Causal attention of q [B, H, T, Dh] to keys and values [B, 2H, T, Dh]; returns [B, H, T, Dh]."""
        k, v = entries.chunk(2, 1)
        own = torch.eye(q.shape[-2], dtype=torch.bool, device=q.device)
        scores = torch.where(own, q @ k.mT, q @ k.detach().mT) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(torch.ones_like(own).triu(1), -math.inf).softmax(-1)
        return weights @ v.detach() + torch.diagonal(weights, dim1=-2, dim2=-1)[..., None] * (v - v.detach())


class Headed(nn.Module):
    """A transformer with `n` heads of a `kind`; its state is what the trunk hands to them."""

    def __init__(self, config: Config, n: int = 1, kind: Kind = "parallel", seed: int = 0) -> None:
        super().__init__()
        self.n, self.context = n, config.context
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = MultiToken(config, n, kind) if n > 1 else Transformer(config)
        _make_stackable(self)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, T, D] and nats [B, T, n]."""
        place = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        model = self.model
        if self.n == 1:
            state = hidden = model.forward(tokens, place, impl="naive")
            hidden = hidden.unsqueeze(2)
        else:
            state = model.trunk(tokens, place, impl="naive")
            heads = model.further(state, place, lambda k: tokens.roll(-k, dims=1), impl="naive")
            hidden = torch.stack([model.first(state, place, impl="naive"), *heads], 2)
        return state, _nats(F.linear(hidden, model.unembed.weight).log_softmax(-1), tokens)


class Narrow(nn.Module):
    """A trunk of `config`, a state of `width` numbers, and `n` heads that read nothing else: an inner layer each.

    With a `clock` the trunk is told the place of each token modulo it, for sources whose phase takes long to find out.
    The parameters are those of the widest state, so that learners of different widths can be stacked.
    Raises ValueError for a width that the trunk does not have.
    """

    def __init__(
        self,
        config: Config,
        width: int,
        n: int = 1,
        heads: Heads = "parallel",
        clock: int = 1,
        myopic: bool = False,
        seed: int = 0,
    ) -> None:
        if not 1 <= width <= config.width:
            raise ValueError(f"a state has 1 to {config.width} numbers, as wide as the trunk, not {width}")
        super().__init__()
        V, D = config.vocabulary, config.width
        self.n, self.context = n, config.context
        self.clock, self.chained = clock, heads == "sequential"
        self.memory = Myopic() if myopic else None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = Transformer(Config(V * clock, config.context, config.layers, D, config.heads, config.heads))
            self.squeeze = nn.Linear(D, D, bias=False)
            self.read = nn.Parameter(torch.randn(n, D, INNER) / math.sqrt(width))
            self.told = nn.Parameter(torch.randn(n, n, V, INNER))  # to head k, the token j + 1 places ahead
            self.bias = nn.Parameter(torch.zeros(n, INNER))
            self.say = nn.Parameter(torch.randn(n, INNER, V) / math.sqrt(INNER))
        self.register_buffer("kept", (torch.arange(D) < width).float())
        self.register_buffer("earlier", torch.ones(n, n).tril(-1)[..., None, None])
        _make_stackable(self)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, T, D], zero beyond the width, and nats [B, T, n]."""
        place = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        seen = self.trunk.forward(tokens * self.clock + place % self.clock, place, memory=self.memory, impl="naive")
        state = self.squeeze(seen) * self.kept
        inner = torch.einsum("btd,ndh->btnh", state, self.read) + self.bias
        if self.chained:
            following = F.one_hot(ahead(tokens, self.n).clamp(min=0), self.say.shape[-1]).to(inner)  # [B, T, n, V]
            inner = inner + torch.einsum("btjv,njvh->btnh", following, self.told * self.earlier)
        log_p = torch.einsum("btnh,nhv->btnv", F.gelu(inner), self.say).log_softmax(-1)
        return state, _nats(log_p, tokens)


class Learners:
    """Learners of one shape, side by side; learner r takes row r of tokens [R, B, T]."""

    def __init__(self, learners: Sequence[Headed] | Sequence[Narrow]) -> None:
        self.n, self.context, self.count = learners[0].n, learners[0].context, len(learners)
        self.parameters, self.buffers = stack_module_state(list(learners))
        shape = learners[0]

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
            return functional_call(shape, (parameters, buffers), (tokens,))

        self._call = vmap(call)

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States [R, B, T, D] and nats [R, B, T, n] of tokens [R, B, T]. Raises ValueError for misfits."""
        if tokens.dim() != 3 or len(tokens) != self.count or tokens.shape[2] > self.context:
            raise ValueError(
                f"tokens are [{self.count}, B, T] with T at most {self.context}, the context, not {list(tokens.shape)}"
            )
        return self._call(self.parameters, self.buffers, tokens)

    def learn(
        self,
        sources: Sequence[TokenSource],
        steps: int,
        batch: int = 16,
        rate: float = 1e-2,
        further: float = 1.0,
        seed: int = 0,
    ) -> Tensor:
        """Adam with a warm-up and a linear decay on fresh sequences as long as the context.

        Returns the nats by offset at every step, [steps, R, n].

        The loss of each learner is the mean over places of nats_1 + `further` sum_{k > 1} nats_k. Learners whose
        sources are equal see the same sequences in the same order, those of other sources others.
        """
        tokens = samples(sources, steps * batch, self.context, seed).unflatten(1, (steps, batch))  # [R, steps, B, T]
        weights = torch.tensor([1.0] + [further] * (self.n - 1))
        adam = torch.optim.Adam(self.parameters.values(), rate, (0.9, 0.98), fused=True)
        log = []
        for step in range(steps):
            adam.param_groups[0]["lr"] = rate * min((step + 1) / WARM_UP, 1 - step / steps)
            nats = by_offset(self(tokens[:, step])[1])  # [R, n]
            adam.zero_grad()
            (nats * weights).sum().backward()
            adam.step()
            log.append(nats.detach())
        return torch.stack(log)


def samples(sources: Sequence[TokenSource], count: int, length: int, seed: int) -> Tensor:
    """`count` sequences of each source, [R, count, length]; equal sources give equal sequences."""
    drawn = {s: s.sample(count, length, torch.Generator().manual_seed(seed)) for s in set(sources)}
    return torch.stack([drawn[source] for source in sources])


def by_offset(nats: Tensor, start: int = 0) -> Tensor:
    """Mean nats [..., n] of the predictions made from place `start` on, of nats [..., B, T, n]; none beyond the end."""
    T, n = nats.shape[-2:]
    made = [nats[..., start : T - k, k - 1].mean((-2, -1)) for k in range(1, n + 1)]
    return torch.stack(made, -1)


@torch.no_grad()
def regret(learners: Learners, sources: Sequence[TokenSource], tokens: Tensor, start: int = 0) -> Tensor:
    """Nats by offset beyond those of perfect parallel heads on the same tokens [R, B, T], [R, n]."""
    floors = {s: _at_source(s.nats(tokens[r], learners.n)) for r, s in enumerate(sources)}
    floor = torch.stack([floors[source] for source in sources])
    return by_offset(learners(tokens)[1] - floor, start).float()


def _at_source(nats: Tensor) -> Tensor:
    """[B, T, n] by the place of the token -> by the place of the prediction."""
    return torch.stack([nats[..., k - 1].roll(-k, 1) for k in range(1, nats.shape[-1] + 1)], -1)


def _nats(log_p: Tensor, tokens: Tensor) -> Tensor:
    """-log p_k(x_{t+k}) of log p [B, T, n, V]; what is beyond the end is of no use."""
    targets = ahead(tokens, log_p.shape[2]).clamp(min=0)
    return -log_p.gather(-1, targets[..., None])[..., 0]


def _make_stackable(module: nn.Module) -> None:
    """PyTorch's own RMSNorm for ours, whose written-out backward knows no stacks: the same function."""
    for name, child in module.named_children():
        if isinstance(child, RMSNorm):
            setattr(module, name, nn.RMSNorm(len(child.weight), EPSILON))
        else:
            _make_stackable(child)
