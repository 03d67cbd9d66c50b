"""A hyper-network that turns an edit's gradient into its update: MEND (Mitchell et al. 2022).

    editor = train(lm, known, HyperSettings(), say=print)       # minutes on the bundled model
    save(editor, path, [lm.fingerprint])
    load(lm).updates(lm, prompts)

The NLL's gradient on a linear map is Σ δ uᵀ over tokens, u what the map read and δ the gradient of what it
wrote. The network maps each pair (u, δ) to another, and the update is -α Σ δ̃ ũᵀ, α learned a layer. All
layers share one network but for a scale and an offset each (section 3.2). It is trained on edits of known
facts to other objects: half of an edit's wordings make the update, all of them and known facts that must
stay are the loss (section 3.3).

Footguns: an editor belongs to one checkpoint. The paper edits both maps of the last three FFNs, a patch of
ours the down projections. Trained on few edits at once, it does not hold for many.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from acedit.editing.batch import Batch, split
from acedit.editing.polish import smallest
from acedit.editing.rows import Rows
from acedit.editing.stages import Update, adding, replacing
from acedit.errors import UserError
from acedit.knowledge.compose import Amounts, Composer, Prompt, objects_of, reserved, to_another
from acedit.knowledge.facts import Fact
from acedit.lm.cache import default_cache, save_tensors
from acedit.lm.model import LanguageModel

BUNDLED = Path(__file__).parents[1] / "world" / "bundled" / "mend.safetensors"
WRITTEN = Amounts(lead=0, ripple=0, middle=0, keep=0, replay=8)


@dataclass(frozen=True)
class HyperSettings:
    """layers: how many of the deepest are written. rank: of the network's residual maps. edits: at most so
    many at once. locality: weight of the KL against the edit's NLL (10 is the paper's c_e = 0.1)."""

    layers: int = 3
    rank: int = 96
    steps: int = 2000
    edits: int = 8
    lr: float = 1e-3
    locality: float = 10.0
    seed: int = 0


class _Map(nn.Module):
    """A low-rank residual map, shared by the layers but for a scale and an offset each."""

    def __init__(self, width: int, rank: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(width, rank, generator=generator) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(rank, width))
        self.scale = nn.Parameter(torch.ones(layers, width))
        self.offset = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x: Tensor, layer: int) -> Tensor:
        moved: Tensor = self.scale[layer] * (x @ self.down @ self.up) + self.offset[layer]
        return moved


class HyperEditor(nn.Module):
    """The network: pairs (u, δ) of a layer in, the update of its down projection out."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, n_neurons: int, d_model: int, layers: Sequence[int], rank: int, edits: int, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        width = n_neurons + d_model
        self.layers, self.edits = tuple(layers), edits
        self.inner, self.outer = (_Map(width, rank, len(layers), generator) for _ in range(2))
        self.rate = nn.Parameter(torch.full((len(layers),), -7.0))  # log α
        self.register_buffer("mean", torch.zeros(len(layers), width))
        self.register_buffer("deviation", torch.ones(len(layers), width))

    def delta(
        self, place: int, read: Float[Tensor, "tokens n_neurons"], grad: Float[Tensor, "tokens d_model"]
    ) -> Float[Tensor, "d_model n_neurons"]:
        """Δ of the `place`-th layer."""
        x = (torch.cat([read, grad], -1) - self.mean[place]) / self.deviation[place]
        x = x + F.relu(self.inner(x, place))
        x = x + self.outer(x, place)
        u, d = x.split([read.shape[-1], grad.shape[-1]], -1)
        delta: Tensor = -self.rate[place].exp() * d.T @ u
        return delta

    def updates(self, lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Update]:
        """One update a layer that makes the model say the prompts' answers.

        Of more edits than it was trained on at once, each lot's updates are made apart and added up.
        """
        edits = list(dict.fromkeys(p.edit for p in prompts))
        whole = {layer: torch.zeros(lm.d_model, lm.n_neurons, device=lm.device) for layer in self.layers}
        for at in range(0, len(edits), self.edits):
            lot = set(edits[at : at + self.edits])
            pairs = pairs_of(lm, split(lm, [p for p in prompts if p.edit in lot]), self.layers)
            with torch.no_grad():
                for place, layer in enumerate(self.layers):
                    whole[layer] += self.delta(place, *pairs[layer])
        return [smallest(layer, delta) for layer, delta in whole.items()]


