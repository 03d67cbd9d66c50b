"""Certified top value neurons against scoring every neuron, and against gradients.

    python benchmarks/attribution.py --vocab 50000 --neurons 3072 --d-model 1024 --layers 12

    python benchmarks/attribution.py --vocab 151936 --neurons 12288 --d-model 4096 --layers 36 --heads 32 \
        --dtype bfloat16 --prompts 1 --k 10 --reference-layers 0     # the shape of Qwen3-8B, in 24 GiB

A random Qwen3 of the given shape. Four ways to the k best neurons of every layer, for the same prompts, on
the same machine, in turn:
  textbook   every neuron's distribution, the N × V product a layer (`value.log_increase`), on some layers
  certified  `certified.certified_top`, spread measured before (its time is printed), all layers
  gradient   activation × gradient of log p(w) through the model, one pass back for all layers (as EAP has it)
  linear     activation × gradient of log p(w) at the final residual: Eq. 9 to first order
Printed: time a layer and prompt and its ratio (both ways in every round; the textbook one on one layer and
prompt), prompts at which the spread is paid for, neurons scored exactly, whether set and order are those of
the textbook way (its best scored again in float64, of a trace of all prompts; apart: by how much scores
differ at most), and how far the gradients' rankings agree. Peak memory is what one prompt takes beyond the
model, in a process of its own (on a GPU: as its allocator counts): all layers, of the textbook way one.
`--sharp` scales the head, so that p is peaked.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from acedit.attribution.atlas import build_atlas
from acedit.attribution.certified import Certified, certified_top
from acedit.attribution.spread import measure_spread
from acedit.attribution.value import ffn_vectors, log_increase
from acedit.lm.model import LanguageModel
from acedit.lm.trace import Trace, trace

T = TypeVar("T")
NEAR = 64  # neurons beyond the k-th that are scored again in float64

PROMPTS = [
    "The capital of France is",
    "Question: Who is the head of state of Peru?\nAnswer:",
    "Fernando Santos is a citizen of",
    "The author of Hamlet is",
    "Mark Trumbo plays the sport of",
    "The head coach of Iran national football team is",
    "Question: Who was Aslan created by?\nAnswer:",
    "The official language of Brazil is",
    "Question: Which continent is London located in?\nAnswer:",
    "Apple Inc. was founded by",
    "Hari Kunzru was born in the city of",
    "Question: What is the capital of Japan?\nAnswer:",
    "The chairperson of Toyota is",
    "Miles Davis performed the genre of",
    "Question: Who performed Rocket Man?\nAnswer:",
    "The original broadcaster of The Office is",
]
ANSWERS = [
    "Lima", "Paris", "Portugal", "Shakespeare", "football", "Carlos", "Lewis", "Portuguese",
    "Europe", "Steve", "London", "Tokyo", "Akio", "jazz", "Elton", "NBC",
]  # fmt: skip
LEADS = ["", "It is known that. ", "As everybody says: ", "Think of it. "]


def random_model(args: argparse.Namespace) -> LanguageModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=args.vocab,
        hidden_size=args.d_model,
        intermediate_size=args.neurons,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads // 4,
        head_dim=args.d_model // args.heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    config.dtype = getattr(torch, args.dtype)
    with torch.device(args.device):
        model = Qwen3ForCausalLM._from_config(config).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(args.sharp)
    return LanguageModel(model, tokenizer())


def tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level one, so that vocabularies may be small too."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["<end>"], initial_alphabet=alphabet)
    made.train_from_iterator([f"{p} {a}" for p, a in zip(PROMPTS, ANSWERS, strict=True)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


def textbook(lm: LanguageModel, t: Trace, layers: list[int], prompts: int) -> dict[tuple[int, int], Tensor]:
    scores = {}
    for i, answer in enumerate(ANSWERS[:prompts]):
        at = int(t.encoded.last[i])
        for layer in layers:
            base = t.residual[layer, i, at] + t.attention[layer, i, at]
            vectors = ffn_vectors(lm, t, layer, i, at)
            token = lm.token_ids(answer)[0]
            scores[layer, i] = log_increase(lm, base, vectors, t.residual[-1, i, at], token)
    return scores


def again(lm: LanguageModel, t: Trace, layer: int, i: int, neurons: Tensor) -> Tensor:
    """The textbook way's scores of some neurons in float64."""
    at = int(t.encoded.last[i])
    base = (t.residual[layer, i, at] + t.attention[layer, i, at]).double()
    vectors = ffn_vectors(lm, t, layer, i, at)[neurons].double()
    return log_increase(lm, base, vectors, t.residual[-1, i, at].double(), lm.token_ids(ANSWERS[i])[0])


