"""Ablation: neurons set to zero while a block of code runs, weights untouched.

with ablated(lm, [Neuron(3, 17, 0.0), ...]):
    lm.answer("...")
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from acedit.attribution.value import Neuron
from acedit.errors import UserError
from acedit.lm.model import LanguageModel


@contextmanager
def ablated(lm: LanguageModel, neurons: Iterable[Neuron]) -> Iterator[None]:
    """The coefficients of `neurons` are zero at every position. Raises UserError for one that is not."""
    by_layer: dict[int, list[int]] = {}
    for neuron in neurons:
        if not (0 <= neuron.layer < lm.n_layers and 0 <= neuron.index < lm.n_neurons):
            raise UserError(
                f"neuron ({neuron.layer}, {neuron.index}) is not in a model of {lm.n_layers} layers "
                f"and {lm.n_neurons} neurons a layer"
            )
        by_layer.setdefault(neuron.layer, []).append(neuron.index)
    with ExitStack() as stack:
        for layer, indices in by_layer.items():
            pick = torch.tensor(indices)

            def zero(_: object, args: tuple[Tensor, ...], pick: Tensor = pick) -> tuple[Tensor, ...]:
                return (args[0].index_fill(-1, pick.to(args[0].device), 0.0), *args[1:])

            stack.callback(lm.down(layer).register_forward_pre_hook(zero).remove)
        yield
