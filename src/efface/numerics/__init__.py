"""Formulas on plain arrays: solvers, projections, distances, intervals. Nothing here knows a model."""
