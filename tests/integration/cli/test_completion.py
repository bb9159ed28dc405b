"""Tests of the completion of commands, options and files in bash, and of the scripts for other shells."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers.command_line import ROOT, environment

SHELLS = {"bash": "_kdkit_completion", "zsh": "#compdef kdkit", "fish": "--command kdkit"}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_is_printed(shell, kdkit_process):
    result = kdkit_process("completion", shell)
    assert result.code == 0, result.err
    assert SHELLS[shell] in result.out
    assert "_KDKIT_COMPLETE" in result.out


def test_the_help_has_a_line_for_each_shell(kdkit_here):
    lines = [line.strip() for line in kdkit_here("completion", "--help").out.splitlines()]
    assert 'eval "$(kdkit completion bash)"     # ~/.bashrc' in lines
    assert "kdkit completion fish | source      # ~/.config/fish/config.fish" in lines


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ru"], {"run"}),
        (["c"], {"check", "classes", "cache", "card", "completion"}),
        (["run", "file.py", "--log", "t"], {"tensorboard", "trackio"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["run", str(ROOT / "examples" / "hinton.py"), "--temp"], {"--temperature"}),  # an option of the recipe
        (["ecg", "do"], {"doctor"}),  # a command of a plugin
    ],
)
def test_bash_completes_commands_and_the_options_of_a_recipe(words, expected, tmp_path):
    program = tmp_path / "bin" / "kdkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kdkit "$@"\n')
    program.chmod(0o755)
    # As bash does at a TAB: the words of the line, and the number of the last one.
    line = " ".join(f"'{word}'" for word in ["kdkit", *words])
    script = (
        'eval "$(kdkit completion bash)"\n'
        f"COMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
        '_kdkit_completion kdkit\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    env = environment(PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected


def test_the_help_groups_the_commands_and_cuts_no_description(kdkit_process):
    text = kdkit_process("--help", COLUMNS="80").out
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[-5:] == ["Start:", "Experiments:", "Results:", "Development of kdkit:", "Commands of plugins:"]
    for name in ("run", "sweep", "check", "evaluate", "list", "classes", "cache", "bench", "completion", "ecg"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        assert len(line) <= 80
        assert not line.endswith("...")
