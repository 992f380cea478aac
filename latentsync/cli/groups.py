"""Groups of options: one parameter of a command stands for all fields of a dataclass."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Protocol, get_args, get_type_hints

import typer

from latentsync.options import GENERAL, Declared, declared

__all__ = ["FieldsOf", "grouped"]

Command = Callable[..., None]


class OptionGroup(Protocol):
    """Several options that a command takes as one parameter."""

    def parameters(self) -> list[Parameter]:
        """List the options as parameters for typer."""
        ...

    def value(self, values: dict[str, Any], context: typer.Context) -> object:
        """Make the command's argument from the values of all options."""
        ...


@dataclass(frozen=True)
class FieldsOf:
    """Annotation of a dict parameter: field name -> value, of the options that the user gave.

    The fields declare an `Option`. `defaults` are in the dict even if the user gives nothing.
    """

    declaring: type  # the dataclass
    names: tuple[str, ...]  # of the fields that the command has
    defaults: Mapping[str, Any] = field(default_factory=dict)  # that differ from the fields'
    flags: Mapping[str, str] = field(default_factory=dict)  # that differ from the fields' names
    of_preset: bool = False  # the values not given are a preset's: no default is shown

    def parameters(self) -> list[Parameter]:
        known = declared(self.declaring)
        return [self._parameter(known[name]) for name in self.names]

    def _parameter(self, option: Declared) -> Parameter:
        kind = option.types[0]  # of "str | int" the first: the command line has text
        default = self.defaults.get(option.name, None if self.of_preset else option.default)
        also = "" if option.published is None else f" With --published: {option.published}."
        info = typer.Option(
            self.flags.get(option.name, f"--{option.name.replace('_', '-')}"),
            help=option.help + also,
            rich_help_panel=None if option.group == GENERAL else option.group,
            show_default=option.unset or True,
        )
        hint = kind | None if default is None else kind
        where = {"default": default, "annotation": Annotated[hint, info]}
        return Parameter(option.name, Parameter.KEYWORD_ONLY, **where)

    def value(self, values: dict[str, Any], context: typer.Context) -> object:
        sources = {name: context.get_parameter_source(name) for name in values}
        given = {name for name, source in sources.items() if source and source.name != "DEFAULT"}
        return dict(self.defaults) | {name: values[name] for name in given}


@dataclass(frozen=True)
class _InstanceOf:
    """A parameter that is a dataclass; its fields are annotated with typer's options."""

    dataclass: type

    def parameters(self) -> list[Parameter]:
        hints = get_type_hints(self.dataclass, include_extras=True)
        defaults = {
            one.name: Parameter.empty if one.default is MISSING else one.default
            for one in fields(self.dataclass)
        }
        return [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
            for name, default in defaults.items()
        ]

    def value(self, values: dict[str, Any], context: typer.Context) -> object:  # noqa: ARG002
        return self.dataclass(**values)


def grouped(command: Command) -> Command:
    """Show typer the single options in place of a command's groups.

    A group is a parameter whose type is a dataclass, or a dict annotated with `FieldsOf`.
    """
    groups: dict[str, tuple[OptionGroup, list[str]]] = {}
    flat = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for parameter in signature(command).parameters.values():
        group = _group(parameter.annotation)
        options = group.parameters() if group else [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
        if group:
            groups[parameter.name] = group, [option.name for option in options]
        flat += options

    @wraps(command)
    def run(*, context: typer.Context, **values: Any) -> None:  # noqa: ANN401 - as declared
        for name, (group, names) in groups.items():
            values[name] = group.value({each: values.pop(each) for each in names}, context)
        command(**values)

    run.__signature__ = Signature(flat)  # type: ignore[attr-defined]  # what inspect looks for
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


def _group(annotation: object) -> OptionGroup | None:
    marks = [mark for mark in get_args(annotation) if isinstance(mark, FieldsOf)]
    if marks:
        return marks[0]
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _InstanceOf(annotation)
    return None
