"""Colours of all pictures: Okabe and Ito's, told apart with every common colour blindness.

Lightness, marks and hatching differ as well, so nothing is told by colour alone.
"""

from __future__ import annotations

BLUE, ORANGE, VERMILION, GREY, LIGHT = "#0072B2", "#E69F00", "#D55E00", "#8C8C8C", "#E4E4E4"
GREEN, PURPLE, SKY = "#009E73", "#CC79A7", "#56B4E9"
INK = "#222222"
SERIES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "D"), (PURPLE, "^"), (ORANGE, "v"), (SKY, "P"), (GREY, "X"))
"""Colour and mark of the runs of a comparison, in their order."""
