"""Walks around a ring: the prompt decides everything."""

from __future__ import annotations

import pytest
import torch

from pdref.data.walks import Walks


@pytest.mark.parametrize(("nodes", "hops"), [(4, 2), (7, 2), (7, 4)])
def test_answers_follow_the_edges(nodes: int, hops: int) -> None:
    source = Walks(nodes, hops)
    prompt, thoughts, text = source.sample(200, torch.Generator().manual_seed(0))
    assert int(prompt.max()) < source.vocabulary and thoughts.shape == (200, hops - 1)
    for row, between, answer in zip(prompt.tolist(), thoughts.tolist(), text.tolist(), strict=True):
        *edges, start = row
        follow = dict(divmod(edge - nodes, nodes) for edge in edges)
        assert sorted(follow) == sorted(follow.values()) == list(range(nodes))
        walk = [start]
        for _ in range(hops):
            walk.append(follow[walk[-1]])
        assert walk[1:] == between + answer
        assert len(set(walk)) == hops + 1, "a ring, no shorter circle"


def test_nothing_but_the_walk_tells_the_answer() -> None:
    source = Walks(5, 2)
    prompt, thoughts, text = source.sample(6000, torch.Generator().manual_seed(1))
    seen = torch.stack([prompt[:, -1], thoughts[:, 0]], 1)
    others = torch.bincount((text[:, 0] - seen[:, 0]) % 5, minlength=5)[1:] / 6000
    assert (others - 0.25).abs().max() < 0.03, "as likely any other node"
    assert source.chance == pytest.approx(1 / 3), "or any but two, for who knows the first hop"


@pytest.mark.parametrize(("nodes", "hops"), [(7, 1), (4, 4)])
def test_misfits_are_refused(nodes: int, hops: int) -> None:
    with pytest.raises(ValueError, match="hops"):
        Walks(nodes, hops)
