/* One decoding step of RWKV-7 for M rows, all that stands between the matrix products, in as few passes as there are
 * products to wait for. Each row carries its own rank-r perturbation of every matrix:
 *     y = x W^T + c A^T,  c = coefficient * (x B)
 * The kernel that makes a product's input also makes c; the kernel that reads its output adds c A^T.
 *
 * D width, H heads, K head size, R inner size, r rank. All arrays are contiguous fp32 unless a stride is given. */

#include <math.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>

typedef struct {           /* who is in the rows; coefficient NULL: the unperturbed model */
    const int64_t *pair;   /* [M] */
    const float *coefficient; /* [M] */
    int64_t rank;
} Members;

typedef struct {           /* one matrix's noise; a NULL: it does not evolve */
    const float *a;        /* [K pairs, out, r] */
    const float *b;        /* [K pairs, in, r] */
    int64_t a_stride, b_stride; /* floats between the noise of two pairs */
    float *c;              /* [M, r] */
} Matrix;

static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = nearbyintf(x * 1.44269504f);
    float f = fmaf(n, -0.693145752f, x);
    f = fmaf(n, -1.42860677e-6f, f);
    float p = 1.98412698e-4f;
    p = fmaf(p, f, 1.38888889e-3f);
    p = fmaf(p, f, 8.33333333e-3f);
    p = fmaf(p, f, 4.16666667e-2f);
    p = fmaf(p, f, 1.66666667e-1f);
    p = fmaf(p, f, 0.5f);
    p = fmaf(p, f, 1.0f);
    p = fmaf(p, f, 1.0f);
    union { int32_t i; float f; } power = { ((int32_t)n + 127) << 23 };
    return p * power.f;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* c of one row: coefficient * (x B) */
static inline void project(const Members *who, const Matrix *matrix, int64_t row, const float *x, int64_t size) {
    if (!matrix->a || !who->coefficient) return;
    const float *b = matrix->b + who->pair[row] * matrix->b_stride;
    for (int64_t j = 0; j < who->rank; j++) {
        float sum = 0.0f;
        if (who->rank == 1) {
            #pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < size; i++) sum += x[i] * b[i];
        } else {
            for (int64_t i = 0; i < size; i++) sum += x[i] * b[i * who->rank + j];
        }
        matrix->c[row * who->rank + j] = who->coefficient[row] * sum;
    }
}

/* y += c A^T for `size` outputs of one row, from output `first` on */
static inline void perturb(
    const Members *who, const Matrix *matrix, int64_t row, float *restrict y, int64_t first, int64_t size
) {
    if (!matrix->a || !who->coefficient) return;
    const float *restrict a = matrix->a + who->pair[row] * matrix->a_stride + first * who->rank;
    const float *c = matrix->c + row * who->rank;
    if (who->rank == 1) {
        #pragma omp simd
        for (int64_t i = 0; i < size; i++) y[i] += c[0] * a[i];
    } else {
        for (int64_t i = 0; i < size; i++)
            for (int64_t j = 0; j < who->rank; j++) y[i] += c[j] * a[i * who->rank + j];
    }
}

/* Residual, norm and token shift: x += delta; h = norm(x); out_n = h + (shift - h) * mix_n; shift = h.
 * `source` is the matrix that made delta; matrix m reads out_n with n = input[m]. */
void mix(
    const Members *who, int64_t M, int64_t D, float *x, float *delta, const Matrix *source,
    const float *norm_weight, const float *norm_bias, float eps, float *shift,
    int64_t outputs, const float *mixes, float *out, int64_t matrices, const Matrix *matrix, const int64_t *input
) {
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < M; row++) {
        float *restrict xr = x + row * D;
        if (delta) {
            float *restrict dr = delta + row * D;
            perturb(who, source, row, dr, 0, D);
            #pragma omp simd
            for (int64_t i = 0; i < D; i++) xr[i] += dr[i];
        }
        float mean = 0.0f, square = 0.0f;
        #pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < D; i++) mean += xr[i];
        mean /= D;
        #pragma omp simd reduction(+ : square)
        for (int64_t i = 0; i < D; i++) square += (xr[i] - mean) * (xr[i] - mean);
        float scale = 1.0f / sqrtf(square / D + eps);
        float *restrict last = shift + row * D;
        for (int64_t n = 0; n < outputs; n++) {
            const float *restrict mu = mixes + n * D;
            float *restrict o = out + (n * M + row) * D;
            #pragma omp simd
            for (int64_t i = 0; i < D; i++) {
                float h = (xr[i] - mean) * scale * norm_weight[i] + norm_bias[i];
                o[i] = h + (last[i] - h) * mu[i];
            }
        }
        #pragma omp simd
        for (int64_t i = 0; i < D; i++) last[i] = (xr[i] - mean) * scale * norm_weight[i] + norm_bias[i];
        for (int64_t m = 0; m < matrices; m++)
            project(who, matrix + m, row, out + (input[m] * M + row) * D, D);
    }
}

enum { IDENTITY, TANH, SIGMOID, SQUARED_RELU };

