"""Attacks: ways to bring an erased concept back, one file each. None is built yet."""
