"""Bugs of the coherence theorem and of the price of independence."""

from laws import coherence, independence
from laws.planting import Bug

LAWS = {
    "closed forms are every pattern of errors": coherence.all_closed_forms_are_every_pattern,
    "simulations are within three errors": coherence.simulations_are_within_three_standard_errors,
    "no coder beats the relay": coherence.no_coder_beats_the_relay,
    "Fano is an equality": coherence.fano_is_an_equality,
    "total correlation is a divergence": independence.all_total_correlations_are_divergences,
    "the price is the closed form": independence.the_price_is_the_closed_form,
    "contradictions are the impossible": independence.contradictions_are_what_the_source_cannot_write,
    "masks are orders": independence.masks_are_orders,
}

RELAYS, BOUNDS, PRICE = "pdref.theory.coherence:", "pdref.theory.coherence_bounds:", "pdref.theory.independence:"
PATTERNS, SIMULATED = "closed forms are every pattern of errors", "simulations are within three errors"

BUGS = {
    # Coherence.
    "a copy that goes wrong is a fair draw": Bug(
        f"{RELAYS}survival", "error * values / (values - 1)", "error", (PATTERNS,)
    ),
    "a relay forgets no more at its end": Bug(
        f"{RELAYS}Level.carried", "shrunk.cumprod()", "shrunk", (PATTERNS, "no coder beats the relay")
    ),
    "a relay is a copy too short": Bug(
        f"{RELAYS}Level.total", "self.siblings * math.log1p", "(self.siblings - 1) * math.log1p", (PATTERNS,)
    ),
    "a flawless run has a copy too many": Bug(
        f"{RELAYS}Scheme.flawless", "level.siblings - 1", "level.siblings", (PATTERNS,)
    ),
    "an error is not handed on": Bug(f"{RELAYS}Scheme.simulate", "slips.cumsum(-1", "slips.cumsum(0", (SIMULATED,)),
    "no error is ever undone": Bug(f"{RELAYS}Scheme.simulate", ") % self.values", ")", (SIMULATED,)),
    "a sibling copies the wrong parent": Bug(
        f"{RELAYS}Scheme.simulate", "off[..., None] + slips", "off[:, ::-1, None] + slips.cumsum(1)", (SIMULATED,)
    ),
    "what is left is in the wrong unit": Bug(
        f"{BOUNDS}uncertainty", "math.log(values - 1)", "math.log(values)", ("Fano is an equality",)
    ),
    "the least error is the greatest": Bug(
        f"{BOUNDS}fano", "np.where(enough, low, middle)", "np.where(enough, middle, low)", ("Fano is an equality",)
    ),
    # Independence.
    "the plan's own entropy is charged": Bug(
        f"{PRICE}conditional_entropy",
        " - entropy(joint.reshape(len(joint), -1).sum(1), np.log)",
        "",
        ("total correlation is a divergence", "the price is the closed form"),
    ),
    "spans are filled without the plan": Bug(
        f"{PRICE}best_fill",
        "span_law(joint, k) * weight[:, None]",
        "span_law(joint, k).sum(0, keepdims=True)",
        ("total correlation is a divergence",),
    ),
    "only the last sentence is read": Bug(
        "pdref.data.postcards:Postcards.contradictions",
        "made.setdefault(name, set()).add(word)",
        "made[name] = {word}",
        ("contradictions are the impossible",),
    ),
    "masks see each other": Bug(
        "pdref.lab.omitted_choices:span_nats", "span=copy.span + spans * m", "span=copy.span", ("masks are orders",)
    ),
    "every mask weighs the same": Bug(
        "pdref.lab.omitted_choices:span_nats", "for m in left]) * left", "for m in left])", ("masks are orders",)
    ),
}

if __name__ == "__main__":  # PYTHONPATH=.:tests python planted_T.py
    import pytest

    for law in LAWS.values():
        law()
    for name, bug in BUGS.items():
        for law in bug.red:
            with pytest.MonkeyPatch.context() as patch:
                bug.plant(patch)
                try:
                    LAWS[law]()
                    print("NOT RED", name, "|", law)
                except (AssertionError, ValueError, IndexError) as error:
                    print("red", name, "|", law, "|", type(error).__name__)
