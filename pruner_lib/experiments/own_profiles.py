"""Profiles of your own: a YAML file, named by `$PRUNER_LIB_PROFILES`, that changes profiles or adds some.

    paper:                        # the built-in profile, but for what stands here
      short_recovery: {epochs: 1}
    mine:                         # a new one, results in results/mine/
      like: quick
      model: /models/my-llama

What each name means: `profiles.Profile`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "PRUNER_LIB_PROFILES"
Values = Mapping[str, Any]


def with_own(known: Mapping[str, Values]) -> dict[str, Values]:
    """Add the user's profiles to the built-in ones, and the user's changes.

    Raises:  ValueError: the file is not there or not of that form, or `like` names no built-in profile.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        return dict(known)
    found = dict(known)
    for name, values in _read(Path(place).expanduser()).items():
        base = values.get("like", name)
        if "like" in values and base not in known:
            raise ValueError(
                f"{VARIABLE}: profile {name!r} is like {base!r}, but there are {', '.join(sorted(known))}"
            )
        changes = {key: value for key, value in values.items() if key != "like"}
        found[name] = _merged(known.get(base, {}), changes)
    return found


def _merged(values: Values, changes: Values) -> dict[str, Any]:
    """Change values, and within a part (as `evaluation`) only what is named."""
    both = dict(values)
    for name, value in changes.items():
        part = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = both[name] | value if part else value
    return both


def _read(path: Path) -> Mapping[str, Values]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{VARIABLE} is {str(path)!r}, which can't be read: {error}") from error
    if not isinstance(found, Mapping) or not all(isinstance(values, Mapping) for values in found.values()):
        raise ValueError(f"{VARIABLE}: {path} must hold names of profiles, each with its settings")
    for name in found:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{VARIABLE}: {name!r} is no name of a profile; use letters, digits and _")
    return found
