"""The model card: every row is there with its n, and is read back from the folder."""

from pathlib import Path

from acedit.lm.model import LanguageModel
from acedit.world.card import CardRow, measure, read_table, write_card
from acedit.world.graph import build_world
from tests.tiny import byte_tokenizer, tiny_model


def test_asks_every_sort() -> None:
    lm = LanguageModel(tiny_model("qwen3", max_position_embeddings=2048), byte_tokenizer())
    rows = measure(lm, build_world(), n=3)
    assert [row.n for row in rows] == [3, 3, 3, 3, 3, 1, 1, 1]
    assert all(0 <= row.value <= 1 for row in rows)


def test_written_and_read_back(tmp_path: Path) -> None:
    write_card(tmp_path, [CardRow("one hop", 0.995, 300, 0.99)], {"seed": 0})
    assert "| one hop | 0.995 | 300 | 0.99 |" in read_table(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    assert read_table(tmp_path / "none") == ""
