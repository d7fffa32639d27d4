"""Named combinations of attack, objective, weighting and weight perturbation, and what runs them in a loop."""

from hauberk.methods.make import method
from hauberk.methods.method import Method
from hauberk.methods.output import Output
from hauberk.methods.registry import RECIPES, Recipe, equation, find_recipe, list_methods
from hauberk.methods.step import Step

__all__ = ["RECIPES", "Method", "Output", "Recipe", "Step", "equation", "find_recipe", "list_methods", "method"]
