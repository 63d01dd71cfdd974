"""The preview shows the very batch that training sees, and says of it what it is."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline import preview
from input_pipeline.contract import CONTRACTS, contract_by_name, normalise, pictures
from input_pipeline.seen import as_seen, caption, sheet
from resnet.model.network import ResNet
from resnet.train import steps
from resnet.train.loop import open_data
from resnet.train.plan import make_plan
from tests.networks import fresh_variables
from tests.tiny import tiny_config, tiny_data, tiny_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("preview"))


@pytest.mark.parametrize("name", CONTRACTS)
def test_pictures_undo_the_contract(name):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    contract = contract_by_name(name)
    np.testing.assert_array_equal(pictures(normalise(images, contract), contract), images)


@pytest.mark.parametrize(("parts", "flip"), [(1, "horizontal"), (2, "alternating")])
def test_it_is_what_the_train_step_feeds_its_network(data, parts, flip, monkeypatch):
    """Taken from inside the loss of the step itself."""
    config = tiny_config(data)
    config.data.mixup, config.data.erasing, config.data.hue = 0.4, 0.5, 0.2
    config.optim.label_smoothing, config.optim.accumulation, config.data.flip = 0.1, parts, flip
    plan = make_plan(config, open_data(config))
    fed = []
    augment = steps.augment

    def watched(*arguments):
        images, targets = augment(*arguments)
        jax.debug.callback(lambda *both: fed.append(jax.tree.map(np.asarray, both)), images, targets, ordered=True)
        return images, targets

    monkeypatch.setattr(steps, "augment", watched)
    spec = plan.network.spec
    step = steps.make_train_step(ResNet(spec), plan.stages[0].optimizer, plan.recipe)
    variables = fresh_variables(spec, 16)
    state = steps_state(variables, plan)
    draw = np.random.default_rng(1)
    batch = {
        "image": draw.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8),
        "label": draw.integers(0, spec.num_classes, 8).astype(np.int32),
        "mask": np.ones(8, np.float32),
        "index": draw.integers(0, plan.recipe.num_examples, 8).astype(np.int32),
    }
    jax.block_until_ready(jax.jit(step)(state, batch))
    jax.effects_barrier()
    found, targets = as_seen(
        batch, plan.recipe.augmentation, plan.contract, seed=config.run.seed, step=3, num_classes=spec.num_classes,
        parts=parts, num_examples=plan.recipe.num_examples,
    )  # fmt: skip
    assert len(fed) == parts
    for part, (images, soft) in enumerate(fed):
        difference = found[part::parts].astype(int) - pictures(images, plan.contract)
        assert np.abs(difference).max() <= 1  # rounding: another program
        np.testing.assert_allclose(targets[part::parts], soft, atol=1e-6)


def steps_state(variables, plan):
    """A state that three steps were done of."""
    import dataclasses

    import jax.numpy as jnp

    from resnet.train.state import create_state

    names = steps.sum_names(plan.network.spec.num_classes)
    state = create_state(jax.tree.map(jnp.asarray, variables), plan.stages[0].optimizer, ema=False, sum_names=names)
    return dataclasses.replace(state, step=state.step + 3)


def test_the_command_writes_the_batch_of_the_recipe(data, tmp_path, capsys):
    file, out = tiny_recipe(tmp_path / "recipe.py", data), tmp_path / "batch.png"
    arguments = ["preview", f"--config={file}", f"--out={out}", "--step=2", "--images=6", "--config.data.cutmix=1.0"]
    assert preview.main(arguments) == 0
    assert capsys.readouterr().out == f"{out}: 6 images\n"
    picture = np.asarray(Image.open(out))
    assert picture.ndim == 3
    before = out.read_bytes()
    assert preview.main(arguments) == 0
    assert out.read_bytes() == before
    assert preview.main([*arguments[:3], "--step=3", *arguments[4:]]) == 0
    assert out.read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch.png", "recipe.py"]


def test_captions_are_labels_or_shares():
    names = ["oak", "beech", "a very long name of a tree"]
    assert caption(np.array([0, 1, 0.0]), names, 20) == ["beech"]
    assert caption(np.array([0.3, 0.7, 0.0]), names, 20) == ["beech 70%", "oak 30%"]
    assert caption(np.array([0.02, 0.02, 0.96]), names, 12) == ["a very… 96%"]
    assert caption(np.full(3, 1 / 3), names, 40)[-1] == "a very long name of a tree 33%"
    many = np.full(1000, 0.001)
    assert len(caption(many, [f"class {i}" for i in range(1000)], 20)) == 1


def test_a_sheet_holds_every_picture_unchanged():
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    page = sheet(images, np.eye(5, dtype=np.float32), list("abcde"), "the title")
    factor = 7
    for image in images:
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(page[..., 0], (1, 16 * factor))[:, :, 0]
        top, left = np.argwhere((windows == enlarged[0, :, 0]).all(axis=-1))[0]
        np.testing.assert_array_equal(page[top : top + 16 * factor, left : left + 16 * factor], enlarged)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (["--config.data.mixupp=1"], "did you mean --config.data.mixup?"),
        (["--config.data.hue=0.9"], "hue must be between 0 and 0.5"),
        (["--config.data.batch_size=10000"], "batch_size=10000 is larger"),
        (["--out=absent/x.png"], "name a file in a folder that exists"),
        (["--step=-1"], "step"),
        (["--config.optim.accumulation=3"], "config.optim.accumulation=3 does not divide config.data.batch_size=8"),
        (
            ["--config.data.mixup=1.0", "--config.optim.accumulation=8"],
            "config.data.mixup=1.0 would mix each image",
        ),
        (["--config.model.ghost_batch_size=3"], "config.model.ghost_batch_size=3 does not divide the 8 images"),
        (["--config.model.ghost_batch_size=-1"], "config.model.ghost_batch_size=-1 must be a number of images"),
        (["--config.data.crop_scale=wide"], "config.data.crop_scale=('wide',) must look like"),
        (["--config.data.crop=wild"], "config.data.crop='wild' is not one of random_resized, pad, none"),
        (["--config.data.image_size=0"], "config.data.image_size=0 must lie between 1 and 4096"),
    ],
)
def test_a_slip_is_one_line(data, tmp_path, capsys, extra, word):
    file = tiny_recipe(tmp_path / "recipe.py", data)
    assert preview.main(["preview", f"--config={file}", f"--out={tmp_path / 'x.png'}", *extra]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert len(said.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.py"]


def test_missing_flags_and_rooms_are_told(tmp_path, capsys):
    assert preview.main(["preview", "--config=configs/demo.py"]) == 2
    assert "--out is missing" in capsys.readouterr().err
    (tmp_path / "recipe.py").write_text(
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n"
    )
    assert preview.main(["preview", f"--config={tmp_path / 'recipe.py'}", f"--out={tmp_path / 'x.png'}"]) == 2
    assert "name the recipe of a run" in capsys.readouterr().err
