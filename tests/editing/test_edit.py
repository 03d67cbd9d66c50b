"""`edit` end to end on tiny models: the model is unchanged, the patch does what it was made for."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import acedit
from acedit.attribution.layers import measure
from acedit.attribution.plan import Plan
from acedit.editing import target
from acedit.editing.batch import Batch
from acedit.editing.edit import _primed, edit, ended, own_answers, swept
from acedit.editing.keys import keys_at
from acedit.editing.methods import Method, ace_letter, method, methods
from acedit.editing.patch import Patch, edits_on
from acedit.editing.rows import Rows
from acedit.editing.stages import Update, mean_by
from acedit.errors import UserError
from acedit.knowledge.compose import Composer, Prompt, asked
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.relations import mquake
from acedit.lm.model import LanguageModel
from acedit.world.cases import facts_of
from acedit.world.graph import build_world
from tests.tiny import tiny_lm

R = mquake()
EDITS = [Edit("Bo Ray", R["P27"], "Chile", "Peru"), Edit("Cy Doe", R["P27"], "Spain", "Peru")]
KNOWN = [
    Fact("Ann Lee", R["P26"], "Bo Ray"),
    Fact("Eve Fox", R["P26"], "Cy Doe"),
    Fact("Dan Low", R["P40"], "Bo Ray"),
    Fact("Chile", R["P36"], "Santiago"),
    Fact("Spain", R["P36"], "Madrid"),
    Fact("Peru", R["P36"], "Lima"),
    Fact("Bo Ray", R["P19"], "Lima"),
    Fact("Ann Lee", R["P27"], "Peru"),
]
PLAN = Plan((2,), (0,), (1,))


def weights(lm: LanguageModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in lm.model.parameters()]


def short(name: str) -> Method:
    """The method, with few gradient steps: random weights learn two facts in no time."""
    found = method(name)
    return replace(found, polish=found.polish and replace(found.polish, steps=15, passes=None))


def loss(lm: LanguageModel, patch: Patch) -> tuple[float, float]:
    """NLL of the first new object on the edit's own prompt, before and after."""
    prompt = [EDITS[0].prompt.format("Bo Ray")]
    token = lm.token_ids("Chile")[0]
    before = float(lm.logits(prompt).log_softmax(-1)[0, token])
    with patch.applied(lm):
        return -before, -float(lm.logits(prompt).log_softmax(-1)[0, token])


@pytest.mark.parametrize(
    "name", sorted(n for n, m in methods().items() if n not in ("base", "mend") and not m.reader)
)
def test_every_method_moves_the_model_towards_the_edit(name: str, tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    before = weights(lm)
    patch = edit(lm, EDITS, known=KNOWN, method=short(name), plan=PLAN, cache_dir=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights(lm), before, strict=True))
    # The value stage asks other prompts. On random weights a δ shared by several prompts may trade one
    # for another, PMET drops the half of it that attention carried, and facts have no neurons of their own
    # for KN; test_bundled.py holds them to the trained model.
    if name not in (
        "ace-value",
        "ace-closed",
        "ace-paper",
        "ace-paper-hops",
        "ifmet",
        "alphaedit",
        "pmet",
        "kn",
    ):
        was, now = loss(lm, patch)
        assert now < was - 0.1
    assert patch.method == name
    assert patch.edits == tuple(EDITS)
    again = edit(lm, EDITS, known=KNOWN, method=short(name), plan=PLAN, cache_dir=tmp_path)
    assert again.id == patch.id


