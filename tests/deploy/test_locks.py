"""The image is built from locks that say what requirements.lock says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from scripts.runtime_lock import ROOT, closure, cuts, entries


def test_the_locks_of_the_image_are_cut_out_of_the_whole() -> None:
    for path, text in cuts().items():
        assert path.read_text() == text, f"{path.name} is stale: make lock"


def test_the_image_has_what_the_package_names_and_nothing_for_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {
        re.split(r"[\[<>=~!; ]", each, maxsplit=1)[0] for each in project["project"]["dependencies"]
    }
    locked = set(entries((ROOT / "requirements-runtime.lock").read_text()))
    assert wanted <= locked
    assert not {"pytest", "mypy", "grpcio", "hatchling"} & locked
    for entry in entries((ROOT / "requirements-runtime.lock").read_text()).values():
        assert "--hash=sha256:" in entry
    build = set(entries((ROOT / "requirements-build.lock").read_text()))
    assert {each.split(">")[0] for each in project["build-system"]["requires"]} <= build


def test_the_closure_follows_what_needs_what() -> None:
    packages = {
        "a": "a==1 \\\n    # via root\n",
        "b": "b==1 \\\n    # via\n    #   a\n    #   x\n",
        "c": "c==1 \\\n    # via x\n",
    }
    assert list(closure(packages, "root")) == [packages["a"], packages["b"]]


def test_only_what_is_needed_goes_into_the_image() -> None:
    lines = (Path(ROOT) / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    copied = set(re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M))
    names = {name for line in copied for name in line.split()}
    allowed = {line.removeprefix("!").removesuffix("/**") for line in lines if line[0] == "!"}
    assert names == allowed
