"""Options of commands, made from fields of settings: help, default and type are written there."""

import functools
import inspect
import shlex
import sys
from collections.abc import Callable
from inspect import isclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from ijepa.config import Runtime, Settings, validated
from ijepa.recipes import apply_override
from ijepa_cli.show import outlook_shown

# Names of options that are not those of their fields.
FLAGS = {"image_px": "--image-size", "resize_px": "--resize", "splits": "--split", "keys": "--key"}
SETTINGS, RUN = "Settings", "How to run"
ANY_STAGE = ("force", "dry_run")  # of `Runtime`; every stage has these
NOT_ASKED = {"device": "cpu", "workers": 0}  # where a stage has no such option

Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUN),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a setting, as a.b=c; repeatable.", rich_help_panel=SETTINGS
    ),
]


def stage(
    app: typer.Typer,
    settings: type[Settings] | None = None,
    shown: str = "",
    run: str = "",
    **how: Any,  # noqa: ANN401  # of Typer's `command`
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command whose options are its own parameters and fields of settings.

    The function is called with its own parameters, `config` (if there are settings), `runtime` and
    `as_json`. With `--dry-run`, what its stage would do is printed.

    Args:
        app: gets the command.
        settings: every field is an option; nested ones go through `--set` alone.
        shown: fields that `--help` shows, in this order; the others are named by `--set`'s help.
        run: fields of `Runtime` that are options, beside `--force`, `--dry-run` and `--json`.
        how: of `typer.Typer.command`.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(function).parameters.values()
        own = [one for one in parameters if one.name not in ("config", "runtime", "as_json")]
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        options = [context.replace(annotation=typer.Context), *own]
        fields, of_run = shown.split(), [*run.split(), *ANY_STAGE]
        if settings:
            options += [_option(settings, name, SETTINGS) for name in fields]
            taken = {*fields, *(one.name for one in own)}
            hidden = [name for name in _single(settings) if name not in taken]
            options += [_option(settings, name, SETTINGS, hidden=True) for name in hidden]
            others = f": {', '.join(hidden)}" if hidden else ""
            text = f"Any other setting, as NAME=VALUE; repeatable{others}."
            override = typer.Option("--set", help=text, rich_help_panel=SETTINGS)
            kind = Annotated[list[str] | None, override]
            options.append(_parameter("overrides", kind, None))
            fields = [*fields, *hidden]
        options += [_option(Runtime, name, RUN) for name in of_run]
        options.append(_parameter("as_json", Json, False))

        @functools.wraps(function)
        def command(ctx: typer.Context, **values: Any) -> None:  # noqa: ANN401  # of the options
            arguments = {one.name: values[one.name] for one in own}
            if settings:
                body = {name: values[name] for name in fields if _is_given(ctx, name)}
                for override in values["overrides"] or ():
                    apply_override(body, override)
                arguments["config"] = validated(settings, body, "options")
            typed = shlex.join(["ijepa", *sys.argv[1:]])
            chosen = NOT_ASKED | {name: values[name] for name in of_run} | {"command": typed}
            runtime = validated(Runtime, chosen, "options")
            with outlook_shown(values["as_json"]):
                function(**arguments, runtime=runtime, as_json=values["as_json"])

        command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # what Typer reads
        command.__annotations__ = {one.name: one.annotation for one in options}
        app.command(**how)(command)
        return function

    return register


def _is_given(ctx: typer.Context, option: str) -> bool:
    """Was it typed? By name, for the enumeration is click's, which typer may carry within."""
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _single(settings: type[Settings]) -> list[str]:
    """Fields that are one setting, not a group of them."""
    kinds = {name: field.annotation for name, field in settings.model_fields.items()}
    return [n for n, kind in kinds.items() if not (isclass(kind) and issubclass(kind, Settings))]


def _option(
    settings: type[Settings], name: str, panel: str, *, hidden: bool = False
) -> inspect.Parameter:
    field = settings.model_fields[name]
    flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
    kind = _type(field.annotation)
    default = ... if field.is_required() else field.default
    if default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    if isinstance(default, tuple) and get_origin(kind) is list:
        default = list(default) or None
    text = " ".join((field.description or "").split())
    option = typer.Option(flag, help=text, rich_help_panel=panel, hidden=hidden)
    kind = kind if default is not None else kind | None
    return _parameter(name, Annotated[kind, option], default)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:  # noqa: ANN401  # annotations and defaults are of any type
    empty = inspect.Parameter.empty if default is ... else default
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=empty)


def _type(annotation: Any) -> Any:  # noqa: ANN401  # a type
    """What an option of a field takes: a union's first type, a list for any number of values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, UnionType):
        return _type(next(one for one in arguments if one is not NoneType))
    if origin is tuple:
        inner = tuple(_type(one) for one in arguments if one is not ...)
        return list[inner[0]] if ... in arguments else tuple[inner]  # type: ignore[valid-type]  # made here
    return annotation
