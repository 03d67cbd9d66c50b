"""Do query neurons fire before the value neurons they feed? The paper's Figure 3, and the lag measured."""

import torch
from torch import Tensor

from acedit.attribution.layers import spaced, value_and_query
from acedit.report.charts import chart
from acedit.report.study.base import Finding, Result, Setting, Study

MOST = 32  # questions
VALUE = 100  # value neurons a question; as many as a third of all where there are fewer
LEADING = 10  # of those that query neurons are held against


def run(setting: Setting) -> Result:
    """By layer: summed query score (Eq. 10), and how many of each question's top value neurons stand there.

    The lag is the shift of the value counts against the query curve at which they correlate most. Part of it
    is built in: Eq. 10 scores a neuron only against value neurons above it.
    """
    lm = setting.lm
    questions = spaced(setting.questions, MOST)
    k = min(VALUE, lm.n_layers * lm.n_neurons // 3)
    setting.say(f"query and value neurons by layer of {len(questions)} questions")
    prompts, answers = [q.prompt for q in questions], [q.answer for q in questions]
    counts, query = torch.zeros(lm.n_layers), torch.zeros(lm.n_layers)
    for best, scores in value_and_query(lm, prompts, answers, k=k, leading=LEADING):
        for neuron in best.neurons:
            counts[neuron.layer] += 1 / len(questions)
        query += scores.neurons.clamp(min=0).sum(1).cpu().float() / len(questions)
    lags = lag_correlations(query, counts)
    best_lag = max(lags, key=lambda lag: lags[lag])
    findings = (
        Finding(
            "Query layers come before the value layers they feed",
            "by 1 to 2 layers, in GPT-J (Fig. 3, section 4.2)",
            f"by {best_lag} layers (correlation {lags[best_lag]:.2f}; {lags[0]:.2f} without a shift)",
            1 <= best_lag <= 2,
        ),
    )
    rows = [
        {"layer": layer, "query": float(query[layer]), "value_neurons": float(counts[layer])}
        for layer in range(lm.n_layers)
    ]
    x = {"field": "layer", "type": "ordinal"}
    picture = chart(
        "Query score (line) over value neurons a question (bars)",
        rows,
        "bar",
        x=x,
        y={"field": "value_neurons", "type": "quantitative"},
    )
    bars = {name: picture.pop(name) for name in ("mark", "encoding")}
    curve = {
        "mark": {"type": "line", "point": True, "color": "firebrick"},
        "encoding": {"x": x, "y": {"field": "query", "type": "quantitative"}},
    }
    picture |= {"layer": [bars, curve], "resolve": {"scale": {"y": "independent"}}}
    lines = ["Layer, query score, value neurons a question"]
    lines += [f"  {r['layer']:>3} {r['query']:9.3f} {r['value_neurons']:7.1f}" for r in rows]
    data = {"layers": rows, "lags": lags, "lag": best_lag, "top": k, "n": len(questions)}
    return Result("accumulate", data, findings, {"accumulate": picture}, "\n".join(lines))


def lag_correlations(query: Tensor, counts: Tensor) -> dict[int, float]:
    """Correlation of query score at layer l with value counts at l + lag, to half the depth either way."""
    found = {}
    most = max(1, len(query) // 2)
    for lag in range(1 - most, most):
        first, then = (query, counts) if lag >= 0 else (counts, query)
        pair = torch.stack([first[: len(query) - abs(lag)], then[abs(lag) :]]).double()
        value = float(torch.corrcoef(pair)[0, 1])
        found[lag] = value if value == value else 0.0  # a flat curve correlates with nothing
    return found


STUDY = Study("accumulate", "Query score and value neurons through the layers", "Figure 3", run)
