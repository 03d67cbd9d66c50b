"""MEND's hyper-network: it learns, it is kept, and it serves one checkpoint."""

from pathlib import Path

import pytest
import torch

from acedit.editing import hyper
from acedit.editing.batch import split
from acedit.editing.edit import edit
from acedit.editing.hyper import HyperEditor, HyperSettings
from acedit.editing.methods import method
from acedit.errors import UserError
from acedit.knowledge.compose import Prompt
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.relations import mquake
from tests.tiny import tiny_lm

R = mquake()
KNOWN = [Fact(f"Person {i}", R["P27"], ("Peru", "Chile", "Norway")[i % 3]) for i in range(24)]
EDIT = Edit("Bo Ray", R["P27"], "Chile", "Peru")
SHORT = HyperSettings(layers=2, rank=8, steps=12, edits=2)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "opt", "gptj", "gemma2", "phi3"])
def test_pairs_make_the_gradient_of_the_down_projection(family: str) -> None:
    lm = tiny_lm(family)
    prompts = [Prompt(t, "Bo Ray", "Chile", "single", 0) for t in ("{} is a citizen of", "Where is {} from?")]
    layer = lm.n_layers - 1
    batches = split(lm, prompts)
    read, grad = hyper.pairs_of(lm, batches, [layer])[layer]
    weight = lm.down_weight(layer).requires_grad_(True)
    loss = torch.zeros(())
    for batch in batches:
        logits = lm.head_logits(batch.at_answers(lm.run_backbone(batch.encoded)))
        loss = loss + batch.nll(logits).sum() / len(prompts)
    (wanted,) = torch.autograd.grad(loss, weight)
    weight.requires_grad_(False)
    ours = grad.T @ read
    torch.testing.assert_close(ours.T if lm.family.conv1d else ours, wanted, atol=1e-6, rtol=1e-4)


def test_an_untrained_editor_takes_a_gradient_step() -> None:
    lm = tiny_lm("qwen3")
    editor = HyperEditor(lm.n_neurons, lm.d_model, [1], rank=4, edits=8)
    read, grad = torch.randn(5, lm.n_neurons), torch.randn(5, lm.d_model)
    step = editor.delta(0, read, grad)
    torch.testing.assert_close(step, -editor.rate[0].exp() * grad.T @ read)


def test_more_edits_than_it_was_trained_on_are_written_in_lots() -> None:
    lm = tiny_lm("qwen3")
    prompts = [Prompt("{} is a citizen of", f"Person {i}", "Chile", "single", i) for i in range(5)]
    editor = HyperEditor(lm.n_neurons, lm.d_model, [1], rank=4, edits=2)
    (whole,) = editor.updates(lm, prompts)
    lots = [editor.updates(lm, prompts[at : at + 2])[0].delta for at in (0, 2, 4)]
    torch.testing.assert_close(whole.delta, sum(lots))


def test_training_lowers_what_it_is_trained_on() -> None:
    lm = tiny_lm("qwen3")
    said: list[str] = []
    weights = [p.clone() for p in lm.model.parameters()]
    hyper.train(lm, KNOWN, HyperSettings(layers=2, rank=8, steps=200, edits=2, lr=1e-2), say=said.append)
    first, last = (float(line.split("edits ")[1].split()[0]) for line in said)
    assert last < first - 0.1
    assert all(torch.equal(a, b) for a, b in zip(weights, lm.model.parameters(), strict=True))


def test_an_editor_is_kept_for_its_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEDIT_CACHE", str(tmp_path))
    lm = tiny_lm("qwen3")
    with pytest.raises(UserError, match="acedit mend"):
        edit(lm, [EDIT], method="mend", known=KNOWN)
    editor = hyper.train(lm, KNOWN, SHORT)
    assert method("mend").state(lm.fingerprint) == ""
    hyper.save(editor, hyper.cached(lm.fingerprint), [lm.fingerprint])
    patch = edit(lm, [EDIT], method="mend", known=KNOWN)
    assert {u.layer for u in patch.updates} == set(editor.layers)
    assert patch.id == edit(lm, [EDIT], method="mend", known=KNOWN).id
    with pytest.raises(UserError, match="acedit mend"):
        hyper.load(tiny_lm("llama"), [hyper.cached(lm.fingerprint)])
    state = method("mend").state(lm.fingerprint)
    with torch.no_grad():
        next(editor.parameters()).add_(1.0)
    hyper.save(editor, hyper.cached(lm.fingerprint), [lm.fingerprint])
    assert "" != method("mend").state(lm.fingerprint) != state != ""
    assert method("ace").state(lm.fingerprint) == ""
    hyper.save(replace_rank(editor), hyper.cached(lm.fingerprint), [lm.fingerprint])
    with pytest.raises(UserError, match="is no whole hyper-network"):
        hyper.load(lm)
    hyper.cached(lm.fingerprint).write_bytes(b"cut short")
    with pytest.raises(UserError, match="acedit mend"):
        hyper.load(lm)


def replace_rank(editor: HyperEditor) -> HyperEditor:
    """The editor with a map of another size than its file will say."""
    inner = editor.inner
    inner.up = torch.nn.Parameter(inner.up[:, :-1])
    return editor


def test_facts_that_cannot_be_edited_are_refused() -> None:
    with pytest.raises(UserError, match="--facts"):
        hyper.train(tiny_lm("qwen3"), KNOWN[:1], SHORT)
