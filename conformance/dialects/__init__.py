"""Conventions by name: which alternatives there are, which a target follows, which reproduces a failing case.

conventions: the table. kernel, layer, rope, weights: attention computed in any dialect. probes: crafted calls; runners:
on a target and in a dialect. of_case: a case of the suite in a dialect.
detect: what a target does, convention by convention. explain: the dialect behind a failing case.
markdown: the page of all public implementations. snippets, snippet_calls, snippet_layers: its code, which needs the
library alone.
"""
