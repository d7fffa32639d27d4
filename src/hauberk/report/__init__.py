"""Reports: one HTML file that needs no network, of a run, an evaluation, a comparison or studies."""

from hauberk.report.report import make_report

__all__ = ["make_report"]
