"""Are the neurons that spell the answer the ones that matter? The paper's section 6.4, 27 neurons at zero."""

from typing import Any

import torch

from acedit.attribution.ablate import ablated
from acedit.attribution.atlas import Atlas
from acedit.attribution.certified import certified_top
from acedit.attribution.layers import signs, spaced
from acedit.attribution.value import Neuron
from acedit.lm.model import LanguageModel
from acedit.report.charts import chart
from acedit.report.study.base import Finding, Question, Result, Setting, Study

MOST = 64  # questions
COUNT = 27
NEAR = 0.1  # of a neuron's score: what counts as equally important
SAMPLES = 1000


def run(setting: Setting) -> Result:
    """Each question without its top neurons that spell the answer, and without as many that do not.

    Spelling: one of the ten top tokens, in the direction the neuron fires, is the answer's first token.
    The others are each the nearest in score to a spelling one, which is left out where none is within `NEAR`
    of it. `SAMPLES` answers are drawn from p(first token), seeded, over all questions.
    """
    lm, atlas = setting.lm, setting.atlas()
    questions = spaced(setting.questions, MOST)
    setting.say(f"neurons that spell the answers of {len(questions)} questions")
    every = certified_top(
        lm,
        [q.prompt for q in questions],
        [q.answer for q in questions],
        k=min(20 * COUNT, lm.n_layers * lm.n_neurons),
        scope="model",
        spread=setting.spread(),
    )
    rows: list[dict[str, Any]] = []
    for question, (best,) in zip(questions, every, strict=True):
        sign = signs(lm, [question.prompt])
        spelling, others = _sorted(lm, atlas, sign, question, best.neurons)
        chance = {"intact": _chance(lm, question, ())}
        chance["spelling"] = _chance(lm, question, spelling)
        chance["others"] = _chance(lm, question, others)
        rows.append(
            {
                "prompt": question.prompt,
                "neurons": len(spelling),
                "score_spelling": sum(n.score for n in spelling),
                "score_others": sum(n.score for n in others),
                **chance,
            }
        )
    generator = torch.Generator().manual_seed(setting.seed)
    drawn = torch.randint(len(rows), (SAMPLES,), generator=generator)
    luck = torch.rand(SAMPLES, generator=generator)
    share = {
        name: float((luck < torch.tensor([r[name] for r in rows])[drawn]).float().mean())
        for name in ("intact", "spelling", "others")
    }
    gap = torch.tensor([r["others"] - r["spelling"] for r in rows])
    again = gap[torch.randint(len(rows), (SAMPLES, len(rows)), generator=generator)].mean(1)
    low, high = again.quantile(torch.tensor([0.025, 0.975])).tolist()
    between = {"mean": float(gap.mean()), "low": low, "high": high}
    score = {name: sum(r[f"score_{name}"] for r in rows) / len(rows) for name in ("spelling", "others")}
    mean_count = sum(r["neurons"] for r in rows) / len(rows)
    findings = (
        Finding(
            "Few neurons that spell the answer decide it",
            "27 at zero leave 3.2%, 27 equally important others 59.4% (section 6.4)",
            f"{mean_count:.1f} at zero leave {share['spelling']:.1%}, as many others {share['others']:.1%} "
            f"(intact {share['intact']:.1%}; {SAMPLES} samples of {len(rows)} questions, whose mean p is "
            f"{between['mean']:.1%} [{low:.1%}, {high:.1%}] lower; they score {score['spelling']:.1f} and "
            f"{score['others']:.1f} nats in sum, a question)",
            share["spelling"] < 0.5 * share["others"] if mean_count else None,
        ),
    )
    picture = chart(
        "p(answer) without each sort of neuron, by question",
        [
            {"sort": name, "p": r[name], "intact": r["intact"]}
            for r in rows
            for name in ("spelling", "others")
        ],
        {"type": "point"},
        x={"field": "intact", "type": "quantitative"},
        y={"field": "p", "type": "quantitative"},
        color={"field": "sort", "type": "nominal"},
    )
    lines = [f"Right of {SAMPLES} samples: " + ", ".join(f"{k} {v:.1%}" for k, v in share.items())]
    data = {
        "rows": rows,
        "share": share,
        "others_less_spelling": between,
        "samples": SAMPLES,
        "at_most": COUNT,
    }
    tables = {"p(answer's first token), by question": rows}
    return Result("critical", data, findings, {"critical": picture}, "\n".join(lines), tables)


def _sorted(
    lm: LanguageModel, atlas: Atlas, sign: torch.Tensor, question: Question, ranked: tuple[Neuron, ...]
) -> tuple[list[Neuron], list[Neuron]]:
    """At most `COUNT` that spell the answer, best first, and for each the nearest in score that does not,
    within `NEAR` of it; as many of each."""
    first = lm.answer_ids(question.answer)[0]

    def spells(neuron: Neuron) -> bool:
        place = (neuron.layer, neuron.index)
        return first in atlas.ids(*place, sign=float(sign[place])).tolist()

    spelling = [i for i, neuron in enumerate(ranked) if spells(neuron)]
    free = [i for i, neuron in enumerate(ranked) if not spells(neuron)]
    pairs: list[tuple[Neuron, Neuron]] = []
    for i in spelling:
        score = ranked[i].score
        near = [j for j in free if abs(ranked[j].score - score) <= NEAR * abs(score)]
        if near and len(pairs) < COUNT:
            nearest = min(near, key=lambda j: abs(ranked[j].score - score))
            free.remove(nearest)
            pairs.append((ranked[i], ranked[nearest]))
    return [one for one, _ in pairs], [other for _, other in pairs]


def _chance(lm: LanguageModel, question: Question, neurons: tuple[Neuron, ...] | list[Neuron]) -> float:
    """p of the answer's first token with `neurons` at zero."""
    with ablated(lm, neurons):
        return float(lm.logits([question.prompt]).softmax(-1)[0, lm.answer_ids(question.answer)[0]])


STUDY = Study("critical", "Neurons that spell the answer set to zero", "Section 6.4", run, place=9)
