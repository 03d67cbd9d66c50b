"""Fixtures every room's tests share: tiny random models, one small tokenizer, no network."""

import os

# Before transformers is imported: nothing may reach for the hub, and progress bars are noise.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from acedit.cli import main
from acedit.lm.families import FAMILIES
from acedit.lm.model import LanguageModel
from tests.tiny import tiny_lm

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True, scope="session")
def _one_thread_a_worker() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache; workers side by side share theirs."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "ACEDIT_CACHE", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")
        )
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted(FAMILIES))
def family_name(request: pytest.FixtureRequest) -> str:
    """Each row of the table in turn."""
    name: str = request.param
    return name


@pytest.fixture
def lm(family_name: str) -> LanguageModel:
    """A fresh tiny model of each family, float32."""
    return tiny_lm(family_name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One command, with a cache of its own: exit code, standard output, standard error."""
    monkeypatch.setenv("ACEDIT_CACHE", str(tmp_path / "cache"))

    def command(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command
