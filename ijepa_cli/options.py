"""The Typer app, and the options of its commands, made from fields of settings."""

import functools
import inspect
import shlex
import sys
from collections.abc import Callable
from inspect import isclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperGroup
from typer.models import OptionInfo

from ijepa.config import Runtime, Settings, validated
from ijepa.recipes import apply_override
from ijepa_cli import complete
from ijepa_cli.show import outlook_shown

# Names of options that are not those of their fields.
FLAGS = {
    "image_px": "--image-size", "resize_px": "--resize", "splits": "--split", "keys": "--key",
    "tables": "--table",
}  # fmt: skip
SETTINGS, RUN = "Settings", "How to run"
MAIN = "Options"  # typed first: required settings, and options that are a command's own
COMPLETED: dict[str, Callable[..., list[str]]] = {
    "encoder": complete.encoder, "protocol": complete.protocol, "recipe": complete.recipe,
    "split": complete.split, "test_split": complete.split, "store_split": complete.split,
}  # fmt: skip
ANY_STAGE = ("force", "dry_run")  # of `Runtime`; every stage has these
NOT_ASKED = {"device": "cpu", "workers": 0}  # where a stage has no such option

COMMANDS = (
    "shard", "pretrain", "extract", "features", "probe", "finetune", "train-decoder", "visualize",
    "report", "recipes", "encoders", "convert",
)  # fmt: skip


class _PipelineOrder(TyperGroup):
    """Typer lists commands that have commands of their own last."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # click's
        del ctx
        return list(COMMANDS)


app = typer.Typer(
    name="ijepa",
    cls=_PipelineOrder,
    help="""Pretrain, evaluate and inspect I-JEPA, step by step: shard, pretrain, extract, probe,
    report. Commands that compute end with the next one to type.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _set(text: str) -> OptionInfo:
    made: OptionInfo = typer.Option(
        "--set", help=text, rich_help_panel=SETTINGS, metavar="NAME=VALUE"
    )
    return made


Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUN),
]
Set = Annotated[
    list[str] | None,
    _set("Change a setting of the recipe, such as optimization.lr=0.001; repeatable."),
]
Data = Annotated[Path, typer.Option(help="Shard set made by `ijepa shard`.")]


def stage(
    app: typer.Typer,
    settings: type[Settings] = Settings,
    shown: str = "",
    run: str = "",
    **how: Any,  # noqa: ANN401  # of Typer's `command`
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command whose options are its own parameters and fields of settings.

    The function is called with its own parameters, `config` (if there are settings), `runtime` and
    `as_json`. With `--dry-run`, what its stage would do is printed.

    Args:
        app: gets the command.
        settings: every field is an option; nested ones go through `--set` alone. Those without
            a default come first in `--help`.
        shown: fields that `--help` shows, in this order; the others are named by `--set`'s help.
        run: fields of `Runtime` that are options, beside `--force`, `--dry-run` and `--json`.
        how: of `typer.Typer.command`.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(function).parameters.values()
        own = [one for one in parameters if one.name not in ("config", "runtime", "as_json")]
        fields, of_run = shown.split(), [*run.split(), *ANY_STAGE]
        needed = [name for name in fields if settings.model_fields[name].is_required()]
        taken = {*fields, *(one.name for one in own)}
        hidden = [name for name in _single(settings) if name not in taken]
        options = [
            _parameter("ctx", typer.Context, ...),
            *(_option(settings, name, MAIN) for name in needed),
            *map(_completed, own),
            *(_option(settings, name, SETTINGS) for name in fields if name not in needed),
            *(_option(settings, name, SETTINGS, hidden=True) for name in hidden),
        ]
        fields += hidden
        sets = bool(fields) and "overrides" not in taken  # `--set` is of these settings
        if sets:
            said = "These settings as NAME=VALUE; repeatable."
            if hidden:
                said = f"Any other setting; repeatable: {', '.join(hidden)}. Each is also an option"
                said += f", such as {_flag(hidden[0])}."
            override = _set(said)
            options.append(_parameter("overrides", Annotated[list[str] | None, override], None))
        options += [_option(Runtime, name, RUN) for name in of_run]
        options.append(_parameter("as_json", Json, False))

        @functools.wraps(function)
        def command(ctx: typer.Context, **values: Any) -> None:  # noqa: ANN401  # of the options
            arguments = {one.name: values[one.name] for one in own}
            if fields:
                body = {name: values[name] for name in fields if _is_given(ctx, name)}
                typed = {name: _flag(name) for name in body}
                for override in (values["overrides"] or ()) if sets else ():
                    apply_override(body, override)
                arguments["config"] = validated(settings, body, "options", typed)
            command_line = shlex.join(["ijepa", *sys.argv[1:]])
            chosen = NOT_ASKED | {name: values[name] for name in of_run} | {"command": command_line}
            runtime = validated(Runtime, chosen, "options", {name: _flag(name) for name in of_run})
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


def _flag(name: str) -> str:
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def _option(
    settings: type[Settings], name: str, panel: str, *, hidden: bool = False
) -> inspect.Parameter:
    field, flag = settings.model_fields[name], _flag(name)
    kind = _type(field.annotation)
    default = ... if field.is_required() else field.default
    if default is True:
        flag = f" /--no-{flag.removeprefix('--')}"  # as Typer writes what only switches off
    if isinstance(default, tuple) and get_origin(kind) is list:
        default = list(default) or None
    option = typer.Option(
        flag,
        help=" ".join((field.description or "").split()),
        rich_help_panel=panel,
        hidden=hidden,
        metavar="TRACKER" if name == "track" else None,  # its choices leave the help no room
        show_default=default is not True,
        autocompletion=None if get_origin(kind) is Literal else COMPLETED.get(name),
    )
    return _parameter(
        name, Annotated[kind if default is not None else kind | None, option], default
    )


def _completed(parameter: inspect.Parameter) -> inspect.Parameter:
    """An option of a command itself, whose values the shell completes."""
    _, option, *_ = get_args(parameter.annotation) or (None, None)
    if isinstance(option, OptionInfo):
        option.autocompletion = COMPLETED.get(parameter.name)
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


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
