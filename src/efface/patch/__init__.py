"""Edits by site: kinds, gates, the file, merging."""

from efface.patch.patch import FORMAT, Dense, Edit, Gate, Guard, LowRank, Mask, Operator, Patch, read_header

__all__ = ["FORMAT", "Dense", "Edit", "Gate", "Guard", "LowRank", "Mask", "Operator", "Patch", "read_header"]
