"""The README and docs/results.md say what results/ hold."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_main_table_is_the_one_that_was_measured() -> None:
    script = ROOT / "benchmarks" / "readme_table.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
