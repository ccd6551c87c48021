/* The term that is each row's own, in one pass over its input and one over its output:
 *     y += coefficient * (x . b) a
 * All arrays are fp32. Rows are computed one by one, so a row's result depends on nothing but its own. */

#include <stdint.h>

/* x [M * T, I] and y [M * T, O] contiguous, T tokens for each of M rows; a [K pairs, O] and b [K pairs, I] with `a_stride`
 * and `b_stride` floats between pairs; coefficient [M]; pair [M], or NULL: M / K rows for each pair, in order. */
void add_rank_one(
    int64_t M, int64_t T, int64_t I, int64_t O, int64_t K, const float *x, float *y, const float *a, int64_t a_stride,
    const float *b, int64_t b_stride, const float *coefficient, const int64_t *pair
) {
    #pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < M * T; token++) {
        int64_t row = token / T;
        int64_t k = pair ? pair[row] : row / (M / K);
        const float *restrict xt = x + token * I, *restrict bk = b + k * b_stride, *restrict ak = a + k * a_stride;
        float *restrict yt = y + token * O;
        float h = 0.0f;
        #pragma omp simd reduction(+ : h)
        for (int64_t i = 0; i < I; i++) h += xt[i] * bk[i];
        h *= coefficient[row];
        #pragma omp simd
        for (int64_t o = 0; o < O; o++) yt[o] += h * ak[o];
    }
}
