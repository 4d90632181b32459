"""Recipes: TOML there and back, what is refused, and the corpora that they name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pdref.lab.recipe import RECIPES, Recipe, build_corpus
from pdref.model.heads import MultiToken
from pdref.model.transformer import Transformer
from pdref.text.layout import Grammar, encode

UNUSUAL = {
    "corpus": {
        "name": "profiles",
        "documents": 7,
        "held_out": 3,
        "difficulty": 3,
        "grid": 1,
        "echo": False,
        "ablation": "no_sync",
    },
    "model": {"depth": 2, "context": 99, "share": 2, "heads": 3, "heads_kind": "causal"},
    "train": {
        "steps": 5,
        "learning_rate": 1e-5,
        "objective": "released",
        "siblings": "dense",
        "clean_weight": 0.25,
    },
}


@pytest.mark.parametrize("tables", [{}, UNUSUAL])
def test_a_recipe_survives_writing_and_reading(tables: dict[str, dict[str, object]], tmp_path: Path) -> None:
    recipe = Recipe.parse(tables)
    for table, values in tables.items():
        for key, value in values.items():
            assert getattr(getattr(recipe, table), key) == value
    assert Recipe.parse(tomllib.loads(recipe.dump())) == recipe
    path = tmp_path / "mine.toml"
    path.write_text(recipe.dump())
    assert Recipe.load(path) == Recipe.load(str(path)) == recipe


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_shipped_recipes_load_by_name(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe == Recipe.load(RECIPES / f"{name}.toml")
    assert Recipe.parse(tomllib.loads(recipe.dump())) == recipe
    assert recipe.config(300).vocabulary == 300


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"optimizer": {}}, "recipe has no optimizer; it knows corpus, model, train"),
        ({"train": {"lr": 1.0}}, r"table \[train\] has no lr; it knows .*learning_rate"),
        ({"corpus": {"size": 1, "words": 2}}, r"\[corpus\] has no size, words"),
        ({"train": {"steps": 10.5}}, "train.steps is a int, not 10.5"),
        ({"train": {"steps": "ten"}}, "train.steps is a int, not 'ten'"),
        ({"train": {"steps": True}}, "train.steps is a int, not True"),
        ({"train": {"learning_rate": "1e-3"}}, "train.learning_rate is a float, not '1e-3'"),
        ({"corpus": {"echo": 1}}, "corpus.echo is a bool, not 1"),
        ({"corpus": {"name": "poems"}}, "corpus.name is one of .*profiles.*, not 'poems'"),
        ({"corpus": {"ablation": "all"}}, "corpus.ablation is one of none, no_topics, no_sync, not 'all'"),
        ({"train": {"objective": "paper"}}, "train.objective is one of formula, released, outline, not 'paper'"),
        ({"train": {"siblings": "twins"}}, "train.siblings is one of sparse, dense, not 'twins'"),
        ({"model": {"depth": [3]}}, r"model.depth is a int, not \[3\]"),
        ({"train": 3}, r"train is a table, \[train\], not 3"),
        ({"model": {"heads": 0}}, "at least one head, not 0"),
        ({"model": {"heads_kind": "linear"}}, "model.heads_kind is one of parallel, causal, .*, not 'linear'"),
        ({"train": {"trunk": "profiles"}}, "the trunk 'profiles' stands as it is, and there are no further heads"),
    ],
)
def test_what_is_wrong_is_named(tables: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.parse(tables)


def test_a_whole_number_may_stand_for_a_float() -> None:
    assert Recipe.parse({"train": {"clip": 1}}).train.clip == 1.0


def test_broken_toml_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[train\nsteps = ")
    with pytest.raises(ValueError):
        Recipe.load(tmp_path / "broken.toml")


def test_an_unknown_recipe_is_told_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe 'cake': give a TOML file or one of .*profiles"):
        Recipe.load("cake")


def test_what_a_recipe_decides() -> None:
    recipe = Recipe.parse(UNUSUAL)
    assert recipe.grammar == Grammar(grid=1, echo=False)
    config = recipe.config(50)
    assert (config.vocabulary, config.context, config.layers, config.key_heads) == (50, 99, 2, 1)
    model = recipe.build(50)
    assert isinstance(model, MultiToken) and (model.n, model.kind, model.config) == (3, "causal", config)
    assert type(Recipe().build(50)) is Transformer
    changed = recipe.with_train(steps=6)
    assert (changed.train.steps, changed.train.objective) == (6, "released")
    assert changed.corpus == recipe.corpus and recipe.train.steps == 5


def small(**corpus: object) -> Recipe:
    """A recipe with few documents."""
    return Recipe.parse({"corpus": {"documents": 30, "held_out": 10, **corpus}, "model": {"context": 400}})


def test_the_same_recipe_is_the_same_corpus() -> None:
    one, other = build_corpus(small()), build_corpus(small())
    assert one.train == other.train and one.held_out == other.held_out
    assert (len(one.train), len(one.held_out)) == (30, 10)
    reseeded = build_corpus(small().with_train(seed=1))
    assert reseeded.train != one.train and reseeded.held_out == one.held_out, "all seeds are tested on the same"
    assert not {str(d) for d in one.train} & {str(d) for d in one.held_out}


@pytest.mark.parametrize("ablation", ["none", "no_topics", "no_sync"])
@pytest.mark.parametrize(("name", "grid", "echo"), [("profiles", 4, True), ("path_star", 1, False)])
def test_every_ablation_can_be_spelled(name: str, grid: int, echo: bool, ablation: str) -> None:
    recipe = small(name=name, grid=grid, echo=echo, ablation=ablation)
    corpus = build_corpus(recipe)
    for document in [*corpus.train, *corpus.held_out]:
        encode(document, corpus.tokenizer, recipe.grammar, recipe.model.context)
        topics = {item.topic for stage in document.stages for item in stage.plan}
        assert (topics == {"topic"}) == (ablation == "no_topics")
        assert len(document.stages) == 1 or ablation != "no_sync"
