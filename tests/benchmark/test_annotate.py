"""Annotators against a local server that is busy, wrong, and right; strict reading; going on."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from acedit.benchmark.annotate import ANNOTATION_PROMPT, Annotator, Label, annotate, hf, openai, parse
from acedit.cli import main
from acedit.errors import UserError
from tests.tiny import tiny_lm


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Sports|Team", Label("Sports", "Team")),
        (" [Geographic location] | [Capital]\n", Label("Geographic location", "Capital")),
        ("Sports", None),
        ("Sports|Team|Football", None),
        ("|Team", None),
        ("Sure!\nSports|Team", None),
        ("", None),
        ("Category: Sports|Team", None),
        ("Sure, here it is: Sports|Team", None),
        ("**Sports**|Team", None),
        ("The main category of that is Sports | the sub is Team.", None),
        ("[Main category]|[Subcategory]", None),
        ("[Sports]|[Team of athletes]", Label("Sports", "Team of athletes")),
    ],
)
def test_only_the_asked_form_is_read(text: str, label: Label | None) -> None:
    assert parse(text) == label


CUT = "cut short"


class Stub(BaseHTTPRequestHandler):
    """Answers from the server's script: a status, or a text in OpenAI's form; `CUT` with half missing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body))  # type: ignore[attr-defined]
        script: list[int | str] = self.server.script  # type: ignore[attr-defined]
        step = script.pop(0) if len(script) > 1 else script[0]
        self.send_response(step if isinstance(step, int) else 200)
        if step == CUT:
            self.send_header("Content-Length", "1000")
        self.end_headers()
        if isinstance(step, str):
            self.wfile.write(json.dumps({"choices": [{"message": {"content": step}}]}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Stub)
    server.seen, server.script = [], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def against(server: HTTPServer, *script: int | str) -> Annotator:
    server.script[:] = script  # type: ignore[attr-defined]
    return openai("m", base=f"http://127.0.0.1:{server.server_port}/v1", key="k")


def test_a_busy_server_and_a_careless_answer_are_asked_again(server: HTTPServer, tmp_path: Path) -> None:
    waits: list[float] = []
    ask = against(server, 429, 503, "Well, it is about sport.", "Sports|Team")
    labels = annotate(["Which {team}?"], ask, keep=tmp_path / "l.jsonl", pause=waits.append)
    assert labels == {"Which {team}?": Label("Sports", "Team")}
    assert waits == [2.0, 4.0], "a careless answer needs no pause"
    path, key, body = server.seen[0]  # type: ignore[attr-defined]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer k", "m", 0)
    assert body["messages"][0]["content"] == ANNOTATION_PROMPT.replace("{question}", "Which {team}?")


def test_what_is_labelled_is_kept_and_not_asked_again(server: HTTPServer, tmp_path: Path) -> None:
    keep = tmp_path / "deep" / "l.jsonl"
    ask = against(server, "A|1", 400)
    with pytest.raises(UserError, match="400"):
        annotate(["one", "two"], ask, keep=keep)
    with keep.open("a") as file:
        file.write('{"annotator": "openai:m", "question": "tw')  # cut short
    ask = against(server, "B|2")
    assert annotate(["one", "two"], ask, keep=keep) == {"one": Label("A", "1"), "two": Label("B", "2")}
    assert annotate(["two"], against(server, 500), keep=keep) == {"two": Label("B", "2")}
    other = Annotator("other", lambda _: "C|3")
    assert annotate(["one"], other, keep=keep) == {"one": Label("C", "3")}


def test_a_server_that_stays_busy_or_is_not_there_is_one_line(server: HTTPServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 tries were made"):
        annotate(["one"], against(server, 503), keep=tmp_path / "l", pause=lambda _: None)
    nowhere = openai("m", base="http://127.0.0.1:9/v1", key="k")
    with pytest.raises(UserError, match="cannot be reached"):
        annotate(["one"], nowhere, keep=tmp_path / "l", pause=lambda _: None)
    assert annotate(["one"], against(server, "nonsense"), keep=tmp_path / "l", pause=lambda _: None) == {}


def test_an_address_that_is_none_and_an_answer_cut_short_are_one_line(
    server: HTTPServer, tmp_path: Path
) -> None:
    wrong = openai("m", base="http://localhost:port/v1", key="k")
    with pytest.raises(UserError, match="is no address"):
        annotate(["Who?"], wrong, keep=tmp_path / "a", pause=lambda _: None)
    short = against(server, *[CUT] * 5)
    with pytest.raises(UserError, match="cannot be reached"):
        annotate(["Who?"], short, keep=tmp_path / "b", pause=lambda _: None)


def test_a_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        openai("m")


def test_a_local_model_can_annotate(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3", max_position_embeddings=512)
    assert annotate(["one"], hf(lm), keep=tmp_path / "l", pause=lambda _: None) in ({},)


def test_labels_cut_in_a_letter_or_of_another_form_are_asked_again(tmp_path: Path) -> None:
    keep = tmp_path / "labels.jsonl"
    who = Annotator("me", lambda _: "Löfven|Name")
    annotate(["Who?"], who, keep=keep)
    whole = keep.read_bytes()
    keep.write_bytes(b'{"annotator": "me"}\n[1]\n' + whole[: whole.index("ö".encode()) + 1])
    assert annotate(["Who?"], who, keep=keep) == {"Who?": Label("Löfven", "Name")}
    assert annotate(["Who?"], Annotator("me", lambda _: ""), keep=keep) == {"Who?": Label("Löfven", "Name")}


def test_a_key_that_no_header_can_hold_is_told() -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY holds a line break"):
        openai("m", key="abc\n")


def test_a_study_goes_by_the_annotator_s_categories(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Facts of a file of cases, their questions labelled once: a second run asks nothing."""
    cases = tmp_path / "cases.json"
    assert main(["world", "cases", "--n", "3", "--out", str(cases)]) == 0
    base = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", base)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    server.script[:] = ["Odd|One", "Even|Two"] * 50  # type: ignore[attr-defined]
    out, found = tmp_path / "out", tmp_path / "found.json"
    call = ["study", "tokens", "--cases", str(cases), "--annotator", "openai:m", "--out", str(out), "--quiet"]
    assert main([*call, "--json", str(found)]) == 0
    labels = [json.loads(line) for line in (out / "labels.jsonl").read_text("utf-8").splitlines()]
    asked = [body["messages"][0]["content"] for _, _, body in server.seen]  # type: ignore[attr-defined]
    assert len(asked) == len(labels) > 3
    assert all(label["question"] in prompt for label, prompt in zip(labels, asked, strict=True))
    assert {label["annotator"] for label in labels} == {f"openai:m at {base}"}
    told = json.loads(found.read_text("utf-8"))
    assert told["fingerprint"]
    assert told["studies"]["tokens"]["seconds"] > 0
    subjects = {
        fact[0] for case in json.loads(cases.read_text("utf-8")) for fact in case["orig"]["triples_labeled"]
    }
    rows = told["studies"]["tokens"]["data"]["rows"]
    assert all(any(subject in row["prompt"] for subject in subjects) for row in rows)
    assert main(call) == 0
    assert len(server.seen) == len(asked)  # type: ignore[attr-defined]


def test_another_server_s_labels_are_not_taken_over(server: HTTPServer, tmp_path: Path) -> None:
    keep = tmp_path / "labels.jsonl"
    assert annotate(["Q?"], against(server, "A|B"), keep=keep) == {"Q?": Label("A", "B")}
    other = openai("m", base=f"http://localhost:{server.server_port}/v1", key="k")
    server.script[:] = ["C|D"]  # type: ignore[attr-defined]
    assert annotate(["Q?"], other, keep=keep) == {"Q?": Label("C", "D")}
