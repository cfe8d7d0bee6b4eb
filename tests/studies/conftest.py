"""JAX as users have it, without x64, and a small checkpoint."""

import pytest


@pytest.fixture(autouse=True)
def _without_x64():
    import jax

    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A llama that transformers saved."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1100,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path
