"""Recipes on the command line: --config=FILE, --config.key=value, and every slip in them told in one line."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from input_pipeline.errors import InputError, printable

# A configuration as `flatten` gives it: 'data.batch_size' -> 64.
Flat = dict[str, Any]


class _Prepared(flags.ArgumentParser):
    """Has what a recipe gives prepared for the flags that set its keys. reader: what makes it of the recipe's file."""

    def __init__(self, *, reader: flags.ArgumentParser, prepare: Callable[[ConfigDict], None]) -> None:
        self._reader, self._prepare = reader, prepare

    def parse(self, path: str) -> Any:
        config = self._reader.parse(path)
        if isinstance(config, ConfigDict):
            self._prepare(config)
        return config


def define(
    values: flags.FlagValues,
    arguments: list[str],
    help: str,
    prepare: Callable[[ConfigDict], None] | None = None,
) -> None:
    """Define 'config': a recipe, and with it --config.KEY for its keys, in whatever order `arguments` has them.

    prepare: called with what the recipe gives, before the flags set its keys, which must be there by then; what it
    raises as InputError, `parse` raises.
    """
    config_flags.DEFINE_config_file("config", None, help, flag_values=values, sys_argv=recipe_first(arguments))
    if prepare:
        flag = values["config"]
        flag.parser = _Prepared(reader=flag.parser, prepare=prepare)


def parse(
    values: flags.FlagValues,
    arguments: list[str],
    description: str,
    *,
    known: Iterable[str],
    also: Callable[[str], bool] = lambda key: False,
    required: Iterable[str] = ("config", "workdir"),
) -> None:
    """Read the flags into `values`, which define those of `required`, 'config' among them; --help prints and leaves.

    known: the keys that --config.KEY may name; also: whether it may name another.
    Raises InputError for an unknown flag or key, a bad value, a missing flag or a broken recipe.
    """
    if any(argument in ("-h", "--help", "-help") for argument in arguments[1:]):
        print(description)
        print(values.get_help())
        print("\nAny key of the configuration can be set: --config.optim.lr=0.1. configs/default.py explains them all.")
        sys.exit(0)
    check_keys(arguments, list(known), also)
    recipe = recipe_file(arguments)
    # FILE.py:WORD hands WORD to the recipe's get_config.
    if recipe and not os.path.isfile(recipe) and not os.path.isfile(recipe.rpartition(":")[0]):
        raise InputError(
            f"--config={printable(recipe)}: no such file; recipes are Python files such as configs/folder.py"
        )
    try:
        rest = values(recipe_first(arguments))
    except flags.Error as error:
        # absl makes an error of its own of what `prepare` raises.
        own = _raised_by_recipe(error)
        if own is not None:
            raise broken(recipe, own) from own
        if isinstance(error.__context__, InputError):
            raise error.__context__ from None
        raise InputError(f"{first_line(error)}; see --help and configs/default.py") from error
    except Exception as error:  # Any: the recipe is the user's own code.
        raise broken(recipe, error) from error
    if recipe and not isinstance(values["config"].value, ConfigDict):
        check_opened(recipe, values["config"].value)
        raise InputError(f"--config={printable(recipe)}: its get_config() does not return a ConfigDict; fix the recipe")
    if len(rest) > 1:
        raise InputError(f"{printable(rest[1])!r} is not a flag; flags look like --workdir=PATH and --config.key=value")
    for name in required:
        if values[name].value is None or values[name].value == "":
            raise InputError(f"--{name} is missing; see --help")


def _raised_by_recipe(error: flags.Error) -> BaseException | None:
    """The ValueError or TypeError of the recipe that absl's error is about; None where it is about another fault.

    config_flags makes an error of the same type of it, whose text is a traceback, and absl makes its own of that.
    """
    raised = error.__context__
    if raised is None or raised.__context__ is None or not str(error).startswith("flag --config="):
        return None
    # A type that cannot be made of a text alone, as json's, becomes a TypeError without these words.
    made_anew = str(raised).startswith("Error whilst parsing config file") or not isinstance(raised, InputError)
    return raised.__context__ if made_anew else None


def broken(recipe: str, error: BaseException) -> InputError:
    """What to tell of an error that a recipe FILE.py or FILE.py:WORD raised."""
    word = "" if os.path.isfile(recipe) else recipe.rpartition(":")[2]
    where = f"--config={printable(recipe)}"
    # Raised by the call of get_config, not inside it.
    if word and isinstance(error, TypeError) and error.__traceback__ and error.__traceback__.tb_next is None:
        return InputError(f"{where}: the recipe has no modes; omit :{printable(word)}")
    remedy = "fix the mode or the recipe" if word else "fix the recipe"
    return InputError(f"{where}: {type(error).__name__} ({first_line(error)}); {remedy}")


def check_opened(recipe: str, given: Any) -> None:
    """Raise InputError for what stands in for a recipe that raised OSError, kept by config_flags until it is read."""
    try:
        given.optim  # noqa: B018
    except OSError as error:
        raise broken(recipe, error.__cause__ or error) from error
    except AttributeError:
        pass


def flatten(config: ConfigDict) -> Flat:
    """A nested configuration as one dict, sorted: {'data.batch_size': 64, …}."""
    flat: Flat = {}
    for key in sorted(config.keys()):
        value = config[key]
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def check_keys(arguments: list[str], known: list[str], also: Callable[[str], bool]) -> None:
    """Raise InputError for --config.KEY where there is no such key (config_flags would name but its last part)."""
    for argument in arguments[1:]:
        name = argument.lstrip("-").partition("=")[0]
        key = name.removeprefix("config.")
        if argument.startswith("-") and key != name and key not in known and not also(key):
            elsewhere = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
            alike = elsewhere or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
            hint = f", did you mean --config.{alike[0]}?" if alike else ";"
            raise InputError(f"--{printable(name)}: no such key{hint} configs/default.py lists all")


def keys_given(arguments: list[str]) -> frozenset[str]:
    """The keys that flags of the form --config.KEY name, such as 'data.dir'; a recipe's own are not among them."""
    names = (argument.lstrip("-").partition("=")[0] for argument in arguments[1:] if argument.startswith("-"))
    # --noconfig.KEY is --config.KEY=False.
    return frozenset(name.partition(".")[2] for name in names if name.startswith(("config.", "noconfig.")))


def recipe_file(arguments: list[str]) -> str:
    """The file that --config=FILE or --config FILE names, '' for none."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return ""


def recipe_first(arguments: list[str]) -> list[str]:
    """The arguments with the recipe in front: config_flags can set no key before it knows whose."""
    rest = arguments[1:]
    for place, argument in enumerate(rest):
        name, equals, _ = argument.partition("=")
        if name in ("--config", "-config"):
            end = place + (1 if equals else 2)
            return [*arguments[:1], *rest[place:end], *rest[:place], *rest[end:]]
    return arguments


def first_line(error: BaseException) -> str:
    """What an error says, as one printable line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0]) if lines else "no reason given"
