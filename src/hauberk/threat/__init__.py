"""What the adversary may do: threat models, and the sets they lay around inputs."""

from hauberk.threat.feasible_set import FeasibleSet, expand_to
from hauberk.threat.model import L0, L1, L2, Linf, ThreatModel, make_threat, threat_from_dict
from hauberk.threat.norms import NORMS, Norm
from hauberk.threat.numbers import parse_eps, parse_fraction
from hauberk.threat.union import Threat, ThreatUnion, as_threat, only_threat, read_threat, threats_of

__all__ = [
    "L0",
    "L1",
    "L2",
    "NORMS",
    "FeasibleSet",
    "Linf",
    "Norm",
    "Threat",
    "ThreatModel",
    "ThreatUnion",
    "as_threat",
    "expand_to",
    "make_threat",
    "only_threat",
    "parse_eps",
    "parse_fraction",
    "read_threat",
    "threat_from_dict",
    "threats_of",
]
