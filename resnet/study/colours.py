"""The colours by which runs and variants are told apart in the pages and figures of a study."""

# Seven hues, each of a contrast of at least 3:1 (WCAG 2.2, success criterion 1.4.11) on the light and the dark page,
# and at least 20 apart in CIELAB to common vision and to protanopia, deuteranopia and tritanopia (Machado et al. 2009).
RUNS = ("#4154ff", "#d2805b", "#19a78d", "#f73bd6", "#866216", "#35717d", "#8b9e03")
# Where there is one run: its training, its validation, and what is marked in it.
TRAIN, VAL, MARK = "#8492a4", "#3b82c4", "#cf7a25"
# On white alone.
BLACK = "#000000"
