"""A kernel that shows the words behind the noise, for ``test_triton.py``."""

import triton
import triton.language as tl

from eggroll_rl.es.kernels.noise import words


@triton.jit
def store_words(out, where, pair, stream, first, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    w0, w1, w2, w3 = words(where, pair, stream, first + n)
    tl.store(out + n, w0.to(tl.int64))
    tl.store(out + BLOCK + n, w1.to(tl.int64))
    tl.store(out + 2 * BLOCK + n, w2.to(tl.int64))
    tl.store(out + 3 * BLOCK + n, w3.to(tl.int64))
