/* Before and after a product of integers: rows of activations become two digits of int8 each, sums become floats again.
 *     x = unit * (128 high + low),   y = unit * scale * (128 (high . w) + low . w) + bias
 * All arrays are contiguous. Rows are computed one by one, so a row's result depends on nothing but its own. */

#include <math.h>
#include <stdint.h>
#include <stddef.h>

#define LARGEST_WHOLE 16256.0f /* 127 * 128: the digits of a row's largest number */

/* x [M, I] -> digits [2 M, I], the high ones of all rows first, and unit [M] */
void split_rows(int64_t M, int64_t I, const float *x, int8_t *digits, float *unit) {
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < M; row++) {
        const float *restrict xr = x + row * I;
        int8_t *restrict high = digits + row * I, *restrict low = digits + (M + row) * I;
        float largest = 0.0f;
        #pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < I; i++) {
            float size = fabsf(xr[i]);
            largest = size > largest ? size : largest;
        }
        unit[row] = largest / LARGEST_WHOLE;
        float inverse = largest > 1e-30f ? LARGEST_WHOLE / largest : 0.0f;
        #pragma omp simd
        for (int64_t i = 0; i < I; i++) {
            int32_t whole = (int32_t)nearbyintf(xr[i] * inverse);
            int32_t first = (whole + 64) >> 7;
            high[i] = (int8_t)first;
            low[i] = (int8_t)(whole - (first << 7));
        }
    }
}

/* sums [2 M, O] of the digits' products, unit [M], scale [O], bias [O] or NULL -> y [M, O] */
void join_rows(
    int64_t M, int64_t O, const int32_t *sums, const float *unit, const float *scale, const float *bias, float *y
) {
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < M; row++) {
        const int32_t *restrict high = sums + row * O, *restrict low = sums + (M + row) * O;
        float *restrict yr = y + row * O, u = unit[row];
        #pragma omp simd
        for (int64_t o = 0; o < O; o++) yr[o] = (128.0f * (float)high[o] + (float)low[o]) * (u * scale[o]);
        if (bias) {
            #pragma omp simd
            for (int64_t o = 0; o < O; o++) yr[o] += bias[o];
        }
    }
}
