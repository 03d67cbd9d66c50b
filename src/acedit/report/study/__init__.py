"""The paper's findings, measured on any model: one file a study, registered by name.

    found = studies()["knockout"].run(setting_of(lm, facts))
    save(found, Path("out/study/knockout"))

To add one: write a file that defines a `STUDY`, and name it in `_MODULES`.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

from acedit.report.study.base import Finding, Question, Result, Setting, Study, save, setting_of

_MODULES = (
    "layers",
    "domains",
    "knockout",
    "accumulate",
    "query_knockout",
    "tokens",
    "neurons",
    "profile",
    "critical",
)


@cache
def studies() -> Mapping[str, Study]:
    """Every registered study by name, in the paper's order."""
    found = [import_module(f"acedit.report.study.{module}").STUDY for module in _MODULES]
    return MappingProxyType({study.name: study for study in found})


__all__ = ["Finding", "Question", "Result", "Setting", "Study", "save", "setting_of", "studies"]
