"""One language model, whatever its family.

families: the table of families. loading: `load`. model: `LanguageModel`. tokens: text as token ids.
generation: greedy generation. reader: what stands before the model. trace: one forward pass,
recorded. suffix: run again only from a layer up. norms: a norm with its scale frozen.
cache: tensors kept on disk.
"""

from acedit.lm.families import FAMILIES, Family, family_of
from acedit.lm.loading import load
from acedit.lm.model import LanguageModel
from acedit.lm.norms import FrozenNorm
from acedit.lm.suffix import Suffix
from acedit.lm.tokens import Encoded
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
