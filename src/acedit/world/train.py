"""Train the bundled model: a small Qwen3 that recalls, composes in one pass, and thinks aloud.

    train(Path("out/bundled"), Settings())        # about an hour on two cores; resumes where it was
    train(Path("out/second"), SHAPES["llama"])    # another family, deeper and narrower, to test against
    train(Path("out/further"), SHAPES["further"], start=Path("out/bundled"))   # from what a run has learned
    train(Path("out/bundled"), Settings(), device="cuda")   # on a GPU; workers then make the texts ready

Every step draws its documents from (seed, step) alone, so an interrupted run goes on as if it had never
stopped. Hidden matrices learn by Muon, embeddings and norms by AdamW, both with a cosine decay. The
loss (nats a token) is taken where a document says something (objects, answers, thoughts) and nowhere
else. While it learns, the upper layers share the matrices of the lower ones (`tie`); the checkpoint is an
ordinary Qwen3 (or Llama) in which each layer has its own.

Footguns: glibc hands back at every step what the threads free, and half of the time goes there; with
`keep_freed_memory`, which the command calls, it does not. Accuracies printed on the way are
all-tokens-argmax on the answer, which is what greedy decoding would give for that one wording, in the
products that train; the card's table is made by generation.
"""

import ctypes
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from acedit.errors import UserError, first_line
from acedit.files import saving
from acedit.lm.cache import save_tensors
from acedit.lm.trace import run_by
from acedit.world.corpus import HOPS, Corpus, Document, cut
from acedit.world.graph import World, build_world
from acedit.world.tokenizer import train_tokenizer

RESUME = "resume.safetensors"
SHAPED = ("family", "d_model", "layers", "loops", "n_neurons", "heads", "kv_heads", "vocab_size", "context")
CORE_TOKENS = 1200  # of a micro-batch: what one core's caches hold best
DEVICE_TOKENS = 40_000  # the same on a GPU, which waits for launches otherwise
MIXTURE_START = {"one_hop": 0.65, "two_hop": 0.22, "three_hop": 0.05, "thoughts": 0.08}
MIXTURE_END = {"one_hop": 0.22, "two_hop": 0.35, "three_hop": 0.29, "thoughts": 0.14}  # beside `four_hop`


@dataclass(frozen=True)
class Settings:
    """What a training run depends on; `tokens_per_step` counts real tokens, not padding."""

    seed: int = 0
    family: Literal["qwen3", "llama"] = "qwen3"
    steps: int = 2000
    tokens_per_step: int = 9000
    d_model: int = 128
    layers: int = 9
    loops: int = 3  # passes through the same matrices; layers / loops of them are distinct
    n_neurons: int = 640
    heads: int = 4
    kv_heads: int = 2
    vocab_size: int = 4096
    context: int = 2048
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 60
    ramp: float = 0.15  # share of the run over which the mixture moves to its end
    long_every: int = 2  # a few-shot document comes in every so many steps
    four_hop: float = 0.0  # share of latent chains of four hops at the mixture's end
    cut_share: float = 0.0  # of documents whose words are cut
    cut_rate: float = 0.06  # cuts for each place between two letters
    strangers: float = 0.0  # of chains thought aloud that begin at one


SHAPES = {
    "bundled": Settings(),
    "further": Settings(
        seed=2, steps=1400, muon_lr=0.01, adam_lr=1.5e-3, ramp=0.01, long_every=3, four_hop=0.15
    ),
    "broad": Settings(steps=1900, four_hop=0.13, cut_share=0.15, strangers=0.2),
    "llama": Settings(
        seed=1, family="llama", steps=1500, d_model=112, layers=12, n_neurons=448, kv_heads=4, vocab_size=3072
    ),
}
"""The model of an hour on two cores; what it goes on to, taught chains of four hops too (with `start`); from
nothing these and every token as well, which costs some of the shorter chains (docs/decisions.md); and a
second one of another family, depth and width."""

Causal = Qwen3ForCausalLM | LlamaForCausalLM
Row = tuple[list[int], list[bool]]
"""Token ids of a document and, for each, whether it is learned."""

