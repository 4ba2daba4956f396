"""Boxes to training targets."""
