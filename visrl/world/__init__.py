"""The small world: procedurally drawn pictures in the shape of every benchmark, and small models that learned to look.

Everything here is a function of (split, index): no file is downloaded and every machine draws the same pixels. Numbers
measured on it are numbers of the small world, never to be set beside a published one.

dice.py -> scenes.py, papers.py (what is where) -> drawing.py (pixels); language.py (words) -> documents.py (questions)
"""
