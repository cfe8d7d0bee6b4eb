"""`python -m gqa`, and the installed command `gqa`."""

from __future__ import annotations

import os
import sys

from gqa.interrupt import EXIT_CODE, end_on_interrupt, sentence


def main() -> None:
    words = [word for word in sys.argv[1:2] if not word.startswith("-")]
    name = " ".join(["gqa", *words])
    end_on_interrupt(name)
    try:
        from gqa.cli import app

        app()
    except KeyboardInterrupt:
        print(sentence(name), file=sys.stderr)
        _exit_now()
    except SystemExit as end:
        if end.code == EXIT_CODE:
            _exit_now()
        raise


def _exit_now() -> None:
    """After Ctrl-C nothing is worth the seconds that frameworks take to end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


if __name__ == "__main__":
    main()
