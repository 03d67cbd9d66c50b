"""Change facts inside a language model so that the change carries through chains of reasoning.

    lm = acedit.load("bundled")                      # or a hub name, a folder, an HF model
    edits = acedit.read_edits("edits.json")
    facts = acedit.read_facts("edits.json")
    where = acedit.locate(lm, edits, known=facts)    # .value_neurons .query_neurons .layers .plan
    patch = acedit.edit(lm, edits, known=facts, method="ace")
    with patch.applied(lm):
        lm.answer("Who is the head of state of the country Fernando Santos is a citizen of?")
    scores = acedit.evaluate(lm, acedit.read_cases("cases.json"), patch=patch)

Names are imported on first use, so `import acedit` is cheap; what they need (torch, transformers) is not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acedit.attribution.locate import Location
    from acedit.attribution.plan import Plan
    from acedit.benchmark.evaluate import evaluate
    from acedit.editing.edit import edit
    from acedit.editing.methods import Method, methods
    from acedit.editing.patch import NoWeightChange, Patch
    from acedit.editing.plan import locate
    from acedit.errors import UserError
    from acedit.knowledge.facts import (
        Case,
        Chain,
        Edit,
        Fact,
        read_cases,
        read_edits,
        read_facts,
    )
    from acedit.knowledge.relations import Relation
    from acedit.lm.loading import load
    from acedit.lm.model import LanguageModel

__version__ = "0.1.0"

__all__ = [
    "Case",
    "Chain",
    "Edit",
    "Fact",
    "LanguageModel",
    "Location",
    "Method",
    "NoWeightChange",
    "Patch",
    "Plan",
    "Relation",
    "UserError",
    "edit",
    "evaluate",
    "load",
    "locate",
    "methods",
    "read_cases",
    "read_edits",
    "read_facts",
]

_HOMES = {
    "acedit.attribution.locate": ("Location",),
    "acedit.attribution.plan": ("Plan",),
    "acedit.benchmark.evaluate": ("evaluate",),
    "acedit.editing.edit": ("edit",),
    "acedit.editing.methods": ("Method", "methods"),
    "acedit.editing.patch": ("NoWeightChange", "Patch"),
    "acedit.editing.plan": ("locate",),
    "acedit.errors": ("UserError",),
    "acedit.knowledge.facts": ("Case", "Chain", "Edit", "Fact", "read_cases", "read_edits", "read_facts"),
    "acedit.knowledge.relations": ("Relation",),
    "acedit.lm.loading": ("load",),
    "acedit.lm.model": ("LanguageModel",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'acedit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
