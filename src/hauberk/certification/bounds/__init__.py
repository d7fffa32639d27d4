"""Bounds of the values of a network on sets of inputs: intervals, CROWN, α-CROWN."""
