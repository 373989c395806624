"""Mutants that cannot be told from the original, or change only what nothing depends on: looked at by hand, with the reason.

Keyed by file, the lines they touch (blanks folded) and what these become, so that they hold wherever the lines move.
random_mutants.py does not try them; test_random_mutants.py checks that each is still a mutant of the source.
"""

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "evals/scorers/mmbench.py",
        "return np.divide(sums[..., 0], sums[..., 1], out=np.full_like(sums[..., 0], np.nan), where=sums[..., 1] > 0)",
        "return np.divide(sums[..., 0], sums[..., 1], out=np.full_like(sums[..., 1], np.nan), where=sums[..., 1] > 0)",
    ): "both columns have the same shape and type, and full_like takes nothing else of them",
    (
        "evals/scorers/letters.py",
        "return worded.FURTHER_BEFORE.search(text[max(0, start - 24) : start]) is not None",
        "return worded.FURTHER_BEFORE.search(text[max(0, start - 23) : start]) is not None",
    ): "the pattern and the character it looks back at are at most 19 long",
    (
        "evals/scorers/letters.py",
        "return worded.FURTHER_BEFORE.search(text[max(0, start - 24) : start]) is not None",
        "return worded.FURTHER_BEFORE.search(text[max(0, start - 25) : start]) is not None",
    ): "the pattern and the character it looks back at are at most 19 long",
    (
        "evals/compare.py",
        "before, after = (np.array([_counts(run[i]) for i in rows], dtype=np.float64).reshape(-1, 3) for run in (a, b))",
        "before, after = (np.array([_counts(run[i]) for i in rows], dtype=np.float64).reshape(-2, 3) for run in (a, b))",
    ): "numpy takes any negative size for the one to be found",
    (
        "evals/baselines.py",
        "write_atomically(path, _HEADER + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))",
        "write_atomically(path, _HEADER + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=121))",
    ): "where YAML folds a line: it reads back as the same value",
    (
        "evals/baselines.py",
        "write_atomically(path, _HEADER + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))",
        "write_atomically(path, _HEADER + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=119))",
    ): "where YAML folds a line: it reads back as the same value",
    (
        "evals/scorers/rec.py",
        "found = np.array([_pixels(episode.box) for _, _, episode in boxed], dtype=np.float64).reshape(-1, 4)",
        "found = np.array([_pixels(episode.box) for _, _, episode in boxed], dtype=np.float64).reshape(-2, 4)",
    ): "numpy takes any negative size for the one to be found",
    (
        "evals/scorers/rec.py",
        "gold = np.array([_pixels(sample.box) for _, sample, _ in boxed], dtype=np.float64).reshape(-1, 4)",
        "gold = np.array([_pixels(sample.box) for _, sample, _ in boxed], dtype=np.float64).reshape(-2, 4)",
    ): "numpy takes any negative size for the one to be found",
    (
        "evals/scorers/measure.py",
        "_CHUNK = 1000 # samples a scorer has in hand: enough for numpy and for the requests of a judge",
        "_CHUNK = 999 # samples a scorer has in hand: enough for numpy and for the requests of a judge",
    ): "how many are in hand at a time: the scores are the same",
    (
        "evals/scorers/measure.py",
        "_CHUNK = 1000 # samples a scorer has in hand: enough for numpy and for the requests of a judge",
        "_CHUNK = 1001 # samples a scorer has in hand: enough for numpy and for the requests of a judge",
    ): "how many are in hand at a time: the scores are the same",
    (
        "evals/scorers/option_texts.py",
        "return any(_equal(own, said[i : i + len(own)]) for i in range(len(said) - len(own) + 1))",
        "return any(_equal(own, said[i : i + len(own)]) for i in range(len(said) - len(own) + 2))",
    ): "one place more, where too few words are left to be equal: no option without words comes here",
    (
        "visrl/train/pairs/diversity.py",
        "assert isinstance(first, BoxProposal) and isinstance(second, BoxProposal)",
        "assert isinstance(first, BoxProposal) or isinstance(second, BoxProposal)",
    ): "for the type checker: what is Unparsed was returned above",
    (
        "visrl/train/critics/critics.py",
        "for q, f in zip(questions, first, strict=True)",
        "for q, f in zip(questions, first, strict=False)",
    ): "``first`` is made from ``questions``, so they are of one length",
    (
        "visrl/train/critics/critics.py",
        "ahead = iter(self._judged([r for r, f in zip(asked, first, strict=True) if f]))",
        "ahead = iter(self._judged([r for r, f in zip(asked, first, strict=False) if f]))",
    ): "both are made from ``questions``, so they are of one length",
    (
        "visrl/train/critics/critics.py",
        "behind = iter(self._judged([r for r, f in zip(asked, first, strict=True) if not f]))",
        "behind = iter(self._judged([r for r, f in zip(asked, first, strict=False) if not f]))",
    ): "both are made from ``questions``, so they are of one length",
}
