"""What every command has in common: how its help looks, and the types of its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.exceptions import Exit as Exit

FILE, FOLDER = click.Path(path_type=Path), click.Path(path_type=Path)
FILE.name, FOLDER.name = "file", "folder"  # as the help calls them
SEVERAL = click.IntRange(min=2)
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}


class Command(click.Command):
    """A command whose help describes its arguments too: by name, what each is."""

    def __init__(
        self, *words: Any, arguments: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        super().__init__(*words, **{"context_settings": SETTINGS} | settings)
        self.arguments = arguments or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(list(self.arguments.items()))
        super().format_options(ctx, formatter)
