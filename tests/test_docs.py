"""The README is true: its commands exist and run, its links lead somewhere, every command and option has help."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tfmuscle import models
from tfmuscle.cli import tfmuscle_group
from tfmuscle.workflows import catalogue

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "docs/data.md": (ROOT / "docs" / "data.md").read_text(encoding="utf-8")}


@pytest.mark.parametrize("name", sorted(tfmuscle_group.commands))
def test_every_command_has_help_and_stands_in_the_readme(name):
    command = tfmuscle_group.commands[name]
    assert command.help
    assert f"tfmuscle {name}" in README
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, f"{name} {parameter.name} has no help"
    for flag in ("-h", "--help"):
        result = CliRunner().invoke(tfmuscle_group, [name, flag])
        assert result.exit_code == 0 and command.help.split(".")[0].split("\n")[0][:30] in result.output


@pytest.mark.parametrize("words", [[], ["fit"], ["demo"]])
def test_version(words):
    result = CliRunner().invoke(tfmuscle_group, [*words, "--version"])
    assert result.exit_code == 0 and re.search(r"\d+\.\d+\.\d+", result.output)


@pytest.mark.parametrize("page", [*PAGES, "docs/bones.md", "docs/dicom.md", "docs/architecture.md"])
def test_links_lead_to_files(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}, which is not there"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (demo|test|lint)\b", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


class FewModels:
    """Stands for the models of which `tfmuscle models` speaks: two of them."""

    describe = staticmethod(models.describe)

    @staticmethod
    def available():
        return ["unet2d", "unet"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_code_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "models", FewModels)  # test_models.py describes every one
    ran = 0
    for language, text in re.findall(r"```(\w+)\n(.*?)```", PAGES[page], flags=re.DOTALL):
        if language == "python":
            exec(compile(text, page, "exec"), {})
            ran += 1
        for line in text.splitlines() if language == "bash" else []:
            words = shlex.split(line, comments=True)
            if not words or words[0] != "tfmuscle" or words[1:] == ["demo"]:  # the demo has a test of its own
                continue
            result = CliRunner().invoke(tfmuscle_group, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.output}"
            ran += 1
    assert ran >= 9
    if page == "README.md":
        assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
