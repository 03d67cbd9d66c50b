"""The package as users get it: built, installed apart from the checkout, and run there."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(CHECKOUT)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_it_brings_the_model_and_the_world_and_stays_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    for name in ("bundled/model.safetensors", "bundled/tokenizer.json", "data/mquake_2hop.json"):
        assert f"acedit/world/{name}" in sizes
    assert "acedit/knowledge/relations.json" in sizes
    assert sizes["acedit/world/bundled/model.safetensors"] < 20e6
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".pickle")) for name in sizes)


def test_the_demo_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment that sees this one's packages, but not the checkout."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "venv" / "lib" / version / "site-packages"
    # A path line brings the packages that lie there, and leaves editable installs out.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    away = tmp_path / "away"
    away.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    # Threads that wait for each other while other tests hold the cores take minutes for seconds of work.
    env["OMP_NUM_THREADS"] = "1"
    where = subprocess.run(
        [python, "-c", "import acedit; print(acedit.__file__)"],
        cwd=away,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(site) in where.stdout
    command = [tmp_path / "venv" / "bin" / "acedit", "demo", "--out", "demo", "--json", "demo.json"]
    done = subprocess.run(command, cwd=away, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((away / "demo.json").read_text())
    scores = found["scores"]
    # What the README promises of the two methods, with room for another machine's rounding.
    assert scores["before"]["efficacy"]["value"] < 0.1
    assert scores["ace"]["efficacy"]["value"] >= 0.9
    assert scores["ace"]["direct"]["unfiltered"] > scores["pmet"]["direct"]["unfiltered"]
    assert (away / "demo" / "report.html").stat().st_size > 1000
    assert (away / "demo" / "ace" / "patch.json").is_file() or list((away / "demo" / "ace").iterdir())
