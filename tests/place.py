"""A place where commands are tried: drawn images, a recipe for them, a finished run; and what a refusal looks like."""

import dataclasses
import sys
from pathlib import Path

from tests.commands import Result, run, run_fresh
from tests.tiny import tiny_data, tiny_recipe


@dataclasses.dataclass(frozen=True)
class Place:
    """What the cases share and leave as it is: drawn images, a recipe for them, and a finished run."""

    data: Path
    recipe: Path
    trained: Path
    environment: dict[str, str]

    def command(self, *arguments: object, fresh: bool = False) -> Result:
        if fresh:
            how = [] if str(arguments[0]).endswith(".py") else ["-m"]
            result = run_fresh(sys.executable, *how, *arguments, environment=self.environment)
        else:
            result = run(*arguments, environment=self.environment)
        return dataclasses.replace(result, command=" ".join(map(str, arguments)))

    def train(self, workdir: Path, *flags: object, fresh: bool = False) -> Result:
        return self.command("train_main.py", f"--config={self.recipe}", f"--workdir={workdir}", *flags, fresh=fresh)

    def evaluate(self, checkpoint: Path, *flags: object, data: Path | None = None, fresh: bool = False) -> Result:
        flags = (f"--checkpoint={checkpoint}", f"--data={data or self.data}", *flags)
        return self.command("resnet.study.evaluate", *flags, fresh=fresh)

    def predict(self, *images: object, checkpoint: Path | None = None, fresh: bool = False) -> Result:
        flags = (f"--checkpoint={checkpoint or self.trained}", *images)
        return self.command("resnet.study.predict", *flags, fresh=fresh)


def make_place(folder: Path) -> Place:
    """Everything that a Place names, under `folder`."""
    data = tiny_data(folder)
    recipe = tiny_recipe(folder / "recipe.py", data)
    place = Place(data, recipe, folder / "trained", {"XDG_CACHE_HOME": str(folder / "cache")})
    result = place.train(place.trained)
    assert result.code == 0, result.err
    return place


def refused(result: Result, *words: str) -> None:
    """Assert exit code 2 and one line on standard error that has all the words."""
    assert result.code == 2, result
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("error: ")
    assert result.err.endswith("\n")
    for word in words:
        assert word in result.err
    assert "Traceback" not in result.out


def names(folder: Path) -> list[str]:
    """Everything below a folder, as sorted relative paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
