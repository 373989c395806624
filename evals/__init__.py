"""visrl.evals: what a number means. Splits and their sizes, scorers, judges, statistics and the paper's tables."""
