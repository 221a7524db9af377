"""The console of `hf-reward`. rich is imported here, so that commands import it only when they print."""

import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_REDIRECTED = 200
"""Columns of redirected output, where no terminal limits them."""


class FoldingConsole(Console):
    """A console whose tables fold long names instead of cutting them with an ellipsis."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, after setting the overflow of each table's columns.

        Args:
            *objects: Texts and renderables.
            **options: Those of rich.
        """
        for each in objects:
            for column in each.columns if isinstance(each, Table) else ():
                column.overflow = "fold"
        super().print(*objects, **options)


def make_console() -> Console:
    """Return a console for standard output with the width of the terminal, of `COLUMNS` or of redirected output."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit():
        # In a terminal without capabilities (`TERM=dumb`), rich ignores COLUMNS, and a width without a height.
        return FoldingConsole(width=int(columns), height=25)
    return FoldingConsole(width=None if sys.stdout.isatty() else _REDIRECTED)
