"""Files are whole or not there, and JSON has no NaN."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acedit.errors import UserError
from acedit.files import check_writable, record, write_json, write_text
from acedit.plain import plain


def test_json_has_no_nan(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": [np.float64(0.5), torch.tensor(2)], 3: (True, None, "é")}
    path = write_json(tmp_path / "deep" / "x.json", record("locate", value=value))
    assert json.loads(path.read_text("utf-8")) == {
        "schema": 1,
        "command": "locate",
        "value": {"a": None, "b": [0.5, 2], "3": [True, None, "é"]},
    }


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        plain(object())


@pytest.mark.parametrize("call", ["write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old", "utf-8")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, call, full)
    with pytest.raises(UserError, match="No space left"):
        write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text("utf-8") == "old"


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old", "utf-8")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text("utf-8") == "old"


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "deep" / "x.json")
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(UserError, match="not a folder"):
        check_writable(tmp_path / "file" / "x.json")
    with pytest.raises(UserError, match="this is a file; name a folder"):
        check_writable(tmp_path / "file", folder=True)
    with pytest.raises(UserError, match="this is a folder; name a file"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="empty name"):
        check_writable("")
    monkeypatch.setattr("acedit.files.os.access", lambda *_: False)
    with pytest.raises(UserError, match="no permission"):
        check_writable(tmp_path / "x.json")


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old", "utf-8")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there")
    write_text(link, "new")
    assert link.is_symlink() and (tmp_path / "there").read_text("utf-8") == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