def linear(lm: LanguageModel, layers: list[int], prompts: int) -> dict[tuple[int, int], Tensor]:
    t = trace(lm, PROMPTS[:prompts])
    scores = {}
    for i, answer in enumerate(ANSWERS[:prompts]):
        at = int(t.encoded.last[i])
        frozen = lm.freeze_norm(lm.final_norm, t.residual[-1, i, at])
        p = (lm.unembedding.float() @ frozen.apply(t.residual[-1, i, at])).softmax(0)
        pull = frozen.transpose(lm.unembedding[lm.token_ids(answer)[0]].float() - p @ lm.unembedding.float())
        for layer in layers:
            scores[layer, i] = t.coefficients[layer, i, at].float() * (lm.subvalues(layer).float() @ pull)
    return scores


@torch.enable_grad()
def gradient(lm: LanguageModel, layers: list[int], prompts: int) -> dict[tuple[int, int], Tensor]:
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[object, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept[layer] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            return (kept[layer], *args[1:])

        return hook

    encoded = lm.encode(PROMPTS[:prompts])
    every = range(min(layers), lm.n_layers)
    handles = [lm.down(layer).register_forward_pre_hook(keep(layer)) for layer in every]
    try:
        final = lm.run_backbone(encoded)
    finally:
        for handle in handles:
            handle.remove()
    rows = torch.arange(prompts, device=final.device)
    log_p = lm.head_logits(final[rows, encoded.last]).log_softmax(-1)
    wanted = torch.tensor([lm.token_ids(answer)[0] for answer in ANSWERS[:prompts]], device=final.device)
    pulls = torch.autograd.grad(log_p[rows, wanted].sum(), [kept[layer] for layer in layers])
    return {
        (layer, i): (kept[layer] * pull)[i, encoded.last[i]].detach().float()
        for layer, pull in zip(layers, pulls, strict=True)
        for i in range(prompts)
    }


def ranks(x: Tensor) -> Tensor:
    """Ranks from 0, those that are alike sharing their mean."""
    _, group, count = x.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count + 1) / 2)[group].double()


