"""Does the edit hold? Greedy answers, matched to an answer or an alias, over cases and their neighbours.

    scorer = Scorer(lm, cases, known=facts)
    records = scorer.score(range(len(cases)))       # with a patch applied: what the edited model says
    summary = summarise(records)                    # {"efficacy": {"value", "n", "low", "high", ...}, ...}

Multi-hop scores (`explicit`, `middle`, `implicit`, `mixed`, `direct`, `cot`) count a case as right if
any of its questions is (MQuAKE's rule), over the cases whose original chain, and whose continuation
after the edit, the unedited model answers hop by hop and as asked; `unfiltered` and `questions` (the
mean over questions) stand beside. Specificity is over neighbours the unedited model had right.
`explicit` to `mixed` and `direct` are answers without chain of thought, `cot` those under appendix G.1.
`efficacy_p`, `paraphrase_p` and `specificity_p` are the probability forms (ES, PS, NS of Meng et al. 2022):
is the new object likelier than the old one, and for others of the relation the true one than the new one,
by mean log p a token. `subset` is `cot` over the paper's own subset (B.1): every hop of the original chain
recalled under G.2, and its answer under G.1.
`left_out` is `direct` over the cases in which what follows from an edit is a relation that no prompt of
the edit asks after (`compose.left_out`); none, unless a share of them is left out on purpose.

Footgun: the Scorer asks the unedited model when it is made; make it before a patch is applied.
"""

import random
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from acedit.editing.patch import patches_off
from acedit.errors import UserError
from acedit.knowledge.compose import chain_question, left_out, reserved
from acedit.knowledge.facts import Case, Fact
from acedit.knowledge.prompts import (
    COT_PROMPT,
    COT_STOP,
    cot_prompt,
    direct_prompt,
    parse_cot_answer,
    single_hop_prompt,
)
from acedit.knowledge.relations import Relation, held_out
from acedit.lm.model import LanguageModel

METRICS = (
    "efficacy", "paraphrase", "specificity_subject", "specificity_relation", "specificity_chain",
    "explicit", "middle", "implicit", "mixed", "cot", "direct", "subset", "left_out",
    "efficacy_p", "paraphrase_p", "specificity_p",
)  # fmt: skip


def normalise(text: str) -> str:
    """Case, articles, punctuation of any script and spacing folded away (SQuAD's way), accents kept."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(" " if _is_punctuation(c) else c for c in text)
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def matches(said: str, answers: Iterable[str]) -> bool:
    """Whether the first line of `said` is one of `answers`, or starts with one and then ends a phrase.

    A continuation of a cloze may go on ("Lima. It lies ..."), so what follows the answer is allowed
    only after punctuation.
    """
    line = unicodedata.normalize("NFKC", said).strip().split("\n", 1)[0]
    whole = normalise(line)
    for answer in answers:
        wanted = normalise(answer)
        if not wanted:
            continue
        if whole == wanted:
            return True
        if whole.startswith(wanted + " ") and _ends_phrase(line, wanted):
            return True
    return False


def _ends_phrase(line: str, wanted: str) -> bool:
    for cut in re.finditer(r"[.,;:!?()。、]", line):
        head = normalise(line[: cut.start()])
        if head == wanted:
            return True
        if len(head) > len(wanted):
            return False
    return False


@dataclass(frozen=True)
class Record:
    """One thing scored: `right` by the metric's rule, `mean` over its questions, `passed` the filter."""

    metric: str
    case: str
    right: float
    mean: float
    passed: bool = True


@dataclass(frozen=True)
class _Probe:
    metric: str
    case: int
    prompt: str
    answers: tuple[str, ...]
    rival: str = ""  # what must be less likely than the first answer


@dataclass(frozen=True)
class Asked:
    """One question and what was said: all of it, thoughts included; `right` as the metric has it."""

    metric: str
    case: str
    prompt: str
    said: str
    right: bool


