"""The arms on path-star: each trains and is marked, no answer has seen the path, and no run is made twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pdref.data.path_star import PathStar
from pdref.lab import ledger, path_star_arms
from pdref.lab.path_star_arms import ARMS, Budget, Run, build, collated, marks, run, table, told

TINY = Budget(steps=2, batch=4, layers=2, width=16, attention_heads=1, check=1)
GRAPH = PathStar(2, 4, 7)
every_arm = pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)


@every_arm
def test_every_arm_trains_and_is_marked(arm: path_star_arms.Arm) -> None:
    found = run(arm, GRAPH, TINY, seed=0, graphs=4, progress=False)
    assert found.steps == 2 and not found.solved and found.solved_at is None
    assert len(found.places) == GRAPH.length and found.cpu_seconds > 0
    assert len(found.forced) == (GRAPH.length if arm.asked in ("next", "ahead") else 0)
    assert found.chance == (1 if arm.plan == "backwards" else 0.5)


def test_all_arms_see_the_same_graphs() -> None:
    prompts = {tuple(d.prompt for d in replace(GRAPH, plan=arm.plan).sample(8, seed=3)) for arm in ARMS.values()}
    assert len(prompts) == 1


@every_arm
def test_an_answer_depends_on_the_prompt_alone(arm: path_star_arms.Arm) -> None:
    """Marked on documents whose paths are scrambled, an arm answers as before: it is shown none of them."""
    source = replace(GRAPH, plan=arm.plan)
    speaker = build(arm, source, TINY, seed=0)
    speaker.model.eval()
    documents = source.sample(4, seed=1)
    scrambled = [source.answered(d.prompt, d.text.split()[::-1]) for d in documents]
    assert marks(arm, speaker, source, documents) == marks(arm, speaker, source, scrambled)
    if arm.asked == "teacherless":
        assert told(arm, speaker, source, documents) == told(arm, speaker, source, scrambled)


def test_told_is_the_best_node_given_the_true_past() -> None:
    arm = ARMS["next"]
    speaker = build(arm, GRAPH, TINY, seed=0)
    (document,) = GRAPH.sample(1, seed=2)
    layout = collated(speaker, [document])
    start = int((layout.span[0] == 0).nonzero()[1])  # behind <async>
    with torch.no_grad():
        logits = speaker.model.logits(speaker.model(layout.token, layout.position))[0]
    best = logits[start - 1 : start - 1 + GRAPH.length].argmax(-1)
    words = told(arm, speaker, GRAPH, [document])[0].text.split()
    assert words == [speaker.tokenizer.decode([t]) if t > 8 else "|" for t in best.tolist()]


def a_run(**changes: object) -> Run:
    shares = {"exact": 0.5, "plans": 1.0, "walks": 1.0, "places": (1.0, 0.5, 0.5, 1.0), "forced": (), "chance": 0.5}
    cost = {"steps": 2, "nats": 0.25, "parameters": 99, "cpu_seconds": 1.5, "made_with": "torch"}
    plain = Run(
        arm="next",
        graph="G(2,4) of 7",
        seed=0,
        budget="steps=2 batch=4 layers=1 width=8",
        solved=False,
        solved_at=None,
        **shares,
        **cost,
    )
    return replace(plain, **changes)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [a_run(), a_run(arm="masked", solved=True, solved_at=2, exact=1.0, forced=(1.0, 0.5, 1.0, 1.0))]
    for row in rows:
        ledger.append(tmp_path / "runs.csv", row)
    assert ledger.read(tmp_path / "runs.csv", Run) == rows


def test_the_table_counts_the_solved() -> None:
    shown = table([a_run(solved=True, exact=1.0), a_run(seed=1), a_run(arm="masked")])
    assert [list(column.cells) for column in shown.columns][1:5] == [
        ["1 x 8, 2 x 4"] * 2,
        ["next", "masked"],
        ["1 of 2", "0 of 1"],
        ["100.0%  50.0%", "50.0%"],
    ]


def test_runs_that_are_done_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def pretend(arm: path_star_arms.Arm, source: PathStar, budget: Budget, seed: int) -> Run:
        made.append((arm.name, seed))
        words = " ".join(f"{name}={getattr(budget, name)}" for name in budget.__dataclass_fields__)
        return a_run(arm=arm.name, seed=seed, graph=path_star_arms.named(source), budget=words)

    monkeypatch.setattr(path_star_arms, "run", pretend)
    command = ["--graph", "2", "4", "7", "--arms", "next", "masked", "--out", str(tmp_path / "runs.csv")]
    path_star_arms.main([*command, "--seeds", "1"])
    path_star_arms.main([*command, "--seeds", "2"])
    assert made == [("next", 0), ("masked", 0), ("next", 1), ("masked", 1)]
    path_star_arms.main([*command, "--seeds", "1", "--steps", "3"])
    assert made[4:] == [("next", 0), ("masked", 0)], "another budget is another run"
