"""The bundled model and the world it was taught.

bundled_path()          # the checkpoint's folder, for transformers or acedit.load("bundled")
"""

from pathlib import Path

from acedit.errors import UserError


def bundled_path() -> Path:
    """Folder of the bundled checkpoint. Raises UserError where the package came without it."""
    path = Path(__file__).parent / "bundled"
    if not (path / "model.safetensors").is_file():
        raise UserError(
            f"the bundled model is missing from {path}; make it with "
            "'acedit world train --out DIR' and pass DIR as the model"
        )
    return path