MicroBatch = tuple[Tensor, Tensor]
"""Rows of like length: input ids and the learned mask, both (batch, seq)."""


def build_model(settings: Settings, vocab_size: int) -> Causal:
    """A freshly initialised model of the settings' family and shape."""
    torch.manual_seed(settings.seed)
    config, model = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[settings.family]
    built: Causal = model(
        config(
            vocab_size=vocab_size,
            hidden_size=settings.d_model,
            intermediate_size=settings.n_neurons,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads,
            head_dim=settings.d_model // settings.heads,
            max_position_embeddings=settings.context,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    return built


class _Product(torch.autograd.Function):
    """x Wᵀ with factors rounded to bf16, everything else in float32: 1.3 times as fast on two cores."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        flat, half = x.reshape(-1, x.shape[-1]).bfloat16(), weight.bfloat16()
        ctx.save_for_backward(flat, half)
        return (flat @ half.T).float().view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        flat, half = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1]).bfloat16()
        return (grad @ half).float().view(*grads[0].shape[:-1], -1), (grad.T @ flat).float()


@contextmanager
def fast_products(model: Causal) -> Iterator[None]:
    """While inside: matrix products of the blocks in bf16; on a GPU all of them in TF32, without casts."""
    if model.device.type != "cpu":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    inner = [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    with ExitStack() as stack:
        for module in inner:
            stack.enter_context(run_by(module, partial(_product, module)))
        yield


def _product(module: torch.nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = _Product.apply(x, module.weight)  # type: ignore[no-untyped-call]
    return y


def tie(model: Causal, loops: int) -> None:
    """Let layer i + n share the matrices of layer i, n = layers / loops; the norms stay each layer's own.

    A fact then serves as a first hop and as a second alike, so composition generalises from far fewer
    chains (Wang et al. 2024, "Grokked Transformers", section 4: parameter sharing).
    """
    layers = model.model.layers
    n = len(layers) // loops
    for i in range(n, len(layers)):
        for name, module in layers[i].named_modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = layers[i - n].get_submodule(name).weight


def untie(model: Causal) -> None:
    """Give every layer matrices of its own, with the values they have."""
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(module.weight.detach().clone())


def documents(corpus: Corpus, settings: Settings, step: int) -> list[Document]:
    """The documents of one step, about `tokens_per_step` tokens in all (at 4 characters a token)."""
    corpus.reseed(f"{settings.seed}/{step}")
    rng = random.Random(f"{settings.seed}/{step}")
    along = min(1.0, step / (settings.ramp * settings.steps))
    four = along * settings.four_hop
    odds = {k: (1 - four) * ((1 - along) * MIXTURE_START[k] + along * MIXTURE_END[k]) for k in MIXTURE_START}
    odds["four_hop"] = four
    cuts = random.Random(f"{settings.seed}/{step}/cuts")
    drawn: list[Document] = []
    budget = settings.tokens_per_step * 3.6
    if step % settings.long_every == 0 and along > 0.5:
        kind = "few_shot_thoughts" if rng.random() < 0.7 else "few_shot"
        drawn.append(corpus.draw(kind))
    kinds, weights = list(odds), list(odds.values())
    while budget > 0:
        doc = corpus.draw(rng.choices(kinds, weights)[0])
        drawn.append(cut(doc, cuts, settings.cut_rate) if cuts.random() < settings.cut_share else doc)
        budget -= len(doc.text)
    return drawn


def tokenized(tokenizer: PreTrainedTokenizerFast, docs: Sequence[Document]) -> list[Row]:
    """Token ids and, for each, whether it is learned: it starts inside one of the document's spans, and is
    not what a cut left of a token, which nothing could foretell."""
    rows: list[Row] = [([], []) for _ in docs]
    pieces = [(n, at, piece) for n, doc in enumerate(docs) for at, piece in doc.pieces]
    batch = tokenizer([piece for *_, piece in pieces], return_offsets_mapping=True)
    for (n, at, _), ids, offsets in zip(pieces, batch["input_ids"], batch["offset_mapping"], strict=True):
        rows[n][0].extend(ids)
        rows[n][1].extend(
            any(a <= at + start < b for a, b in docs[n].spans) and at + end not in docs[n].cuts
            for start, end in offsets
        )
    return rows


def micro_batches(rows: list[Row], tokens: int = CORE_TOKENS) -> Iterator[MicroBatch]:
    """Rows of like length, right-padded, at most `tokens` in all (or one row)."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    batch: list[Row] = []
    for row in [*rows, None]:
        if row is None or (batch and len(row[0]) * (len(batch) + 1) > tokens):
            width = len(batch[-1][0])
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros(len(batch), width, dtype=torch.bool)
            for i, (tokens_of, learned) in enumerate(batch):
                ids[i, : len(tokens_of)] = torch.tensor(tokens_of)
                mask[i, : len(learned)] = torch.tensor(learned)
            yield ids, mask
            batch = []
        if row is not None:
            batch.append(row)


class Step(NamedTuple):
    """What one step learns from: micro-batches, and the real tokens in them."""

    batches: list[MicroBatch]
    tokens: int


class Steps(Dataset[Step]):
    """Every step's documents, made ready: item i is step i, whoever asks and in whatever order."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, settings: Settings, tokens: int):
        self._corpus, self._tokenizer, self._settings, self._tokens = corpus, tokenizer, settings, tokens

    def __len__(self) -> int:
        return self._settings.steps

    def __getitem__(self, step: int) -> Step:
        rows = tokenized(self._tokenizer, documents(self._corpus, self._settings, step))
        return Step(list(micro_batches(rows, self._tokens)), sum(len(ids) for ids, _ in rows))


def learned_logits(model: Causal, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n_learned, vocab) and targets (n_learned,), taken only where the mask reads them.

    Batches are on the CPU, wherever the model is: to count on a GPU what is read would be to wait for it.
    """
    at = mask[:, 1:].flatten().nonzero()[:, 0]
    here = [x.to(model.device, non_blocking=True) for x in (ids, at, ids[:, 1:].flatten()[at])]
    hidden = model.model(input_ids=here[0], use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    return model.lm_head(hidden.index_select(0, here[1])), here[2]


def gradients(
    model: Causal, parameters: Sequence[Tensor], batches: Sequence[MicroBatch], learned: int
) -> tuple[Tensor, list[Tensor]]:
    """Loss (nats a learned token, over `learned` of them) and its gradients, over the micro-batches."""
    total, sums = torch.zeros((), device=model.device), [torch.zeros_like(p) for p in parameters]
    for ids, mask in batches:
        loss = F.cross_entropy(*learned_logits(model, ids, mask), reduction="sum") / learned
        torch._foreach_add_(sums, torch.autograd.grad(loss, parameters))
        total += loss.detach()
    return total, sums


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, for the rest of the process; False, and nothing done, without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # as malloc.h names them; the second is 32 MiB at most
    return bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_threshold, 2**25))


@contextmanager
def learner(model: Causal, workers: int) -> Iterator[Callable[[list[MicroBatch]], Tensor]]:
    """While inside: a function that fills the gradients from batches and returns their loss (nats a token).

    Micro-batches are dealt to `workers` threads of one core each: two of them run batches this small 1.2
    times as fast as one that shares each product between two cores. Sums are taken in the workers' order.
    """
    parameters = list(model.parameters())
    before = torch.get_num_threads()

    def learn(batches: list[MicroBatch]) -> Tensor:
        learned = sum(int(mask[:, 1:].sum()) for _, mask in batches)
        dealt = [batches[i::workers] for i in range(workers)]
        found = list(pool.map(lambda share: gradients(model, parameters, share, learned), dealt))
        loss, sums = found[0]
        for more, others in found[1:]:
            loss += more
            torch._foreach_add_(sums, others)
        for p, grad in zip(parameters, sums, strict=True):
            p.grad = grad
        return loss

    torch.set_num_threads(1)
    try:
        with (
            fast_products(model),
            ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            yield learn
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def probe(model: Causal, tokenizer: PreTrainedTokenizerFast, docs: Sequence[Document], tokens: int) -> float:
    """Share of documents all of whose learned tokens are the argmax; `tokens` run at a time."""
    right = total = 0
    model.train(False)
    for ids, mask in micro_batches(tokenized(tokenizer, docs), tokens):
        logits, targets = learned_logits(model, ids, mask)
        wrong = torch.zeros(ids.shape[0], dtype=torch.bool)
        rows = mask[:, 1:].nonzero()[:, 0]
        wrong[rows[(logits.argmax(-1) != targets).cpu()]] = True
        right += int((~wrong).sum())
        total += ids.shape[0]
    model.train()
    return right / total


class HeldOut(Corpus):
    """The same texts over development chains, which training never composes."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self._chains = {
            hops: [path for path in world.chains(hops) if world.pool(path) == "dev"] for hops in (2, 3, 4)
        }


def train(
    out: Path,
    settings: Settings,
    *,
    say: Callable[[str], None] = print,
    save_every: int = 100,
    workers: int | None = None,
    device: str = "cpu",
    start: Path | None = None,
) -> Path:
    """Train to `settings.steps` and write the model in bf16 to `out`; goes on where `out` stopped.

    `workers` threads share a step (PyTorch's number of threads by default): the same number of them gives
    the same model. On another `device` than the CPU whole steps go to it at once, `workers` processes make
    their texts ready, and sums are taken in no fixed order: a rerun gives a like model, not the same.
    start: another run's folder, whose weights and tokenizer it begins with; the optimizers begin anew.
    Returns the folder `out`, which then holds an ordinary Hugging Face checkpoint.
    Raises OSError where `out` cannot be written, UserError for a device that is not there, a run of other
    settings in `out`, and a `start` that holds no run, or one of another shape.
    """
    workers = workers or torch.get_num_threads()
    try:
        away = torch.zeros(1, device=device).device.type != "cpu"
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} is not there: {first_line(error)}") from error
    model: Causal = build_model(settings, settings.vocab_size)
    tie(model, settings.loops)
    done = _steps_done(out, settings, start)
    if start is not None and not done:
        _begin_with(start, out, settings, model)
    out.mkdir(parents=True, exist_ok=True)
    world = build_world()
    corpus = Corpus(world, settings.seed, settings.strangers)
    tokenizer = _tokenizer(out, start, world, corpus, settings)
    model.to(torch.device(device))  # type: ignore[arg-type]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay, nesterov=True)
    adam = torch.optim.AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{parameters:,} parameters; {len(world.facts):,} facts about {len(world.kinds):,} entities;"
        f" settings {json.dumps(asdict(settings))}"
    )
    held = HeldOut(world, 1)
    probes = {kind: [held.draw(kind) for _ in range(300)] for kind in ("one_hop", *HOPS, "thoughts")}
    if done:
        _resume(out, model, (muon, adam))
        say(f"resuming at step {done}")
    model.train()
    room = DEVICE_TOKENS if away else CORE_TOKENS
    ready = DataLoader(
        Steps(corpus, tokenizer, settings, room),
        batch_size=None,
        sampler=range(done, settings.steps),
        num_workers=workers if away else 0,
        pin_memory=away,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
    )
    with learner(model, 1 if away else workers) as learn:
        started, seen, first = time.monotonic(), 0, done
        losses: list[Tensor] = []
        for step, given in enumerate(ready, start=done):
            scale = _schedule(step, settings)
            muon.param_groups[0]["lr"] = settings.muon_lr * scale
            adam.param_groups[0]["lr"] = settings.adam_lr * scale
            losses.append(learn(given.batches))
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            muon.step()
            adam.step()
            model.zero_grad(set_to_none=True)
            seen += given.tokens
            if (step + 1) % 50 == 0 or step + 1 == settings.steps:
                spent = time.monotonic() - started
                left = spent / (step + 1 - first) * (settings.steps - step - 1)
                say(
                    f"step {step + 1}/{settings.steps}  loss {torch.stack(losses).mean():.3f} nats  "
                    f"{seen / spent:,.0f} tokens/s  {spent / 60:.1f} min, {left / 60:.1f} min left"
                )
                losses = []
            if (step + 1) % 250 == 0 or step + 1 == settings.steps:
                marks = "  ".join(f"{k} {probe(model, tokenizer, d, room):.3f}" for k, d in probes.items())
                say(f"  held out (dev): {marks}")
            if (step + 1) % save_every == 0 or step + 1 == settings.steps:
                _checkpoint(out, model, (muon, adam), step + 1, settings, start)
    untie(model)
    model = model.cpu().bfloat16()
    model.generation_config.do_sample = False
    with saving(out):
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out


def _as_it_is(step: Step) -> Step:
    return step


def _run_in(folder: Path) -> tuple[dict[str, Any], int]:
    """The settings of the run in `folder` (its start among them, where it had one) and the steps it has done.

    Raises UserError where its file is not whole.
    """
    path = folder / RESUME
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata()
        return json.loads(metadata["settings"]), int(metadata["step"])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: is cut short or altered ({error}); remove it to start anew") from None


def recorded(settings: Settings, start: Path | None) -> dict[str, Any]:
    """The settings as a run and its card record them, with the name of the run it began with."""
    return asdict(settings) | ({} if start is None else {"start": start.resolve().name})


def _steps_done(out: Path, settings: Settings, start: Path | None) -> int:
    """How many steps an interrupted run left in `out`, 0 for none.

    Raises UserError for a run of other settings or another start: its tokenizer is of those too.
    """
    if not (out / RESUME).exists():
        return 0
    before, steps = _run_in(out)
    now = recorded(settings, start)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{out}: holds a run with {name} {before.get(name)}, not {now.get(name)}; "
                f"choose another --out, or remove its {RESUME}"
            )
    return steps


def _begin_with(start: Path, out: Path, settings: Settings, model: Causal) -> None:
    """Give a tied model the weights that a run of the same shape has come to."""
    if start.resolve() == out.resolve():
        raise UserError(f"{start}: is where the run is to go; choose another --out than --start")
    for name in (RESUME, "tokenizer.json"):
        if not (start / name).is_file():
            raise UserError(f"{start}: holds no {name}; --start takes a folder of 'world train'")
    before, now = _run_in(start)[0], asdict(settings)
    for name in SHAPED:
        if before.get(name) != now[name]:
            raise UserError(f"{start}: has {name} {before.get(name)}, not {now[name]}; start from another")
    _take_weights(load_file(start / RESUME), model)


@torch.no_grad()
def _take_weights(tensors: Mapping[str, Tensor], model: torch.nn.Module) -> None:
    """Give the model those that a checkpoint holds."""
    for name, p in model.named_parameters():
        p.copy_(tensors[f"model/{name}"])


def _tokenizer(
    out: Path, start: Path | None, world: World, corpus: Corpus, settings: Settings
) -> PreTrainedTokenizerFast:
    """The tokenizer of an interrupted run or of `start`, or one trained on a sample of the texts to come."""
    resumed = (out / RESUME).exists() and (out / "tokenizer.json").exists()
    source = out if resumed else start
    if source is not None:
        kept: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(source)
        if not resumed:
            with saving(out):
                kept.save_pretrained(out)
        return kept
    sample = [doc.text for step in range(30) for doc in documents(corpus, settings, step * 50)]
    tokenizer = train_tokenizer(
        [*sample, *(f" {name}" for name in world.kinds for _ in range(40))],
        settings.vocab_size,
        settings.context,
    )
    with saving(out):
        tokenizer.save_pretrained(out)
    return tokenizer


def _schedule(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to nothing."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    along = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * along))


def _checkpoint(
    out: Path,
    model: torch.nn.Module,
    optimizers: tuple[torch.optim.Optimizer, ...],
    step: int,
    settings: Settings,
    start: Path | None,
) -> None:
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for key, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{i}/{key}/{name}"] = torch.as_tensor(value)
    metadata = {"step": str(step), "settings": json.dumps(recorded(settings, start))}
    save_tensors(out / RESUME, tensors, metadata)


def _resume(out: Path, model: torch.nn.Module, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
    """Load what an interrupted run left."""
    tensors = load_file(out / RESUME)
    _take_weights(tensors, model)
    for i, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer/{i}/"):
                _, _, key, field = name.split("/")
                state.setdefault(int(key), {})[field] = value
        optimizer.load_state_dict({**whole, "state": state})
