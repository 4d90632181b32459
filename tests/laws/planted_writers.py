"""Bugs of windows and of writers under them."""

from laws import writers
from laws.planting import Bug

LAWS = {
    "a window is its rule": writers.the_mask_is_the_rule,
    "nothing comes from beyond reach": writers.nothing_comes_from_beyond_reach,
    "a writer's cache changes nothing": writers.the_cache_changes_nothing,
    "a writer looks at nothing to come": writers.writing_looks_at_nothing_to_come,
    "a copyist keeps to the theory": writers.a_copyist_keeps_to_the_theory,
}

WINDOW, WRITERS, MARKS = "pdref.text.window:", "pdref.lab.essay_writers:", "pdref.lab.essay_marks:"

BUGS = {
    "a window is one token too wide": Bug(
        WINDOW + "within",
        "- key < window",
        "- key <= window",
        ("a window is its rule", "nothing comes from beyond reach"),
    ),
    "a window is not causal": Bug(
        WINDOW + "within",
        "key <= query",
        "key == key",
        ("a window is its rule",),
    ),
    "the plan is out of sight": Bug(
        WINDOW + "within",
        "past & (near | kept)",
        "past & near",
        ("a window is its rule", "nothing comes from beyond reach", "a copyist keeps to the theory"),
    ),
    "padding is in sight": Bug(WINDOW + "may_see", " & (key.role != Role.PAD)", "", ("a window is its rule",)),
    "reach counts a token too many": Bug(
        WINDOW + "reach", "(window - 1)", "window", ("nothing comes from beyond reach",)
    ),
    "a writer's window is the whole text": Bug(
        WRITERS + "Writer.mask", "if self.arm.windowed", "if not self.arm.windowed", ("a copyist keeps to the theory",)
    ),
    "a cached writer counts positions from what it has not read": Bug(
        WRITERS + "write",
        "layout.position[:, read:i]",
        "layout.position[:, : i - read]",
        ("a writer's cache changes nothing",),
    ),
    "the temperature of writers is dropped": Bug(
        WRITERS + "write", "temperature=temperature", "temperature=0.0", ("a copyist keeps to the theory",)
    ),
    "a writer reads one place off": Bug(
        WRITERS + "write",
        "mask[:, :, read:i, :i]",
        "mask[:, :, read - 1 : i - 1, :i]",
        ("a writer's cache changes nothing",),
    ),
    "violations are held to another thesis": Bug(
        MARKS + "failures",
        "source.violations(text, thesis)",
        "source.violations(text, {**thesis, 'town': 'aston'})",
        ("a copyist keeps to the theory",),
    ),
}
