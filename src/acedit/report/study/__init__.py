"""The paper's findings, measured on any model: one file a study, registered by name.

    found = studies()["knockout"].run(setting_of(lm, facts))
    save(found, Path("out/study/knockout"))

To add one: write a file here that defines a `STUDY` of the file's name, dashes for underscores.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from acedit.report.study.base import Finding, Question, Result, Setting, Study, save, setting_of


@cache
def studies() -> Mapping[str, Study]:
    """Every study there is a file of, by name, in the paper's order."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    found = [module.STUDY for module in modules if hasattr(module, "STUDY")]
    return MappingProxyType({study.name: study for study in sorted(found, key=lambda study: study.place)})


__all__ = ["Finding", "Question", "Result", "Setting", "Study", "save", "setting_of", "studies"]
