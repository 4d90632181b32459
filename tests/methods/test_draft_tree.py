"""Trees of drafts: the most probable nodes, who reads whom, and the same text as without, in fewer forwards."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from laws import worlds
from laws.checks import result
from laws.planting import Bug
from methods.test_drafting import PROMPTS, SEEDS, sample, speaker_of, wrote
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.draft_tree import ROOT, Node, grow, lineage, path
from pdref.methods.generation import Drafted


@pytest.fixture(scope="module")
def medusa() -> Speaker:
    return speaker_of("medusa")


def beginnings(nodes: list[Node]) -> list[tuple[int, ...]]:
    """The tokens that lead to each node."""
    found: list[tuple[int, ...]] = []
    for node in nodes:
        found.append((*(found[node.parent] if node.parent != ROOT else ()), node.token))
    return found


@pytest.mark.parametrize("size", [1, 2, 5, 17, 100])
def test_a_tree_holds_the_most_probable_beginnings(size: int) -> None:
    """Against all sequences of 3 of 4 tokens, sorted."""
    log_q = torch.randn(3, 4, generator=torch.Generator().manual_seed(size), dtype=torch.float64).log_softmax(-1)
    chances = {
        tokens: sum(log_q[k, token].item() for k, token in enumerate(tokens))
        for depth in (1, 2, 3)
        for tokens in product(range(4), repeat=depth)
    }
    best = sorted(chances, key=lambda tokens: -chances[tokens])[:size]
    found = beginnings(grow(log_q, size))
    # A beginning that ties with its continuation cannot occur: every factor is below one.
    assert set(found) == set(best) and len(found) == len(best)
    assert all(node.depth == len(tokens) for node, tokens in zip(grow(log_q, size), found, strict=True))


def test_nothing_ahead_is_no_tree() -> None:
    assert grow(torch.zeros(0, 4), 8) == []


def test_who_reads_whom() -> None:
    """
    root - a - c
         \\ b - d
    """
    nodes = [Node(5, 1, ROOT), Node(6, 1, ROOT), Node(7, 2, 0), Node(7, 2, 1)]
    drawn = ["x.....", "xx....", "x.x...", "xx.x..", "x.x.x.", "x....x"]  # the last one fills up
    assert lineage(nodes, 6).tolist() == [[mark == "x" for mark in row] for row in drawn]


def test_the_path_follows_the_model() -> None:
    nodes = [Node(5, 1, ROOT), Node(6, 1, ROOT), Node(7, 2, 0), Node(7, 2, 1), Node(8, 2, 1)]
    assert path(nodes, [6, 0, 8, 0, 0, 9]) == [1, 4]
    assert path(nodes, [6, 7, 9, 0, 0, 0]) == [1], "7 is what follows 5, and 5 is not what the model says"
    assert path(nodes, [1, 7, 8, 0, 0, 0]) == []


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_trees_change_no_token(temperature: float, medusa: Speaker) -> None:
    plain = [wrote(g) for g in sample(medusa, Draw(temperature, seeds=SEEDS, ahead=0))]
    chain = Drafted.total(sample(medusa, Draw(temperature, seeds=SEEDS)))
    for size in (1, 4, 24):
        found = sample(medusa, Draw(temperature, seeds=SEEDS, tree=size))
        assert [wrote(g) for g in found] == plain
        assert all(worlds.replayed(g) == g.tokens for g in found)
        assert all(g.drafted and g.nfe == g.critical_path == 1 + g.drafted.forwards for g in found)
    total = Drafted.total(found)
    assert total.tokens_per_forward > chain.tokens_per_forward, "second guesses come true, too"
    assert total.acceptance[0] > chain.acceptance[0]


def test_company_changes_nothing(medusa: Speaker) -> None:
    together = sample(medusa, Draw(0.6, seeds=SEEDS, tree=7))
    for b, prompt in enumerate(PROMPTS):
        [alone] = sample(medusa, Draw(0.6, seeds=[SEEDS[b]], tree=7), [prompt])
        assert result(alone) == result(together[b])
        assert alone.drafted == together[b].drafted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_small_model_grows_trees(temperature: float) -> None:
    large = worlds.inventor()
    speaker = Speaker(large.model, large.tokenizer, large.grammar, small=worlds.inventor(seed=16).model)
    plain, chain, tree = (
        sample(speaker, draw)
        for draw in (
            Draw(temperature, seeds=SEEDS, ahead=0),
            Draw(temperature, seeds=SEEDS),
            Draw(temperature, seeds=SEEDS, tree=12),
        )
    )
    assert [wrote(g) for g in tree] == [wrote(g) for g in plain]
    assert Drafted.total(tree).acceptance[0] > Drafted.total(chain).acceptance[0]


def test_where_no_tree_grows(medusa: Speaker) -> None:
    with pytest.raises(ValueError, match="takes a cache"):
        sample(medusa, Draw(tree=4), cached=False)
    with pytest.raises(ValueError, match="Medusa's heads or a small model"):
        sample(speaker_of("causal"), Draw(tree=4))
    with pytest.raises(ValueError, match="Medusa's heads or a small model"):
        sample(medusa, Draw(ahead=0, tree=4))
    with pytest.raises(ValueError, match="at least 0 drafts, not -1"):
        Draw(tree=-1)
    with pytest.raises(ValueError, match="the rule 'coupled', not 'rejection'"):
        Draw(0.5, rule="rejection", tree=4)


BUGS = {
    "a cousin is read": Bug("pdref.methods.draft_tree:lineage", "reads[node.parent + 1]", "reads[i - 1]", ()),
    "the wrong entries stay": Bug("pdref.model.cache:Fork.keep", "taken[each, which]", "taken[each, 0 * which]", ()),
    "a stranger's child is followed": Bug(
        "pdref.methods.draft_tree:path", "node.parent == at and node.token", "node.token", ()
    ),
    "the text is not read": Bug(
        "pdref.model.cache:Fork.__init__", "< positions[:, :1, None]", "< 0 * positions[:, :1, None]", ()
    ),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_bugs_change_tokens(bug: Bug, medusa: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [wrote(g) for g in sample(medusa, Draw(seeds=SEEDS, ahead=0))]
    bug.plant(monkeypatch)
    assert [wrote(g) for g in sample(medusa, Draw(seeds=SEEDS, tree=24))] != plain
