"""Every hyper-parameter is documented, bounded and fingerprinted; the article's recipe is the article's."""

import dataclasses
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeproj.config import DESCENTS, PRESETS, Config, parse_settings

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
NUMERIC = [name for name, field in FIELDS.items() if field.metadata["low"] is not None]
WHOLE = [name for name in NUMERIC if FIELDS[name].type is int]
GROUPS = {field.metadata["group"] for field in FIELDS.values()}


def other_values(name: str) -> dict[str, object]:
    """A valid change of one field (with `epochs`, of the field it excludes)."""
    value, choices = getattr(Config(), name), FIELDS[name].metadata["choices"] or (True, False)
    if name == "widths":
        return {name: "16-32-64"}
    if FIELDS[name].type in (bool, str):
        return {name: next(choice for choice in choices if choice != value)}
    known = {"image_size": 256, "crop_size": 64, "stride": 32, "synthgrid_fraction": 0.5}
    return {name: known.get(name, value * 2 if value else 1)} | ({"steps": 0} if name == "epochs" else {})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_and_is_read_in_full(preset):
    config = Config.from_preset(preset)
    assert dataclasses.asdict(config) == dataclasses.asdict(Config()) | PRESETS[preset]


def test_blog_is_the_articles_recipe():
    config = dataclasses.asdict(Config.from_preset("blog"))
    recipe = {
        "image_size": 512, "crop_size": 128, "flip": True, "rotation": False,
        "widths": "32-64-128", "hidden": 1024, "latent_dim": 512, "beta": 1.0,
        "steps": 0, "epochs": 500, "batch_size": 256, "learning_rate": 5e-4, "schedule": "constant", "seed": 42,
        "descent": "article", "alpha": 0.05, "lam": 1.0, "iterations": 1 + 15,
    }  # fmt: skip
    assert {name: config[name] for name in recipe} == recipe


def test_a_whole_number_is_welcome_where_a_fraction_is_meant():
    assert Config(alpha=1) == Config(alpha=1.0)
    assert type(Config(alpha=1).alpha) is float
    assert Config(alpha=1).fingerprint() == Config(alpha=1.0).fingerprint()


@given(st.data())
def test_a_value_out_of_range_is_refused(refuses, data):
    name = data.draw(st.sampled_from(NUMERIC))
    low, high = FIELDS[name].metadata["low"], FIELDS[name].metadata["high"]
    if name in WHOLE:
        value = data.draw(st.integers(max_value=low - 1) | st.integers(min_value=high + 1))
    else:
        below, above = st.floats(max_value=low, exclude_max=True), st.floats(min_value=high, exclude_min=True)
        value = data.draw(below | above | st.just(float("nan")))
    with refuses(name, f"{low:g}", f"{high:g}"):
        Config(**{name: value})


@given(st.data())
def test_a_value_of_another_type_is_refused(refuses, data):
    name = data.draw(st.sampled_from(list(FIELDS)))
    values = {
        bool: st.sampled_from([0, 1, "true", 1.0, None]),
        int: st.sampled_from([True, 1.0, "1", None, [1]]),
        float: st.sampled_from([True, "0.5", None, (0.5,)]),
        str: st.sampled_from([1, True, None, b"full"]),
    }
    with refuses(name):
        Config(**{name: data.draw(values[FIELDS[name].type])})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crop_size": 100}, ["crop_size", "multiple of 8"]),
        ({"crop_size": 40, "stride": 40, "widths": "8-8-8-8"}, ["crop_size", "8-8-8-8", "multiple of 16"]),
        ({"image_size": 64, "crop_size": 128}, ["crop_size", "image_size"]),
        ({"crop_size": 32, "stride": 33}, ["stride", "32"]),
    ],
)
def test_values_that_do_not_fit_one_another_are_refused(refuses, values, words):
    with refuses(*words):
        Config(**values)


@given(st.integers(2, 6), st.integers(1, 40))
def test_a_crop_is_halved_once_for_each_width(refuses, number, part):
    widths, crop = "-".join(["8"] * number), 8 * part
    fits = crop % 2**number == 0
    with nullcontext() if fits else refuses("crop_size", crop, f"multiple of {2**number}"):
        assert Config(crop_size=crop, stride=1, widths=widths).crop_size == crop


@pytest.mark.parametrize("widths", ["", "32", "32-", "-32-64", "32--64", "0-8", "08-8", "32-x", "32 64", "3.5-8", "32-64\n"])
def test_widths_that_are_no_numbers_of_channels_are_refused(refuses, widths):
    with refuses("widths", repr(widths), "32-64-128"):
        Config(widths=widths)


def test_a_stride_as_wide_as_the_crop_and_a_crop_as_wide_as_the_image_fit():
    Config(image_size=32, crop_size=32, stride=32, rotation=False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", {}),
        ("alpha=0.2", {"alpha": 0.2}),
        ("alpha=0.2,iterations=50", {"alpha": 0.2, "iterations": 50}),
        ("  alpha=2e-1 ,  rotation=False  ", {"alpha": 0.2, "rotation": False}),
        ("flip=TRUE descent=paper widths=16-32 seed=7", {"flip": True, "descent": "paper", "widths": "16-32", "seed": 7}),
        ("alpha=1 alpha=2", {"alpha": 2.0}),
    ],
)
def test_settings_are_read(settings, expected):
    values = parse_settings(settings)
    assert values == expected
    assert [type(v) for v in values.values()] == [type(v) for v in expected.values()]


