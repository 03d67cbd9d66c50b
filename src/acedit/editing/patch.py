"""A patch: an edit as low-rank factors a layer, to keep, apply, take off, stack and ship.

    patch.save("p/");  patch = Patch.load("p/")
    with patch.applied(lm):
        lm.answer("Who is ...?")
    patch.to_lora("adapter/")                # a PEFT adapter, the very same update

The weights of an edited model are always round(base + Σ Δ) with the sum in float32 over the active
patches in the order of their ids, and the base is kept: so the model is bit for bit its old self once
the last patch is off, in whatever order they come off, also after an exception.

Footguns: a patch belongs to one checkpoint in one dtype (its fingerprint). Weights written by somebody
else while a patch is on are lost when it comes off.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from acedit.errors import UserError, first_line
from acedit.knowledge.facts import Edit
from acedit.knowledge.relations import Relation
from acedit.lm.model import LanguageModel
from acedit.lm.reader import Reader
from acedit.plain import plain

SCHEMA = 3
TENSORS = "patch.safetensors"
RECORD = "patch.json"


class NoWeightChange(UserError):
    """The method changes no weights, so there is nothing to export."""


@dataclass(frozen=True)
class LayerUpdate:
    """Δ of one layer's down projection, as (d_model, n_neurons): left @ right, float32."""

    layer: int
    left: Float[Tensor, "d_model rank"]
    right: Float[Tensor, "rank n_neurons"]

    def delta(self) -> Float[Tensor, "d_model n_neurons"]:
        """The product, float32."""
        return self.left @ self.right

    def shrunk(self) -> "LayerUpdate":
        """The same Δ with no more than min(columns, d_model, n_neurons) columns, and no rounding but
        that of the product."""
        d_model, columns = self.left.shape
        n_neurons = self.right.shape[1]
        if columns <= min(d_model, n_neurons):
            return self
        if d_model <= n_neurons:
            return LayerUpdate(self.layer, torch.eye(d_model), self.delta())
        return LayerUpdate(self.layer, self.delta(), torch.eye(n_neurons))


