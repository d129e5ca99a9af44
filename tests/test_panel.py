"""The panel without a browser: kept trajectories, shared commands, the drawn sheet, the widgets' reactions."""

import asyncio
import dataclasses
import re
import shlex
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from ipywidgets import Widget
from nbconvert import HTMLExporter

from vaeproj.cli.commands import parser
from vaeproj.config import PRESETS, Config, UserError
from vaeproj.panel.sheet import AXES, BAR, CORNERS, FLOOR, MAGMA, THUMBNAIL, TILE, WIDTH, Sheet, jpeg, thumbnail
from vaeproj.panel.widgets import (
    KNOBS,
    LADDERS,
    PAUSE,
    STATIC,
    Explorer,
    Panel,
    Setting,
    control,
    explore,
    idle,
    somebody_there,
)
from vaeproj.projection import State, trajectory
from vaeproj.workspace import Request, Workspace

ORANGE = (230, 159, 0)  # of masks
FIELDS = {field.name: field for field in dataclasses.fields(Config)}


@pytest.fixture
def ws(open_ws):
    return open_ws("iterations=6 alpha=2")


@pytest.fixture
def explorer(ws):
    return Explorer(ws)


@pytest.fixture
def panel(explorer):
    return Panel(explorer, explorer.start().name)


def changed(setting, **values):
    return dataclasses.replace(setting, config=setting.config.replace(**values))


def computed(explorer):
    """How many trajectories were computed, not found."""
    return explorer.sheet.cache_info().misses


def tiles(picture):
    """Image, reconstruction, projection and change of a drawn sheet, [4, TILE, TILE, RGB]."""
    pixels = np.asarray(picture, dtype=int)
    return np.stack([pixels[y : y + TILE, x : x + TILE] for x, y in CORNERS])


def test_a_sheet_holds_the_projection_of_that_crop(ws, explorer):
    sheet = explorer.sheet(Setting("bent/004", (7, 3), ws.config))
    crop = ws.test.images[ws.test.index("bent/004")][None, :, 3:19, 7:23] / 255
    path = trajectory(ws.fast_vae, crop, ws.config, ws.expected)
    assert len(sheet.frames) == 7
    np.testing.assert_allclose(sheet.frames, path.x[:, 0], atol=1e-3)
    np.testing.assert_allclose(sheet.terms, path.terms[:, 0], rtol=1e-4, atol=1e-4)


def test_start_is_the_first_defect_centred_with_the_workspaces_hyper_parameters(ws, explorer):
    assert explorer.start() == Setting("bent/003", ws.crops_at(["bent/003"])[2][0][::-1], ws.config)
    assert explorer.start("good/007").name == "good/007"


@pytest.mark.parametrize("values", [
    {}, {"descent": "paper"}, {"descent": "plain"}, {"descent": "article"}, {"iterations": 0},
    {"descent": "paper", "alpha": 0.0},
])  # fmt: skip
def test_idle_hyper_parameters_are_those_that_change_nothing(explorer, values):
    setting, nothing = changed(explorer.start(), **values), set()
    first = explorer.sheet(setting)
    assert explorer.sheet(changed(setting)) is first
    for name, value in {
        "descent": "paper" if setting.config.descent == "article" else "article", "gradient": "detached", "alpha": 1.0,
        "iterations": 7, "lam": 0.5, "tolerance": 1.2, "hardness": 2.0, "coarse_weight": 4.0,
    }.items():  # fmt: skip
        other = explorer.sheet(changed(setting, **{name: value}))
        if np.array_equal(other.frames, first.frames) and np.array_equal(other.terms, first.terms):
            nothing.add(name)
    assert idle(setting.config) == nothing


