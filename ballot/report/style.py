"""What all figures share: colours, how much is drawn, and how axes look.

Colours are Okabe and Ito's (2008), which most colour-blind people can tell apart; INK and LINE are
replaced by the page's own in the dark.
"""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]

BLUE, ORANGE, GREEN, RED, SKY, PINK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
)
GREY, INK, LINE = "#8a8f98", "#1b1f24", "#d8dce2"
LIGHT = "#ffffff"
PALETTE = (BLUE, ORANGE, GREEN, RED, PINK)  # of the best trials
FIRST = len(PALETTE)  # trials whose curves have colours of their own
MOST_POINTS = 100  # of one curve
MOST_IN_ALL = 2400  # of all curves in grey, but not below 8 each
MOST_CURVES = 300
MOST_DRAWN = 1000  # trials in any other figure: a browser draws each as an element of the page
MOST_CELLS = 30  # classes whose confusion can be read in a square
MOST_AXES = 8
MOST_CLASSES = 60

CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "background": None,
    "aria": False,  # words for each of thousands of marks help nobody; the page names the figure
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": LINE,
        "domainColor": LINE,
        "tickColor": LINE,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": 500,
        "labelLimit": 180,
        "labelSeparation": 6,
    },
    "legend": {
        "labelColor": INK,
        "titleColor": INK,
        "orient": "bottom",
        "columns": 3,
        "labelLimit": 160,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "title": None,
    },
    "range": {"category": [BLUE, ORANGE, GREEN, RED, PINK, SKY]},
}
