"""A trained model on disk: weights (safetensors), tokenizer, recipe, and a card for people."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pdref.lab.recipe import Recipe
from pdref.methods.decoding import Speaker
from pdref.model.transformer import Transformer
from pdref.text.tokenizer import Tokenizer

CHECKPOINTS = Path(__file__).parent / "checkpoints"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A speaker and the recipe it was trained by."""

    speaker: Speaker
    recipe: Recipe


def save(folder: Path | str, model: Transformer, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Write weights, tokenizer and recipe; each file appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / "model.safetensors", lambda path: save_file(weights, path))
    write_whole(folder / "tokenizer.json", tokenizer.save)
    write_whole(folder / "recipe.toml", lambda path: path.write_text(recipe.dump()))


def load(source: str | Path, device: str = "cpu") -> Checkpoint:
    """Read a shipped checkpoint by name, or any by folder.

    Raises FileNotFoundError, and ValueError if the weights are broken or do not fit the recipe.
    """
    folder = CHECKPOINTS / source if (CHECKPOINTS / source / "model.safetensors").is_file() else Path(source)
    if not (folder / "model.safetensors").is_file():
        names = ", ".join(sorted(p.parent.name for p in CHECKPOINTS.glob("*/model.safetensors")))
        raise FileNotFoundError(
            f"no checkpoint {str(source)!r}: give a folder with model.safetensors or one of {names}"
        )
    recipe = Recipe.load(folder / "recipe.toml")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    model = recipe.build(len(tokenizer))
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights in {folder} are broken or not of its recipe: {error}") from error
    model = model.to(torch.device(device)).eval()
    return Checkpoint(Speaker(model, tokenizer, recipe.grammar, recipe.train.objective == "released"), recipe)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write through a neighbouring file, so that an interruption never leaves half of one."""
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)
