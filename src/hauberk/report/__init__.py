"""Reports: one HTML file that needs no network, of a run, an evaluation, a comparison or a study."""

from hauberk.report.make import make_report

__all__ = ["make_report"]