@given(st.data())
def test_any_value_in_range_is_kept_as_it_is_and_reads_back_written_out(data):
    name = data.draw(st.sampled_from(list(FIELDS)))
    meta, kind = FIELDS[name].metadata, FIELDS[name].type
    values = {
        bool: st.booleans(),
        str: st.sampled_from(meta["choices"] or ["16-32", "32-64-128", "8-8-8-8-8"]),
        int: st.integers(meta["low"], meta["high"]) if name in WHOLE else st.nothing(),
    }
    value = data.draw(values[kind] if kind in values else st.floats(meta["low"], meta["high"]))
    assert parse_settings(f"{name}={value}") == {name: value}
    if name not in ("steps", "epochs", "image_size", "crop_size", "stride"):  # which must also fit one another
        assert getattr(Config(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("preset", "settings", "words"),
    [
        ("slow", "", ["'slow'", *PRESETS]),
        ("quick", "alhpa=0.2", ["'alhpa'", *FIELDS]),
        ("quick", "alpha=big", ["alpha", "'big'"]),
        ("quick", "iterations=0.5", ["iterations", "0.5"]),
        *[("quick", f"widths={form}", ["widths", form]) for form in ("32", "1e2-8", "none")],
        *[("quick", form, ["NAME=VALUE"]) for form in ("alpha", "alpha=", "=", "alpha 0.2", "alpha= 0.2")],
        *[("quick", both, ["steps", "epochs"]) for both in ("steps=5 epochs=5", "steps=0", "steps=0 epochs=0")],
        *[("quick", f"{n}=other", [n, *f.metadata["choices"]]) for n, f in FIELDS.items() if f.metadata["choices"]],
    ],
)
def test_what_cannot_be_read_is_answered_with_what_can(refuses, preset, settings, words):
    with refuses(*words):
        Config.from_preset(preset, settings)


def test_naming_steps_or_epochs_replaces_the_presets_other():
    assert (Config.from_preset("blog").steps, Config.from_preset("blog").epochs) == (0, 500)
    by_steps, by_epochs = Config.from_preset("blog", "steps=10"), Config.from_preset("quick", "epochs=3")
    assert (by_steps.steps, by_steps.epochs) == (10, 0)
    assert (by_epochs.steps, by_epochs.epochs) == (0, 3)


@pytest.mark.parametrize(("descent", "brought"), [
    ("anchored", {"alpha": 0.25, "iterations": 16}),
    ("paper", {"alpha": 0.5, "iterations": 100, "lam": 0.05, "coarse_weight": 0.0}),
    ("plain", {"alpha": 0.02, "iterations": 100, "lam": 0.05, "coarse_weight": 0.0}),
    ("article", {"alpha": 0.05, "iterations": 16, "lam": 1.0}),
])  # fmt: skip
@pytest.mark.parametrize("preset", ["ci", "quick", "blog"])
def test_naming_a_descent_brings_what_goes_with_it_but_for_what_is_named_too(preset, descent, brought):
    own = Config.from_preset(preset)
    brought = {} if descent == own.descent else brought  # its own name changes nothing
    assert Config.from_preset(preset, f"descent={descent}") == own.replace(descent=descent, **brought)
    named = {"alpha": 0.125, "iterations": 7, "lam": 0.75}
    for name, value in named.items():
        for settings in (f"{name}={value} descent={descent}", f"descent={descent} {name}={value}"):
            assert Config.from_preset(preset, settings) == own.replace(**{"descent": descent, **brought, name: value})
    assert own.replace(descent=descent).alpha == own.alpha  # in code, what is said and no more


def test_every_descent_has_what_goes_with_it():
    assert tuple(DESCENTS) == FIELDS["descent"].metadata["choices"]
    assert all(values["descent"] == name for name, values in DESCENTS.items())


@pytest.mark.parametrize("name", FIELDS)
def test_the_fingerprint_changes_with_the_fields_of_its_groups_alone(name):
    one, other = Config(), Config(**other_values(name))
    assert one.fingerprint() != other.fingerprint()
    changed = {group for group in GROUPS if one.fingerprint(group) != other.fingerprint(group)}
    assert changed == {FIELDS[name].metadata["group"]}


def test_the_fingerprint_is_ten_hex_digits_that_follow_the_data():
    prints = {Config().fingerprint(), Config().fingerprint(data="a"), Config().fingerprint(data="b")}
    assert len(prints) == 3
    assert all(len(p) == 10 and int(p, 16) >= 0 for p in prints)


def test_the_fingerprint_is_the_same_in_another_process():
    code = "from vaeproj.config import Config; print(Config.from_preset('best').fingerprint('data', 'model', data='x'))"
    for salt in ("1", "2"):  # Python's own hash of a string differs between these
        environment = os.environ | {"PYTHONHASHSEED": salt}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == Config.from_preset("best").fingerprint("data", "model", data="x")
