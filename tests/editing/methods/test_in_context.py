"""Methods that change no weights: what the model reads, what it answers, how patches of them behave."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from acedit.editing.edit import edit
from acedit.editing.methods import ike, mello
from acedit.editing.patch import NoWeightChange, Patch
from acedit.editing.retrieve import Index
from acedit.errors import UserError
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.prompts import COT_STOP, cot_prompt, parse_cot_answer
from acedit.knowledge.relations import mquake
from acedit.lm.generation import greedy
from acedit.lm.model import LanguageModel
from tests.tiny import tiny_lm

R = mquake()
EDIT = Edit("Bo Ray", R["P27"], "Chile", "Peru")
OTHER = Edit("Ann Lee", R["P27"], "Norway", "Peru")
KNOWN = [
    Fact(f"Person {i}", R["P27"], ("Peru", "Chile", "Norway")[i % 3]) for i in range(24)
]  # fmt: skip


def test_the_nearest_text_shares_the_most_words() -> None:
    index = Index(["Bo Ray is a citizen of Chile.", "Ann Lee is a citizen of Norway.", "A cat."])
    assert index.nearest("Who is Ann Lee?", 2)[0] == 1
    assert index.nearest("zebra", 2) == []
    assert Index([]).nearest("Who?", 3) == []


def test_ike_tells_the_nearest_facts_right_before_the_question() -> None:
    lm = tiny_lm("qwen3")
    patch = edit(lm, [EDIT, OTHER], known=KNOWN, method="ike")
    assert not patch.updates
    question = "Question: Which country is Bo Ray a citizen of?\nAnswer:"
    with patch.applied(lm):
        assert lm.reader is not None
        read = lm.reader.context(question)
        assert read.endswith(f"New Fact: Bo Ray is a citizen of Chile\nPrompt: {question}")
        assert lm.reader.context(f"A shot.\n\n{question}").count("A shot.") == 1
        assert len(lm.token_ids(read)) <= lm.context
        assert lm.generate([question]) == greedy(lm, [read])
        assert lm.answer_nll([question], ["Chile"]) != tiny_lm("qwen3").answer_nll([question], ["Chile"])
    assert lm.reader is None


def test_no_demonstration_is_of_an_edited_or_excluded_subject() -> None:
    _, shown = ike.remember([EDIT], [*KNOWN, Fact("Bo Ray", R["P27"], "Peru")], {"Person 1"}, 0)
    assert shown and not {"Bo Ray", "Person 1"} & {p.subject for p in shown}
    kinds = {p.template for p in shown}
    assert len(kinds) > 1  # other wordings too
    assert ike.remember([EDIT], KNOWN, (), 0) == ike.remember([EDIT], KNOWN, (), 0)


def test_a_later_edit_takes_its_subject_out_of_earlier_demonstrations() -> None:
    lm = tiny_lm("qwen3", max_position_embeddings=4096)
    late = Edit("Person 3", R["P27"], "Chile", "Peru")
    one = edit(lm, [EDIT], known=KNOWN[:8], method="ike")
    two = edit(lm, [late], known=KNOWN[:8], method="ike")
    assert "Person 3" in str(one.memory["shots"])
    with one.applied(lm), two.applied(lm):
        assert lm.reader is not None
        read = lm.reader.context("Where is Person 3 from?")
    assert re.findall("New Fact: Person 3 .*", read) == ["New Fact: Person 3 is a citizen of Chile"]


def test_a_reader_is_of_the_model_whatever_wraps_it() -> None:
    one = tiny_lm("qwen3", max_position_embeddings=4096)
    other = LanguageModel(one.model, one.tokenizer)
    patch = edit(one, [EDIT], known=KNOWN, method="ike")
    with patch.applied(one):
        assert other.reader is not None
        patch.remove(other)
        assert one.reader is None
        patch.apply(other)
        assert one.reader is other.reader is not None


def test_mello_looks_for_the_subquestion_not_for_the_answer() -> None:
    said = "Subquestion: Who leads Peru?\nGenerated answer: the head of Peru is Bo Ray.\n"
    assert mello._subquestion(said) == "Who leads Peru?"
    assert mello._subquestion("Generated answer: Bo Ray.") == "Generated answer: Bo Ray."


class Scripted:
    """Answers in MeLLo's form, believing Peru until a retrieved fact says otherwise."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, texts: Sequence[str], **_: Any) -> list[str]:
        self.read += texts
        return [self._next(text[len(mello.SHOTS) :]) for text in texts]

    def _next(self, text: str) -> str:
        if "Retrieved fact:" not in text:
            return "Subquestion: Which country is Bo Ray a citizen of?\nGenerated answer: Peru.\n"
        fact = re.findall(r"Retrieved fact: .* (\w+)\.\n", text)[-1]
        return f"Retrieved fact contradicts to generated answer, so it is: {fact}\nFinal answer: {fact}"


def test_mello_answers_with_what_it_retrieves(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3", max_position_embeddings=4096)
    patch = edit(lm, [OTHER, EDIT], known=KNOWN, method="mello")
    script = Scripted()
    monkeypatch.setattr(mello, "greedy", lambda _, texts, **kw: script(texts, **kw))
    question = "Which country is Bo Ray a citizen of?"
    with patch.applied(lm):
        direct, thought = lm.generate([f"Question: {question}\nAnswer:", cot_prompt(question)], stop=COT_STOP)
    assert direct.strip() == "Chile"
    assert parse_cot_answer(thought) == "Chile"
    assert all(text.count(f"Question: {question}\n") == 1 for text in script.read)


def test_a_model_that_keeps_no_form_answers_nothing() -> None:
    lm = tiny_lm("qwen3", max_position_embeddings=4096)
    with edit(lm, [EDIT], method="mello", known=KNOWN).applied(lm):
        assert lm.generate(["Question: Who?\nAnswer:"]) == [" "]


def test_memories_stack_are_saved_and_are_no_adapter(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    one, two = (edit(lm, [e], known=KNOWN, method="ike") for e in (EDIT, OTHER))
    one.save(tmp_path / "p")
    again = Patch.load(tmp_path / "p")
    assert again.id == one.id and again.memory == one.memory
    with again.applied(lm), two.applied(lm):
        assert lm.reader is not None
        for subject in ("Bo Ray", "Ann Lee"):
            told = lm.reader.context(f"{subject} is a citizen of")
            assert f"New Fact: {subject}" in told
        with pytest.raises(UserError, match="cannot be on together"):
            edit(tiny_lm("qwen3"), [EDIT], known=KNOWN, method="mello").apply(lm)
    with pytest.raises(NoWeightChange):
        again.to_lora(tmp_path / "adapter")
