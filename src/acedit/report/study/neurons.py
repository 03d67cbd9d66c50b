"""Which neurons are value neurons, which query neurons, which both: the paper's Tables 6 and 7."""

from collections import Counter, defaultdict
from typing import Any

from acedit.attribution.layers import signs, spaced, value_and_query
from acedit.attribution.value import top_neurons
from acedit.report.charts import chart
from acedit.report.study.base import Finding, Result, Setting, Study

MOST = 32  # questions
VALUE, QUERY = 10, 30  # neurons a question
SHOWN = 12


def run(setting: Setting) -> Result:
    """Top value and query neurons over questions, with their top tokens; how many can be read.

    A neuron counts as interpretable if one of its ten top tokens starts an answer of the questions' category.
    """
    lm, atlas = setting.lm, setting.atlas()
    questions = spaced(setting.questions, MOST)
    setting.say(f"value and query neurons of {len(questions)} questions")
    prompts, answers = [q.prompt for q in questions], [q.answer for q in questions]
    found = value_and_query(lm, prompts, answers, k=VALUE, spread=setting.spread())
    value: Counter[tuple[int, int]] = Counter()
    query: Counter[tuple[int, int]] = Counter()
    added: defaultdict[tuple[int, int], float] = defaultdict(float)  # nats, summed over those questions
    kinds: dict[tuple[int, int], set[str]] = {}
    for question, (best, scores) in zip(questions, found, strict=True):
        for neuron in best.neurons:
            value[neuron.layer, neuron.index] += 1
            added[neuron.layer, neuron.index] += neuron.score
            kinds.setdefault((neuron.layer, neuron.index), set()).add(question.category)
        for neuron in top_neurons(lm, scores.neurons, QUERY, named=False):
            query[neuron.layer, neuron.index] += 1
            kinds.setdefault((neuron.layer, neuron.index), set()).add(question.category)
    starts = {c: {lm.answer_ids(q.answer)[0] for q in setting.of(c)} for c in setting.categories}

    sign = signs(lm, prompts)

    def readable(place: tuple[int, int]) -> bool:
        tokens = set(atlas.ids(*place, sign=float(sign[place])).tolist())
        return any(tokens & starts[c] for c in kinds[place])

    shared = [place for place in value if place in query]
    share = {
        name: sum(map(readable, places)) / len(places) if places else float("nan")
        for name, places in (("value", list(value)), ("query", list(query)), ("shared", shared))
    }
    both = Counter({place: value[place] + query[place] for place in shared})
    listed: dict[str, list[dict[str, Any]]] = {
        name: [
            {
                "layer": place[0],
                "index": place[1],
                "questions": count,
                "increase": added[place] / value[place] if value[place] else None,
                "tokens": list(atlas.top_tokens(lm, *place, sign=float(sign[place]))),
            }
            for place, count in counter.most_common(SHOWN)
        ]
        for name, counter in (("value", value), ("query", query), ("shared", both))
    }
    findings = (
        Finding(
            "Value neurons can be read in vocabulary space, query neurons hardly",
            "much interpretable among value neurons, not much among query neurons (appendix D, Table 6)",
            f"interpretable: {share['value']:.0%} of {len(value)} value neurons, "
            f"{share['query']:.0%} of {len(query)} query neurons, "
            f"{share['shared']:.0%} of {len(shared)} shared",
            share["value"] > share["query"],
        ),
        Finding(
            "A value neuron by itself adds about a nat",
            "1.1542 and 0.4716 (Table 7)",
            "the two most often among the best add "
            + " and ".join(f"{row['increase']:.4f}" for row in listed["value"][:2])
            + ", mean over their questions",
            None,
        ),
    )
    bars = [
        {"layer": layer, "kind": name, "neurons": sum(1 for place in counter if place[0] == layer)}
        for name, counter in (("value", value), ("query", query))
        for layer in range(lm.n_layers)
    ]
    picture = chart(
        "Value and query neurons by layer",
        bars,
        "bar",
        x={"field": "layer", "type": "ordinal"},
        y={"field": "neurons", "type": "quantitative"},
        color={"field": "kind", "type": "nominal"},
        xOffset={"field": "kind"},
    )
    lines = []
    for name, rows in listed.items():
        lines.append(f"Top {name} neurons (questions, importance increase as value neurons, top tokens)")
        for r in rows:
            told = f"{r['questions']:>3} {_nats(r['increase'])}  {' '.join(r['tokens'])}"
            lines.append(f"  f{r['layer']}-{r['index']:<6} {told}")
    data = {"neurons": listed, "interpretable": share, "by_layer": bars, "n": len(questions)}
    tables = {
        f"Top {name} neurons": [{**row, "tokens": " ".join(map(repr, row["tokens"]))} for row in rows]
        for name, rows in listed.items()
        if rows
    }
    return Result("neurons", data, findings, {"neurons": picture}, "\n".join(lines), tables)


def _nats(increase: float | None) -> str:
    return f"{increase:7.4f}" if increase is not None else "      –"


STUDY = Study(
    "neurons", "Value, query and shared neurons, and their top tokens", "Tables 6 and 7", run, place=7
)