def spearman(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def timed(work: Callable[[], T], device: str) -> tuple[float, T]:
    """Seconds, and what `work` gives."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    began = perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return perf_counter() - began, result


def in_turn(
    works: Mapping[str, Callable[[], T]], repeats: int, device: str
) -> tuple[dict[str, list[float]], dict[str, T]]:
    """Seconds of each round, all works in every round, and what each gave last."""
    times: dict[str, list[float]] = {name: [] for name in works}
    results = {}
    if device.startswith("cuda"):  # the first call of each makes handles and picks kernels
        for work in works.values():
            work()
    for _ in range(repeats):
        for name, work in works.items():
            took, results[name] = timed(work, device)
            times[name].append(took)
    return times, results


@dataclass(frozen=True)
class Others:
    """The other ways on some layers and prompts: their scores and their seconds a layer and prompt."""

    textbook: dict[tuple[int, int], Tensor]
    approximate: dict[str, dict[tuple[int, int], Tensor]]
    seconds: dict[str, float]

    @classmethod
    def of(cls, lm: LanguageModel, picked: list[int], units: int, device: str) -> "Others":
        seconds, approximate = {}, {}
        for way in (gradient, linear):
            whole = list(range(lm.n_layers)) if way is gradient else picked
            took, found = timed(lambda way=way, whole=whole: way(lm, whole, units), device)
            seconds[way.__name__], approximate[way.__name__] = took / units / len(whole), found
        return cls(textbook(lm, trace(lm, PROMPTS), picked, units), approximate, seconds)

    def beside(self, lm: LanguageModel, found: list[tuple[Certified, ...]], k: int) -> dict[str, object]:
        """What they take and agree on with what was `found`."""
        order = sets = 0
        apart = 0.0
        overlap: dict[str, list[float]] = {name: [] for name in self.approximate}
        rank: dict[str, list[float]] = {name: [] for name in self.approximate}
        t = trace(lm, PROMPTS)
        for (layer, i), exact in self.textbook.items():
            part = found[i][layer]
            mine = [n.index for n in part.neurons]
            near = exact.topk(min(k + NEAR, len(exact))).indices
            scores = again(lm, t, layer, i, near)
            best = scores.topk(k)
            order += mine == near[best.indices].tolist()
            sets += set(mine) == set(near[best.indices].tolist())
            ours = torch.tensor([n.score for n in part.neurons], dtype=best.values.dtype)
            apart = max(apart, float((ours - best.values.cpu()).abs().max()))
            for name, others in self.approximate.items():
                other = others[layer, i]
                overlap[name].append(len(set(other.topk(k).indices.tolist()) & set(mine)) / k)
                rank[name].append(spearman(other, exact))
        row: dict[str, object] = {
            "same_set": sets,
            "same_order": order,
            "compared": len(self.textbook),
            "apart_nats": apart,
        }
        for name in self.approximate:
            row[f"{name}_s"] = self.seconds[name]
            row[f"{name}_overlap"] = sum(overlap[name]) / len(overlap[name])
            row[f"{name}_spearman"] = sum(rank[name]) / len(rank[name])
        return row


def peaks(ways: list[str], cache: str) -> dict[str, float]:
    """MiB that each way takes at its peak beyond the model, each in a process of its own."""
    found = {}
    for way in ways:
        command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", way, "--cache", cache]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found[f"peak_mib_{way}"] = float(done.stdout)
    return found


def device_peaks(
    ways: list[str], cache: str, lm: LanguageModel, args: argparse.Namespace, picked: list[int]
) -> dict[str, float]:
    """MiB of the GPU that each way takes at its peak beyond the model."""
    found = {}
    for way in ways:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        one_prompt(lm, argparse.Namespace(**{**vars(args), "peak_of": way, "cache": cache}), picked)
        found[f"peak_mib_{way}"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found | {"peak_mib_model": torch.cuda.memory_allocated() / 2**20}


def beyond(work: Callable[[], None]) -> float:
    """MiB that a process of nothing else comes to need for `work` (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return (status("VmHWM") - before) / 1024


def status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def one_prompt(lm: LanguageModel, args: argparse.Namespace, picked: list[int]) -> None:
    """The way whose peak is asked, once."""
    if args.peak_of == "certified":
        spread = measure_spread(lm, cache_dir=Path(args.cache))  # from disk
        certified_top(lm, PROMPTS[:1], ANSWERS[:1], k=max(args.k), spread=spread)
    elif args.peak_of == "textbook":
        textbook(lm, trace(lm, PROMPTS[:1]), picked[:1], 1)
    elif args.peak_of == "gradient":
        gradient(lm, list(range(lm.n_layers)), 1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50_000, help="2,000 at least")
    parser.add_argument("--neurons", type=int, default=3072)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--reference-layers", type=int, default=2, help="layers the textbook way is timed on")
    parser.add_argument("--reference-prompts", type=int, default=16, help="prompts it is timed on")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--prompts", type=int, default=16, help="asked together, at most 64")
    parser.add_argument("--sharp", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--atlas", action="store_true", help="time the atlas too")
    parser.add_argument("--out", help="append a JSON line here")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    args = parser.parse_args()
    lm = random_model(args)  # and its tokenizer, whatever is asked
    PROMPTS[:] = [f"{lead}{prompt}" for lead in LEADS for prompt in PROMPTS][: args.prompts]
    ANSWERS[:] = (ANSWERS * len(LEADS))[: args.prompts]
    units = len(PROMPTS)
    referred = min(args.reference_prompts, units)
    picked = [
        round(i * (args.layers - 1) / max(1, args.reference_layers - 1)) for i in range(args.reference_layers)
    ]
    if args.peak_of:
        print(beyond(lambda: one_prompt(lm, args, picked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        lm.fingerprint  # noqa: B018  its time is the model's, not the spread's
        spread_time, spread = timed(lambda: measure_spread(lm, cache_dir=Path(folder)), args.device)
        atlas = {}
        if args.atlas:
            atlas["atlas_s"] = timed(lambda: build_atlas(lm, cache_dir=Path(folder)), args.device)[0]
        works: dict[str, Callable[[], object]] = {
            str(k): lambda k=k: certified_top(lm, PROMPTS, ANSWERS, k=k, spread=spread) for k in args.k
        }
        if picked:
            # A trace serves all layers and prompts of the textbook way: it is not in its time.
            read = trace(lm, PROMPTS[:1])
            works["textbook"] = lambda: textbook(lm, read, picked[:1], 1)
        times, results = in_turn(works, args.repeats, args.device)
        rows = []
        for k in args.k:
            found = results[str(k)]
            fast = [took / args.layers / units for took in times[str(k)]]
            rows.append(
                {
                    "vocab": args.vocab, "neurons": args.neurons, "d_model": args.d_model,
                    "layers": args.layers, "prompts": units, "dtype": args.dtype, "device": args.device,
                    "sharp": args.sharp, "k": k,
                    "certified_s": median(fast),
                    "rescored": sum(p.rescored for parts in found for p in parts) / units / args.layers,
                    "spread_s": spread_time, **atlas,
                }
            )  # fmt: skip
        if picked:
            others = Others.of(lm, picked, referred, args.device)
            for row in rows:
                name = str(row["k"])
                ratios = [
                    slow * args.layers * units / fast
                    for slow, fast in zip(times["textbook"], times[name], strict=True)
                ]
                row |= {"textbook_s": median(times["textbook"]), "ratio": median(ratios)}
                row |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
                row |= others.beside(lm, results[name], row["k"])
                saved = (row["textbook_s"] - row["certified_s"]) * args.layers
                row["break_even_prompts"] = spread_time / max(1e-9, saved)
        ways = ["certified", *(["textbook", "gradient"] if picked else [])]
        if args.device.startswith("cuda"):
            used = device_peaks(ways, folder, lm, args, picked)
            rows = [row | {"card": torch.cuda.get_device_name()} for row in rows]
        else:
            del lm
            used = peaks(ways, folder)
        if picked:
            used["peak_ratio"] = used["peak_mib_textbook"] / max(1.0, used["peak_mib_certified"])
        rows = [row | used for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    print(lines, end="")
    if args.out:
        with Path(args.out).open("a") as f:
            f.write(lines)


if __name__ == "__main__":
    main()
