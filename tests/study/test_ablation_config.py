"""Every ablation's recipe is valid, whole and documented; a slip in one is told in one line."""

import contextlib
import dataclasses
import importlib
import itertools
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import ablations
from configs.ablations.study import study as recipe_of
from configs.default import get_config as default_config
from input_pipeline.errors import InputError
from input_pipeline.recipe import flatten, keys_given, parse
from resnet.model.errors import SpecError
from resnet.model.spec import ResNetSpec
from resnet.study import ablation
from resnet.study.ablation_alike import network_of
from resnet.study.ablation_config import KEYS, Published, known_key, read_study

FOLDER = Path(ablations.__file__).parent
RECIPES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "study"))
# Not the papers' length.
SHORT = ("cifar_small", "depth_short")


def recipe(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.ablations.{name}").get_config()


def small(**changes) -> ConfigDict:
    """Two variants on the defaults, with other values for the four keys of an ablation."""
    base = default_config()
    base.data.crop = "pad"
    config = recipe_of(base, {"a": {}, "b": {"model": {"shortcut": "C"}}}, baseline="a", seeds=(0, 1))
    with config.unlocked(), config.ignore_type():
        for key, value in changes.items():
            config[key] = value
    return config


def test_the_recipes_are_found():
    promised = {"bottleneck", "depth_cifar", "orders", "shortcut_transforms", "shortcuts", *SHORT}
    assert promised <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_says_how_it_is_run(name):
    study = read_study(recipe(name))
    assert study.baseline == study.variants[0].name
    text = (FOLDER / f"{name}.py").read_text()
    assert f"--config=configs/ablations/{name}.py" in text
    assert "Result to expect:" in text
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in SHORT])
def test_the_papers_recipe_in_full(name):
    """He et al. 2015, Section 4.2: 64k iterations of 128, 0.1 divided at 32k and 48k, 1e-4, pad 4 and flip."""
    import jax.numpy as jnp

    from resnet.train.plan import schedule_settings
    from resnet.train.schedules import make_schedule

    for variant in read_study(recipe(name)).variants:
        config = variant.config
        assert (config.run.steps, config.data.batch_size, config.data.val_fraction) == (64_000, 128, 0.0)
        assert (config.data.crop, config.data.crop_padding, config.data.flip) == ("pad", 4, "horizontal")
        assert (config.optim.name, config.optim.momentum, config.optim.weight_decay) == ("sgd", 0.9, 1e-4)
        schedule = make_schedule(schedule_settings(config), 50_000 / 128, 64_000)
        rates = [float(schedule(jnp.asarray(step))) for step in (0, 400, 31_999, 32_000, 47_999, 48_000, 63_999)]
        warm = "110" in str(config.model.name)
        # rel: the warm-up's float32 arithmetic subtracts rates 400 times as large as its first.
        assert rates == pytest.approx([0.1 / 400 if warm else 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-4)


def test_the_order_of_a_recipe_is_that_of_the_table():
    names = [variant.name for variant in read_study(recipe("depth_cifar")).variants]
    assert names == [f"{kind}{depth}" for kind in ("resnet", "plain") for depth in (20, 32, 44, 56, 110)]


def test_published_figures_stand_beside_their_variants():
    published = {variant.name: variant.published for variant in read_study(recipe("orders")).variants}
    assert published["full_preactivation"] == Published(6.37, "He et al. 2016, Table 2")
    assert [entry.error for entry in published.values()] == [6.61, 8.17, 7.84, 6.71, 6.37]


def test_a_variant_is_the_base_with_its_changes():
    one, other = read_study(small()).variants
    assert (one.config.model.shortcut, other.config.model.shortcut) == (None, "C")
    assert (one.changes, other.changes) == ((), ("model.shortcut=C",))
    assert not set(KEYS) & set(other.config)
    assert other.config.optim == one.config.optim


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": ()}, ("config.seeds",)),
        ({"seeds": (0, 1, 0)}, ("config.seeds", "0 twice")),
        ({"seeds": (0, -1)}, ("config.seeds",)),
        ({"seeds": (0, 1.5)}, ("config.seeds",)),
        ({"seeds": ("0,1",)}, ("config.seeds", '"--config.seeds=(0,1,2)"')),
        ({"seeds": tuple(range(65))}, ("config.seeds", "64")),
        ({"baseline": "c"}, ("config.baseline='c'", "a, b")),
        ({"variants": ConfigDict()}, ("config.variants is empty",)),
        ({"variants": 3}, ("config.variants",)),
        ({"paper": ConfigDict({"c": {"error": 1.0, "source": "x"}})}, ("config.paper.c", "a, b")),
        ({"paper": ConfigDict({"a": {"error": 1.0}})}, ("config.paper.a",)),
        ({"paper": ConfigDict({"a": {"error": True, "source": "x"}})}, ("config.paper.a.error=True", "number")),
        ({"paper": ConfigDict({"a": {"error": (1, 2), "source": "x"}})}, ("config.paper.a.error=(1, 2)", "number")),
        ({"paper": ConfigDict({"a": {"error": float("nan"), "source": "x"}})}, ("config.paper.a.error=nan", "number")),
        ({"variants": ConfigDict({"a": {}, "x/y": {}})}, ("x/y", "name")),
        ({"variants": ConfigDict({"a": {}, "A": {"model": {"shortcut": "C"}}})}, ("A and a", "more than case")),
        ({"variants": ConfigDict({"a": {}, "b": {}})}, ("a and b", "the same run")),
        ({"variants": ConfigDict({"a": {"model": {"shorcut": "C"}}})}, ("variants.a.model.shorcut", "no such key")),
        ({"variants": ConfigDict({"a": {"data": {"flip": "none"}}})}, ("variants.a.data", "model and optim")),
        ({"variants": ConfigDict({"a": {"optim": {"lr": "fast"}}})}, ("variants.a.optim.lr=fast", "type")),
        ({"variants": ConfigDict({"a": {"model": {"shortcut": "E"}}})}, ("variant a: shortcut='E'",)),
        (
            {"variants": ConfigDict({"a": {"optim": {"beta1": 0.5}}})},
            ("variant a: config.optim.beta1", "has no effect"),
        ),
        ({"more": 1}, ("unknown key config.more",)),
    ],
)
def test_a_slip_is_told_in_one_line(changes, words):
    with pytest.raises(InputError) as error:
        read_study(small(**changes))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("run", "seed", 3),
        ("run", "best_metric", "loss"),
        ("run", "early_stopping", 2),
        ("run", "keep", 5),
        ("run", "steps_per_call", 98),
        ("run", "mesh", "data=1"),
        ("run", "hang_timeout", 0.0),
        ("run", "writers", ("wandb",)),
        ("run", "profile", "2:4"),
        ("run", "debug", True),
        ("data", "feed", "stream"),
        ("data", "crop", "random_resized"),
    ],
)
def test_a_key_that_an_ablation_does_not_read_is_refused(section, key, value):
    config = small()
    config[section][key] = value
    with pytest.raises(InputError, match=f"config.{section}.{key}="):
        read_study(config)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("cifar_resnet20", {}, {"shortcut": "A"}),
        ("resnet50", {"shortcut": "B"}, {}),
        ("resnet50", {}, {"stage_sizes": (3, 4, 6, 3), "stride_place": "3x3"}),
        ("resnet50", {"name": "resnet50_v1"}, {"stride_place": "first_1x1"}),
        ("resnet50", {"num_classes": 10}, {}),
        # One stage of basic blocks changes no shape.
        ("cifar_resnet20", {"stage_sizes": (1,)}, {"stage_sizes": (1,), "shortcut": "D"}),
        ("resnet50", {"stage_sizes": (1, 1)}, {"stage_sizes": (1, 1), "shortcut_transform": "scale"}),
    ],
)
def test_variants_that_are_the_same_by_a_default_are_refused(name, one, other):
    config = small(variants=ConfigDict({"one": {"model": one}, "other": {"model": other}}), baseline="one")
    config.model.name = name
    with pytest.raises(InputError, match="variants one and other are the same run; remove one of them"):
        read_study(config)


