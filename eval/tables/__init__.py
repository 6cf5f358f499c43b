"""The tables of a report: rows of scores, repetitions, differences within noise, costs."""