def test_the_letter_takes_its_layers_from_the_scores_and_one_target_for_both_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("qwen3")
    table = measure(lm, EDITS, Composer(EDITS, KNOWN).prompts())
    top = max(range(lm.n_layers), key=lambda layer: table.value[layer])
    searches, ranked = [], []

    def search(*given: Any, **more: Any) -> Any:
        searches.append(given[2])
        return target.search(*given, **more)

    def query_layers(lm: LanguageModel, *_: Any) -> list[float]:
        ranked.append([edit.subject for edit in edits_on(lm)])
        return [float(layer == 1) for layer in range(lm.n_layers)]

    monkeypatch.setattr(ace_letter, "LAYERS", 1)
    monkeypatch.setattr(ace_letter, "search", search)
    monkeypatch.setattr(ace_letter, "_query_layers", query_layers)
    patch = edit(lm, EDITS, known=KNOWN, method="ace-paper-letter", cache_dir=tmp_path)
    assert {update.layer for update in patch.updates} == {top, 1}
    assert searches == [top]
    assert ranked == [[one.subject for one in EDITS]], "once, on the model as the first stage left it"
    assert not edits_on(lm)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2", "olmo2", "phi3"])
def test_ace_runs_on_every_shape_of_family(family: str, tmp_path: Path) -> None:
    lm = tiny_lm(family)
    patch = edit(lm, EDITS, known=KNOWN, method=short("ace"), plan=PLAN, cache_dir=tmp_path)
    was, now = loss(lm, patch)
    assert now < was - 0.1
    assert {u.layer for u in patch.updates} == {0, 1, 2}


