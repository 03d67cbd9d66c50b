"""What a method states: its stages, its weights of preservation, and whether gradients follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Literal

from acedit.editing.polish import Polish
from acedit.editing.stages import Stage, Update, Writing
from acedit.errors import UserError
from acedit.knowledge.compose import Amounts, Kind, Prompt

Form = Literal["ridge", "equality", "null"]

# Along directions that C's text hardly uses a write without it is as long as you like (docs/decisions.md).
RIDGE = 0.03
PRIMED = "-cot"  # ends the name of a method with primed prompts


def unprimed(name: str) -> str:
    """A method's name without what `Method.with_cot_prompts` puts to it."""
    return name.removesuffix(PRIMED)


@dataclass(frozen=True)
class Beside:
    """What a writer has beside edits and prompts.

    essence: prompts that v* is held to (Eq. 13's KL). swept: the closed form over some writings, given the
    layers they write. tell: told what is done.
    """

    essence: Sequence[Prompt]
    swept: Callable[[Sequence[Writing], Sequence[int]], list[Update]]
    tell: Callable[[str], None]


@dataclass(frozen=True)
class Method:
    """A method as data; `edit` runs it.

    layers: which down projections gradient steps move: those of the "stages", the deepest "query" layer
    of the plan, or "all". stages: none for methods by gradient alone; all targets are searched on the
    unedited model and written in one ascending sweep, or, `in_turn`, stage after stage in the order given,
    each one's targets searched on the model as the last left it. one_by_one: edits are written one after
    the other. lam: λ of Eq. 11, on C = E[k kᵀ] of the text, as a multiple of N: kᵀ C⁻¹ k grows with N, so
    the paper's 6000 for GPT-J's N = 16,384 is 0.37·N. known: weight on the mean outer product of the keys
    of known facts at edited positions. ridge: on the identity, in multiples of a key's mean squared length
    over N. prefixes: behind how many short contexts of the model's own each single-hop prompt is
    repeated (MEMIT; greedy here, from fixed words, at most six). essence:
    v* is held to what the model says of "SUBJECT is a" (the KL of Eq. 13). form: the closed form, "ridge"
    (Eq. 12), "equality" (ROME, EMMET) or "null" (AlphaEdit), see `solve`. polished: prompts the gradient
    steps pull.
    ends: the token that ends an answer is learned with it (`edit.ended`).
    primed: each prompt that thinks aloud is repeated behind the shots of appendix G.1 (section 6.2).
    writer: a module whose `write(lm, edits, prompts, beside)` makes the updates, for methods that have no
    stages of their own; its
    `state(fingerprint)`, if any, names files that it reads (`Method.state`).
    reader: a module whose `Reader` answers prompts with what its `remember` kept; no weights change.
    skip_query, skip_value: how many of its layers are left out, the most important first by the plan's score.
    """

    name: str
    summary: str
    stages: tuple[Stage, ...] = ()
    layers: Literal["stages", "query", "all"] = "stages"
    lam: float = 6000 / 16384
    known: float = 0.0
    ridge: float = 0.0
    prefixes: int = 0
    essence: bool = False
    form: Form = "ridge"
    one_by_one: bool = False
    in_turn: bool = False
    wordings: bool = True  # write every wording of the relation, or the edit's own prompt alone
    amounts: Amounts = field(default_factory=Amounts)
    polish: Polish | None = None
    polished: tuple[Kind, ...] = ("single", "lead", "ripple", "middle", "keep")
    ends: bool = False
    primed: bool = False
    writer: str = ""
    reader: str = ""
    skip_query: int = 0
    skip_value: int = 0

    def state(self, fingerprint: str) -> str:
        """A digest of what an edit depends on beside these settings; "" for nothing."""
        of: Callable[[str], str] | None = None
        if self.writer:
            of = getattr(import_module(self.writer), "state", None)
        return "" if of is None else of(fingerprint)

    @property
    def planned(self) -> bool:
        """Whether it needs a plan of layers."""
        return bool(self.stages or self.skip_query or self.skip_value) or self.layers == "query"

    @property
    def ranged(self) -> bool:
        """Whether it writes the plan's ranges of layers, not the one layer of its own paper."""
        alone = self.layers == "query" or any(stage.deepest for stage in self.stages)
        return self.planned and not alone

    def with_cot_prompts(self) -> "Method":
        """This method with in-context and chain-of-thought primed edit prompts (section 6.2).

        Raises UserError for a method that makes no edit from prompts.
        """
        if self.reader:
            raise UserError(f"method {self.name!r} has no edit prompts to prime: leave --cot-prompts out")
        return replace(
            self, name=f"{self.name}{PRIMED}", summary=f"{self.summary}; primed prompts", primed=True
        )

    def leaving_out(self, share: float) -> "Method":
        """This method, by the same name, with no prompt of a share of second relations (`Amounts`)."""
        return replace(self, amounts=replace(self.amounts, left_out=share))

    def narrowed(self, rank: int) -> "Method":
        """This method with updates of at most this rank, for a small patch or an adapter to be served.

        Raises UserError for one without gradient steps over whole updates: its rank is its own.
        """
        polish = self.polish
        if polish is None or polish.space == "low_rank" or polish.limit:
            raise UserError(f"method {self.name!r} has a rank of its own: leave --rank out, or take ace")
        return replace(
            self,
            name=f"{self.name}-r{rank}",
            summary=f"{self.summary}; in rank {rank}",
            polish=replace(polish, narrow=rank),
        )

    def skipping(self, *, query: int = 0, value: int = 0) -> "Method":
        """This method without its most important layers, under a name that says so (Table 4).

        Raises UserError for a method that has none of its own, or none of that kind.
        """
        said = [f"{kind}{n}" for kind, n in (("q", query), ("v", value)) if n]
        if not said:
            return self
        if self.writer or self.reader:
            raise UserError(f"method {self.name!r} has no layers of its own to leave out")
        for kind, n in (("query", query), ("value", value)):
            if n and self.layers not in ("all", kind) and all(stage.where != kind for stage in self.stages):
                raise UserError(
                    f"method {self.name!r} writes no {kind} layers: leave --skip-{kind} out for it"
                )
        return replace(
            self,
            name=f"{self.name}-skip-{'-'.join(said)}",
            summary=f"{self.name} without its {query} most important query and {value} value layers",
            skip_query=query,
            skip_value=value,
        )
