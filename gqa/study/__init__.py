"""`gqa study`: what the choice of num_kv_heads costs and gains, in memory, time and quality."""

from __future__ import annotations

from collections.abc import Callable

import typer

from gqa.study.memory import memory_study
from gqa.study.model_speed import model_speed_study
from gqa.study.porting import porting_study
from gqa.study.quality import perplexity_study, uptraining_smollm2_study, uptraining_study
from gqa.study.speed import memory_peak_study, speed_study
from gqa.study.variants import variants_study

study = typer.Typer(no_args_is_help=True, help="What num_kv_heads costs and gains, in memory, time and quality.")
COMMANDS: dict[str, Callable[..., None]] = {
    "speed": speed_study,
    "memory-peak": memory_peak_study,
    "memory": memory_study,
    "perplexity": perplexity_study,
    "uptraining": uptraining_study,
    "uptraining-smollm2": uptraining_smollm2_study,
    "variants": variants_study,
    "model-speed": model_speed_study,
    "porting": porting_study,
}
for name, command in COMMANDS.items():
    study.command(name)(command)
