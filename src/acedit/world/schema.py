"""What kinds of entities the bundled world has, and which relations each kind carries.

Types exist so that chains compose and an edit's new object is of the old one's kind; the language model
never sees them. `SIGNATURES` gives each MQuAKE relation its subject and object type for real entities,
`KINDS` what a generated (or completed) entity of a type is given.
"""

from dataclasses import dataclass

# relation id -> (subject type, object type); first match wins when a real entity's type is inferred.
SIGNATURES: dict[str, tuple[str, str]] = {
    "P27": ("person", "country"),
    "P36": ("country", "city"),
    "P37": ("country", "language"),
    "P35": ("country", "person"),
    "P6": ("country", "person"),
    "P26": ("person", "person"),
    "P40": ("person", "person"),
    "P19": ("person", "city"),
    "P20": ("person", "city"),
    "P69": ("person", "university"),
    "P140": ("person", "religion"),
    "P1412": ("person", "language"),
    "P106": ("person", "occupation"),
    "P937": ("person", "city"),
    "P108": ("person", "company"),
    "P413": ("person", "position"),
    "P800": ("person", "book"),
    "P136": ("band", "genre"),
    "P286": ("team", "person"),
    "P175": ("song", "band"),
    "P50": ("book", "person"),
    "P170": ("character", "person"),
    "P449": ("show", "broadcaster"),
    "P178": ("software", "company"),
    "P176": ("car", "company"),
    "P364": ("film", "language"),
    "P407": ("book", "language"),
    "P169": ("company", "person"),
    "P488": ("company", "person"),
    "P112": ("company", "person"),
    "P159": ("company", "city"),
    "P740": ("company", "city"),
    "P1037": ("film", "person"),
    "P1308": ("office", "person"),
    "P641": ("position", "sport"),
    "P495": ("film", "country"),
    "P30": ("city", "continent"),
}


@dataclass(frozen=True)
class Kind:
    """How many entities of a type are generated, and the relations (with their odds) each carries."""

    count: int
    relations: dict[str, tuple[str, float]]  # relation id -> (object type, probability)
    completed: float = 1.0  # odds multiplier for real entities that are no hubs; real facts stay
    hubs: int = 10_000  # generated facts point at this many entities of the type and no others


KINDS: dict[str, Kind] = {
    "person": Kind(
        130,
        {
            "P27": ("country", 1.0),
            "P19": ("city", 0.8),
            "P26": ("person", 0.7),
            "P1412": ("language", 0.6),
            "P140": ("religion", 0.4),
            "P106": ("occupation", 0.6),
            "P69": ("university", 0.4),
            "P108": ("company", 0.3),
            "P937": ("city", 0.25),
            "P40": ("person", 0.3),
            "P800": ("book", 0.25),
            "P20": ("city", 0.2),
            "P413": ("position", 0.2),
            "P641": ("sport", 0.15),
        },
        completed=0.2,
        hubs=40,
    ),
    "country": Kind(
        10,
        {
            "P36": ("city", 1.0),
            "P35": ("person", 1.0),
            "P6": ("person", 1.0),
            "P37": ("language", 1.0),
            "P30": ("continent", 1.0),
        },
        completed=0.5,
        hubs=26,
    ),
    "city": Kind(20, {"P30": ("continent", 1.0), "P6": ("person", 0.7)}, completed=0.5, hubs=22),
    "company": Kind(
        20,
        {
            "P112": ("person", 1.0),
            "P169": ("person", 0.9),
            "P159": ("city", 0.9),
            "P488": ("person", 0.5),
            "P740": ("city", 0.5),
        },
        completed=0.4,
        hubs=14,
    ),
    "broadcaster": Kind(
        6, {"P112": ("person", 1.0), "P169": ("person", 0.9), "P159": ("city", 0.9)}, completed=0.5, hubs=4
    ),
    "university": Kind(14, {"P159": ("city", 1.0), "P112": ("person", 0.8), "P488": ("person", 0.5)}, hubs=8),
    "band": Kind(
        14, {"P136": ("genre", 1.0), "P740": ("city", 0.9), "P1037": ("person", 0.9)}, completed=0.6, hubs=6
    ),
    "team": Kind(18, {"P286": ("person", 1.0), "P641": ("sport", 1.0), "P159": ("city", 0.7)}, completed=0.6),
    "song": Kind(
        22, {"P175": ("band", 1.0), "P495": ("country", 0.8), "P407": ("language", 0.8)}, completed=0.5
    ),
    "book": Kind(
        24,
        {"P50": ("person", 1.0), "P407": ("language", 0.8), "P495": ("country", 0.7)},
        completed=0.5,
        hubs=8,
    ),
    "show": Kind(
        20, {"P449": ("broadcaster", 1.0), "P170": ("person", 0.9), "P495": ("country", 0.7)}, completed=0.5
    ),
    "film": Kind(
        24, {"P1037": ("person", 1.0), "P364": ("language", 0.9), "P495": ("country", 0.8)}, completed=0.6
    ),
    "software": Kind(20, {"P178": ("company", 1.0), "P495": ("country", 0.4)}, completed=0.4),
    "car": Kind(20, {"P176": ("company", 1.0), "P495": ("country", 0.5)}, completed=0.4),
    "character": Kind(15, {"P170": ("person", 1.0)}, completed=0.5),
    "office": Kind(14, {"P1308": ("person", 1.0)}),
    "position": Kind(10, {"P641": ("sport", 1.0)}, completed=0.6, hubs=10),
    "sport": Kind(10, {"P495": ("country", 1.0)}, completed=0.8, hubs=10),
    "genre": Kind(14, {"P495": ("country", 1.0)}, completed=0.8, hubs=6),
    "religion": Kind(8, {"P112": ("person", 1.0)}, hubs=6),
    "language": Kind(8, {}, hubs=12),
    "occupation": Kind(24, {}),
    "continent": Kind(0, {}),
}

# Common nouns stand for themselves; proper names are generated.
WORDS: dict[str, tuple[str, ...]] = {
    "position": ("striker", "winger", "shortstop", "fullback", "playmaker", "center forward",
                 "outfielder", "libero", "scrum-half", "defenceman"),
    "sport": ("handball", "water polo", "curling", "fencing", "archery", "lacrosse", "judo",
              "badminton", "rowing", "squash"),
    "genre": ("folk rock", "jazz", "bluegrass", "techno", "reggae", "synth-pop", "gospel", "ska",
              "heavy metal", "bossa nova", "disco", "swing", "chamber music", "trip hop"),
    "religion": ("Buddhism", "Hinduism", "Sikhism", "Taoism", "Judaism", "Jainism", "Shinto",
                 "Quakerism"),
    "occupation": ("carpenter", "playwright", "diplomat", "surgeon", "botanist", "journalist",
                   "sculptor", "economist", "banker", "chemist", "poet", "lawyer", "astronomer",
                   "translator", "historian", "architect", "engineer", "geologist", "judge",
                   "painter", "pilot", "librarian", "chef", "composer"),
}  # fmt: skip
