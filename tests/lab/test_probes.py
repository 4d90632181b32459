"""Probes read what their family can read, in bits, and nothing where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laws.planting import Bug
from pdref.lab import probes
from pdref.lab.probes import Probe, exact_bits

LINEAR, WIDE = Probe(), Probe(inner=32)


def bits(count: int, seed: int) -> Tensor:
    """Pairs of fair bits, [N, 2]."""
    return torch.randint(2, (count, 2), generator=torch.Generator().manual_seed(seed))


def states(pairs: Tensor) -> Tensor:
    """The bits as -1 and 1 among noise, [1, N, 4]."""
    noise = torch.randn(len(pairs), 2, generator=torch.Generator().manual_seed(len(pairs)))
    return torch.cat([2.0 * pairs - 1, noise], -1)[None]


def law(labels: Tensor) -> Tensor:
    """One-hot laws [1, N, 2]."""
    return F.one_hot(labels, 2).double()[None]


def noisy(labels: Tensor, error: float) -> Tensor:
    """A future bit that is the label but for an error."""
    return law(labels) * (1 - 2 * error) + error


def test_a_linear_probe_reads_a_bit_and_not_the_xor_of_two() -> None:
    fit, test = bits(1000, 0), bits(999, 1)
    copy = LINEAR.bits(states(fit), law(fit[:, 0]), states(test), law(test[:, 0]))
    assert 0.9 < copy.item() <= 1
    linear, wide = (
        probe.bits(states(fit), law(fit.sum(1) % 2), states(test), law(test.sum(1) % 2)).item()
        for probe in (LINEAR, WIDE)
    )
    assert linear < 0.05 and wide > 0.95


def test_noisy_futures_give_the_capacity_of_the_channel() -> None:
    """1 - H(.1), by the probe and by the law itself."""
    right = 1 + 0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)
    fit, test = bits(1000, 0), bits(999, 1)
    found = LINEAR.bits(states(fit), noisy(fit[:, 0], 0.1), states(test), noisy(test[:, 0], 0.1))
    assert found.item() == pytest.approx(right, abs=0.02)
    assert exact_bits(noisy(test[:, 0], 0.1)).item() == pytest.approx(right, abs=0.02)


@pytest.mark.parametrize("probe", [LINEAR, WIDE], ids=["linear", "wide"])
def test_shuffled_labels_tell_nothing(probe: Probe) -> None:
    fit, test = bits(1000, 0), bits(999, 1)
    dealt = [probes.shuffled(law(x[:, 0])) for x in (fit, test)]
    assert probe.bits(states(fit), dealt[0], states(test), dealt[1]).item() < 0.02


def test_probes_of_several_networks_are_independent() -> None:
    """One reads, the other's state is constant, and each is what it is alone."""
    fit, test = bits(500, 0), bits(499, 1)
    pair = [torch.cat([states(x), torch.ones(1, len(x), 4)]) for x in (fit, test)]
    laws = [law(x[:, 0]).expand(2, -1, -1) for x in (fit, test)]
    together = WIDE.bits(pair[0], laws[0], pair[1], laws[1])
    alone = WIDE.bits(pair[0][:1], laws[0][:1], pair[1][:1], laws[1][:1])
    assert together[0].item() == pytest.approx(alone.item(), abs=1e-4)
    assert abs(together[1].item()) < 0.02


def test_a_probe_is_judged_on_states_that_it_was_not_fitted_on() -> None:
    """Forty numbers, forty states: it can fit random labels, and it does not pay."""
    generator = torch.Generator().manual_seed(0)
    seen, unseen = (torch.randn(1, 40, 40, generator=generator) for _ in range(2))
    labels = [law(bits(40, seed)[:, 0]) for seed in (0, 1)]
    assert LINEAR.bits(seen, labels[0], seen, labels[0]).item() > 0.9
    assert LINEAR.bits(seen, labels[0], unseen, labels[1]).item() < 0


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="are not"):
        LINEAR.bits(torch.zeros(1, 5, 2), torch.zeros(1, 4, 2), torch.zeros(1, 5, 2), torch.zeros(1, 5, 2))
    with pytest.raises(ValueError, match="hidden units"):
        Probe(inner=-1)


def test_labels_are_only_dealt_out() -> None:
    laws = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(0))
    dealt = probes.shuffled(laws)
    assert not torch.equal(dealt, laws)
    for before, after in zip(laws, dealt, strict=True):
        assert sorted(before.tolist()) == sorted(after.tolist())


BUGS = {
    "fitted on the states that judge it": (
        Bug(
            "pdref.lab.probes:Probe.bits",
            "self._fitted((states - middle) / size, laws)",
            "self._fitted((held_out - middle) / size, held_out_laws.float())",
            (),
        ),
        test_a_probe_is_judged_on_states_that_it_was_not_fitted_on,
    ),
    "nats for bits": (
        Bug("pdref.lab.probes:Probe.bits", " / math.log(2)", "", ()),
        test_noisy_futures_give_the_capacity_of_the_channel,
    ),
    "labels left in place": (
        Bug("pdref.lab.probes:shuffled", "laws[:, torch.randperm", "laws[:, 0 * torch.randperm", ()),
        test_labels_are_only_dealt_out,
    ),
    "no inner layer": (
        Bug("pdref.lab.probes:Reader.forward", "F.gelu(", "(", ()),
        test_a_linear_probe_reads_a_bit_and_not_the_xor_of_two,
    ),
}


@pytest.mark.parametrize(("bug", "law"), BUGS.values(), ids=BUGS)
def test_bugs_are_found(bug: Bug, law: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    with pytest.raises(AssertionError):
        law()
