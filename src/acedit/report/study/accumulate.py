"""Do query neurons fire before the value neurons they feed? The paper's Figure 3, and the lag measured."""

from collections.abc import Mapping

import torch
from torch import Tensor

from acedit.attribution.layers import spaced, value_and_query, vector_scores
from acedit.report.charts import chart, told
from acedit.report.study.base import Finding, Result, Setting, Study

MOST = 32  # questions
VALUE = 100  # value neurons a question; as many as a third of all where there are fewer
LEADING = 10  # of those that query neurons are held against


def run(setting: Setting) -> Result:
    """By layer: the FFN's log increase (Eq. 9, its vector as a whole), summed query score (Eq. 10), and how
    many of each question's top value neurons stand there.

    A lag is the shift of the value counts against a curve at which they correlate most. Part of that of
    Eq. 10 is built in: it scores a neuron only against value neurons above it.
    """
    lm = setting.lm
    reasoned, what = setting.reasoned
    questions = spaced(reasoned, MOST)
    k = min(VALUE, lm.n_layers * lm.n_neurons // 3)
    setting.say(f"query and value neurons by layer of {len(questions)} of {what}")
    prompts, answers = [q.prompt for q in questions], [q.answer for q in questions]
    counts, query = torch.zeros(lm.n_layers), torch.zeros(lm.n_layers)
    found = value_and_query(lm, prompts, answers, k=k, leading=LEADING, spread=setting.spread())
    for best, scores in found:
        for neuron in best.neurons:
            counts[neuron.layer] += 1 / len(questions)
        query += scores.layers.cpu().float() / len(questions)
    increase = torch.tensor(vector_scores(lm, prompts, answers)[0])
    lags = {"log_increase": lag_correlations(increase, counts), "query": lag_correlations(query, counts)}
    lag = {name: max(found, key=lambda at: found[at]) for name, found in lags.items()}
    findings = (
        Finding(
            "Layers' log increase comes before the value neurons it leads to",
            "by 1 to 2 layers, in GPT-J (Fig. 3, section 4.2)",
            _lagging(lag["log_increase"], lags["log_increase"]),
            1 <= lag["log_increase"] <= 2,
        ),
        Finding(
            "Query layers (Eq. 10) come before the value layers they feed",
            "query neurons precede value neurons by 1 to 2 layers (section 4.2)",
            _lagging(lag["query"], lags["query"]),
            1 <= lag["query"] <= 2,
        ),
    )
    rows = [
        {
            "layer": layer,
            "log_increase": float(increase[layer]),
            "query": float(query[layer]),
            "value_neurons": float(counts[layer]),
        }
        for layer in range(lm.n_layers)
    ]
    x = {"field": "layer", "type": "ordinal"}
    picture = chart(
        "Log increase (line) over value neurons a question (bars)",
        rows,
        "bar",
        x=x,
        y={"field": "value_neurons", "type": "quantitative"},
    )
    bars = {name: picture.pop(name) for name in ("mark", "encoding")}
    curve = {
        "mark": told({"type": "line", "point": True, "color": "firebrick"}),
        "encoding": {"x": x, "y": {"field": "log_increase", "type": "quantitative"}},
    }
    picture |= {"layer": [bars, curve], "resolve": {"scale": {"y": "independent"}}}
    lines = [f"{len(questions)} of {what}: layer, log increase (nats), query score, value neurons"]
    lines += [
        f"  {r['layer']:>3} {r['log_increase']:9.3f} {r['query']:9.3f} {r['value_neurons']:7.1f}"
        for r in rows
    ]
    data = {"layers": rows, "lags": lags, "lag": lag, "top": k, "n": len(questions), "of": what}
    return Result("accumulate", data, findings, {"accumulate": picture}, "\n".join(lines))


def _lagging(best: int, lags: Mapping[int, float]) -> str:
    """A lag with its correlation; said where it is the furthest looked at, since it may be further."""
    edge = ", the furthest looked at" if best in (min(lags), max(lags)) else ""
    return f"by {best} layers{edge} (correlation {lags[best]:.2f}; {lags[0]:.2f} without a shift)"


def lag_correlations(curve: Tensor, counts: Tensor) -> dict[int, float]:
    """Correlation of a curve at layer l with value counts at l + lag, to half the depth either way."""
    found = {}
    most = max(1, len(curve) // 2)
    for lag in range(1 - most, most):
        first, then = (curve, counts) if lag >= 0 else (counts, curve)
        pair = torch.stack([first[: len(curve) - abs(lag)], then[abs(lag) :]]).double()
        value = float(torch.corrcoef(pair)[0, 1])
        found[lag] = value if value == value else 0.0  # a flat curve correlates with nothing
    return found


STUDY = Study(
    "accumulate", "Log increase, query score and value neurons through the layers", "Figure 3", run, place=4
)
