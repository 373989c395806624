"""JSON files read back, whoever wrote or damaged them: from bytes to checked values in one way, for every reader.

What no file of ours holds is refused before anything is made of it: NaN and infinite numbers, numbers of more than ``MAX_DIGITS``
digits, nesting deeper than ``MAX_DEPTH``, bytes that are not UTF-8. Other tools' files may hold it. Errors name file,
line and field, where there are such.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from pydantic import TypeAdapter, ValidationError

from visrl.errors import UsageError, printable

MAX_DEPTH = 100
MAX_DIGITS = 40
Value = TypeVar("Value")
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What making something of a value raises that has another shape than expected: no key, no number, one too large for a float."""
UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading a file raises, packed or not."""


def decode(data: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, saying what it is."""
    text = data.decode() if isinstance(data, bytes) else data
    try:
        value = _CAREFUL.decode(text) if _LONG.search(text) else msgspec.json.decode(text)
    except (
        msgspec.MsgspecError,
        RecursionError,
    ):  # or it holds half a surrogate pair, which Python's own decoder takes
        value = _carefully(text)
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return value


def decode_foreign(text: str) -> Any:
    """The value of another tool's JSON text: NaN and infinite numbers, which many write, are read. Raises ValueError."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        try:
            return json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deep") from error


def decode_as(data: bytes | str, shape: msgspec.json.Decoder[Value]) -> Value:
    """The value of a JSON text in a declared shape: decoded and checked in one go. Raises ValueError naming the field."""
    try:
        return shape.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return msgspec.convert(decode(data), shape.type)


def _carefully(text: str) -> Any:
    try:
        return _CAREFUL.decode(text)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error


def decode_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    value = decode(data)
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object, but {_kind(value)}")
    return value


def read_text(path: Path, hint: str) -> str:
    """A text file, gzipped where its name ends in .gz. Raises UsageError for one that cannot be read or is not UTF-8."""
    try:
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).decode("utf-8")
        return path.read_text(encoding="utf-8")
    except (*UNREADABLE, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise UsageError(f"{path}: cannot be read: {reason(error)}", hint) from error


def read_json(path: Path, hint: str, said: str = "damaged") -> Any:
    """The value of a JSON file. said: what a wrong one is. Raises UsageError naming the file."""
    text = read_text(path, hint)
    try:
        return decode(text)
    except ValueError as error:
        raise UsageError(f"{path}: {said}: {reason(error)}", hint) from error


def read_object(path: Path, hint: str) -> dict[str, Any]:
    """The object of a JSON file. Raises UsageError naming the file."""
    value = read_json(path, hint)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: damaged: not a JSON object, but {_kind(value)}", hint)
    return value


def read_as(path: Path, shape: TypeAdapter[Value], hint: str, said: str = "damaged") -> Value:
    """The value of a JSON file in a declared shape. Raises UsageError naming the file and the field."""
    return check(read_json(path, hint, said), shape, f"{path}: {said}", hint)


def check(value: Any, shape: TypeAdapter[Value], said: str, hint: str) -> Value:
    """``value`` in a declared shape. said: of which file, and what a wrong one is. Raises UsageError naming the field, too."""
    try:
        return shape.validate_python(value)
    except ValidationError as error:
        raise UsageError(f"{said}: {reason(error)}", hint) from error


def reason(error: Exception) -> str:
    """Why something could not be read, in one line: of a schema's errors the first, with its field."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        return printable(f"{field}: {first['msg']}" if field else first["msg"])
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return printable(f"no {error}")
    return printable(str(error))


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list)))
        level = [child for children in inner for child in children]
        if not level:
            return False
    return True


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:MAX_DIGITS]} is not a finite number")
    return value


_CAREFUL = json.JSONDecoder(parse_constant=_finite, parse_float=_finite, parse_int=_integer)
_LONG = re.compile(rf"[0-9]{{{MAX_DIGITS}}}")
