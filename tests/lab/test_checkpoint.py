"""Checkpoints: what is saved is what is loaded, and what is missing or broken is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pdref.lab.checkpoint import CHECKPOINTS, load, save, write_whole
from pdref.lab.recipe import Recipe
from pdref.model.transformer import Transformer
from pdref.text.tokenizer import Tokenizer

RECIPE = Recipe.parse({"model": {"depth": 2, "context": 64, "share": 2}, "corpus": {"grid": 3, "echo": False}})
TOKENIZER = Tokenizer.words(["ant", "bee", "cat", "1", "2"])
FILES = ["model.safetensors", "recipe.toml", "tokenizer.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of a random model."""
    torch.manual_seed(0)
    save(tmp_path / "deep" / "model", Transformer(RECIPE.config(len(TOKENIZER))), TOKENIZER, RECIPE)
    return tmp_path / "deep" / "model"


def test_what_is_saved_is_what_is_loaded(folder: Path) -> None:
    torch.manual_seed(0)
    model = Transformer(RECIPE.config(len(TOKENIZER)))
    found = load(folder)
    assert found.recipe == RECIPE
    assert (found.speaker.grammar.grid, found.speaker.grammar.echo) == (3, False)
    assert found.speaker.model.config == model.config
    assert found.speaker.tokenizer.encode("cat 2<eos>") == TOKENIZER.encode("cat 2<eos>")
    tokens = torch.arange(12)[None]
    assert torch.equal(found.speaker.model(tokens, tokens), model.eval()(tokens, tokens))
    assert not found.speaker.model.training and not found.speaker.shifted
    assert sorted(path.name for path in folder.iterdir()) == FILES, "and nothing half-written is left"


def test_a_released_objective_is_remembered_as_shifted(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE.with_train(objective="released").dump())
    assert load(str(folder)).speaker.shifted


def test_saving_again_replaces(folder: Path) -> None:
    torch.manual_seed(1)
    model = Transformer(RECIPE.config(len(TOKENIZER)))
    save(folder, model, TOKENIZER, RECIPE)
    assert torch.equal(load(folder).speaker.model.embed.weight, model.embed.weight)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=str(folder)):
        load(folder)


def test_an_unknown_checkpoint_is_told_the_known_ones() -> None:
    shipped = ", ".join(sorted(path.parent.name for path in CHECKPOINTS.glob("*/model.safetensors")))
    with pytest.raises(FileNotFoundError, match=f"no checkpoint 'nobody': .* one of {shipped}"):
        load("nobody")


def deeper(folder: Path) -> None:
    """Another depth than that of the weights."""
    (folder / "recipe.toml").write_text(RECIPE.dump().replace("depth = 2", "depth = 3"))


def fewer_heads(folder: Path) -> None:
    """Other shapes under the same names."""
    (folder / "recipe.toml").write_text(RECIPE.dump().replace("share = 2", "share = 1"))


def more_words(folder: Path) -> None:
    """A tokenizer of another size."""
    Tokenizer.words(["ant", "bee", "cat", "dog", "1", "2"]).save(folder / "tokenizer.json")


def cut_short(folder: Path) -> None:
    """Weights that end too early."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_weights(folder: Path) -> None:
    """A file of something else."""
    (folder / "model.safetensors").write_text("these are no weights")


@pytest.mark.parametrize("spoil", [deeper, fewer_heads, more_words, cut_short, no_weights])
def test_weights_that_do_not_fit_are_refused(spoil: object, folder: Path) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"the weights in {folder} are broken or not of its recipe"):
        load(folder)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert not path.exists()
    write_whole(path, lambda part: part.write_text("old"))
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    write_whole(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in CHECKPOINTS.glob("*/model.safetensors")))
def test_shipped_checkpoints_load_by_name(name: str) -> None:
    found = load(name)
    assert len(found.speaker.tokenizer) == found.speaker.model.config.vocabulary
    assert all(p.isfinite().all() for p in found.speaker.model.parameters())
