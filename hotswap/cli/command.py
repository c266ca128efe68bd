"""A command on click: with its arguments in its help, and made from the signature of its function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click
from click.exceptions import Exit as Exit

FILE, FOLDER = click.Path(path_type=Path), click.Path(path_type=Path)
FILE.name, FOLDER.name = "file", "folder"  # as the help calls them
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}


class Command(click.Command):
    """A command whose help describes its arguments too: pairs of name and text."""

    def __init__(
        self, *words: Any, arguments: Sequence[tuple[str, str]] = (), **settings: Any
    ) -> None:
        super().__init__(*words, **{"context_settings": SETTINGS} | settings)
        self.arguments = list(arguments)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(self.arguments)
        super().format_options(ctx, formatter)


class Option:
    """What ``Annotated`` says of an option: its names, made from the parameter's if not given, and help."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names, self.settings = names, settings


class Argument(Option):
    """What ``Annotated`` says of an argument: ``metavar`` and ``help``."""


def command(function: Callable[..., None], *, epilog: str | None = None) -> click.Command:
    """Make the command of a function; its docstring is the help."""
    hints = get_type_hints(function, include_extras=True)
    made = Command(
        function.__name__, callback=function, help=inspect.getdoc(function), epilog=epilog
    )
    for parameter in inspect.signature(function).parameters.values():
        kind, declared = get_args(hints[parameter.name])
        if isinstance(declared, Argument):
            made.arguments.append((declared.settings["metavar"], declared.settings["help"]))
            made.params.append(_argument(parameter, kind, declared))
        else:
            made.params.append(_option(parameter, kind, declared))
    return made


def _argument(parameter: inspect.Parameter, kind: Any, declared: Argument) -> click.Argument:
    kind, several = _element(kind)
    required = parameter.default is parameter.empty
    metavar = declared.settings["metavar"]
    return click.Argument(
        [parameter.name],
        metavar=(metavar if required else f"[{metavar}]") + ("..." if several else ""),
        type=kind,
        nargs=-1 if several else 1,
        required=required,
    )


def _option(parameter: inspect.Parameter, kind: Any, declared: Option) -> click.Option:
    kind, several = _element(kind)
    words = declared.names or (f"--{parameter.name.replace('_', '-')}",)
    return click.Option(
        [parameter.name, *words],
        type=kind,
        multiple=several,
        is_flag=kind is bool,
        default=parameter.default,
        **declared.settings,
    )


def _element(kind: Any) -> tuple[Any, bool]:
    """The type for click without ``| None``, and whether there may be several of them."""
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    several = get_origin(kind) is list
    kind = get_args(kind)[0] if several else kind
    return FILE if kind is Path else kind, several
