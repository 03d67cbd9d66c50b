"""One language model, whatever its family.

families: the table of families. model: `LanguageModel` and `load`. trace: one forward pass,
recorded. suffix: run again only from a layer up. norms: a norm with its scale frozen.
"""

from acedit.lm.families import FAMILIES, Family, family_of
from acedit.lm.model import Encoded, LanguageModel, load
from acedit.lm.norms import FrozenNorm
from acedit.lm.suffix import Suffix
from acedit.lm.trace import Trace, trace

__all__ = [
    "FAMILIES",
    "Encoded",
    "Family",
    "FrozenNorm",
    "LanguageModel",
    "Suffix",
    "Trace",
    "family_of",
    "load",
    "trace",
]
