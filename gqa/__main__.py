"""`python -m gqa`: the command."""

from gqa.cli import app

if __name__ == "__main__":
    app(prog_name="gqa")
