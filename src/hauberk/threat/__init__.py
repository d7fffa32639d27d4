"""What the adversary may do: threat models, and the sets they lay around inputs."""

from hauberk.threat.feasible_set import FeasibleSet, expand_to
from hauberk.threat.model import L1, L2, Linf, ThreatModel, make_threat, threat_from_dict
from hauberk.threat.norms import NORMS, Norm
from hauberk.threat.parse import Bound, Epsilon, parse_eps, parse_fraction

__all__ = [
    "L1",
    "L2",
    "NORMS",
    "Bound",
    "Epsilon",
    "FeasibleSet",
    "Linf",
    "Norm",
    "ThreatModel",
    "expand_to",
    "make_threat",
    "parse_eps",
    "parse_fraction",
    "threat_from_dict",
]
