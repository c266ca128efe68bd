"""A command of the command line, made from the signature of its function: each parameter is an option.

As with typer, but on click alone: typer imports pydantic before it runs anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

Exit = click.exceptions.Exit
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}


class Option:
    """What ``Annotated`` says of an option: its names, made from the parameter's if not given, and help."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names, self.settings = names, settings


class Argument:
    """What ``Annotated`` says of an argument: ``metavar`` and ``help``."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings


class _Command(click.Command):
    """A command whose help describes its arguments too."""

    arguments: tuple[tuple[str, str], ...] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(self.arguments)
        super().format_options(ctx, formatter)


def command(
    function: Callable[..., None], *, name: str | None = None, epilog: str | None = None
) -> click.Command:
    """Make the command of a function; its docstring is the help, a parameter ``context`` is click's."""
    hints = get_type_hints(function, include_extras=True)
    made = _Command(
        name or function.__name__,
        callback=click.pass_context(function) if "context" in hints else function,
        help=inspect.getdoc(function),
        epilog=epilog,
        context_settings=SETTINGS,
    )
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "context":
            continue
        kind, declared = get_args(hints[parameter.name])
        if isinstance(declared, Argument):
            metavar, text = declared.settings["metavar"], declared.settings["help"]
            made.arguments += ((metavar, text),)
            made.params.append(_argument(parameter, kind, metavar))
        else:
            made.params.append(_option(parameter, kind, declared))
    return made


def group(name: str, text: str, commands: Iterable[click.Command]) -> click.Group:
    """Make a command of commands."""
    return click.Group(
        name,
        help=text,
        commands={made.name or "": made for made in commands},
        no_args_is_help=True,
        context_settings=SETTINGS,
    )


def _argument(parameter: inspect.Parameter, kind: Any, metavar: str) -> click.Argument:
    kind, several = _element(kind)
    required = parameter.default is parameter.empty
    return click.Argument(
        [parameter.name],
        metavar=(metavar if required else f"[{metavar}]") + ("..." if several else ""),
        type=_type(kind),
        nargs=-1 if several else 1,
        required=required,
    )


def _option(parameter: inspect.Parameter, kind: Any, declared: Option) -> click.Option:
    kind, several = _element(kind)
    settings = dict(declared.settings)
    settings["type"] = _type(kind, settings.pop("min", None))
    word = f"--{parameter.name.replace('_', '-')}"
    if kind is bool:
        settings["is_flag"] = True
        word = f"{word}/--no-{word[2:]}"
    if parameter.default is parameter.empty:
        settings["required"] = True
    else:
        settings["default"] = parameter.default
    return click.Option(
        [parameter.name, *(declared.names or (word,))], multiple=several, **settings
    )


def _element(kind: Any) -> tuple[Any, bool]:
    """The type without ``| None``, and if it is a list, that of its elements and True."""
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _type(kind: Any, least: float | None = None) -> click.ParamType[Any]:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind is Path:
        return click.Path(path_type=Path)
    if least is not None:
        return click.IntRange(min=int(least)) if kind is int else click.FloatRange(min=least)
    found: click.ParamType[Any] = click.types.convert_type(kind)
    return found
