"""Randomised smoothing: certified L2 radii of the smoothed classifier that a network makes."""

from hauberk.certification.smoothing.certificates import SmoothedCertificates
from hauberk.certification.smoothing.certify import certify_smoothed, predict_smoothed

__all__ = ["SmoothedCertificates", "certify_smoothed", "predict_smoothed"]
