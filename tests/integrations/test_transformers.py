"""`attn_implementation="gqa"`: whole transformers models on gqa_torch's kernel, against their own eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from gqa_torch.integrations import transformers as gqa  # noqa: E402  (only where transformers is installed)

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 20},
    "gpt_oss": {"head_dim": 16, "sliding_window": 5, "rope_parameters": {"rope_type": "default"}, **EXPERTS},
    "mixtral": EXPERTS,
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "cohere2": {"sliding_window": 5},
    "phi3": {},
    "olmo2": {},
    "starcoder2": {"sliding_window": 5},
    "granite": {"attention_multiplier": 0.3},
    "glm4": {"head_dim": 16},
    "smollm3": {},
    "llama4_text": {
        "head_dim": 16,
        "attention_chunk_size": 4,
        "num_local_experts": 2,
        "intermediate_size_mlp": 56,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 0],
        "attn_temperature_tuning": False,
    },
    "gpt_neox": {},
    "nemotron": {},
    "gpt2": {"n_head": 6, "n_embd": 48, "n_layer": 2, "n_positions": 64},
}
# Chunks of Llama 4 need a cache that knows them; its plain call is tested with the others.
GENERATING = [family for family in DECODERS if family != "llama4_text"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    gqa.register()
    torch.manual_seed(0)


def model(family: str, kind: Any = None, **settings: Any) -> Any:
    """A tiny random model of a family; every weight drawn, norms and biases included."""
    config = transformers.AutoConfig.for_model(family, **(SIZES | DECODERS.get(family, {}) | settings))
    made = (kind or transformers.AutoModelForCausalLM).from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim > 1 else 0.5)
    return made


def left_padded() -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, 61, (2, 11))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def both(made: Any, **inputs: Any) -> list[Any]:
    results = []
    for implementation in ("eager", "gqa"):
        made.set_attn_implementation(implementation)
        assert made.config._attn_implementation == implementation
        results.append(made(**inputs))
    return results


def assert_close(got: torch.Tensor, wanted: torch.Tensor, bound: float = 1e-5) -> None:
    assert (got - wanted).abs().max() <= bound * wanted.abs().max()


@pytest.mark.parametrize("weights", [False, True], ids=["context alone", "with weights"])
@pytest.mark.parametrize("family", DECODERS)
def test_logits_and_weights_of_left_padded_rows_are_eagers(family, weights):
    inputs = left_padded()
    with torch.no_grad():
        eager, ours = both(model(family), **inputs, output_attentions=weights)
    real = inputs["attention_mask"].bool()
    assert eager.logits[real].std() > 0.05
    assert_close(ours.logits[real], eager.logits[real])
    for mine, theirs in zip(ours.attentions or (), eager.attentions or (), strict=True):
        rows = real[:, None, :, None].expand_as(theirs)
        assert_close(mine[rows], theirs[rows])
    assert bool(ours.attentions) == weights


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", GENERATING)
def test_generated_tokens_are_eagers(family, cache):
    made, inputs = model(family), left_padded()
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    texts = []
    for implementation in ("eager", "gqa"):
        made.set_attn_implementation(implementation)
        texts.append(made.generate(**inputs, **options, cache_implementation=cache))
    assert torch.equal(*texts)
    assert texts[0].shape == (2, 20)


def test_beams_are_eagers():
    made, inputs = model("llama"), left_padded()
    texts = []
    for implementation in ("eager", "gqa"):
        made.set_attn_implementation(implementation)
        texts.append(made.generate(**inputs, num_beams=3, max_new_tokens=7, do_sample=False, eos_token_id=None))
    assert torch.equal(*texts)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_gradients_are_eagers(family):
    made, inputs = model(family), left_padded()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[0, 3] = -100  # it would be predicted from padding, whose rows are eager's own affair
    gradients = []
    for implementation in ("eager", "gqa"):
        made.set_attn_implementation(implementation)
        made.zero_grad()
        made(**inputs, labels=labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        assert_close(gradients[1][name], wanted, 1e-4)


def test_an_encoder_sees_both_sides():
    inputs = left_padded()
    with torch.no_grad():
        eager, ours = both(model("bert", transformers.AutoModel), **inputs)
    real = inputs["attention_mask"].bool()
    assert_close(ours.last_hidden_state[real], eager.last_hidden_state[real])


def test_the_position_bias_of_t5_is_added():
    inputs = left_padded()
    made = model("t5", transformers.AutoModel, num_heads=6, d_kv=8, d_model=48, d_ff=56, num_layers=2)
    with torch.no_grad():
        eager, ours = both(made, **inputs, decoder_input_ids=inputs["input_ids"][:, :5])
    assert_close(ours.last_hidden_state, eager.last_hidden_state)


def test_padding_cannot_poison():
    """What eager multiplies with 0 and gets NaN, gqa_torch never reads: the embedding of the padding is NaN here."""
    made, inputs = model("llama"), left_padded()
    clean = both(made, **inputs)[1].logits.detach()
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 0)
    with torch.no_grad():
        made.get_input_embeddings().weight[0] = torch.nan
        eager, ours = both(made, **inputs)
    real = inputs["attention_mask"].bool()
    assert eager.logits[real].isnan().any()
    assert torch.equal(ours.logits[real], clean[real])


def test_dropout_acts_in_training_alone():
    made, inputs = model("llama", attention_dropout=0.5), left_padded()
    made.set_attn_implementation("gqa")
    with torch.no_grad():
        calm = [made(**inputs).logits for _ in range(2)]
        made.train()
        trained = [made(**inputs).logits for _ in range(2)]
    assert torch.equal(*calm)
    assert not torch.equal(*trained)


def test_an_argument_that_cannot_be_honoured_is_named():
    module, x = torch.nn.Module(), torch.ones(1, 2, 3, 4)
    gqa.attention(module, x, x, x, None, position_ids=torch.arange(3), cache=None)
    with pytest.raises(ValueError, match="cu_seq_lens_q, cache: gqa_torch's attention in transformers cannot honour"):
        gqa.attention(module, x, x, x, None, cu_seq_lens_q=torch.arange(2), cache=object())


def test_the_registered_name_is_free_to_choose():
    gqa.register("grouped")
    made, inputs = model("llama"), left_padded()
    made.set_attn_implementation("grouped")
    with torch.no_grad():
        assert_close(made(**inputs).logits, both(made, **inputs)[1].logits)
