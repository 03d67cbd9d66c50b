"""Published settings for two models, as they were printed, for those who want the papers' own layers.

    plan, method = preset("gpt-j").fitted(lm, methods()["ace-paper"])
    patch = edit(lm, edits, method=method, plan=plan)

Everywhere else layers come from `locate`, and λ from the width. The ACE paper contradicts itself about the
layers; `notes` says where, and what stands here is its appendix F.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from acedit.attribution.plan import Plan
from acedit.editing.methods.method import Method
from acedit.errors import UserError
from acedit.lm.model import LanguageModel


@dataclass(frozen=True)
class Preset:
    """A model's layers (from 0) and λ of Eq. 11 as published; v* is searched as for any model.

    n_layers, n_neurons: which model it is for.
    """

    name: str
    n_layers: int
    n_neurons: int
    query_layers: tuple[int, ...]
    value_layers: tuple[int, ...]
    lam: float
    source: str
    notes: tuple[str, ...]

    @property
    def said(self) -> str:
        """Where its layers are from, and what else has been printed of them."""
        return f"preset {self.name} ({self.source}): " + "; ".join(self.notes)

    def fitted(self, lm: LanguageModel, method: Method) -> tuple[Plan, Method]:
        """The plan, and `method` with the published λ and no ridge.

        Raises UserError for a model of another shape, or a method without planned layers, or of one layer:
        what its own paper chose is not among these.
        """
        if not method.ranged:
            raise UserError(
                f"method {method.name!r} takes no layers from a preset; try ace-paper, memit or pmet"
            )
        if (lm.n_layers, lm.n_neurons) != (self.n_layers, self.n_neurons):
            raise UserError(
                f"preset {self.name!r} is for {self.n_layers} layers of {self.n_neurons} neurons, this model "
                f"has {lm.n_layers} of {lm.n_neurons}; leave --preset out, and layers are chosen"
            )
        said = f"{self.name}'s published layers ({self.source})"
        plan = Plan(self.value_layers, self.query_layers, reason={"query": said, "value": said})
        return plan, replace(method, lam=self.lam / self.n_neurons, ridge=0.0)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "gpt-j",
                n_layers=28,
                n_neurons=16384,
                query_layers=(3, 4, 5, 6, 7, 8),
                value_layers=(25, 26, 27),
                lam=6000.0,
                source="ACE, appendix F, counted from 1; query layers as MEMIT's and PMET's for GPT-J",
                notes=(
                    "value layers are 26-28 in appendix F, 28-30 in section 6.4 and 23-25 in the released "
                    "settings; GPT-J has 28 layers, so 28 can only be the last, counted from 1",
                    "query layers are 3-8 in appendix F and 16-18 in section 6.4",
                ),
            ),
            Preset(
                "qwen3-8b",
                n_layers=36,
                n_neurons=12288,
                query_layers=(25, 26, 27),
                value_layers=(28, 29, 30, 31, 32),
                lam=6000.0,
                source="ACE, appendix F",
                notes=(
                    "taken as printed, counted from 0: with 36 layers both readings fit, unlike GPT-J's",
                    "query layers are 25-27 in appendix F and 27-29 in section 6.4, value layers 28-32 and "
                    "30-32; section 6.4 adds that both shift with the domain",
                ),
            ),
        )
    }
)


def preset(name: str) -> Preset:
    """The preset `name`. Raises UserError for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
