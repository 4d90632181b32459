"""The exercises: solutions pass, stubs fail, and wrong answers are told what is wrong with them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laws.cells import ROOT, code, module, read, run
from pdref.ops.impl import triton_is_installed
from pdref.text.layout import NO_SPAN, Grammar, Layout, Role, Stream
from pdref.text.tags import Tag

NAMES = sorted(path.name for path in (ROOT / "solutions").glob("*.ipynb"))
EXERCISES = {
    "attention rule": "may_attend",
    "loss": "planned_diffusion_loss",
    "unmask step": "unmask_step",
    "scaffold": "scaffold",
}


checks = module(ROOT / "exercises" / "checks.py")
make_exercises = module(ROOT / "solutions" / "make_exercises.py")


# The notebooks.


@pytest.fixture(params=["planned_diffusion.ipynb", "kernels.ipynb", "multi_token.ipynb", "plans_and_coherence.ipynb"])
def exercise_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "kernels.ipynb":
        if not triton_is_installed():
            pytest.skip("Triton is built for Linux only")
        if torch.cuda.is_available():
            pytest.skip("its kernel is interpreted, and this process compiles; nbval runs it in a process of its own")
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # as its first cell does, but taken back
    monkeypatch.setattr(sys, "path", [*sys.path])
    return request.param


@pytest.mark.parametrize("start", [".", "solutions", "exercises"])
def test_solutions_pass_from_any_folder(exercise_set: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / start)
    cells = code("solutions", exercise_set)
    scope: dict[str, object] = {}
    for cell in cells if start == "." else cells[:1]:
        run(cell, scope)
    assert _checks_of(scope)


def test_untouched_exercises_fail_and_say_what_to_do(exercise_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "exercises")
    scope: dict[str, object] = {}
    failed = []
    for cell in code("exercises", exercise_set):
        if found := re.search(r"^checks\.(check_\w+)\(\w+\)$", cell, re.MULTILINE):
            with pytest.raises(NotImplementedError, match=r"\w+ .* \w+"):
                run(cell, scope)
            failed.append(found[1])
        elif "NotImplementedError" in cell or "import checks" in cell:
            run(cell, scope)
    assert sorted(failed) == sorted(_checks_of(scope))


def _checks_of(scope: dict[str, object]) -> list[str]:
    return [name for name in vars(scope["checks"]) if name.startswith("check_")]


@pytest.mark.parametrize("name", NAMES)
def test_exercises_are_what_the_generator_makes(name: str) -> None:
    made = make_exercises.clear(read("solutions", name))
    assert nbformat.writes(made) + "\n" == (ROOT / "exercises" / name).read_text(encoding="utf-8"), (
        "run `make exercises`: a solution has changed"
    )
    assert nbformat.writes(make_exercises.clear(made)) == nbformat.writes(made), "clearing twice changes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_solution_leaks(name: str) -> None:
    exercise = (ROOT / "exercises" / name).read_text(encoding="utf-8")
    sources = "\n".join(cell.source for cell in read("exercises", name).cells)
    regions = [m[0] for cell in code("solutions", name) for m in make_exercises.REGION.finditer(cell)]
    lines = [line.strip() for region in regions for line in region.splitlines()[1:-1]]
    answers = [line for line in lines if len(line) > 2]  # a lone bracket is no answer
    assert len(regions) >= 4 and len(answers) > 20
    assert not [line for line in answers if line in sources]
    assert "SOLUTION" not in exercise
    assert all(not c.outputs and c.execution_count is None for c in read("exercises", name).cells if "outputs" in c)


@pytest.mark.parametrize("cell", ["### BEGIN SOLUTION\nx = 1\n### END SOLUTION", "### BEGIN SOLUTION: do\nx = 1"])
def test_a_broken_region_is_refused(cell: str) -> None:
    solution = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    with pytest.raises(ValueError, match="region"):
        make_exercises.clear(solution)


# The checks.


@pytest.mark.parametrize("check", EXERCISES)
def test_the_library_passes(check: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(checks, f"check_{check.replace(' ', '_')}")()
    assert capsys.readouterr().out


def test_every_known_mistake_shows() -> None:
    """Each mistake that a check can name gives another answer than the right one and than the other mistakes."""
    case = checks._logits()
    losses = [checks._formula(case, name) for name in ["", *checks.LOSS_MISTAKES]]
    assert all(abs(a - b) > 1e-3 for i, a in enumerate(losses) for b in losses[:i])

    steps = [[checks._step(*checks._spans(seed), name) for seed in range(16)] for name in ["", *checks.STEP_MISTAKES]]
    assert all(a != b for i, a in enumerate(steps) for b in steps[:i])

    plan = (checks.Item("old friends", 2), checks.Item("home", 1), checks.Item("a cat", 3))
    forms = ((17, 1, Grammar(3, True)), (5, 0, Grammar(1, False)))
    made = [[checks._scaffold(plan, *form, name) for form in forms] for name in ["", *checks.SCAFFOLD_MISTAKES]]
    assert all(a != b for i, a in enumerate(made) for b in made[:i])


def _rule(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The right rule's parts, put together by `change`."""

    def rule(query: Layout, key: Layout, siblings: str) -> Tensor:
        causal = query.stream == Stream.CLEAN
        stage = (key.stage == query.stage) & (key.span != NO_SPAN) & (query.span != NO_SPAN)
        span = key.span == query.span
        clean, noised = key.stream == Stream.CLEAN, key.stream == Stream.NOISED
        past = key.position <= query.position
        return change(causal, stage, span if siblings == "sparse" else stage, clean, noised, past, key.role != Role.PAD)

    return rule


