"""The panel without a browser: settings and their commands, kept trajectories, the drawn sheet, the widgets' reactions."""

import asyncio
import dataclasses
import io
import shlex
from functools import partial
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from nbconvert import HTMLExporter
from PIL import Image
from vaeproj.explore import CACHE_BYTES, KNOBS, Explorer, Panel, Setting, explore, ladder, main
from vaeproj.mvtec import load_split
from vaeproj.sheet import MAGMA, OUTLINE, TILE, Run, Sheet

from vaeproj import explore as module
from vaeproj import workspace
from vaeproj.__main__ import _parser
from vaeproj.config import Config
from vaeproj.projection import trajectory
from vaeproj.workspace import Workspace

SETTINGS = "image_size=32 crop_size=16 stride=8 latent_dim=8 iterations=6 alpha=2"
FIELDS = {field.name: field for field in dataclasses.fields(Config)}
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def vae(seasoned_vae):
    return seasoned_vae()


@pytest.fixture
def open_ws(category, vae, monkeypatch):
    """Opens the small category with a VAE that needs no training, and no cache of decoded images."""
    monkeypatch.setattr(workspace, "load_split", partial(load_split, cache=None))
    monkeypatch.setattr(Workspace, "trained", property(lambda _: SimpleNamespace(vae=vae)))
    return lambda settings=SETTINGS: Workspace.open("quick", settings, str(category.parent), "mesh", "cpu")


@pytest.fixture
def ws(open_ws):
    return open_ws()


@pytest.fixture
def explorer(ws):
    return Explorer(ws)


@pytest.fixture
def computed(monkeypatch):
    """The configurations whose trajectories were computed, not found."""
    configs = []

    def spy(vae, tiles, config, stop_at):
        configs.append(config)
        return trajectory(vae, tiles, config, stop_at)

    monkeypatch.setattr(module, "trajectory", spy)
    return configs


@pytest.fixture
def panel(explorer, computed):
    panel = Panel(explorer, explorer.start())
    computed.clear()
    return panel


def changed(setting, **values):
    return dataclasses.replace(setting, config=setting.config.replace(**values))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


# --- trajectories


