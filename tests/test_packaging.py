"""The files around the package agree with pyproject.toml, with each other and with the code."""

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections import defaultdict
from graphlib import TopologicalSorter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vaeproj
from vaeproj.config import PROJECT_ROOT

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
MAKEFILE = (PROJECT_ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def read_lock():
    """Each pin of requirements.lock, by package; a package may have one a Python version."""
    pins = defaultdict(list)
    for line in re.findall(r"^\w.*", (PROJECT_ROOT / "requirements.lock").read_text(), re.MULTILINE):
        pins[canonicalize_name(Requirement(line).name)].append(Requirement(line))
    return pins


def pinned_version(pin):
    (bound,) = pin.specifier
    assert bound.operator == "==" and "*" not in bound.version, f"{pin} is not pinned"
    return bound.version


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := PROJECT_ROOT / name).is_file()]


@pytest.mark.parametrize("name", ["environment.yml", "binder/environment.yml"])
def test_environment_takes_python_and_pip_from_conda_forge_alone(name):
    environment = yaml.safe_load((PROJECT_ROOT / name).read_text())
    conda = [Requirement(re.sub(r"(?<![<>=])=(?!=)", "==", d)) for d in environment["dependencies"] if isinstance(d, str)]
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    assert [c.name for c in conda] == ["python", "pip"]


