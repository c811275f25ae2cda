"""Families: one architecture a file, with everything that is special to it."""
