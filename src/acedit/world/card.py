"""The bundled model's card: what it answers, by greedy generation, on chains never seen composed.

    rows = measure(load("out/bundled"), build_world(), n=300)
    write_card(Path("out/bundled"), rows, settings)

Single hops are asked in every taught form and wording; chains are drawn from the test pool. Right means
that the answer, or an alias, is what the model says (`benchmark.score.matches`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acedit.benchmark.score import matches
from acedit.knowledge.compose import chain_question
from acedit.knowledge.prompts import COT_STOP, cot_prompt, direct_prompt, parse_cot_answer
from acedit.lm.model import LanguageModel
from acedit.world.corpus import taught_wordings
from acedit.world.graph import Path as Chain
from acedit.world.graph import World

CARD = "README.md"


@dataclass(frozen=True)
class CardRow:
    """A line of the table: the share right of `n` asked, and the least it should be, where that is stated."""

    name: str
    value: float
    n: int
    least: float | None


def measure(
    lm: LanguageModel,
    world: World,
    *,
    n: int = 300,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[CardRow]:
    """Ask `n` of each sort (at least one): single hops, latent two to four hops, thoughts of 2 to 4."""
    rng = random.Random(f"{seed}/card")
    taught = taught_wordings()
    rows = []

    def row(
        name: str, least: float | None, prompts: Sequence[str], ends: Sequence[str], *, cot: bool
    ) -> None:
        say(f"asking: {name}")
        said = _think(lm, prompts) if cot else lm.generate(prompts, max_new_tokens=24)
        right = [
            matches(text, (end, *world.aliases.get(end, ()))) for text, end in zip(said, ends, strict=True)
        ]
        rows.append(CardRow(name, sum(right) / len(right), len(right), least))

    facts = rng.sample(world.facts, k=min(n, len(world.facts)))
    asked = []
    for fact in facts:
        relation = taught[fact.relation]
        asked.append(direct_prompt(rng.choice(relation.prompts + relation.questions).format(fact.subject)))
    row("one hop", 0.99, asked, [fact.object for fact in facts], cot=False)

    chains: dict[int, list[Chain]] = {}
    for hops in (2, 3, 4):
        held = [path for path in world.chains(hops) if world.pool(path) == "test"]
        chains[hops] = rng.sample(held, k=min(n, len(held)))

    def question(path: Chain) -> str:
        return chain_question(path[0].subject, [taught[fact.relation] for fact in path], rng)

    latent: tuple[tuple[int, str, float | None], ...] = (
        (2, "two hops in one pass", 0.90),
        (3, "three hops in one pass", 0.75),
        (4, "four hops in one pass", None),
    )
    for hops, name, least in latent:
        paths = chains[hops]
        asked = [direct_prompt(question(path)) for path in paths]
        row(name, least, asked, [path[-1].object for path in paths], cot=False)
    paths = [path for path in world.chains(2) if world.pool(path) == "real"][:n]
    asked = [direct_prompt(question(path)) for path in paths]
    name = "two hops in one pass, the real MQuAKE cases"
    row(name, None, asked, [path[-1].object for path in paths], cot=False)
    for hops in (2, 3, 4):
        paths = chains[hops][: max(1, n // 3)]
        asked = [cot_prompt(question(path)) for path in paths]
        name = f"{hops} hops, chain of thought (appendix G.1)"
        row(name, 0.90, asked, [path[-1].object for path in paths], cot=True)
    return rows


def _think(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    texts = lm.generate(prompts, max_new_tokens=160, stop=COT_STOP, batch_size=32)
    return [parse_cot_answer(text) for text in texts]


def card_table(rows: Sequence[CardRow]) -> str:
    """The rows as a Markdown table."""
    lines = ["| asked, on chains never seen composed | right | n | at least |", "|---|---|---|---|"]
    for row in rows:
        least = "" if row.least is None else f"{row.least:.2f}"
        lines.append(f"| {row.name} | {row.value:.3f} | {row.n} | {least} |")
    return "\n".join(lines)


def card_text(rows: Sequence[CardRow], settings: Mapping[str, Any]) -> str:
    """The whole card."""
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    shape = f" --shape {settings['shape']}" if "shape" in settings else ""
    return f"""\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# A model of acedit's world

A small model that learned a world of real MQuAKE facts among invented ones, made by
`acedit world train{shape}`. It is for showing and testing edits; what it says is no knowledge.

{card_table(rows)}

Greedy generation; settings: {said}.
"""


def write_card(folder: Path, rows: Sequence[CardRow], settings: Mapping[str, Any]) -> Path:
    """Write the card into a model's folder. Raises OSError where it cannot be written."""
    partial = folder / f".{CARD}"
    partial.write_text(card_text(rows, settings), "utf-8")
    return partial.replace(folder / CARD)


def read_table(folder: Path) -> str:
    """The table of a model's card; "" where it has none."""
    try:
        text = (folder / CARD).read_text("utf-8")
    except FileNotFoundError:
        return ""
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))
