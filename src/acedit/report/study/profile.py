"""How the answer grows through the layers, and which heads carry it: the paper's Figures 5 and 6."""

from acedit.attribution.layers import spaced
from acedit.attribution.value import head_scores
from acedit.report.charts import chart
from acedit.report.study.base import Finding, Result, Setting, Study

MOST = 48  # questions


def run(setting: Setting) -> Result:
    """Eq. 9 of each layer's whole FFN and attention vectors, and of each head, mean over questions."""
    lm = setting.lm
    questions = spaced(setting.questions, MOST)
    setting.say(f"profiling {len(questions)} questions")
    scores = head_scores(lm, [q.prompt for q in questions], [q.answer for q in questions])
    ffn, attention = scores.ffn_vector.mean(1), scores.attention_vector.mean(1)
    heads = scores.heads.mean(1)
    curve = [
        {"layer": layer, "sublayer": kind, "log_increase": float(value)}
        for kind, values in (("FFN", ffn), ("attention", attention))
        for layer, value in enumerate(values)
    ]
    cells = [
        {"layer": layer, "head": head, "log_increase": float(value)}
        for layer, row in enumerate(heads)
        for head, value in enumerate(row)
    ]
    half = lm.n_layers // 2
    shallow, deep = (float(part.clamp(min=0).mean()) for part in (ffn[:half], ffn[half:]))
    last = max(1, lm.n_layers // 9)
    final, before = (float(part.mean()) for part in (ffn[-last:], ffn[half:-last]))
    share = heads.flatten().clamp(min=0).sort(descending=True).values
    few = max(1, len(share) // 10)
    held = float(share[:few].sum() / share.sum().clamp(min=1e-9))
    findings = (
        Finding(
            "The answer's log-probability rises mostly in deep FFN layers",
            "peaks in deep layers (Fig. 5)",
            f"an FFN layer below the middle adds {shallow:.2f} nats, one from it on {deep:.2f}",
            deep > shallow,
        ),
        Finding(
            "The final layers add little themselves",
            "their activation stays relatively low (Fig. 5)",
            f"the FFN of the last {'layer' if last == 1 else f'{last} layers'} adds {final:.2f} nats, "
            f"of the deep layers before {before:.2f}, a layer",
            final < before,
        ),
        Finding(
            "Few heads carry it",
            "a sparse heat map (Fig. 6)",
            f"the top tenth of the heads ({few} of {len(share)}) holds {held:.0%} of what heads add",
            held > 0.5,
        ),
    )
    charts = {
        "profile": chart(
            "Log increase by layer (nats)",
            curve,
            {"type": "line", "point": True},
            x={"field": "layer", "type": "ordinal"},
            y={"field": "log_increase", "type": "quantitative"},
            color={"field": "sublayer", "type": "nominal"},
        ),
        "heads": chart(
            "Log increase by head (nats)",
            cells,
            "rect",
            x={"field": "head", "type": "ordinal"},
            y={"field": "layer", "type": "ordinal"},
            color={"field": "log_increase", "type": "quantitative"},
        ),
    }
    lines = ["Log increase by layer (nats): FFN, attention"]
    lines += [
        f"  {i:>3} {float(f):7.3f} {float(a):7.3f}"
        for i, (f, a) in enumerate(zip(ffn, attention, strict=True))
    ]
    data = {"layers": curve, "heads": cells, "n": len(questions)}
    return Result("profile", data, findings, charts, "\n".join(lines))


STUDY = Study("profile", "Log increase through the layers, and by head", "Figures 5 and 6", run, place=8)
