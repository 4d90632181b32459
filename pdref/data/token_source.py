"""Sources of bare tokens whose law is known: what a head must pay, and what a hidden state could know.

Tokens are 0..V-1, without tags or documents: a batch [B, T] is a model's input and its own target. Everything exact
comes from the source's `HiddenMarkov` (pdref/theory/hidden_markov.py), on the CPU and in float64; sampling is done
in each source's own words, and tests hold the two to each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from pdref.theory.hidden_markov import HiddenMarkov


class TokenSource(ABC):
    """A source of sequences [B, T] int64 of `vocabulary` tokens."""

    @property
    @abstractmethod
    def process(self) -> HiddenMarkov:
        """The source as a hidden Markov model. Raises ValueError where its states are too many."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of tokens V."""

    @abstractmethod
    def sample(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """`count` sequences of `length` tokens, [count, length] int64 on the generator's device."""

    def beliefs(self, tokens: Tensor) -> Tensor:
        """The belief after each of `tokens` [B, T], [B, T, S]: the minimal statistic of all that follows.

        Raises ValueError for tokens that the source cannot write.
        """
        return torch.from_numpy(self.process.beliefs(_array(tokens))[..., 1:, :]).to(tokens.device)

    def ahead(self, tokens: Tensor, n: int) -> Tensor:
        """p(x_{t+k} | x_{<=t}) for k = 1..n, [B, T, n, V]: what n perfect parallel heads say at each place."""
        beliefs = self.beliefs(tokens).cpu().numpy()
        laws = [self.process.ahead(beliefs, offset) for offset in range(1, n + 1)]
        return torch.from_numpy(np.stack(laws, -2)).to(tokens.device)

    def future(self, tokens: Tensor, horizon: int) -> Tensor:
        """p(x_{t+1}, ..., x_{t+horizon} | x_{<=t}), [B, T, V^horizon], numbered as in `next_tokens`."""
        laws = self.process.future(self.beliefs(tokens).cpu().numpy(), horizon)
        return torch.from_numpy(laws.reshape(*tokens.shape, -1)).to(tokens.device)

    def next_tokens(self, tokens: Tensor, horizon: int) -> Tensor:
        """The `horizon` tokens after each place as one number, the first its leading digit, [B, T] int64.

        What a probe of the joint future predicts; -1 where the sequence ends before.
        """
        labels = torch.full_like(tokens, -1)
        if horizon < tokens.shape[1]:
            digits = self.vocabulary ** torch.arange(horizon - 1, -1, -1, device=tokens.device)
            labels[:, :-horizon] = (tokens[:, 1:].unfold(1, horizon, 1) * digits).sum(-1)
        return labels

    def nats(self, tokens: Tensor, n: int = 1) -> Tensor:
        """Surprisal [B, T, n] of each token under n perfect parallel heads, by the place of the token predicted.

        nats[b, i, k - 1] = -log p(x_i | x_{<=i-k}), zero where i < k: place by place what `multi_token_nll` charges
        a model, so that the difference of the two is what the model has yet to learn.
        """
        laws = self.ahead(tokens, n)  # [B, T, n, V]
        cost = torch.zeros(*tokens.shape, n, dtype=laws.dtype, device=tokens.device)
        for k in range(1, min(n, tokens.shape[1] - 1) + 1):
            law = laws[:, :-k, k - 1]  # [B, T - k, V]
            cost[:, k:, k - 1] = -law.gather(-1, tokens[:, k:, None])[..., 0].log()
        return cost

    def entropy(self, past: int, n: int = 1) -> Tensor:
        """Expected nats [n] of the 1st..n-th token after `past` tokens: what `nats` averages to.

        Raises ValueError where the pasts are too many to list; average `nats` over samples there.
        """
        chance, beliefs = self.process.pasts(past)
        laws = np.stack([self.process.ahead(beliefs, offset) for offset in range(1, n + 1)])  # [n, P, V]
        logs = np.log(laws, where=laws > 0, out=np.zeros_like(laws))
        return torch.from_numpy(-(chance[:, None] * laws * logs).sum((1, 2)))


def _array(tokens: Tensor) -> np.ndarray:
    return tokens.cpu().numpy()
