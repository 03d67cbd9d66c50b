"""Values as JSON has them: what every room that writes JSON calls first.

    json.dumps(plain(scores))

NaN and infinities become null: JSON has no word for them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """`value` as JSON types; numbers that are not finite as None. Raises TypeError for other types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # numpy and torch scalars
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} has no JSON form")
