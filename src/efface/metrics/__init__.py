"""Metrics: a score of each image, and cells that count all readings. One idea, one file (docs/metrics/)."""

from __future__ import annotations

from efface.metrics._metric import Metric, Scored, Specimen, presence

__all__ = ["Metric", "Scored", "Specimen", "presence"]
