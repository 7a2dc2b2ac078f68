"""Where results go that must not replace others: other rules, limits or data have places of their own."""

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

from stage1.files import safe_name


def own_place(folder: Path, name: str, same: Callable[[Path], bool], ending: str = "") -> Path:
    """The first of `name`, `name-2`, `name-3`, … in `folder` that is free or holds the `same`."""
    for number in count(1):
        place = folder / f"{safe_name(name if number == 1 else f'{name}-{number}')}{ending}"
        if not os.path.lexists(place) or same(place):
            break
    return place