@pytest.mark.parametrize("values", [
    {}, {"alpha": 0.07, "lam": 0.0, "iterations": 4}, {"gradient": "detached", "widths": "8-16", "hidden": 7}, {"alpha": 1e-05},
    {"tolerance": 2.5, "hardness": 1.0, "coarse_weight": 2.0}, {"steps": 0, "epochs": 3}, {"descent": "anchored"},
    {"descent": "paper"}, {"descent": "paper", "alpha": 0.5, "iterations": 100}, {"descent": "article", "alpha": 0.25},
])  # fmt: skip
def test_command_opens_the_same_configuration_and_data(category, open_ws, tmp_path, values):
    root = category.parent.rename(tmp_path / "my data")
    ws = open_ws("alpha=2", data_root=str(root))
    setting = changed(Explorer(ws).start(), **values)
    words = shlex.split(setting.command(ws))
    assert words[:5] == ["python", "-m", "vaeproj", "run", "04"]
    a = parser().parse_args(words[3:])
    again = Workspace.open(Request(a.preset, " ".join(a.settings), a.data_root, a.category, a.device), kept=ws.kept)
    assert again.config == setting.config
    assert again.folder == ws.folder == root / "mesh"


@pytest.mark.parametrize("preset", PRESETS)
def test_command_says_no_more_than_differs_from_the_preset(ws, preset):
    setting = Setting("bent/000", (0, 0), Config.from_preset(preset, "alpha=0.3 flip=true"))
    command = setting.command(dataclasses.replace(ws, request=Request(preset)))
    assert command == f"python -m vaeproj run 04 --preset {preset} --set alpha=0.3"


def test_sheet_shows_image_reconstruction_projection_and_change(ws, explorer):
    sheet = explorer.sheet(explorer.start())
    first, last = (tiles(sheet.draw(t, outline=False)) for t in (0, 6))
    x_0, x_6 = (sheet.frames[t, 0].astype(np.float32) for t in (0, 6))
    for tile, frame in ((first[0], x_0), (first[2], x_0), (last[0], x_0), (last[2], x_6)):
        np.testing.assert_array_equal(tile[8::16, 8::16], np.repeat((frame * 255).round()[..., None], 3, axis=2))
    for tile, frame in ((first[1], x_0), (last[1], x_6)):
        picture = ws.vae.reconstruct(torch.from_numpy(frame)[None, None])[0, 0].detach().numpy()
        np.testing.assert_allclose(tile[8::16, 8::16, 0], picture * 255, atol=2)  # x_t is kept in half precision
    assert (first[3] == MAGMA[0]).all()
    shade = (np.abs(x_6 - x_0) * 255 / sheet.white).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(last[3, 8::16, 8::16], MAGMA[shade])


def test_a_change_is_drawn_on_the_scale_asked_for_and_says_which(explorer):
    sheet, (x, y) = explorer.sheet(explorer.start()), CORNERS[3]
    own, dim = (sheet.draw(6, outline=False, white=white) for white in (None, 2 * sheet.white))
    shades = [np.abs(tiles(p)[3, 8::16, 8::16, None] - MAGMA.astype(int)).sum(3).argmin(2) for p in (own, dim)]
    unclipped = shades[0] < 255
    np.testing.assert_allclose(shades[1][unclipped], shades[0][unclipped] / 2, atol=1)
    numbers = [np.asarray(p)[y - 20 : y, x + sum(BAR[:2]) : x + TILE] for p in (own, dim)]
    assert not np.array_equal(*numbers)
    assert (numbers[0][:, -1] == 255).all()  # it ends before the edge


def test_outline_marks_the_border_of_the_defect_and_can_be_left_out(ws, explorer):
    setting = explorer.start()
    mask = ws.test.gt_masks[ws.test.index(setting.name)][setting.at[1] :, setting.at[0] :][:16, :16] > 0
    marked, plain = (tiles(explorer.sheet(setting).draw(3, outline=outline)) for outline in (True, False))
    differs = (marked != plain).any(3)
    assert not differs[1:3].any()
    for tile, at in ((marked[0], differs[0]), (marked[3], differs[3])):
        assert at.any() and (tile[at] == ORANGE).all()
        assert mask.repeat(16, 0).repeat(16, 1)[at].all()  # enlarged as the crop is


