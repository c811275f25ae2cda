"""Edits by site: kinds, gates, the file, merging."""

from efface.patch.answer import Answer
from efface.patch.edits import Dense, Edit, Gate, Guard, LowRank, Mask, Operator
from efface.patch.patch import FORMAT, Patch, read_header

__all__ = ["FORMAT", "Answer", "Dense", "Edit", "Gate", "Guard", "LowRank", "Mask", "Operator", "Patch", "read_header"]
