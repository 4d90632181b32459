"""Plans that are trees: one choice at the top, one below it for each part of the text.

    p(x) = sum_a p(a) prod_i sum_b p(b | a, i) p(x_i | a, b, i)

Given the top choice the parts know nothing of each other, as spans do given their plan, so the sum goes inside the
product (sum-product): A C n rows instead of A C^n for n parts. What parts share has to be in the top choice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pdref.methods.decoding import Draw
from pdref.methods.latent_plan import Written, drawn, read
from pdref.model.transformer import Transformer
from pdref.ops.impl import Impl
from pdref.ops.token_nll import token_nll


class TreeMarginal(NamedTuple):
    """What a text is worth, and which choices it came from."""

    log_p: Tensor  # [B] log p(x)
    log_top: Tensor  # [B, A] log p(a | x)
    log_options: Tensor  # [B, A, n, C] log p(b_i | a, x_i)


class TreePlans(nn.Module):
    """A top choice among `tops` A, for each of `parts` n one among `options` C; a part is written given both.

    A part is read as: the vector of its place, of the top choice, of its own choice, then its tokens. Raises
    ValueError for choices among nothing.
    """

    def __init__(self, model: Transformer, tops: int, options: int, parts: int) -> None:
        if min(tops, options, parts) < 1:
            raise ValueError(f"a tree has tops, options and parts, not {tops}, {options}, {parts}")
        super().__init__()
        self.model, width = model, model.config.width
        self.places, self.tops, self.options = (nn.Embedding(n, width) for n in (parts, tops, options))
        self.top_scores = nn.Parameter(torch.zeros(tops))
        self.option_scores = nn.Parameter(0.5 * torch.randn(tops, options))

    @property
    def log_top(self) -> Tensor:
        """log p(a), [A]."""
        return self.top_scores.log_softmax(0)

    @property
    def log_options(self) -> Tensor:
        """log p(b | a), the same for all parts, [A, C]."""
        return self.option_scores.log_softmax(1)

    def states(self, parts: Tensor, place: Tensor, top: Tensor, option: Tensor, impl: Impl = "auto") -> Tensor:
        """States [..., L, D] that predict parts [..., L] at a place, under a top choice and an option, [...] each."""
        chosen = torch.stack(torch.broadcast_tensors(self.places(place), self.tops(top), self.options(option)), -2)
        x = torch.cat([chosen.expand(*parts.shape[:-1], 3, -1), self.model.embed(parts[..., :-1])], -2)
        return read(self.model, x.flatten(0, -3), impl=impl).unflatten(0, parts.shape[:-1])[..., 2:, :]

    def log_parts(self, text: Tensor, impl: Impl = "auto") -> Tensor:
        """log p(x_i | a, b, i) of the parts of texts [B, n L] under all choices, [B, A, C, n].

        Raises ValueError for texts that do not split into the parts.
        """
        n, A, C = (len(table.weight) for table in (self.places, self.tops, self.options))
        if text.shape[1] % n:
            raise ValueError(f"texts of {text.shape[1]} tokens do not split into {n} parts")
        parts = text.unflatten(1, (n, -1))[:, None, None].expand(-1, A, C, -1, -1)  # [B, A, C, n, L]
        place, top, option = (torch.arange(size, device=text.device) for size in (n, A, C))
        hidden = self.states(parts, place, top[:, None, None], option[:, None], impl)  # [B, A, C, n, L, D]
        return -token_nll(hidden, self.model.unembed.weight, parts, impl).sum(-1)

    def marginal(self, text: Tensor, impl: Impl = "auto") -> TreeMarginal:
        """Sum out the tree, from its leaves up."""
        leaves = self.log_options[..., None] + self.log_parts(text, impl)  # [B, A, C, n]: log p(x_i, b_i | a)
        of_parts = leaves.logsumexp(2)  # [B, A, n]: log p(x_i | a)
        of_tops = self.log_top + of_parts.sum(-1)  # [B, A]: log p(x, a)
        log_p = of_tops.logsumexp(1)  # [B]
        return TreeMarginal(log_p, of_tops - log_p[:, None], (leaves - of_parts[:, :, None]).mT)

    @torch.inference_mode()
    def sample(self, count: int, length: int, draw: Draw | None = None, impl: Impl = "auto") -> Written:
        """Draw a top choice, the parts' options, and all parts side by side: plans [count, 1 + n], texts [count, n L].

        `length` is that of a part. At temperature 1 unless `draw` says otherwise; a request is written the same alone
        as in a batch.
        """
        draw, device = draw or Draw(temperature=1.0), self.top_scores.device
        n = len(self.places.weight)
        seeds, place = draw.request_seeds(count).to(device), torch.arange(n, device=device)
        top = self._pick(self.log_top.expand(count, -1), seeds, seeds.new_tensor(0), draw, impl)  # [B]
        laws = self.log_options[top][:, None].expand(-1, n, -1)  # [B, n, C]
        option = self._pick(laws, seeds[:, None], 1 + place, draw, impl)  # [B, n]
        parts = torch.zeros(count, n, length, dtype=torch.int64, device=device)
        for t in range(length):
            state = self.states(parts, place, top[:, None], option, impl)[..., t, :]  # [B, n, D]
            noise = 1 + n * (1 + t) + place
            parts[..., t] = drawn(state, self.model.unembed.weight, seeds[:, None], noise, draw, impl)
        return Written(torch.cat([top[:, None], option], 1), parts.flatten(1))

    @staticmethod
    def _pick(log_law: Tensor, seeds: Tensor, places: Tensor, draw: Draw, impl: Impl) -> Tensor:
        """A choice [...] from log laws [..., N]."""
        scores = torch.eye(log_law.shape[-1], device=log_law.device, dtype=log_law.dtype)
        return drawn(log_law, scores, seeds, places, draw, impl)
