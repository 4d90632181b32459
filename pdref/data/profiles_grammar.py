"""The words and sentences of the profiles corpus.

A slot in braces is filled from the prompt's facts (name, job, city, animal, dish, game), from the choices that the
plan makes for all spans (season; sub, obj and pos, the forms of the pronoun) or, for `detail`, from a set of words
that belongs to the topic alone. A detail stands twice in its sentence, so its two places depend on each other.
"""

FACTS: dict[str, str] = {
    "name": "ada ben cora dov elsa finn gita hugo iris juan kim lena",
    "job": "baker nurse tailor pilot clerk potter gardener welder judge printer cook singer",
    "city": "lyon oslo quito turin kyoto perth lima cork basel tunis riga porto",
    "animal": "cat dog parrot rabbit turtle ferret goat pony hamster crow canary donkey",
    "dish": "soup curry pasta stew rice salad dumplings pie risotto paella noodles chili",
    "game": "chess tennis darts cards golf bowls hockey cricket rugby squash polo dominoes",
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
        "{pos} friends said {sub} {detail} belonged there .",
        "in {season} a {job} named {name} {detail} left for {city} , and there {sub} {detail} made {pos} home .",
        "people in {city} {detail} remember the {season} when {name} the {job} arrived "
        "and {detail} changed {pos} life .",
    ),
    "work": (
        "every {season} morning {name} the {job} carried a {detail} across {city} , "
        "because without the {detail} {sub} could not begin .",
        "as a {job} {sub} kept a {detail} close , "
        "and all of {city} knew {pos} {detail} by the end of {season} .",
        "the {detail} of {name} was known in {city} , for a {job} with such a {detail} worked well in {season} .",
    ),
    "pet": (
        "{pos} {animal} slept by the {detail} all {season} , and {name} would not move the {detail} for anyone .",
        "a {animal} followed {name} home one {season} day , chose the {detail} , "
        "and kept the {detail} from then on .",
        "when {season} came {sub} gave the {animal} a {detail} , "
        "and the {animal} loved the {detail} more than {name} .",
    ),
    "food": (
        "for dinner {sub} cooked {dish} with {detail} , "
        "since in {season} the market of {city} sold {detail} at every corner .",
        "{name} learned to make {dish} one {season} and always added {detail} , "
        "saying that {dish} without {detail} was nothing .",
        "guests from {city} asked {obj} for {dish} , and the {detail} in it , "
        "fresh {season} {detail} , surprised them .",
    ),
    "game": (
        "on {season} evenings {name} played {game} with a {detail} , and the {detail} let {obj} win only once .",
        "{sub} met a {detail} in {city} who taught {obj} {game} , and by {season} the {detail} had lost twice .",
        "nobody in {city} loved {game} like {name} , except the {detail} ; "
        "{sub} played the {detail} every {season} .",
    ),
    "home": (
        "the house of {name} in {city} had a {detail} door , and every {season} {sub} painted it {detail} again .",
        "{sub} rented two {detail} rooms in {city} that {season} , "
        "and even the curtains of {pos} rooms were {detail} .",
        "from the {detail} roof {sub} watched {city} in {season} ; "
        "{name} had painted it {detail} with {pos} own hands .",
    ),
    "recall": (
        "years later {name} still spoke of the {detail} and of that {season} in {city} .",
        "{sub} never forgot the {detail} , nor what {city} was like in {season} .",
        "ask {name} about the {detail} and {sub} will tell you of {season} in {city} .",
    ),
}

TEMPLATE_WEIGHTS = (5, 3, 2)
DETAIL_WEIGHTS = (40, 25, 15, 10, 6, 4)
BODY_TOPICS = ("work", "pet", "food", "game", "home")
BODY_COUNTS = (2, 3, 4)
RECALL_COUNTS = (1, 2)
SECOND_STAGE = 0.4
