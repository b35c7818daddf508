"""Rows of other systems' schemas as items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opengrm.items import Item, item_from_json


def items_from_row(row: Mapping[str, Any]) -> list[Item]:
    """The items of a row."""
    return [item_from_json(row)]
