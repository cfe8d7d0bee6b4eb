"""Chat templates, beside what transformers makes of them; hub ids; the ids that end a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gqa_weights.chat import chat_prompt
from gqa_weights.checkpoint import CheckpointError, open_checkpoint
from gqa_weights.hub import local
from gqa_weights.tokenizer import read_tokenizer
from tests.cli.checkpoints import ok, refused, run
from tests.weights.fuzz import sources

pytestmark = pytest.mark.no_shape_checks
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

TEMPLATES = {
    "ChatML": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "Llama 3": "{{ bos_token }}{% for m in messages %}\n  {% if loop.first and m.role == 'system' %}{% continue %}"
    "{% endif %}\n<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "tools and JSON": "{% if tools %}tools{% endif %}{{ messages | tojson }}{{ messages | tojson(indent=1) }}"
    "{% set seen = namespace(n=0) %}{% set seen.n = seen.n + 1 %}{{ seen.n }}{{ dict(a=1) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}\n",
    "date": "{{ strftime_now('%Y') }}{{ messages[0].content }}",
}
EOS = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "special": True}
TEXT = "  hello <b> 'world' é\n"
MESSAGES = [{"role": "user", "content": TEXT}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sources.huggingface(tmp_path / "model")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": EOS}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path / "model"


def with_template(folder: Path, template: Any, place: str = "tokenizer_config.json") -> Path:
    file = folder / place
    if place.endswith(".jinja"):
        file.write_text(template)
    else:
        given = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**given, "chat_template": template}))
    return folder


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_gives_what_transformers_makes_of_it(case: str, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with_template(folder, TEMPLATES[case])
    library = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    expected = library.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert chat_prompt(open_checkpoint(folder), TEXT) == expected


def test_the_newer_place_goes_before_the_older(folder: Path) -> None:
    listed = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "one of several"}]
    assert chat_prompt(open_checkpoint(with_template(folder, listed)), TEXT) == "one of several"
    with_template(folder, "of JSON", "chat_template.json")
    assert chat_prompt(open_checkpoint(folder), TEXT) == "of JSON"
    with_template(folder, "of a file", "chat_template.jinja")
    assert chat_prompt(open_checkpoint(folder), TEXT) == "of a file"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "expected a tokenizer with a chat template, got none"),
        ("{{ raise_exception('roles must alternate') }}", "chat template: roles must alternate (TemplateError)"),
        ("{% for %}", "chat template: "),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ missing.attribute }}", "UndefinedError"),
    ],
)
def test_a_template_that_fails_is_one_sentence(template: str | None, sentence: str, folder: Path) -> None:
    if template is not None:
        with_template(folder, template)
    with pytest.raises(CheckpointError) as raised:
        chat_prompt(open_checkpoint(folder), TEXT)
    assert sentence in str(raised.value)


def test_a_template_writes_its_own_first_token(folder: Path) -> None:
    file = folder / "tokenizer.json"
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    library = Tokenizer.from_file(str(file))
    bos = library.token_to_id("<s>")
    library.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    library.save(str(file))
    tokenizer = read_tokenizer(open_checkpoint(folder))
    assert tokenizer.encode("hello")[0] == bos
    assert bos not in tokenizer.encode("hello", special=False)
    assert tokenizer.encode("<s>hello", special=False)[0] == bos


def test_generate_answers_a_message(folder: Path) -> None:
    refused(run("generate", folder, "hello", "--chat"), folder / "none", "expected a tokenizer with a chat template")
    with_template(folder, "<s>{{ messages[0].content }}")
    shown = ok("generate", folder, "hello", "--chat", "--max-new-tokens", 3, "--backend", "numpy")
    assert "2 tokens read" in shown.stderr
    assert not shown.stdout.startswith("hello")


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [
        ({"eos_token_id": [5, 7]}, {"eos_token_id": 3}, (5, 7)),
        ({"eos_token_id": 5}, {"eos_token_id": 3}, (5,)),
        ({"eos_token_id": None}, {"eos_token_id": 3}, (3,)),
        ({}, {"eos_token_id": [3, 4]}, (3, 4)),
        (None, {"eos_token_id": 3}, (3,)),
        ({}, {"eos_token_id": None, "text_config": {"eos_token_id": 9}}, (9,)),
        ({}, {"eos_token_id": None}, ()),
    ],
)
def test_a_text_ends_where_the_settings_say(
    generation: Any, config: dict[str, Any], stops: tuple[int, ...], folder: Path
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert read_tokenizer(open_checkpoint(folder)).stop_tokens == stops


def test_nothing_is_downloaded_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: given.append(options) or str(tmp_path))
    assert local("some/model") == tmp_path
    assert given == [{"local_files_only": True}]


def test_hub_ids_are_read_from_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "cache" / "models--some--model"
    snapshot, blobs = place / "snapshots" / commit, place / "blobs"
    for part in (snapshot, blobs, place / "refs"):
        part.mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert local("some/model").samefile(snapshot)
    assert local(folder) == folder
    monkeypatch.chdir(tmp_path)
    found = json.loads(ok("inspect", "some/model", "--json", "-").stdout)
    assert found["family"] == "llama"
    ok("port", "some/model", tmp_path / "ported", "--to", "canonical")
    ok("verify", "some/model", tmp_path / "ported", "--exact")
    ok("generate", "some/model", "hello", "--max-new-tokens", 2, "--backend", "numpy")
    sentence = "some/other: no such file or folder, nor is this hub id in the cache: `hf download some/other`"
    for arguments in (
        ("inspect", "some/other"),
        ("port", "some/other", tmp_path / "new", "--to", "canonical"),
        ("pool", "some/other", tmp_path / "new", "--num-kv-heads", 1),
        ("expand", "some/other", tmp_path / "new"),
        ("verify", "some/model", "some/other"),
        ("generate", "some/other", "hello"),
    ):
        refused(run(*arguments), tmp_path / "new", sentence)