/* Between two matrices: h = activation(h), both of their perturbations included. */
void activate(
    const Members *who, int64_t M, int64_t R, float *h, int64_t kind, const Matrix *before, const Matrix *after
) {
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < M; row++) {
        float *restrict hr = h + row * R;
        perturb(who, before, row, hr, 0, R);
        if (kind == TANH) {
            #pragma omp simd
            for (int64_t i = 0; i < R; i++) hr[i] = 1.0f - 2.0f / (exponential(2.0f * hr[i]) + 1.0f);
        } else if (kind == SIGMOID) {
            #pragma omp simd
            for (int64_t i = 0; i < R; i++) hr[i] = sigmoid(hr[i]);
        } else if (kind == SQUARED_RELU) {
            #pragma omp simd
            for (int64_t i = 0; i < R; i++) hr[i] = hr[i] > 0.0f ? hr[i] * hr[i] : 0.0f;
        }
        project(who, after, row, hr, R);
    }
}

typedef struct { /* outputs of the products [M, D], overwritten */
    float *r, *k, *v, *decay, *rate, *gate, *value_mix; /* value_mix NULL: the first layer */
} Projections;

typedef struct {
    const float *k_k, *k_a, *r_k, *decay_bias, *rate_bias, *value_mix_bias, *norm_weight, *norm_bias;
    float eps;
} TimeMix;

static inline __attribute__((always_inline)) void head(
    const Projections *p, const TimeMix *t, int64_t at, int64_t channel, int64_t K, float *restrict state,
    float *restrict v_first, float *restrict y
) {
    float a[K], b[K], w[K], k[K], r[K], v[K];
    float norm = 0.0f, bonus = 0.0f;
    #pragma omp simd reduction(+ : norm)
    for (int64_t i = 0; i < K; i++) {
        float kk = p->k[at + i] * t->k_k[channel + i];
        a[i] = kk;
        norm += kk * kk;
    }
    float inverse = norm > 1e-24f ? 1.0f / sqrtf(norm) : 1e12f;
    #pragma omp simd
    for (int64_t i = 0; i < K; i++) {
        float rate = sigmoid(p->rate[at + i] + t->rate_bias[channel + i]);
        a[i] *= -inverse;
        b[i] = -a[i] * rate;
        k[i] = p->k[at + i] * (1.0f + (rate - 1.0f) * t->k_a[channel + i]);
        w[i] = exponential(-0.606530660f * sigmoid(p->decay[at + i] + t->decay_bias[channel + i]));
        r[i] = p->r[at + i];
    }
    if (p->value_mix) {
        #pragma omp simd
        for (int64_t i = 0; i < K; i++) {
            float mixed = sigmoid(p->value_mix[at + i] + t->value_mix_bias[channel + i]);
            v[i] = p->v[at + i] + (v_first[at + i] - p->v[at + i]) * mixed;
        }
    } else {
        memcpy(v, p->v + at, K * sizeof(float));
        memcpy(v_first + at, v, K * sizeof(float));
    }
    #pragma omp simd reduction(+ : bonus)
    for (int64_t i = 0; i < K; i++) bonus += r[i] * k[i] * t->r_k[channel + i];

    float sa[K], out[K];
    for (int64_t j = 0; j < K; j++) sa[j] = out[j] = 0.0f;
    for (int64_t i = 0; i < K; i++) {
        const float *restrict s = state + i * K;
        #pragma omp simd
        for (int64_t j = 0; j < K; j++) sa[j] += a[i] * s[j];
    }
    for (int64_t i = 0; i < K; i++) {
        float *restrict s = state + i * K;
        #pragma omp simd
        for (int64_t j = 0; j < K; j++) {
            s[j] = s[j] * w[i] + sa[j] * b[i] + v[j] * k[i];
            out[j] += s[j] * r[i];
        }
    }

    float mean = 0.0f, square = 0.0f;
    #pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < K; i++) mean += out[i];
    mean /= K;
    #pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < K; i++) square += (out[i] - mean) * (out[i] - mean);
    float scale = 1.0f / sqrtf(square / K + t->eps);
    #pragma omp simd
    for (int64_t i = 0; i < K; i++) {
        float normed = (out[i] - mean) * scale * t->norm_weight[channel + i] + t->norm_bias[channel + i];
        y[at + i] = (normed + bonus * v[i]) * p->gate[at + i];
    }
}

/* The recurrence of one layer, from the products to the input y of the output matrix; state [M, H, K keys, K values] in place.
 * matrix: of r, k, v, decay, rate, gate, value_mix and the output. */
void time_mix(
    const Members *who, int64_t M, int64_t H, int64_t K, const Projections *p, const TimeMix *t, const Matrix *matrix,
    float *state, float *v_first, float *y
) {
    const int64_t D = H * K;
    float *const products[7] = { p->r, p->k, p->v, p->decay, p->rate, p->gate, p->value_mix };
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < M; row++) {
        for (int64_t m = 0; m < 7; m++)
            if (products[m]) perturb(who, matrix + m, row, products[m] + row * D, 0, D);
        for (int64_t h = 0; h < H; h++) {
            int64_t at = row * D + h * K;
            float *s = state + (row * H + h) * K * K;
            if (K == 64) head(p, t, at, h * K, 64, s, v_first, y);
            else if (K == 32) head(p, t, at, h * K, 32, s, v_first, y);
            else head(p, t, at, h * K, K, s, v_first, y);
        }
        project(who, matrix + 7, row, y + row * D, D);
    }
}
