"""How many rows of scores a loss computes: what it skips cannot be seen in its value."""

from __future__ import annotations

import pytest
from torch import Tensor

from pdref.ops.token_nll import chunked


def rows_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of rows whenever PyTorch's path computes scores."""
    rows: list[int] = []
    original = chunked._scores

    def spy(hidden: Tensor, unembedding: Tensor) -> Tensor:
        rows.append(len(hidden))
        return original(hidden, unembedding)

    monkeypatch.setattr(chunked, "_scores", spy)
    return rows
