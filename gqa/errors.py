"""How a command refuses: one sentence on stderr, exit code 2."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

import typer


@contextmanager
def one_sentence() -> Iterator[None]:
    """Bad input, a missing package, and a file system that refuses end the command with one line and exit code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        from gqa_spec.packages import not_installed  # which loads numpy, and is needed here alone

        sentence = str(error) if "pip install" in str(error) else not_installed([(error.name or "").partition(".")[0]])
        refuse(sentence, error)
    except OSError as error:
        refuse(_of_file_system(error), error)
    except (ValueError, TypeError) as error:
        refuse(str(error), error)


def refuse(sentence: str, cause: BaseException | None = None) -> NoReturn:
    say(sentence)
    raise typer.Exit(2) from cause


def say(sentence: str) -> None:
    """On stderr: wrapped between words in a terminal, in one line elsewhere."""
    from gqa_weights.checkpoint.printable import sentence as printable_sentence  # which loads numpy

    sentence = printable_sentence(sentence)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        sentence = textwrap.fill(sentence, max(width, 20), break_long_words=False, break_on_hyphens=False)
    typer.echo(sentence, err=True)


def one_of(option: str, given: str, allowed: Iterable[str], also: dict[str, str] | None = None) -> str:
    """`given`, or a refusal that names the nearest. also: words that people use -> the name that they mean."""
    names = list(allowed)
    if given in names:
        return given
    raise ValueError(f"{option}: expected one of {', '.join(names)}, got {given!r}{did_you_mean(given, names, also)}")


def did_you_mean(given: str, allowed: Iterable[str], also: dict[str, str] | None = None) -> str:
    """ "; did you mean X?", or nothing where no name is near."""
    if also and given in also:
        return f"; did you mean {also[given]}?"
    nearest = get_close_matches(given, list(allowed), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def usage_sentence(message: str, command: str) -> str:
    """The sentence for an option or argument that the parser refuses; choices get a suggestion."""
    message = message.strip().rstrip(".")
    choice = re.match(r"Invalid value for (.+?): (?:Value error, )?'(.*)' is not one of (.+)$", message)
    if choice:
        names = re.findall(r"'([^']*)'", choice[3])
        option = choice[1].strip("'")
        message = f"{option}: expected one of {', '.join(names)}, got {choice[2]!r}{did_you_mean(choice[2], names)}"
    else:
        message = message[:1].lower() + message[1:]
    return f"{command}: {message} (see {command} --help)"


def _of_file_system(error: OSError) -> str:
    """Errno and the path in words: "results/a.csv: permission denied"."""
    if error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return str(error)
