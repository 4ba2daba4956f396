"""The plain statement of each op and formula, written to be read beside its source. Tests compare the ops with it.

Nothing in here is fast, and nothing fast imports it.
"""
