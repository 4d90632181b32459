"""Laws of writers with a window: the rule of sight, how far it reaches, and what follows for a perfect copyist."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from laws.seers import NEVER, Seer
from pdref.data.essays import VALUE_AT, WORDS, Essays
from pdref.data.essays_grammar import VERBS
from pdref.lab import essay_marks, essay_writers
from pdref.lab.essay_writers import ARMS, Writer, write
from pdref.model.transformer import Config, Transformer
from pdref.text import window as windows
from pdref.text.layout import NO_SPAN, Layout, Role
from pdref.theory import coherence


def a_layout(roles: Sequence[Role]) -> Layout:
    """One row of tokens with these roles."""
    role = torch.tensor([[int(role) for role in roles]])
    place = torch.arange(len(roles))[None]
    return Layout(
        place % 7, role, torch.zeros_like(role), torch.full_like(role, NO_SPAN), place, torch.zeros_like(role)
    )


def the_mask_is_the_rule(layouts: int = 40) -> None:
    """`window_mask` is the rule of its file, asked pair by pair in plain Python."""
    rng = random.Random(0)
    for _ in range(layouts):
        layout = a_layout(rng.choices([*Role], k=rng.randint(1, 12)))
        window = rng.choice([None, 1, 2, 3, 5, 20])
        in_sight = tuple(rng.sample([Role.PROMPT, Role.PLAN], rng.randint(0, 2)))
        mask, roles = windows.window_mask(layout, layout, window, in_sight), layout.role[0].tolist()
        assert mask.shape == (1, 1, len(roles), len(roles)) and mask.dtype == torch.bool
        for i in range(len(roles)):
            for j in range(len(roles)):
                sees = j <= i and roles[j] != Role.PAD
                if window is not None and j not in range(i - window + 1, i + 1) and roles[j] not in in_sight:
                    sees = False
                assert mask[0, 0, i, j].item() is sees, (roles, window, in_sight, i, j)


def nothing_comes_from_beyond_reach(layers: int = 2, window: int = 4) -> None:
    """By gradient: a hidden state depends on the `reach` tokens before it, on all of them, and on nothing else."""
    torch.manual_seed(0)
    roles = [Role.PROMPT] * 3 + [Role.PLAN] * 2 + [Role.CONTENT] * 15
    layout, model = a_layout(roles), Transformer(Config(7, 20, layers, 16, 2, 2)).double()
    for in_sight in ((), (Role.PLAN,)):
        x = model.embed(layout.token).detach().requires_grad_()
        with patch.object(model.embed, "forward", lambda _, x=x: x):
            hidden = model(layout.token, layout.position, windows.window_mask(layout, layout, window, in_sight))
        (slope,) = torch.autograd.grad(hidden[0, -1].square().sum(), x)
        reached = {*slope[0].abs().sum(-1).nonzero().flatten().tolist()}
        last = len(roles) - 1
        within = {*range(last - windows.reach(layers, window), last + 1)}
        # The plan is seen from anywhere; in the layers below the last, so is what its tokens see.
        within |= {*range(max(0, 3 - windows.reach(layers - 1, window)), 5)} if in_sight else set()
        assert reached == within, (in_sight, sorted(reached), sorted(within))


def the_cache_changes_nothing() -> None:
    """A writer with a cache and one that reads everything anew at every token write the same essays."""
    source = Essays(kinds=2, values=3, sections=1, paragraphs=2, slip=0.1)
    essays = source.essays(3, 0)
    for arm in ARMS.values():
        writer = Writer.fresh(arm, source, width=16, seed=1)
        for how in ("own", "oracle") if arm.planned else ("none",):
            cached, anew = (essay_writers.compose(writer, essays, how, 1.0, 5, cached) for cached in (True, False))
            assert cached == anew, (arm.name, how)


def writing_looks_at_nothing_to_come() -> None:
    """What stood where a writer is to write does not matter, and a row is written alone as in a batch."""
    source = Essays(kinds=2, values=3, sections=1, paragraphs=2)
    essays = source.essays(3, 0)
    writer = Writer.fresh(ARMS["planned"], source, width=16, seed=2)
    layout = Layout.collate([writer.layout(e.thesis, e.thesis, e.text) for e in essays])
    start, end, seeds = int((layout.role[0] != Role.CONTENT).sum()), layout.shape[1], torch.arange(3)
    other = replace(layout, token=torch.where(layout.role == Role.CONTENT, 0, layout.token))
    words = writer.text_choices
    whole = write(writer, layout, start, end, words, seeds).token
    assert torch.equal(whole, write(writer, other, start, end, words, seeds).token)
    alone = write(writer, layout.map(lambda field: field[1:2]), start, end, words, seeds[1:2]).token
    assert torch.equal(whole[1:2], alone)


class Copyist(Seer):
    """Repeats the earliest mention of a value that it sees, or with probability `eps` another value of its kind."""

    def __init__(self, writer: Writer, eps: float) -> None:
        super().__init__(len(writer.tokenizer), writer.model.config.context)
        words = writer.tokenizer.encode
        self.kinds = torch.tensor([words(" ".join(values)) for values in writer.source.words.values()])  # [K, m]
        frames = [words(f"ancient trade {VERBS[kind]} {values[0]} .") for kind, values in writer.source.words.items()]
        self.frame, self.eps = torch.tensor(frames).flatten(), eps  # [5 K]
        self.start = self.config.context - writer.source.sections * writer.source.paragraphs * len(self.frame)

    def answer(self, seen: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """See `Seer`."""
        place = (position + 1 - self.start) % len(self.frame)  # in the paragraph, of the token to come
        law = torch.nn.functional.one_hot(self.frame[place], self.config.vocabulary).double()
        for k, values in enumerate(self.kinds):
            asked = (place == k * WORDS + VALUE_AT) & (position + 1 >= self.start)
            mentions = torch.isin(seen[asked], values)  # [M, C]
            assert mentions.any(1).all(), "there is always one in sight"
            value = seen[asked].gather(1, mentions.int().argmax(1, keepdim=True))  # the earliest
            chances = torch.where(values == value, 1 - self.eps, self.eps / (len(values) - 1))  # [M, m]
            law[asked] = torch.zeros_like(law[asked]).scatter(1, values.expand(len(value), -1), chances.double())
        return law.log().clamp_min(NEVER)


def a_copyist_keeps_to_the_theory(essays: int = 300, eps: float = 0.05) -> None:
    """A window makes of a perfect copyist the relay, full sight and a plan in sight the plan: E[V], place by place."""
    source = Essays(kinds=2, values=3, sections=2, paragraphs=4)
    for arm in ARMS.values():
        writer = Writer.fresh(arm, source)
        writer = replace(writer, model=Copyist(writer, eps))
        asked = source.essays(essays, 3)
        written = essay_writers.compose(writer, asked, "oracle" if arm.planned else "none", 1.0, 4)
        wrong, malformed = essay_marks.failures(source, written.texts, [essay.thesis for essay in asked])
        scheme = (coherence.relay if arm.name == "windowed" else coherence.plan)(8, eps, values=3)
        assert malformed == 0
        V = wrong.sum((1, 2))
        assert abs(V.mean() - 2 * scheme.violations) < 3 * V.std() / essays**0.5, (arm.name, V.mean())
        share = wrong.mean((0, 2))
        assert (np.abs(share - 1 + scheme.agreement) < 4 * np.sqrt(share * (1 - share) / 2 / essays)).all(), arm.name
        assert abs((V == 0).mean() - scheme.flawless**2) < 3 * (0.25 / essays) ** 0.5
