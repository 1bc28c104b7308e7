"""The ``budwood`` command. Its list of commands is known without importing any of them.

A command prints for people with :func:`budwood.cli.output.say` and returns plain data, which ``--json`` prints as the last
line of standard output; then everything else that is printed goes to standard error.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

import click

from budwood import __version__
from budwood.cli.groups import Command, Invocation, Root
from budwood.cli.output import Answer, json_line, say

COMMANDS = {
    "run": Command("budwood.cli.training:run", "Train one run from a YAML file."),
    "resume": Command("budwood.cli.training:resume", "Continue a run, after a crash or with more steps."),
    "launch": Command("budwood.cli.training:launch", "Train one run in several processes."),
    "study": Command("budwood.cli.study:study", "Run variants x seeds; interquartile means, intervals, figures."),
    "compare": Command("budwood.cli.study:compare", "Overlay runs: last numbers, different settings, curves."),
    "eval": Command("budwood.cli.training:evaluate", "Fresh episodes of a trained policy."),
    "export": Command("budwood.cli.training:export", "Write the trainer's own file, e.g. model.zip."),
    "runs": Command("budwood.cli.runs:runs", "List runs; send what the tracker missed."),
    "ui": Command("budwood.cli.runs:ui", "Open MLflow's page over the output folder."),
    "explain": Command("budwood.cli.explain:explain", "What a run would bind where, before training."),
    "schema": Command("budwood.cli.explain:schema", "JSON Schema of a configuration, for editors."),
    "plugins": Command("budwood.cli.plugin:plugins", "List installed plugins."),
    "plugin": Command("budwood.cli.plugin:plugin", "Start a plugin of your own, or check one."),
    "demo": Command("budwood.cli.demo:demo", "See a plugin change a result, in about a minute."),
    "doctor": Command("budwood.cli.machine:doctor", "What is wrong with this machine, if anything."),
}

INTERRUPTED = 130


@click.group(
    cls=Root,
    core=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="budwood")
def cli() -> None:
    """Graft methods from papers onto the RL trainers people already use.

    \b
      budwood demo                          see it work
      budwood run hopper.yaml seed=3        train, tracked and resumable
      budwood COMMAND --help                how to use one command, with an example
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    as_json = "--json" in words
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        answer = _answer(words, debug="--debug" in words)
    try:
        if as_json:
            print(json_line(answer.data), flush=True)
        else:
            sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
    return answer.code


def _answer(words: list[str], debug: bool) -> Answer:
    invocation = Invocation()
    try:
        returned = cli.main(words, prog_name="budwood", standalone_mode=False, obj=invocation)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return Answer({"error": {"what": "interrupted"}}, INTERRUPTED)
    except click.ClickException as error:
        return _usage(error)
    except Exception as error:  # noqa: BLE001 - the last resort: a person gets a paragraph, --debug the traceback
        return _failure(error, invocation, debug)
    if isinstance(returned, Answer):
        return returned
    return Answer(None, returned) if isinstance(returned, int) else Answer(returned)


def _usage(error: click.ClickException) -> Answer:
    """A command line that cannot be understood."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    hint = f"Try: {context.command_path} --help" if context is not None else "Try: budwood --help"
    complain(f"{message} {hint}" if message.endswith((".", "?", "!")) else f"{message}. {hint}")
    return Answer({"error": {"what": message, "do": hint}}, error.exit_code)


def _failure(error: Exception, invocation: Invocation, debug: bool) -> Answer:
    from budwood.api import BudwoodError

    if isinstance(error, BrokenPipeError) and _stdout_is_gone():
        _abandon_stdout()
        return Answer(None)
    if debug:
        import traceback

        from budwood.redact import without_secrets

        click.echo(without_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
    facts: dict[str, Any] = {"type": type(error).__name__}
    if isinstance(error, BudwoodError):
        if not getattr(error, "told", False):
            complain(str(error))
        facts |= {"what": error.what, "where": error.where, "who": error.who, "do": error.do}
        return Answer({"error": facts | {"problems": list(error.problems)}}, error.exit_code)
    what = f"unexpected {type(error).__name__}: {error}"
    do = "" if debug else "Run the same command with --debug to see where"
    if _is_out_of_memory(error):
        what = f"out of memory: {' '.join(str(error).split())[:300]}"
        do = "Make the batch, the rollout or the model smaller, then resume: the last checkpoint is intact"
    complain(str(BudwoodError(what, who=invocation.who, do=do)))
    return Answer({"error": facts | {"what": what, "where": "", "who": invocation.who, "do": do}}, 1)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own error, that of a GPU, or that of torch's allocator on a CPU, which is a plain RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def complain(text: str) -> None:
    from budwood.redact import without_secrets

    click.secho("error", fg="red", bold=True, nl=False, err=True)
    click.echo(f": {without_secrets(text)}", err=True)


def _stdout_is_gone() -> bool:
    """Whether it is our reader that went away, and not the other end of some other pipe."""
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout, 0)
        return any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError, TypeError):  # no descriptor behind it
        return False


def _abandon_stdout() -> None:
    """The reader of a pipe is gone; nothing more is written, not even at exit."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
