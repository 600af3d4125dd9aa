# SPDX-License-Identifier: Apache-2.0
"""What the documents tell a reader to type exists: commands and their options, extras, modules, files,
targets, and names of Python."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ardiff_engine as ade
from ardiff_engine import cli

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = "|".join(
    ("generate", "stream", "serve", "train-vae", "encode", "train", "convert", "bench", "info")
)


def commands() -> Iterator[tuple[str, str]]:
    """(document, command) of shell blocks and of `ardiff ...` in the text."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for language, block in FENCE.findall(text):
            if language == "bash":
                for line in block.replace("\\\n", " ").splitlines():
                    if line.strip() and not line.strip().startswith("#") and " | " not in line:
                        yield document.name, line.strip()
        for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
            # Not where an ellipsis, capitals or a choice stand for something else.
            if re.match(rf"(ardiff ({COMMANDS})|python -m|pip install) [^A-Z…|&]*$", span):
                yield document.name, span


def snippets() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for language, block in FENCE.findall(document.read_text(encoding="utf-8")):
            if language == "python" and document.name != "add_a_kernel.md":  # of an op that is made there
                yield document.name, block


def check_command(words: list[str]) -> None:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)  # an environment variable
    if words[0] == "ardiff":
        cli.build_parser().parse_args(words[1:])
    elif words[:2] == ["pip", "install"]:
        for package in words[2:]:
            if found := re.fullmatch(r"\.\[(\w+)\]", package):
                project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
                assert found[1] in project["optional-dependencies"]
            assert not package.startswith("ardiff"), "it is installed from a checkout"
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    for word in words[1:]:
        if re.fullmatch(r"(configs|examples|benchmarks)/.*\.\w+", word):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize(("document", "command"), sorted(set(commands())))
def test_commands_can_be_typed(document: str, command: str) -> None:
    check_command(shlex.split(command, comments=True))


def test_enough_is_found() -> None:
    words = [command.split()[0] for _, command in commands()]
    assert words.count("ardiff") > 10 and words.count("pip") > 3 and words.count("make") > 3
    assert len(list(snippets())) > 10


@pytest.mark.parametrize(("document", "code"), list(snippets()))
def test_names_of_python_exist(document: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ardiff_engine"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")
    for path in re.findall(r"\bade((?:\.\w+)+)", code):
        found: object = ade
        for name in path[1:].split("."):
            found = getattr(found, name)
