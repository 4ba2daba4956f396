"""The plain statement of each op and formula: written to be read beside its source, and what tests compare with.

Nothing in here is fast, and nothing fast imports it.
"""