WRONG_RULES = {
    "sibling leak": (
        _rule(lambda c, g, s, k, n, p, r: ((k & p & (c | ~g)) | (g & n & ~c)) & r),
        "siblings must be blind to each other; compare span numbers",
    ),
    "stages forgotten": (
        _rule(lambda c, g, s, k, n, p, r: ((k & p & (c | ~g)) | (s & n & ~c)) & r),
        "compare stages as well as span numbers",
    ),
    "own answer": (
        _rule(lambda c, g, s, k, n, p, r: ((k & p) | (g & s & n & ~c)) & r),
        "the clean copy of this stage's spans is its own answer|a sibling that is written at the same time",
    ),
    "not causal": (_rule(lambda c, g, s, k, n, p, r: ((k & (c | ~g)) | (g & s & n & ~c)) & r), "causal"),
    "causal span": (
        _rule(lambda c, g, s, k, n, p, r: ((k & p & (c | ~g)) | (g & s & n & ~c & p)) & r),
        "bidirectional inside itself",
    ),
    "padding": (_rule(lambda c, g, s, k, n, p, r: (k & p & (c | ~g)) | (g & s & n & ~c)), "padding"),
    "clean reads noised": (
        _rule(lambda c, g, s, k, n, p, r: (p & (c | ~g) | (g & s & n & ~c)) & r),
        "never reads a noised",
    ),
    "floats": (_rule(lambda c, g, s, k, n, p, r: (k & p & r).float()), "boolean"),
}


