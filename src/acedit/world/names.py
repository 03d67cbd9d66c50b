"""Names for generated entities, unlike one another in their last tokens.

    Names(random.Random(0)).make("person")      # 'Vilmar Toskent'

An edit is keyed by what the model reads at the subject's last token, so names that end alike bleed into
one another; every generated name therefore ends in a word of its own.
"""

import random

_ONSETS = (
    "b br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sk sl sp st str "
    "t th tr v w y z zh"
).split()
_NUCLEI = "a e i o u ae ai au ea ee ei ia ie io oa oo ou".split()
_CODAS = "b ck d f g k l ld ll m mp n nd ng nk nt p r rd rk rn rt s sk ss st t th v x z".split()
_ENDS = {
    "country": ("ia", "land", "stan", "mark", "ora", "esia", "avia", "uay"),
    "city": ("ville", "burg", "ton", "port", "grad", "mouth", "haven", "ford", "polis", "dale"),
    "language": ("ish", "ese", "ic", "ian"),
}
_FORMS: dict[str, tuple[str, ...]] = {
    "person": ("{first} {x}",),
    "company": ("{x} Corporation", "{x} Motors", "{y} {x}", "{y} & {x}"),
    "broadcaster": ("Radio {x}", "{y} {x} Network"),
    "university": ("University of {x}", "{y} College {x}", "Institute of {x}"),
    "band": ("The {x}", "{y} and the {x}", "{y} {x}"),
    "team": ("{y} {x}", "F.C. {x}", "{y} United {x}"),
    "song": ("Song of {x}", "{y} in {x}", "Goodbye {x}", "{x}"),
    "book": ("The House of {x}", "A Winter in {x}", "{y} and {x}", "The Last {x}"),
    "show": ("Meet {x}", "The {y} {x}", "Doctor {x}"),
    "film": ("Return to {x}", "The Secret of {x}", "{y} against {x}", "Beyond {x}"),
    "software": ("{x}", "Open{x}", "{y}{x}"),
    "car": ("{y} {x}", "{y} Coupe {x}"),
    "character": ("Captain {x}", "{y} {x}", "Princess {x}"),
    "office": ("Governor of {x}", "Chancellor of {x}", "Archbishop of {x}"),
}

MADE = frozenset({*_ENDS, *_FORMS})
"""The kinds of entities that names are made for."""


class Names:
    """Draws names without repeating a last word; `taken` are names that exist already."""

    def __init__(self, rng: random.Random, taken: frozenset[str] = frozenset()) -> None:
        self._rng = rng
        self._words = {name.split()[-1].lower() for name in taken if name}
        self._firsts = [self._syllables(self._rng.choice((1, 2))) for _ in range(90)]

    def _syllables(self, n: int) -> str:
        pick = self._rng.choice
        return "".join(pick(_ONSETS) + pick(_NUCLEI) for _ in range(n)).capitalize() + pick(_CODAS)

    def _word(self, ends: tuple[str, ...] = ("",)) -> str:
        while True:
            word = self._syllables(self._rng.choice((1, 1, 2))) + self._rng.choice(ends)
            if 4 <= len(word) <= 10 and word.lower() not in self._words:
                self._words.add(word.lower())
                return word

    def make(self, kind: str) -> str:
        """A new name for an entity of type `kind`."""
        if kind in _ENDS:
            return self._word(_ENDS[kind])
        form = self._rng.choice(_FORMS[kind])
        words = {slot: self._word() for slot in ("x", "y") if "{" + slot + "}" in form}
        return form.format(first=self._rng.choice(self._firsts), **words)
