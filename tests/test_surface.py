"""The names others script, and that importing them costs nothing until they are used."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import acedit


def test_every_name_is_there() -> None:
    for name in acedit.__all__:
        assert getattr(acedit, name) is not None
    assert set(acedit._HOME) == set(acedit.__all__)


def test_the_main_path_has_the_stated_signatures() -> None:
    assert {"known", "method", "exclude"} <= set(inspect.signature(acedit.edit).parameters)
    assert "known" in inspect.signature(acedit.locate).parameters
    assert "patch" in inspect.signature(acedit.evaluate).parameters
    assert inspect.signature(acedit.edit).parameters["method"].default == "ace"
    for name in ("applied", "apply", "remove", "save", "load", "to_lora"):
        assert callable(getattr(acedit.Patch, name))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no_such"):
        acedit.no_such  # noqa: B018


def test_import_is_cheap() -> None:
    code = "import sys, acedit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shapes_are_checked_wherever_they_are_stated(request: pytest.FixtureRequest) -> None:
    """Rooms that state none are left unchecked: the hook makes every call there several times as slow."""
    (given,) = [o for o in request.config.getini("addopts") if o.startswith("--jaxtyping-packages=")]
    hooked = tuple(given.partition("=")[2].split(","))
    source = Path(acedit.__file__).parent
    for path in source.rglob("*.py"):
        name = ".".join(["acedit", *path.relative_to(source).with_suffix("").parts])
        assert "jaxtyping" not in path.read_text("utf-8") or name.startswith(hooked), name
