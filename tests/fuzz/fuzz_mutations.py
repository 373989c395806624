"""Valid bytes -> damaged bytes: at random places of the structure (JSON, lines of JSON, YAML), and of the bytes."""

import json
import re

import yaml

RAW = (
    "NaN", "-Infinity", "1e400", "9" * 4000, "-" + "1" * 400, "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300,
    "[" * 100_000, '"\\ud800"', "1e308", "-1e308", "1e-320",
)  # fmt: skip
"""Texts in the place of a value: what json.dumps would not write."""
RAW_YAML = (
    ".nan", "-.inf", "1e400", "9" * 5000, "[" * 300 + "]" * 300, "[" * 20_000, "!!python/object/apply:os.getcwd []", "!!timestamp x",
    "!!int ''", "!x y", "2020-13-45", "2020-01-01", "&a [*a]", "&a {b: *a}", "*nobody", "&b [&c [x,x],*c,*c,*c]", "? [a]", "{<<: 3}", "0b", "~", "@x",
    '"\\ud800"', "1e308", "0x", "1:99:99", "=", "|",
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, -5, 1, 2**31, 2**63, 10**30, 0.5, -0.0, "", "x", "\0", "a" * 5000, "../../etc/passwd", "/", "é\u2028\u202e", "🙂",
    [], {}, [None], [[]], {"": None}, ["x", 1], {"a": {"b": []}}, [1, 2, 3], [1, 2, 3, 4], "nan", "1e400", "-1",
)  # fmt: skip


def places(value, path=()):
    """Every path below ``value``, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def _at(value, path):
    for key in path:
        value = value[key]
    return value


def _change(value, dice, raw):
    """``value`` with one thing changed in place, and the texts that marks in it stand for."""
    found = list(places(value))
    path = dice.choice(found)
    marks = {}
    if not path:
        return dice.choice(VALUES), marks
    parent, key = _at(value, path[:-1]), path[-1]
    how = dice.choice(("value", "value", "value", "raw", "raw", "delete", "rename", "double", "swap"))
    if how == "value":
        parent[key] = dice.choice(VALUES)
    elif how == "raw":
        mark = f"MARK{dice.randrange(10**9)}KRAM"
        parent[key], marks[mark] = mark, dice.choice(raw)
    elif how == "delete":
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        parent[dice.choice(("", "x", "\ud800", "a" * 300))] = parent.pop(key)
    elif how == "double" and isinstance(parent, list):
        parent.append(parent[key])
    else:
        parent[key] = json.loads(json.dumps(_at(value, dice.choice(found))))
    return value, marks


def _marked(text, marks):
    for mark, raw in marks.items():
        text = re.sub(f"[\"']?{mark}[\"']?", lambda _, raw=raw: raw, text)
    return text


def structural(data, kind, dice):
    """One value of a valid file changed. kind: "json", "jsonl" or "yaml"."""
    if kind == "yaml":
        value, marks = _change(yaml.safe_load(data), dice, RAW_YAML)
        return _marked(yaml.safe_dump(value, allow_unicode=True), marks).encode(errors="surrogatepass")
    if kind == "json":
        value, marks = _change(json.loads(data), dice, RAW)
        return _marked(json.dumps(value), marks).encode()
    lines = data.decode().splitlines()
    number = dice.randrange(len(lines))
    whole = json.loads(lines[number])
    if dice.random() < 0.8:
        whole.pop("crc32", None)  # else nothing behind the checksum is ever reached
    value, marks = _change(whole, dice, RAW)
    lines[number] = _marked(json.dumps(value), marks)
    if dice.random() < 0.1:
        lines.insert(number, dice.choice(("", "null", "[]", "{}", "x", lines[0])))
    return ("\n".join(lines) + "\n").encode()


def of_bytes(data, dice):
    """Bytes flipped, cut, doubled, put in."""
    for _ in range(dice.choice((1, 1, 2, 8))):
        a = dice.randrange(len(data) + 1)
        b = min(len(data), a + dice.choice((1, 2, 10, 200)))
        how = dice.randrange(7)
        if how == 0:
            data = data[:a]
        elif how == 1:
            data = data[:a] + data[b:]
        elif how == 2:
            data = data[:b] + data[a:]
        elif how == 3:
            data = data[:a] + bytes(dice.randrange(256) for _ in range(b - a)) + data[b:]
        elif how == 4:
            data = (
                data[:a]
                + dice.choice(
                    (b"\xe9", b"\0", b"\xff\xfe", b"\n", b"\r", b'"', b"{", b"]", b"\xed\xa0\x80", b"\xef\xbb\xbf")
                )
                + data[a:]
            )
        elif how == 5 and a < len(data):
            data = data[:a] + bytes([data[a] ^ (1 << dice.randrange(8))]) + data[a + 1 :]
        else:
            data = dice.choice(
                (b"", b"\n", b"null", b"[]", b"{}", data.decode(errors="replace").encode("utf-16"), data + data)
            )
    return data


def mutated(data, kind, dice):
    """One damaged version of a valid file."""
    return structural(data, kind, dice) if dice.random() < 0.7 else of_bytes(data, dice)
