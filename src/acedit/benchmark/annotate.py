"""Semantic categories of questions, asked of a language model under appendix G.3.

    ask = openai("gpt-4o")                     # or hf(load("..."))
    labels = annotate(["Who leads Peru?"], ask, keep=Path("out/labels.jsonl"))
    labels["Who leads Peru?"]                  # Label(main='Personal attributes', sub='Leadership')

Any server that speaks OpenAI's chat completions will do: $OPENAI_BASE_URL (OpenAI's own if not set) and
$OPENAI_API_KEY. Answers are read strictly, "Main|Sub" on one line and nothing else; what cannot be read is
asked again, as are busy servers. Each label is kept at once, so that an interrupted run goes on.

Footgun: a model's labels are its own. The paper's eight categories by relation id need no annotator
(`report.study.base.CATEGORIES`).
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from acedit.errors import UserError
from acedit.lm.model import LanguageModel

ANNOTATION_PROMPT = """\
Please analyze the type of the following question and return two categories strictly in the following \
format, separated by '|':

[Main category]|[Subcategory]

Question: {question}

Category:"""
"""G.3, to the letter."""

TEMPLATE = ("Main category", "Subcategory")
NO_NAME = ":;.!?*_`#[]<>|\n"
LONGEST = 5  # words of a category
TRIES = 5
BUSY = (408, 409, 429, 500, 502, 503, 504)
TIMEOUT = 60.0  # seconds a request


@dataclass(frozen=True)
class Label:
    """A question's main category and subcategory."""

    main: str
    sub: str


@dataclass(frozen=True)
class Annotator:
    """A name that labels are kept under, and a function from a prompt to a text.

    The function raises `Busy` where asking again may help, and UserError where it will not. tries: how often
    a prompt is asked; once where the same prompt gets the same answer.
    """

    name: str
    ask: Callable[[str], str]
    tries: int = TRIES


class Busy(RuntimeError):
    """The server is busy, or was cut off: ask again."""


def parse(text: str) -> Label | None:
    """The label of a text that is "Main|Sub", brackets allowed, and nothing else; None for any other."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if len(lines) != 1 or lines[0].count("|") != 1:
        return None
    main, sub = (_category(part.strip()) for part in lines[0].split("|"))
    return Label(main, sub) if main and sub and (main, sub) != TEMPLATE else None


def _category(text: str) -> str:
    """A category's name, brackets around it off; "" for what is none: a sentence, a list, markup."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    return "" if set(text) & set(NO_NAME) or len(text.split()) > LONGEST else text


def openai(model: str, *, base: str | None = None, key: str | None = None) -> Annotator:
    """A model behind OpenAI's chat completions, at temperature 0. Raises UserError without a key."""
    base = (base or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").rstrip("/")
    key = key or os.environ.get("OPENAI_API_KEY")
    if not base.startswith(("http://", "https://")):
        raise UserError(f"OPENAI_BASE_URL {base!r} is no address; start it with http:// or https://")
    if key and not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY holds a line break or a sign that no header can; set it anew")
    if not key:
        raise UserError("the annotator needs a key: set OPENAI_API_KEY (any text for a server without keys)")

    def ask(prompt: str) -> str:
        body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        request = urllib.request.Request(
            f"{base}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                said = json.load(answer)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in BUSY:
                raise Busy(f"{base} answers {error.code}") from None
            raise UserError(
                f"{base}: {error.code} {error.reason}; check the model's name and the key"
            ) from None
        except http.client.InvalidURL as error:
            raise UserError(f"OPENAI_BASE_URL {base!r} is no address: {error}") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise Busy(f"{base} cannot be reached: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError):
            raise Busy(f"{base} answers in another form than chat completions") from None
        return str(said)

    return Annotator(f"openai:{model} at {base}", ask)


def hf(lm: LanguageModel) -> Annotator:
    """A loaded model, greedy, its first line."""
    return Annotator(
        f"hf:{lm.fingerprint}",
        lambda prompt: lm.generate([prompt], max_new_tokens=24, stop=("\n",))[0],
        tries=1,
    )


def annotate(
    questions: Sequence[str],
    annotator: Annotator,
    *,
    keep: Path,
    pause: Callable[[float], None] = time.sleep,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Label]:
    """Each question's label; those in `keep` (JSON lines, by this annotator) are not asked again.

    A question whose answer cannot be read after `TRIES` tries has no label. Raises UserError where the
    server stays busy, or refuses.
    """
    found = _kept(keep, annotator.name)
    wanted = list(dict.fromkeys(questions))
    for done, question in enumerate(wanted):
        progress(done, len(wanted))
        if question in found:
            continue
        label = _asked(annotator, ANNOTATION_PROMPT.replace("{question}", question), pause)
        if label is not None:
            found[question] = label
            _append(keep, {"annotator": annotator.name, "question": question, **vars(label)})
    progress(len(wanted), len(wanted))
    return {question: found[question] for question in wanted if question in found}


def _asked(annotator: Annotator, prompt: str, pause: Callable[[float], None]) -> Label | None:
    busy: Busy | None = None
    for attempt in range(annotator.tries):
        if busy is not None:
            pause(min(30.0, 2.0**attempt))
        try:
            label = parse(annotator.ask(prompt))
        except Busy as error:
            busy = error
            continue
        busy = None
        if label is not None:
            return label
    if busy is not None:
        raise UserError(f"{busy}; {TRIES} tries were made: run it again later, what is labelled is kept")
    return None


def _kept(path: Path, name: str) -> dict[str, Label]:
    if not path.exists():
        return {}
    found = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; choose another --out") from None
    for line in lines:
        try:
            row = json.loads(line)
            if row["annotator"] == name:
                found[str(row["question"])] = Label(str(row["main"]), str(row["sub"]))
        except (ValueError, KeyError, TypeError):
            continue  # cut short by an interruption, or not a row of ours
    return found


def _append(path: Path, row: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            whole = file.read() in (b"", b"\n")
            file.write((("" if whole else "\n") + json.dumps(row, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another --out") from None
