"""The words and sentences of the profiles corpus.

A slot in braces is filled from the prompt's facts (name, job, city, animal), from the choices that the
plan makes for all spans (season; sub, obj and pos, the forms of the pronoun) or, for `detail`, from a set of words
that belongs to the topic alone. A detail stands twice in its sentence, so its two places depend on each other.

On a grid of 4 the first two sentences of a topic differ in length, so a plan that names the length has chosen the
sentence; the third is as long as one of the others, and only its words tell them apart.
"""

FACT_VALUES = (4, 5, 12)  # how many of them there are at difficulty 1, 2, 3
DETAIL_VALUES = (2, 4, 6)
SENTENCES = (1, 2, 3)

FACTS: dict[str, str] = {
    "name": "ada ben cora dov elsa finn gita hugo iris juan kim lena",
    "job": "baker nurse tailor pilot clerk potter gardener welder judge printer cook singer",
    "city": "lyon oslo quito turin kyoto perth lima cork basel tunis riga porto",
    "animal": "cat dog parrot rabbit turtle ferret goat pony hamster crow canary donkey",
}

SEASONS = ("spring", "summer", "autumn", "winter")
PRONOUNS: dict[str, dict[str, str]] = {
    "she": {"sub": "she", "obj": "her", "pos": "her"},
    "he": {"sub": "he", "obj": "him", "pos": "his"},
    "they": {"sub": "they", "obj": "them", "pos": "their"},
}

DETAILS: dict[str, str] = {
    "opening": "slowly gladly quietly proudly simply boldly",
    "work": "ledger lantern bicycle apron notebook radio",
    "pet": "blanket basket window sofa ladder stove",
    "food": "pepper ginger mint honey garlic lemon",
    "game": "neighbor cousin captain teacher stranger widow",
    "home": "blue green yellow white red grey",
}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "opening": (
        "{name} came to {city} in {season} and {detail} found work as a {job} ; "
        "{pos} {animal} and {sub} {detail} belonged there .",
        "in {season} a {job} named {name} {detail} left for {city} , and {sub} {detail} brought {pos} {animal} along .",
        "people in {city} {detail} remember the {season} when {name} the {job} arrived "
        "and {detail} changed {pos} life .",
    ),
    "work": (
        "every {season} morning {name} the {job} carried a {detail} across {city} for the {animal} , "
        "and the {detail} never once broke .",
        "as a {job} {sub} kept a {detail} close , and all of {city} soon knew {pos} {detail} .",
        "the {detail} of {name} was known in {city} , and no {job} had a {detail} like it .",
    ),
    "pet": (
        "{pos} {animal} slept by the {detail} all {season} , and the {job} never moved the {detail} from there .",
        "after work as a {job} {name} fed the {animal} by the {detail} , "
        "and the {detail} grew warm again that {season} .",
        "when {season} came {sub} gave the {animal} a {detail} , "
        "and the {animal} loved the {detail} more than {name} .",
    ),
    "food": (
        "after work {sub} cooked soup with {detail} for the {animal} , "
        "since in {season} all {city} sold {detail} at every corner .",
        "{name} learned to make pasta one {season} and always added {detail} , "
        "saying that pasta without {detail} was nothing .",
        "guests from {city} asked {obj} for curry , and the {detail} in it , "
        "fresh {season} {detail} , surprised them .",
    ),
    "game": (
        "on long {season} evenings {name} played cards for money with a {detail} , "
        "and the {detail} never let the {job} win .",
        "{sub} met a {detail} in {city} who taught the {job} darts , and soon the {detail} had lost twice .",
        "nobody in {city} loved chess like {name} , except the {detail} ; {sub} played the {detail} every {season} .",
    ),
    "home": (
        "the house of {name} in {city} had a {detail} door for the {animal} , "
        "and every {season} {sub} painted it {detail} .",
        "{sub} rented two {detail} rooms in {city} that {season} , and even the bed of the {animal} was {detail} .",
        "from the {detail} roof {sub} watched {city} in {season} ; "
        "{name} had painted it {detail} with {pos} own hands .",
    ),
    "recall": (
        "years later {name} still spoke to friends of the {detail} and of that one {season} in {city} .",
        "{sub} never forgot the {detail} , nor what {city} was like in {season} .",
        "ask {name} about the {detail} and {sub} will tell you of {season} in {city} .",
    ),
}

TEMPLATE_WEIGHTS = (5, 3, 2)
DETAIL_WEIGHTS = (60, 20, 10, 5, 3, 2)
BODY_TOPICS = ("work", "pet", "food", "game", "home")
BODY_COUNTS = (2, 3, 4)
RECALL_COUNTS = (1, 2)
SECOND_STAGE = 0.4
