"""Bugs of outlines, hierarchies and their attention rule."""

from functools import partial

from laws import outlines
from laws.planting import Bug

LAWS = {
    "a tree of outlines is recovered": outlines.an_oracle_is_recovered,
    "sections cost their tokens and one": partial(outlines.costs_are_the_closed_forms, "drafts", 2),
    "side by side is one by one": outlines.side_by_side_is_one_by_one,
    "side by side over drafts, too": partial(outlines.side_by_side_is_one_by_one, "drafts"),
    "company and cache change no section": outlines.company_and_cache_change_nothing,
    "nor one that reads drafts": partial(outlines.company_and_cache_change_nothing, "drafts", 1.0),
    "nor one that reads those before": partial(outlines.company_and_cache_change_nothing, "sequential"),
    "trees grow the same uncached": outlines.trees_grow_the_same_uncached,
    "sections read what they may": outlines.information_stays_where_it_may,
    "and drafts what they may": partial(outlines.information_stays_where_it_may, "drafts"),
    "sections are trained as they are written": outlines.training_is_sampling,
    "so are those that read drafts": partial(outlines.training_is_sampling, "drafts"),
    "so are those that read those before": partial(outlines.training_is_sampling, "sequential"),
    "the loss is of what is drawn": outlines.the_loss_scores_what_is_drawn,
    "a level reads the whole level above": outlines.a_level_reads_the_whole_level_above,
    "a runaway level is cut": outlines.a_runaway_level_is_cut,
}

RULE, SECTIONS, OUTLINE = "pdref.text.filling:may_read", "pdref.methods.sections:", "pdref.methods.outline:"

BUGS = {
    "a section reads its siblings": Bug(
        RULE,
        "(final & ~together)",
        "final",
        (
            "sections read what they may",
            "sections are trained as they are written",
            "a level reads the whole level above",
        ),
    ),
    "a section does not read the level above": Bug(
        RULE,
        "final & ~together",
        "final & (key.span == NO_SPAN)",
        ("a level reads the whole level above", "sections read what they may"),
    ),
    "a section reads the draft of its own alone": Bug(
        RULE,
        "together & draft &",
        "together & draft & (key.span == query.span) &",
        ("and drafts what they may", "so are those that read drafts", "nor one that reads drafts"),
    ),
    "drafts are read by those that come after": Bug(
        RULE, "(together & draft &", "(draft &", ("and drafts what they may", "nor one that reads drafts")
    ),
    "a section reads ahead of its own words": Bug(
        RULE, "((final & ~together) | own)", "(final & ~together) | own", ("sections read what they may",)
    ),
    "the cache shows a section those before it": Bug(
        f"{OUTLINE}_sections",
        'start if filling == "sequential" else requests.length(b)',
        "start",
        ("side by side is one by one", "company and cache change no section"),
    ),
    "no section is shown those before it": Bug(
        f"{OUTLINE}_sections",
        'start if filling == "sequential" else requests.length(b)',
        "requests.length(b)",
        ("so are those that read those before", "nor one that reads those before"),
    ),
    "the cache shows a section what stands before it": Bug(
        f"{SECTIONS}Shared.read",
        "slot < past[..., None]",
        "slot < start[..., None]",
        (
            "side by side is one by one",
            "company and cache change no section",
            "sections are trained as they are written",
        ),
    ),
    "the cache shows a section all that is written": Bug(
        f"{SECTIONS}Shared.read",
        "(slot >= start[..., None]) & ",
        "",
        ("side by side is one by one", "company and cache change no section"),
    ),
    "the prompt of another request is read": Bug(
        f"{SECTIONS}Shared.read",
        "(position, self.rows)",
        "(position, self.rows * 0)",
        ("company and cache change no section",),
    ),
    "drafts lose their keys to what becomes of them": Bug(
        f"{SECTIONS}Shared.keep", ".clone()", "", ("side by side over drafts, too",)
    ),
    "fewer drafts are read as zeros": Bug(
        f"{SECTIONS}Drafts.of",
        "device=counts.device) < counts",
        "device=counts.device) < longest + 0 * counts",
        ("nor one that reads drafts",),
    ),
    "sections read the drafts of other requests": Bug(
        f"{SECTIONS}Section.reads",
        "(self.owner, self.stage) == (draft.owner, draft.stage)",
        "self.stage == draft.stage",
        ("nor one that reads drafts",),
    ),
    "what is finished is read again as plain text": Bug(
        f"{SECTIONS}join",
        "requests.seen[s.owner] = requests.length(s.owner)",
        "pass",
        ("trees grow the same uncached",),
    ),
    "a section's end is not read": Bug(
        f"{SECTIONS}Section.tokens",
        "* (len(self.content) == self.length)",
        "* 0",
        ("a tree of outlines is recovered",),
    ),
    "side by side counts once": Bug(
        f"{SECTIONS}write",
        "requests.count(b, len(pairs))",
        "requests.count(b)",
        ("sections cost their tokens and one",),
    ),
    "plans that are read off are scored": Bug(
        f"{OUTLINE}drawn", "(layout.planned & (layout.stage == 0))", "layout.planned", ("the loss is of what is drawn",)
    ),
    "a level is read off its last span": Bug(
        "pdref.methods.hierarchy:_read_off",
        "for ids in spans.values()",
        "for ids in [*spans.values()][-1:]",
        ("a tree of outlines is recovered",),
    ),
    "a level has no bound": Bug(
        "pdref.methods.hierarchy:_read_off", "items[: bounds.items]", "items", ("a runaway level is cut",)
    ),
}