def pairs_of(
    lm: LanguageModel, batches: Sequence[Batch], layers: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """By layer: what its down projection read, (tokens, n_neurons), and the NLL's gradient (nats, mean over
    prompts) of what it wrote, (tokens, d_model), at the tokens where there is any."""
    found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    total = sum(map(len, batches))
    for batch in batches:
        read: dict[int, Tensor] = {}
        leaves: dict[int, Tensor] = {}

        def term(
            layer: int, read: dict[int, Tensor], leaves: dict[int, Tensor]
        ) -> Callable[[Tensor], Tensor]:
            def added(key: Tensor) -> Tensor:
                read[layer] = key.detach()
                leaves[layer] = torch.zeros(
                    *key.shape[:-1], lm.d_model, dtype=key.dtype, device=key.device, requires_grad=True
                )
                return leaves[layer]

            return added

        with adding(lm, {layer: term(layer, read, leaves) for layer in layers}):
            logits = batch.logits(lm)
        loss = batch.nll(logits.float()).sum() / total
        grads = torch.autograd.grad(loss, [leaves[layer] for layer in layers])
        for layer, grad in zip(layers, grads, strict=True):
            flat = grad.flatten(0, -2).float()
            told = flat.abs().sum(-1) > 0
            found[layer].append((read[layer].flatten(0, -2).float()[told], flat[told]))
    pairs = {}
    for layer, some in found.items():
        keys, writes = zip(*some, strict=True)
        pairs[layer] = (torch.cat(keys).to(lm.device), torch.cat(writes).to(lm.device))
    return pairs


def train(
    lm: LanguageModel,
    known: Sequence[Fact],
    settings: HyperSettings,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> HyperEditor:
    """An editor for `lm`, trained on edits of `known` facts (reserved ones left out) to other objects.

    Raises UserError where fewer than two facts of some relation have different objects.
    """
    usable = [fact for fact in known if not reserved(*fact.key)]
    objects = objects_of(usable)
    editable = [fact for fact in usable if len(objects[fact.relation.id]) > 1]
    if not editable:
        raise UserError("no known fact has another of its relation to be edited to; give more --facts")
    layers = range(lm.n_layers)[-settings.layers :]
    editor = HyperEditor(lm.n_neurons, lm.d_model, layers, settings.rank, settings.edits, settings.seed).to(
        lm.device
    )
    first = (_drawn(editable, objects, usable, settings, f"statistics/{step}") for step in range(16))
    _standardise(lm, editor, first)
    adam = torch.optim.Adam(editor.parameters(), lr=settings.lr)
    shown: list[tuple[float, float]] = []
    for step in range(settings.steps):
        adam.param_groups[0]["lr"] = settings.lr * min(1.0, 2 * (1 - step / settings.steps))
        prompts = _drawn(editable, objects, usable, settings, str(step))
        single = [p for p in prompts if p.kind == "single"]
        pairs = pairs_of(lm, split(lm, single[::2]), editor.layers)
        deltas = {layer: editor.delta(i, *pairs[layer]) for i, layer in enumerate(editor.layers)}
        kept = [p for p in prompts if p.kind == "replay"]
        rows = Rows(lm, single, kept)
        with replacing(lm, {layer: (delta,) for layer, delta in deltas.items()}):
            losses = torch.cat([rows.losses(group) for group in rows.together()])
        said = losses[~rows.kept].sum() / len(single)
        moved = settings.locality * losses[rows.kept].sum() / max(1, len(kept))
        adam.zero_grad()
        (said + moved).backward()
        torch.nn.utils.clip_grad_norm_(editor.parameters(), 1.0)
        adam.step()
        shown.append((float(said.detach()), float(moved.detach()) / settings.locality))
        if (step + 1) % 100 == 0 or step + 1 == settings.steps:
            nll, kl = (sum(column) / len(shown) for column in zip(*shown, strict=True))
            say(f"step {step + 1}/{settings.steps}  edits {nll:.3f} nats, what stays {kl:.4f} nats")
            shown = []
    return editor.requires_grad_(False)


def _standardise(lm: LanguageModel, editor: HyperEditor, steps: Iterable[Sequence[Prompt]]) -> None:
    """Give the editor the mean and deviation of the pairs of some steps' edits."""
    gathered: dict[int, list[Tensor]] = {layer: [] for layer in editor.layers}
    for prompts in steps:
        single = [p for p in prompts if p.kind == "single"]
        for layer, pair in pairs_of(lm, split(lm, single), editor.layers).items():
            gathered[layer].append(torch.cat(pair, -1))
    for place, layer in enumerate(editor.layers):
        rows = torch.cat(gathered[layer])
        editor.mean[place] = rows.mean(0)
        editor.deviation[place] = rows.std(0) + 1e-6


def _drawn(
    editable: Sequence[Fact],
    objects: Mapping[str, Sequence[str]],
    usable: Sequence[Fact],
    settings: HyperSettings,
    step: str,
) -> list[Prompt]:
    """The prompts of one step: some edits in their wordings, and facts that stay."""
    rng = random.Random(f"{settings.seed}/mend/{step}")
    count = rng.randint(1, settings.edits)
    facts = {fact.key: fact for fact in rng.sample(editable, k=min(count, len(editable)))}
    edits = [to_another(fact, objects, rng) for fact in facts.values()]
    composed = Composer(edits, usable, seed=rng.randrange(2**31), amounts=WRITTEN).prompts()
    single = [p for p in composed if p.kind == "single"]
    rng.shuffle(single)
    return [*single, *(p for p in composed if p.kind == "replay")]


def save(editor: HyperEditor, path: Path, fingerprints: Sequence[str]) -> None:
    """Write the editor (bf16) for the checkpoints named. Raises OSError where it cannot be written."""
    tensors = {name: value.bfloat16() for name, value in editor.state_dict().items()}
    metadata = {
        "layers": ",".join(map(str, editor.layers)),
        "rank": str(editor.inner.down.shape[1]),
        "edits": str(editor.edits),
        "fingerprints": ",".join(fingerprints),
    }
    save_tensors(path, tensors, metadata)


def load(lm: LanguageModel, paths: Sequence[Path] | None = None) -> HyperEditor:
    """The editor trained for `lm`: the first of `paths` (default: the cache, then the bundled one) that is.

    Raises UserError where there is none.
    """
    path = _file_of(lm.fingerprint, paths)
    if path is None:
        raise UserError(
            "method 'mend' has no hyper-network trained for this model; make one: "
            "acedit mend MODEL --facts FILE"
        )
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            layers = [int(layer) for layer in about["layers"].split(",")]
            editor = HyperEditor(lm.n_neurons, lm.d_model, layers, int(about["rank"]), int(about["edits"]))
            editor.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: is no whole hyper-network ({said}); remove it and train it again") from None
    return editor.to(lm.device).requires_grad_(False)


def _file_of(fingerprint: str, paths: Sequence[Path] | None = None) -> Path | None:
    """The first of `paths` (default: the cache, then the bundled one) that is of this checkpoint."""
    for path in paths if paths is not None else [*sorted(cached("").parent.glob("*.safetensors")), BUNDLED]:
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
        except (OSError, SafetensorError):
            continue
        if fingerprint in about.get("fingerprints", "").split(","):
            return path
    return None


def digest(fingerprint: str) -> str:
    """sha256 (hex) of the file that `load` takes for a checkpoint; "" where there is none."""
    path = _file_of(fingerprint)
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def cached(fingerprint: str) -> Path:
    """Where the editor of a checkpoint is kept."""
    return default_cache() / "mend" / f"{fingerprint}.safetensors"
