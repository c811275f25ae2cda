"""Shares from which on a rate says something; they stand here once, for everything that counts."""

from __future__ import annotations

__all__ = ["ERRORS_AT_MOST", "KNOWN_AT_LEAST", "SURE_AT_LEAST"]

KNOWN_AT_LEAST = 0.5
"""A target whose base rate may be lower, by its interval, is not known to the model: its rate is NA."""
SURE_AT_LEAST = 0.8
"""A target that the base draws less often is marked."""
ERRORS_AT_MOST = 0.01
"""With a larger share of failures the whole rate is ERROR."""
