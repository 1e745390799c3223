"""Command line of the package: `trl-agentic COMMAND ...`, or `python -m trl_agentic COMMAND ...`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from trl_agentic import __version__


# Name of a command (one word or two): its function, which receives the remaining arguments, and a description. A
# module is imported when its command is used.
COMMANDS = {
    "evaluate": ("trl_agentic.evaluation.command:main", "success of a policy by task type"),
    "view": ("trl_agentic.viewer.command:view", "saved trajectories as one HTML page"),
    "plot": ("trl_agentic.viewer.command:plot", "learning curves of runs"),
    "webshop serve": ("trl_agentic.environments.webshop.serve:main", "the shop as web pages, to play by hand"),
    "retriever": ("trl_agentic.environments.search.server:main", "a search server with the interface of Search-R1's"),
    "serve": ("trl_agentic.serving:main", "a vLLM server that receives weights from a trainer"),
    "env": ("trl_agentic.installation:main", "versions, devices, data and extras of this installation"),
}


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the arguments name.

    Args:
        argv: the arguments. If `None`, those of the process.
    """
    words = sys.argv[1:] if argv is None else argv
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            module, _, function = COMMANDS[name][0].partition(":")
            getattr(import_module(module), function)(words[count:])
            return
    width = max(len(name) for name in COMMANDS)
    parser = argparse.ArgumentParser(
        prog="trl-agentic",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="trl-agentic COMMAND ...",
        description="Multi-turn reinforcement learning of language-model agents.",
        epilog="commands (each has its own --help):\n"
        + "\n".join(f"  {name:<{width}}  {description}" for name, (_, description) in COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_known_args(words)
    parser.error(f"choose a command: {', '.join(COMMANDS)}" if words else "a command is needed; see --help")
