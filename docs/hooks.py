"""Hook of MkDocs: generate the settings and the commands in the pages of the reference."""

import html
import re
from itertools import groupby
from typing import Any

import typer
from typer.cli import get_docs_for_click

from hf_reward.cli.app import app
from hf_reward.training.settings_help import describe_settings


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append the generated part of a page.

    Args:
        markdown: Source of the page.
        page: The page; its path decides the generated part.
        **_: Other arguments of MkDocs.

    Returns:
        The complete source.
    """
    generated = {"reference/configuration.md": settings, "reference/cli.md": commands}.get(page.file.src_uri)
    return f"{markdown}\n{generated()}" if generated else markdown


def settings() -> str:
    """Return a table for each group of settings."""
    parts = []
    for group, members in groupby(describe_settings(), key=lambda each: each.group):
        rows = [
            f"| `{each.name}`{{ #{each.name} }} | {_code(each.type)} | {_code(each.default)} | {_text(each.help)} |"
            for each in members
        ]
        parts.append("\n".join([f"## {group}\n", "| setting | type | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(['<div class="settings" markdown>', *parts, "</div>"])


def commands() -> str:
    """Return the help of every command, as `typer ... utils docs` writes it."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="hf-reward", indent=1)
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # cut off in the middle of a sentence


def _code(text: str) -> str:
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _text(text: str) -> str:
    return text.replace("|", "&#124;").replace("<", "&lt;")
