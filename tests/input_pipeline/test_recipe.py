"""Recipes on the command line."""

import pytest
from absl import flags

from configs.default import get_config
from input_pipeline import recipe

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
    recipe.parse(values, ["train_main.py", *arguments], "", known=(key for key, _ in recipe.flatten(get_config())))
    assert values["config"].value.optim.lr == 0.3
    assert values["workdir"].value == "w"
    assert recipe.keys_given(["train_main.py", *arguments]) == {"optim.lr"}