def test_a_key_that_makes_one_network_of_two_is_named():
    config = recipe("depth_cifar")
    config.model.stage_sizes = (1, 1, 1)
    with pytest.raises(InputError) as error:
        read_study(config, ["model.stage_sizes"])
    assert str(error.value) == (
        "variants resnet20 and resnet32 are the same run; config.model.stage_sizes=(1, 1, 1) overrides everything in "
        "which cifar_resnet20 and cifar_resnet32 differ; omit that key, or set it for one of them: "
        "--config.variants.NAME.model.stage_sizes"
    )


def test_variants_of_one_network_may_differ_in_how_they_learn():
    variants = ConfigDict({"one": {}, "other": {"model": {"shortcut": "B"}, "optim": {"lr": 0.2}}})
    assert len(read_study(small(variants=variants, baseline="one")).variants) == 2


SHORTCUTS = ("none", "A", "B", "C", "D")
TRANSFORMS = ("identity", "scale", "exclusive_gate", "conv1x1", "dropout")


@pytest.mark.parametrize("changes", [
    {"block": "basic", "stage_sizes": (1,)},
    {"block": "basic", "stage_sizes": (2, 1), "stride_block": "last", "order": "full_preactivation"},
    {"block": "bottleneck", "stage_sizes": (1, 1)},
])  # fmt: skip
def test_networks_are_equal_where_their_programs_are(changes):
    """Whatever the shortcut, its transform and the place of the stride."""
    import jax
    import jax.numpy as jnp

    from resnet.model.network import ResNet

    def program(spec: ResNetSpec) -> str:
        network = ResNet(spec, backend=jax.lax.conv_general_dilated)
        start = lambda key: network.init_with_output(  # noqa: E731
            {"params": key, "dropout": key}, jnp.zeros((1, 8, 8, 3)), train=True
        )
        return str(jax.make_jaxpr(start)(jax.random.key(0)))

    specs = []
    for shortcut, transform in itertools.product(SHORTCUTS, TRANSFORMS):
        with contextlib.suppress(SpecError):
            specs.append(ResNetSpec(width=4, stem="cifar", shortcut=shortcut, shortcut_transform=transform, **changes))
    if changes["block"] == "bottleneck":
        specs += [dataclasses.replace(spec, stride_place="first_1x1") for spec in specs]
    programs = [program(spec) for spec in specs]
    networks = [network_of(spec) for spec in specs]
    equal = 0
    for one, other in itertools.combinations(range(len(specs)), 2):
        same = programs[one] == programs[other]
        assert (networks[one] == networks[other]) == same, (specs[one], specs[other])
        equal += same
    assert equal


