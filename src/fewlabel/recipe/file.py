"""Recipes as YAML files, with changes from the command line."""

import types
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from fewlabel.core.errors import RecipeError
from fewlabel.recipe.s4m import InstanceRecipe
from fewlabel.recipe.scalpel import Recipe, training_config
from fewlabel.recipe.sections import CommonRecipe
from fewlabel.students.detector.train import DetectorConfig
from fewlabel.students.train import StudentConfig

AnyRecipe = Recipe | InstanceRecipe
OneRecipe = TypeVar("OneRecipe", bound=CommonRecipe)
METHODS: dict[str, type[AnyRecipe]] = {"scalpel": Recipe, "s4m": InstanceRecipe}
"""The kind of recipe of each method; without a method it is scalpel's."""


def load_recipe(path: Path, overrides: tuple[str, ...] = (), *, allow_sam3: bool = False) -> AnyRecipe:
    """Read a recipe from YAML.

    Args:
        path: The YAML file.
        overrides: Changes as `section.key=value`, the value in YAML; they win over the file.
        allow_sam3: Agree to the licence of SAM 3, wherever the method keeps its SAM.

    Returns:
        The recipe, with `data.root` made absolute: relative to the file, or to the working folder in an override.

    Raises:
        RecipeError: The file is missing or is not YAML, a key does not exist, or a value is of the wrong kind.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"Recipe {path} does not exist; check the path.") from None
    except OSError as error:
        raise RecipeError(f"Recipe {path} cannot be read ({error.strerror}); give a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {path} is not valid YAML ({' '.join(str(error).split())}); mend it.") from None
    if not isinstance(values, dict):
        raise RecipeError(f"Recipe {path} holds no keys; start from one in the recipes folder.")
    for override in overrides:
        apply_override(values, override)
    if allow_sam3:
        apply_override(values, f"{'' if values.get('method') == 's4m' else 'teacher.'}allow_sam3=true")
    recipe = parse_recipe(values, str(path))
    # What is typed on the command line starts where it is typed, what is written in a file starts at the file.
    typed = {override.partition("=")[0] for override in overrides}
    recipe = with_root(recipe, (Path.cwd() if "data.root" in typed else path.parent) / recipe.data.root)
    if recipe.data.unlabelled is not None:
        further = (Path.cwd() if "data.unlabelled" in typed else path.parent) / recipe.data.unlabelled
        data = recipe.data.model_copy(update={"unlabelled": further.resolve()})
        recipe = recipe.model_copy(update={"data": data})
    if isinstance(recipe, InstanceRecipe):
        recipe = _with_starts(recipe, path.parent)
    checkpoint = path.parent / (recipe.sam if isinstance(recipe, InstanceRecipe) else recipe.teacher.sam)
    if not checkpoint.is_dir():
        return recipe
    update = {"sam": str(checkpoint.resolve())}
    if isinstance(recipe, InstanceRecipe):
        return recipe.model_copy(update=update)
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update=update)})


def _with_starts(recipe: InstanceRecipe, folder: Path) -> InstanceRecipe:
    """The recipe with absolute folders of weights to begin with, where they lie beside its file."""
    changed = {}
    for section in ("network", "smaller"):
        network = getattr(recipe, section)
        paths = {} if network is None else {key: getattr(network, key) for key in ("start", "backbone_weights")}
        beside = {
            key: str((folder / name).resolve()) for key, name in paths.items() if name and (folder / name).is_dir()
        }
        if beside:
            changed[section] = network.model_copy(update=beside)
    return recipe.model_copy(update=changed)


def of_method(recipe: AnyRecipe, kind: type[OneRecipe], what: str, instead: str = "take one") -> OneRecipe:
    """The recipe, where it is of one method.

    Args:
        recipe: Of any method.
        kind: The method's recipes.
        what: What needs that method, as the beginning of a sentence.
        instead: What to do with a recipe of another method.

    Raises:
        RecipeError: It is of another method.
    """
    if not isinstance(recipe, kind):
        wanted = next(name for name, known in METHODS.items() if known is kind)
        raise RecipeError(
            f"{what} needs a recipe of method {wanted!r}, but that of {recipe.name!r} has method {recipe.method!r};"
            f" {instead}."
        )
    return recipe


def with_root(recipe: OneRecipe, root: Path) -> OneRecipe:
    """The same recipe for the data set in another folder."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root.resolve()})})


def parse_recipe(values: dict[str, Any], where: str) -> AnyRecipe:
    """Validate a recipe's values.

    Args:
        values: Nested keys and values as YAML gives them.
        where: The file's name, for messages.

    Raises:
        RecipeError: Names the first wrong key, what it held, and what is expected.
    """
    kind = METHODS.get(str(values.get("method", "scalpel")))
    if kind is None:
        raise RecipeError(
            f"Recipe {where}: 'method' is {values['method']!r}, but the methods are {', '.join(METHODS)}; correct it."
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(first["loc"][:-1], values))
            raise RecipeError(f"Recipe {where}: key {key!r} does not exist; the keys there are {known}.") from None
        if first["type"] == "missing":
            raise RecipeError(f"Recipe {where}: key {key!r} is missing; add it.") from None
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        # A rule that binds several keys is broken by a whole section, which nobody wants to read back.
        got = "" if isinstance(first["input"], dict) else f" is {first['input']!r}, but"
        place = f"{key!r}{got or ':'} " if key else ""
        raise RecipeError(f"Recipe {where}: {place}{reason}; correct it.") from None


def _known_keys(location: tuple[int | str, ...], values: dict[str, Any]) -> list[str]:
    """Names of the fields at a place in the recipe with these values."""
    model: Any = METHODS[str(values.get("method", "scalpel"))]
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if annotation == StudentConfig | DetectorConfig:
            annotation = training_config(values["student"].get("network"))
        elif isinstance(annotation, types.UnionType):
            annotation = next(choice for choice in annotation.__args__ if choice is not type(None))
        model = annotation
    return sorted(model.model_fields)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one nested value from `section.key=value`, in place.

    Raises:
        RecipeError: The text has no `=`, its value is not YAML, or a section on the way is not one.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(
            f"Override {override!r} is not of the form section.key=value; write, say, split.fraction=0.1."
        )
    *sections, last = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise RecipeError(f"Override {override!r}: {section!r} is a value, not a section; check the key.")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"Override {override!r}: the value is not YAML; quote it.") from None


def dump_recipe(recipe: CommonRecipe) -> str:
    """The recipe as YAML that `load_recipe` reads back, with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
