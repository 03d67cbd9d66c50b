"""The command line end to end on a tiny random model, and every way to give it bad input."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from acedit.benchmark.leak import starts
from acedit.cli import _parser, main
from acedit.commands.common import Progress
from acedit.editing.edit import _notice_known
from acedit.editing.patch import LayerUpdate, Patch, place_of
from acedit.errors import UserError
from acedit.knowledge.facts import Edit, Fact, read_cases
from acedit.knowledge.relations import Relation
from acedit.lm.loading import load
from acedit.lm.model import LanguageModel
from acedit.world.cases import make_cases
from acedit.world.graph import build_world
from acedit.world.train import SHAPES
from tests.conftest import Run
from tests.tiny import byte_tokenizer, tiny_model

RELATIONS = {
    "citizen": {
        "prompts": ["{} is a citizen of"],
        "questions": ["Which country is {} a citizen of?"],
        "phrase": "the country of citizenship of {}",
    },
    "capital": {
        "prompts": ["The capital of {} is"],
        "questions": ["What is the capital of {}?"],
        "phrase": "the capital of {}",
    },
    "boss": {
        "prompts": ["The boss of {} is"],
        "questions": ["Who is the boss of {}?"],
        "phrase": "the boss of {}",
    },
}
FACTS = [
    {"subject": "Ann Lee", "relation": "citizen", "object": "Peru"},
    {"subject": "Peru", "relation": "capital", "object": "Lima"},
    {"subject": "Chile", "relation": "capital", "object": "Santiago"},
    {"subject": "Ann Lee", "relation": "boss", "object": "Bo Ray"},
    {"subject": "Malmö", "relation": "boss", "object": "Ann Lee"},
]
EDITS = [{"subject": "Bo Ray", "relation": "citizen", "target": "Chile", "old": "Peru"}]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3 with room for the few-shot prompt, as a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("qwen3", max_position_embeddings=2048).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def short_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny model, with a context of 128 tokens."""
    folder = tmp_path_factory.mktemp("models") / "short"
    tiny_model("qwen3", seed=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEDIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """One command that must end in exit code 2 and one line; the line."""

    def command(*args: object) -> str:
        code, _, err = run(*args, *([] if "--quiet" in args else ["--quiet"]))
        assert code == 2, err
        assert err.startswith("acedit: ") and err.count("\n") == 1, err
        return err

    return command


@pytest.fixture
def edits_file(tmp_path: Path) -> Path:
    return written(tmp_path / "edits.json", {"relations": RELATIONS, "facts": FACTS, "edits": EDITS})


def written(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return path


def patch_for(lm: LanguageModel, method: str = "ace") -> Patch:
    left = 0.5 * torch.randn(lm.d_model, 2)
    right = torch.randn(2, lm.n_neurons)
    edit = Edit("Bo Ray", Relation("citizen", ("{} is a citizen of",)), "Chile", "Peru")
    return Patch(
        updates=(LayerUpdate(1, left, right),),
        edits=(edit,),
        plan={"value_layers": [1]},
        method=method,
        settings={},
        seed=0,
        fingerprint=lm.fingerprint,
        place=place_of(lm, [1]),
    )


@pytest.fixture
def patch_dir(model_dir: Path, tmp_path: Path) -> Path:
    return patch_for(load(model_dir)).save(tmp_path / "patch")


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# The main path


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; from acedit.cli import main; rc = main(['--help']); "
        "assert 'torch' not in sys.modules; sys.exit(rc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "locate", "edit", "ask", "evaluate", "patch", "world"):
        assert command in done.stdout


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, "acedit 0.1.0\n")


def test_ask_with_and_without_patch(run: Run, model_dir: Path, patch_dir: Path, tmp_path: Path) -> None:
    question = "Which country is Bo Ray a citizen of?"
    out = tmp_path / "ask.json"
    code, plain, err = run("ask", model_dir, question, "--json", out)
    assert (code, err) == (0, "")
    said = json.loads(out.read_text("utf-8"))
    assert (said["schema"], said["command"], said["answer"]) == (1, "ask", plain.rstrip("\n"))
    code, edited, _ = run("ask", model_dir, question, "--patch", patch_dir)
    assert code == 0 and edited != plain


def test_a_page_draws_as_many_facts_as_asked(run: Run, model_dir: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits.json"
    two = [*EDITS, {"subject": "Malmö", "relation": "boss", "target": "Bo Ray", "old": "Ann Lee"}]
    edits.write_text(json.dumps({"relations": RELATIONS, "facts": FACTS, "edits": two}), "utf-8")
    for n in (1, 2):
        page = tmp_path / f"p{n}.html"
        code, _, err = run("locate", model_dir, edits, "--draw", n, "--report", page)
        assert code == 0, err
        assert f"drawing the facts of {n} of 2 edits" in err
        assert ("Malmö: Heads" in page.read_text("utf-8")) == (n == 2)
        assert len(list((tmp_path / f"p{n}_charts").glob("*.vl.json"))) == 3 * n


def test_locate_edit_ask_evaluate(run: Run, model_dir: Path, edits_file: Path, tmp_path: Path) -> None:
    where = tmp_path / "where.json"
    code, out, err = run(
        "locate", model_dir, edits_file, "--top", 3, "--json", where, "--page", tmp_path / "p.html"
    )
    assert code == 0, err
    found = json.loads(where.read_text("utf-8"))
    assert len(found["layers"]) == 3 and len(found["value_neurons"]) == 3
    scores = [n["score"] for n in found["value_neurons"]]
    assert scores == sorted(scores, reverse=True)
    proof = found["certificate"]
    assert all(
        low <= score <= high for low, score, high in zip(proof["low"], scores, proof["high"], strict=True)
    )
    assert proof["rest"] <= proof["high"][-1] and proof["rescored"] <= proof["of"]
    assert "Top value neurons" in out and f"proven of {proof['of']:,} neurons" in out
    for said in ("3/3 layers measured, once a model", "3/3 layers tried for a v* at the subject token"):
        assert said in err
    assert "<!doctype html>" in (tmp_path / "p.html").read_text("utf-8")

    made, record = tmp_path / "made", tmp_path / "edit.json"
    code, out, err = run(
        "edit", model_dir, edits_file, "--method", "ace-closed", "--out", made, "--json", record
    )
    assert code == 0, err
    assert "v*" in err, "progress is on standard error"
    assert json.loads(record.read_text("utf-8"))["id"] == Patch.load(made).id

    shown = tmp_path / "show.json"
    code, out, _ = run("patch", "show", made, "--json", shown)
    assert code == 0 and "Bo Ray is a citizen of Chile (was Peru)" in out
    assert json.loads(shown.read_text("utf-8"))["method"] == "ace-closed"


def test_layers_are_screened_where_asked(
    run: Run,
    model_dir: Path,
    edits_file: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("acedit.editing.screen.TRIALS", 3)
    made = tmp_path / "made"
    code, _, err = run("edit", model_dir, edits_file, "--method", "memit", "--screen", "--out", made)
    assert code == 0, err
    assert "ranges of layers tried" in err
    plan = Patch.load(made).plan
    assert "trial edits written there are right about" in plan["reason"]["value"]
    named = {*plan["query_layers"], *plan["middle_layers"], *plan["value_layers"]}
    assert {u.layer for u in Patch.load(made).updates} <= named
    assert "--method ace goes by no plan" in fails(
        "edit", model_dir, edits_file, "--screen", "--out", tmp_path / "no"
    )

    line = fails("edit", model_dir, edits_file, "--preset", "gpt-j", "--screen", "--out", tmp_path / "no")
    assert "--preset gpt-j names the layers: leave out --screen" in line
    bare = written(tmp_path / "bare.json", {"relations": RELATIONS, "edits": EDITS})
    assert "give known facts" in fails("locate", model_dir, bare, "--screen")


def test_the_covariance_is_taken_over_a_user_s_text(
    run: Run, model_dir: Path, edits_file: Path, tmp_path: Path
) -> None:
    """Another text makes another edit; blank lines and a byte order mark hold none."""
    ids = []
    for name, said in (
        ("one", "The sea is cold.\n\nLima is a city."),
        ("same", "\ufeffThe sea is cold.\nLima is a city.\n"),
        ("other", "Snow fell on the hills all night."),
    ):
        (tmp_path / name).write_text(said, "utf-8")
        made = tmp_path / f"{name}.patch"
        options = ("--method", "memit", "--text", tmp_path / name, "--out", made)
        code, _, err = run("edit", model_dir, edits_file, *options)
        assert code == 0, err
        ids.append(Patch.load(made).id)
    assert ids[0] == ids[1] != ids[2]


def test_an_edit_is_made_beside_patches_that_stay_on(
    run: Run, model_dir: Path, patch_dir: Path, edits_file: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    more = written(
        tmp_path / "more.json",
        {"relations": RELATIONS, "edits": [{"subject": "Cy Doe", "relation": "P27", "target": "Spain"}]},
    )
    edit = ("edit", model_dir, more, "--method", "ft", "--quiet")
    record = tmp_path / "r.json"
    assert run(*edit, "--out", tmp_path / "alone")[0] == 0
    assert run(*edit, "--patch", patch_dir, "--out", tmp_path / "beside", "--json", record)[0] == 0
    assert json.loads(record.read_text("utf-8"))["patches"] == [str(patch_dir)]
    assert Patch.load(tmp_path / "alone").id != Patch.load(tmp_path / "beside").id
    assert "is on already" in fails(
        *edit, "--patch", patch_dir, "--patch", patch_dir, "--out", tmp_path / "p"
    )
    assert "is this a patch folder?" in fails(*edit, "--patch", tmp_path / "none", "--out", tmp_path / "p")
    assert "for --out and for patch" in fails(*edit, "--patch", patch_dir, "--out", patch_dir)


def test_a_text_that_is_none(
    fails: Callable[..., str], model_dir: Path, edits_file: Path, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n", "utf-8")
    edit = ("edit", model_dir, edits_file, "--out", tmp_path / "p")
    assert "holds no text; give paragraphs" in fails(*edit, "--text", blank)
    assert "there is no such file" in fails(*edit, "--text", tmp_path / "none.txt")
    assert "this is a folder; give a text file" in fails(*edit, "--text", tmp_path)


def test_evaluate_the_unedited_model_and_a_patch(
    run: Run, model_dir: Path, patch_dir: Path, tmp_path: Path
) -> None:
    from acedit.world.graph import mquake_cases

    cases = written(tmp_path / "cases.json", mquake_cases("2hop")[:1])
    out = tmp_path / "scores.json"
    code, said, err = run("evaluate", model_dir, cases, "--patch", patch_dir, "--json", out)
    assert code == 0, err
    assert "efficacy" in said
    scores = json.loads(out.read_text("utf-8"))["scores"]
    assert scores["efficacy"]["n"] == 2
    assert scores["explicit"]["value"] is None, "nothing of that sort was scored"
    kept = shutil.copytree(patch_dir, tmp_path / "kept")
    assert run("evaluate", model_dir, cases, "--patch", kept, "--keep")[0] == 0
    code, said, _ = run("patch", "show", kept, "--json", out)
    assert code == 0
    assert json.loads(out.read_text("utf-8"))["scores"] == scores
    assert "efficacy" in said
    assert "give --patch" in run("evaluate", model_dir, cases, "--method", "memit", "--keep")[2]


def test_evaluate_a_method(run: Run, model_dir: Path, tmp_path: Path) -> None:
    cases, facts, out = tmp_path / "cases.json", tmp_path / "facts.json", tmp_path / "scores.json"
    assert run("world", "cases", "--n", 2, "--out", cases)[0] == 0
    written(facts, {"relations": RELATIONS, "facts": FACTS})
    code, said, err = run(
        "evaluate", model_dir, cases, "--method", "pmet", "--facts", facts, "--batch", 2, "--json", out
    )
    assert code == 0, err
    assert "2/2 cases" in err and "pmet" in said
    found = json.loads(out.read_text("utf-8"))
    assert (found["method"], found["batch"], found["scores"]["efficacy"]["n"]) == ("pmet", 2, 2)


def test_patch_apply_saves_an_ordinary_checkpoint(
    run: Run, model_dir: Path, patch_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "edited"
    code, _, err = run("patch", "apply", model_dir, patch_dir, "--out", out)
    assert code == 0, err
    lm, edited = load(model_dir), load(out)
    with Patch.load(patch_dir).applied(lm):
        assert torch.equal(lm.logits(["The capital of Peru is"]), edited.logits(["The capital of Peru is"]))
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_patch_export_writes_an_adapter(run: Run, patch_dir: Path, tmp_path: Path) -> None:
    code, _, err = run("patch", "export", patch_dir, "--out", tmp_path / "adapter")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_patch_merge_makes_one_of_two(
    run: Run, patch_dir: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    patch = Patch.load(patch_dir)
    other = replace(patch, edits=tuple(replace(one, subject="Cy Doe") for one in patch.edits))
    other.save(tmp_path / "other")
    out, record = tmp_path / "both", tmp_path / "r.json"
    code, _, err = run("patch", "merge", patch_dir, tmp_path / "other", "--out", out, "--json", record)
    assert code == 0, err
    assert json.loads(record.read_text("utf-8"))["id"] == Patch.load(out).id
    assert len(Patch.load(out).edits) == 2 * len(patch.edits)
    assert "nothing to merge" in fails("patch", "merge", patch_dir, "--out", tmp_path / "p")
    assert "for --out and for patch" in fails("patch", "merge", patch_dir, out, "--out", out)


def test_every_shape_can_be_asked_for(run: Run, tmp_path: Path) -> None:
    """The parser names them itself, so as not to load the training at start-up."""
    code, _, err = run("world", "train", "--out", tmp_path / "m", "--shape", "nope")
    assert code == 2
    assert all(f"{name!r}" in err for name in SHAPES), err


def test_world_show_and_cases(run: Run, tmp_path: Path) -> None:
    code, out, err = run("world", "show", "--json", tmp_path / "world.json")
    assert code == 0, err
    assert "facts" in out
    cases, facts = tmp_path / "cases.json", tmp_path / "facts.json"
    code, out, err = run(
        "world", "cases", "--seed", 3, "--n", 4, "--edits", 2, "--out", cases, "--facts-out", facts
    )
    assert code == 0, err
    assert out.startswith("4 cases")
    from acedit.knowledge.facts import read_cases, read_facts

    assert [len(case.edits) for case in read_cases(cases)] == [2] * 4
    edited = {edit.key for case in read_cases(cases) for edit in case.edits}
    assert not edited & {fact.key for fact in read_facts(facts)}


def test_world_train_ends_with_the_card(
    run: Run, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acedit.world.card import CardRow

    def train(
        out: Path, settings: Any, *, say: Callable[[str], None], device: str, start: Path | None
    ) -> Path:
        say(f"step 1/{settings.steps} on {device} from {start and start.name}")
        return Path(shutil.copytree(model_dir, out))

    monkeypatch.setattr("acedit.world.train.train", train)
    kept: list[bool] = []
    monkeypatch.setattr("acedit.world.train.keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr("acedit.world.card.measure", lambda *_, **__: [CardRow("one hop", 1.0, 9, 0.99)])
    out = tmp_path / "bundled"
    code, said, err = run("world", "train", "--out", out, "--steps", 7)
    assert code == 0 and "step 1/7 on cpu from None" in err and kept
    assert "| one hop | 1.000 | 9 | 0.99 |" in said
    assert "steps 7" in (out / "README.md").read_text("utf-8")
    goes_on = ("world", "train", "--shape", "further", "--out", tmp_path / "further")
    code, _, err = run(*goes_on)
    assert (code, err) == (
        2,
        "acedit: --shape further goes on from another run: name its folder with --start\n",
    )
    code, _, err = run(*goes_on, "--start", out)
    assert code == 0 and "on cpu from bundled" in err
    assert "seed 2" in (card := (tmp_path / "further" / "README.md").read_text("utf-8"))
    assert "start bundled" in card


def test_demo_writes_what_it_found(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acedit.lm.loading.load", lambda _: None)
    monkeypatch.setattr(
        "acedit.report.demo.run", lambda *_, **options: {"scores": {}, "told": options["seed"]}
    )
    out = tmp_path / "demo.json"
    assert run("demo", "--quiet", "--seed", 4, "--out", tmp_path / "demo", "--json", out) == (0, "", "")
    assert json.loads(out.read_text("utf-8"))["told"] == 4


def test_progress_says_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(quiet=False)
    progress.count(1, 3)
    progress.count(3, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert "3/3 cases" in line and "left" in line
    now = 100.0
    monkeypatch.setattr("acedit.commands.common.time.monotonic", lambda: now)
    progress = Progress(quiet=False)
    for done, total in ((1, 2), (2, 2), (1, 4)):
        now += 10
        progress.count(done, total)
    lines = [line.split("] ")[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["1/2 cases, about 10 s left", "2/2 cases, about 0 s left", "1/4 cases, about 30 s left"]
    Progress(quiet=True).say("x")
    assert capsys.readouterr().err == ""


def test_a_notice_is_said_once(run: Run, patch_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("acedit")
    real = Patch.load

    def noisy(path: Path) -> Patch:
        for _ in range(3):
            log.warning("no known facts given")
        return real(path)

    monkeypatch.setattr(Patch, "load", noisy)
    assert run("patch", "show", patch_dir)[2] == "acedit: no known facts given\n"
    assert log.propagate and log.handlers == []


# Bad input: one clear line, exit code 2


def test_options_that_would_do_nothing(fails: Callable[..., str], edits_file: Path, tmp_path: Path) -> None:
    cases = written(tmp_path / "cases.json", make_cases(build_world(), seed=0, n=1))
    assert "--draw is of the page" in fails("locate", "bundled", edits_file, "--draw", 3)
    run = ("bench", "--out", tmp_path / "run")
    assert "--pool is of fresh cases" in fails(*run, "--cases", cases, "--pool", "test")
    assert "base edits nothing" in fails(*run, "--methods", "base", "--sequence", 1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_no_memory_is_one_line(
    error: Exception,
    fails: Callable[..., str],
    edits_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("acedit.lm.loading.load", full)
    said = fails("edit", "bundled", edits_file, "--out", tmp_path / "p")
    assert "out of memory" in said and "--dtype bfloat16" in said


def test_a_patch_of_another_model_is_refused_before_it_is_asked(
    fails: Callable[..., str], patch_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = written(tmp_path / "cases.json", make_cases(build_world(), seed=0, n=1))
    monkeypatch.setattr("acedit.benchmark.evaluate.Scorer", None)
    assert "made for another model" in fails("evaluate", "bundled", cases, "--patch", patch_dir)


def test_missing_file(fails: Callable[..., str], model_dir: Path, tmp_path: Path) -> None:
    assert "no such file" in fails("edit", model_dir, tmp_path / "none.json", "--out", tmp_path / "p")


def test_facts_that_are_none(
    fails: Callable[..., str], model_dir: Path, edits_file: Path, tmp_path: Path
) -> None:
    none = written(tmp_path / "none.json", {"relations": RELATIONS, "fact": FACTS})
    said = fails("edit", model_dir, edits_file, "--facts", none, "--out", tmp_path / "p")
    assert "none.json: holds no facts" in said


def test_broken_file(fails: Callable[..., str], model_dir: Path, tmp_path: Path) -> None:
    bad = written(tmp_path / "bad.json", '{"edits": [\n {"subject": }]}')
    assert "line 2" in fails("edit", model_dir, bad, "--out", tmp_path / "p")


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([{"subject": "Bo Ray", "relation": "citizen", "target": 3}], "edits[0].target"),
        ([{"relation": "citizen", "target": "Chile"}], "edits[0].subject"),
        ([], "at least one"),
        ([*EDITS, {**EDITS[0], "target": "Peru", "old": "Chile"}], "contradict"),
        ([{**EDITS[0], "relation": "no such"}], "unknown"),
        ([{**EDITS[0], "target": "Peru"}], "old object"),
        ([{"subject": "Bo Ray", "prompt": "He is a citizen of", "target": "Chile"}], "{}"),
        ([{"subject": " ", "relation": "citizen", "target": "Chile"}], "edits[0].subject"),
    ],
    ids=["wrong type", "missing field", "empty", "contradiction", "unknown relation", "same target",
         "subject absent", "empty subject"],
)  # fmt: skip
def test_bad_edits(
    fails: Callable[..., str], model_dir: Path, tmp_path: Path, edits: list[Any], words: str
) -> None:
    path = written(tmp_path / "edits.json", {"relations": RELATIONS, "edits": edits})
    line = fails("edit", model_dir, path, "--out", tmp_path / "p")
    assert words in line and "edits.json" in line
    assert not (tmp_path / "p").exists()


def test_identical_edits_merge_with_a_notice(
    run: Run, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "edits.json", {"relations": RELATIONS, "edits": EDITS * 2})
    code, _, err = run("edit", model_dir, path, "--method", "none", "--out", tmp_path / "p")
    assert code == 2 and "1 identical edits were merged" in err.splitlines()[0]


def test_methods_are_listed(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("methods", "--json", tmp_path / "m.json")
    assert code == 0
    listed = json.loads((tmp_path / "m.json").read_text())["methods"]
    assert {"ace", "ace-paper", "pmet", "rome"} <= set(listed)
    assert all(name in out and listed[name] for name in listed)


def test_unknown_study_and_a_model_that_knows_nothing(
    fails: Callable[..., str], model_dir: Path, tmp_path: Path
) -> None:
    assert "known: layers" in fails("study", "nope", "--out", tmp_path / "s")
    said = fails("study", "layers", "--model", model_dir, "--per-category", 1, "--out", tmp_path / "s")
    assert "nothing to study" in said


def test_a_case_s_edit_keeps_off_its_questions(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits given as cases: no prompt starts where a scored question starts."""
    cases, facts = tmp_path / "cases.json", tmp_path / "facts.json"
    assert (
        main(["world", "cases", "--n", "3", "--out", str(cases), "--facts-out", str(facts), "--quiet"]) == 0
    )
    seen: dict[str, Any] = {}

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        raise UserError("seen enough")

    monkeypatch.setattr("acedit.editing.edit.edit", watched)
    out = str(tmp_path / "p")
    assert main(["edit", str(model_dir), str(cases), "--facts", str(facts), "--out", out, "--quiet"]) == 2
    assert seen["exclude"] == starts(read_cases(cases))


def test_unknown_method(fails: Callable[..., str], model_dir: Path, edits_file: Path, tmp_path: Path) -> None:
    assert "ace" in fails("edit", model_dir, edits_file, "--method", "magic", "--out", tmp_path / "p")


def test_prompt_longer_than_the_context(fails: Callable[..., str], short_dir: Path) -> None:
    assert "context is 128" in fails("ask", short_dir, "Who is Bo Ray's boss?", "--cot")


def test_edit_longer_than_the_context(fails: Callable[..., str], short_dir: Path, tmp_path: Path) -> None:
    edit = {"subject": "Bo Ray", "prompt": "{} " + "and Peru " * 200 + "is a citizen of", "target": "Chile"}
    path = written(tmp_path / "edits.json", {"edits": [edit]})
    assert "context is 128" in fails("edit", short_dir, path, "--method", "pmet", "--out", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_patch_of_a_chosen_rank(
    run: Run, fails: Callable[..., str], model_dir: Path, edits_file: Path, tmp_path: Path
) -> None:
    code, _, err = run("edit", model_dir, edits_file, "--method", "ft", "--rank", 2, "--out", tmp_path / "p")
    assert code == 0, err
    patch = Patch.load(tmp_path / "p")
    assert patch.method == "ft-r2"
    assert {update.left.shape[1] for update in patch.updates} == {2}
    said = fails("edit", model_dir, edits_file, "--method", "memit", "--rank", 2, "--out", tmp_path / "q")
    assert "method 'memit' has a rank of its own: leave --rank out" in said
    assert not (tmp_path / "q").exists()


def test_missing_model(fails: Callable[..., str], edits_file: Path, tmp_path: Path) -> None:
    assert "model folder" in fails("locate", tmp_path / "nowhere", edits_file)


def test_bad_dtype(fails: Callable[..., str], model_dir: Path) -> None:
    assert "float32" in fails("ask", model_dir, "Who?", "--dtype", "float7")


def test_empty_question(fails: Callable[..., str], model_dir: Path) -> None:
    assert "empty" in fails("ask", model_dir, " ")


def test_patch_for_another_model(fails: Callable[..., str], short_dir: Path, patch_dir: Path) -> None:
    assert "another model" in fails("ask", short_dir, "Who?", "--patch", patch_dir)


def test_truncated_patch(fails: Callable[..., str], patch_dir: Path) -> None:
    tensors = patch_dir / "patch.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-40])
    assert "patch.safetensors" in fails("patch", "show", patch_dir)


def test_altered_patch(fails: Callable[..., str], patch_dir: Path) -> None:
    tensors = patch_dir / "patch.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-5] ^= 1
    tensors.write_bytes(bytes(data))
    assert "altered" in fails("patch", "show", patch_dir)


def test_a_mistyped_bundled_model_is_told(fails: Callable[..., str]) -> None:
    assert "did you mean 'bundled'?" in fails("ask", "bundel", "Who?")


def test_missing_patch(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "nothing" in fails("patch", "export", tmp_path / "nothing", "--out", tmp_path / "a")


def test_evaluate_scores_one_patch(fails: Callable[..., str], model_dir: Path) -> None:
    said = fails("evaluate", model_dir, "c.json", "--patch", "a", "--patch", "b")
    assert "--patch is given twice" in said


def test_patch_and_method_exclude_each_other(fails: Callable[..., str], model_dir: Path) -> None:
    assert "not allowed" in fails("evaluate", model_dir, "c.json", "--patch", "p", "--method", "ace")


def test_cases_that_are_none(fails: Callable[..., str], model_dir: Path, edits_file: Path) -> None:
    fails("evaluate", model_dir, edits_file)


@pytest.mark.parametrize(
    "command",
    [
        "ask {model} Who?",
        "evaluate {model} {cases}",
        "bench --model {model} --cases {cases} --methods base --no-cot --out {out}",
    ],
)
def test_a_model_with_broken_weights_answers_nothing(
    fails: Callable[..., str], tmp_path: Path, command: str
) -> None:
    from acedit.world.graph import mquake_cases

    cases = written(tmp_path / "cases.json", mquake_cases("2hop")[:1])
    model = tiny_model("qwen3")
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("inf")
    model.save_pretrained(tmp_path / "broken")
    byte_tokenizer().save_pretrained(tmp_path / "broken")
    places = {"model": tmp_path / "broken", "cases": cases, "out": tmp_path / "run"}
    said = fails(*(word.format(**places) for word in command.split()))
    assert "layer 1: " in said and "down_proj.weight holds NaN or infinite weights" in said


@pytest.mark.parametrize("count", ["0", "5", "two"])
def test_edits_a_case_out_of_range(fails: Callable[..., str], tmp_path: Path, count: str) -> None:
    assert "--edits" in fails("world", "cases", "--edits", count, "--out", tmp_path / "c.json")


def test_no_permission(
    fails: Callable[..., str],
    model_dir: Path,
    edits_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Root may write anywhere, so the question itself is answered no.
    monkeypatch.setattr("acedit.files.os.access", lambda *_: False)
    assert "no permission" in fails("edit", model_dir, edits_file, "--out", tmp_path / "p")


def test_output_under_a_file(fails: Callable[..., str], model_dir: Path, edits_file: Path) -> None:
    assert "not a folder" in fails("edit", model_dir, edits_file, "--out", edits_file / "p")


def test_apply_refuses_a_full_folder(
    fails: Callable[..., str], model_dir: Path, patch_dir: Path, tmp_path: Path
) -> None:
    before = files_under(model_dir)
    assert "not an empty folder" in fails("patch", "apply", model_dir, patch_dir, "--out", model_dir)
    assert files_under(model_dir) == before
    before = files_under(patch_dir)
    assert "for --out and for patch" in fails("patch", "apply", model_dir, patch_dir, "--out", patch_dir)
    assert files_under(patch_dir) == before


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_to_tokenizers(*_: Any, **__: Any) -> None:
    raise Exception("No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("saves", "full"),
    [
        ("transformers.PreTrainedModel.save_pretrained", full_disk),
        ("transformers.PreTrainedTokenizerBase.save_pretrained", full_to_tokenizers),
    ],
)
def test_disk_full_while_a_checkpoint_is_saved(
    saves: str,
    full: Callable[..., None],
    fails: Callable[..., str],
    model_dir: Path,
    patch_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saves, full)
    out = tmp_path / "edited"
    assert "No space left" in fails("patch", "apply", model_dir, patch_dir, "--out", out)
    assert not out.exists() and not list(tmp_path.glob(".edited*"))


def test_cases_and_their_facts_are_written_together(fails: Callable[..., str], tmp_path: Path) -> None:
    out, blocked = written(tmp_path / "c.json", "old"), written(tmp_path / "file", "")
    facts = ("--facts-out", blocked / "facts.json")
    assert "cannot be written" in fails("world", "cases", "--n", 1, "--out", out, *facts)
    assert out.read_text() == "old"


def test_disk_full_while_json_is_written(
    fails: Callable[..., str], patch_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = written(tmp_path / "show.json", "old")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert "No space left" in fails("patch", "show", patch_dir, "--json", out)
    assert out.read_text("utf-8") == "old"


def test_disk_full_while_a_patch_is_saved(
    fails: Callable[..., str], patch_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert "No space left" in fails("patch", "export", patch_dir, "--out", tmp_path / "adapter")
    assert not list(tmp_path.glob("*adapter*"))


# Ctrl-C


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_in_mid_edit(
    run: Run,
    model_dir: Path,
    patch_dir: Path,
    edits_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("acedit.editing.edit.sweep", interrupted)
    before = files_under(model_dir), files_under(patch_dir)
    code, out, err = run(
        "edit", model_dir, edits_file, "--method", "ace-closed", "--out", patch_dir, "--quiet"
    )
    assert (code, out) == (130, "")
    assert err.startswith("acedit: interrupted") and err.count("\n") == 1
    assert (files_under(model_dir), files_under(patch_dir)) == before


def test_a_real_interrupt(model_dir: Path, edits_file: Path, tmp_path: Path) -> None:
    code = (
        "import signal, sys; from acedit.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.exit(main(['edit', {str(model_dir)!r}, {str(edits_file)!r}, '--out', {str(tmp_path / 'p')!r}]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "polishing" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert [line for line in rest if not line.startswith("[")] == [
        "acedit: interrupted; the model and the files are as before"
    ]
    assert not (tmp_path / "p").exists()


def test_ctrl_c_leaves_a_loaded_model_as_it_was(
    model_dir: Path, edits_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import acedit

    lm = acedit.load(model_dir)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    logits = lm.logits(["The capital of Peru is"])
    edits, facts = acedit.read_edits(edits_file), acedit.read_facts(edits_file)
    # Within a layer's write, with the layers below already moved.
    calls: list[int] = []

    def solve(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        from acedit.editing.solve import solve as real

        return real(*args, **kwargs)

    monkeypatch.setattr("acedit.editing.stages.solve", solve)
    plan = acedit.Plan(value_layers=(2,), query_layers=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        acedit.edit(lm, edits, known=facts, method="ace-closed", plan=plan)
    assert len(calls) == 2
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    assert torch.equal(lm.logits(["The capital of Peru is"]), logits)


def test_a_reader_that_goes_away_is_no_error(model_dir: Path) -> None:
    code = "import sys; from acedit.cli import main; sys.exit(main(['world', 'show']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_an_annotator_is_named_in_full(fails: Callable[..., str], model_dir: Path, tmp_path: Path) -> None:
    said = fails("study", "layers", "--model", model_dir, "--annotator", "gpt", "--out", tmp_path / "o")
    assert "give openai:MODEL or hf:MODEL" in said


def test_outputs_do_not_fall_on_each_other(run: Run, tmp_path: Path) -> None:
    same = str(tmp_path / "x.json")
    code, _, said = run("world", "cases", "--n", "1", "--out", same, "--facts-out", same)
    assert code == 2
    assert "named for --facts-out and for out" in said
    assert not Path(same).exists()
    edits = tmp_path / "edits.json"
    edits.write_text(json.dumps({"edits": EDITS, "relations": RELATIONS}), "utf-8")
    before = edits.read_bytes()
    code, _, said = run("edit", "bundled", edits, "--out", tmp_path / "p", "--json", edits)
    assert code == 2
    assert "and for edits" in said
    assert edits.read_bytes() == before
    code, _, said = run("edit", "bundled", edits, "--out", edits)
    assert code == 2
    assert "name a folder" in said


def test_arguments_that_are_no_text_or_no_seed(run: Run) -> None:
    code, _, said = run("ask", "bundled", "\udcff")
    assert (code, said) == (2, "acedit: an argument is not UTF-8; write it anew\n")
    code, _, said = run("world", "cases", "--seed", str(2**63), "--out", "x.json")
    assert code == 2
    assert "out of range" in said


def test_a_device_that_is_not_there_is_one_line(run: Run) -> None:
    code, _, said = run("ask", "bundled", "--device-map", "cuda:7", "hi")
    assert code == 2
    assert said.startswith("acedit: cannot load a model") and said.count("\n") == 1


def test_a_tokenizer_of_another_model_is_one_line(run: Run, tmp_path: Path) -> None:
    tiny_model("gpt2", vocab_size=40).save_pretrained(tmp_path)
    code, _, said = run("ask", tmp_path, "hi")
    assert code == 2 and said.count("\n") == 1
    byte_tokenizer().save_pretrained(tmp_path)
    code, _, said = run("ask", tmp_path, "hi")
    assert code == 2
    assert "give it its own tokenizer" in said


def test_a_bench_of_which_nothing_came_says_so(run: Run, tmp_path: Path, model_dir: Path) -> None:
    args = ("--n", "1", "--no-cot", "--methods", "base", "mend", "--out", tmp_path / "run")
    code, out, said = run("bench", "--model", model_dir, *args)
    assert code == 2
    assert "nothing came of mend" in said
    assert "1 failed" in out


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--json", "j", "--quiet", "show", "run"],
        ["bench", "show", "--json", "j", "--quiet", "run"],
    ],
)
def test_options_of_bench_stand_on_either_side_of_its_commands(words: list[str]) -> None:
    args = _parser().parse_args(words)
    assert (args.json, args.quiet, args.folders) == ("j", True, ["run"])
    assert _parser().parse_args(["bench", "--out", "d", "tables", "run"]).out == "d"
    bare = _parser().parse_args(["bench", "show", "run"])
    assert (bare.json, bare.quiet) == (None, False)


def contradicting_cases(folder: Path) -> Path:
    """Two cases, of which the second edits what the first does, otherwise."""
    first, second = make_cases(build_world(), seed=0, n=2)
    twin = json.loads(json.dumps(first)) | {"case_id": "twin"}
    twin["requested_rewrite"][0]["target_new"]["str"] = "Elsewhere"
    return written(folder / "late.json", [first, second, twin])


def test_a_batch_that_contradicts_itself_is_refused_before_any_work(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    cases = contradicting_cases(tmp_path)
    said = fails("evaluate", tmp_path / "no-model", cases, "--method", "memit", "--batch", 3)
    assert f"{cases}: edits contradict each other" in said and "smaller --batch" in said
    assert "no model folder" in fails("evaluate", tmp_path / "no-model", cases, "--method", "memit")


def test_ids_that_stand_for_several_cases_are_said_with_their_file(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    (row,) = make_cases(build_world(), seed=0, n=1)
    cases = written(tmp_path / "cases.json", [row, row])
    for command in (("evaluate", "bundled", cases), ("bench", "--cases", cases, "--out", tmp_path / "run")):
        assert f"{cases}: 1 case ids stand for several cases" in fails(*command)


def test_an_adapter_is_not_put_into_a_models_folder(
    fails: Callable[..., str], model_dir: Path, patch_dir: Path
) -> None:
    before = files_under(model_dir)
    assert "is a model's folder" in fails("patch", "export", patch_dir, "--out", model_dir)
    assert files_under(model_dir) == before


def test_our_tasks_want_cases_before_anything_is_loaded(fails: Callable[..., str], tmp_path: Path) -> None:
    said = fails("lm-eval", tmp_path / "no-model", "--tasks", "mquake_direct")
    assert "--tasks mquake_direct asks about cases: give --cases FILE" in said


def test_a_short_context_is_evaluated_without_thinking_aloud(
    run: Run, fails: Callable[..., str], short_dir: Path, tmp_path: Path
) -> None:
    cases = written(tmp_path / "cases.json", make_cases(build_world(), seed=0, n=1))
    assert "the model's context is 128: ask without it (--no-cot" in fails("evaluate", short_dir, cases)
    code, out, err = run("evaluate", short_dir, cases, "--no-cot")
    assert code == 0, err
    assert "efficacy" in out


def test_a_field_that_is_not_read_is_said(run: Run, model_dir: Path, tmp_path: Path) -> None:
    edit = {
        "subject": "Bo",
        "target": "Chile",
        "prompt": "{} lives in",
        "paraphrase": ["{} is from"],
        "note": 1,
    }
    edits = written(tmp_path / "edits.json", [edit])
    _, _, err = run("cases", edits, "--out", tmp_path / "cases.json")
    assert "edits[0].paraphrase is not read; did you mean 'paraphrases'?" in err
    assert "note" not in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "Peru", "old": "Chile"}, "the known facts already say 'Peru'"),
        ({"old": "Brazil"}, "was 'Brazil', the known facts say 'Peru'"),
    ],
)
def test_an_edit_that_known_facts_deny_is_said(
    change: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    citizen = Relation("citizen", ("{} is a citizen of",))
    row = {"subject": "Ann Lee", "target": "Chile", "old": "Peru"} | change
    known = [Fact("Ann Lee", citizen, "Peru")]
    _notice_known([Edit(row["subject"], citizen, row["target"], row["old"])], known)
    assert said in caplog.text
    caplog.clear()
    _notice_known([Edit("Ann Lee", citizen, "Chile", "Peru")], known)
    assert not caplog.text
