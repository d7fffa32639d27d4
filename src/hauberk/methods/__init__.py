"""Named combinations of attack, objective, weighting and weight perturbation, and what runs them in a loop."""

from hauberk.methods.make import method
from hauberk.methods.method import Method
from hauberk.methods.output import Output
from hauberk.methods.registry import METHODS, MethodSpec, equation, get_method_spec, list_methods
from hauberk.methods.step import Step

__all__ = ["METHODS", "Method", "MethodSpec", "Output", "Step", "equation", "get_method_spec", "list_methods", "method"]
