"""Reading what a run or a comparison left in its folder, old or damaged as it may be."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from utils import UsageError, open_to_read

TEXT_COLUMNS = (
    "scheduler",
    "queue_discipline",
    "metric",
    "without",
    "text",
    "scenario_sha256",
    "performance_profile_sha256",
    "device_type",
    "model_name",
    "slo_class",
    "assigned_node",
    "outcome",
    "error",
)
FLAG_COLUMNS = ("met_fixed_deadline", "met_base_deadline", "delivered", "on_front")
_MOST_JSON_BYTES = 2**28
GREATEST = 1e15
"""A number that is as far from 0 as this is damaged: nothing that a run or a comparison measures comes near it."""
_FLAGS = {"true": 1.0, "false": 0.0, True: 1.0, False: 0.0}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    try:
        with open_to_read(path, _MOST_JSON_BYTES) as file:
            content = json.loads(file.read())
        content = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))  # no half of a character
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a CSV file, empty where the file or the column is missing: numbers as floats, true and false as 1 and 0."""
    table = _rows_of(path, columns).reindex(columns=list(columns))
    for name in columns:
        if name in TEXT_COLUMNS:
            table[name] = table[name].astype(object).fillna("").astype(str)
            continue
        if name in FLAG_COLUMNS and table[name].dtype == object:
            table[name] = table[name].map(lambda flag: _FLAGS.get(flag.lower() if isinstance(flag, str) else flag))
        numbers = pd.to_numeric(table[name], errors="coerce").astype(float)
        table[name] = numbers.where(numbers.abs() < GREATEST)
    return table


def _rows_of(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    separator = _separator_of(path)
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):  # a row that was cut short may have left a quotation mark open
        try:
            return pd.read_csv(
                path,
                usecols=lambda name: name in columns,
                dtype={name: str for name in TEXT_COLUMNS},
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
                on_bad_lines="skip",
                quoting=quoting,
                sep=separator,
                decimal="," if separator == ";" else ".",
                encoding="utf-8-sig",
            )
        except pd.errors.ParserError:
            continue
        except (OSError, ValueError):  # missing, empty, or not UTF-8
            break
    return pd.DataFrame()


def _separator_of(path: Path) -> str:
    """The comma, or the semicolon or tab that a spreadsheet wrote in its place."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
    except (OSError, UnicodeDecodeError):
        header = ""
    return max(",;\t", key=header.count)


def header_of(path: Path) -> list[str]:
    """Names of the columns of a CSV file; none where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return [name.strip('"') for name in file.readline().strip().split(_separator_of(path))]
    except (OSError, UnicodeDecodeError):
        return []


def mapping_at(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at a key, empty where there is none."""
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}


def list_at(content: Mapping[str, Any], key: str) -> list[Any]:
    """The list at a key, empty where there is none."""
    found = content.get(key)
    return found if isinstance(found, list) else []


def rows_at(content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The mappings in the list at a key."""
    return [row for row in list_at(content, key) if isinstance(row, Mapping)]


def number_of(value: Any) -> float:
    """A number as a float, NaN where it is none or not finite."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < GREATEST
    return float(value) if known else math.nan
