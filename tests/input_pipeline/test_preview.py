"""The preview shows the very batch that training sees, and says of it what it is."""

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline import preview
from input_pipeline.augment import Augmentation
from input_pipeline.batch_pictures import as_seen, caption, rows_behind, sheet
from input_pipeline.contract import CONTRACTS, contract_by_name, normalise, pictures
from input_pipeline.order import dealt
from resnet.model.network import ResNet
from resnet.train import steps
from resnet.train.loop import open_data
from resnet.train.plan import make_plan
from tests.networks import fresh_variables
from tests.tiny import tiny_config, tiny_recipe


@pytest.mark.parametrize("name", CONTRACTS)
def test_pictures_undo_the_contract(name):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    contract = contract_by_name(name)
    np.testing.assert_array_equal(pictures(normalise(images, contract), contract), images)


@pytest.mark.parametrize(("parts", "flip", "group"), [(1, "horizontal", 1), (2, "alternating", 2)])
def test_it_is_what_the_train_step_feeds_its_network(data, parts, flip, group, monkeypatch):
    """Taken from inside the loss of the step itself."""
    config = tiny_config(data)
    config.data.mixup, config.data.erasing, config.data.hue = 0.4, 0.5, 0.2
    config.optim.label_smoothing, config.optim.accumulation, config.data.flip = 0.1, parts, flip
    config.model.ghost_batch_size = group if group > 1 else 0
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
        parts=parts, group=group, num_examples=plan.recipe.num_examples,
    )  # fmt: skip
    assert len(fed) == parts
    for (images, soft), own, target in zip(fed, dealt(found, parts, group), dealt(targets, parts, group), strict=True):
        assert np.abs(own.astype(int) - pictures(images, plan.contract)).max() <= 1  # rounding: another program
        np.testing.assert_allclose(target, soft, atol=1e-6)


def test_a_batch_is_dealt_out_in_rows_or_in_groups():
    rows = np.arange(24).reshape(12, 2)
    assert dealt(rows, 3)[..., 0].tolist() == [[0, 6, 12, 18], [2, 8, 14, 20], [4, 10, 16, 22]]
    assert dealt(rows[:, 0] // 2, 3, 2).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_the_rows_behind_some_pictures_are_themselves_and_the_last_of_their_parts():
    assert rows_behind(3, 12).tolist() == [0, 1, 2, 11]
    assert rows_behind(2, 12, 3).tolist() == [0, 1, 9, 10]
    assert rows_behind(3, 12, 3, 2).tolist() == [0, 1, 2, 7, 9]
    assert rows_behind(32, 12, 3, 2).tolist() == list(range(12))


def test_pictures_of_those_rows_alone_are_those_of_the_whole_batch():
    parts, group = 2, 3
    draw = np.random.default_rng(2)
    batch = {
        "image": draw.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8),
        "label": draw.integers(0, 3, 12).astype(np.int32),
        "index": draw.permutation(17)[:12].astype(np.int32),
    }
    mixed = Augmentation(flip="alternating", brightness=0.2, erasing=0.5, mixup=0.4)
    options = {"seed": 1, "step": 5, "num_classes": 3, "parts": parts, "group": group, "num_examples": 17}
    whole = as_seen(batch, mixed, CONTRACTS["torch"], **options)
    rows = rows_behind(4, 12, parts, group)
    given = {"image": batch["image"][rows], "label": batch["label"][rows], "index": batch["index"]}
    images, targets = as_seen(given, mixed, CONTRACTS["torch"], **options, rows=rows)
    assert len(images) == len(rows) < 12
    assert np.abs(images[:4].astype(int) - whole[0][:4]).max() <= 1  # rounding: another program
    np.testing.assert_allclose(targets[:4], whole[1][:4], atol=1e-6)


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
