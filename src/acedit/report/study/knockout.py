"""Does a category live in few neurons? The paper's Figure 2: the top 1% of a category set to zero."""

import random
from typing import Any

from acedit.attribution.ablate import ablated
from acedit.attribution.certified import certified_top
from acedit.attribution.value import Neuron
from acedit.report.charts import chart
from acedit.report.study.base import Finding, Result, Setting, Study, accuracy

SHARE = 0.01
DRAWS = 5


def run(setting: Setting) -> Result:
    """Accuracy on the category, on the others and under random 1%, with a category's top 1% at zero."""
    lm = setting.lm
    everything = lm.n_layers * lm.n_neurons
    count = max(1, round(SHARE * everything))
    rng = random.Random(f"{setting.seed}/knockout")
    rows: list[dict[str, Any]] = []
    spread = setting.spread()
    for category in setting.categories:
        setting.say(f"knocking out: {category}")
        own = setting.of(category)
        others = [q for q in setting.questions if q.category != category]
        prompts, answers = [q.prompt for q in own], [q.answer for q in own]
        ((best,),) = certified_top(lm, prompts, answers, k=count, scope="model", spread=spread, together=True)
        with ablated(lm, best.neurons):
            hit = accuracy(lm, own)
            other = accuracy(lm, others) if others else float("nan")
        chance = []
        for _ in range(DRAWS):
            picked = rng.sample(range(everything), k=count)
            with ablated(lm, [Neuron(*divmod(i, lm.n_neurons), 0.0) for i in picked]):
                chance.append(accuracy(lm, own))
        rows.append(
            {
                "category": category,
                "n": len(own),
                "own": hit,
                "others": other,
                "random": sum(chance) / len(chance),
            }
        )
    mean = {kind: sum(r[kind] for r in rows) / len(rows) for kind in ("own", "others", "random")}
    beside = f"{1 - mean['others']:.0%}" if len(rows) > 1 else "(there are none)"
    findings = (
        Finding(
            "1% of the neurons, chosen for a category, carries it",
            "over 90% of accuracy lost on it; 9.47% (GPT-J) and 8.19% (Qwen3-8B) at random (Fig. 2)",
            f"lost on the category {1 - mean['own']:.0%}, on the others {beside}, "
            f"at random {1 - mean['random']:.0%} ({count} of {everything:,} neurons, {DRAWS} draws)",
            mean["own"] < 0.1 and mean["random"] > 0.8,
        ),
    )
    long = [
        {"category": r["category"], "questions": kind, "accuracy": r[kind]}
        for r in rows
        for kind in ("own", "others", "random")
    ]
    picture = chart(
        "Accuracy with a category's top 1% of neurons at zero",
        long,
        "bar",
        x={"field": "category", "type": "nominal"},
        xOffset={"field": "questions"},
        y={"field": "accuracy", "type": "quantitative", "scale": {"domain": [0, 1]}},
        color={"field": "questions", "type": "nominal"},
    )
    lines = ["Accuracy with 1% of the neurons at zero: own category, others, random 1% on own"]
    lines += [
        f"  {r['category']:<16} {r['own']:.2f}  {r['others']:.2f}  {r['random']:.2f}  (n={r['n']})"
        for r in rows
    ]
    data = {"rows": rows, "neurons": count, "of": everything, "draws": DRAWS}
    tables = {"Right, by category": rows}
    return Result("knockout", data, findings, {"knockout": picture}, "\n".join(lines), tables)


STUDY = Study("knockout", "A category's top 1% of neurons set to zero", "Figure 2", run, place=3)
