"""`taskflux completion`: the script that teaches a shell our words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from taskflux.cli.exits import FAILED, leave


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash   eval "$(taskflux completion bash)"            in ~/.bashrc
    zsh    eval "$(taskflux completion zsh)"             in ~/.zshrc
    fish   taskflux completion fish | source             in ~/.config/fish/config.fish
    """
    from taskflux.cli import main

    kind = get_completion_class(shell)
    if kind is None:
        leave(f"{shell} is not known to this version of click", FAILED)
    # source() of bash first runs the shell to learn its version; the text alone needs no shell.
    complete = kind(main, {}, "taskflux", "_TASKFLUX_COMPLETE")
    click.echo(complete.source_template % complete.source_vars())