@dataclass(frozen=True)
class Patch:
    """An edit of one model. `plan`, `settings`, `scores` and `memory` are JSON objects; see docs/json.md.

    memory: what a method that changes no weights tells the model's `reader`; it needs `updates` empty.
    """

    updates: tuple[LayerUpdate, ...]
    edits: tuple[Edit, ...]
    plan: Mapping[str, Any]
    method: str
    settings: Mapping[str, Any]
    seed: int
    fingerprint: str
    place: Mapping[str, Any]  # where it goes: module names by layer, weight orientation, base name
    scores: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """sha256 (hex) of the factors and of what they were made from, wherever the model lay."""
        record = self._record()
        record["place"] = {name: value for name, value in self.place.items() if name != "base"}
        return hashlib.sha256(self._bytes() + _dump(record).encode()).hexdigest()

    def with_scores(self, scores: Mapping[str, Any]) -> "Patch":
        """The same patch with its scores written in."""
        return replace(self, scores=scores)

    # On a model

    def apply(self, lm: LanguageModel) -> None:
        """Put the patch on `lm`. Raises UserError for another model, or if it is on already."""
        _stack(lm).add(self)

    def remove(self, lm: LanguageModel) -> None:
        """Take the patch off `lm`. Raises UserError if it is not on."""
        _stack(lm).drop(self)

    def refuse_memory(self, what: str) -> None:
        """Raises NoWeightChange where `what` needs the edit in the weights and it is not."""
        if not self.updates:
            raise NoWeightChange(f"method {self.method!r} changes no weights: {what}")

    def refuse_twice(self, lm: LanguageModel) -> None:
        """Raises UserError where the patch is on `lm`."""
        _stack(lm).refuse_twice(self)

    def check_model(self, lm: LanguageModel) -> None:
        """Raises UserError where the patch was made for another model, or the same in another dtype."""
        if self.fingerprint != lm.fingerprint:
            raise UserError(
                f"the patch was made for another model (fingerprint {self.fingerprint[:12]}, this one is "
                f"{lm.fingerprint[:12]}); load the checkpoint it was made from, in the same dtype"
            )

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """`lm` with the patch on; off again at the end, also when something raises."""
        stack = _stack(lm)
        stack.refuse_twice(self)
        try:
            self.apply(lm)
            yield lm
        finally:
            if self in stack:  # an interruption may come before it is
                self.remove(lm)

    def norms(self, lm: LanguageModel) -> dict[int, dict[str, float]]:
        """By layer: ‖Δ‖ and the base weight's norm (Frobenius), their ratio, and the update's rank."""
        rows = {}
        stack = _stack(lm)
        for update in self.updates:
            weight = float(stack.base_of(update.layer).float().norm())
            size = float(update.delta().norm())
            rank = update.shrunk().left.shape[1]
            rows[update.layer] = {"update": size, "weight": weight, "ratio": size / weight, "rank": rank}
        return rows

    # On disk

    def _tensors(self) -> dict[str, Tensor]:
        named = {}
        for update in self.updates:
            named[f"layer_{update.layer}.left"] = update.left.float().cpu().contiguous()
            named[f"layer_{update.layer}.right"] = update.right.float().cpu().contiguous()
        return named

    def _bytes(self) -> bytes:
        return save_tensors(self._tensors())

    def _record(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "place": dict(self.place),
            "edits": [asdict(edit) for edit in self.edits],
            "plan": dict(self.plan),
            "settings": dict(self.settings),
            **({"memory": dict(self.memory)} if self.memory else {}),
        }

    def save(self, folder: str | Path) -> Path:
        """Write `patch.safetensors` and `patch.json`, whole or not at all.

        Raises UserError where the folder cannot be written.
        """
        data = self._bytes()
        record = {
            "schema": SCHEMA,
            **self._record(),
            "scores": plain(self.scores),
            "layers": [update.layer for update in self.updates],
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        record["record_sha256"] = _digest(record)
        return _write_folder(Path(folder), {TENSORS: data, RECORD: _dump(record, indent=1).encode()})

    @classmethod
    def load(cls, folder: str | Path) -> "Patch":
        """Read what `save` wrote. Raises UserError for a missing, cut short or altered file."""
        at = Path(folder)
        record = _read_record(at / RECORD)
        data = _read_bytes(at / TENSORS)
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise UserError(f"{at / TENSORS}: was cut short or altered since it was saved; get it again")
        try:
            tensors = load_tensors(data)
            updates = tuple(
                LayerUpdate(layer, tensors[f"layer_{layer}.left"], tensors[f"layer_{layer}.right"])
                for layer in record["layers"]
            )
            edits = tuple(_edit(row) for row in record["edits"])
            _check_fields(record)
            return cls(
                updates=updates,
                edits=edits,
                plan=record["plan"],
                method=record["method"],
                settings=record["settings"],
                seed=record["seed"],
                fingerprint=record["fingerprint"],
                place=record["place"],
                scores=record["scores"],
                memory=record.get("memory", {}),
            )
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"{at / RECORD}: field {error} is missing or broken; save it again") from error

    def to_lora(self, folder: str | Path) -> Path:
        """Write the same update as a PEFT adapter, exactly (no SVD): rank as `LayerUpdate.shrunk`.

        Raises NoWeightChange for a patch without updates, UserError where `folder` holds a model or cannot be
        written.
        """
        self.refuse_memory("there is nothing to export")
        # Transformers loads an adapter that lies beside a model with it, unasked.
        if (Path(folder) / "config.json").exists():
            raise UserError(f"{folder}: is a model's folder; an adapter there would change that model")
        modules = self.place["modules"]
        ranks: dict[str, int] = {}
        tensors: dict[str, Tensor] = {}
        for update in (update.shrunk() for update in self.updates):
            name = modules[str(update.layer)]
            ranks[name] = update.left.shape[1]
            tensors[f"base_model.model.{name}.lora_A.weight"] = update.right.float().cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = update.left.float().cpu().contiguous()
        top = max(ranks.values())
        others = {name: rank for name, rank in ranks.items() if rank != top}
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "base_model_name_or_path": self.place["base"],
            "r": top,
            "lora_alpha": top,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.place["fan_in_fan_out"],
            "target_modules": sorted(ranks),
            "rank_pattern": others,
            "alpha_pattern": others,
        }
        return _write_folder(
            Path(folder),
            {
                "adapter_model.safetensors": save_tensors(tensors, metadata={"format": "pt"}),
                "adapter_config.json": _dump(config, indent=1).encode(),
            },
        )


