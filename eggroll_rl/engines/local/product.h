/* Products of rows with a matrix, on one core. The matrix is in panels of WIDE outputs, [panels, I, WIDE], so that a core
 * reads it in order; a tile of rows keeps its sums in registers. Each sum takes its terms one after the other, in stretches
 * of at most DEEP (a panel's stretch stays in the nearest cache): it depends on no other row, nor on how many there are. */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, TALL = 12 };
#elif defined(__AVX2__)
enum { LANES = 8, TALL = 4 };
#else
enum { LANES = 4, TALL = 8 };
#endif
enum { WIDE = 2 * LANES, DEEP = 192 };
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

/* y = or += x w for some rows and the first `wide` outputs of a panel's stretch of `terms` */
static inline __attribute__((always_inline)) void tile(
    int64_t rows, int64_t terms, const float *restrict x, int64_t x_stride, const float *restrict w, float *restrict y,
    int64_t y_stride, int64_t wide, int more
) {
    Lanes sum[TALL][2];
    for (int64_t m = 0; m < rows; m++) sum[m][0] = sum[m][1] = (Lanes){ 0 };
    for (int64_t i = 0; i < terms; i++) {
        Lanes left = *(const Lanes *)(w + i * WIDE), right = *(const Lanes *)(w + i * WIDE + LANES);
        #pragma GCC unroll 16
        for (int64_t m = 0; m < rows; m++) {
            float factor = x[m * x_stride + i];
            sum[m][0] += factor * left;
            sum[m][1] += factor * right;
        }
    }
    for (int64_t m = 0; m < rows; m++) {
        float *restrict out = y + m * y_stride;
        if (wide == WIDE) {
            Lanes *halves = (Lanes *)out;
            halves[0] = more ? halves[0] + sum[m][0] : sum[m][0];
            halves[1] = more ? halves[1] + sum[m][1] : sum[m][1];
        } else {
            float own[WIDE];
            memcpy(own, sum[m], sizeof own);
            for (int64_t o = 0; o < wide; o++) out[o] = more ? out[o] + own[o] : own[o];
        }
    }
}

/* y [M, O] = x [M, I] w for the panels from `first` on, before `last`; both contiguous */
static void multiply(
    int64_t M, int64_t I, int64_t O, const float *x, const float *w, float *y, int64_t first, int64_t last
) {
    int64_t deep = I <= DEEP ? I : I < 2 * DEEP ? (I / 2 + 3) / 4 * 4 : DEEP; /* no short stretch after a long one */
    for (int64_t panel = first; panel < last; panel++) {
        int64_t wide = O - panel * WIDE < WIDE ? O - panel * WIDE : WIDE;
        for (int64_t i = 0; i < I; i += deep) {
            int64_t terms = I - i < deep ? I - i : deep, m = 0;
            const float *xi = x + i, *wi = w + (panel * I + i) * WIDE;
            float *out = y + panel * WIDE;
            for (; m + TALL <= M; m += TALL) tile(TALL, terms, xi + m * I, I, wi, out + m * O, O, wide, i > 0);
            for (; m + 4 <= M; m += 4) tile(4, terms, xi + m * I, I, wi, out + m * O, O, wide, i > 0);
            for (; m < M; m++) tile(1, terms, xi + m * I, I, wi, out + m * O, O, wide, i > 0);
        }
    }
}
