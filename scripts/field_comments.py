"""A griffe extension for `make docs`: lists dataclass fields with what is said of them.

That is the help of the `Option` that a field declares, or else the comment behind it.
"""

import tokenize
from collections.abc import Mapping, Sequence
from importlib import import_module
from io import StringIO

from griffe import Attribute, Class, Docstring, Expr, ExprSubscript, ExprTuple, Extension

from latentsync.options import Declared, declared

__all__ = ["FieldComments"]


class FieldComments(Extension):  # type: ignore[misc]  # griffe comes with the extra `docs` alone
    """Appends the section `Attributes:` to the docstring of each dataclass."""

    def on_class_members(self, *, cls: Class, **_: object) -> None:
        """Read what is said of a class's fields from the class and from its source."""
        if not any("dataclass" in str(decorator.value) for decorator in cls.decorators):
            return
        if cls.name == "Options":  # docs/options.md lists its fields
            return
        lines, first = cls.lines, cls.lineno or 1
        options: Mapping[str, Declared] = {}
        if any("Annotated[" in line for line in lines):
            options = declared(getattr(import_module(cls.module.path), cls.name))
        said = comments(lines)
        rows = []
        for field in cls.members.values():
            if isinstance(field, Attribute) and "property" not in field.labels and field.lineno:
                start, stop = field.lineno - first, (field.endlineno or field.lineno) - first + 1
                above = start
                while lines[above - 1].lstrip().startswith("#"):
                    above -= 1
                behind = [said[i] for i in range(start, stop) if i in said]
                text = " ".join(behind or [said[i] for i in range(above, start)])
                if option := options.get(field.name):
                    text = option.help
                    field.annotation = _bare(field.annotation)
                rows.append(f"    {field.name}: {text}")
        if rows:
            text = cls.docstring.value if cls.docstring else ""
            text = "\n".join([text, "", "Attributes:", *rows])
            cls.docstring = Docstring(text, parent=cls, lineno=cls.lineno)


def _bare(annotation: Expr | str | None) -> Expr | str | None:
    """The type in `Annotated[type, Option(...)]`."""
    if isinstance(annotation, ExprSubscript) and isinstance(annotation.slice, ExprTuple):
        return annotation.slice.elements[0]
    return annotation


def comments(lines: Sequence[str]) -> dict[int, str]:
    """The comments of a class's source, by the index of their line."""
    tokens = tokenize.generate_tokens(StringIO("\n".join(lines)).readline)
    return {
        token.start[0] - 1: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
