"""The README is true: its commands exist and run, its links lead somewhere, every command and option has help."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


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


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), f"README links to {target}, which is not there"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (demo|test|lint)\b", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_readme_commands_and_code_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            ran += 1
        for line in text.splitlines() if language == "bash" else []:
            words = shlex.split(line, comments=True)
            if not words or words[0] != "tfmuscle" or words[1:] == ["demo"]:  # the demo has a test of its own
                continue
            result = CliRunner().invoke(tfmuscle_group, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.output}"
            ran += 1
    assert ran >= 9
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