def place_of(lm: LanguageModel, layers: Sequence[int]) -> dict[str, Any]:
    """Where updates of `layers` go, in terms PEFT understands."""
    names = {id(module): name for name, module in lm.model.named_modules()}
    return {
        "modules": {str(layer): names[id(lm.down(layer))] for layer in layers},
        "fan_in_fan_out": lm.family.conv1d,
        "base": _public(lm.model.config._name_or_path),
    }


def _public(name: str | None) -> str | None:
    """A model's name for others to read: of a folder its last part alone."""
    return Path(name).name if name and Path(name).is_dir() else name or None


class PatchStack:
    """The patches that are on a model, and the base of every weight they touch.

    fingerprint: of the base, taken before the first write. reader: what answers prompts under the patches.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self.fingerprint = lm.fingerprint
        self.reader: Reader | None = None
        self._active: dict[str, Patch] = {}
        self._base: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._active)

    def __contains__(self, patch: Patch) -> bool:
        return patch.id in self._active

    def refuse_twice(self, patch: Patch) -> None:
        """Raises UserError if the patch is on."""
        if patch in self:
            raise UserError(f"patch {patch.id[:12]} is on already; remove it first")

    def patches(self) -> list[Patch]:
        """The active patches, in the order they came on."""
        return list(self._active.values())

    def edits(self) -> list[Edit]:
        """The edits that the active patches write, in the order they came on, one a fact: the last one's."""
        written = [edit for patch in self._active.values() if patch.updates for edit in patch.edits]
        return list({edit.key: edit for edit in written}.values())

    def base_of(self, layer: int) -> Tensor:
        """The down projection's weight as stored, without any patch."""
        if layer in self._base:
            return self._base[layer]
        return self._lm.down_weight(layer).detach()

    def add(self, patch: Patch) -> None:
        """Put `patch` on. Raises UserError where it is on, is of another model, or does not fit."""
        self.refuse_twice(patch)
        patch.check_model(self._lm)
        for update in patch.updates:
            if not 0 <= update.layer < self._lm.n_layers:
                raise UserError(f"the patch writes layer {update.layer}, the model has {self._lm.n_layers}")
            shape = (update.left.shape[0], update.right.shape[1])
            if shape != (self._lm.d_model, self._lm.n_neurons):
                raise UserError(f"the patch's layer {update.layer} is {shape}, which does not fit the model")
        self._set({**self._active, patch.id: patch}, [patch])

    def drop(self, patch: Patch) -> None:
        """Take `patch` off. Raises UserError where it is not on."""
        if patch not in self:
            raise UserError(f"patch {patch.id[:12]} is not on this model")
        self._set({id: one for id, one in self._active.items() if id != patch.id}, [patch])

    def replace(self, patches: Sequence[Patch]) -> None:
        """Have these patches on, in this order, and no others; each was on before, or is fit to be."""
        self._set({patch.id: patch for patch in patches}, [*self._active.values(), *patches])

    def _set(self, active: dict[str, Patch], changed: Sequence[Patch]) -> None:
        """Make `active` so: everything new is worked out before the first weight is written, and an
        interruption leaves all as it was."""
        reader = _reader(self._lm, active)
        layers = sorted({update.layer for patch in changed for update in patch.updates})
        base = dict(self._base)
        for layer in layers:
            if layer not in base:
                base[layer] = self._lm.down_weight(layer).detach().clone()
        written = {layer: self._weight(layer, base[layer], active) for layer in layers}
        touched = {update.layer for patch in active.values() for update in patch.updates}
        kept = {layer: weight for layer, weight in base.items() if layer in touched}
        before = self._active, self._base, self.reader
        try:
            self._write(written)
            self._active, self._base, self.reader = active, kept, reader
        except BaseException:
            self._write({layer: self._weight(layer, base[layer], before[0]) for layer in layers})
            self._active, self._base, self.reader = before
            raise

    def _weight(self, layer: int, base: Tensor, active: Mapping[str, Patch]) -> Tensor:
        """round(base + Σ Δ) of a layer, the base itself where no patch writes it."""
        updates = [u for id in sorted(active) for u in active[id].updates if u.layer == layer]
        if not updates:
            return base
        total = updates[0].delta()
        for update in updates[1:]:  # one at a time: hundreds may be on
            total = total + update.delta()
        total = (total.T if self._lm.family.conv1d else total).to(base.device)
        wide = torch.promote_types(base.dtype, torch.float32)
        return (base.to(wide) + total).to(base.dtype)

    @torch.no_grad()
    def _write(self, weights: Mapping[int, Tensor]) -> None:
        for layer, weight in weights.items():
            self._lm.down_weight(layer).copy_(weight)


