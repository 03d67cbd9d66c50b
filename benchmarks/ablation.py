"""What each change from Algorithm 1 to `ace` adds: the same cases, one step after another.

    python benchmarks/ablation.py --pool test --seeds 0 1 --n 25 --batch 25 --out results/ablation.json

The steps: Algorithm 1 as `ace-paper` has it, section 5's multi-hop prompts, our prompts and a middle stage
by the closed form, gradient steps on every down projection in place of the closed form, and then one after
another what keeps the rest as it was: the text's covariance as the metric, the kin's keys in it, and the
bound on what is written at a subject's own token, which makes it `ace`. After those, `ace` less one sort of
prompt at a time. Rows and table are those of `main_table.py`.
"""

from dataclasses import replace

from main_table import arguments, rows_of, table

from acedit.editing.methods import Method, methods


def steps() -> dict[str, Method]:
    """Every row's method, by its label."""
    ace = methods()["ace"]
    assert ace.polish is not None
    free = replace(ace.polish, space="weights", near=0.0, shift=0.0)
    text = replace(ace.polish, near=0.0, shift=0.0)
    rows = {
        "Algorithm 1 (ace-paper)": methods()["ace-paper"],
        "multi-hop prompts (ace-paper-hops)": methods()["ace-paper-hops"],
        "our prompts, middle stage (ace-closed)": methods()["ace-closed"],
        "by gradient, all layers": replace(ace, polish=free),
        "+ the text's metric": replace(ace, polish=text),
        "+ the kin's keys in it": replace(ace, polish=replace(ace.polish, shift=0.0)),
        "+ a bound at the subject (ace)": ace,
        "ace, nothing held": replace(ace, amounts=replace(ace.amounts, hold=0, kin=0)),
    }
    for kind in ("lead", "ripple", "middle"):
        rows[f"ace, no {kind} prompts"] = replace(ace, amounts=replace(ace.amounts, **{kind: 0}))
    return rows


def main() -> None:
    print(table(rows_of(arguments(__doc__).parse_args(), steps())))


if __name__ == "__main__":
    main()
