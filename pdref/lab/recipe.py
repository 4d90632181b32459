"""A recipe: everything that decides a training run, in one TOML file; and the corpora that recipes name."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pdref.data import prose
from pdref.data.essays import Essays
from pdref.data.path_star import PathStar
from pdref.data.profiles import Profiles
from pdref.model.heads import Kind, MultiToken
from pdref.model.transformer import Config, Transformer
from pdref.text.document import PlannedDocument
from pdref.text.layout import Grammar
from pdref.text.mask import Siblings
from pdref.text.tokenizer import Tokenizer

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class CorpusRecipe:
    """Which documents: `grid` and `echo` are the grammar; `vocabulary` is for byte pairs.

    `difficulty` is the dial of profiles, the number of arms of path_star and that of constraints of essays.
    """

    name: Literal["profiles", "prose", "path_star", "essays"] = "profiles"
    documents: int = 12_000
    held_out: int = 256
    difficulty: int = 2
    grid: int = 4
    echo: bool = True
    vocabulary: int = 2048
    ablation: Literal["none", "no_topics", "no_sync"] = "none"


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """The one dial, the positions, and how many query heads share a key head.

    `heads` is how many offsets are predicted from a position, by heads of `heads_kind`; 1 is a plain transformer.
    """

    depth: int = 3
    context: int = 320
    share: int = 1
    heads: int = 1
    heads_kind: Kind = "medusa"

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"a model has at least one head, not {self.heads}")


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """AdamW with linear warm-up and decay; with a `muon_rate`, Muon for the matrices inside the blocks.

    `clean_weight` adds next-token prediction of the content (the autoregressive baseline in the same trunk);
    `diffusion_share` of the steps train diffusion of the whole response instead. Heads that look further than the
    next token count `heads_weight` each; with a `trunk`, the name or folder of a checkpoint, its weights stand and
    they alone are trained. The objective "outline" says that `lab.essay_forms` trains, not `lab.train`.
    """

    steps: int = 1500
    batch: int = 8
    learning_rate: float = 4e-3
    muon_rate: float = 0.005
    warmup: int = 50
    decay_from: float = 0.3
    weight_decay: float = 0.01
    clip: float = 1.0
    clean_weight: float = 1.0
    diffusion_share: float = 0.0
    objective: Literal["formula", "released", "outline"] = "formula"
    siblings: Siblings = "sparse"
    heads_weight: float = 1.0
    trunk: str = ""
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.warmup, self.save_every) < 1:
            raise ValueError("steps, batch, warmup and save_every are at least 1")
        if not 0 <= self.decay_from < 1 or not 0 <= self.diffusion_share <= 1:
            raise ValueError("decay_from is in [0, 1) and diffusion_share in [0, 1]")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Corpus, model and training."""

    corpus: CorpusRecipe = field(default_factory=CorpusRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)

    def __post_init__(self) -> None:
        if self.train.trunk and self.model.heads == 1:
            raise ValueError(f"the trunk {self.train.trunk!r} stands as it is, and there are no further heads to train")

    @classmethod
    def load(cls, source: str | Path) -> Recipe:
        """Read a shipped recipe by name, or any by path. Raises FileNotFoundError, ValueError for unknown keys."""
        shipped = RECIPES / f"{source}.toml"
        path = shipped if shipped.is_file() else Path(source)
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
            raise FileNotFoundError(f"no recipe {source!r}: give a TOML file or one of {names}")
        return cls.parse(tomllib.loads(path.read_text()))

    @classmethod
    def parse(cls, tables: dict[str, Any]) -> Recipe:
        """From TOML tables; what is left out keeps its default. Raises ValueError for unknown or ill-typed keys."""
        parts = {part.name: part.default_factory for part in fields(cls)}
        _require_known("recipe", tables, set(parts))
        return cls(**{name: _fill(name, make(), tables.get(name, {})) for name, make in parts.items()})  # type: ignore[operator]

    def dump(self) -> str:
        """As TOML; `parse` reads it back."""
        lines = []
        for table, values in asdict(self).items():
            lines += [f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in values.items()), ""]
        return "\n".join(lines)

    def with_train(self, **changes: Any) -> Recipe:
        """The same recipe with other training settings."""
        return replace(self, train=replace(self.train, **changes))

    @property
    def grammar(self) -> Grammar:
        """What the corpus and its model agree on."""
        return Grammar(self.corpus.grid, self.corpus.echo)

    def config(self, vocabulary: int) -> Config:
        """The sizes of the model."""
        return Config.of_depth(self.model.depth, vocabulary, self.model.context, self.model.share)

    def build(self, vocabulary: int) -> Transformer:
        """The model, untrained."""
        config = self.config(vocabulary)
        return (
            MultiToken(config, self.model.heads, self.model.heads_kind) if self.model.heads > 1 else Transformer(config)
        )


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to train and to test on, and the tokenizer that spells them. `source` knows the truth, if any does."""

    train: list[PlannedDocument]
    held_out: list[PlannedDocument]
    tokenizer: Tokenizer
    source: Profiles | PathStar | Essays | None = None


HELD_OUT_SEED = 2**31 - 1


def build_corpus(recipe: Recipe) -> Corpus:
    """The corpus a recipe names; the same for the same recipe."""
    corpus = _CORPORA[recipe.corpus.name](recipe)
    change: Callable[[PlannedDocument], PlannedDocument] | None = {
        "none": None,
        "no_topics": PlannedDocument.without_topics,
        "no_sync": PlannedDocument.without_sync,
    }[recipe.corpus.ablation]
    if change is None:
        return corpus
    return replace(corpus, train=[*map(change, corpus.train)], held_out=[*map(change, corpus.held_out)])


def _profiles(recipe: Recipe) -> Corpus:
    return _of_source(recipe, Profiles(recipe.corpus.difficulty, recipe.grammar))


def _path_star(recipe: Recipe) -> Corpus:
    return _of_source(recipe, PathStar(degree=recipe.corpus.difficulty))


def _essays(recipe: Recipe) -> Corpus:
    return _of_source(recipe, Essays(kinds=recipe.corpus.difficulty, paragraphs=4, grammar=recipe.grammar))


def _of_source(recipe: Recipe, source: Profiles | PathStar | Essays) -> Corpus:
    train = source.sample(recipe.corpus.documents, recipe.train.seed)
    held_out = source.sample(recipe.corpus.held_out, HELD_OUT_SEED)
    more = ["topic"] if recipe.corpus.ablation == "no_topics" else []  # the one word it leaves of topics
    return Corpus(train, held_out, source.tokenizer(*more), source)


def _prose(recipe: Recipe) -> Corpus:
    found = prose.build(recipe.corpus.vocabulary, recipe.grammar, recipe.model.context)
    return Corpus(found.train, found.heldout, found.tokenizer)


_CORPORA: dict[str, Callable[[Recipe], Corpus]] = {
    "profiles": _profiles,
    "prose": _prose,
    "path_star": _path_star,
    "essays": _essays,
}


def _fill(table: str, defaults: Any, values: dict[str, Any]) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{table} is a table, [{table}], not {values!r}")
    _require_known(f"table [{table}]", values, {f.name for f in fields(defaults)})
    hints = get_type_hints(type(defaults))
    for key, value in values.items():
        accepted = get_args(hints[key])  # of a Literal
        if accepted and value not in accepted:
            raise ValueError(f"{table}.{key} is one of {', '.join(accepted)}, not {value!r}")
        wanted = type(getattr(defaults, key))
        if wanted is float and type(value) is int:
            continue
        if type(value) is not wanted:
            raise ValueError(f"{table}.{key} is a {wanted.__name__}, not {value!r}")
    return replace(defaults, **values)


def _require_known(what: str, given: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{what} has no {', '.join(unknown)}; it knows {', '.join(sorted(known))}")


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
