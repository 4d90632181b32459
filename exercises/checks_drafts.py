"""Exercises 3 and 4 of `multi_token.ipynb`: which drafts stay where no token may change, and where no law may.

Greedy answers are held token by token against decoding without drafts. Answers that draw are held against their law
in parts, how often a draft stays and what replaces one that falls, so that a wrong rule can be named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from checks_sums import Array, array, teach
from scipy import stats
from torch import Tensor

from pdref.methods import drafting

# Exercise 3: drafts that must be what the model says.

VERIFY_MISTAKES: dict[str, str] = {
    "every agreement": "every agreement is counted: stop at the first that falls; behind it, the text read is wrong",
    "misaligned": "the drafts are compared with the wrong choices: best[:, j] is what the model says after j drafts",
    "all or none": "one wrong draft costs all of them: those before it were right, and stay",
    "one more": "the token that follows is counted as a draft: `accepted` are drafts only",
    "first": "what follows is always best[:, 0]: it is what the model says after the drafts that were accepted",
    "last": "what follows is always the last choice: behind a draft that fell, it was made on a wrong text",
    "fallen draft": "the draft that fell follows: there, the model's own choice does",
}
GENERATE_MISTAKES: dict[str, str] = {
    "unchecked": "drafts are taken unread: only those that `verify` accepts may join the text",
    "from the start": "the choices at the start of the text are taken: best(text)[i] follows text[: i + 1]",
}


def check_verify(verify: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None) -> None:
    """Drafts [R, J] of every pattern of agreement with the choices [R, J + 1]; and rows that have no draft at all."""
    verify = verify or _library_verify
    for J in (3, 1, 0):
        draw = np.random.default_rng(J)
        best = draw.integers(100, 200, (2**J, J + 1))
        agrees = np.arange(2**J)[:, None] >> np.arange(J) & 1
        drafts = np.where(agrees, best[:, :J], draw.integers(0, 100, (2**J, J)))
        found = verify(torch.from_numpy(drafts), torch.from_numpy(best))
        assert len(found) == 2, "two tensors are asked for: how many drafts are accepted, and the token that follows"
        assert all(x.dtype == torch.int64 for x in found), f"both are int64, not {[x.dtype for x in found]}"
        wrong = {why: _verified(drafts, best, mistake) for mistake, why in VERIFY_MISTAKES.items()} if J else {}
        teach(tuple(found), _verified(drafts, best), wrong, f"accepted and following, {J} drafts a row")
    print("verify: the agreeing drafts up to the first that falls, and the model's own token after them")


def _verified(drafts: Array, best: Array, mistake: str = "") -> tuple[Array, Array]:
    accepted, following = [], []
    for given, said in zip(drafts.tolist(), best.tolist(), strict=True):
        J = len(given)
        against = said[1:] if mistake == "misaligned" else said[:J]
        agrees = [d == s for d, s in zip(given, against, strict=True)]
        n = agrees.index(False) if False in agrees else J
        if mistake == "every agreement":
            n = sum(agrees)
        if mistake == "all or none" and n < J:
            n = 0
        follows = said[{"first": 0, "last": J}.get(mistake, n)]
        following.append(given[n] if mistake == "fallen draft" and n < J else follows)
        accepted.append(n + (mistake == "one more"))
    return np.array(accepted), np.array(following)


def _library_verify(drafts: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    pairs = zip(drafts.tolist(), best.tolist(), strict=True)
    accepted = torch.tensor([drafting.agreeing(given, said) for given, said in pairs])
    return accepted, best.gather(1, accepted[:, None])[:, 0]


Best = Callable[[list[int]], list[int]]


def plain_greedy(best: Best, prompt: Sequence[int], length: int) -> list[int]:
    """The prompt and `length` tokens after it, one a forward: what drafting must not change."""
    text = list(prompt)
    for _ in range(length):
        text.append(best(text)[-1])
    return text


class _Toy:
    """A model of seven tokens without a pattern, which counts its forwards."""

    def __init__(self) -> None:
        self.forwards = 0

    def best(self, text: list[int]) -> list[int]:
        self.forwards += 1
        assert self.forwards < 500, "no end in sight: each round adds at least the model's own token to the text"
        return [(3 * text[i] + 5 * text[i - 1] * (i > 0) + i * i) % 7 for i in range(len(text))]

    def propose(self, text: list[int]) -> list[int]:
        """Three drafts of which the first 0, 1, 2 or 3 come true; sometimes one or none at all."""
        right = plain_greedy(_Toy().best, text, 3)[len(text) :]
        true, count = len(text) % 4, (3, 3, 3, 1, 3, 0)[len(text) % 6]
        return (right[:true] + [(token + 1) % 7 for token in right[true:]])[:count]


def check_generate(generate: Callable[[Best, Callable[[list[int]], list[int]], list[int], int], list[int]]) -> None:
    """Texts of every length to 40, token by token those of plain greedy decoding, in as few forwards as can be."""
    for length in (40, 1, 2, 3, 4, 5, 6, 7):  # the long one first: in a short text one mistake may look like another
        toy, prompt = _Toy(), [4, 2, 6]
        found = generate(toy.best, toy.propose, prompt, length)
        right = plain_greedy(_Toy().best, [4, 2, 6], length)
        assert prompt == [4, 2, 6], "the prompt given was changed in place: make a new list"
        assert list(found) != right[3:], "the prompt is missing: what is returned begins with it"
        assert len(found) <= len(right) or list(found[: len(right)]) != right, (
            f"{len(found) - 3} tokens where {length} were asked for: the last round may bring too many; cut them off"
        )
        for mistake, why in GENERATE_MISTAKES.items():
            assert list(found) != _generated(length, mistake)[0] or list(found) == right, why
        assert list(found) == right, f"{length} tokens:\n  yours {list(found)}\n  plain {right}"
        least = _generated(length)[1]
        assert toy.forwards <= least, (
            f"{toy.forwards} forwards for {length} tokens where {least} are enough: "
            "read text and drafts in one forward, and keep the model's own token even where every draft came true"
        )
    print(f"generate: token for token the text of plain greedy decoding, 40 tokens in {_generated(40)[1]} forwards")


def _generated(length: int, mistake: str = "") -> tuple[list[int], int]:
    """Text and forwards of the toy, with a mistake or without."""
    toy, text = _Toy(), [4, 2, 6]
    while len(text) < 3 + length:
        drafts = toy.propose(text)
        said = toy.best(text + drafts)
        said = said[: len(drafts) + 1] if mistake == "from the start" else said[len(text) - 1 :]
        n = drafting.agreeing(drafts, said)
        kept = drafts if mistake == "unchecked" else drafts[:n]
        text += [*kept, said[len(kept)]]
    return text[: 3 + length], toy.forwards


# Exercise 4: drafts that may be something else, as often as the model says.


ACCEPT_MISTAKES: dict[str, str] = {
    "always": "every draft stays: the tokens are the drafter's then, not the model's",
    "never": "no draft ever stays: that is sampling from p, and the drafts are for nothing",
    "p": "a draft stays with probability p(d): divide by q(d), for it came up that often",
    "upside down": "the ratio is upside down: min(1, p/q), so that what the model likes better always stays",
}
LEFT_MISTAKES: dict[str, str] = {
    "p": "replacements are drawn from p: what both like comes up twice then; take what p has over q",
    "q": "replacements are drawn from q: what is missing is what p has over q",
    "absolute": "replacements are drawn from |p - q|: only the positive part is missing, what p has over q",
    "q over p": "replacements are drawn from what q has over p: it is the other way round",
    "best": "the replacement is always the best token: draw it from the normalised positive part of p - q",
    "uniform": "replacements are uniform over the tokens: draw them in proportion to the positive part of p - q",
    "p without the draft": "replacements are drawn from p without the draft: take what p has over q, at every token",
}
PAIRS = {  # p and q of five tokens; in the second nobody drafts what the model likes best, the third cannot fail
    "p and q overlap": ((0.35, 0.3, 0.15, 0.2, 0.0), (0.1, 0.3, 0.1, 0.3, 0.2)),
    "q misses a token": ((0.5, 0.1, 0.25, 0.05, 0.1), (0.0, 0.3, 0.15, 0.25, 0.3)),
    "p is q": ((0.4, 0.1, 0.2, 0.3, 0.0),) * 2,
}
DRAWS, DOUBT = 20_000, 1e-5


def check_speculative(speculative: Callable[..., tuple[Tensor, Tensor]] | None = None, seed: int = 0) -> None:
    """60,000 draws of three pairs p and q, mixed: how often each draft stays, and the law of the tokens."""
    speculative = speculative or _library_speculative
    which = torch.arange(3 * DRAWS) % 3
    p, q = (torch.tensor([pair[i] for pair in PAIRS.values()], dtype=torch.float64)[which] for i in (0, 1))
    draw = torch.Generator().manual_seed(seed)
    draft = torch.multinomial(q, 1, generator=draw)[:, 0]
    found = speculative(p, q, draft, draw)
    assert len(found) == 2, "two tensors are asked for: tokens, and whether each is its draft"
    token, accepted = found
    assert token.dtype == torch.int64 and accepted.dtype == torch.bool, (
        f"tokens are int64 and accepted is bool, not {token.dtype} and {accepted.dtype}"
    )
    assert torch.equal(token[accepted], draft[accepted]), "a draft was accepted and another token returned"
    for i, (name, pair) in enumerate(PAIRS.items()):
        _judge(*(array(x[which == i]) for x in (draft, token, accepted)), *map(np.array, pair), name)
    print("speculative: drafts stay as often as they may, and every token is drawn from p")


def _judge(draft: Array, token: Array, accepted: Array, p: Array, q: Array, name: str) -> None:
    """Hold the draws of one pair against the rule, part by part."""
    drafted = np.bincount(draft, minlength=5)
    stayed = np.bincount(draft[accepted], minlength=5)
    accept, left = _accept(p, q), _left(p, q)
    if not _like(stayed, drafted, accept):
        for mistake, why in ACCEPT_MISTAKES.items():
            assert not _like(stayed, drafted, _accept(p, q, mistake)), why
        some = (drafted > 0) & (accept > 0) & (accept < 1)
        assert not some.any() or not np.isin(stayed / drafted.clip(1), (0, 1))[some].all(), (
            "drafts of one token all stay or all fall: compare the ratio with a uniform number, each row with its own"
        )
        raise AssertionError(
            f"{name}: how often a draft of each token stays\n  yours {(stayed / drafted.clip(1)).round(3)}\n"
            f"  right {accept.round(3)}"
        )
    replaced = np.bincount(token[~accepted], minlength=5)
    fallen = drafted - stayed
    if not _follows(replaced, left):
        for mistake, why in LEFT_MISTAKES.items():
            assert not _follows(replaced, _left(p, q, mistake, fallen)), why
        raise AssertionError(
            f"{name}: what replaces a draft that fell\n  yours {(replaced / replaced.sum()).round(3)}\n"
            f"  right {left.round(3)}"
        )
    assert _follows(np.bincount(token, minlength=5), p), f"{name}: the tokens do not follow p"


def _accept(p: Array, q: Array, mistake: str = "") -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(p / q, posinf=9)
        upside_down = np.nan_to_num(q / p, posinf=9).clip(max=1)
    wrong = {"always": 0 * p + 1, "never": 0 * p, "p": p, "upside down": upside_down}
    return wrong.get(mistake, ratio.clip(max=1))


def _left(p: Array, q: Array, mistake: str = "", fallen: Array | None = None) -> Array:
    """What replaces a fallen draft; some mistakes depend on which tokens have `fallen`, [V] counts."""
    over = (p - q).clip(min=0)
    weight = {"p": p, "q": q, "absolute": abs(p - q), "q over p": q - p - (q - p).clip(max=0)}.get(mistake, over)
    if mistake == "best":
        weight = (over == over.max()).astype(float)
    if mistake == "uniform":
        weight = np.ones(len(p))
    if mistake == "p without the draft" and fallen is not None:
        weight = (fallen[:, None] * p * (1 - np.eye(len(p))) / (1 - p)[:, None]).sum(0)
    return weight / weight.sum() if weight.any() else p


def _like(counts: Array, trials: Array, shares: Array) -> bool:
    """Whether `counts` of `trials` can be draws with these probabilities, token by token."""
    return all(
        stats.binomtest(int(k), int(n), min(1.0, share)).pvalue > DOUBT
        for k, n, share in zip(counts, trials, shares, strict=True)
        if n
    )


def _follows(counts: Array, law: Array) -> bool:
    """Whether `counts` can be draws from `law`, by chi-square; none at all can."""
    possible = law > 0
    if counts[~possible].any():
        return False
    expected = counts.sum() * law[possible] / law[possible].sum()
    return not counts.any() or possible.sum() == 1 or stats.chisquare(counts[possible], expected).pvalue > DOUBT


def _library_speculative(p: Tensor, q: Tensor, draft: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = len(draft)
    log_p = p.log()[:, None].expand(-1, 2, -1)
    one, seeds = torch.ones(rows, dtype=torch.int64), torch.full((rows,), 3)
    kept, following = drafting.rejection(log_p, q.log()[:, None], draft[:, None], one, seeds, 4 * torch.arange(rows))
    return torch.where(kept == 1, draft, following), kept == 1


def law_of(tokens: Tensor, law: Tensor) -> float:
    """p-value of `tokens` as draws from `law` [V], by chi-square; words expected fewer than ten times count as one."""
    counts, share = np.bincount(array(tokens), minlength=len(law)), array(law.double() / law.double().sum())
    order = np.argsort(-share)
    common = max(1, int((share * len(tokens) >= 10).sum()) - 1)  # the least common of the others joins the rare ones
    pooled = [np.append(x[order[:common]], x[order[common:]].sum()) for x in (counts, share * len(tokens))]
    return float(stats.chisquare(*pooled).pvalue)
