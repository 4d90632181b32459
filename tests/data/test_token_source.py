"""What every source of bare tokens promises: frequencies, surprisal and beliefs agree with its exact law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from laws.planting import Bug
from pdref.data.choice_points import ChoicePoints
from pdref.data.delayed_copy import DelayedCopy
from pdref.data.mess3 import Mess3
from pdref.data.random_xor import RandomXor
from pdref.data.token_source import TokenSource
from pdref.ops.multi_token_nll import multi_token_nll
from pdref.theory.representation import information

SOURCES = [
    DelayedCopy(),
    DelayedCopy(2, 0.3, 3),
    RandomXor(),
    RandomXor(4, known_phase=True),
    Mess3(),
    ChoicePoints(2, 3),
]
every_source = pytest.mark.parametrize("source", SOURCES, ids=str)


def sample(source: TokenSource, count: int, length: int, seed: int = 1) -> torch.Tensor:
    return source.sample(count, length, torch.Generator().manual_seed(seed))


def frequencies_match(source: TokenSource, length: int = 5) -> None:
    """Whole sequences are drawn as often as the hidden Markov model says; what it excludes is never drawn."""
    law = source.process.future(source.process.start, length).ravel()
    tokens = sample(source, 20_000, length + 1)
    index = source.next_tokens(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], 1), length)[:, 0]
    seen = np.bincount(index, minlength=len(law))
    assert seen[law == 0].sum() == 0
    seen, expected = seen[law > 0], 20_000 * law[law > 0]
    rare = expected < 5  # a cell of their own
    if rare.any():
        seen = np.append(seen[~rare], seen[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(seen, expected).pvalue > 1e-4


@every_source
def test_frequencies_match_the_law(source: TokenSource) -> None:
    frequencies_match(source)


@every_source
def test_entropies_match_to_monte_carlo_error(source: TokenSource) -> None:
    """What perfect heads pay on samples averages to the exact entropy, at every place and offset."""
    cost = source.nats(sample(source, 4000, 8), n=3)
    assert cost.shape == (4000, 8, 3) and cost.isfinite().all()
    for k in (1, 2, 3):
        assert (cost[:, :k, k - 1] == 0).all(), "nothing before the sequence predicts"
        for i in range(k, 8):
            paid, exact = cost[:, i, k - 1], source.entropy(past=i - k + 1, n=k)[k - 1]
            assert abs(paid.mean() - exact) < 4 * paid.std() / math.sqrt(len(paid)) + 1e-9


@every_source
def test_surprisal_is_the_chance_of_the_whole(source: TokenSource) -> None:
    tokens = sample(source, 50, 6)
    whole = source.process.future(source.process.start, 6)[tuple(tokens.T)]
    first = source.process.ahead(source.process.start, 1)[tokens[:, 0]]
    np.testing.assert_allclose(source.nats(tokens)[..., 0].sum(1).numpy(), np.log(first / whole), atol=1e-9)


@every_source
def test_perfect_heads_lose_what_they_should(source: TokenSource) -> None:
    """With the margins of the joint law for scores, `multi_token_nll` charges what `nats` says, token by token."""
    tokens = sample(source, 7, 9)
    joint = source.future(tokens, 3).unflatten(-1, (source.vocabulary,) * 3)  # [B, T, V, V, V]
    scores = torch.stack([joint.sum(others) for others in ((3, 4), (2, 4), (2, 3))], 2).clamp_min(1e-30).log()
    unembedding = torch.eye(source.vocabulary, dtype=scores.dtype)
    lost = multi_token_nll(scores, unembedding, tokens, torch.ones_like(tokens) > 0)
    torch.testing.assert_close(lost, source.nats(tokens, 3), atol=1e-9, rtol=0)


@every_source
def test_the_joint_future_has_the_heads_laws_as_margins(source: TokenSource) -> None:
    tokens = sample(source, 20, 6)
    joint = source.future(tokens, 2).unflatten(-1, (source.vocabulary,) * 2)
    torch.testing.assert_close(torch.stack([joint.sum(-1), joint.sum(-2)], 2), source.ahead(tokens, 2))


@every_source
def test_labels_of_the_future_number_the_joint_law(source: TokenSource) -> None:
    """Their log-likelihood, less that of ignorance, averages to the exact information about the future."""
    tokens = sample(source, 5000, 8)
    labels, place = source.next_tokens(tokens, 3), 4
    assert labels.shape == tokens.shape and (labels[:, -3:] == -1).all() and (labels[:, :-3] >= 0).all()
    digits = [int(x) for x in np.base_repr(int(labels[0, place]), source.vocabulary).zfill(3)]
    assert digits == tokens[0, place + 1 : place + 4].tolist()
    table = source.process.table(past=place + 1, horizon=3)
    ignorant = torch.from_numpy(table.sum(0).ravel())[labels[:, place]]
    known = source.future(tokens[:, : place + 1], 3)[:, -1].gather(-1, labels[:, place, None])[:, 0]
    bits = (known / ignorant).log2()
    assert abs(bits.mean() - information(table)) < 4 * bits.std() / math.sqrt(len(bits)) + 1e-9


@every_source
def test_a_short_sequence_has_no_far_future(source: TokenSource) -> None:
    tokens = sample(source, 2, 3)
    assert (source.next_tokens(tokens, 3) == -1).all() and (source.next_tokens(tokens, 5) == -1).all()
    assert source.nats(tokens, 5).shape == (2, 3, 5)
    assert (source.nats(tokens, 5)[..., 2:] == 0).all()


@every_source
def test_the_generator_decides_the_sample(source: TokenSource) -> None:
    tokens = sample(source, 4, 33)
    assert tokens.shape == (4, 33) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < source.vocabulary == source.process.vocabulary
    assert torch.equal(tokens, sample(source, 4, 33)) and not torch.equal(tokens, sample(source, 4, 33, seed=2))


@every_source
def test_every_length_is_served(source: TokenSource) -> None:
    for length in range(1, 10):
        assert sample(source, 2, length).shape == (2, length)


def test_what_a_source_cannot_write_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot write token 2"):
        RandomXor(known_phase=True).nats(torch.tensor([[0, 1, 0]]))
    with pytest.raises(ValueError, match=r"more than .* beliefs"):
        Mess3().entropy(past=20)


# The tests can fail.

BUGS = {
    "errors do not add up": (
        DelayedCopy(2, 0.3, 3),
        Bug("pdref.data.delayed_copy:DelayedCopy.sample", "steps.cumsum(1)", "(steps[:, :1] + steps)", ()),
    ),
    "every sequence opens a period": (
        RandomXor(),
        Bug("pdref.data.random_xor:RandomXor.sample", "phase * (not self.known_phase)", "phase * 0", ()),
    ),
    "the state moves half as often": (
        Mess3(),
        Bug("pdref.data.mess3:Mess3.sample", "step(1 - 2 * self.x)", "step(1 - self.x)", ()),
    ),
    "the last token is the branch": (
        ChoicePoints(2, 3),
        Bug("pdref.data.choice_points:ChoicePoints.sample", ", last]", ", value]", ()),
    ),
    "all heads pay for the first": (
        Mess3(),
        Bug("pdref.data.token_source:TokenSource.nats", "laws[:, :-k, k - 1]", "laws[:, :-k, 0]", ()),
    ),
    "a head too far": (
        DelayedCopy(),
        Bug("pdref.theory.hidden_markov:HiddenMarkov.ahead", "offset - 1)", "offset)", ()),
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_turn_tests_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, bug = BUGS[name]
    laws = (frequencies_match, test_surprisal_is_the_chance_of_the_whole, test_perfect_heads_lose_what_they_should)
    bug.plant(monkeypatch)
    with pytest.raises(AssertionError):
        for law in laws:
            law(source)
