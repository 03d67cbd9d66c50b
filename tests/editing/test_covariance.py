"""C = E[k kᵀ]: one pass equals the textbook, and the cache is keyed by everything that matters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from acedit.editing import covariance
from acedit.editing.covariance import covariances
from acedit.editing.patch import LayerUpdate, Patch, place_of
from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from acedit.lm.trace import trace
from tests.tiny import tiny_lm

TEXTS = ["Ann Lee is a citizen of Peru.", "Who is Bo Ray?", "The capital of Peru is Lima. " * 4]


def textbook(lm: LanguageModel, layer: int, width: int) -> torch.Tensor:
    total, n = torch.zeros(lm.n_neurons, lm.n_neurons, dtype=torch.float64), 0
    for text in TEXTS:
        ids = lm.tokenizer(text)["input_ids"]
        for at in range(0, len(ids), width):
            window = lm.tokenizer.decode(ids[at : at + width])
            assert lm.tokenizer(window)["input_ids"] == ids[at : at + width]
            k = trace(lm, [window]).coefficients[layer, 0].double()
            total, n = total + k.T @ k, n + len(k)
    return total / n


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen3", "gemma2"])
def test_one_pass_is_the_textbook_s(name: str, tmp_path: Path) -> None:
    lm = tiny_lm(name)
    found = covariances(lm, TEXTS, [0, 2], window_tokens=500, batch_windows=2, cache_dir=tmp_path)
    for layer in (0, 2):
        assert torch.allclose(found[layer].double(), textbook(lm, layer, 500), rtol=1e-3, atol=1e-6)


def test_the_second_time_the_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3")
    first = covariances(lm, TEXTS, [0, 1], cache_dir=tmp_path)
    monkeypatch.setattr(LanguageModel, "run_backbone", lambda *_: pytest.fail("ran the model"))
    again = covariances(lm, TEXTS, [1, 0], cache_dir=tmp_path)
    assert all(torch.equal(first[layer], again[layer]) for layer in (0, 1))


def test_the_key_holds_everything(tmp_path: Path) -> None:
    def files() -> int:
        return len(list((tmp_path / "covariance").iterdir()))

    covariances(tiny_lm("qwen3"), TEXTS, [0], cache_dir=tmp_path)
    assert files() == 1
    covariances(tiny_lm("qwen3"), TEXTS, [0], cache_dir=tmp_path)
    assert files() == 1
    for n, change in enumerate(
        (
            lambda: covariances(tiny_lm("qwen3", seed=1), TEXTS, [0], cache_dir=tmp_path),
            lambda: covariances(tiny_lm("qwen3"), TEXTS[:2], [0], cache_dir=tmp_path),
            lambda: covariances(tiny_lm("qwen3"), TEXTS, [1], cache_dir=tmp_path),
            lambda: covariances(tiny_lm("qwen3"), TEXTS, [0], window_tokens=7, cache_dir=tmp_path),
            lambda: covariances(tiny_lm("qwen3"), TEXTS, [0], windows=1, cache_dir=tmp_path),
            lambda: covariances(tiny_lm("qwen3", dtype=torch.bfloat16), TEXTS, [0], cache_dir=tmp_path),
        ),
        start=2,
    ):
        change()
        assert files() == n


def test_an_interruption_leaves_no_broken_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        covariances(lm, TEXTS, [0], batch_windows=1, cache_dir=tmp_path, progress=stop)
    assert not list(tmp_path.rglob("*.*"))
    covariances(lm, TEXTS, [0], cache_dir=tmp_path)
    (kept,) = (tmp_path / "covariance").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert covariances(lm, TEXTS, [0], cache_dir=tmp_path)[0].shape == (lm.n_neurons, lm.n_neurons)


def test_patches_come_off_while_it_is_taken(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    update = LayerUpdate(0, torch.ones(lm.d_model, 1), torch.ones(1, lm.n_neurons))
    patch = Patch((update,), (), {}, "ace", {}, 0, lm.fingerprint, place_of(lm, [0]))
    with patch.applied(lm):
        edited = lm.down_weight(0).detach().clone()
        found = covariances(lm, TEXTS, [1], cache_dir=tmp_path / "on")[1]
        assert torch.equal(lm.down_weight(0), edited)
    assert not torch.equal(lm.down_weight(0), edited)
    assert torch.equal(found, covariances(lm, TEXTS, [1], cache_dir=tmp_path / "off")[1])
    with pytest.raises(UserError, match="no tokens"):
        covariances(lm, [""], [0], cache_dir=tmp_path)


def test_layers_whose_sums_do_not_fit_together_are_read_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("qwen3")
    whole = covariances(lm, TEXTS, [0, 1, 2], cache_dir=tmp_path / "whole")
    read: list[tuple[int, ...]] = []
    sums = covariance._sums

    def counted(lm: LanguageModel, rows: Any, layers: Sequence[int], *more: Any) -> dict[int, torch.Tensor]:
        read.append(tuple(layers))
        return sums(lm, rows, layers, *more)

    monkeypatch.setattr(covariance, "_sums", counted)
    monkeypatch.setattr(covariance, "ROOM", 2 * 12 * lm.n_neurons**2)
    found = covariances(lm, TEXTS, [0, 1, 2], cache_dir=tmp_path / "parts")
    assert read == [(0, 1), (2,)]
    assert all(torch.equal(whole[layer], found[layer]) for layer in whole)
