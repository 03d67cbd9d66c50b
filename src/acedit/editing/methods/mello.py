"""MeLLo (Zhong et al. 2023): edits stand in a memory; the model splits a question and checks each step.

The model asks itself a subquestion and answers it; the nearest edited fact is put before it, and it says
whether that contradicts its answer; so on, `ROUNDS` at most, to a final answer. The four worked questions
are the authors' own (prompts/MeLLo-prompt.txt of princeton-nlp/MQuAKE, MIT licence), their retriever a
dense one, ours by words (`editing.retrieve`).

Footgun: made for models that follow instructions; one that does not keep the form answers nothing.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from acedit.editing.methods.method import Method
from acedit.editing.retrieve import Index
from acedit.knowledge.compose import Prompt
from acedit.knowledge.facts import Edit, Fact
from acedit.lm.generation import greedy
from acedit.lm.model import LanguageModel

ROUNDS = 4
STEP = 96  # tokens a round

METHODS = (
    Method(
        name="mello",
        summary="a memory of edits, checked step by step in prompts (Zhong et al. 2023)",
        reader="acedit.editing.methods.mello",
    ),
)

_QUESTION = re.compile(r"^(?:Question|Q): (.*?)(?: A:)?$", re.MULTILINE)
_STOP = ("Retrieved fact:", "\n\n", "\nQuestion:")


def remember(
    edits: Sequence[Edit], known: Sequence[Fact], exclude: Collection[str], seed: int
) -> tuple[Mapping[str, Any], list[Prompt]]:
    """The edits as sentences; no prompts are made of anything else."""
    return {"facts": [f"{edit.prompt.format(edit.subject)} {edit.target}." for edit in edits]}, []


class Reader:
    """Questions worked through with the facts in memory."""

    weighs = False

    def __init__(self, lm: LanguageModel, memories: Sequence[Mapping[str, Any]]) -> None:
        self._facts = [fact for memory in memories for fact in memory["facts"]]
        self._at = Index(self._facts)

    def context(self, prompt: str) -> str:
        """The prompt as it is: there is no one prompt behind which an answer's probability stands."""
        return prompt

    def generate(
        self,
        lm: LanguageModel,
        texts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] | re.Pattern[str],
        batch_size: int,
    ) -> list[str]:
        """The final answers, in the form the prompts ask for: an "Answer:" line after thoughts."""
        asked = [_question(text) for text in texts]
        worked = [f"{SHOTS}\n\nQuestion: {question}\n" for question in asked]
        begun = [len(text) for text in worked]
        going = list(range(len(texts)))
        for _ in range(ROUNDS):
            going = [i for i in going if len(lm.token_ids(worked[i])) + STEP < lm.context]
            if not going:
                break
            said = greedy(
                lm, [worked[i] for i in going], max_new_tokens=STEP, stop=_STOP, batch_size=batch_size
            )
            on = []
            for i, text in zip(going, said, strict=True):
                worked[i] += text
                if "Final answer:" not in text and "Generated answer:" in text:
                    nearest = self._at.nearest(_subquestion(text), 1)
                    fact = self._facts[nearest[0]] if nearest else self._facts[0]
                    worked[i] = f"{worked[i].rstrip()}\nRetrieved fact: {fact}\n"
                    on.append(i)
            going = on
        return [
            _answered(text, whole[start:]) for text, whole, start in zip(texts, worked, begun, strict=True)
        ]


def _subquestion(said: str) -> str:
    """The last one of what the model said; all that stands before the answer where there is none."""
    before = said[: said.rindex("Generated answer:")].strip()
    return before.rpartition("Subquestion:")[2].strip() or before or said


def _question(prompt: str) -> str:
    """What the last question of a prompt asks; a cloze as it is."""
    block = prompt.rsplit("\n\n", 1)[-1]
    found = _QUESTION.findall(block)
    return str(found[-1] if found else block.strip())


def _answered(prompt: str, worked: str) -> str:
    found = re.search(r"Final answer:[ \t]*([^\n]*)", worked)
    answer = found.group(1).strip() if found else ""
    return f"{worked.strip()}\nAnswer: {answer}\n" if prompt.endswith("Thoughts:") else f" {answer}"


SHOTS = """\
Question: What is the capital city of the country of citizenship of Ivanka Trump's spouse?
Subquestion: Who is Ivanka Trump's spouse?
Generated answer: Ivanka Trump's spouse is Jared Kushner.
Retrieved fact: Ivanka Biden is married to Samantha Cameron.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Jared Kushner
Subquestion: What is the country of citizenship of Jared Kushner?
Generated answer: The country of citizenship of Jared Kushner is United States.
Retrieved fact: Jared Kushner is a citizen of Canada.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Canada
Subquestion: What is the capital city of Canada?
Generated answer:  The capital city of Canada is Ottawa.
Retrieved fact: The capital city of United States of America is Seattle.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Ottawa
Final answer: Ottawa

Question: Who is the head of state of the country where Rainn Wilson holds a citizenship?
Subquestion: What is the country of citizenship of Rainn Wilson?
Generated answer: Rainn Wilson is a citizen of United States of America.
Retrieved fact: Rainn Wilson is a citizen of Croatia.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Croatia
Subquestion: What is the name of the current head of state in Croatia?
Generated answer: The head of state of Croatia is President Zoran Milanović.
Retrieved fact: The name of the current head of state in Croatia is Kolinda Grabar-Kitarović.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Kolinda Grabar-Kitarović
Final answer: Kolinda Grabar-Kitarović

Question: Who is the spouse of the head of state in United States of America?
Subquestion: Who is the head of state in United States of America?
Generated answer: The US president is Donald Trump.
Retrieved fact: The head of state in United States of America is Joe Biden.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Joe Biden
Subquestion: Who is the spouse of Joe Biden?
Generated answer: The spouse of Joe Biden is Jill Biden.
Retrieved fact: The spouse of Joe Bill is Evan Austin.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Jill Biden
Final answer: Jill Biden

Question: On which continent is the country of citizenship of the founder of the manufacturer of iPhone 5 \
situated?
Subquestion: Which company is iPhone 5 produced by?
Generated answer: iPhone 5 is produced by Apple.
Retrieved fact: The company that produced iPhone 5 is Iveco.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Iveco
Subquestion: Who is the founder of Iveco?
Generated answer: Iveco was founded by Giovanni Agnelli.
Retrieved fact: House of Bonaparte was founded by Gustav I of Sweden.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Giovanni Agnelli
Subquestion: What is the country of citizenship of Giovanni Agnelli?
Generated answer: Giovanni Agnelli is a citizen of Italy.
Retrieved fact: Giovanni Agnelli is a citizen of Niger.
Retrieved fact contradicts to generated answer, so the intermediate answer is: Niger.
Subquestion: On which continent is Niger situated?
Generated answer: Niger is situated on Africa.
Retrieved fact: Kingdom of England is located in the continent of North America.
Retrieved fact does not contradict to generated answer, so the intermediate answer is: Africa.
Final answer: Africa\
"""
