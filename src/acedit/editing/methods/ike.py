"""IKE (Zheng et al. 2023): the new fact is told in context, after demonstrations of what to do with one.

Demonstrations copy a new fact, carry it to another wording, or leave what it does not touch as it is,
one to three to four (section 4.1). They are made of known facts with other objects of their relation; the
nearest to the prompt stand nearest to it, as many as the context holds, `SHOTS` at most. Of a batch's edits
the `FACTS` nearest to the prompt are told.
"""

import random
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from acedit.editing.methods.method import Method
from acedit.editing.retrieve import Index
from acedit.knowledge.compose import Prompt, asked, reserved
from acedit.knowledge.facts import Edit, Fact
from acedit.lm.generation import greedy
from acedit.lm.model import LanguageModel

SHOTS = 32
FACTS = 4
POOL = 128  # demonstrations kept to choose from
KINDS = ("copy", "update", "update", "update", "retain", "retain", "retain", "retain")

METHODS = (
    Method(
        name="ike",
        summary="in context: demonstrations and the new fact before every prompt (Zheng et al. 2023)",
        reader="acedit.editing.methods.ike",
    ),
)


def remember(
    edits: Sequence[Edit], known: Sequence[Fact], exclude: Collection[str], seed: int
) -> tuple[Mapping[str, Any], list[Prompt]]:
    """What the reader is told, as a JSON object, and every prompt in it (for the leak rule)."""
    rng = random.Random(f"{seed}/ike")
    taken = {*exclude, *(edit.subject for edit in edits)}
    usable = [f for f in known if f.subject not in taken and not reserved(*f.key)]
    of: dict[str, list[Fact]] = {}
    for fact in usable:
        of.setdefault(fact.relation.id, []).append(fact)
    shown: list[Prompt] = []
    shots: list[dict[str, Any]] = []
    for n, fact in enumerate(rng.sample(usable, k=min(POOL, len(usable)))):
        kin = [f for f in of[fact.relation.id] if f.object != fact.object]
        if not kin:
            continue
        new, kind = rng.choice(kin).object, KINDS[n % len(KINDS)]
        about, answer, wording = fact.subject, new, fact.prompt
        if kind == "update":
            wording = rng.choice([*map(asked, fact.relation.questions), *fact.relation.prompts])
        elif kind == "retain":
            other = rng.choice(kin)
            about, answer = other.subject, other.object
        shown.append(Prompt(wording, about, answer, "replay"))
        text = f"{_told(fact.prompt.format(fact.subject), new)}\nPrompt: {shown[-1].text} {answer}"
        shots.append({"text": text, "about": [fact.subject, about]})
    facts = [_told(edit.prompt.format(edit.subject), edit.target) for edit in edits]
    subjects = [edit.subject for edit in edits]
    return {"facts": facts, "subjects": subjects, "shots": shots}, shown


def _told(said: str, new: str) -> str:
    return f"New Fact: {said} {new}"


class Reader:
    """Prompts behind demonstrations and the facts nearest to them."""

    weighs = True

    def __init__(self, lm: LanguageModel, memories: Sequence[Mapping[str, Any]]) -> None:
        self._lm = lm
        self._facts = [fact for memory in memories for fact in memory["facts"]]
        # A later edit's subject may stand in an earlier one's demonstrations, with what it was.
        edited = {subject for memory in memories for subject in memory["subjects"]}
        self._shots = [
            shot["text"]
            for memory in memories
            for shot in memory["shots"]
            if edited.isdisjoint(shot["about"])
        ]
        self._facts_at, self._shots_at = Index(self._facts), Index(self._shots)
        self._lengths = [len(lm.token_ids(shot)) for shot in self._shots]

    def context(self, prompt: str, room: int = 40) -> str:
        """The prompt as the model reads it, with `room` tokens of its context left for an answer."""
        before, blank, block = prompt.rpartition("\n\n")
        told = "\n".join(self._facts[i] for i in reversed(self._facts_at.nearest(block, FACTS)))
        asked = f"{told}\nPrompt: {block}"
        block = f"{before}{blank}{asked}" if told else prompt
        left = self._lm.context - room - len(self._lm.token_ids(block))
        shots: list[str] = []
        for i in self._shots_at.nearest(asked, SHOTS):
            left -= self._lengths[i] + 4
            if left < 0:
                break
            shots.insert(0, self._shots[i])
        return "\n\n".join([*shots, block])

    def generate(
        self,
        lm: LanguageModel,
        texts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] | re.Pattern[str],
        batch_size: int,
    ) -> list[str]:
        """Greedy continuations of the prompts in their contexts."""
        read = [self.context(text, room=max_new_tokens) for text in texts]
        return greedy(lm, read, max_new_tokens=max_new_tokens, stop=stop, batch_size=batch_size)
