"""A mutation fuzzer of checkpoint files, run by hand: python -m tests.weights.fuzz --count 1000 --seed 0.

sources: small sound checkpoints of every format, with tokenizers and manifests. mutations: how a file is damaged.
judge: what the command may do with it. Only the right result, or one sentence with exit code 2, is right.
"""
