"""ω: instance weights from margins and step counts, pure functions without a gradient."""

from hauberk.weighting.assign import gairat, mail, mean_one
from hauberk.weighting.margin import margin_difference, probabilistic_margin
from hauberk.weighting.summary import effective_size, summary

__all__ = ["effective_size", "gairat", "mail", "margin_difference", "mean_one", "probabilistic_margin", "summary"]
