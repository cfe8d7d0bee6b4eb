"""gqa_jax inside other libraries. Each module imports its library, and nothing imports these modules."""
