"""Iterative energy-based projection on a normal data manifold for anomaly localization: one small package."""

__version__ = "0.1.0"
