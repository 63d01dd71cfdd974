"""Recipes on the command line."""

import pytest
from absl import flags
from ml_collections import ConfigDict

from configs.default import get_config
from input_pipeline import recipe
from input_pipeline.errors import InputError

RECIPE = "configs/folder.py"


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--config={RECIPE}", "--workdir=w", "--config.optim.lr=0.3"],
        ["--workdir=w", "--config.optim.lr=0.3", f"--config={RECIPE}"],
        ["--config.optim.lr=0.3", "--config", RECIPE, "--workdir", "w"],
    ],
)
def test_the_recipe_may_stand_anywhere(arguments):
    values = flags.FlagValues()
    recipe.define(values, ["train_main.py", *arguments], "")
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    recipe.parse(values, ["train_main.py", *arguments], "", known=recipe.flatten(get_config()))
    assert values["config"].value.optim.lr == 0.3
    assert values["workdir"].value == "w"
    assert recipe.keys_given(["train_main.py", *arguments]) == {"optim.lr"}


def test_both_forms_of_a_boolean_flag_give_its_key():
    assert recipe.keys_given(["train_main.py", "--noconfig.optim.nesterov", "--config.run.debug", "--nothing"]) == {
        "optim.nesterov", "run.debug",
    }  # fmt: skip


def parsed(prepare) -> ConfigDict:
    """A recipe with a key set by a flag, after `prepare`."""
    values, arguments = flags.FlagValues(), ["train_main.py", f"--config={RECIPE}", "--config.optim.lr=0.3"]
    recipe.define(values, arguments, "", prepare=prepare)
    recipe.parse(values, arguments, "", known=["optim.lr"], required=["config"])
    return values["config"].value


def test_a_recipe_is_prepared_before_flags_set_its_keys():
    def prepare(config: ConfigDict) -> None:
        assert config.optim.lr != 0.3
        config.optim.momentum = 0.5

    config = parsed(prepare)
    assert (config.optim.lr, config.optim.momentum) == (0.3, 0.5)
    assert config.is_locked


def test_what_preparing_refuses_is_told_as_it_is():
    def prepare(config: ConfigDict) -> None:
        raise InputError("config.optim.lr: not today")

    with pytest.raises(InputError) as error:
        parsed(prepare)
    assert str(error.value) == "config.optim.lr: not today"


@pytest.mark.parametrize("name", ["mri", "flowers", "caltech101", "transfer", "demo", "ablations/shortcuts"])
def test_a_recipes_word_that_it_does_not_take(name):
    """Recipes that take words name all of them."""
    given = f"configs/{name}.py:foo"
    values, arguments = flags.FlagValues(), ["train_main.py", f"--config={given}"]
    recipe.define(values, arguments, "")
    with pytest.raises(InputError) as error:
        recipe.parse(values, arguments, "", known=[], required=["config"])
    if name in ("demo", "ablations/shortcuts"):
        assert str(error.value) == f"--config={given}: the recipe has no modes; omit :foo"
        return
    words = "finetune, probe" if name == "transfer" else "finetune, probe, scratch"
    assert str(error.value) == (
        f"--config={given}: ValueError ('foo' is not one of {words}); fix the mode or the recipe"
    )


@pytest.mark.parametrize("text", ["raise InputError('no')", "raise UnicodeDecodeError('utf8', b'x', 0, 1, 'no')"])
def test_what_a_recipe_raises_is_told_whatever_its_type(tmp_path, text):
    """config_flags makes a new error of the same type and a text alone, which not every type takes."""
    file = tmp_path / "mine.py"
    file.write_text(f"from input_pipeline.errors import InputError\ndef get_config():\n    {text}\n")
    values, arguments = flags.FlagValues(), ["train_main.py", f"--config={file}"]
    recipe.define(values, arguments, "")
    kind = text.removeprefix("raise ").partition("(")[0]
    with pytest.raises(InputError, match=rf"mine\.py: {kind} \(.*no\); fix the recipe"):
        recipe.parse(values, arguments, "", known=[], required=["config"])