def continued(
    lm: LanguageModel, prompts: Sequence[str], *, batch_size: int = 64, **told: Any
) -> dict[str, str]:
    """What the model says to each prompt, greedily, in one go; a prompt that comes twice is asked once.

    told: `progress`, as `generate` takes it.
    """
    texts = list(dict.fromkeys(prompts))
    if not texts:
        return {}
    said = lm.generate(texts, max_new_tokens=24, batch_size=batch_size, **told)
    return dict(zip(texts, said, strict=True))


def _directly(question: _Probe) -> _Probe:
    return replace(question, metric="direct", prompt=direct_prompt(question.prompt))


def distinct(ids: Iterable[str]) -> None:
    """Raises UserError where an id stands for several cases: their answers would be counted as one's."""
    twice = [id for id, n in Counter(ids).items() if n > 1]
    if twice:
        raise UserError(
            f"{len(twice)} case ids stand for several cases, {twice[0]!r} among them; number them"
        )


Progress = Callable[[int, int, str], None]


class Scorer:
    """The probes of a set of cases, and what the unedited model says to them.

    known: facts the neighbours are drawn from; without any, the unedited hops of the cases and of those
    `beside` them serve. before: what the unedited model was asked, and said (`Asked`): the case's own hops
    and questions against the old answers, and the neighbours. Patches that are on come off for that.
    progress: told how many of the questions of the sort at hand are answered, all of them, and of what.
    Raises UserError for no cases, case ids that stand for several, and `cot` where G.1 does not fit.
    """

    before: list[Asked]

    def __init__(
        self,
        lm: LanguageModel,
        cases: Sequence[Case],
        *,
        known: Sequence[Fact] = (),
        beside: Sequence[Case] = (),
        cot: bool = True,
        seed: int = 0,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> None:
        if not cases:
            raise UserError("there are no cases to score")
        distinct(case.id for case in cases)
        if cot and (needed := len(lm.token_ids(COT_PROMPT))) >= lm.context:
            raise UserError(
                f"the few-shot prompt of thinking aloud (G.1) has {needed} tokens, the model's context is "
                f"{lm.context}: ask without it (--no-cot, cot=False)"
            )
        self._told: dict[str, Any] = {}
        if progress is not None:
            self._told["progress"] = lambda done, of: progress(done, of, "questions answered")
        self._lm, self._cases, self._cot, self._batch = lm, tuple(cases), cot, batch_size
        self.before = []
        with patches_off(lm):
            self._neighbours = self._having_right(list(_neighbours(cases, known, beside, seed)))
            self._passed = self._filter(seed)

    def _ask(self, probes: Sequence[_Probe]) -> list[Asked]:
        """Asked as they are, in one go; answers greedy."""
        said = continued(self._lm, [p.prompt for p in probes], batch_size=self._batch, **self._told)
        return [self._asked(p, said[p.prompt], said[p.prompt]) for p in probes]

    def _think(self, probes: Sequence[_Probe]) -> list[Asked]:
        """Asked under appendix G.1; what counts is the answer line."""
        if not probes:
            return []
        texts = self._lm.generate(
            [cot_prompt(p.prompt) for p in probes],
            max_new_tokens=160,
            stop=COT_STOP,
            batch_size=self._batch,
            **self._told,
        )
        return [
            self._asked(replace(p, prompt=cot_prompt(p.prompt)), said, parse_cot_answer(said))
            for p, said in zip(probes, texts, strict=True)
        ]

    def _asked(self, probe: _Probe, said: str, answer: str) -> Asked:
        id = self._cases[probe.case].id
        return Asked(probe.metric, id, probe.prompt, said, matches(answer, probe.answers))

    def _having_right(self, probes: list[_Probe]) -> list[_Probe]:
        asked = self._ask(probes)
        self.before += asked
        return [p for p, a in zip(probes, asked, strict=True) if a.right]

    def _filter(self, seed: int) -> dict[str, list[bool]]:
        """Which cases count, asked "direct" and in "cot" (Scoring, settled), and in the paper's "subset"."""
        hops: list[_Probe] = []
        shots: list[_Probe] = []
        questions: list[_Probe] = []
        for i, case in enumerate(self._cases):
            rng = random.Random(f"{seed}/{case.id}")
            for hop in case.hops_before:
                answers = (hop.answer, *hop.aliases)
                hops.append(_Probe("hop", i, direct_prompt(hop.question), answers))
                shots.append(_Probe("single_hop", i, single_hop_prompt(hop.question), answers))
            for j, hop in enumerate(case.hops_after):
                if j not in case.edited:
                    answers = (hop.answer, *hop.aliases)
                    hops.append(_Probe("hop", i, direct_prompt(hop.question), answers))
            for start, end in _unedited_runs(case):
                if end - start < 2:
                    continue
                facts = case.after.facts[start:end]
                wordings = [scoring_wordings(fact.relation) for fact in facts]
                if all(w.phrases for w in wordings[:-1]) and wordings[-1].questions:
                    question = chain_question(facts[0].subject, wordings, rng)
                    hop = case.hops_after[end - 1]
                    hops.append(_Probe("hop", i, direct_prompt(question), (hop.answer, *hop.aliases)))
            for question in case.questions:
                questions.append(_Probe("cot", i, question, (case.answer, *case.answer_aliases)))
        knows = self._all_right(hops, self._ask(hops))
        direct = self._any_right(
            questions,
            self._ask([_directly(q) for q in questions]),
        )
        passed = {"direct": [k and d for k, d in zip(knows, direct, strict=True)]}
        if self._cot:
            recalls = self._all_right(shots, self._ask(shots))
            # Only cases whose hops are known can count, so only they are worth the longer prompt.
            worth = [q for q in questions if knows[q.case] or recalls[q.case]]
            thought = self._any_right(worth, self._think(worth))
            passed["cot"] = [k and t for k, t in zip(knows, thought, strict=True)]
            passed["subset"] = [r and t for r, t in zip(recalls, thought, strict=True)]
        return passed

    def _all_right(self, probes: Sequence[_Probe], asked: Sequence[Asked]) -> list[bool]:
        self.before += asked
        right = [True] * len(self._cases)
        for probe, answer in zip(probes, asked, strict=True):
            right[probe.case] = right[probe.case] and answer.right
        return right

    def _any_right(self, probes: Sequence[_Probe], asked: Sequence[Asked]) -> list[bool]:
        self.before += asked
        right = [False] * len(self._cases)
        for probe, answer in zip(probes, asked, strict=True):
            right[probe.case] = right[probe.case] or answer.right
        return right

    def passed(self, which: str) -> list[bool]:
        """By case, whether it counts: `which` is "direct", "cot" or "subset" (the last two with `cot`)."""
        return list(self._passed[which])

    def asked(self, picked: Iterable[int]) -> list[Asked]:
        """Ask the model as it now stands about the cases at the given indices."""
        chosen = list(picked)
        inside = set(chosen)
        probes = [p for p in self._neighbours if p.case in inside]
        questions = []
        for i in chosen:
            case = self._cases[i]
            for edit, wordings in zip(case.edits, case.paraphrases, strict=True):
                answers = (edit.target, *edit.aliases)
                cloze = edit.prompt.format(edit.subject)
                probes.append(_Probe("efficacy", i, cloze, answers, edit.old))
                for wording in wordings:
                    text = direct_prompt(wording.format(edit.subject))
                    probes.append(_Probe("paraphrase", i, text, answers, edit.old))
            answers = (case.new_answer, *case.new_answer_aliases)
            questions += [_Probe("cot", i, question, answers) for question in case.questions]
        chances = self._weigh(probes)
        probes += [_directly(q) for q in questions]
        return [*self._ask(probes), *chances, *(self._think(questions) if self._cot else [])]

    def _weigh(self, probes: Sequence[_Probe]) -> list[Asked]:
        """The probability forms of probes about an edit, where its old object is known."""
        rows: list[tuple[_Probe, str, str]] = []
        for probe in probes:
            metric = probe.metric.replace("specificity_relation", "specificity") + "_p"
            if metric in METRICS and (probe.rival or "") not in ("", probe.answers[0]):
                rows.append((replace(probe, metric=metric), probe.answers[0], probe.rival))
        reader = self._lm.reader
        if not rows or (reader is not None and not reader.weighs):
            return []
        asks = list(dict.fromkeys((p.prompt, answer) for p, *both in rows for answer in both))
        losses = self._lm.answer_nll(*map(list, zip(*asks, strict=True)), batch_size=self._batch)
        loss = dict(zip(asks, losses, strict=True))
        asked = []
        for probe, wanted, rival in rows:
            ours, theirs = loss[probe.prompt, wanted], loss[probe.prompt, rival]
            said = f"log p {-ours:.3f} {wanted} | {-theirs:.3f} {rival}"
            id = self._cases[probe.case].id
            asked.append(Asked(probe.metric, id, probe.prompt, said, ours < theirs))
        return asked

    def records(self, asked: Sequence[Asked], *, left_out: float = 0.0) -> list[Record]:
        """What was asked as records, a case's three questions as one.

        left_out: the share of second relations that the edit's prompts left out (`Amounts.left_out`).
        """
        by_id = {case.id: i for i, case in enumerate(self._cases)}
        records = [
            Record(a.metric, a.case, float(a.right), float(a.right))
            for a in asked
            if a.metric not in ("direct", "cot")
        ]
        for metric in ("direct", "cot"):
            marks: dict[str, list[float]] = defaultdict(list)
            for a in asked:
                if a.metric == metric:
                    marks[a.case].append(float(a.right))
            for id, each in marks.items():
                i = by_id[id]
                case, right, mean = self._cases[i], max(each), sum(each) / len(each)
                passed = self._passed[metric][i]
                records.append(Record(metric, id, right, mean, passed))
                if metric == "cot":
                    records.append(Record("subset", id, right, mean, self._passed["subset"][i]))
                    continue
                records.append(Record(case.position, id, right, mean, passed))
                if _follows_left_out(case, left_out):
                    records.append(Record("left_out", id, right, mean, passed))
        return records

    def score(self, picked: Iterable[int], *, left_out: float = 0.0) -> list[Record]:
        """Ask, and make records of it."""
        return self.records(self.asked(picked), left_out=left_out)


def _unedited_runs(case: Case) -> list[tuple[int, int]]:
    """Stretches [start, end) of the chain after the edit that hold no edited hop."""
    runs, start = [], 0
    for j in range(len(case.after.facts) + 1):
        if j == len(case.after.facts) or j in case.edited:
            if j > start:
                runs.append((start, j))
            start = j + 1
    return runs


def _unedited(case: Case) -> list[Fact]:
    """The facts of the chain after the edit that are as they were."""
    return [fact for j, fact in enumerate(case.after.facts) if j not in case.edited]


def _follows_left_out(case: Case, share: float) -> bool:
    """Whether an edited hop is followed by a relation that the edit's prompts leave out."""
    facts = case.after.facts
    return any(
        j + 1 < len(facts) and left_out(facts[j].subject, facts[j + 1].relation.id, share)
        for j in case.edited
    )


def scoring_wordings(relation: Relation) -> Relation:
    """The wordings that a relation is scored with: those held out, else its own."""
    return held_out(relation.id) or relation


def _question(fact: Fact, rng: random.Random) -> str:
    wording = scoring_wordings(fact.relation)
    if wording.questions:
        return direct_prompt(rng.choice(wording.questions).format(fact.subject))
    return rng.choice(wording.prompts).format(fact.subject)


def _neighbours(
    cases: Sequence[Case], known: Sequence[Fact], beside: Sequence[Case], seed: int
) -> Iterable[_Probe]:
    """Unedited facts and chains around each case; of the known ones only those no edit is made from."""
    edited = {edit.key for case in cases for edit in case.edits}
    facts = {
        fact.key: fact
        for case in (*beside, *cases)
        for fact in (*case.before.facts, *_unedited(case))
        if fact.key not in edited
    }
    if known:
        # What follows at once from a new object is asked by the edit, reserved or not.
        asked = {edit.target for case in cases for edit in case.edits}
        facts = {
            f.key: f for f in known if f.key not in edited and reserved(*f.key) and f.subject not in asked
        }
    everything = {**facts, **{f.key: f for f in known if f.key not in edited}}
    by_subject: dict[str, list[Fact]] = defaultdict(list)
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    onward: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts.values():
        by_subject[fact.subject].append(fact)
        by_relation[fact.relation.id].append(fact)
    for fact in everything.values():
        onward[fact.subject].append(fact)
    touched = {edit.subject for case in cases for edit in case.edits}
    starts = [f for f in facts.values() if f.subject not in touched and f.relation.phrases]
    for i, case in enumerate(cases):
        rng = random.Random(f"{seed}/neighbours/{case.id}")
        for edit in case.edits:
            for fact in by_subject[edit.subject]:
                yield _probe("specificity_subject", i, fact, rng)
            same = [f for f in by_relation[edit.relation.id] if f.subject != edit.subject]
            for fact in rng.sample(same, k=min(4, len(same))):
                yield replace(_probe("specificity_relation", i, fact, rng), rival=edit.target)
        found = 0
        for fact in rng.sample(starts, k=min(12, len(starts))):
            on = [g for g in onward[fact.object] if fact.object not in touched and g.object != fact.subject]
            if on and found < 3:
                found += 1
                end = rng.choice(on)
                hops = [scoring_wordings(fact.relation), scoring_wordings(end.relation)]
                if not (hops[0].phrases and hops[1].questions):
                    continue
                text = direct_prompt(chain_question(fact.subject, hops, rng))
                yield _Probe("specificity_chain", i, text, (end.object, *end.aliases))


def _probe(metric: str, case: int, fact: Fact, rng: random.Random) -> _Probe:
    return _Probe(metric, case, _question(fact, rng), (fact.object, *fact.aliases))


def summarise(records: Sequence[Record], *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean, n and a 95% interval (bootstrap over cases, 1,000 draws) of every metric.

    Multi-hop metrics are over the cases that pass the filter; `unfiltered` and `questions` stand
    beside. A metric nothing was scored for has n = 0 and NaN.
    """
    return {metric: _summary([r for r in records if r.metric == metric], seed) for metric in METRICS}


def _summary(records: Sequence[Record], seed: int) -> dict[str, float]:
    passed = [r for r in records if r.passed]
    low, high = interval(passed, seed)
    return {
        "value": _mean([r.right for r in passed]),
        "n": len(passed),
        "low": low,
        "high": high,
        "questions": _mean([r.mean for r in passed]),
        "unfiltered": _mean([r.right for r in records]),
        "n_unfiltered": len(records),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def least_share(n: int) -> float:
    """The lower end of Clopper and Pearson's exact 95% interval for what all of n cases show."""
    share: float = 0.025 ** (1 / n)
    return share


def interval(records: Sequence[Record], seed: int, draws: int = 1000) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the mean, cases drawn with replacement.

    Where all are right, or none is, drawing shows no spread: then Clopper and Pearson's exact interval for
    so many cases; of one case that is right in part nothing is known.
    """
    by_case: dict[str, list[float]] = defaultdict(list)
    for record in records:
        by_case[record.case].append(record.right)
    if not by_case:
        return float("nan"), float("nan")
    total = np.array([sum(v) for v in by_case.values()])
    count = np.array([len(v) for v in by_case.values()])
    if total.sum() in (0, count.sum()):
        edge = least_share(len(total))
        return (edge, 1.0) if total.sum() else (0.0, 1 - edge)
    if len(total) == 1:  # one case shows no spread either
        return 0.0, 1.0
    picks = np.random.default_rng(seed).integers(0, len(total), (draws, len(total)))
    means = total[picks].sum(1) / count[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
