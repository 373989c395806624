"""Every small change of arithmetic or logic that a source text allows, by its syntax tree and in place: nothing is reformatted.

Changed: comparisons, arithmetic operators, numbers, True and False, conditions, ``not``, ``and``/``or``, ``min``/``max``,
``any``/``all``, ``break``/``continue``, and returned values (dropped). Left alone: texts (messages, prompts, patterns), what is
raised, docstrings, annotations, types, decorators, ``__all__`` and what is imported for types only.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
_COMPUTED = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_TYPES = {
    "Literal",
    "Callable",
    "Sequence",
    "Mapping",
    "TypeVar",
    "cast",
    "dict",
    "list",
    "tuple",
    "set",
    "frozenset",
    "array",
}


@dataclass(frozen=True, order=True)
class Mutant:
    """One change: the bytes [start, end) of ``file`` become ``text``. was, now: the lines it touches, before and after."""

    file: str
    start: int
    end: int
    text: str
    line: int
    was: str
    now: str

    def applied(self, source: str) -> str:
        raw = source.encode()
        return (raw[: self.start] + self.text.encode() + raw[self.end :]).decode()

    @property
    def key(self) -> tuple[str, str, str]:
        """What names it wherever it stands in the file."""
        return self.file, self.was, self.now

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.was}  ->  {self.now}"


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of a file's text, in its order, each once."""
    return sorted(set(_Finder(file, source).found()))


class _Finder:
    def __init__(self, file: str, source: str) -> None:
        self.file = file
        self.raw = source.encode()
        self.lines = [0]
        for line in self.raw.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.tree = ast.parse(source)

    def found(self) -> Iterator[Mutant]:
        for node in _logic(self.tree, in_function=False):
            for start, end, text in self._changes(node):
                yield self._mutant(start, end, text)

    def _mutant(self, start: int, end: int, text: str) -> Mutant:
        first = self.raw.rfind(b"\n", 0, start) + 1
        last = self.raw.find(b"\n", end)
        last = len(self.raw) if last < 0 else last
        was = self.raw[first:last].decode()
        now = (self.raw[first:start] + text.encode() + self.raw[end:last]).decode()
        return Mutant(self.file, start, end, text, self.raw.count(b"\n", 0, start) + 1, _one_line(was), _one_line(now))

    def _at(self, node: ast.AST) -> tuple[int, int]:
        return self.lines[node.lineno - 1] + node.col_offset, self.lines[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.AST) -> str:
        start, end = self._at(node)
        return self.raw[start:end].decode()

    def _between(self, left: ast.AST, right: ast.AST, before: str, after: str) -> Iterator[tuple[int, int, str]]:
        """The operator between two operands, in another form."""
        start, end = self._at(left)[1], self._at(right)[0]
        word = re.escape(before).replace(r"\ ", r"\s+")
        match = re.search(rb"[\s()]*(%s)[\s()]*" % word.encode(), self.raw[start:end])
        if match and match.end() == end - start:
            yield start + match.start(1), start + match.end(1), after

    def _changes(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        match node:
            case ast.Compare():
                for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                    before, others = _COMPARED[type(op)]
                    for after in others:
                        yield from self._between(left, right, before, after)
            case ast.BinOp() if type(node.op) in _COMPUTED and not _is_text(node.left) and not _is_text(node.right):
                yield from self._between(node.left, node.right, *_COMPUTED[type(node.op)])
            case ast.BoolOp():
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield from self._between(left, right, *_COMPUTED[type(node.op)])
            case ast.AugAssign(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div()):
                before, after = _COMPUTED[type(node.op)]
                yield from self._between(node.target, node.value, before + "=", after + "=")
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield self._at(node)[0], self._at(node.operand)[0], "(" * self._opened(node)
            case ast.Constant():
                yield from self._constant(node)
            case ast.Call(func=ast.Name(id=name)) if name in _CALLED:
                yield (*self._at(node.func), _CALLED[name])
            case ast.Break() | ast.Continue():
                yield (*self._at(node), "continue" if isinstance(node, ast.Break) else "break")
            case ast.Return() if node.value is not None and not _is_nothing(node.value):
                yield (*self._at(node), "return None")
        for test in _tests(node):
            yield (*self._at(test), f"(not ({self._text(test)}))")

    def _opened(self, node: ast.UnaryOp) -> int:
        start, end = self._at(node)[0], self._at(node.operand)[0]
        return self.raw[start:end].count(b"(")

    def _constant(self, node: ast.Constant) -> Iterator[tuple[int, int, str]]:
        if isinstance(node.value, bool):
            yield (*self._at(node), str(not node.value))
        elif isinstance(node.value, int | float):
            yield (*self._at(node), repr(node.value + 1))
            if node.value not in (0, 1):
                yield (*self._at(node), repr(node.value - 1) if isinstance(node.value, int) else repr(node.value / 2))
            elif node.value == 1:
                yield (*self._at(node), repr(node.value - 1))


def _tests(node: ast.AST) -> list[ast.expr]:
    """The conditions of a node; one that begins with ``not`` is changed by taking that away."""
    match node:
        case ast.If() | ast.While() | ast.IfExp() | ast.Assert():
            tests = [node.test]
        case ast.comprehension():
            tests = node.ifs
        case _:
            tests = []
    return [test for test in tests if not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not))]


def _logic(node: ast.AST, in_function: bool) -> Iterator[ast.AST]:
    """The nodes below ``node`` that compute something when the program runs."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_left_alone(child, in_function):
                continue
            yield child
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _logic(child, inside)


def _is_left_alone(node: ast.AST, in_function: bool) -> bool:
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case ast.Subscript(value=ast.Name(id=name)) | ast.Call(func=ast.Name(id="TypeVar" | "UsageError" as name)):
            return name in _TYPES or name in ("TypeVar", "UsageError")
        case ast.BinOp(op=ast.BitOr()):
            return not in_function  # the alias of a type
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_nothing(node: ast.AST) -> bool:
    """None, or False, which callers do not tell from it."""
    return isinstance(node, ast.Constant) and (node.value is None or node.value is False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
