"""The main job: edits in, a patch out, the model unchanged.

    patch = edit(lm, edits, known=facts, method="ace")
    with patch.applied(lm):
        lm.answer("Which country does his sport come from?")

What makes an edit: its own wordings, the known facts that lead to its subject or follow from its new
object, and the model's own beliefs. What no prompt does: start from an entity of `exclude`, use a wording
kept for scoring, or use a fact that `compose.reserved` keeps (but for what follows at once from a new
object). Made with patches on, an edit takes what they say for known; `ace` and `ft-same` say some of it again
and hold the rest to the model below them. The text for the covariance is the known facts said as they are,
before the edit.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from acedit.attribution.plan import Plan
from acedit.editing.batch import split
from acedit.editing.keys import edited_keys
from acedit.editing.methods import Beside, Method
from acedit.editing.methods import method as named_method
from acedit.editing.patch import LayerUpdate, Patch, edits_on, patches_off, place_of
from acedit.editing.polish import polish
from acedit.editing.preserve import metric_beside, metric_of, text_of
from acedit.editing.sayable import unsayable
from acedit.editing.solve import Metric
from acedit.editing.stages import Stage, Update, Writing, added_up, sweep, updates_in
from acedit.editing.target import search
from acedit.errors import UserError
from acedit.knowledge.compose import Composer, Prompt, Wordings, asked_thoughts, known_after
from acedit.knowledge.facts import Edit, Fact, distinct_edits
from acedit.knowledge.prompts import COT_PROMPT
from acedit.lm.generation import greedy
from acedit.lm.model import LanguageModel
from acedit.waiting import Countdown

log = logging.getLogger("acedit")

Progress = Callable[[str], None]

KEPT = ("hold", "replay")  # held to the unedited model, nothing is written
ENDINGS, ALIKE = 64, 0.9  # known answers whose ends are looked at, and the share that must end alike


def edit(
    lm: LanguageModel,
    edits: Sequence[Edit],
    *,
    known: Sequence[Fact] = (),
    method: str | Method = "ace",
    exclude: Collection[str] = (),
    avoid: Collection[str] = (),
    plan: Plan | None = None,
    seed: int = 0,
    text: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    watch: Callable[[Sequence[Prompt]], None] | None = None,
) -> Patch:
    """Write `edits` (at least one; identical ones count once) into a patch.

    `lm` is unchanged on return, also when this raises.

    known: what the model knows already; prompts that reach the subjects, consequences, and what is to
    be protected come from it. exclude: entities no prompt may start from. avoid: texts no prompt may hold
    (`benchmark.leak`). plan: layers for the method's stages, found by `locate` if not given and there are
    any. text: what the key covariance is taken over; `text_of` what is known if not given. watch:
    shown every prompt before anything is written; what it raises ends the edit.

    Raises UserError for edits that contradict each other or change nothing, whose prompts do not fit the
    model, or that are left without any by `avoid`, and for weights that are not finite.
    """
    chosen = named_method(method) if isinstance(method, str) else method
    for name, barred in (("exclude", exclude), ("avoid", avoid)):
        if isinstance(barred, str):
            raise UserError(f"{name} is the text {barred!r}: give a collection of texts")
    edits = distinct_edits(edits)
    if not edits:
        raise UserError("there are no edits: give at least one")
    lm.refuse_broken()
    tell = progress or (lambda _: None)
    fingerprint = lm.fingerprint
    if not known:
        log.warning(
            "no known facts given: the edit is made from its own prompts alone, "
            "so chains that pass through it, and its neighbours, are not looked after"
        )
    _notice_known(edits, known)
    for answer, token in unsayable(lm, [one.target for one in edits]).items():
        log.warning(
            "the model cannot say %r: its training never told the token %r from others", answer, token
        )
    given = known
    earlier = _reworded(edits_on(lm), [*known, *edits])
    known = believed(lm, edits, known_after(known, earlier))
    memory: Mapping[str, Any] = {}
    if chosen.reader:
        memory, composed = import_module(chosen.reader).remember(edits, known, exclude, seed)
        prompts = composed
    else:
        composed = Composer(
            edits,
            known,
            exclude=exclude,
            avoid=avoid,
            seed=seed,
            amounts=chosen.amounts,
            earlier=earlier if chosen.polish is not None and chosen.amounts.replay else (),
        ).prompts()
        prompts = _worded(lm, edits, composed, chosen)
        _all_worded(edits, prompts)
    essence = _essence(lm, edits, avoid) if chosen.essence else []
    if watch is not None:
        watch([*prompts, *essence])
    if plan is None and chosen.planned:
        from acedit.editing.plan import find_plan

        tell("choosing layers")
        trying = Countdown(tell, "layers tried, at either token")
        ranked = bool(chosen.skip_query or chosen.skip_value)
        with patches_off(lm):
            plan = find_plan(
                lm,
                edits,
                [p for p in composed if p.edit >= 0 or p.kind in KEPT],
                ranked=ranked,
                progress=lambda done, of, _: trying(done, of),
            )
    if plan is not None:
        plan.checked(lm.n_layers)
    plan = plan if chosen.planned else None
    updates: list[Update] = []
    if not chosen.reader:
        texts = cache(lambda: text or text_of(lm, given))  # read by some methods only
        updates = _write(lm, edits, prompts, essence, chosen, plan, seed, texts, cache_dir, tell)
    for update in updates:
        if not (update.left.isfinite().all() and update.right.isfinite().all()):
            raise UserError(
                f"layer {update.layer}: the edit came out NaN or infinite; are the model's weights whole?"
            )
    return Patch(
        updates=tuple(LayerUpdate(u.layer, u.left.cpu(), u.right.cpu()) for u in updates),
        edits=tuple(edits),
        plan={} if plan is None else plan.to_json(),
        method=chosen.name,
        settings=asdict(chosen),
        seed=seed,
        fingerprint=fingerprint,
        place=place_of(lm, [u.layer for u in updates]),
        memory=memory,
    )


def believed(lm: LanguageModel, edits: Sequence[Edit], known: Sequence[Fact]) -> list[Fact]:
    """`known` less the facts about new objects, up to three hops on, that the model does not hold."""
    by_subject: dict[str, list[Fact]] = {}
    for fact in known:
        by_subject.setdefault(fact.subject, []).append(fact)
    onward: dict[tuple[str, str], Fact] = {}
    reached = {edit.target for edit in edits}
    for _ in range(3):
        more = {f.key: f for subject in sorted(reached) for f in by_subject.get(subject, ())}
        onward |= more
        reached = {f.object for f in more.values()}
    if not onward:
        return list(known)
    asked = [Prompt(f.prompt, f.subject, f.object, "replay", -1) for f in onward.values()]
    doubted = set()
    with torch.no_grad():
        for batch in split(lm, asked):
            for prompt, right in zip(batch.prompts, batch.right(batch.logits(lm)).tolist(), strict=True):
                if not right:
                    doubted.add((prompt.subject, prompt.template))
    return [f for f in known if f.key not in onward or (f.subject, f.prompt) not in doubted]


def _reworded(earlier: Sequence[Edit], by: Sequence[Fact | Edit]) -> list[Edit]:
    """`earlier` edits in the wordings that `by` has for their relations, without those that score one."""
    relations = {one.relation.id: one.relation for one in by}
    return [replace(one, relation=relations.get(one.relation.id, one.relation)) for one in earlier]


def _notice_known(edits: Sequence[Edit], known: Sequence[Fact]) -> None:
    """Say where an edit changes nothing, or not what its `old` says, by the known facts."""
    held: dict[tuple[str, str], set[str]] = {one.key: set() for one in edits}
    for fact in known:
        if fact.key in held:
            held[fact.key] |= {fact.object, *fact.aliases}
    for one in edits:
        told = held[one.key]
        if one.target in told:
            log.warning("the known facts already say %r of %r", one.target, one.prompt.format(one.subject))
        elif told and one.old and one.old not in told:
            log.warning(
                "the edit says that %r was %r, the known facts say %r",
                one.prompt.format(one.subject), one.old, sorted(told)[0],
            )  # fmt: skip


def _layers(stage: Stage, plan: Plan | None, chosen: Method) -> tuple[int, ...]:
    assert plan is not None, "a method with stages has a plan"
    found: tuple[int, ...] = getattr(plan, f"{stage.where}_layers")
    if stage.where == "query":
        found = _widened(found, stage.width, plan)
    if stage.where != "middle":
        found = _skipped(found, plan, chosen, stage.where)
    return found[-1:] if stage.deepest else found


def _widened(layers: tuple[int, ...], width: int, plan: Plan) -> tuple[int, ...]:
    """`layers` and those above, `width` in all, below the value layers; as they are in a plan by hand."""
    if not layers or len(layers) >= width or "reach" not in plan.scores:
        return layers
    above = [layer for layer in plan.value_layers if layer > layers[-1]]
    return tuple(range(layers[0], min([layers[0] + width, len(plan.scores["reach"]), *above])))


def _skipped(layers: Sequence[int], plan: Plan, chosen: Method, where: str) -> tuple[int, ...]:
    """`layers` without those that `skip_query` or `skip_value` leaves out, the most important first."""
    count: int = getattr(chosen, f"skip_{where}")
    if count and where not in plan.scores:
        raise UserError(
            "layers can be left out by importance only where they were ranked: leave --preset out"
        )
    most = sorted(layers, key=lambda layer: -plan.scores[where][layer])[:count] if count else []
    return tuple(layer for layer in layers if layer not in most)


def _all_worded(edits: Sequence[Edit], prompts: Sequence[Prompt]) -> None:
    """Raises UserError for an edit that no prompt says: each of its wordings is one to avoid."""
    said = {p.edit for p in prompts if p.kind == "single"}
    for i, edit in enumerate(edits):
        if i not in said:
            raise UserError(
                f"every wording of the edit {edit.prompt.format(edit.subject)!r} that the method takes is "
                "one that scores it: give its relation a prompt that is not among the case's questions"
            )


def _worded(
    lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt], chosen: Method
) -> list[Prompt]:
    """The prompts as the method reads them: answered, in the wordings and behind the contexts it asks for."""
    with patches_off(lm):
        prompts = own_answers(lm, prompts)
    held = [p for p in prompts if p.kind in KEPT]
    written = [p for p in prompts if p.kind not in KEPT]
    primed = _primed(lm, written) if chosen.primed else []
    if not chosen.wordings:
        written = [
            p for p in written if p.kind != "single" or p.edit < 0 or p.template == edits[p.edit].prompt
        ]
    if chosen.prefixes:
        written = _prefixed(lm, written, chosen.prefixes)
    if chosen.ends:
        written = ended(lm, written, held)
    return [*written, *primed, *held]


def _write(
    lm: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    essence: Sequence[Prompt],
    chosen: Method,
    plan: Plan | None,
    seed: int,
    texts: Callable[[], Sequence[str]],
    cache_dir: Path | None,
    tell: Progress,
) -> list[Update]:
    """Targets, the sweep, the polish."""
    held = [p for p in prompts if p.kind in KEPT]
    single = [p for p in prompts if p.kind not in KEPT]
    if chosen.writer:

        def written(writings: Sequence[Writing], layers: Sequence[int]) -> list[Update]:
            metric = metric_of(lm, chosen, texts(), layers, [], cache_dir, edits, tell)
            tell("writing layer by layer")
            return swept(lm, writings, metric, chosen)

        beside_it = Beside(essence, written, tell)
        made: list[Update] = import_module(chosen.writer).write(lm, edits, prompts, beside_it)
        return made
    touched = sorted({layer for stage in chosen.stages for layer in _layers(stage, plan, chosen)})
    if chosen.layers == "all":
        touched = list(range(lm.n_layers))
        if plan is not None:
            kept = [set(_skipped(touched, plan, chosen, where)) for where in ("query", "value")]
            touched = sorted(set.intersection(*kept))
    elif chosen.layers == "query" and plan is not None:
        touched = list(_skipped(plan.query_layers, plan, chosen, "query")[-1:])
    if not touched and (chosen.stages or chosen.polish):
        raise UserError(
            f"method {chosen.name!r} has no layer to write: skip fewer, or give a plan with layers of its "
            "kind"
        )
    groups = [[p for p in single if p.edit >= 0]]
    if chosen.one_by_one:
        groups = [[p for p in single if p.edit == i] for i in range(len(edits))]
    updates: list[Update] = []
    if chosen.stages:
        # Keys of the edited subjects themselves are where the edit is to be written.
        own = {one.subject for one in edits}
        others = split(lm, [p for p in held if p.subject not in own]) if chosen.known else []
        metric = metric_of(lm, chosen, texts(), touched, others, cache_dir, edits, tell)
        for group in groups:
            for stages in [(stage,) for stage in chosen.stages] if chosen.in_turn else [chosen.stages]:
                with updates_in(lm, updates):
                    writings = _targets(lm, group, essence, stages, plan, chosen, len(edits), tell)
                    tell("writing layer by layer")
                    more = swept(lm, writings, metric, chosen)
                updates = added_up(updates, more)
    else:
        zero = torch.zeros(lm.d_model, 1, device=lm.device)
        updates = [Update(layer, zero, torch.zeros(1, lm.n_neurons, device=lm.device)) for layer in touched]
    if chosen.polish is not None:
        pulled = [p for p in single if p.kind in chosen.polished]
        if all(p.edit < 0 for p in pulled):
            raise UserError(
                f"method {chosen.name!r} has no prompt to write ({', '.join(chosen.polished)}): give known "
                "facts that lead to the edited subjects, or another method"
            )
        beside = None
        if chosen.polish.space == "whitened":
            kin = [p for p in prompts if p.kind == "hold" and p.subject != edits[p.edit].subject]
            near = chosen.polish.near
            keys = edited_keys(lm, split(lm, kin), touched) if kin and near else None
            beside = metric_beside(lm, texts(), touched, keys, near, cache_dir, tell)
        tell("polishing")
        stepping = Countdown(tell, "steps")

        def stepped(step: int, steps: int, wrong: Mapping[str, int]) -> None:
            stepping(step, steps, f" ({wrong['edit']} prompts unsaid, {wrong['replay']} kept ones moved)")

        updates = polish(
            lm,
            updates,
            pulled,
            held,
            chosen.polish,
            seed=seed,
            metric=beside,
            progress=stepped,
        )
    return updates


def _essence(lm: LanguageModel, edits: Sequence[Edit], avoid: Collection[str]) -> list[Prompt]:
    """What the model says a subject is (Eq. 13's KL holds it), but for what holds a text of `avoid`."""
    about = [Prompt("{} is a", one.subject, "", "keep", i) for i, one in enumerate(edits)]
    barred = Wordings(avoid)
    return [p for p in own_answers(lm, about) if not barred.said_in(p.whole)]


def own_answers(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """`prompts`, those without an answer with what the model says to them; dropped where it says nothing."""
    unsaid = [p for p in prompts if not p.answer]
    said = greedy(lm, [p.text for p in unsaid], max_new_tokens=12) if unsaid else []
    lines = (text.strip().split("\n", 1)[0] for text in said)
    own = [replace(p, answer=line) for p, line in zip(unsaid, lines, strict=True) if line]
    return [p for p in prompts if p.answer] + own


def ended(lm: LanguageModel, prompts: Sequence[Prompt], held: Sequence[Prompt]) -> list[Prompt]:
    """`prompts` with the token by which the model ends what it knows (`held`'s replay) in the same form.

    Left without one where it ends them in several ways. A name that the model never said has no end of its
    own: "Abomey" went on as "Abomeyerusalem".
    """
    ends: dict[str, int] = {}
    for form in {p.form for p in prompts}:
        some = [p for p in held if p.kind == "replay" and p.form == form][:ENDINGS]
        if not some:
            continue
        after = lm.logits([p.whole for p in some]).argmax(-1)
        token, count = Counter(after.tolist()).most_common(1)[0]
        if count >= ALIKE * len(some):
            ends[form] = token
    return [replace(p, end=ends.get(p.form)) for p in prompts]


def swept(
    lm: LanguageModel,
    writings: Sequence[Writing],
    metric: Callable[[int, float], Metric],
    chosen: Method,
) -> list[Update]:
    """The sweep. Raises UserError where the closed form has no solution."""
    slack = 0.0 if chosen.form == "equality" else 1.0
    try:
        return sweep(lm, writings, metric, slack=slack)
    except (torch.linalg.LinAlgError, ValueError) as error:  # type: ignore[attr-defined,unused-ignore]
        said = " ".join(str(error).split())
        raise UserError(
            f"method {chosen.name!r} has no solution here ({said}): the text for the covariance is too "
            "short; give more known facts, or another method"
        ) from error


def _targets(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    essence: Sequence[Prompt],
    stages: Sequence[Stage],
    plan: Plan | None,
    chosen: Method,
    n_edits: int,
    tell: Progress,
) -> list[Writing]:
    """v* of every stage that has prompts and layers, on the model as it stands; `essence` is held."""
    writings = []
    for stage in stages:
        rows = [p for p in prompts if p.kind in stage.kinds]
        layers = _layers(stage, plan, chosen)
        if not rows:
            tell(f"{stage.name} stage: no prompt for it, it writes nothing")
        if not rows or not layers:
            continue
        tell(f"{stage.name} stage: v* for {len({p.edit for p in rows})} edits at layer {layers[-1]}")
        batches = tuple(split(lm, rows))
        about = {p.edit for p in rows}
        held = [p for p in essence if p.edit in about]
        searched = split(lm, [*rows, *held]) if held else batches
        targets = search(
            lm,
            searched,
            layers[-1],
            token=stage.token,
            n_edits=n_edits,
            settings=stage.target,
            progress=Countdown(tell, "steps at most"),
        )
        writings.append(Writing(stage, layers, batches, targets))
    return writings


def _primed(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that think aloud, behind the shots of G.1; of an edit without questions its own prompt, put
    as one. Raises UserError where they do not fit."""
    room = lm.context - len(lm.token_ids(COT_PROMPT))
    if room < 64:
        raise UserError(f"primed prompts need the shots of G.1, and the model's context is {lm.context}")
    shots = COT_PROMPT.replace("{", "").replace("}", "") + "\n\n"
    aloud = [p for p in prompts if "\nThoughts:" in p.template]
    asked = {p.edit for p in aloud if p.kind == "single"}
    alone = [p for p in prompts if p.kind == "single" and p.edit >= 0]
    silent = {p.edit: p for p in reversed(alone) if p.edit not in asked}
    aloud += [replace(p, template=f"{asked_thoughts(p.text)} {p.template}") for p in silent.values()]
    return [replace(p, template=shots + p.template) for p in aloud]


def _prefixed(lm: LanguageModel, prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Each prompt as it is, single-hop ones also behind `count` short contexts of the model's own (MEMIT)."""
    starts = ("The", "Therefore", "Because", "I", "You", "Today")
    texts = greedy(lm, list(starts[:count]), max_new_tokens=8)
    contexts = [f"{start}{text.rstrip()}. " for start, text in zip(starts, texts, strict=False)]
    clean = [c.replace("{", "").replace("}", "") for c in contexts]
    return [
        *prompts,
        *(
            replace(p, template=context + p.template)
            for p in prompts
            if p.kind == "single"
            for context in clean
        ),
    ]
