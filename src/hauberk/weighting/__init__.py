"""ω: instance weights from margins and step counts, pure functions without a gradient."""

from hauberk.weighting.margins import margin_difference, probabilistic_margin
from hauberk.weighting.summary import effective_size, summary
from hauberk.weighting.weights import gairat, mail, mean_one

__all__ = ["effective_size", "gairat", "mail", "margin_difference", "mean_one", "probabilistic_margin", "summary"]
