"""The checks: each compares one array of one case with what is expected, and prints nothing.

check: one comparison and its verdict. expected: the oracle's arrays and their bounds. backends: our three, against each
other and the oracle. targets, caches: a user's function, class, cache. judge: all cases of one target, in processes.
multi_head: against torch.nn.MultiheadAttention. smollm2: on real weights. run: the whole run on our backends.
"""
