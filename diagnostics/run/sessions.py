"""What a run that was continued was recorded with before."""

import json
from collections.abc import Mapping
from typing import Any

SETTINGS = ("optimizer", "hyperparameters", "config")


def settings_before(before: dict[str, Any], meta: Mapping[str, Any], last_step: int) -> list[dict[str, Any]]:
    """The settings of the sessions before one that begins with `meta` after `last_step`; those of the last one only
    where they are others."""
    if not before:
        return []
    last = {name: before[name] for name in SETTINGS}
    now = json.loads(json.dumps({name: meta.get(name, last[name]) for name in SETTINGS}, default=str))
    return before["earlier"] + ([{**last, "last_step": last_step}] if last != now else [])
