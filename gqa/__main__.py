"""`python -m gqa`, and the installed command `gqa`."""

from __future__ import annotations

import sys

from gqa.interrupt import end_on_interrupt


def main() -> None:
    words = [word for word in sys.argv[1:2] if not word.startswith("-")]
    end_on_interrupt(" ".join(["gqa", *words]))
    from gqa.cli import app

    app()


if __name__ == "__main__":
    main()
