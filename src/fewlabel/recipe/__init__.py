"""The typed recipe: one model behind the YAML file, the command line's overrides and Python."""

from fewlabel.recipe.file import AnyRecipe, apply_override, dump_recipe, load_recipe, of_method, parse_recipe, with_root
from fewlabel.recipe.s4m import InstanceEvalSection, InstanceMethod, InstanceRecipe
from fewlabel.recipe.scalpel import Baseline, EvalSection, Method, Recipe, StudentSection
from fewlabel.recipe.sections import CommonRecipe, DataSection, Section, SplitSection

__all__ = [
    "AnyRecipe",
    "Baseline",
    "CommonRecipe",
    "DataSection",
    "EvalSection",
    "InstanceEvalSection",
    "InstanceMethod",
    "InstanceRecipe",
    "Method",
    "Recipe",
    "Section",
    "SplitSection",
    "StudentSection",
    "apply_override",
    "dump_recipe",
    "load_recipe",
    "of_method",
    "parse_recipe",
    "with_root",
]
