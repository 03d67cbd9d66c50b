"""The paper's prompts are its own to the letter, and answers are read from their line."""

import hashlib

import pytest

from acedit.knowledge import prompts


def digest(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_shots_are_the_paper_s() -> None:
    """Digests taken from the paper's text, appendices G.1 and G.2, less their last lines."""
    assert digest(prompts.COT_PROMPT) == ("33d57756fa6b691673ba503602c765b30d2521b33a50c003cbacdd6bd0220f33")
    assert digest(prompts.SINGLE_HOP_PROMPT) == (
        "cc556c30ff6f09b2a58ff843e6e5ed81a3ccb1ebe75fae1520db7636fb59ccae"
    )


def test_questions_follow_the_shots_in_their_form() -> None:
    cot = prompts.cot_prompt("Who is Bo?")
    assert cot.endswith("\nAnswer: General Motors\n\nQuestion: Who is Bo?\nThoughts:")
    single = prompts.single_hop_prompt("Who is Bo?")
    assert single.endswith("? A: association football\nQ: Who is Bo? A:")
    assert prompts.direct_prompt("Who is Bo?") == "Question: Who is Bo?\nAnswer:"
    assert prompts.direct_prompt("Bo is a citizen of") == "Bo is a citizen of"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Bo is of Peru.\nAnswer: Lima\n\n", "Lima"),
        (
            " Bo is of Peru.\nIts capital is Lima.\n\n  Answer:   Washington, D.C. ",
            "Washington, D.C.",
        ),
        (" One.\nAnswer: Lima\nAnswer: Santiago", "Lima"),
        (" The Answer: Lima", ""),
        (" Bo is of Peru.", ""),
        (" Bo.\nAnswer:\nLima", ""),
        ("", ""),
    ],
)
def test_the_answer_is_what_stands_on_its_line(text: str, answer: str) -> None:
    assert prompts.parse_cot_answer(text) == answer


def test_a_thought_about_the_answer_line_does_not_end_the_answer() -> None:
    """What stops a generation is what is read of it, and nothing before."""
    said = "He said: Answer: is below.\nAnswer: Norway\nQuestion: more"
    found = prompts.COT_STOP.search(said)
    assert found is not None
    assert prompts.parse_cot_answer(said[: found.start(1)]) == "Norway"


@pytest.mark.parametrize(
    "question", ["Who?", "\u79d8\u9c81\u7684\u9996\u90fd\u662f\u54ea\u91cc\uff1f", "\u0645\u0646\u061f "]
)
def test_questions_end_in_a_mark_of_their_script(question: str) -> None:
    assert prompts.direct_prompt(question) == f"Question: {question}\nAnswer:"
    assert prompts.direct_prompt(question.strip()[:-1]) == question.strip()[:-1]
