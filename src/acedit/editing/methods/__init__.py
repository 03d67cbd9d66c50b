"""The editing methods, one short file each, registered by name.

    methods()["ace"]          # a Method: its stages, and whether it is polished

To add one: write a file that defines a `Method`, and name it in `_MODULES`.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

from acedit.editing.methods.method import Beside, Method, unprimed
from acedit.errors import UserError

_MODULES = (
    "ace", "ace_paper", "ace_letter", "alphaedit", "base", "ft", "ft_same", "ifmet", "ike", "kn", "lora",
    "mello", "memit", "mend", "pmet", "rome",
)  # fmt: skip


@cache
def methods() -> Mapping[str, Method]:
    """Every registered method by name."""
    found: dict[str, Method] = {}
    for module in _MODULES:
        for method in import_module(f"acedit.editing.methods.{module}").METHODS:
            if method.name in found:
                raise RuntimeError(f"two methods are called {method.name!r}")
            found[method.name] = method
    return MappingProxyType(found)


def method(name: str) -> Method:
    """The method `name`. Raises UserError for an unknown one."""
    if name not in methods():
        raise UserError(f"unknown method {name!r}; known: {', '.join(sorted(methods()))}")
    return methods()[name]


__all__ = ["Beside", "Method", "method", "methods", "unprimed"]
