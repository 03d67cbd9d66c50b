"""Where along the prompt the answer comes up: the paper's Table 5."""

import torch

from acedit.attribution.layers import spaced, token_scores
from acedit.lm.trace import trace
from acedit.report.charts import charts_by
from acedit.report.study.base import Finding, Result, Setting, Study

SHOWN = 3  # prompts
TOP = 8  # tokens


@torch.no_grad()
def run(setting: Setting) -> Result:
    """At every token: Eq. 9 summed over FFN and over attention vectors, and the stream's top tokens."""
    lm = setting.lm
    prompts = []
    peaks = []
    rows = []
    for question in spaced(setting.questions, SHOWN):
        t = trace(lm, [question.prompt])
        ffn, attention = token_scores(lm, t, question.answer)
        for at in range(ffn.shape[1]):
            final = t.residual[-1, 0, at]
            best = lm.unembed(final).topk(TOP).indices.tolist()
            rows.append(
                {
                    "prompt": question.prompt,
                    "at": at,
                    "token": lm.tokenizer.decode([int(t.encoded.input_ids[0, at])]),
                    "ffn": float(ffn[:, at].sum()),
                    "attention": float(attention[:, at].sum()),
                    "top": [lm.tokenizer.decode([i]) for i in best],
                }
            )
        mine = [r for r in rows if r["prompt"] == question.prompt]
        peaks.append(max(mine, key=lambda r: r["ffn"] + r["attention"])["at"] == len(mine) - 1)
        prompts.append(question.prompt)
    findings = (
        Finding(
            "The increase is largest where the answer is about to be said",
            "'plays' and 'of' of 'Tim Duncan plays the sport of': FFN 0.99 and 0.85 (Table 5)",
            f"the last token has the largest increase in {sum(peaks)} of {len(peaks)} prompts",
            sum(peaks) * 2 > len(peaks),
        ),
    )
    lines = []
    for prompt in prompts:
        lines.append(f"{prompt!r} (nats: FFN, attention; top tokens)")
        for r in rows:
            if r["prompt"] == prompt:
                top = " ".join(repr(t) for t in r["top"][:5])
                lines.append(f"  {r['token']!r:<16} {r['ffn']:7.2f} {r['attention']:7.2f}  {top}")
    long = [
        {"prompt": r["prompt"], "token": f"{r['at']} {r['token']}", "sublayer": kind, "log_increase": r[kind]}
        for r in rows
        for kind in ("ffn", "attention")
    ]
    pictures = charts_by(
        "prompt",
        long,
        "tokens",
        "Log increase by token (nats)",
        "bar",
        x={"field": "token", "type": "nominal", "sort": None},
        y={"field": "log_increase", "type": "quantitative"},
        color={"field": "sublayer", "type": "nominal"},
    )
    best = [
        {
            "prompt": r["prompt"],
            "at": r["at"],
            "token": repr(r["token"]),
            "FFN": r["ffn"],
            "attention": r["attention"],
            "top tokens": " ".join(map(repr, r["top"])),
        }
        for r in rows
    ]
    tables = {"Each token: nats, and the top tokens of the stream there": best}
    return Result("tokens", {"rows": rows}, findings, pictures, "\n".join(lines), tables)


STUDY = Study("tokens", "Importance of each token, and its top tokens", "Table 5", run, place=6)
