"""Numbers of the masking rule that are needed without torch."""

#: In this share of the cells no feature is hidden by chance.
UNTOUCHED = 0.5
