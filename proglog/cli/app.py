"""The commands, and the one place where their errors become a line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.config import Env

import proglog
from proglog.cli import INTERRUPTED
from proglog.cli.config_file import config_file
from proglog.errors import ConfigurationError, ProglogError, UnknownFormat

DONE, FAILED, MISUSED, BROKEN_PIPE = 0, 1, 2, 141


app = App(
    name="proglog",
    help="A distributed commit log.",
    version=f"proglog {proglog.__version__}",
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Install completion for this shell (bash, zsh, fish).")
app.command(
    "proglog.cli.serve:serve",
    help="""Start a node.

    It stops on SIGTERM or SIGINT, once what is under way is answered and on disk. Each flag is also
    an environment variable (--data-dir: PROGLOG_DATA_DIR) and a key of the config file (data-dir).
    Flags win over the environment, and both over the file.
    """,
    config=[Env("PROGLOG_", command=False), config_file],
)
app.command("proglog.cli.produce:produce", help="Append each line of files, or of stdin.")
app.command("proglog.cli.consume:consume", help="Print records, each value on a line.")
app.command("proglog.cli.cluster:app", name="cluster", help="Look at a cluster and change it.")
app.command("proglog.cli.cluster:members", help="Print who is there, by gossip.")
app.command("proglog.cli.cluster:leave", help="Make a node leave its cluster and stop.")
app.command("proglog.cli.backup:backup", help="Copy what is new in a log to another place.")
app.command("proglog.cli.backup:restore", help="Make a data directory out of a backup.")
app.command("proglog.cli.drain:drain", help="Make a node ready to be stopped.")
app.command(
    "proglog.cli.k8s_hooks:k8s_hooks", name="k8s-hooks", help="Serve Metacontroller's hooks."
)
app.command("proglog.cli.certs:app", name="certs", help="Make certificates, and look at them.")
app.command("proglog.cli.dev:dev", help="Run a local cluster in this terminal.")
app.command("proglog.cli.top:top", help="Show a cluster as a node sees it, each second.")
app.command("proglog.cli.bench:bench", help="Measure how fast a node is.")
app.command("proglog.cli.check:verify", help="Check every byte of a stopped node's data.")
app.command("proglog.cli.renew:renew", help="Make a stopped node a new server of its cluster.")
app.command("proglog.cli.renew:recover", help="Go on without a majority that is lost for good.")
app.command("proglog.cli.check:repair", help="Mend what is safe in a stopped node's data.")


def run(tokens: Sequence[str]) -> int:
    """Runs one command line and returns its exit status. A user's mistake gets one line."""
    try:
        return app(tokens) or DONE
    except CycloptsError as error:
        command = " ".join(("proglog", *(error.command_chain or ())))
        print(f"{command}: {error}\nTry: {command} --help", file=sys.stderr)
        return MISUSED
    except ConfigurationError as error:
        return _fail(error, MISUSED)
    except UnknownFormat as error:
        return _fail(error, error.exit_status)
    except BrokenPipeError:
        # Who read our output is gone; nothing more may be written to it, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except ProglogError as error:
        return _fail(error, FAILED)
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{place}{error.strerror or error}", FAILED)


def _fail(why: object, status: int) -> int:
    print(f"proglog: {why}", file=sys.stderr)
    return status
