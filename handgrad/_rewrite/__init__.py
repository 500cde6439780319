"""Any JAX function with its convolutions, windows and batch norms done by our rules."""

from handgrad._rewrite.function import rewrite
from handgrad._rewrite.report import Report, Row, report

rewrite.report = report  # type: ignore[attr-defined]

__all__ = ["Report", "Row", "report", "rewrite"]
