"""Benchmark questions under G.1: all at once with the shots run once, against one question at a time.

    python benchmarks/evaluation.py --cases 40 --rounds 3

Every round asks the same questions both ways, interleaved, and checks that the answers are the same.
The reference generates for one question at a time and runs the whole prompt for each; `batched` is in
between: all questions at once, every prompt run whole. Prints the ratio of each round and their spread.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

import acedit
from acedit.knowledge.facts import cases_from
from acedit.knowledge.prompts import COT_STOP, cot_prompt, parse_cot_answer
from acedit.lm.model import LanguageModel
from acedit.world.cases import make_cases
from acedit.world.graph import build_world


def at_once(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    return lm.generate(prompts, max_new_tokens=160, stop=COT_STOP)


def unshared(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    return lm.generate(prompts, max_new_tokens=160, stop=COT_STOP, share=False)


def one_by_one(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    return [lm.generate([p], max_new_tokens=160, stop=COT_STOP)[0] for p in prompts]


Way = Callable[[LanguageModel, Sequence[str]], list[str]]


def timed(way: Way, lm: LanguageModel, prompts: Sequence[str]) -> tuple[float, list[str]]:
    began = perf_counter()
    texts = way(lm, prompts)
    return perf_counter() - began, [parse_cot_answer(text) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = acedit.load(args.model, dtype=torch.float32)
    cases = cases_from(make_cases(build_world(), seed=0, n=args.cases))
    prompts = [cot_prompt(question) for case in cases for question in case.questions]
    at_once(lm, prompts[:4])
    rows = []
    for _ in range(args.rounds):
        alone, wanted = timed(one_by_one, lm, prompts)
        batched, plain = timed(unshared, lm, prompts)
        together, said = timed(at_once, lm, prompts)
        rows.append(
            {
                "questions": len(prompts),
                "threads": args.threads,
                "one_by_one_s": round(alone, 2),
                "batched_s": round(batched, 2),
                "at_once_s": round(together, 2),
                "batched_ratio": round(alone / batched, 2),
                "ratio": round(alone / together, 2),
                "same_answers": said == wanted == plain,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    ratios = sorted(row["ratio"] for row in rows)
    print(f"ratio {ratios[len(ratios) // 2]} (from {ratios[0]} to {ratios[-1]}), asked: 10")


if __name__ == "__main__":
    main()
