"""What the tests of the studies share."""

import csv

from typer.testing import CliRunner

from gqa import app
from gqa_studies.training import Recipe

TINY = Recipe(width=16, heads=4, layers=2, feed_forward=24, context=12, batch=3, steps=10, test_bytes=61)


def run(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def one_line(result):
    """The output with every run of white space as one space: where a line is wrapped does not matter."""
    return " ".join(result.output.split())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
