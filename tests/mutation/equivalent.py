"""Mutants that cannot be told from the original, or change only what nothing depends on: looked at by hand, with the reason.

Keyed by file, the lines they touch (blanks folded) and what these become, so that they hold wherever the lines move.
random_mutants.py does not try them; test_random_mutants.py checks that each is still a mutant of the source.
"""

EQUIVALENT: dict[tuple[str, str, str], str] = {}
