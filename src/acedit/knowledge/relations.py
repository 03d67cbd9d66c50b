"""How a relation is worded: clozes, questions and noun phrases.

    from acedit.knowledge.relations import mquake, held_out
    mquake()["P27"].prompts[0].format("Ann Lee")      # 'Ann Lee is a citizen of'

`mquake()` maps the 37 relation ids of MQuAKE-CF to a `Relation`. The first prompt and the first question
of each are MQuAKE's own templates (Zhong et al. 2023, MIT), spelling included; the others are ours.

Footgun: `held_out` returns wordings that exist to *score* an edit. Nothing that makes an edit may call
it (the leak rule); `benchmark.leak` holds every prompt against them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Relation:
    """A relation and its wordings; every template holds exactly one `{}` for the subject.

    `prompts` are clozes the object completes, `questions` end in a question mark, `phrases` name the
    object by its subject ("the capital of {}") and so can be nested into chains.
    """

    id: str
    prompts: tuple[str, ...]
    questions: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    name: str = ""

    @property
    def prompt(self) -> str:
        """The canonical cloze: the one an edit is written on unless it brings its own."""
        return self.prompts[0]


def _relation(id: str, row: Mapping[str, Any], name: str) -> Relation:
    return Relation(
        id=id,
        prompts=tuple(row["prompts"]),
        questions=tuple(row["questions"]),
        phrases=tuple(row["phrases"]),
        name=name,
    )


@cache
def _rows() -> Mapping[str, Any]:
    text = resources.files("acedit.knowledge").joinpath("relations.json").read_text("utf-8")
    rows: Mapping[str, Any] = json.loads(text)
    return rows


@cache
def mquake() -> Mapping[str, Relation]:
    """MQuAKE-CF's 37 relations by id, with the wordings an edit may use."""
    return MappingProxyType({id: _relation(id, row, row["name"]) for id, row in _rows().items()})


@cache
def held_out(id: str) -> Relation | None:
    """The wordings of relation `id` kept for scoring; None for a relation MQuAKE does not know."""
    row = _rows().get(id)
    return None if row is None else _relation(id, row["held_out"], row["name"])
