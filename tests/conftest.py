"""Fixtures every room's tests share: tiny random models, one small tokenizer, no network."""

import os

# Before transformers is imported: nothing may reach for the hub, and progress bars are noise.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from acedit.lm.families import FAMILIES
from acedit.lm.model import LanguageModel
from tests.tiny import tiny_lm


@pytest.fixture(autouse=True, scope="session")
def _one_thread_a_worker() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


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
