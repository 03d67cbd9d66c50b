"""Do query and value layers stay where they are from domain to domain? The paper's section 6.4."""

from itertools import combinations

import torch
from torch import Tensor

from acedit.attribution.layers import mean_sums, value_and_query
from acedit.report.charts import charts_by
from acedit.report.study.base import Finding, Result, Setting, Study, mean

MOST = 12  # questions a domain
TOP = 3  # layers of each sort
LEADING = 10  # value neurons that query neurons are held against
SAME = 0.5  # of the layers shared: beyond it two sets stand in the same place
FAR = 0.25  # of the depth: GPT-J's are 12 of 28 layers apart, Qwen3-8B's 3 of 36


def run(setting: Setting) -> Result:
    """Each domain's top value layers (Eq. 9) and query layers (Eq. 10): how alike, and how far apart."""
    lm = setting.lm
    value: dict[str, Tensor] = {}
    query: dict[str, Tensor] = {}
    spread = setting.spread()
    for domain in setting.categories:
        setting.say(f"layers of domain: {domain}")
        some = setting.of(domain)[:MOST]
        prompts, answers = [q.prompt for q in some], [q.answer for q in some]
        value[domain] = torch.tensor(mean_sums(lm, prompts, answers, spread=spread))
        total = torch.zeros(lm.n_layers)
        for _, scores in value_and_query(lm, prompts, answers, k=LEADING, spread=spread):
            total += scores.layers.cpu().float()
        query[domain] = total / len(some)
    top = {
        name: {
            domain: sorted(scores.argsort(descending=True)[:TOP].tolist()) for domain, scores in table.items()
        }
        for name, table in (("value", value), ("query", query))
    }
    stay = {
        name: mean([_overlap(a, b) for a, b in combinations(sets.values(), 2)]) for name, sets in top.items()
    }
    both = mean([_overlap(top["value"][d], top["query"][d]) for d in setting.categories])
    below = mean([mean(top["value"][d]) - mean(top["query"][d]) for d in setting.categories])
    several = len(setting.categories) > 1
    still = min(stay.values()) >= SAME
    if below <= 0 or both >= SAME:
        like = "in neither"
    elif not both and below > FAR * lm.n_layers:
        like = "in GPT-J"
    else:
        like = "in Qwen3-8B"
    findings = (
        Finding(
            "Query and value layers shift with the domain, or stand still",
            "they stand still in GPT-J and shift in Qwen3-8B (section 6.4)",
            f"two domains share {stay['query']:.0%} of their top {TOP} query layers "
            f"and {stay['value']:.0%} of their value layers: "
            f"{'they stand still, as in GPT-J' if still else 'they shift, as in Qwen3-8B'}"
            if several
            else "one domain only",
            None,
        ),
        Finding(
            "Query layers are apart from value layers, or overlap them",
            "apart in GPT-J (16-18 and 28-30), next to and at times among them in Qwen3-8B (27-29 and 30-32)",
            f"a domain's query and value layers share {both:.0%}; query layers lie on average "
            f"{below:.1f} below: as {like}",
            like != "in neither",
        ),
    )
    rows = [
        {
            "domain": domain,
            "sort": name,
            "layer": layer,
            "score": float(score / scores.abs().max().clamp(min=1e-9)),
        }
        for name, table in (("value", value), ("query", query))
        for domain, scores in table.items()
        for layer, score in enumerate(scores)
    ]
    pictures = charts_by(
        "sort",
        rows,
        "domains",
        "Layer scores by domain (of each domain's largest)",
        "rect",
        x={"field": "layer", "type": "ordinal"},
        y={"field": "domain", "type": "nominal"},
        color={"field": "score", "type": "quantitative"},
    )
    lines = [f"Top {TOP} query and value layers by domain"]
    lines += [f"  {d:<16} query {top['query'][d]}  value {top['value'][d]}" for d in setting.categories]
    data = {"top": top, "shared_by_domains": stay, "query_and_value": both, "scores": rows}
    best = [
        {
            "domain": d,
            "query": " ".join(map(str, top["query"][d])),
            "value": " ".join(map(str, top["value"][d])),
        }
        for d in setting.categories
    ]
    tables = {f"Top {TOP} query and value layers by domain": best}
    return Result("domains", data, findings, pictures, "\n".join(lines), tables)


def _overlap(a: list[int], b: list[int]) -> float:
    """Share of layers in both, of those in either."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


STUDY = Study("domains", "Query and value layers by domain", "Section 6.4", run, place=2)
