"""Colours and signs of the charts: one table, valid on a light and on a dark page.

Colour never stands alone: a severity has a glyph and a word, a line its dash or its name. The five hues keep a
contrast of 3:1 on both backgrounds and stay apart under protanopia, deuteranopia and tritanopia.
"""

from dataclasses import dataclass

VERMILION, PINK, BLUE, GREEN, GREY = "#D55E00", "#CC79A7", "#0072B2", "#009E73", "#767676"
CATEGORIES = (BLUE, VERMILION, GREEN, PINK, GREY)
DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (1, 3))
VIRIDIS = ("#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#fde725")


@dataclass(frozen=True)
class Sign:
    """How a severity looks: in charts by `colour`, in Markdown by the theme's colour name `markdown`."""

    colour: str
    glyph: str
    word: str
    markdown: str


SIGNS = {
    "critical": Sign(VERMILION, "▲", "critical", "red"),
    "warning": Sign(PINK, "◆", "warning", "orange"),
    "info": Sign(BLUE, "●", "worth knowing", "blue"),
}
VERDICTS = SIGNS | {  # of a run as a whole
    "clean": Sign(GREEN, "✓", "no alarm", "green"),
    "open": Sign(GREY, "–", "not judged", "gray"),
}
