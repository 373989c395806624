"""What a mutant is, and that those set aside by hand still are mutants of the source."""

import ast
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from equivalent import EQUIVALENT
from mutants import mutants
from random_mutants import NEAR, ROOT, drawn, near_and_area


def now(source):
    return [mutant.now for mutant in mutants("x.py", source)]


def test_each_kind_of_change_in_place():
    assert now("def f(a, b): return a  <  b") == [
        "def f(a, b): return None",
        "def f(a, b): return a <= b",
        "def f(a, b): return a >= b",
    ]
    assert now("if not a: x = b + 1\n") == [
        "if a: x = b + 1",
        "if not a: x = b - 1",
        "if not a: x = b + 0",
        "if not a: x = b + 2",
    ]
    assert now("x = (a) and (b)") == ["x = (a) or (b)"]
    assert now("y = [i for i in r if i is None]") == [
        "y = [i for i in r if (not (i is None))]",
        "y = [i for i in r if i is not None]",
    ]
    assert now("x = min(a, True)") == ["x = max(a, True)", "x = min(a, False)"]
    assert now("x -= 2.0") == ["x += 2.0", "x -= 1.0", "x -= 3.0"]


def test_bytes_count_not_characters():
    assert now("é = 'é' if a == b else -c") == [
        "é = 'é' if (not (a == b)) else -c",
        "é = 'é' if a != b else -c",
        "é = 'é' if a == b else c",
    ]


def test_texts_types_and_what_is_raised_are_left_alone():
    source = '''"""1 + 1"""
__all__ = ["a", 1]
Size = tuple[int, 2]
Rows = Sequence[int] | None
if TYPE_CHECKING:
    x = 1
@dataclass(frozen=True)
class A:
    """2 + 2"""
    a: Literal[1, 2]
    def f(self, n: int | None) -> int | None:
        raise UsageError("no" + f"{n + 1}", 3 if n else 4)
'''
    assert now(source) == []


def test_all_mutants_of_the_source_parse_and_have_tests():
    found = drawn(0, 10**6)
    sources = {m.file: (ROOT / m.file).read_text(encoding="utf-8") for m in found}
    assert len(found) > 2000 and len(set(found)) == len(found)
    for mutant in found[:300]:
        ast.parse(mutant.applied(sources[mutant.file]))
    for nodes in {nodes for file in {*sources, *NEAR} for nodes in near_and_area(file)}:
        assert all((ROOT / node).is_file() for node in nodes.split())
    assert set(NEAR) <= set(sources)


def test_a_seed_draws_the_same_mutants():
    assert drawn(3, 20) == drawn(3, 20) != drawn(4, 20)


def test_what_is_set_aside_is_a_mutant_of_the_source_with_a_reason():
    keys = {mutant.key for mutant in drawn(0, 10**6)}
    assert [key for key in EQUIVALENT if key not in keys] == []
    assert all(len(reason) > 20 for reason in EQUIVALENT.values())
