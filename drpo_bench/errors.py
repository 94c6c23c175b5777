"""The user's mistakes, told in a line that names file and field; everything else is a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:  # the CLI imports this module, and `--help` needs no pydantic
    from pydantic import BaseModel, ValidationError


class UserError(ValueError):
    """A mistake of the user: the CLI prints the message and exits with 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, else an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def explain(error: ValidationError, source: str, root: type[BaseModel]) -> UserError:
    """The first problem of a pydantic error as one line: `source: field: what is wrong`."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    field = ".".join(_without_tags(location))
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        message = "unknown field" + did_you_mean(location[-1], _siblings(root, location))
    elif kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        message = f"unknown {context['discriminator'].strip(chr(39))} {context['tag']!r}"
        message += did_you_mean(context["tag"], tags) or f"; known: {', '.join(tags)}"
    elif kind == "value_error":
        message = str(context["error"])
    elif kind == "literal_error":
        expected = context["expected"].replace("'", "")
        message = f"is {first['input']!r}, must be {expected}"
        message += did_you_mean(str(first["input"]), expected.replace(" or ", ", ").split(", "))
    elif kind == "missing":
        message = "is missing"
    else:
        message = f"is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return UserError(": ".join(part for part in (source, field, message) if part))


def _without_tags(location: list[str]) -> list[str]:
    """pydantic puts a union's tag into the location (`loss.drpo.delta`); a file has no such level."""
    tagged = len(location) > 1 and location[0] in ("loss", "task", "correction")
    return location[:1] + location[2:] if tagged else location


def _siblings(root: type[BaseModel], location: list[str]) -> list[str]:
    """Field names that exist where an unknown one was found."""
    model: type[BaseModel] = root
    for part in location[:-1]:
        model = _child(model, part) or model
    return list(model.model_fields)


def _child(model: type[BaseModel], part: str) -> type[BaseModel] | None:
    """The model below `part`: a field, or a member of the union that the previous part named."""
    if part in model.model_fields:
        annotation = model.model_fields[part].annotation
        return annotation if hasattr(annotation, "model_fields") else None  # type: ignore[return-value]
    for field in model.model_fields.values():
        for member in get_args(field.annotation):
            fields = getattr(member, "model_fields", {})
            if any(part == tag.default for tag in fields.values()):
                return member  # type: ignore[no-any-return]
    return None
