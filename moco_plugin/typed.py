"""Decoding of annotations, results and logs into types: JSON by msgspec, XML by expat, of bounded size."""

import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar
from xml.etree import ElementTree

import msgspec

from moco_plugin.errors import UserError
from moco_plugin.files import decode_text, read_file, shown

MOST_JSON, MOST_XML = 4 << 30, 256 << 20  # bytes
MOST_DEPTH = 30  # of XML elements
_BARE = re.compile(r"(?<=[\[,:\s])[+-]?(?:nan|inf(?:inity)?)(?=[\s,\]}])", re.IGNORECASE)
_DECLARED = re.compile(rb"<\?xml[^>]{0,100}encoding=[\"']([\w.-]{1,40})")
_ERRORS = (msgspec.DecodeError, RecursionError, ValueError, OverflowError)
T = TypeVar("T")
Step = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
"""A count of training steps."""


def read_json_parts(path: Path) -> dict[str, msgspec.Raw] | list[msgspec.Raw]:
    """Return the parts of a JSON file, not yet decoded; numbers that JSON does not have, such as NaN, become null.

    Raises:
        UserError: The file cannot be read, or is not JSON.
    """
    data = read_file(path, MOST_JSON, "a JSON file")
    kind: Any = dict[str, msgspec.Raw] | list[msgspec.Raw]
    parts: dict[str, msgspec.Raw] | list[msgspec.Raw]
    try:
        try:
            data.decode()  # parts are not looked into
            parts = msgspec.json.decode(data, type=kind)
        except _ERRORS:
            parts = msgspec.json.decode(_BARE.sub("null", decode_text(data)).encode(errors="replace"), type=kind)
        return parts
    except _ERRORS as error:
        raise UserError(f"{shown(path)} is not a JSON file of annotations ({error}); check the file") from error


def decode(part: msgspec.Raw | bytes, kind: type[T], name: str) -> T:
    """Return a part of a JSON file as a type; numbers may be texts.

    Raises:
        UserError: It is something else.
    """
    try:
        value: T = msgspec.json.decode(part, type=kind, strict=False)
        return value
    except _ERRORS as error:
        raise UserError(f"{name}: {error}; correct the file") from error


def convert(value: Any, kind: type[T], name: str) -> T:
    """Return what ``files.read_json`` or a CSV reader returned as a type; keys that the type lacks are left out.

    Raises:
        UserError: It is something else.
    """
    try:
        converted: T = msgspec.convert(value, kind, strict=False)
        return converted
    except _ERRORS as error:
        raise UserError(f"{shown(name)}: {error}; correct or remove the file") from error


def decode_or_none(part: msgspec.Raw | bytes, kind: type[T]) -> T | None:
    """Return a part of a JSON file as a type, or None if it is something else."""
    try:
        return decode(part, kind, "")
    except UserError:
        return None


def read_elements(path: Path) -> Iterator[ElementTree.Element]:
    """Yield the root of an XML file with its attributes, then each of its child elements, complete.

    Raises:
        UserError: The file cannot be read, is not XML, defines entities, or is nested too deep.
    """
    data = read_file(path, MOST_XML, "an XML file of annotations")
    declared = _DECLARED.match(data)
    try:
        text = data.decode(declared[1].decode()) if declared else decode_text(data)
    except (LookupError, UnicodeError):
        text = decode_text(data)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{shown(path)} defines a document type or entities, which are not read; remove them")
    depth = 0
    try:
        for event, element in ElementTree.iterparse(StringIO(text), ("start", "end")):
            depth += 1 if event == "start" else -1
            if depth > MOST_DEPTH:
                raise UserError(f"{shown(path)} is nested more than {MOST_DEPTH} elements deep; check the file")
            if depth == 1:
                yield element
                if event == "end":
                    element.clear()
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{shown(path)} is not an XML file ({error}); correct or remove it") from error
