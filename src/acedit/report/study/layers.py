"""Which layers keep which category: the paper's Table 1."""

from itertools import combinations

import torch
from torch import Tensor

from acedit.attribution.layers import mean_sums
from acedit.attribution.value import head_scores
from acedit.report.charts import chart
from acedit.report.study.base import Finding, Result, Setting, Study

TOP = 9  # layers ranked; half the layers where there are fewer than 18


def run(setting: Setting) -> Result:
    """Sum Eq. 9 over heads and over FFN neurons, a layer, at the last token; rank layers by category."""
    lm = setting.lm
    top = TOP if lm.n_layers >= 2 * TOP else lm.n_layers // 2
    ffn: dict[str, Tensor] = {}
    attention: dict[str, Tensor] = {}
    spread = setting.spread()
    for category in setting.categories:
        setting.say(f"scoring layers: {category}")
        questions = setting.of(category)
        prompts, answers = [q.prompt for q in questions], [q.answer for q in questions]
        ffn[category] = torch.tensor(mean_sums(lm, prompts, answers, spread=spread))
        attention[category] = head_scores(lm, prompts, answers).heads.sum(-1).mean(1)
    rows = [
        {"category": c, "sublayer": kind, "layer": layer, "score": float(value)}
        for kind, table in (("attention", attention), ("FFN", ffn))
        for c, scores in table.items()
        for layer, value in enumerate(scores)
    ]
    ranked = {
        c: {
            "attention": attention[c].argsort(descending=True)[:top].tolist(),
            "ffn": ffn[c].argsort(descending=True)[:top].tolist(),
        }
        for c in setting.categories
    }
    alike_attention, alike_ffn = _alike(attention), _alike(ffn)
    findings = (
        Finding(
            "Attention layers rank alike over categories, FFN layers less so",
            "a27, a26 and a7 are near the top for all eight; FFN layers differ for AT, ST and CF (Table 1)",
            f"mean rank correlation between categories: attention {alike_attention:.2f}, FFN {alike_ffn:.2f}",
            alike_attention > alike_ffn if len(ffn) > 1 else None,
        ),
    )
    lines = [f"Top {top} layers by category (a: attention, f: FFN)"]
    for c, both in ranked.items():
        a = " ".join(f"a{i}" for i in both["attention"])
        f = " ".join(f"f{i}" for i in both["ffn"])
        lines.append(f"  {c:<16} {a}   {f}   (n={len(setting.of(c))})")
    picture = chart(
        "Layer scores by category (nats)",
        rows,
        "rect",
        x={"field": "layer", "type": "ordinal"},
        y={"field": "category", "type": "nominal"},
        row={"field": "sublayer", "type": "nominal"},
        color={"field": "score", "type": "quantitative"},
    )
    data = {
        "scores": rows,
        "ranked": ranked,
        "n": {c: len(setting.of(c)) for c in setting.categories},
        "asked": dict(setting.asked),
        "rank_correlation": {"attention": alike_attention, "ffn": alike_ffn},
    }
    return Result("layers", data, findings, {"layers": picture}, "\n".join(lines))


def _alike(table: dict[str, Tensor]) -> float:
    """Mean Spearman correlation of layer scores between categories."""
    pairs = [
        float(torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1])
        for a, b in combinations(table.values(), 2)
    ]
    return sum(pairs) / len(pairs) if pairs else float("nan")


STUDY = Study("layers", "Top attention and FFN layers by category", "Table 1", run)
