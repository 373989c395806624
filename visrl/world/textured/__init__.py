"""The small world over textured and photograph-like grounds, with clutter and with things partly covered.

Layouts, questions, answers and boxes are those of the plain world; only pixels differ. grounds, marks, occlusion -> drawing;
scenery: the choice between the two worlds.
The rule of what may be covered: occlusion.py. Figures: docs/world.md.
"""
