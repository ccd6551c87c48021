/* Adapters of rank 1 for vLLM on a CPU, in one pass over a token's input and one over its output:
 *     y += (x . a) b,  with a and b of the token's slot; slot -1: none.
 * Sums are in fp32, rounded once. Tokens are computed one by one, so that a result depends on nothing but its own. */

#include "bf16.h"

/* x [M, I] and y [M, O] with `x_stride` and `y_stride` elements between tokens; a [slots, I] and b [slots, O] contiguous;
 * slot [M]. */
#define ADD_ADAPTER(type)                                                                                              \
    void add_adapter_##type(                                                                                           \
        int64_t M, int64_t I, int64_t O, const type *x, int64_t x_stride, type *y, int64_t y_stride, const type *a,    \
        const type *b, const int64_t *slot                                                                             \
    ) {                                                                                                                \
        _Pragma("omp parallel for schedule(static)") for (int64_t token = 0; token < M; token++) {                     \
            if (slot[token] < 0) continue;                                                                             \
            const type *restrict xt = x + token * x_stride, *restrict at = a + slot[token] * I;                        \
            const type *restrict bt = b + slot[token] * O;                                                             \
            type *restrict yt = y + token * y_stride;                                                                  \
            float h = 0.0f;                                                                                            \
            _Pragma("omp simd reduction(+ : h)") for (int64_t i = 0; i < I; i++)                                       \
                h += widen_##type(xt[i]) * widen_##type(at[i]);                                                        \
            _Pragma("omp simd") for (int64_t o = 0; o < O; o++)                                                        \
                yt[o] = narrow_##type(widen_##type(yt[o]) + h * widen_##type(bt[o]));                                  \
        }                                                                                                              \
    }

ADD_ADAPTER(float)
ADD_ADAPTER(bf16)