@pytest.mark.usefixtures("in_fp32")
def test_run_is_the_projection_of_that_crop(ws, explorer):
    setting = Setting("bent/004", 3, 7, ws.config)
    run = explorer.run(setting)
    i = ws.test.index("bent/004")
    crop = torch.from_numpy(ws.test.images[i][None, :, 3:19, 7:23].copy()) / 255
    path = trajectory(ws.vae, crop, ws.config)
    assert len(run) == 7
    np.testing.assert_allclose(run.frames, path.frames[:, 0], atol=1e-3)
    np.testing.assert_allclose(run.reconstruction_energy, path.reconstruction_energy[:, 0], rtol=1e-4)
    np.testing.assert_allclose(run.distance, path.distance[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run.mask, ws.test.gt_masks[i][3:19, 7:23] > 0)


def test_start_is_the_first_defect_centred_with_the_workspaces_hyper_parameters(ws, explorer):
    setting = explorer.start()
    assert setting.name == "bent/003"
    assert (setting.top, setting.left) == ws.crops_at(["bent/003"])[2][0]
    assert setting.config == ws.config
    assert explorer.start("good/007").name == "good/007"


def test_same_setting_is_computed_once_and_fewer_iterations_are_its_beginning(explorer, computed):
    setting = explorer.start()
    whole = explorer.run(setting)
    assert explorer.run(setting) is whole
    part = explorer.run(changed(setting, iterations=2))
    assert len(computed) == 1
    assert len(part) == 3
    np.testing.assert_array_equal(part.frames, whole.frames[:3])
    assert len(explorer.run(changed(setting, iterations=9))) == 10
    assert len(computed) == 2


@pytest.mark.parametrize("values", [
    {"alpha": 1.0}, {"lam": 0.5}, {"gradient": "detached"}, {"soft_mask": False}, {"energy": "bce"},
    {"stop_quantile": 0.5}, {"stop_quantile": 0.5, "stop_factor": 2.0},
])  # fmt: skip
def test_every_hyper_parameter_of_the_projection_is_part_of_the_key(explorer, computed, values):
    setting = explorer.start()
    explorer.run(setting)
    explorer.run(changed(setting, **values))
    assert len(computed) == 2


def test_what_does_not_touch_the_projection_is_not(explorer, computed):
    setting = explorer.start()
    explorer.run(setting)
    explorer.run(changed(setting, sigma=1.0, stop_factor=3.0))
    assert len(computed) == 1


def test_the_least_recently_used_go_first(ws, computed):
    size = 7 * 16 * 16 * 2
    explorer = Explorer(ws, limit=2 * size)
    settings = [changed(explorer.start(), alpha=a) for a in (1.0, 2.0, 3.0)]
    for setting in (settings[0], settings[1], settings[0], settings[2], settings[0]):
        explorer.run(setting)
    assert len(computed) == 3
    explorer.run(settings[1])
    assert len(computed) == 4
    assert sum(run.frames.nbytes for run in explorer.runs.values()) <= 2 * size < CACHE_BYTES


@pytest.mark.parametrize("stopping", ["stop_quantile=0.5", "stop_quantile=0 stop_factor=2", "stop_quantile=0.9 energy=bce"])
def test_stopping_energy_is_the_workspaces(open_ws, stopping):
    ws = open_ws(f"{SETTINGS} {stopping}")
    assert Explorer(ws).stop_at(ws.config) == pytest.approx(ws.stop_at, rel=1e-4)


def test_mistakes_are_one_sentence(ws, explorer, refuses):
    with refuses("bent/999"):
        explore(ws, "bent/999")
    with refuses("0 to 16", "(0, 17)"):
        explorer.run(Setting("bent/003", 17, 0, ws.config))


# --- sharing

SHARED = [
    {}, {"alpha": 0.07, "lam": 0.0, "iterations": 4}, {"gradient": "detached", "soft_mask": False, "energy": "bce"},
    {"stop_quantile": 0.95, "stop_factor": 1.5}, {"alpha": 1e-05}, {"steps": 0, "epochs": 3},
]  # fmt: skip


@pytest.mark.parametrize("values", SHARED)
def test_notebook_command_opens_the_same_configuration_and_data(ws, explorer, values):
    setting = changed(explorer.start(), **values)
    words = shlex.split(setting.notebook_command(ws))
    assert words[:5] == ["python", "-m", "vaeproj", "run", "04"]
    a = _parser().parse_args(words[3:])
    again = Workspace.open(a.preset, " ".join(a.settings), a.data_root, a.category, a.device)
    assert again.config == setting.config
    assert again.folder == ws.folder


@pytest.mark.parametrize("preset", ["ci", "quick", "blog", "best"])
def test_command_says_no_more_than_differs_from_the_preset(preset):
    ws = Workspace.open(preset, "alpha=0.3 stop_quantile=none")
    command = Setting("bent/000", 0, 0, ws.config).notebook_command(ws)
    assert command == f"python -m vaeproj run 04 --preset {preset} --set alpha=0.3"


def test_a_folder_with_a_space_is_quoted(category, open_ws):
    root = category.parent.rename(category.parent.parent / "my data")
    ws = Workspace.open("quick", SETTINGS, str(root), "mesh")
    words = shlex.split(Explorer(ws).start().notebook_command(ws))
    assert words[words.index("--data-root") + 1] == str(root)


@pytest.mark.parametrize("values", SHARED[:4])
def test_picture_command_draws_the_same_picture(ws, explorer, tmp_path, values, capsys):
    setting = changed(dataclasses.replace(explorer.start("thread/000"), top=2, left=9), **values)
    words = shlex.split(setting.picture_command(ws, 3))
    assert words[:3] == ["python", "-m", "vaeproj.explore"]
    out = tmp_path / "picture.png"
    assert main([*words[3:], "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    expected = Sheet(explorer.run(setting), setting.caption).draw(3)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(expected))


@pytest.mark.parametrize(
    "words", [["bent/999"], ["bent/003", "--iteration", "7"], ["bent/003", "--set", "alpha=-1"], ["bent/003", "--out", "x"]]
)
def test_picture_command_tells_mistakes(ws, words, capsys):
    options = f"--preset quick --data-root {ws.folder.parent} --category mesh " + " ".join(
        f"--set {s}" for s in SETTINGS.split()
    )
    assert main([*shlex.split(options), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vaeproj: ")
    assert error.count("\n") == 1


# --- drawing


def test_sheet_shows_image_projection_and_change(ws, explorer):
    setting = explorer.start()
    run = explorer.run(setting)
    sheet = Sheet(run, setting.caption)
    first, last = (np.asarray(sheet.draw(t, outline=False), dtype=int) for t in (0, 6))
    (left, top), (right, _), (_, low), _ = sheet.corners
    box = np.s_[top : top + TILE, left : left + TILE]
    np.testing.assert_array_equal(first[box][8::16, 8::16, 0], (run.frames[0, 0].astype(np.float32) * 255).round())
    np.testing.assert_array_equal(first[box], last[box])
    moved = np.s_[top : top + TILE, right : right + TILE]
    np.testing.assert_array_equal(last[moved][8::16, 8::16, 0], (run.frames[6, 0].astype(np.float32) * 255).round())
    change = np.s_[low : low + TILE, left : left + TILE]
    assert (first[change] == MAGMA[0]).all()
    np.testing.assert_array_equal(
        last[change][8::16, 8::16].sum(2).argmax(), np.abs(run.frames[6, 0] - run.frames[0, 0]).clip(max=sheet.white).argmax()
    )


def test_outline_marks_the_border_of_the_mask_and_can_be_left_out(explorer):
    setting = explorer.start()
    sheet = Sheet(explorer.run(setting), setting.caption)
    with_it, without = (np.asarray(sheet.draw(3, outline=outline)) for outline in (True, False))
    differs = (with_it != without).any(2)
    assert differs.any()
    assert (with_it[differs] == OUTLINE).all()


def test_marker_stands_where_the_curve_has_the_iteration(explorer):
    setting = explorer.start()
    sheet = Sheet(explorer.run(setting), setting.caption)
    drawn = [np.asarray(sheet.draw(t), dtype=int)[sheet.corners[3][1] + 40, sheet.corners[3][0] :] for t in (0, 3, 6)]
    x = [np.flatnonzero((np.abs(line - (213, 94, 0)).sum(1)) < 10).mean() for line in drawn]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=1)
    assert sheet.rail[0] == pytest.approx(x[0], abs=1.5)
    assert sheet.rail[1] == pytest.approx(x[2], abs=1.5)


@pytest.mark.parametrize("values", [{"iterations": 0}, {"alpha": 0.0}, {"stop_quantile": 1.0}])
def test_sheet_draws_a_trajectory_that_stands_still(explorer, values):
    setting = changed(explorer.start(), **values)
    run = explorer.run(setting)
    assert len(Sheet(run, setting.caption).jpeg(len(run) - 1)) > 5000


def test_a_static_picture_is_small_even_of_noise():
    noise = np.random.default_rng(0).random((3, 1, 128, 128)).astype(np.float16)
    run = Run(noise, np.ones(3), np.ones(3), 0.0, np.zeros((128, 128), bool), 0.0)
    textured = Run(0.4 + 0.2 * noise, np.ones(3), np.ones(3), 0.0, np.zeros((128, 128), bool), 0.0)
    setting = Setting("bent/000", 0, 0, Config())
    assert len(Sheet(textured, "noise").jpeg(2)) < 120_000
    assert len(Sheet(run, setting.caption).jpeg(2)) < 200_000


# --- widgets


def test_a_slider_changes_picture_command_and_status(panel, computed):
    before, alpha = panel.picture.value, panel.knobs["alpha"]
    alpha.value = 0.5
    assert [c.alpha for c in computed] == [0.5]
    assert panel.picture.value != before
    assert "answered in" in panel.status.value
    assert "--set alpha=0.5" not in panel.share.value  # the preset's own value
    alpha.value = 0.7
    assert panel.share.value.count("--set alpha=0.7") == 2


def test_the_play_bar_computes_nothing(panel, computed):
    assert (panel.t.value, panel.t.max, panel.play.max) == (6, 6, 6)
    pictures = {panel.picture.value}
    for t in (0, 2, 4):
        panel.t.value = t
        pictures.add(panel.picture.value)
        assert f"--iteration {t} " in panel.share.value
    assert len(pictures) == 4
    assert not computed


def test_the_play_bar_follows_the_number_of_iterations(panel):
    panel.knobs["iterations"].value = 3
    assert (panel.t.value, panel.t.max) == (3, 3)  # stays at the end
    panel.t.value = 1
    panel.knobs["iterations"].value = 10
    assert (panel.t.value, panel.t.max, panel.play.max) == (1, 10, 10)


def test_every_control_reaches_the_setting(panel, computed):
    values = {
        "alpha": 3.0, "lam": 0.1, "iterations": 10, "gradient": "detached", "soft_mask": False, "energy": "bce",
        "coarse_weight": 4.0, "coarse_sigma": 2.0, "stop_quantile": 0.9, "stop_factor": 2.0,
    }  # fmt: skip
    assert set(values) == set(KNOBS)
    for name, value in values.items():
        panel.knobs[name].value = value
        assert getattr(panel.setting.config, name) == value
        assert panel.shown == panel.setting
        assert "answered in" in panel.status.value
    panel.knobs["stop_quantile"].value = module.NEVER
    assert panel.setting.config.stop_quantile is None
    assert len(computed) >= 7


def test_defect_and_image_and_crop(panel, ws):
    assert list(panel.defect.options) == ["bent", "thread", "good"]
    panel.defect.value = "good"
    assert [name for _, name in panel.image.options] == ["good/001", "good/007"]
    assert panel.shown.name == "good/001"
    panel.defect.value = "bent"
    panel.image.value = "bent/004"
    corner = ws.crops_at(["bent/004"])[2][0]
    assert (panel.shown.name, (panel.shown.top, panel.shown.left)) == ("bent/004", corner)
    whole, picture = panel.whole.value, panel.picture.value
    panel.x.value = 0 if corner[1] else 5
    assert panel.shown.left == panel.x.value
    panel.y.value = panel.y.max  # the top
    assert panel.shown.top == 0
    assert (panel.whole.value, panel.picture.value) != (whole, picture)
    panel.centre.click()
    assert (panel.shown.top, panel.shown.left) == corner


def test_outline_can_be_switched_off(panel, computed):
    before = panel.picture.value
    panel.outline.value = False
    assert panel.picture.value != before
    assert not computed


def test_mistakes_are_told_in_the_panel(panel, monkeypatch):
    before = panel.picture.value

    def fails(*_):
        raise module.UserError("The 1st & only mistake.")

    monkeypatch.setattr(panel.explorer, "run", fails)
    panel.knobs["alpha"].value = 5
    assert "The 1st &amp; only mistake." in panel.status.value
    assert panel.picture.value == before
    monkeypatch.setattr(panel.explorer, "run", lambda *_: 1 / 0)
    panel.knobs["alpha"].value = 7
    assert "ZeroDivisionError" in panel.status.value


def test_a_held_key_is_answered_once(panel, computed):
    async def hold():
        for value in (3, 5, 7, 10):
            panel.knobs["alpha"].value = value
        assert "computing" in panel.status.value
        assert not computed
        await asyncio.sleep(4 * module.PAUSE)

    asyncio.run(hold())
    assert [c.alpha for c in computed] == [10]


def test_sliders_have_configs_bounds_and_help():
    for name in module.LADDERS:
        stations = [value for _, value in ladder(FIELDS[name], 0.35)]
        numbers = [value for value in stations if value != module.NEVER]
        assert numbers == sorted(set(numbers))
        assert 0.35 in numbers
        for value in numbers:
            assert FIELDS[name].metadata["low"] <= value <= FIELDS[name].metadata["high"]
        control = module.control(FIELDS[name], Config.__dataclass_fields__[name].default)
        assert FIELDS[name].metadata["help"] in control.tooltip


def test_knobs_are_the_projections_hyper_parameters():
    assert set(KNOBS) == {name for name, field in FIELDS.items() if field.metadata["group"] == "projection"}


def test_fewer_knobs_make_a_short_panel(explorer):
    panel = Panel(explorer, explorer.start(), ("alpha",))
    assert list(panel.knobs) == ["alpha"]
    assert panel.setting.config == explorer.ws.config


# --- where nobody can move a slider


def kernel(allow_stdin):
    request = {"content": {"allow_stdin": allow_stdin}}
    return SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda _: request))


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), kernel(False)])
def test_without_a_person_the_picture_alone(ws, monkeypatch, shell):
    monkeypatch.setattr(module, "get_ipython", lambda: shell)
    monkeypatch.setattr(module, "Panel", None)  # no widget is made, so none ends up in the notebook's metadata
    data, _ = explore(ws)._repr_mimebundle_()
    assert "image/jpeg" in data


def test_with_a_person_the_panel_and_its_picture(ws, monkeypatch):
    monkeypatch.setattr(module, "get_ipython", lambda: kernel(True))
    panel = explore(ws, "thread/000")
    bundle = panel._repr_mimebundle_()
    assert set(bundle) == {VIEW, "image/jpeg", "text/plain"}
    assert "thread/000" in bundle["text/plain"]


def test_a_saved_panel_is_a_picture_on_the_web(panel):
    output = nbformat.v4.new_output("execute_result", data=panel._repr_mimebundle_(), execution_count=1)
    cell = nbformat.v4.new_code_cell("explore(ws)", outputs=[output], execution_count=1)
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "data:image/jpeg;base64," in page
