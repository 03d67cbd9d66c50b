"""Facts, edits, chains and cases, and the files that hold them.

    edits = read_edits("edits.json")        # MQuAKE's format, the small form, or JSONL of edits
    facts = read_facts("edits.json")        # what the model knows already (small form)
    cases = read_cases("MQuAKE-CF-3k-v2.json")

Footguns: a MQuAKE file gives no known facts: its chains are what is scored. Identical edits are merged
with a notice in the log; contradicting ones are refused. Every complaint names the file, the field and
the mend, and is a `UserError`.
"""

import json
import logging
import unicodedata
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from acedit.errors import UserError
from acedit.knowledge.files import line_rows, list_rows, read_utf8
from acedit.knowledge.relations import Relation, held_out, mquake

log = logging.getLogger("acedit")

_OF_FILES = frozenset({"relations", "facts", "edits"})
_OF_FACTS = frozenset({"subject", "relation", "object", "aliases"})
_OF_RELATIONS = frozenset({"prompts", "questions", "phrase", "phrases"})
# Of an edit in the small form.
_FIELDS = frozenset({"subject", "relation", "target", "old", "aliases", "prompt", "question", "paraphrases"})

_ROUND = str.maketrans("{}", "()")

Position = Literal["explicit", "middle", "implicit", "mixed"]


@dataclass(frozen=True)
class Fact:
    """A subject, a relation with its wordings, and an object (with aliases)."""

    subject: str
    relation: Relation
    object: str
    aliases: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The canonical cloze template: "{} is a citizen of"."""
        return self.relation.prompt

    @property
    def key(self) -> tuple[str, str]:
        """What the fact is about: subject and relation id."""
        return self.subject, self.relation.id


@dataclass(frozen=True)
class Edit:
    """(s, r, o → o*): `target` is o*, `old` is o ("" where unknown), `aliases` are the target's."""

    subject: str
    relation: Relation
    target: str
    old: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The cloze template the edit is written on."""
        return self.relation.prompt

    @property
    def key(self) -> tuple[str, str]:
        """What the edit is about: subject and relation id."""
        return self.subject, self.relation.id

    @property
    def about(self) -> tuple[Hashable, ...]:
        """What two edits with other targets contradict each other by: the key, and the sentence itself."""
        return self.key, self.prompt.format(self.subject)

    @property
    def fact(self) -> Fact:
        """The fact that is true once the edit is in."""
        return Fact(self.subject, self.relation, self.target, self.aliases)


@dataclass(frozen=True)
class Chain:
    """Facts where each object is the next subject. Raises UserError where they do not link up."""

    facts: tuple[Fact, ...]

    def __post_init__(self) -> None:
        for i, (a, b) in enumerate(zip(self.facts, self.facts[1:], strict=False)):
            if a.object != b.subject:
                raise UserError(f"chain breaks at hop {i + 1}: {a.object!r} is not the subject {b.subject!r}")


@dataclass(frozen=True)
class Hop:
    """One hop as it is asked: a question, a cloze, and the answer with its aliases."""

    question: str
    cloze: str
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A MQuAKE item. `edited` are the indices of edited hops in the chain after the edit; `paraphrases`
    holds, for each edit, the wordings that score it; a chain of one hop has no `questions`; `raw` is the
    item as it was, unknown fields kept."""

    id: str
    edits: tuple[Edit, ...]
    before: Chain
    after: Chain
    questions: tuple[str, ...]
    answer: str
    answer_aliases: tuple[str, ...]
    new_answer: str
    new_answer_aliases: tuple[str, ...]
    hops_before: tuple[Hop, ...]
    hops_after: tuple[Hop, ...]
    edited: tuple[int, ...]
    paraphrases: tuple[tuple[str, ...], ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)

    @property
    def start(self) -> str:
        """The entity that the scored questions start from."""
        return self.after.facts[0].subject

    @property
    def scored_texts(self) -> set[str]:
        """Every scored multi-hop question, and every scored wording of an edit, subject filled in."""
        wordings = {
            wording.format(edit.subject)
            for edit, several in zip(self.edits, self.paraphrases, strict=True)
            for wording in several
        }
        return {*self.questions, *wordings}

    @property
    def position(self) -> Position:
        """Where the edited facts stand in the chain after the edit."""
        last = len(self.after.facts) - 1
        places: set[Position] = {
            "explicit" if i == 0 else "implicit" if i == last else "middle" for i in self.edited
        }
        return places.pop() if len(places) == 1 else "mixed"


