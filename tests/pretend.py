"""A second device on a machine that has none: tensors are told where they are, and may not meet.

    with Pretend() as devices:
        devices.place(model, {"model.embed_tokens": "cuda:0", ..., "model.norm": "cuda:1"})
        ...                                  # RuntimeError where tensors of two devices meet

Numbers stay real and on the CPU; a table beside them says which device each tensor is on, `.to` changes it,
and what is made of tensors is where they are. Accelerate's own hooks move what enters a module.

Limit: it sees what Python calls, so not what autograd does in a backward pass.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

CPU = torch.device("cpu")
# An index or a scalar on the CPU may meet any tensor.
INDEXING = ("__getitem__", "__setitem__", "index_put", "index_put_")


class Pretend(TorchFunctionMode):
    """The table of where tensors are, in force while inside."""

    def __init__(self) -> None:
        super().__init__()
        self._at = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> torch.device:
        """Where `tensor` is."""
        return self._at.get(tensor, CPU)

    def place(self, model: nn.Module, devices: Mapping[str, str]) -> nn.Module:
        """`model` dispatched over `devices`, by module name, with accelerate's hooks."""
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            home = [at for part, at in devices.items() if name == part or name.startswith(part + ".")]
            self._at[tensor] = torch.device(home[0])
        return dispatch_model(model, dict(devices), force_hooks=True)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return self.of(args[0])
        if name == "cpu":
            name, args = "to", (args[0], CPU)
        if name == "to":
            return self._moved(*args, **given)
        wanted = given.pop("device", None)
        tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        met = {
            self.of(t)
            for t in tensors
            if self.of(t) != CPU or (t.dim() and not (name in INDEXING and t is not args[0]))
        }
        if name == "copy_":
            met = {self.of(args[0])}
        if len(met) > 1 and name not in ("grad", "backward") and func != Tensor.data.__set__:
            raise RuntimeError(f"{name}: tensors on {sorted(map(str, met))}")
        out = func(*args, **given)
        if func == Tensor.data.__set__:
            self._at[args[0]] = self.of(args[1])
        at = torch.device(wanted) if wanted is not None else next(iter(met), CPU)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf not in self._at:
                self._at[leaf] = at
        return out

    def _moved(self, tensor: Tensor, *rest: Any, **given: Any) -> Tensor:
        where, passed = given.pop("device", None), []
        for each in rest:
            if isinstance(each, Tensor):
                where, each = self.of(each), each.dtype
            elif isinstance(each, str | int | torch.device) and not isinstance(each, bool):
                where = f"cuda:{each}" if isinstance(each, int) else each
                continue
            passed.append(each)
        at = self.of(tensor) if where is None else torch.device(where)
        out = tensor.to(*passed, **given) if passed or given else tensor
        if out is tensor and at != self.of(tensor):
            out = tensor.clone()
        self._at[out] = at
        return out