@pytest.mark.parametrize("lock", ["", "vaeproj==0"])
def test_pip_takes_the_section_of_the_environment_and_holds_to_the_lock(tmp_path, lock):
    """Conda and mamba write the section to a file beside environment.yml and run pip there; here in a copy of the checkout."""
    conda_python, _, pip = yaml.safe_load((PROJECT_ROOT / "environment.yml").read_text())["dependencies"]
    assert conda_python == "python" + PROJECT["requires-python"]
    for path in tracked_files():
        (tmp_path / path.relative_to(PROJECT_ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(PROJECT_ROOT))
    (tmp_path / "section.txt").write_text("\n".join(pip["pip"]))
    with (tmp_path / "requirements.lock").open("a") as file:
        file.write(lock)
    options = ["--dry-run", "--no-deps", "--no-build-isolation", "--no-index", "--report", "report.json", "-r", "section.txt"]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (lock == ""), done.stderr
    if not lock:
        (installed,) = json.loads((tmp_path / "report.json").read_text())["install"]
        assert installed["requested_extras"] == ["dev"]
        assert installed["download_info"]["dir_info"] == {"editable": True}
        assert "extra" not in done.stderr  # pip only warns of an extra that there is not


def test_every_folder_of_the_package_is_installed():
    folders = {p.parent.relative_to(PROJECT_ROOT) for p in (PROJECT_ROOT / "vaeproj").rglob("*.py")}
    packages = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(".".join(folder.parts) for folder in folders)


@pytest.mark.parametrize("dependency", [*RUNTIME, *DEV], ids=lambda d: d.name)
def test_lock_pins_every_dependency_within_its_bound(dependency):
    pins = read_lock().get(canonicalize_name(dependency.name))
    assert pins, f"requirements.lock has no {dependency.name}: say `make lock`"
    for pin in pins:
        assert pinned_version(pin) in dependency.specifier, f"{pin} is not {dependency}: say `make lock`"


def test_lock_has_one_version_of_a_package_here_and_no_address():
    pins = read_lock()
    for name, lines in pins.items():
        chosen = [p for p in lines if p.marker is None or p.marker.evaluate()]
        assert len(chosen) <= 1, f"{name} is pinned twice: {chosen}"
        assert all(p.url is None and pinned_version(p) for p in lines)
    text = (PROJECT_ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^-", text, re.MULTILINE), "an option of pip, such as an index, does not belong in the lock"


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_makefile_and_lock_agree_on_torch(name):
    assert f"\n{name.upper()} := {read_lock()[name][0]}\n" in MAKEFILE


def imported_modules(source):
    nodes = list(ast.walk(ast.parse(source)))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}


@pytest.mark.parametrize(
    ("folder", "declared"),
    [("vaeproj", RUNTIME), ("notebooks", RUNTIME), ("tests", [*RUNTIME, *DEV]), ("benchmarks", [*RUNTIME, *DEV])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_import_is_a_declared_dependency(folder, declared):
    names = {canonicalize_name(d.name) for d in declared}
    providers = packages_distributions()
    ours = {"vaeproj", *(p.stem for p in (PROJECT_ROOT / folder).glob("*.py"))}
    sources = {p: p.read_text() for p in (PROJECT_ROOT / folder).rglob("*.py")}
    for path in (PROJECT_ROOT / folder).glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        sources[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for path, source in sources.items():
        for module in {m.split(".")[0] for m in imported_modules(source)} - sys.stdlib_module_names - ours:
            packages = {canonicalize_name(p) for p in providers.get(module, [module])}
            assert packages & names, f"{path.name} imports {module}, which pyproject.toml does not list"


CORE = ["config", "device", "files", "data", "crops", "model", "checkpoint", "training"]
CORE += ["blur", "weight", "projection", "localization"]
ROOMS = ("synthgrid", "studies", "panel", "cli")


def test_imports_run_one_way():
    """Downwards and without a circle; no room is imported by the core, and none by another that it imports."""
    package = PROJECT_ROOT / "vaeproj"
    imports = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        relative = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level]
        imports[parts] = set()
        for node in relative:
            base = (*parts[: len(parts) - node.level], *(node.module or "").split(".")) if node.module else parts[: -node.level]
            imports[parts] |= {base} | {(*base, alias.name) for alias in node.names}
    modules = {parts: imported & set(imports) for parts, imported in imports.items()}
    assert sum(map(len, modules.values())) > 100
    TopologicalSorter(modules).prepare()  # raises CycleError
    for name in CORE:
        assert not {parts[0] for parts in modules[(name,)]} & {*ROOMS, "workspace", "figures"}, name
    rooms = {
        room: {p[0] for m, imported in modules.items() if m[0] == room for p in imported} & {*ROOMS} - {room} for room in ROOMS
    }
    TopologicalSorter(rooms).prepare()


def test_citation_names_the_software_and_the_paper():
    citation = yaml.safe_load((PROJECT_ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (vaeproj.__version__, PROJECT["license"])
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2002.03734"


def run_make(*arguments):
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(["make", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, env=environment)


def test_make_alone_lists_every_target():
    listed = run_make()
    assert set(re.findall(r"^  make ([a-z-]+) ", listed.stdout, re.MULTILINE)) == TARGETS


@pytest.mark.parametrize("name", ["README.md", "data/README.md", "results/README.md", ".ci/run"])
def test_documents_name_only_targets_of_the_makefile(name):
    text = (PROJECT_ROOT / name).read_text()
    in_code = "\n".join([*re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL), *re.findall(r"`([^`\n]+)`", text)])
    commands = re.findall(r"(?:^|&& *|\$ )make ([a-z][a-z-]*)", text if name == ".ci/run" else in_code, re.MULTILINE)
    assert set(commands) <= TARGETS


def test_python_too_old_is_refused_in_one_sentence(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n')
    old.chmod(0o755)
    made = run_make("venv", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert made.returncode
    assert re.search(r"needs Python 3\.11 or newer and .* is Python 3\.9\.2", made.stdout)
    assert not (tmp_path / "venv").exists()


STUB = """#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/uv" ;;
"pip install") echo "$@" >>{asked} ;;
"-m pip") ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def installed(tmp_path):
    """What `make venv` says and what it asks of uv, by a Python that makes environments in which nothing is installed."""
    stub, asked = tmp_path / "python3", tmp_path / "asked"
    stub.write_text(STUB.format(asked=asked, python=sys.executable))
    stub.chmod(0o755)

    def install(**variables):
        variables = {"PYTHON": stub, "VENV": tmp_path / "venv", "DRIVER": "", "TORCH_INDEX": ""} | variables
        made = run_make("venv", *(f"{name}={value}" for name, value in variables.items()))
        assert not made.returncode, made.stderr
        return made.stdout, asked.read_text().splitlines()

    return install


@pytest.fixture
def index(tmp_path):
    """The address of an index that answers for torch."""
    (tmp_path / "torch").mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one build")
def test_install_takes_the_cpu_build_without_a_driver_where_its_index_answers(installed, index):
    said, (torch, rest) = installed(CPU_INDEX=index)
    assert f"Torch from {index}" in said
    assert torch.endswith(f"--no-deps --index-url {index} {read_lock()['torch'][0]} {read_lock()['torchvision'][0]}")
    assert rest.endswith("-c requirements.lock -e .[dev]")


@pytest.mark.parametrize("variables", [{"DRIVER": "there"}, {"CPU_INDEX": "http://127.0.0.1:1"}], ids=lambda v: next(iter(v)))
def test_install_takes_the_ordinary_build_for_a_driver_or_where_no_index_answers(installed, index, variables):
    said, (rest,) = installed(**({"CPU_INDEX": index} | variables))
    assert "ordinary build" in said
    assert "--index-url" not in rest


def test_install_takes_torch_from_the_index_that_is_named(installed, index):
    said, (torch, _) = installed(TORCH_INDEX="https://an.index", CPU_INDEX=index)
    assert "Torch from https://an.index" in said
    assert "--index-url https://an.index torch==" in torch


def test_no_tracked_file_holds_somebodys_home_folder():
    home = re.compile(rb"(?<![\w.~-])/(?:home|root|Users)" + rb"/[\w.-]+")
    texts = {path: data for path in tracked_files() if b"\0" not in (data := path.read_bytes())[:8192]}
    assert not {str(path): match.group() for path, data in texts.items() if (match := home.search(data))}