def _loss(logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def nats(scores: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(scores.transpose(1, 2), target, reduction="none")

    def loss(clean: Tensor, noised: Tensor, layout: Layout, masked: Tensor, t: Tensor) -> Tensor:
        plan = nats(clean.roll(1, 1), layout.token) * layout.planned
        late = nats(clean, layout.token) * layout.planned
        content = nats(noised, layout.token) * masked
        size = ((layout.role != Role.PROMPT) & layout.real).sum(1)
        return logits(plan, late, content, size, t[:, None], layout, nats(noised.roll(1, 1), layout.token) * masked)

    return loss


WRONG_LOSSES = {
    "missing 1/t": (_loss(lambda p, u, c, n, t, y, s: ((p + c).sum(1) / n).mean()), "lacks its weight 1/t"),
    "1/t on all": (_loss(lambda p, u, c, n, t, y, s: (((p + c) / t).sum(1) / n).mean()), "plan term too"),
    "no shift": (
        _loss(lambda p, u, c, n, t, y, s: ((u + c / t).sum(1) / n).mean()),
        "labels are not shifted",
    ),
    "label shift": (_loss(lambda p, u, c, n, t, y, s: ((p + s / t).sum(1) / n).mean()), "labels are shifted"),
    "mean over T": (_loss(lambda p, u, c, n, t, y, s: (p + c / t).mean(1).mean()), "divided by T"),
    "one mean": (_loss(lambda p, u, c, n, t, y, s: (p + c / t).sum() / n.sum()), "share one mean"),
    "sum": (_loss(lambda p, u, c, n, t, y, s: ((p + c / t).sum(1) / n).sum()), "added up"),
    "per token": (_loss(lambda p, u, c, n, t, y, s: (p + c / t).sum(1) / n), "one number"),
    "detached": (_loss(lambda p, u, c, n, t, y, s: ((p + c / t).sum(1) / n).mean().detach()), "no gradient"),
    "unknown": (_loss(lambda p, u, c, n, t, y, s: ((p + c / t).sum(1) / n).mean() + 1), "the loss:"),
}


def _step(
    more: int = 0,
    sign: int = 1,
    hide: bool = True,
    forbid: bool = True,
    by: str = "entropy",
    place: bool = False,
) -> Callable[..., Tensor]:
    def step(logits: Tensor, tokens: Tensor, quota: Tensor) -> Tensor:
        masked = tokens == Tag.MASK
        never = (torch.arange(logits.shape[2]) == Tag.MASK) & torch.tensor(forbid)
        p = logits.masked_fill(never, -torch.inf).softmax(-1)
        doubt = torch.special.entr(p).sum(-1) if by == "entropy" else 1 - p.amax(-1)
        doubt = (sign * doubt).masked_fill(~masked & torch.tensor(hide), torch.inf)
        chosen = masked & (doubt.argsort(1).argsort(1) < (quota + more * (quota > 0))[:, None])
        if place:
            tokens[chosen] = p.argmax(-1)[chosen]
            return tokens
        return torch.where(chosen, p.argmax(-1), tokens)

    return step


WRONG_STEPS = {
    "quota off by one": (_step(more=1), "token more than its quota|the tokens after one step"),
    "quota short": (_step(more=-1), "token less than its quota"),
    "least confident": (_step(sign=-1), "least confident"),
    "visible compete": (_step(hide=False), "visible tokens use up the quota"),
    "writes <mask>": (_step(forbid=False), "<mask> is written"),
    "by probability": (_step(by="probability"), "goes by entropy"),
    "in place": (_step(place=True), "changed in place"),
    "all at once": (
        lambda logits, tokens, quota: _step(more=99)(logits, tokens, quota),
        "all masks are revealed",
    ),
}


def _scaffold(**changes: object) -> Callable[..., Layout]:
    def scaffold(plan, start, stage, tokenizer, grammar):  # type: ignore[no-untyped-def]
        rows: list[tuple[int, ...]] = []
        for k, item in enumerate(plan):
            echo = tokenizer.encode(item.topic) if grammar.echo and not changes.get("no_echo") else []
            masks = item.length * (1 if changes.get("no_grid") else grammar.grid)
            tokens = [
                Tag.ASYNC,
                *echo,
                *[Tag.MASK] * masks,
                *([] if changes.get("open") else [Tag.END_ASYNC]),
            ]
            for i, token in enumerate(tokens):
                role = Role.CONTENT if token == Tag.MASK else Role.TAG
                at = start + i if changes.get("restart") else start + len(rows)
                span = k if role == Role.CONTENT or not changes.get("outside") else NO_SPAN
                rows.append((int(token), int(role), stage, span, at - start * bool(changes.get("zero")), 1))
        token, role, stage_, span, position, stream = torch.tensor(rows).T[:, None]
        return Layout(token, role, stage_, span, position, stream * (not changes.get("clean")))

    return scaffold


WRONG_SCAFFOLDS = {
    "wrong position": (_scaffold(restart=True), "span 2 stands where span 1 ends"),
    "from zero": (_scaffold(zero=True), "positions begin at 0"),
    "grid ignored": (_scaffold(no_grid=True), "grid cells"),
    "no echo": (_scaffold(no_echo=True), "not repeated"),
    "never closed": (_scaffold(open=True), "</async> is missing"),
    "tags outside": (_scaffold(outside=True), "tags belong to no span"),
    "clean": (_scaffold(clean=True), "NOISED until"),
    "two at once": (_scaffold(no_echo=True, zero=True), "the scaffold of pet 1, field token"),
}

WRONG = {
    "attention rule": WRONG_RULES,
    "loss": WRONG_LOSSES,
    "unmask step": WRONG_STEPS,
    "scaffold": WRONG_SCAFFOLDS,
}


@pytest.mark.parametrize(("check", "bug"), [(check, bug) for check, bugs in WRONG.items() for bug in bugs])
def test_wrong_answers_are_told_why(check: str, bug: str) -> None:
    answer, message = WRONG[check][bug]
    with pytest.raises(AssertionError, match=message):
        getattr(checks, f"check_{check.replace(' ', '_')}")(answer)


def test_the_right_parts_of_the_wrong_answers_pass() -> None:
    """The frames in which the bugs above are planted are themselves right."""
    checks.check_attention_rule(_rule(lambda c, g, s, k, n, p, r: ((k & p & (c | ~g)) | (g & s & n & ~c)) & r))
    checks.check_loss(_loss(lambda p, u, c, n, t, y, s: ((p + c / t).sum(1) / n).mean()))
    checks.check_unmask_step(_step())
    checks.check_scaffold(_scaffold())