def test_a_key_that_is_not_read_says_what_does_instead():
    config = small()
    config.run.steps_per_call = 98
    with pytest.raises(InputError) as error:
        read_study(config)
    assert str(error.value) == (
        "variant a: config.run.steps_per_call=98 has no effect in an ablation: use --steps_per_dispatch"
    )


FLAGGED = """
from configs.ablations.study import paper_recipe, study

def get_config():
    changes = {"bare": {}, "b": {"model": {"shortcut": "B"}, "optim": {"lr": 1}}, "x-1": {"model": {"shortcut": "C"}}}
    return study(paper_recipe(), changes, baseline="bare")
"""


def flagged(folder: Path, *arguments: str, text: str = FLAGGED) -> dict[str, tuple[str, ...]]:
    """The changes of each variant of a recipe under these flags."""
    (folder / "recipe.py").write_text(text)
    given = ["ablation", f"--config={folder / 'recipe.py'}", "--workdir=x", *arguments]
    values = ablation.make_flags(given)
    known = flatten(default_config())
    parse(values, given, "", known=[*known, *KEYS], also=known_key)
    return {variant.name: variant.changes for variant in read_study(values["config"].value, keys_given(given)).variants}


@pytest.mark.parametrize(
    ("arguments", "name", "changes"),
    [
        (["--config.variants.bare.optim.lr=0.2"], "bare", ("optim.lr=0.2",)),
        (["--config.variants.bare.optim.lr", "3"], "bare", ("optim.lr=3.0",)),
        (["--config.variants.bare.model.shortcut=D"], "bare", ("model.shortcut=D",)),
        (["--config.variants.bare.model.stage_sizes=(1,1,1)"], "bare", ("model.stage_sizes=(1, 1, 1)",)),
        (["--config.variants.bare.optim.nesterov"], "bare", ("optim.nesterov=True",)),
        (["--noconfig.variants.bare.optim.nesterov"], "bare", ("optim.nesterov=False",)),
        (["--config.variants.bare.optim={'lr': 0.2}"], "bare", ("optim.lr=0.2",)),
        (
            ["--config.variants.bare.optim.lr=0.2", "--config.variants.bare.model.width=8"],
            "bare",
            ("model.width=8", "optim.lr=0.2"),
        ),
        (["--config.variants.b.optim.momentum=0.5"], "b", ("model.shortcut=B", "optim.lr=1", "optim.momentum=0.5")),
        # The recipe has a whole number there; a rate is read as the default's type all the same.
        (["--config.variants.b.optim.lr=0.5"], "b", ("model.shortcut=B", "optim.lr=0.5")),
    ],
)
def test_a_flag_sets_any_key_of_a_variant(tmp_path, arguments, name, changes):
    found, before = flagged(tmp_path, *arguments), flagged(tmp_path)
    assert sorted(found[name]) == list(changes)
    assert {other: found[other] for other in found if other != name} == {
        other: before[other] for other in before if other != name
    }


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("variants.bear.optim.lr=0.2", "variants.bear.optim.lr: no such variant; choose from bare, b, x-1"),
        ("variants.bare.optim.lrr=0.2", "variants.bare.optim.lrr: no such key; configs/default.py lists all of optim"),
        ("variants.bare.data.flip=none", "variants.bare.data.flip: a variant changes only keys of model and optim"),
        ("variants.bare.optim.lr.x=1", "variants.bare.optim.lr.x: the recipe has no such key; write it there"),
        ("variants.x-1.optim.lr=1", "variants.x-1.optim.lr: a flag can set only names of letters, digits and _, "),
        ("paper.bare.error=1.0", "paper.bare.error: the recipe has no such key; write it there"),
    ],
)
def test_a_flag_for_a_key_that_cannot_be_is_told_in_one_line(tmp_path, flag, words):
    with pytest.raises(InputError) as error:
        flagged(tmp_path, f"--config.{flag}")
    assert str(error.value).startswith(f"--config.{words}")
    assert "\n" not in str(error.value)


def test_a_flag_that_every_variant_overrides_is_refused(tmp_path):
    whole = FLAGGED.replace('"bare": {}', '"bare": {"model": {"shortcut": "A"}}')
    for value in ("D", "nonsense"):
        with pytest.raises(InputError) as error:
            flagged(tmp_path, f"--config.model.shortcut={value}", text=whole)
        assert str(error.value) == (
            "--config.model.shortcut has no effect: every variant sets its own; set "
            "--config.variants.NAME.model.shortcut"
        )
    # One of the variants has no word of it.
    flagged(tmp_path, "--config.model.shortcut=D")
    flagged(tmp_path, "--config.optim.lr=0.2", text=whole)


def test_an_ordinary_recipe_is_no_ablation():
    with pytest.raises(InputError, match=r"config\.seeds is missing"):
        read_study(default_config())
