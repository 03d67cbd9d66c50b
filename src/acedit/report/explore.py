"""Charts of where one fact is kept: for looking, with what stands under the pointer said.

    charts = explore(lm, "Ann Lee is a citizen of", "Peru")
    render(Page(..., figures=charts))

Three of them: the answer's log increase by token and layer, the query neurons and the value neurons they feed
as a graph, and the heads that read it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from acedit.attribution.certified import certified_top
from acedit.attribution.layers import signs, token_scores
from acedit.attribution.query import query_scores
from acedit.attribution.value import Neuron, head_scores, top_neurons, top_tokens
from acedit.lm.model import LanguageModel
from acedit.lm.trace import trace
from acedit.report.charts import Chart, chart, told

VALUE = 8  # value neurons drawn
LINKS = 4  # query neurons drawn for each
TOKENS = 5


def explore(lm: LanguageModel, prompt: str, answer: str) -> list[Chart]:
    """The charts of one prompt and its answer. Raises UserError as `value.readings` does."""
    k = min(VALUE, lm.n_layers * lm.n_neurons)
    ((best,),) = certified_top(lm, [prompt], [answer], k=k, scope="model")
    named = f"{prompt} … {answer}"
    return [
        Chart(
            "By token and layer",
            "How much each layer, attention and FFN together, raises the log-probability of the answer "
            "(nats, Eq. 9), as if every token were the last.",
            _tokens(lm, prompt, answer, named),
        ),
        Chart(
            "Query neurons and the value neurons they feed",
            "A line is a query neuron (square) that raises the coefficient of a value neuron (circle) above "
            "it (Eq. 10), the wider the more.",
            _links(lm, prompt, best.neurons, named),
        ),
        Chart(
            "Heads",
            "How much each attention head raises the log-probability of the answer at the last token (nats).",
            _heads(lm, prompt, answer, named),
        ),
    ]


@torch.no_grad()
def _tokens(lm: LanguageModel, prompt: str, answer: str, named: str) -> dict[str, Any]:
    t = trace(lm, [prompt])
    ffn, attention = token_scores(lm, t, answer)
    rows = []
    for at in range(ffn.shape[1]):
        token = lm.tokenizer.decode([int(t.encoded.input_ids[0, at])])
        for layer in range(lm.n_layers):
            best = lm.unembed(t.residual[layer + 1, 0, at]).topk(TOKENS).indices.tolist()
            rows.append(
                {
                    "token": f"{at} {token}",
                    "layer": layer,
                    "nats": float(ffn[layer, at] + attention[layer, at]),
                    "FFN": float(ffn[layer, at]),
                    "attention": float(attention[layer, at]),
                    "top tokens": " ".join(repr(lm.tokenizer.decode([i])) for i in best),
                }
            )
    return chart(
        named,
        rows,
        "rect",
        x={"field": "layer", "type": "ordinal"},
        y={"field": "token", "type": "nominal", "sort": None},
        color={"field": "nats", "type": "quantitative", "scale": {"scheme": "blueorange", "domainMid": 0}},
    )


def _heads(lm: LanguageModel, prompt: str, answer: str, named: str) -> dict[str, Any]:
    scores = head_scores(lm, [prompt], [answer]).heads[:, 0]
    rows = [
        {"layer": layer, "head": head, "nats": float(scores[layer, head])}
        for layer in range(lm.n_layers)
        for head in range(lm.n_heads)
    ]
    return chart(
        named,
        rows,
        "rect",
        x={"field": "layer", "type": "ordinal"},
        y={"field": "head", "type": "ordinal"},
        color={"field": "nats", "type": "quantitative", "scale": {"scheme": "blueorange", "domainMid": 0}},
    )


def _links(lm: LanguageModel, prompt: str, value: Sequence[Neuron], named: str) -> dict[str, Any]:
    sign = signs(lm, [prompt])
    links: list[dict[str, Any]] = []
    nodes: dict[tuple[str, int, int], dict[str, Any]] = {}
    rank: dict[int, int] = {}

    def node(neuron: Neuron, sort: str) -> dict[str, Any]:
        place = (sort, neuron.layer, neuron.index)
        if place not in nodes:
            rank[neuron.layer] = rank.get(neuron.layer, -1) + 1
            spin = float(sign[neuron.layer, neuron.index])
            tokens = top_tokens(lm, neuron.layer, neuron.index, sign=spin, k=TOKENS)
            nodes[place] = {
                "layer": neuron.layer,
                "slot": rank[neuron.layer],
                "neuron": f"f{neuron.layer}-{neuron.index}",
                "sort": sort,
                "score": neuron.score,
                "top tokens": " ".join(map(repr, tokens)),
            }
        return nodes[place]

    for target in value:
        ends = node(target, "value")
        scores = query_scores(lm, prompt, [target]).neurons.clamp(min=0)
        for source in top_neurons(lm, scores, LINKS, named=False):
            if source.score > 0:
                starts = node(source, "query")
                links.append(
                    {
                        "from": starts["neuron"],
                        "to": ends["neuron"],
                        "layer": starts["layer"],
                        "slot": starts["slot"],
                        "layer2": ends["layer"],
                        "slot2": ends["slot"],
                        "raises by": source.score,
                    }
                )
    places = {
        "x": {"field": "layer", "type": "quantitative", "scale": {"domain": [0, lm.n_layers - 1]},
              "axis": {"tickMinStep": 1}, "title": "layer"},
        "y": {"field": "slot", "type": "quantitative", "axis": None},
    }  # fmt: skip
    spec = chart(named, [], "point")
    for name in ("mark", "encoding", "data"):
        del spec[name]
    return spec | {
        "layer": [
            {
                "data": {"values": links},
                "mark": told({"type": "rule", "opacity": 0.6}),
                "encoding": {
                    **places,
                    "x2": {"field": "layer2"},
                    "y2": {"field": "slot2"},
                    "strokeWidth": {"field": "raises by", "type": "quantitative", "scale": {"range": [1, 5]}},
                },
            },
            {
                "data": {"values": list(nodes.values())},
                "mark": told({"type": "point", "filled": True, "size": 110}),
                "encoding": {
                    **places,
                    "shape": {"field": "sort", "type": "nominal",
                              "scale": {"domain": ["query", "value"], "range": ["square", "circle"]}},
                    "color": {"field": "sort", "type": "nominal",
                              "scale": {"domain": ["query", "value"], "range": ["#d07a22", "#3f7fd4"]}},
                },
            },
        ]
    }  # fmt: skip
