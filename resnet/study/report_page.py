"""A run's report put together: every section's figures, and what is missing said in its place."""

import json
from typing import Any

import numpy as np

from input_pipeline.errors import printable
from input_pipeline.shell_words import shell_word
from resnet.study import report_figures, report_tables
from resnet.study.report_pictures import (
    A_CELL,
    Cell,
    answers,
    attempt,
    cells,
    cells_a_dot,
    confusion_picture,
    mistakes,
    open_test_images,
    shown_rows,
    thumbnails,
    with_heat,
)
from resnet.study.report_speed import speed_of
from resnet.study.report_template import render
from resnet.study.run_record import RunRecord

# Up to here the confusion matrix is a table of cells; beyond, a picture and the list of the most frequent confusions.
TABLE_CLASSES, PAIRS = 30, 60
CLASS_ROWS = 2_000


def page(run: RunRecord, *, data_dir: str = "", doctor: bool = False) -> str:
    """The whole page as HTML, at most 5 MB. Reads the data folder and a checkpoint where it can.

    data_dir: where the data are, '' for where the run had them. doctor: look them over however many they are.
    """
    figures = report_figures.curves([run], [run.folder.name])
    test = run.test
    if test and test.get("calibration"):
        figures["reliability"] = report_figures.reliability(test["calibration"])
    speed = speed_of(run)
    if speed and speed.images_per_second is not None:
        figures["speed"] = report_figures.speed(run)
    script, places = report_figures.embedded(figures)
    changed, everything = report_tables.configuration(run)
    missing: list[str] = []
    findings = attempt(missing, lambda: report_tables.doctor_findings(run, data_dir, doctor))
    pictures = picture_section(run, data_dir)
    context = {
        "title": printable(run.folder.resolve().name),
        "figures": places,
        "curve_names": [name for name, _ in report_figures.PANELS if name in places],
        "legend": [
            report_figures.Key(name, colour)
            for name, kind, colour in (
                ("training", "train", report_figures.TRAIN),
                ("validation", "val", report_figures.VAL),
            )
            if run.of_kind(kind)
        ],
        "thins": report_figures.thins([run]),
        "star": report_figures.MARK,
        "not_finite": report_tables.not_finite(run),
        "loss": report_tables.loss_name(run.config["optim.loss"]),
        "result": result(run),
        "classes": class_section(run),
        "pictures": pictures,
        "speed": speed,
        "device": f"{run.provenance.get('devices', 1)} × {run.provenance.get('device', 'unknown')}",
        "run": run,
        "doctor": findings,
        "doctor_command": f"./run.sh python -m input_pipeline.doctor {shell_word(findings.where)}" if findings else "",
        "no_doctor": missing,
        "changed": changed,
        "configuration": everything,
        "provenance": report_tables.flattened(run.provenance),
        "reproduction": reproduction(run),
    }
    return render("run.html", context, figure_script=script, data=pictures_json(run, pictures))


def result(run: RunRecord) -> dict[str, Any]:
    """The headline: how good, on what, and whether the run is done."""
    test, best = run.test, run.best_validation
    total = run.total_steps
    finished = test is not None or (total is not None and run.last_step >= total)
    return {
        "test": test,
        "rows": report_tables.result_rows(test) if test else [],
        "leaks": report_tables.leak_sentence(test) if test else "",
        "best": best,
        "finished": finished,
        "state": "finished"
        if finished
        else f"not finished: step {run.last_step:,}" + (f" of {total:,}" if total else ""),
        "no_test": no_test(run, finished),
    }


def no_test(run: RunRecord, finished: bool) -> str:
    """Why there are no figures of a test."""
    images = run.provenance.get("dataset", {}).get("images")
    if images and not images.get("test"):
        return "The run has no test split."
    if finished:
        return "The test split has not been evaluated; the same training command on this folder evaluates it."
    return "The test split is evaluated when the run is finished."


def class_section(run: RunRecord) -> dict[str, Any] | None:
    """The table of classes; None before the test."""
    test = run.test
    if not test or not test.get("confusion"):
        return None
    rows = report_tables.class_rows(run.class_names, test["confusion"], test.get("per_class_accuracy") or [])
    worst = sorted(rows, key=lambda row: (row.f1 is None, row.f1 or 0.0))
    kept = {row.index for row in worst[:CLASS_ROWS]}
    return {
        "rows": [row for row in rows if row.index in kept],
        "left_out": len(rows) - len(kept),
    }


