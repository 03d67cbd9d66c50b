"""Training: an interrupted run goes on as if it had never stopped, and threads share a step."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from acedit.errors import UserError
from acedit.lm.loading import load
from acedit.world.corpus import Corpus
from acedit.world.tokenizer import train_tokenizer
from acedit.world.train import (
    SHAPES,
    Settings,
    Steps,
    _as_it_is,
    build_model,
    documents,
    keep_freed_memory,
    learner,
    micro_batches,
    tie,
    tokenized,
    train,
    untie,
)
from tests.world.small import small_world

SMALL = Settings(
    steps=4,
    tokens_per_step=500,
    d_model=32,
    layers=4,
    loops=2,
    n_neurons=32,
    heads=2,
    kv_heads=1,
    vocab_size=320,
    warmup=2,
    long_every=100,
    four_hop=0.3,
    cut_share=0.5,
    strangers=0.3,
)


class _Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def _in_a_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acedit.world.train.build_world", small_world)


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", SMALL, say=lambda _: None, workers=1)

    def stop(line: str) -> None:
        if line.startswith("step 4/4"):
            raise _Stopped

    with pytest.raises(_Stopped):
        train(tmp_path / "half", SMALL, say=stop, save_every=2, workers=1)
    said: list[str] = []
    half = train(tmp_path / "half", SMALL, say=said.append, save_every=2, workers=1)
    assert "resuming at step 2" in said
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, half))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.isfinite(load(half).logits(["Question: who"])).all()


def test_a_run_of_other_settings_is_left_alone(tmp_path: Path) -> None:
    train(tmp_path, SMALL, say=lambda _: None, save_every=2, workers=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for other, said in (
        (replace(SMALL, seed=1), "seed 0, not 1"),
        (replace(SMALL, steps=9), "steps 4, not 9"),
    ):
        with pytest.raises(
            UserError,
            match=f"holds a run with {said}; choose another --out, or remove its resume.safetensors",
        ):
            train(tmp_path, other, say=lambda _: None, workers=1)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "resume.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="is cut short or altered"):
        train(tmp_path, SMALL, say=lambda _: None, workers=1)


def test_begins_with_the_weights_of_another_run(tmp_path: Path) -> None:
    """Of one step at a rate of nothing: what comes out is what went in, under the same tokenizer."""
    before = train(tmp_path / "before", SMALL, say=lambda _: None, workers=1)
    still = replace(SMALL, seed=7, steps=1, muon_lr=0.0, adam_lr=0.0)
    after = train(tmp_path / "after", still, say=lambda _: None, workers=1, start=before)
    a, b = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert all(torch.equal(a[name], b[name]) for name in a)
    files = [(folder / "tokenizer.json").read_text() for folder in (before, after)]
    assert files[0] == files[1]
    moved = train(
        tmp_path / "moved", replace(still, muon_lr=0.1), say=lambda _: None, workers=1, start=before
    )
    assert not all(torch.equal(load_file(moved / "model.safetensors")[name], a[name]) for name in a)


def test_a_start_of_another_shape_or_none_leaves_nothing(tmp_path: Path) -> None:
    before = train(tmp_path / "before", SMALL, say=lambda _: None, workers=1)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(before / "resume.safetensors", bare)
    for start, out, settings, said in (
        (tmp_path / "nowhere", "out", SMALL, "nowhere: holds no resume.safetensors; --start takes a folder"),
        (bare, "out", SMALL, "bare: holds no tokenizer.json"),
        (before, "out", replace(SMALL, n_neurons=16), "before: has n_neurons 32, not 16; start from another"),
        (before, "out", replace(SMALL, family="llama"), "before: has family qwen3, not llama"),
        (bare, "bare/../bare", replace(SMALL, seed=4), "holds a run with seed 0, not 4"),
        (tmp_path / "same", "same", SMALL, "same: is where the run is to go"),
    ):
        with pytest.raises(UserError, match=said):
            train(tmp_path / out, settings, say=lambda _: None, workers=1, start=start)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on_from_the_start_it_had(tmp_path: Path) -> None:
    """Also when that is gone meanwhile; from another or none it is refused."""
    before = train(tmp_path / "before", SMALL, say=lambda _: None, workers=1)

    def stop(line: str) -> None:
        if line.startswith("step 4/4"):
            raise _Stopped

    more = replace(SMALL, seed=7)
    whole = train(tmp_path / "whole", more, say=lambda _: None, workers=1, start=before)
    with pytest.raises(_Stopped):
        train(tmp_path / "half", more, say=stop, save_every=2, workers=1, start=before)
    shutil.rmtree(before)
    for other, said in ((None, "with start before, not None"), (whole, "with start before, not whole")):
        with pytest.raises(UserError, match=f"holds a run {said}; .* remove its resume.safetensors"):
            train(tmp_path / "half", more, say=lambda _: None, workers=1, start=other)
    half = train(tmp_path / "half", more, say=lambda _: None, workers=1, start=before)
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, half))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_leaves_nothing(tmp_path: Path, device: str) -> None:
    with pytest.raises(UserError, match=f"device '{device}' is not there: "):
        train(tmp_path / "out", SMALL, say=lambda _: None, device=device)
    assert not (tmp_path / "out").exists()


def test_threads_share_a_step() -> None:
    """Loss and gradients of two workers are those of one, to rounding; the thread count is put back."""
    world = small_world()
    corpus = Corpus(world, 0, SMALL.strangers)
    docs = documents(corpus, replace(SMALL, tokens_per_step=4000), 3)
    batches = list(micro_batches(tokenized(train_tokenizer([doc.text for doc in docs], 320, 2048), docs)))
    model = build_model(SMALL, 320)
    tie(model, SMALL.loops)
    threads = torch.get_num_threads()
    found = []
    for workers in (1, 2):
        with learner(model, workers) as learn:
            loss = learn(batches)
        found.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert torch.get_num_threads() == threads
    (one, a), (two, b) = found
    assert len(a) == len(list(model.parameters()))
    assert one == pytest.approx(two, rel=1e-5)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)
    assert max(x.abs().max() for x in a) > 0


def test_a_step_is_the_same_whoever_makes_it_ready() -> None:
    """In order here, out of order in two processes beside."""
    corpus = Corpus(small_world(), 0, SMALL.strangers)
    docs = documents(corpus, SMALL, 0)
    steps = Steps(corpus, train_tokenizer([doc.text for doc in docs], 320, 2048), SMALL, 200)
    beside = DataLoader(steps, batch_size=None, sampler=[3, 1], num_workers=2, collate_fn=_as_it_is)
    for step, made in zip((3, 1), beside, strict=True):
        assert made.tokens == steps[step].tokens > 400
        for ours, theirs in zip(steps[step].batches, made.batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert ours[0].numel() <= 200 or len(ours[0]) == 1


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()


def test_tied_layers_become_their_own() -> None:
    model = build_model(SMALL, 320)
    tie(model, SMALL.loops)
    layers = model.model.layers
    assert layers[2].mlp.up_proj.weight is layers[0].mlp.up_proj.weight
    untie(model)
    assert layers[2].mlp.up_proj.weight is not layers[0].mlp.up_proj.weight
    assert torch.equal(layers[2].mlp.up_proj.weight, layers[0].mlp.up_proj.weight)


def test_the_mixture_gives_four_hops_their_share_where_they_are_taught() -> None:
    world = small_world()
    for settings, least, most in (
        (SHAPES["broad"], 0.08, 0.2),
        (SHAPES["bundled"], 0.0, 0.0),
        (SHAPES["llama"], 0.0, 0.0),
    ):
        corpus = Corpus(world, 0, settings.strangers)
        asked: list[str] = []
        draw = corpus.draw
        corpus.draw = lambda kind, draw=draw, asked=asked: (asked.append(kind), draw(kind))[1]  # type: ignore[assignment,method-assign]
        docs = documents(corpus, settings, settings.steps - 1)
        share = asked.count("four_hop") / len(asked)
        assert least <= share <= most
        assert any(doc.cuts for doc in docs) == (settings.cut_share > 0)