def test_marker_stands_where_the_curve_has_the_iteration(explorer):
    sheet = explorer.sheet(explorer.start())
    lines = [np.asarray(sheet.draw(t), dtype=int)[FLOOR + 40] for t in (0, 3, 6)]
    x = [np.flatnonzero(np.abs(line - (213, 94, 0)).sum(1) < 10).mean() for line in lines]
    spines = np.flatnonzero((np.asarray(sheet.base, dtype=int)[FLOOR + 40] < 10).all(1))
    assert x[0] == pytest.approx(spines[0], abs=1.5)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=1)
    assert x[2] - x[0] == pytest.approx(AXES[2] * WIDTH, abs=1)


@pytest.mark.parametrize("values", [{"iterations": 0}, {"alpha": 0.0}, {"descent": "paper", "alpha": 0.0}])
def test_sheet_draws_a_trajectory_that_stands_still(explorer, values):
    sheet = explorer.sheet(changed(explorer.start(), **values))
    image, _, projection, change = tiles(sheet.draw(len(sheet.frames) - 1, outline=False))
    np.testing.assert_array_equal(projection, image)
    assert (change == MAGMA[0]).all()


def test_a_static_picture_is_small_even_of_noise():
    noise, mask = torch.rand(3, 1, 1, 128, 128, generator=torch.Generator().manual_seed(0)), np.zeros((128, 128), bool)
    path = State(0.4 + 0.2 * noise, noise.logit(), noise, torch.ones(3, 1, 2), noise, torch.ones(3, 1))
    assert len(jpeg(Sheet(path, mask, "noise").draw(2), STATIC)) < 120_000


def test_thumbnail_shows_the_image_and_its_defect(ws):
    drawn = np.asarray(thumbnail(ws.test.images[0].numpy(), ws.test.gt_masks[0]), dtype=int)
    assert drawn.shape == (THUMBNAIL, THUMBNAIL, 3)
    y, x = np.nonzero((drawn == ORANGE).all(2))
    rows, columns = np.nonzero(ws.test.gt_masks[0])
    edges = np.array([y.min(), y.max() + 1, x.min(), x.max() + 1]) * 32 / THUMBNAIL
    np.testing.assert_allclose(edges, [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1], atol=0.2)


def test_a_slider_changes_picture_command_and_status(panel):
    before, alpha = panel.picture.jpeg, panel.knobs["alpha"]
    alpha.value = 0.5
    assert panel.shown.config.alpha == 0.5
    assert panel.picture.jpeg != before
    assert "answered in" in panel.status.value
    assert panel.share.value.count("--set alpha=0.5") == 1
    assert "hardness" not in panel.share.value  # the preset's own value
    told = re.search(r"E = reconstruction ([\d.]+) \+ distance ([\d.]+) = ([\d.]+);", panel.status.value).groups()
    assert [float(n) for n in told] == pytest.approx([*panel.sheet.terms[6], panel.sheet.terms[6].sum()], abs=0.006)


def test_play_bar_and_outline_compute_nothing(panel):
    assert (panel.t.value, panel.t.max, panel.play.max) == (6, 6, 6)
    pictures, status = {panel.picture.jpeg}, {panel.status.value}
    for t in (0, 2, 4):
        panel.t.value = t
        pictures.add(panel.picture.jpeg)
        status.add(panel.status.value)
    assert len(pictures) == len(status) == 4
    panel.outline.value = False
    assert panel.picture.jpeg not in pictures
    assert computed(panel.explorer) == 1


def test_the_play_bar_follows_the_number_of_iterations(panel):
    panel.knobs["iterations"].value = 3
    assert (panel.t.value, panel.t.max) == (3, 3)  # stays at the end
    panel.t.value = 1
    panel.knobs["iterations"].value = 10
    assert (panel.t.value, panel.t.max, panel.play.max) == (1, 10, 10)


