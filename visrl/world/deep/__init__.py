"""The deep small world: walls of posters whose signs take two looks, first the poster, then the sign on it.

walls (what is where) -> drawing (pixels); documents (rows). The model, the protocol and the figures: docs/world.md.
"""
