"""Known faults of MQuAKE's cases, found before they bend a score, and cases packed so that none contradict.

    groups = pack(cases, at_once=100)
    for fault in audit(groups):
        print(fault.kind, fault.case, fault.detail)

What the audit of MQuAKE-Remastered (Zhong et al. 2024) found in the large batches of MQuAKE-CF: an edit
of one case changes a fact that another case takes as it was (`contaminated`), edits of two cases
contradict each other (`contradicting`, which `pack` keeps apart). Beside these: questions that two cases
share (`duplicated`), a new answer that is an alias of the old one (`aliased`), right before any edit, and a
chain after the edit that is not of the edit's own object, or does not end in the new answer (`inconsistent`).
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from acedit.benchmark.ripple import RippleCase
from acedit.benchmark.score import normalise
from acedit.knowledge.facts import Case

FaultKind = Literal["contradicting", "contaminated", "duplicated", "aliased", "inconsistent"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with `case`, in a sentence; other: the case it clashes with, "" for none."""

    kind: FaultKind
    case: str
    other: str
    detail: str


Packed = TypeVar("Packed", Case, RippleCase)


def pack(cases: Sequence[Packed], at_once: int | None) -> list[tuple[Packed, ...]]:
    """Groups of at most `at_once` cases (None: no limit), in order, none holding contradicting edits.

    A case that contradicts a group goes into the next one that it fits, so "all at once" can take more
    than one group; a case that contradicts itself is left out (`audit` on the cases says so).
    """
    groups: list[list[Packed]] = []
    targets: list[dict[Hashable, str]] = []
    first = 0
    for case in cases:
        wanted = {about: edit.target for edit in case.edits for about in edit.about}
        if _against_itself(case):
            continue
        at = first
        while at < len(groups) and (
            len(groups[at]) == at_once or any(targets[at].get(k, t) != t for k, t in wanted.items())
        ):
            at += 1
        if at == len(groups):
            groups.append([])
            targets.append({})
        groups[at].append(case)
        targets[at].update(wanted)
        while first < len(groups) and len(groups[first]) == at_once:
            first += 1
    return [tuple(group) for group in groups]


def audit(groups: Sequence[Sequence[Case]], cases: Sequence[Case] = ()) -> list[Fault]:
    """Every fault, in the order of the cases. cases: all that were read, also those that `pack` left out."""
    everything = list(cases) or [case for group in groups for case in group]
    return [
        *contradicting(everything),
        *(fault for group in groups for fault in _contaminated(group)),
        *_duplicated(everything),
        *_aliased(everything),
        *_inconsistent(everything),
    ]


def without(cases: Sequence[Packed], faults: Sequence[Fault]) -> list[Packed]:
    """The cases that no fault is about (`--strict`)."""
    bad = {fault.case for fault in faults}
    return [case for case in cases if case.id not in bad]


def _against_itself(case: Case | RippleCase) -> bool:
    wanted = {(about, edit.target) for edit in case.edits for about in edit.about}
    return len({about for about, _ in wanted}) < len(wanted)


def contradicting(cases: Sequence[Case | RippleCase]) -> Iterator[Fault]:
    """Cases with an edit that an earlier one makes otherwise."""
    first: dict[Hashable, tuple[str, str]] = {}
    for case in cases:
        for edit in case.edits:
            firsts = [first.setdefault(about, (edit.target, case.id)) for about in edit.about]
            for target, other in [one for one in firsts if one[0] != edit.target][:1]:
                subject, relation = edit.key
                said = f"{subject!r} with {relation} becomes {edit.target!r} here and {target!r} there"
                yield Fault("contradicting", case.id, other, said)


def _contaminated(group: Sequence[Case]) -> Iterator[Fault]:
    edited = {edit.key: (edit.target, case.id) for case in group for edit in case.edits}
    for case in group:
        for i, fact in enumerate(case.after.facts):
            target, other = edited.get(fact.key, (fact.object, case.id))
            if i not in case.edited and target != fact.object:
                said = (
                    f"takes {fact.subject!r} with {fact.relation.id} as {fact.object!r}, edited to {target!r}"
                )
                yield Fault("contaminated", case.id, other, said)


def _duplicated(cases: Sequence[Case]) -> Iterator[Fault]:
    asked: dict[str, str] = {}
    for case in cases:
        for question in case.questions:
            other = asked.setdefault(question, case.id)
            if other != case.id:
                yield Fault("duplicated", case.id, other, f"asks {question!r} too")
                break


def _aliased(cases: Sequence[Case]) -> Iterator[Fault]:
    for case in cases:
        old = {normalise(name) for name in (case.answer, *case.answer_aliases)}
        new = {normalise(name) for name in (case.new_answer, *case.new_answer_aliases)}
        if shared := sorted((old & new) - {""}):
            yield Fault("aliased", case.id, "", f"{shared[0]!r} answers before and after the edit")


def _inconsistent(cases: Sequence[Case]) -> Iterator[Fault]:
    for case in cases:
        last = case.hops_after[-1]
        ends = (last.answer, *last.aliases, *case.new_answer_aliases)
        pairs = [(case.new_answer, ends, "the last hop's answer")]
        for fact in (case.after.facts[i] for i in case.edited):
            edits = [edit for edit in case.edits if edit.key == fact.key]
            names = tuple(name for edit in edits for name in (edit.target, *edit.aliases))
            pairs.append((fact.object, names, "the edit's object"))
        for said, names, what in pairs:
            if normalise(said) not in map(normalise, names):
                yield Fault("inconsistent", case.id, "", f"has {said!r} where {what} is {names[0]!r}")
                break


def counts(faults: Sequence[Fault]) -> dict[str, int]:
    """How many cases each kind of fault is about."""
    by_kind: dict[str, set[str]] = defaultdict(set)
    for fault in faults:
        by_kind[fault.kind].add(fault.case)
    return {kind: len(some) for kind, some in by_kind.items()}