def test_every_control_reaches_the_setting(panel):
    values = {
        "gradient": "detached", "alpha": 3.0, "iterations": 10, "lam": 0.1, "tolerance": 2.0, "hardness": 1.5,
        "coarse_weight": 4.0, "descent": "paper",
    }  # fmt: skip
    assert set(values) == set(KNOBS)
    for name, value in values.items():
        panel.knobs[name].value = value
        assert getattr(panel.shown.config, name) == value
        assert panel.shown == panel.setting


@pytest.mark.parametrize("settings", ["", "iterations=4 alpha=0.02", "descent=plain alpha=0.125"])
def test_another_descent_brings_its_own_settings(open_ws, settings):
    explorer = Explorer(open_ws(settings))
    panel, own = Panel(explorer, explorer.start().name), explorer.ws.config
    for descent, brought in {
        "article": {"alpha": 0.05, "iterations": 16, "lam": 1.0},
        "anchored": {"alpha": 0.25, "iterations": 16, "lam": 1.0},  # which says nothing of lam
        "paper": {"alpha": 0.5, "iterations": 100, "lam": 0.05},
        "plain": {"alpha": 0.02, "iterations": 100, "lam": 0.05},
    }.items():
        panel.knobs["descent"].value = descent
        assert panel.shown.config == own.replace(descent=descent, **brought)
        assert (panel.t.value, panel.t.max) == (brought["iterations"],) * 2
    panel.knobs["alpha"].value = 0.3
    assert panel.shown.config.alpha == 0.3


def test_defect_and_image_and_crop(panel, ws):
    assert list(panel.defect.options) == ["bent", "thread", "good"]
    panel.defect.value = "good"
    assert [name for _, name in panel.image.options] == ["good/001", "good/007"]
    panel.image.value = "good/007"  # with the crop where it was
    assert panel.shown.name == "good/007"
    panel.defect.value = "bent"
    panel.image.value = "bent/004"
    centred = Setting("bent/004", ws.crops_at(["bent/004"])[2][0][::-1], ws.config)
    assert panel.shown == centred
    whole, picture = panel.crop.jpeg, panel.picture.jpeg
    panel.crop.at = [1, 9]  # as the browser sends it
    assert panel.shown.at == (1, 9)
    assert panel.crop.jpeg == whole and panel.picture.jpeg != picture
    panel.centre.click()
    assert (panel.shown, panel.picture.jpeg) == (centred, picture)


def test_a_locked_scale_stays_for_other_descents(panel):
    white = panel.white
    panel.lock.value = True
    panel.knobs["alpha"].value = 0.5
    assert panel.white == white != panel.sheet.white
    assert panel.picture.jpeg == jpeg(panel.sheet.draw(6, white=white))
    panel.lock.value = False
    assert panel.picture.jpeg == jpeg(panel.sheet.draw(6))


def test_what_would_change_nothing_is_disabled(panel):
    def disabled():
        parts = {"outline": panel.outline, "play": panel.play, "t": panel.t, "centre": panel.centre, **panel.knobs}
        return {name for name, part in parts.items() if part.disabled}

    assert disabled() == {"lam", "centre"}
    panel.knobs["descent"].value = "article"
    assert disabled() == {"tolerance", "hardness", "coarse_weight", "centre"}
    panel.knobs["iterations"].value = 0
    assert disabled() == {"tolerance", "hardness", "coarse_weight", "centre", "play", "t", "alpha", "gradient", "lam"}
    panel.knobs["descent"].value = "anchored"
    panel.image.value = "bent/004"
    panel.defect.value = "good"
    assert disabled() == {"lam", "centre", "outline"}


def test_crop_and_wipe_know_where_their_boxes_may_go(panel, ws):
    assert (panel.crop.size, panel.crop.area, panel.crop.box) == ((32, 32), (0, 0, 32, 32), (16, 16))
    assert panel.crop.at == tuple(reversed(ws.crops_at(["bent/003"])[2][0]))
    assert (panel.picture.area, panel.picture.cover, panel.picture.at) == ((*CORNERS[2], TILE, TILE), CORNERS[0], (0, 0))


