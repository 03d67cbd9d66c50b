"""Which layers keep which category: the paper's Table 1."""

import random
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from acedit.attribution.layers import mean_sums
from acedit.attribution.value import head_scores
from acedit.report.charts import charts_by
from acedit.report.study.base import Finding, Result, Setting, Study, mean

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
    correlation = {"attention": _alike(attention), "ffn": _alike(ffn)}
    alike_attention, alike_ffn = (mean(list(pairs.values())) for pairs in correlation.values())
    low, high = _apart(correlation["attention"], correlation["ffn"])
    findings = (
        Finding(
            "Attention layers rank alike over categories, FFN layers less so",
            "a27, a26 and a7 are near the top for all eight; FFN layers differ for AT, ST and CF (Table 1)",
            f"mean rank correlation between categories: attention {alike_attention:.2f}, "
            f"FFN {alike_ffn:.2f}, apart by {low:+.2f} to {high:+.2f} over draws of the categories"
            if len(ffn) > 2
            else "too few categories to compare",
            None if len(ffn) <= 2 or low <= 0 <= high else low > 0,
        ),
    )
    lines = [f"Top {top} layers by category (a: attention, f: FFN)"]
    for c, both in ranked.items():
        a = " ".join(f"a{i}" for i in both["attention"])
        f = " ".join(f"f{i}" for i in both["ffn"])
        lines.append(f"  {c:<16} {a}   {f}   (n={len(setting.of(c))})")
    pictures = charts_by(
        "sublayer",
        rows,
        "layers",
        "Layer scores by category (nats)",
        "rect",
        x={"field": "layer", "type": "ordinal"},
        y={"field": "category", "type": "nominal"},
        color={"field": "score", "type": "quantitative"},
    )
    data = {
        "scores": rows,
        "ranked": ranked,
        "n": {c: len(setting.of(c)) for c in setting.categories},
        "asked": dict(setting.asked),
        "rank_correlation": {"attention": alike_attention, "ffn": alike_ffn},
    }
    best = [
        {
            "category": c,
            "attention": " ".join(map(str, both["attention"])),
            "FFN": " ".join(map(str, both["ffn"])),
            "questions": len(setting.of(c)),
        }
        for c, both in ranked.items()
    ]
    tables = {f"Top {top} layers by category, best first": best}
    return Result("layers", data, findings, pictures, "\n".join(lines), tables)


def _alike(table: dict[str, Tensor]) -> dict[tuple[int, int], float]:
    """Spearman correlation of layer scores between categories, by pair."""
    return {
        (i, j): float(
            torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1]
        )
        for (i, a), (j, b) in combinations(enumerate(table.values()), 2)
    }


def _apart(
    first: Mapping[tuple[int, int], float], then: Mapping[tuple[int, int], float], draws: int = 1000
) -> tuple[float, float]:
    """95% interval of how far apart the means of two are, the categories drawn anew: pairs share them."""
    names = sorted({i for pair in first for i in pair})
    rng = random.Random("layers")
    found = []
    for _ in range(draws if len(names) > 2 else 0):
        drawn = rng.choices(names, k=len(names))
        pairs = [tuple(sorted(pair)) for pair in combinations(drawn, 2) if len(set(pair)) == 2]
        if pairs:
            found.append(sum(first[a, b] - then[a, b] for a, b in pairs) / len(pairs))
    found.sort()
    return (found[len(found) // 40], found[-1 - len(found) // 40]) if found else (float("nan"), float("nan"))


STUDY = Study("layers", "Top attention and FFN layers by category", "Table 1", run, place=1)
