"""The command line. Every command imports what it needs when it runs, so that `inscan --help` answers at once.

Exit status: 0 done; 1 it ran and the answer is bad (a check failed, a run failed); 2 bad input (a file,
a key, an option); 3 no service or no Tiled where one was needed; 130 stopped by Ctrl-C.
"""

import sys

import typer

from inscan.service import (
    cli_config,
    cli_evaluate,
    cli_export,
    cli_forward,
    cli_jobs,
    cli_keys,
    cli_models,
    cli_process,
    cli_profile,
    cli_proposals,
    cli_query,
    cli_recommend,
    cli_replay,
    cli_run,
)

BAD_INPUT = 2
UNREACHABLE = 3
INTERRUPTED = 130

app = typer.Typer(
    name="inscan",
    help="A scan that improves itself while it is being taken.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cli_run.add_to(app)
cli_query.add_to(app)
cli_jobs.add_to(app)
cli_proposals.add_to(app)
cli_recommend.add_to(app)
cli_models.add_to(app)
cli_profile.add_to(app)
cli_evaluate.add_to(app)
cli_export.add_to(app)
cli_replay.add_to(app)
cli_forward.add_to(app)
cli_keys.add_to(app)
cli_process.add_to(app)
app.add_typer(cli_config.app, name="config")


def main() -> None:
    """Run a command; errors that a user can mend are one line on stderr, without a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        print("inscan: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ConnectionError as error:
        print(f"inscan: {error}", file=sys.stderr)
        sys.exit(UNREACHABLE)
    except TimeoutError as error:
        print(f"inscan: {error}", file=sys.stderr)
        sys.exit(UNREACHABLE)
    except (ValueError, OSError, LookupError) as error:
        # Our own errors subclass these and say what, where and what to do.
        text = error.args[0] if isinstance(error, LookupError) and error.args else error
        print(f"inscan: {text}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
