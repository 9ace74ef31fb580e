"""Finished cells on disk: one file each, believed only if it is whole and of that cell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comparison.cells import Cell, Result, canonical, sha256
from utils import HarnessError, write_json_atomically


class CellStore:
    """Folder with one file for each finished cell.

    Args:
        folder: made when the first cell is written.
        say: told in one line of a file that cannot be used.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say

    def read(self, cell: Cell) -> Result | None:
        """The result of a finished cell; None when it is to be run, also because its file is damaged or not its own."""
        path = self._path(cell)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            result: Result = content["result"]
            whole = content == self._content(cell, result)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            return result
        self._say(f"{path} is damaged or of another cell: {cell.name} is computed again")
        return None

    def write(self, cell: Cell, result: Result) -> None:
        """Keep the result of a finished cell.

        Raises:
            HarnessError: the disk is full, or the folder cannot be written any more.
        """
        try:
            self._folder.mkdir(exist_ok=True)
            write_json_atomically(self._path(cell), self._content(cell, result))
        except OSError as error:
            raise HarnessError(f"{self._folder} cannot be written any more: {error.strerror}") from None

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.key}.json"

    @staticmethod
    def _content(cell: Cell, result: Result) -> dict[str, Any]:
        return {
            "key": cell.key,
            "identity": cell.identity,
            "settings_sha256": cell.settings_sha256,
            "result": result,
            "result_sha256": sha256(canonical(result)),
        }