@dataclass(frozen=True)
class EditsFile:
    """All that a file of edits says: the edits, what is known beside them, the cases that ask after them."""

    edits: list[Edit]
    facts: list[Fact]
    cases: list[Case]


def read_edits_file(path: str | Path) -> EditsFile:
    """What `read_edits` and `read_facts` give, and the cases of a file that asks something (else none).

    It is parsed once. Raises UserError as `read_edits`.
    """
    data = _data(path)
    rows = data if isinstance(data, list) else []
    asks = is_mquake(rows) and any("questions" in row for row in rows if isinstance(row, dict))
    return EditsFile(_edits(path, data), _facts(path, data), cases_in(path, rows) if asks else [])


def read_edits(path: str | Path) -> list[Edit]:
    """The edits of a file: MQuAKE's rewrites, the small form, a list of edits, or JSONL of edits.

    Identical edits are merged, with a notice. Raises UserError naming file, field and mend.
    """
    return _edits(path, _data(path))


def read_facts(path: str | Path) -> list[Fact]:
    """The known facts of a small-form file, with the file's relation wordings, or of a list of facts.

    A MQuAKE file gives none (its chains are what is scored), nor does a list of edits. Raises UserError as
    `read_edits`.
    """
    return [] if is_mquake(_first(path, 1)) else _facts(path, _data(path))


def read_cases(path: str | Path) -> list[Case]:
    """Cases in MQuAKE's own format, unknown fields kept. Raises UserError as `read_edits`."""
    return cases_in(path, read_rows(path))


def read_rows(path: str | Path, most: int | None = None) -> list[Any]:
    """A file of cases, parsed and no more; of a list or of lines, read as a stream, the first `most` alone.

    Raises UserError as `read_edits`, of what lies behind those not at all.
    """
    return (_first(path, most) if most else []) or _rows(path, _data(path), "cases")[0]


def _first(path: str | Path, most: int | None) -> list[Any]:
    """The first `most` rows of a list or of lines (None: a list's all); none of another or a broken file, or
    of a pipe, which can be read once."""
    if not Path(path).is_file():
        return []
    for rows in (list_rows, line_rows) if most else (list_rows,):
        with suppress(OSError, ValueError, RecursionError):
            return list(islice(rows(path), most))
    return []


def cases_in(path: str | Path, rows: list[Any]) -> list[Case]:
    """The cases of a file's rows. Raises UserError naming `path`, field and mend."""
    if not is_mquake(rows):
        raise UserError(
            f"{path}: these are not MQuAKE cases (no requested_rewrite); give a file of cases, or make one "
            "of edits with 'acedit cases'"
        )
    return cases_from(rows, path)


def cases_from(rows: Sequence[Mapping[str, Any]], source: str | Path = "cases") -> list[Case]:
    """Cases from MQuAKE items already in memory."""
    return [_Item(source, i, row).case() for i, row in enumerate(rows)]


def _edits(path: str | Path, data: Any) -> list[Edit]:
    rows, relations = _rows(path, data, "edits")
    if is_mquake(rows):
        edits = [edit for i, row in enumerate(rows) for edit in _Item(path, i, row).edits()]
    else:
        edits = [_small_edit(path, f"edits[{i}]", row, relations) for i, row in enumerate(rows)]
    return _merged(path, edits)


def _facts(path: str | Path, data: Any) -> list[Fact]:
    rows, relations = _rows(path, data, "facts")
    if is_mquake(rows):
        return []
    facts = []
    for i, row in enumerate(rows):
        at = _At(path, f"facts[{i}]", row)
        at.notice_strange(_OF_FACTS)
        relation = at.relation(relations)
        facts.append(Fact(at.name("subject"), relation, at.name("object"), at.texts("aliases")))
    return facts


