"""`python -m knnlm`, and the program `knnlm`."""

from __future__ import annotations

import sys

from knnlm.system.extras import MissingPackageError, explained
from knnlm.system.terminal import say


def main() -> None:
    """The command line, or what to install for it: `pip install knnlm` alone brings the datastore for Python."""
    try:
        from knnlm.cli import main as command_line
    except ImportError as error:
        why = explained(error, "the command line")
        if not isinstance(why, MissingPackageError):
            raise
        say(f"knnlm: {why}, or 'knnlm[cli]' for the commands that need no language model")
        sys.exit(1)
    command_line(prog_name="knnlm")


if __name__ == "__main__":
    main()
