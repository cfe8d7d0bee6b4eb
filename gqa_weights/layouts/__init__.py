"""Layouts: how other implementations store the weights of one attention layer.

tables: one table of einops patterns for each, in `LAYOUTS`. rules: how a table is read, in both directions. pairing:
the order of a head's dimensions in the two RoPE pairings.
"""
