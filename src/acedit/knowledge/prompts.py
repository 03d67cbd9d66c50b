"""The prompts questions are asked with, and how an answer is read back.

    text = lm.generate([cot_prompt("Who is ...?")], max_new_tokens=160, stop=COT_STOP)[0]
    parse_cot_answer(text)                          # what stands on its "Answer:" line

`COT_PROMPT` and `SINGLE_HOP_PROMPT` are appendices G.1 and G.2 of the ACE paper, to the letter,
slips included ("continent if Asia"): published numbers were made with them.

Footgun: the appendix ends each list with a bare "Question:{...}" or "Q:{...}"; a question is put
there in the form of the shots before it, which is what the shots teach.
"""

import re
import unicodedata

COT_PROMPT = """\
Question: What is the capital of the country where Plainfield Town Hall is located?
Thoughts: Plainfield Town Hall is located in the country of the United States of America.
The capital of United States is Washington, D.C.
Answer: Washington, D.C.

Question: In which country is the company that created Nissan 200SX located?
Thoughts: Nissan 200SX was created by Nissan. Nissan is located in the country of Japan.
Answer: Japan

Question: Which continent is the country where the director of "My House Husband: Ikaw Na !" \
was educated located in?
Thoughts: The director of "My House Husband: Ikaw Na!" is Jose Javier Reyes. Jose Javier Reyes \
was educated at De La Salle University. De La Salle University is located in the country of \
Philippines. Philippines is located in the continent if Asia.
Answer: Asia

Question: Who is the spouse of the US president?
Thoughts: The US president is Joe Biden. The spouse of Joe Biden is Jill Biden
Answer: Jill Biden

Question: Who has ownership of the developer of the Chevrolet Corvette (C4)?
Thoughts: The developer of Chevrolet Corvette (C4) is Chevrolet. Chevrolet is owned by General \
Motors.
Answer: General Motors\
"""
"""G.1: five questions, each with its thoughts and answer."""

SINGLE_HOP_PROMPT = """\
Q: What is the country of citizenship of Fernando Santos? A: Portugal
Q: What is the name of the current head of state in Portugal? A: Marcelo Rebelo de Sousa
Q: Who was Aslan created by? A: C. S. Lewis
Q: Which city was C. S. Lewis born in? A: Belfast
Q: Which city was Hari Kunzru born in? A: London
Q: Which continent is London located in? A: Europe
Q: Who was Nick Bottom created by? A: William Shakespeare
Q: What kind of work does William Shakespeare do? A: playwright
Q: Who is the head coach of Iran national football team? A: Carlos Queiroz
Q: Which sport is Carlos Queiroz associated with? A: association football\
"""
"""G.2: ten single-hop questions with answers, a line each."""

COT_STOP = re.compile(r"\nQuestion:|^[ \t]*Answer:[^\n]*(\n)", re.MULTILINE)
"""Where a chain-of-thought answer ends: its own next question, or the line `parse_cot_answer` reads."""

_ANSWER_LINE = re.compile(r"^[ \t]*Answer:[ \t]*(.*)$", re.MULTILINE)


UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How Unicode names the letters of scripts without spaces between words."""

MARKS = ("?", "\uff1f", "\u061f")
"""What a question ends in: Latin, full-width and Arabic question marks."""


def cot_prompt(question: str) -> str:
    """`question` after the shots of G.1, up to "Thoughts:"."""
    return f"{COT_PROMPT}\n\nQuestion: {question}\nThoughts:"


def single_hop_prompt(question: str) -> str:
    """`question` after the shots of G.2, up to "A:"."""
    return f"{SINGLE_HOP_PROMPT}\nQ: {question} A:"


def direct_prompt(question: str) -> str:
    """A text that ends in a question mark as a question without shots; any other is a cloze and stays."""
    return f"Question: {question}\nAnswer:" if question.rstrip().endswith(MARKS) else question


def space_before(text: str) -> str:
    """What stands between a prompt and `text`: a space, but in scripts that put none between words."""
    first = unicodedata.name(text[:1], "") if text else ""
    return "" if first.startswith(UNSPACED) else " "


def parse_cot_answer(text: str) -> str:
    """What stands on the first "Answer:" line of a generated text, stripped; "" if there is none.

    An answer mentioned in the thoughts alone does not count (Scoring, settled).
    """
    found = _ANSWER_LINE.search(text)
    return found.group(1).strip() if found else ""