def picture_section(run: RunRecord, data_dir: str) -> dict[str, Any]:
    """The confusion matrix with what stands behind its cells, and the surest mistakes."""
    test = run.test
    notes: list[str] = []
    section: dict[str, Any] = {
        "notes": notes,
        "thumbnails": {},
        "cells": [],
        "mistakes": [],
        "matrix": None,
        "pairs": [],
    }
    if not test or not test.get("confusion"):
        return section
    confusion = test["confusion"]
    names = [report_tables.shortened(name) for name in run.class_names]
    if len(names) <= TABLE_CLASSES:
        section["matrix"] = matrix(confusion, names)
    else:
        section["image"], section["cells_a_dot"] = confusion_picture(confusion), cells_a_dot(len(names))
        section["pairs"] = pairs(confusion, names)
    if run.predictions is None:
        notes.append(
            "No pictures: this run has no predictions.npz. The same training command on this folder writes it."
        )
        return section
    predictions, chosen = run.predictions, mistakes(run.predictions)
    section["cells"] = cells(predictions)
    section["mistakes"] = describe_mistakes(run, chosen, names)
    split = attempt(notes, lambda: open_test_images(run, data_dir))
    if split is None:
        return section
    section["thumbnails"] = thumbnails(split, shown_rows(section["cells"]))
    count = len(predictions.labels)
    if len(section["thumbnails"]) < count:
        notes.append(
            f"{len(section['thumbnails']):,} of {count:,} images are shown, at most {A_CELL} per cell, mistakes first."
        )
    heated = attempt(notes, lambda: with_heat(chosen, split, predictions, run.folder))
    section["mistakes"] = describe_mistakes(run, heated or chosen, names)
    section["heat"] = heated is not None
    return section


def matrix(confusion: list[list[int]], names: list[str]) -> list[dict[str, Any]]:
    """Rows of the table: a class' name and (count, depth of its colour, 0..1) for each predicted class."""
    rows = []
    for true, counts in enumerate(confusion):
        total = max(sum(counts), 1)
        # The root, for the eye: among hits of nine tenths a confusion of a hundredth should still be seen.
        shades = [(count, (count / total) ** 0.5) for count in counts]
        rows.append({"name": names[true], "true": true, "counts": shades})
    return rows


def pairs(confusion: list[list[int]], names: list[str]) -> list[dict[str, Any]]:
    """The most frequent confusions of a large matrix."""
    counts = np.array(confusion, np.int64)
    np.fill_diagonal(counts, 0)
    wrong = counts.ravel()
    # Of equally frequent ones the first.
    most = np.argsort(-wrong, kind="stable")[:PAIRS]
    return [
        {"true": true, "predicted": said, "count": int(counts[true, said]), "name": names[true], "said": names[said]}
        for true, said in (divmod(int(place), len(names)) for place in most if wrong[place])
    ]


def describe_mistakes(run: RunRecord, chosen: list[Any], names: list[str]) -> list[dict[str, Any]]:
    predictions = run.predictions
    assert predictions is not None
    predicted, confidence = answers(predictions)
    return [
        {
            "pictures": mistake,
            "id": report_tables.shortened(predictions.ids[mistake.row]),
            "said": names[predicted[mistake.row]],
            "confidence": float(confidence[mistake.row]),
            "true": names[predictions.labels[mistake.row]],
            "probability": float(predictions.probabilities[mistake.row, predictions.labels[mistake.row]]),
            "leaked": bool(predictions.leaked[mistake.row]),
        }
        for mistake in chosen
    ]


def pictures_json(run: RunRecord, section: dict[str, Any]) -> str:
    """What page.js shows behind the cells: {'names', 'cells': {'t,p': [rows]}, 'pictures': {row: […]}} as JSON."""
    shown = section["thumbnails"]
    if not shown or run.predictions is None:
        return "{}"
    _, confidence = answers(run.predictions)

    def behind(cell: Cell) -> dict[str, Any]:
        return {"count": len(cell.rows), "rows": [row for row in cell.rows if row in shown]}

    content = {
        "names": [report_tables.shortened(name) for name in run.class_names],
        "cells": {f"{cell.true},{cell.predicted}": behind(cell) for cell in section["cells"]},
        "pictures": {
            row: {
                "src": uri,
                "id": report_tables.shortened(run.predictions.ids[row]),
                "confidence": float(confidence[row]),
            }
            for row, uri in shown.items()
        },
    }
    return json.dumps(content, separators=(",", ":"))


def reproduction(run: RunRecord) -> dict[str, Any]:
    """The command that made the run, and whether the code it ran is a revision that can be had again."""
    revision = run.provenance.get("revision") or ""
    return {
        "command": f"./run.sh python {printable(str(run.provenance.get('command', '')))}",
        "revision": printable(str(revision).removesuffix("+changes")),
        "changed": str(revision).endswith("+changes"),
        "new_code": new_code(run),
        "report": f"./run.sh python -m resnet.study.report {shell_word(str(run.folder))}",
    }


def new_code(run: RunRecord) -> list[int]:
    """The steps behind which the run went on with other code, of what is written as continuing a run writes it."""
    stored = run.provenance.get("new_code")
    entries = [entry for entry in stored if isinstance(entry, dict)] if isinstance(stored, list) else []
    return [step for entry in entries if type(step := entry.get("after_step")) is int]
