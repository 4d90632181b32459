"""The words of the essays: kinds of value with their verbs and values, subjects of sections, eras of paragraphs.

A sentence is `era subject verb value .`, five words: "ancient trade reached aston ." The verb tells the kind.
Values of different kinds share no word. Entities come first, then an attribute, a stance and further attributes.
"""

VERBS = {
    "town": "reached",
    "guide": "followed",
    "colour": "wore",
    "stance": "deserved",
    "metal": "sold",
    "weather": "endured",
    "month": "favoured",
    "sound": "loved",
}

VALUES = {
    "town": "aston brill corfe dover ely frome goole hythe",
    "guide": "nell otto petra quinn rosa saul tilda ugo",
    "colour": "amber black coral dun ebony fawn green hazel",
    "stance": "praise blame trust doubt envy mercy pity wonder",
    "metal": "copper tin iron silver lead gold zinc brass",
    "weather": "rain snow fog frost wind hail heat drought",
    "month": "march april may june july august october december",
    "sound": "fiddles drums flutes harps pipes horns bells lutes",
}

SUBJECTS = [
    "trade",
    "law",
    "sport",
    "school",
    "craft",
    "faith",
    "art",
    "war",
    "farming",
    "fishing",
    "healing",
    "building",
    "sailing",
    "cooking",
    "printing",
    "mining",
]

ERAS = ["ancient", "early", "old", "middle", "late", "new", "modern", "future"]

SENTENCE_END = "."

PARTS = ("sections", "paragraphs", "sentences")  # what a tree of depth 1, 2, 3 divides the text into
