"""Ways to measure a criterion, by the name that plans write below ``measure``."""

from __future__ import annotations

from .base import Measurement
from .http import Http
from .prometheus import Prometheus
from .statement import Statement

MEASUREMENTS: dict[str, Measurement] = {
    "prometheus": Prometheus(),
    "http": Http(),
    "statement": Statement(),
}
