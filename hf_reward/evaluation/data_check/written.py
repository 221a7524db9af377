"""A report -> its files."""

import json
import os
from pathlib import Path

from hf_reward.evaluation.data_check.page import render_page
from hf_reward.evaluation.data_check.report import DataReport

JSON_NAME, PAGE_NAME = "data_report.json", "data_report.html"


def write_report(report: DataReport, folder: str | Path) -> list[Path]:
    """Write `data_report.json` and `data_report.html` into a folder; earlier reports there are replaced.

    Args:
        report: What was found.
        folder: Made if it is not there.

    Returns:
        The files.

    Raises:
        OSError: If the folder cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        JSON_NAME: json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        PAGE_NAME: render_page(report),
    }
    for name, text in texts.items():
        aside = folder / f".{name}.{os.getpid()}"  # a reader never meets half a file
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # half surrogate pairs stay readable
        aside.replace(folder / name)
    return [folder / name for name in texts]