@pytest.mark.parametrize("error", [UserError("The 1st & only mistake."), ZeroDivisionError("The 1st & only mistake.")])
def test_mistakes_are_told_in_the_panel(panel, error):
    def sheet(_):
        raise error

    before, panel.explorer.sheet = panel.picture.jpeg, sheet
    panel.knobs["alpha"].value = 5
    assert "The 1st &amp; only mistake." in panel.status.value
    assert ("ZeroDivisionError" in panel.status.value) == isinstance(error, ZeroDivisionError)
    assert panel.picture.jpeg == before


def test_a_held_key_is_answered_once(panel):
    async def hold():
        for value in (3, 5, 7, 10):
            panel.knobs["alpha"].value = value
        assert "computing" in panel.status.value
        await asyncio.sleep(4 * PAUSE)

    asyncio.run(hold())
    assert panel.shown.config.alpha == 10
    assert panel.explorer.sheet.cache_info()[:2] == (0, 2)  # hits and misses, the first answer among them


def test_an_answer_that_comes_too_late_is_not_shown(panel):
    sheet = panel.explorer.sheet

    def slow(setting):
        if setting.config.alpha == 0.5:
            panel.knobs["alpha"].value = 0.7  # meanwhile
        return sheet(setting)

    panel.explorer.sheet = slow
    panel.knobs["alpha"].value = 0.5
    assert panel.shown.config.alpha == 0.7
    assert panel.picture.jpeg == jpeg(panel.sheet.draw(6))
    assert "--set alpha=0.7" in panel.share.value


@pytest.mark.parametrize("name", LADDERS)
def test_sliders_have_configs_bounds_and_help(name):
    slider, meta = control(name, 0.35), FIELDS[name].metadata
    numbers = [value for _, value in slider.options]
    assert numbers == sorted(set(numbers))
    assert slider.value == 0.35
    assert meta["low"] <= numbers[0] < numbers[-1] <= meta["high"]
    assert meta["help"] in slider.tooltip and f"{meta['low']:g} to {meta['high']:g}" in slider.tooltip
    assert control(name, FIELDS[name].default).value == FIELDS[name].default


def test_knobs_are_the_projections_hyper_parameters(panel, ws):
    assert set(KNOBS) == {name for name, field in FIELDS.items() if field.metadata["group"] == "projection"}
    assert set(panel.knobs) == set(KNOBS)
    assert panel.setting.config == ws.config


@pytest.mark.parametrize("content, there", [({"allow_stdin": True}, True), ({"allow_stdin": False}, False), ({}, False)])
def test_a_person_is_where_a_prompt_can_be_answered(content, there):
    kernel = SimpleNamespace(get_parent=lambda _: {"content": content})
    assert somebody_there(SimpleNamespace(kernel=kernel)) is there
    assert not somebody_there(None)


def test_without_a_person_the_picture_alone(ws, explorer, refuses):
    before = set(Widget.get_manager_state()["state"])
    picture, setting = explore(ws, "thread/000"), explorer.start("thread/000")
    assert set(Widget.get_manager_state()["state"]) == before  # nor does the notebook's metadata get one
    assert picture.data == jpeg(explorer.sheet(setting).draw(6), STATIC)
    with refuses("bent/999"):
        explore(ws, "bent/999")


def test_a_panel_is_also_a_picture_and_on_the_web_nothing_else(panel):
    bundle = panel._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "image/jpeg", "text/plain"}
    assert "bent/003" in bundle["text/plain"]
    output = nbformat.v4.new_output("execute_result", data=bundle, execution_count=1)
    cell = nbformat.v4.new_code_cell("explore(ws)", outputs=[output], execution_count=1)
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert f"data:image/jpeg;base64,{bundle['image/jpeg'][:60]}" in page