def _reader(lm: LanguageModel, active: Mapping[str, Patch]) -> Reader | None:
    """What answers prompts under the active patches. Raises UserError where two would have to."""
    told = [active[id] for id in sorted(active) if active[id].memory]
    if not told:
        return None
    # Methods are a file above; only a patch that tells something needs to know them.
    from acedit.editing.methods import method, unprimed

    names = sorted({method(unprimed(patch.method)).reader for patch in told})
    if len(names) > 1 or not names[0]:
        found = ", ".join(sorted({repr(patch.method) for patch in told}))
        raise UserError(f"patches by {found} cannot be on together: one reader answers a prompt")
    made: Reader = import_module(names[0]).Reader(lm, [patch.memory for patch in told])
    return made


def _stack(lm: LanguageModel) -> PatchStack:
    if lm.patch_stack is None:
        lm.patch_stack = PatchStack(lm)
    stack: PatchStack = lm.patch_stack
    return stack


@contextmanager
def patches_on(lm: LanguageModel, patches: Sequence[Patch]) -> Iterator[LanguageModel]:
    """`lm` with all of these on, as `Patch.applied`."""
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch.applied(lm))
        yield lm


@contextmanager
def patches_off(lm: LanguageModel) -> Iterator[None]:
    """The model without its patches, for what is taken of the unedited one; they are back on leaving."""
    stack: PatchStack | None = lm.patch_stack
    on = [] if stack is None else stack.patches()
    try:
        if on:
            _stack(lm).replace([])
        yield
    finally:
        if on:
            _stack(lm).replace([*on, *_stack(lm).patches()])


def edits_on(lm: LanguageModel) -> list[Edit]:
    """The edits of the patches that are on the model, one a fact; of those that repeat, the last one's."""
    stack: PatchStack | None = lm.patch_stack
    return [] if stack is None else stack.edits()


def _check_fields(record: Mapping[str, Any]) -> None:
    """Raises TypeError or KeyError for a field that is not what `save` writes."""
    kinds = {"plan": dict, "settings": dict, "scores": dict, "place": dict, "method": str, "fingerprint": str}
    for name, kind in kinds.items():
        if not isinstance(record[name], kind):
            raise TypeError(repr(name))
    if not all("value" in row for row in record["scores"].values() if isinstance(row, dict)):
        raise TypeError("'scores'")
    for name in ("modules", "fan_in_fan_out"):
        record["place"][name]


def _edit(row: Mapping[str, Any]) -> Edit:
    relation = row["relation"]
    if not relation["prompts"] or any(prompt.count("{}") != 1 for prompt in relation["prompts"]):
        raise TypeError("'edits'")
    return Edit(
        subject=row["subject"],
        relation=Relation(
            id=relation["id"],
            prompts=tuple(relation["prompts"]),
            questions=tuple(relation["questions"]),
            phrases=tuple(relation["phrases"]),
            name=relation["name"],
        ),
        target=row["target"],
        old=row["old"],
        aliases=tuple(row["aliases"]),
    )


def _dump(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, sort_keys=True)


def _digest(record: Mapping[str, Any]) -> str:
    """sha256 (hex) of a record as it reads back, less its own digest."""
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(_dump(json.loads(_dump(rest))).encode()).hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; is this a patch folder?") from None


def _read_record(path: Path) -> dict[str, Any]:
    data = _read_bytes(path)
    try:
        record = json.loads(data)
        _dump(record).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: is not JSON ({first_line(error)}); it was cut short or altered, get it again"
        ) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else None
        raise UserError(f"{path}: is of schema {found}, this version reads {SCHEMA}; save it again")
    for name in ("sha256", "record_sha256"):
        if not isinstance(record.get(name), str):
            raise UserError(f"{path}: field {name!r} is missing; it was altered, get it again")
    if record["record_sha256"] != _digest(record):
        raise UserError(f"{path}: was altered since it was saved; get it again")
    return record


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files into a temporary folder beside `folder`, then move each into place."""
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for name, data in files.items():
            (partial / name).write_bytes(data)
        folder.mkdir(exist_ok=True)
        for name in files:
            (partial / name).replace(folder / name)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; free room or choose another"
        ) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


__all__: Sequence[str] = ("LayerUpdate", "NoWeightChange", "Patch", "PatchStack", "place_of")
