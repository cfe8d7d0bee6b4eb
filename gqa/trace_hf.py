"""`gqa trace --hf`: the stages inside a transformers model on gqa_torch's kernel, beside the model's own attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from conformance.trace.foreign import (
    RANDOM_TOKENS,
    TEXT,
    Apart,
    compare,
    transformers_model,
    transformers_tokens,
)
from gqa.lines import Indented
from gqa.outputs import STDOUT, list_written, write_json
from gqa_weights.hub import local

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layer:
    """One attention. weights, block: its weights and the hidden states after its block against eager's."""

    stages: dict[str, torch.Tensor]
    weights: Apart
    block: Apart

    @property
    def same(self) -> bool:
        return self.weights.same and self.block.same


def trace_hf(given: str, text: str | None, number: int | None, json: Path | None) -> bool:
    """Print the layers of the model, or every stage of one; whether all agree with eager attention.

    Raises ValueError for a model whose attention does not go through transformers' AttentionInterface.
    """
    path = local(given)
    model = _model(path)
    layers = _layers(model, _tokens(path, text, model.config))
    if number is not None and not 0 <= number < len(layers):
        raise ValueError(f"--layer: expected 0 to {len(layers) - 1}, got {number}")
    same = all(layer.same for layer in layers)
    if json != STDOUT:
        console = Console(highlight=False)
        console.print(_verdict(layers))
        console.print(Indented(f"{model.config.model_type}, float32, eager against gqa_torch: {given}"))
        console.print(_table(layers) if number is None else _stages(layers[number].stages))
    if json is not None:
        write_json(json, {"model": given, "same": same, "layers": [_row(layer) for layer in layers]})
    list_written(json)
    return same


def _model(path: Path) -> Any:
    """The model in float32, with eager attention."""
    model = transformers_model(path, "float32", "--hf", own_class=True)
    if model.config.is_encoder_decoder:
        raise ValueError(f"--hf: expected a decoder or an encoder, got {model.config.model_type}, which is both")
    return model


def _tokens(path: Path, text: str | None, config: Any) -> torch.Tensor:
    """The text in the model's own tokens; without a tokenizer, random tokens, where no text was given."""
    import torch

    try:
        return torch.tensor([transformers_tokens(path, TEXT if text is None else text)])
    except ValueError:
        if text is not None:
            raise
        count = min(RANDOM_TOKENS, getattr(config, "max_position_embeddings", RANDOM_TOKENS))
        return torch.randint(config.vocab_size, (1, count), generator=torch.Generator().manual_seed(0))


def _layers(model: Any, tokens: torch.Tensor) -> list[Layer]:
    """Both passes, layer by layer."""
    import torch

    from gqa_torch.integrations.transformers import recorded_stages

    with torch.no_grad():
        eager = model(tokens, output_attentions=True, output_hidden_states=True)
        model.set_attn_implementation("gqa")
        with recorded_stages() as recorded:
            ours = model(tokens, output_hidden_states=True)
    if not recorded or len(recorded) != len(eager.attentions):
        kind = model.config.model_type
        raise ValueError(
            f"--hf: expected a model whose attention goes through transformers' AttentionInterface, got {kind}, "
            f"in which {len(recorded)} of its attentions do"
        )
    blocks = zip(ours.hidden_states[1:], eager.hidden_states[1:], strict=True)
    return [
        Layer(stages, _compared("weights", stages["weights"], weights), _compared("hidden states", *after))
        for stages, weights, after in zip(recorded, eager.attentions, blocks, strict=True)
    ]


def _compared(place: str, found: torch.Tensor, expected: torch.Tensor) -> Apart:
    return compare(place, found.numpy(), expected.numpy(), "float32")


def _verdict(layers: list[Layer]) -> str:
    wrong = next((i for i, layer in enumerate(layers) if not layer.same), None)
    if wrong is None:
        return (
            f"[bold green]AGREE[/]  {len(layers)} layers, each within {layers[0].block.allowed:g} of its largest value"
        )
    return f"[bold red]DIFFER[/]  first at layer {wrong}"


def _table(layers: list[Layer]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="errors relative to the largest value")
    for name in ("layer", "N/K", "T", "largest |score|", "largest weight", "weights", "hidden states"):
        table.add_column(name, justify="right")
    for i, layer in enumerate(layers):
        stages = layer.stages
        heads = f"{stages['query'].shape[1]}/{stages['key'].shape[1]}"
        numbers = (f"{float(stages[name].abs().max()):.3g}" for name in ("scores", "weights"))
        errors = (f"{apart.error:.2g}" for apart in (layer.weights, layer.block))
        style = "" if layer.same else "red"
        table.add_row(str(i), heads, str(stages["query"].shape[2]), *numbers, *errors, style=style)
    return table


def _stages(stages: dict[str, torch.Tensor]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="of finite values; not finite: masked or overflowed")
    table.add_column("stage")
    table.add_column("shape")
    for name in ("smallest", "largest", "mean |x|", "not finite"):
        table.add_column(name, justify="right")
    for name, x in stages.items():
        finite = x[x.isfinite()]
        numbers = [finite.min(), finite.max(), finite.abs().mean()] if finite.numel() else []
        shown = [f"{float(number):.4g}" for number in numbers] or ["", "", ""]
        table.add_row(name, str(tuple(x.shape)), *shown, str(x.numel() - finite.numel()))
    return table


def _row(layer: Layer) -> dict[str, Any]:
    shapes = {name: list(x.shape) for name, x in layer.stages.items()}
    return {"weights": layer.weights.error, "hidden_states": layer.block.error, "same": layer.same, "stages": shapes}