def test_the_plan_is_found_where_none_is_given(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    patch = edit(lm, EDITS[:1], known=KNOWN, method="pmet", cache_dir=tmp_path)
    assert patch.plan["value_layers"]
    assert patch.plan["reason"]


def test_without_known_facts_it_says_so_and_does_what_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("acedit").propagate = True
    lm = tiny_lm("qwen3")
    patch = edit(lm, EDITS, method=short("ace"), plan=PLAN, cache_dir=tmp_path)
    assert "no known facts given" in caplog.text
    was, now = loss(lm, patch)
    assert now < was - 0.1


@pytest.mark.parametrize("name", ["rome", "memit", "pmet", "ifmet", "emmet", "ace-paper"])
def test_closed_forms_have_a_text_without_known_facts(name: str, tmp_path: Path) -> None:
    """Of one edit's own prompts C would have no inverse."""
    lm = tiny_lm("qwen3")
    patch = edit(lm, EDITS[:1], method=name, plan=PLAN, cache_dir=tmp_path)
    assert all(bool(u.delta().isfinite().all()) and float(u.delta().norm()) > 0 for u in patch.updates)


def test_an_edit_whose_wordings_all_score_it_is_refused(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    relation = replace(R["P27"], prompts=R["P27"].prompts[:1], questions=())
    one = Edit("Bo Ray", relation, "Chile", "Peru")
    said = one.prompt.format("Bo Ray")
    for name in ("ace", "memit", "kn"):
        with pytest.raises(UserError, match="every wording of the edit 'Bo Ray"):
            edit(lm, [one], known=KNOWN, method=name, plan=PLAN, cache_dir=tmp_path, avoid={said})


def test_an_edit_left_without_the_wording_its_method_takes_is_refused(tmp_path: Path) -> None:
    """`memit` says a fact in one wording only: another of its relation does not help."""
    lm = tiny_lm("qwen3")
    one = Edit("Bo Ray", R["P27"], "Chile", "Peru")
    avoid = {one.prompt.format("Bo Ray")}
    with pytest.raises(UserError, match="that the method takes is one that scores it"):
        edit(lm, [one], known=KNOWN, method="memit", plan=PLAN, cache_dir=tmp_path, avoid=avoid)
    assert edit(lm, [one], known=KNOWN, method=short("ace"), cache_dir=tmp_path, avoid=avoid).updates


def test_the_essence_of_a_subject_is_shown_and_holds_nothing_scored(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    seen: list[str] = []

    def written(avoid: set[str]) -> Patch:
        seen.clear()
        return edit(
            lm, EDITS[:1], known=KNOWN, method="memit", plan=PLAN, cache_dir=tmp_path, avoid=avoid,
            watch=lambda prompts: seen.extend(p.whole for p in prompts if p.template == "{} is a"),
        )  # fmt: skip

    written(set())
    (said,) = seen
    assert said.startswith("Bo Ray is a")
    written({said})
    assert not seen


def test_an_edit_that_comes_out_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3")
    broken = Update(1, torch.full((lm.d_model, 1), float("nan")), torch.zeros(1, lm.n_neurons))
    monkeypatch.setattr("acedit.editing.edit.polish", lambda *_, **__: [broken])
    with pytest.raises(UserError, match="layer 1: the edit came out NaN"):
        edit(lm, EDITS, known=KNOWN, method=short("lora"), plan=PLAN, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["ace", "memit", "kn"])
def test_weights_that_are_not_finite_are_named(name: str, tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    lm.down_weight(1).data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"layer 1: .*down_proj\.weight holds NaN or infinite weights"):
        edit(lm, EDITS, known=KNOWN, method=short(name), plan=PLAN, cache_dir=tmp_path)


def test_the_model_is_unchanged_when_it_raises(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    before = weights(lm)

    def stop(text: str) -> None:
        if "polishing" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit(lm, EDITS, known=KNOWN, method=short("ace"), plan=PLAN, cache_dir=tmp_path, progress=stop)
    assert all(torch.equal(a, b) for a, b in zip(weights(lm), before, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    with pytest.raises(UserError, match="no edits"):
        edit(lm, [], plan=PLAN)
    other = Edit("Bo Ray", R["P27"], "Spain", "Peru")
    with pytest.raises(UserError, match="contradict"):
        edit(lm, [EDITS[0], other], plan=PLAN)
    with pytest.raises(UserError, match=r"unknown method.*ace"):
        edit(lm, EDITS, method="nope", plan=PLAN)
    with pytest.raises(UserError, match="layers 0 to"):
        edit(lm, EDITS, plan=Plan((99,), (0,)), cache_dir=tmp_path)
    long = Edit("Bo Ray " * 200, R["P27"], "Chile")
    with pytest.raises(UserError, match="context"):
        edit(lm, [long], plan=PLAN, cache_dir=tmp_path)


@pytest.mark.parametrize("name", [n for n, m in sorted(methods().items()) if m.stages])
def test_every_stage_is_written(name: str, tmp_path: Path) -> None:
    """No stage goes without prompts: each of the plan's layers that a stage names is in the patch.

    But for the middle ones: a random model believes nothing that follows from a new object.
    """
    lm = tiny_lm("qwen3")
    patch = edit(lm, EDITS, known=KNOWN, method=name, plan=PLAN, cache_dir=tmp_path)
    named = {stage.where for stage in method(name).stages} - {"middle"}
    wanted = {layer for where in named for layer in getattr(PLAN, f"{where}_layers")}
    assert {u.layer for u in patch.updates if u.left.norm() > 0} == wanted


@pytest.mark.parametrize("name", ["pmet", "emmet", "alphaedit"])
def test_a_short_text_is_enough_or_says_so(name: str, tmp_path: Path) -> None:
    """The covariance of a sentence spans few keys; an edit, or one clear line."""
    lm = tiny_lm("qwen3", intermediate_size=400)
    try:
        edit(lm, EDITS[:1], method=name, plan=PLAN, cache_dir=tmp_path, text=["Lima is by the sea."])
    except UserError as error:
        assert "\n" not in str(error)


def test_alphaedit_spares_what_earlier_patches_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3")

    def second() -> Patch:
        return edit(lm, EDITS[1:], known=KNOWN, method="alphaedit", plan=PLAN, cache_dir=tmp_path)

    first = edit(lm, EDITS[:1], known=KNOWN, method="alphaedit", plan=PLAN, cache_dir=tmp_path)
    layer = first.updates[0].layer
    with first.applied(lm):
        row = Batch.of(lm, [Prompt(EDITS[0].prompt, EDITS[0].subject, EDITS[0].target, "single", 0)])
        key, _ = keys_at(lm, row.encoded, layer, row.subject)
        careful = second().updates[0]
        again = edit(lm, EDITS[:1], known=KNOWN, method="alphaedit", plan=PLAN, cache_dir=tmp_path).updates[0]
        monkeypatch.setattr("acedit.editing.preserve.edits_on", lambda _: [])
        careless = second().updates[0]
        same = edit(lm, EDITS[:1], known=KNOWN, method="alphaedit", plan=PLAN, cache_dir=tmp_path).updates[0]
    moved = {
        name: float((u.delta() @ key[0]).norm()) for name, u in (("with", careful), ("without", careless))
    }
    assert moved["with"] < moved["without"]
    # What is edited anew is not spared.
    torch.testing.assert_close(again.delta(), same.delta())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ace_on_a_wide_model_leaves_few_columns(dtype: torch.dtype, tmp_path: Path) -> None:
    """Where d_model is over the columns, as on real models: a patch and an adapter of that rank."""
    lm = tiny_lm("qwen3", dtype=dtype)
    whole = short("ace")
    assert whole.polish is not None
    wide = replace(whole, polish=replace(whole.polish, columns=8, lr=3e-3))
    patch = edit(lm, EDITS, known=KNOWN, method=wide, cache_dir=tmp_path)
    assert {update.left.shape[1] for update in patch.updates} == {8}
    was, now = loss(lm, patch)
    assert now < was - 0.1
    if dtype == torch.float32:
        narrow = edit(lm, EDITS, known=KNOWN, method=wide.narrowed(2), cache_dir=tmp_path)
        assert {update.left.shape[1] for update in narrow.updates} == {2}


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_a_patched_model_can_be_edited_further(name: str, tmp_path: Path) -> None:
    """Layers are chosen on the model as it stands; what needs the unedited one takes its patches off."""
    lm = tiny_lm("qwen3")
    free = replace(method(name), ridge=0.0)  # of a text so short the ridge is most of what is preserved
    first = edit(lm, EDITS[:1], known=KNOWN, method=free, cache_dir=tmp_path)
    before = {layer: lm.down_weight(layer).clone() for layer in range(lm.n_layers)}
    with first.applied(lm):
        second = edit(lm, EDITS[1:], known=KNOWN, method=free, cache_dir=tmp_path)
        own = lm.token_ids(EDITS[1].target)[0]
        asked = [EDITS[1].prompt.format(EDITS[1].subject)]
        now = lm.logits(asked).log_softmax(-1)[0, own]
        with second.applied(lm):
            assert lm.logits(asked).log_softmax(-1)[0, own] > now
    assert all(torch.equal(weight, lm.down_weight(layer)) for layer, weight in before.items())


def test_an_edit_beside_others_says_them_again_and_holds_the_rest_to_the_unedited_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("qwen3")
    first = edit(lm, EDITS[:1], known=KNOWN, method=short("ace"), cache_dir=tmp_path)
    shown: list[Prompt] = []
    bases: list[bool] = []
    base = weights(lm)
    built = Rows.__init__

    def seen(self: Rows, of: LanguageModel, *prompts: Sequence[Prompt]) -> None:
        bases.append(all(torch.equal(a, b) for a, b in zip(base, weights(of), strict=True)))
        built(self, of, *prompts)

    monkeypatch.setattr(Rows, "__init__", seen)
    with first.applied(lm):
        edited = weights(lm)
        second = edit(lm, EDITS[1:], known=KNOWN, method=short("ace"), cache_dir=tmp_path, watch=shown.extend)
        assert all(torch.equal(a, b) for a, b in zip(edited, weights(lm), strict=True))
    assert bases == [True], "what is held is held to the model below the patches"
    again = [p for p in shown if p.edit == -1 and p.kind != "replay"]
    assert {p.answer for p in again if p.kind in ("single", "lead")} == {"Chile"}
    assert not [p for p in shown if p.subject == "Bo Ray" and p.answer == "Peru"]
    assert [edit.subject for edit in second.edits] == ["Cy Doe"]
    plain: list[Prompt] = []
    with first.applied(lm):
        edit(lm, EDITS[1:], known=KNOWN, method=short("ft"), cache_dir=tmp_path, watch=plain.extend)
    assert {p.edit for p in plain} == {0}, "a baseline that replays nothing goes by its own prompt"


def test_rome_is_emmet_for_one_fact(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    rome, emmet = (
        edit(lm, EDITS[:1], known=KNOWN, method=name, plan=PLAN, cache_dir=tmp_path)
        for name in ("rome", "emmet")
    )
    for a, b in zip(rome.updates, emmet.updates, strict=True):
        torch.testing.assert_close(a.left @ a.right, b.left @ b.right)
    both = [
        edit(lm, EDITS, known=KNOWN, method=name, plan=PLAN, cache_dir=tmp_path).updates[0].delta()
        for name in ("rome", "emmet")
    ]
    assert not torch.allclose(*both, atol=1e-3), (
        "of two facts ROME's second v* is searched after the first write"
    )


@pytest.mark.parametrize(("name", "exact"), [("emmet", True), ("memit", False)])
def test_with_an_equality_in_the_stream_is_where_it_was_aimed(
    name: str, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W'k = Wk + r with the patch on (Gupta et al. 2024, Eq. 8), where MEMIT makes a compromise with C."""
    lm = tiny_lm("qwen3", dtype=torch.float64)
    kept: list[Any] = []

    def recorded(lm: LanguageModel, writings: Any, *given: Any) -> Any:
        kept.extend(writing.aimed(lm) for writing in writings)
        return swept(lm, writings, *given)

    monkeypatch.setattr("acedit.editing.edit.swept", recorded)
    plan = Plan((2,), (0,))
    patch = edit(
        lm, EDITS, known=KNOWN, method=replace(method(name), lam=10.0), plan=plan, cache_dir=tmp_path
    )
    (writing,) = kept
    assert writing.aim is not None
    layer, goals = writing.aim
    with patch.applied(lm):
        now = [keys_at(lm, b.encoded, layer, b.positions(writing.stage.token))[1] for b in writing.batches]
    edits = torch.cat([b.edits() for b in writing.batches])
    means = [mean_by(edits, torch.cat(rows).double()) for rows in (goals, now)]
    assert torch.allclose(*means, atol=1e-4) is exact


def test_a_method_says_what_it_is() -> None:
    for name in methods():
        assert method(name).summary


def test_skipped_layers_are_the_most_important_ones(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    scores = {"value": [1.0, 3.0, 2.0], "query": [5.0, 1.0, 2.0], "reach": [0.0] * 3}
    plan = Plan((1, 2), (0,), scores=scores)

    def layers(chosen: Method) -> set[int]:
        patch = edit(lm, EDITS, known=KNOWN, method=chosen, plan=plan, cache_dir=tmp_path)
        return {u.layer for u in patch.updates}

    assert layers(short("ace")) == {0, 1, 2}
    assert layers(short("ace").skipping(value=1)) == {0, 2}
    assert layers(short("ace").skipping(query=1, value=1)) == {2}
    assert layers(short("ace-closed").skipping(value=1)) == {0, 2}
    assert layers(short("ace-closed").skipping(query=1)) == {1, 2}
    with pytest.raises(UserError, match="has no layer to write"):
        layers(method("memit").skipping(query=1))
    with pytest.raises(UserError, match="has no layer to write"):
        layers(short("ft").skipping(query=1))
    with pytest.raises(UserError, match="no layers of its own"):
        method("kn").skipping(query=1)
    for name in ("memit", "ft", "alphaedit"):
        with pytest.raises(UserError, match="writes no value layers"):
            method(name).skipping(value=1)
    with pytest.raises(UserError, match="no edit prompts to prime"):
        method("ike").with_cot_prompts()


def test_primed_prompts_need_room_for_the_shots(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shots of G\.1"):
        edit(tiny_lm("qwen3"), EDITS, known=KNOWN, method=method("memit").with_cot_prompts(), plan=PLAN)
    lm = tiny_lm("qwen3", max_position_embeddings=2048)
    for name in ("lora", "memit"):
        plain = edit(lm, EDITS, known=KNOWN, method=short(name), plan=PLAN, cache_dir=tmp_path)
        primed = edit(
            lm, EDITS, known=KNOWN, method=short(name).with_cot_prompts(), plan=PLAN, cache_dir=tmp_path
        )
        assert primed.method == f"{name}-cot"
        pairs = zip(plain.updates, primed.updates, strict=True)
        assert any(not torch.allclose(a.delta(), b.delta()) for a, b in pairs), name


def test_an_edit_without_questions_is_primed_by_its_own_prompt() -> None:
    lm = tiny_lm("qwen3", max_position_embeddings=2048)
    silent = Prompt("{} is a citizen of", "Bo Ray", "Chile", "single", 0)
    told = Prompt("{} was born in", "Cy Doe", "Lima", "single", 1)
    aloud = replace(told, template="Question: Where was Cy Doe born?\nThoughts: {} was born in")
    primed = _primed(lm, [silent, replace(silent, template="{} lives in"), told, aloud])
    assert [p.edit for p in primed] == [1, 0]
    assert primed[0].text.endswith(aloud.text)
    asks = "\n\nQuestion: Bo Ray is a citizen of\nThoughts: Bo Ray is a citizen of"
    assert primed[1].text.endswith(asks)
    assert primed[1].template.count("{}") == 1


def test_every_closed_form_takes_a_batch_in_any_order(tmp_path: Path) -> None:
    """Δ of two edits is Δ of the same two the other way round; ROME writes one after the other."""
    lm = tiny_lm("qwen3")
    for name in ("memit", "pmet", "emmet", "alphaedit", "ace-closed", "ace-paper"):
        one, other = (
            edit(lm, some, known=KNOWN, method=short(name), plan=PLAN, cache_dir=tmp_path)
            for some in (EDITS, EDITS[::-1])
        )
        for a, b in zip(one.updates, other.updates, strict=True):
            size = a.delta().abs().max()
            assert (a.delta() - b.delta()).abs().max() < 1e-3 * size, name


def test_held_prompts_take_the_modelsown_answers(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    prompts = [Prompt("{} plays", "Bo Ray", "", "hold", 0), Prompt("{} is", "Bo Ray", "Peru", "single", 0)]
    said = lm.generate(["Bo Ray plays"], max_new_tokens=12)[0].strip()
    single, held = own_answers(lm, prompts)
    assert single == prompts[1]
    assert held.answer == said


def test_answers_are_ended_as_the_model_ends_what_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cloze by a full stop, a question by a line's end; by nothing where known answers end in many ways."""
    bundled = acedit.load("bundled", dtype=torch.float32)
    facts = [f for f in facts_of(build_world(), []) if f.relation.id == "P36" and f.relation.questions][:20]
    replay = [Prompt(f.prompt, f.subject, f.object, "replay") for f in facts]
    replay += [Prompt(asked(f.relation.questions[0]), f.subject, f.object, "replay") for f in facts]
    new = [
        Prompt("The capital of {} is", "Peru", "Abomey", "single", 0),
        Prompt("Question: What is the capital of {}?\nAnswer:", "Peru", "Abomey", "single", 0),
        Prompt("Question: Where?\nThoughts: The capital of {} is", "Peru", "Abomey", "single", 0),
    ]

    def ends(held: list[Prompt]) -> list[str]:
        return ["" if p.end is None else bundled.tokenizer.decode([p.end]) for p in ended(bundled, new, held)]

    assert ends(replay) == [".", "\n", "."]
    assert ends(replay[:20]) == [".", "", "."]
    assert ends([]) == ["", "", ""]
    monkeypatch.setattr("acedit.editing.edit.ALIKE", 1.01)
    assert ends(replay) == ["", "", ""]
