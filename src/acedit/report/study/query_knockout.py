"""What do query neurons carry? The paper's section 4.2: the top ones of the two peak layers set to zero."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acedit.attribution.ablate import ablated
from acedit.attribution.certified import certified_counts, certified_top
from acedit.attribution.layers import spaced, value_and_query
from acedit.attribution.spread import Spread
from acedit.attribution.value import Neuron, top_neurons
from acedit.errors import UserError
from acedit.report.charts import charts_by
from acedit.report.study.base import Finding, Question, Result, Setting, Study, accuracy

MOST = 16  # questions
COUNT = 100  # neurons; an eighth of a layer's where that is fewer
DRAWS = 5
ACTIVE = 100  # value neurons counted as active in the intact run, a question
LEADING = 10


def run(setting: Setting) -> Result:
    """Accuracy, and active value neurons above, with query neurons at zero and with random ones.

    A value neuron is active if it scores no less (Eq. 9) than a question's `ACTIVE`th best did in the
    intact model. Raises UserError for a model of one layer.
    """
    lm = setting.lm
    if lm.n_layers < 2:
        raise UserError("query neurons feed layers above them: the model has one layer only")
    reasoned, what = setting.reasoned
    questions = spaced(reasoned, MOST)
    count = min(COUNT, lm.n_neurons // 8)
    prompts, answers = [q.prompt for q in questions], [q.answer for q in questions]
    setting.say(f"query neurons of {len(questions)} of {what}")
    spread = setting.spread()
    query = torch.zeros(lm.n_layers, lm.n_neurons)
    for _, scores in value_and_query(lm, prompts, answers, k=LEADING, spread=spread):
        query += scores.neurons.cpu().float()
    usable = query.sum(1)[:-1]  # the last layer has none above
    peaks = usable.argsort(descending=True)[:2].tolist()
    most = min(ACTIVE, lm.n_layers * lm.n_neurons)
    best = certified_top(lm, prompts, answers, k=most, scope="model", spread=spread)
    limits = [found.neurons[-1].score for (found,) in best]
    intact = torch.tensor([n.layer for (found,) in best for n in found.neurons]).bincount(
        minlength=lm.n_layers
    ) / len(questions)
    rng = random.Random(f"{setting.seed}/query-knockout")
    rows: list[dict[str, Any]] = []
    for peak in peaks:
        setting.say(f"knocking out query neurons of layer {peak}")
        picked = [
            Neuron(peak, one.index, one.score) for one in top_neurons(lm, query[[peak]], count, named=False)
        ]
        drawn = [
            [Neuron(peak, i, 0.0) for i in rng.sample(range(lm.n_neurons), k=count)] for _ in range(DRAWS)
        ]
        hit = _without(setting, spread, questions, picked, limits)
        chance = [_without(setting, spread, questions, some, limits) for some in drawn]
        rows.append(
            {
                "layer": peak,
                "accuracy": hit[0],
                "random": sum(c[0] for c in chance) / DRAWS,
                "above": [float(intact[layer]) for layer in range(peak + 1, lm.n_layers)],
                "above_after": [float(hit[1][layer]) for layer in range(peak + 1, lm.n_layers)],
                "above_random": [
                    float(sum(c[1][layer] for c in chance) / DRAWS) for layer in range(peak + 1, lm.n_layers)
                ],
            }
        )
    lost = [1 - r["accuracy"] for r in rows]
    at_random = [1 - r["random"] for r in rows]
    kept = [sum(r["above_after"]) / max(1e-9, sum(r["above"])) for r in rows]
    kept_random = [sum(r["above_random"]) / max(1e-9, sum(r["above"])) for r in rows]
    findings = (
        Finding(
            "A hundred query neurons of a peak layer carry much of the answer",
            "46.2% and 61.9% of accuracy lost at the two peak layers (section 4.2)",
            f"{' and '.join(f'{x:.0%}' for x in lost)} lost at layers {peaks} ({count} neurons each), "
            f"{' and '.join(f'{x:.0%}' for x in at_random)} at random",
            min(lost) > 0.3 and max(at_random) < min(lost),
        ),
        Finding(
            "Those query neurons switch the value neurons above them on",
            "active value neurons in the next three layers fall from (28, 16, 33) to (6, 4, 7)",
            f"{' and '.join(f'{x:.0%}' for x in kept)} of the active ones above are left, "
            f"{' and '.join(f'{x:.0%}' for x in kept_random)} at random",
            max(kept) < 0.5 < min(kept_random),
        ),
    )
    long = [
        {
            "layer": f"without those of layer {r['layer']}",
            "at": r["layer"] + 1 + i,
            "run": name,
            "active": r[key][i],
        }
        for r in rows
        for name, key in (("intact", "above"), ("without", "above_after"), ("random", "above_random"))
        for i in range(len(r["above"]))
    ]
    pictures = charts_by(
        "layer",
        long,
        "query-knockout",
        "Active value neurons a question, by layer",
        "bar",
        x={"field": "at", "type": "ordinal", "title": "layer"},
        xOffset={"field": "run"},
        y={"field": "active", "type": "quantitative"},
        color={"field": "run", "type": "nominal"},
    )
    lines = [f"{len(questions)} of {what}: layer, accuracy without its query neurons, without random ones"]
    lines += [f"  {r['layer']:>3} {r['accuracy']:.2f}  {r['random']:.2f}" for r in rows]
    tables = {"Right without a layer's query neurons": [
        {"layer": r["layer"], "accuracy": r["accuracy"], "random": r["random"]} for r in rows
    ]}  # fmt: skip
    data = {"rows": rows, "neurons": count, "draws": DRAWS, "n": len(questions), "of": what}
    return Result("query-knockout", data, findings, pictures, "\n".join(lines), tables)


def _without(
    setting: Setting,
    spread: Spread,
    questions: Sequence[Question],
    neurons: Sequence[Neuron],
    limits: Sequence[float],
) -> tuple[float, Tensor]:
    """Accuracy and active value neurons a question by layer with `neurons` at zero."""
    prompts, answers = [q.prompt for q in questions], [q.answer for q in questions]
    with ablated(setting.lm, neurons):
        right = accuracy(setting.lm, questions)
        active = certified_counts(setting.lm, prompts, answers, limits, spread=spread)
    return right, active.float().mean(0)


STUDY = Study("query-knockout", "The peak layers' query neurons set to zero", "Section 4.2", run, place=5)