def _data(path: str | Path) -> Any:
    """What the file holds as JSON; lines of it as a list."""
    data: Any = _first(path, None) or _parse(path, read_utf8(path, "a JSON file"))
    if isinstance(data, dict) and {"subject", "requested_rewrite"} & set(data):
        return [data]  # JSONL of one row
    return data


def _rows(path: str | Path, data: Any, wanted: str) -> tuple[list[Any], Mapping[str, Relation]]:
    """The rows of `wanted` ("edits", "facts" or "cases") in a file's data, and the file's own relations."""
    if isinstance(data, list):
        if not data:
            raise UserError(f"{path}: the list is empty; give at least one item")
        if wanted == "facts" and not is_mquake(data):
            # A list of edits brings no facts.
            return [row for row in data if not isinstance(row, dict) or "target" not in row], {}
        return data, {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds {_kind(data)}; give a list or an object with {wanted!r}")
    if not {"relations", "facts", "edits"} & set(data):
        raise UserError(f"{path}: has none of 'relations', 'facts', 'edits'; see the README for the form")
    _At(path, "the file", data).notice_strange(_OF_FILES)
    relations = _relations(path, data.get("relations", {}))
    rows = data.get(wanted, [])
    if not isinstance(rows, list):
        raise UserError(f"{path}: {wanted} is {_kind(rows)}; give a list")
    if not rows and wanted == "edits":
        raise UserError(f"{path}: edits is missing or empty; give at least one edit")
    return rows, relations


def _parse(path: str | Path, text: str) -> Any:
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    try:
        return _json(path, text)
    except json.JSONDecodeError as error:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        if (
            len(lines) < 2
            or not lines[0][1].lstrip().startswith("{")
            or not lines[0][1].rstrip().endswith("}")
        ):
            where = f"line {error.lineno}, column {error.colno}"
            raise UserError(f"{path}: not JSON at {where}: {error.msg}") from None
        rows = []
        for number, line in lines:
            try:
                rows.append(_json(path, line, f"line {number} "))
            except json.JSONDecodeError as bad:
                raise UserError(f"{path}: not JSON at line {number}, column {bad.colno}: {bad.msg}") from None
        return rows


def _json(path: str | Path, text: str, where: str = "") -> Any:
    """What json.loads gives. Raises UserError for what Python's reader gives up on, JSON or not."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        wrong = "it is nested too deep"
    except ValueError:
        wrong = "it holds a number of too many digits"
    raise UserError(f"{path}: {where}cannot be read as JSON: {wrong}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def is_mquake(rows: Sequence[Any]) -> bool:
    """Whether a file's rows are MQuAKE items."""
    return bool(rows) and isinstance(rows[0], dict) and "requested_rewrite" in rows[0]


@dataclass(frozen=True)
class _At:
    """One object of a file, for complaints that name file and field."""

    path: str | Path
    field: str
    row: Any

    def __post_init__(self) -> None:
        if not isinstance(self.row, dict):
            raise UserError(f"{self.path}: {self.field} is {_kind(self.row)}; give an object")

    def notice_strange(self, known: Collection[str]) -> None:
        """Tell of fields that are not read and nearly called like one that is."""
        for name in self.row.keys() - set(known):
            if meant := get_close_matches(name, sorted(known), n=1, cutoff=0.8):
                log.warning("%s: %s.%s is not read; did you mean %r?", self.path, self.field, name, meant[0])

    def fail(self, name: str, wrong: str, mend: str) -> UserError:
        return UserError(f"{self.path}: {self.field}.{name} {wrong}; {mend}")

    def get(self, name: str, kind: type, mend: str) -> Any:
        if name not in self.row:
            raise self.fail(name, "is missing", mend)
        value = self.row[name]
        if not isinstance(value, kind):
            raise self.fail(name, f"is {_kind(value)}", mend)
        return value

    def text(self, name: str, *, optional: bool = False) -> str:
        if optional and self.row.get(name) is None:
            return ""
        value: str = self.get(name, str, "give a text")
        if not value.strip() and not optional:
            raise self.fail(name, "is empty", "give a text")
        return self.whole(name, value).strip()

    def whole(self, name: str, value: str) -> str:
        """`value`. Raises UserError where it cannot be written as UTF-8."""
        try:
            value.encode()
        except UnicodeEncodeError:
            wrong = f"is {value!r}, half of a surrogate pair"
            raise self.fail(name, wrong, "write the sign as it is") from None
        return value

    def name(self, name: str) -> str:
        """A text that goes where a template has {}."""
        value = self.text(name)
        if "{}" in value:
            raise self.fail(name, f"is {value!r}", "a name cannot hold {}, where templates put it")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        if self.row.get(name) is None:
            return ()
        values = self.get(name, list, "give a list of texts")
        if not all(isinstance(value, str) for value in values):
            raise self.fail(name, "holds something that is not a text", "give a list of texts")
        return tuple(self.whole(name, value) for value in values)

    def template(self, name: str, value: str) -> str:
        if value.count("{}") != 1 or set("{}") & set(value.replace("{}", "")):
            raise self.fail(
                name, f"is {value!r}", "write exactly one {} where the subject goes, and no other brace"
            )
        return value

    def templates(self, name: str) -> tuple[str, ...]:
        return tuple(self.template(name, value.strip()) for value in self.texts(name))

    def child(self, name: str) -> "_At":
        return _At(self.path, f"{self.field}.{name}", self.get(name, dict, "give an object"))

    def children(self, name: str, *, empty: bool = False) -> list["_At"]:
        rows = self.get(name, list, "give a list")
        if not rows and not empty:
            raise self.fail(name, "is empty", "give at least one")
        return [_At(self.path, f"{self.field}.{name}[{i}]", row) for i, row in enumerate(rows)]

    def wordings(self, id: str, prompt: str | None = None) -> Relation:
        """The relation `id` as the row's own field "wordings" has it, which starts with `prompt` if given."""
        at = self.child("wordings")
        prompts = at.templates("prompts")
        if not prompts:
            raise at.fail("prompts", "is missing or empty", "give at least one cloze with {}")
        if prompt not in (None, prompts[0]):
            raise at.fail("prompts", f"does not start with {prompt!r}", "put the row's own prompt first")
        return Relation(id, prompts, at.templates("questions"), at.templates("phrases"), name=id)

    def relation(self, own: Mapping[str, Relation]) -> Relation:
        id = self.text("relation")
        found = own.get(id) or mquake().get(id)
        if found is None:
            raise self.fail(
                "relation",
                f"is {id!r}, which is unknown",
                "describe it under 'relations', or give the edit its own 'prompt'",
            )
        return found


def _relations(path: str | Path, data: Any) -> dict[str, Relation]:
    if not isinstance(data, dict):
        raise UserError(f"{path}: relations is {_kind(data)}; give an object of relations by id")
    found = {}
    for id, row in data.items():
        at = _At(path, f"relations.{id}", row)
        at.notice_strange(_OF_RELATIONS)
        prompts = at.templates("prompts")
        if not prompts:
            raise at.fail("prompts", "is missing or empty", "give at least one cloze with {}")
        phrase = at.text("phrase", optional=True)
        phrases = (at.template("phrase", phrase),) if phrase else at.templates("phrases")
        found[id] = Relation(id, prompts, at.templates("questions"), phrases, name=id)
    return found


def _small_edit(path: str | Path, field_name: str, row: Any, relations: Mapping[str, Relation]) -> Edit:
    at = _At(path, field_name, row)
    at.notice_strange(_FIELDS)
    if "prompt" in at.row:
        prompt = at.template("prompt", at.text("prompt"))
        extra = at.templates("paraphrases")
        question = at.text("question", optional=True)
        questions = (at.template("question", question),) if question else ()
        id = at.text("relation", optional=True)
        base = relations.get(id) or mquake().get(id)
        relation = Relation(
            id=id or f"prompt:{prompt}",
            prompts=(prompt, *extra),
            questions=questions or (base.questions if base else ()),
            phrases=base.phrases if base else (),
            name=id,
        )
    else:
        relation = at.relation(relations)
        for field_of_prompt in ("question", "paraphrases"):
            if at.row.get(field_of_prompt) is not None:
                raise at.fail(
                    field_of_prompt, "stands without 'prompt'", "give the edit a 'prompt' of its own"
                )
    edit = Edit(
        subject=at.name("subject"),
        relation=relation,
        target=at.name("target"),
        old=at.text("old", optional=True),
        aliases=at.texts("aliases"),
    )
    return _changing(at, "target", edit)


def _changing(at: _At, name: str, edit: Edit) -> Edit:
    if _same(edit.target, edit.old):
        raise at.fail(name, f"is {edit.target!r}, which is the old object too", "give a new object")
    return edit


def _same(one: str, other: str) -> bool:
    """Whether two names are the same, written alike but for capitals, spaces and Unicode's forms."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def distinct_edits(edits: Iterable[Edit]) -> list[Edit]:
    """The edits, one a fact, with the wordings of all that say it.

    Raises UserError where two contradict, and for one without a prompt or whose target is its old object.
    """
    found: dict[tuple[str, str], Edit] = {}
    said: dict[Hashable, Edit] = {}
    for edit in edits:
        if not edit.relation.prompts:
            raise UserError(f"the edit of {edit.subject!r} has no prompt: give its relation at least one")
        if edit.old and _same(edit.target, edit.old):
            raise UserError(
                f"the edit of {edit.subject!r} is to {edit.target!r}, its old object: give a new one"
            )
        found.setdefault(edit.key, edit)
        for about in edit.about:
            other = said.setdefault(about, edit)
            if other.target != edit.target:
                raise UserError(
                    f"edits contradict each other: {edit.subject!r} with {edit.relation.id!r} is to be "
                    f"both {other.target!r} and {edit.target!r}; keep one"
                )
        found[edit.key] = _with_wordings_of(found[edit.key], edit)
    return list(found.values())


def _with_wordings_of(edit: Edit, other: Edit) -> Edit:
    """`edit`, also in the words of another that says the same."""

    def both(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*ours, *theirs)))

    one, two = edit.relation, other.relation
    relation = replace(
        one,
        prompts=both(one.prompts, two.prompts),
        questions=both(one.questions, two.questions),
        phrases=both(one.phrases, two.phrases),
    )
    return replace(edit, relation=relation, aliases=both(edit.aliases, other.aliases))


def _template(cloze: str, subject: str) -> str:
    """`cloze` with {} for its subject; braces of its own become round ones."""
    if not subject:
        return cloze.translate(_ROUND)
    before, found, after = (part.translate(_ROUND) for part in cloze.partition(subject))
    return f"{before}{{}}{after}" if found else before


def _merged(path: str | Path, edits: Sequence[Edit]) -> list[Edit]:
    try:
        found = distinct_edits(edits)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if len(found) < len(edits):
        log.warning("%s: %d identical edits were merged", path, len(edits) - len(found))
    return found


def _nested(row: Any) -> Any:
    """An item with MQuAKE's nesting, also of one that lies flat, as MQuAKE-Remastered's do."""
    if not isinstance(row, dict) or "orig" in row or "orig_triples" not in row:
        return row
    names = ("triples", "triples_labeled", "new_triples", "new_triples_labeled")
    orig = {name: row[key] for name in names for key in (name, f"orig_{name}") if key in row}
    rewrites = row.get("requested_rewrite")
    if isinstance(rewrites, list):
        rewrites = [_nested_rewrite(one) for one in rewrites]
    return {**row, "orig": orig, "requested_rewrite": rewrites}


def _nested_rewrite(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    flat = {name: row[f"{name}_str"] for name in ("target_new", "target_true") if f"{name}_str" in row}
    return {**{name: {"str": value} for name, value in flat.items()}, **row}


class _Item:
    """One MQuAKE item."""

    def __init__(self, path: str | Path, index: int, row: Any) -> None:
        self.at = _At(path, f"[{index}]", _nested(row))
        self.raw = row

    def edits(self) -> list[Edit]:
        return [self._edit(at) for at in self.at.children("requested_rewrite")]

    def _edit(self, at: _At) -> Edit:
        prompt = at.template("prompt", at.text("prompt"))
        id = at.text("relation_id")
        known = mquake().get(id)
        if "wordings" in at.row:
            known = at.wordings(id, prompt)
        elif known is None or known.prompt != prompt:
            question = at.text("question", optional=True).replace(at.name("subject"), "{}", 1)
            known = Relation(
                id=id,
                prompts=(prompt,),
                questions=(at.template("question", question),) if question.count("{}") == 1 else (),
                phrases=known.phrases if known else (),
            )
        new = at.child("target_new").name("str")
        return _changing(
            at,
            "target_new",
            Edit(
                subject=at.name("subject"),
                relation=known,
                target=new,
                old=at.child("target_true").text("str") if "target_true" in at.row else "",
                aliases=self._aliases(new),
            ),
        )

    def _aliases(self, answer: str) -> tuple[str, ...]:
        for hop in self.at.children("new_single_hops"):
            if hop.text("answer") == answer:
                return hop.texts("answer_alias")
        return ()

    def case(self) -> Case:
        at = self.at
        edits = self.edits()
        before, hops_before = self._chain("triples", "single_hops")
        after, hops_after = self._chain("new_triples", "new_single_hops")
        keys = {edit.key for edit in edits}
        edited = tuple(i for i, fact in enumerate(after.facts) if fact.key in keys)
        if not edited:
            raise at.fail("orig.new_triples", "holds no edited fact", "check requested_rewrite")
        paraphrases = []
        for row, edit in zip(at.children("requested_rewrite"), edits, strict=True):
            own = row.templates("scored_paraphrases")
            held = held_out(edit.relation.id)
            paraphrases.append(own or ((*held.prompts, *held.questions) if held else ()))
        questions = at.texts("questions")
        if not questions and len(after.facts) > 1:
            raise at.fail("questions", "is missing or empty", "give at least one multi-hop question")
        if not all(question.strip() for question in questions):
            raise at.fail("questions", "holds an empty one", "take it out")
        return Case(
            id=at.whole("case_id", str(at.row.get("case_id", at.field))),
            edits=tuple(edits),
            before=before,
            after=after,
            questions=questions,
            answer=at.text("answer"),
            # MQuAKE-T's further answers are as right.
            answer_aliases=(*at.texts("answer_alias"), *at.texts("answer_extended")),
            new_answer=at.text("new_answer"),
            new_answer_aliases=at.texts("new_answer_alias"),
            hops_before=hops_before,
            hops_after=hops_after,
            edited=edited,
            paraphrases=tuple(paraphrases),
            raw=self.raw,
        )

    def _chain(self, triples: str, hops: str) -> tuple[Chain, tuple[Hop, ...]]:
        orig = self.at.child("orig")
        ids = orig.get(triples, list, "give a list of triples")
        labels = orig.get(f"{triples}_labeled", list, "give a list of triples")
        asked = self.at.children(hops)
        if not len(ids) == len(labels) == len(asked):
            raise self.at.fail(
                hops,
                f"has {len(asked)} hops, orig.{triples} {len(ids)} and orig.{triples}_labeled {len(labels)}",
                "give as many of each",
            )
        facts, said = [], []
        for i, (triple, label, hop) in enumerate(zip(ids, labels, asked, strict=True)):
            if not (isinstance(triple, list) and isinstance(label, list) and len(triple) == len(label) == 3):
                raise orig.fail(f"{triples}[{i}]", "is not a triple", "give [subject, relation, object]")
            if not all(isinstance(name, str) for name in (triple[1], *label)):
                raise orig.fail(f"{triples}[{i}]", "holds something that is not a text", "give texts")
            for name in (triple[1], *label):
                orig.whole(f"{triples}[{i}]", name)
            one = Hop(hop.text("question"), hop.text("cloze"), hop.text("answer"), hop.texts("answer_alias"))
            if "wordings" in hop.row:
                relation = hop.wordings(triple[1])
            else:
                relation = mquake().get(triple[1]) or Relation(
                    triple[1], (_template(one.cloze, label[0]),), name=label[1]
                )
            facts.append(Fact(label[0], relation, label[2], one.aliases))
            said.append(one)
        try:
            return Chain(tuple(facts)), tuple(said)
        except UserError as error:
            raise orig.fail(f"{triples}_labeled", f"is no chain: {error}", "put its hops in order") from None
