"""Certified top value neurons against scoring every neuron, and against a gradient approximation.

    python benchmarks/attribution.py --vocab 50000 --neurons 3072 --d-model 1024 --layers 12

    python benchmarks/attribution.py --vocab 151936 --neurons 12288 --d-model 4096 --layers 36 --heads 32 \
        --dtype bfloat16 --prompts 1 --k 10 --reference-layers 0     # the shape of Qwen3-8B, in 24 GiB

A random Qwen3 of the given shape. Three ways to the k best neurons of every layer, for the same prompts, on
the same machine, in turn:
  textbook   every neuron's distribution, the N × V product a layer (`value.log_increase`), on some layers
  certified  `certified.certified_top`, spread measured before (its time is printed), all layers
  gradient   activation × gradient of log p(w) at the final residual (EAP-like): fast, not Eq. 9
Printed: time a layer and prompt and its ratio, prompts at which the spread is paid for, peak memory, neurons
scored exactly, whether set and order are the same (apart: by how much the textbook's float32 scores differ,
rank for rank, at most), and how the gradient's ranking compares. `--sharp` scales the head, so that p is
peaked. The prompts are the bundled tokenizer's, so the vocabulary has at least its 4,096 tokens.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

import acedit
from acedit.attribution.certified import Certified, certified_top
from acedit.attribution.spread import measure_spread
from acedit.attribution.value import ffn_vectors, log_increase
from acedit.lm.model import LanguageModel
from acedit.lm.trace import trace

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
    return LanguageModel(model, acedit.load("bundled").tokenizer)


def textbook(lm: LanguageModel, layers: list[int], prompts: int) -> dict[tuple[int, int], Tensor]:
    t = trace(lm, PROMPTS[:prompts])
    scores = {}
    for i, answer in enumerate(ANSWERS[:prompts]):
        at = int(t.encoded.last[i])
        for layer in layers:
            base = t.residual[layer, i, at] + t.attention[layer, i, at]
            vectors = ffn_vectors(lm, t, layer, i, at)
            token = lm.token_ids(answer)[0]
            scores[layer, i] = log_increase(lm, base, vectors, t.residual[-1, i, at], token)
    return scores  # its time holds one trace of all layers, under 1% of it


def gradient(lm: LanguageModel, layers: list[int], prompts: int) -> dict[tuple[int, int], Tensor]:
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


def ranks(x: Tensor) -> Tensor:
    """Ranks from 0, those that are alike sharing their mean."""
    _, group, count = x.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count + 1) / 2)[group].double()


def spearman(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def reset_peak() -> int:
    """Forget the high-water mark of this process; its resident memory now, KiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def clock(work: object, repeats: int, device: str) -> tuple[float, object]:
    times, result = [], None
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        began = perf_counter()
        result = work()  # type: ignore[operator]
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - began)
    return median(times), result


@dataclass(frozen=True)
class Others:
    """Both other ways on some layers and prompts: their scores and their seconds a layer and prompt."""

    textbook: dict[tuple[int, int], Tensor]
    textbook_s: float
    textbook_peak: int  # KiB
    gradient: dict[tuple[int, int], Tensor]
    gradient_s: float

    @classmethod
    def of(cls, lm: LanguageModel, picked: list[int], units: int, device: str) -> "Others":
        before = reset_peak()
        slow, scores = clock(lambda: textbook(lm, picked, units), 1, device)
        peak = status("VmHWM") - before
        quick, approximate = clock(lambda: gradient(lm, picked, units), 1, device)
        each = len(picked) * units
        return cls(scores, slow / each, peak, approximate, quick / each)  # type: ignore[arg-type]

    def beside(self, found: list[tuple[Certified, ...]], k: int, certified_s: float) -> dict[str, float]:
        """What they take and agree on, against what was `found` in `certified_s`."""
        same = overlap = 0
        apart = 0.0
        rank = []
        for (layer, i), exact in self.textbook.items():
            mine = [n.index for n in found[i][layer].neurons]
            best = exact.topk(k)
            same += mine == best.indices.tolist()
            apart = max(apart, float((exact[mine] - best.values).abs().max()))
            other = self.gradient[layer, i]
            overlap += len(set(other.topk(k).indices.tolist()) & set(mine))
            rank.append(spearman(other, exact))
        return {
            "textbook_s": self.textbook_s,
            "ratio": self.textbook_s / certified_s,
            "same_order": same,
            "compared": len(rank),
            "apart_nats": apart,
            "gradient_s": self.gradient_s,
            "gradient_overlap": overlap / k / len(rank),
            "gradient_spearman": sum(rank) / len(rank),
            "peak_mib_textbook": self.textbook_peak / 1024,
        }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50_000)
    parser.add_argument("--neurons", type=int, default=3072)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--reference-layers", type=int, default=2, help="layers the textbook way is timed on")
    parser.add_argument("--reference-prompts", type=int, default=16, help="prompts it is timed on")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--prompts", type=int, default=4, help="asked together, at most 16")
    parser.add_argument("--sharp", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", help="append a JSON line here")
    args = parser.parse_args()
    lm = random_model(args)
    del PROMPTS[args.prompts :], ANSWERS[args.prompts :]
    with tempfile.TemporaryDirectory() as folder:
        lm.fingerprint  # noqa: B018  its time is the model's, not the spread's
        spread_time, spread = clock(lambda: measure_spread(lm, cache_dir=Path(folder)), 1, args.device)
    picked = [
        round(i * (args.layers - 1) / max(1, args.reference_layers - 1)) for i in range(args.reference_layers)
    ]
    units = len(PROMPTS)
    rows, results = [], []
    for k in args.k:
        before = reset_peak()
        fast, found = clock(
            lambda k=k: certified_top(lm, PROMPTS, ANSWERS, k=k, spread=spread), args.repeats, args.device
        )
        results.append(found)
        rows.append(
            {
                "vocab": args.vocab, "neurons": args.neurons, "d_model": args.d_model, "layers": args.layers,
                "prompts": units, "dtype": args.dtype, "device": args.device, "sharp": args.sharp, "k": k,
                "certified_s": fast / args.layers / units,
                "rescored": sum(p.rescored for parts in found for p in parts) / units / args.layers,  # type: ignore[attr-defined]
                "spread_s": spread_time,
                "peak_mib_certified": (status("VmHWM") - before) / 1024,
                "peak_mib_process": status("VmHWM") / 1024,
            }
        )  # fmt: skip
    if picked:
        others = Others.of(lm, picked, min(args.reference_prompts, units), args.device)
        for row, found in zip(rows, results, strict=True):
            row |= others.beside(found, row["k"], row["certified_s"])  # type: ignore[arg-type]
            saved = (row["textbook_s"] - row["certified_s"]) * args.layers
            row["break_even_prompts"] = spread_time / max(1e-9, saved)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    print(lines, end="")
    if args.out:
        with Path(args.out).open("a") as f:
            f.write(lines)


if __name__ == "__main__":
    main()
