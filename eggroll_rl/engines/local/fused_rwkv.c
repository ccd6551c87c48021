/* One decoding step of RWKV-7 for M rows. Each row carries its own rank-r perturbation of every matrix:
 *     y = x W^T + c A^T,  c = coefficient * (x B)
 * The kernel that makes a product's input also makes c; the kernel that reads its output adds c A^T. Of a vector that is
 * perturbed each row has its own, value + dense * noise.
 *
 * A step is a list of calls. Each core takes a block of rows through all of them, in scratch that stays in its cache, and
 * the cores meet when the step ends. Few rows go through one call after the other, which all cores share.
 *
 * D width, H heads, K head size, R inner size, r rank; S rows of scratch. All arrays are contiguous fp32 unless a stride is
 * given. [S, ...] is scratch, [M, ...] is the batch's. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#include "product.h"

typedef struct {           /* what one core does of a call */
    int64_t first, count;  /* rows of the batch */
    int64_t at;            /* the first one's row of scratch */
    int64_t from, to;      /* panels of a product */
} Part;

typedef struct {
    void (*kernel)(const void *arguments, const Part *part);
    const void *arguments;
    int64_t panels;        /* of a product; else 0 */
} Call;

/* All calls of a step for M rows. block > 0: by blocks of so many rows, with as much scratch for each thread. 0: call after
 * call, with scratch for all rows. */
void run(const Call *calls, int64_t size, int64_t M, int64_t block, int64_t threads) {
    if (block) {
        #pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t first = 0; first < M; first += block) {
            Part part = { first, M - first < block ? M - first : block, omp_get_thread_num() * block, 0, INT64_MAX };
            for (int64_t n = 0; n < size; n++) calls[n].kernel(calls[n].arguments, &part);
        }
        return;
    }
    for (int64_t n = 0; n < size; n++) {
        int64_t panels = calls[n].panels;
        #pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t share = 0; share < (panels ? panels : M); share++) {
            Part part = panels ? (Part){ 0, M, 0, share, share + 1 } : (Part){ share, 1, share, 0, 0 };
            calls[n].kernel(calls[n].arguments, &part);
        }
    }
}

typedef struct {           /* who is in the rows; coefficient NULL: the unperturbed model */
    const int64_t *pair;   /* [M] */
    const float *coefficient, *dense; /* [M], of matrices and of vectors */
    int64_t rank;
} Members;

typedef struct {           /* one matrix's noise; a NULL: it does not evolve */
    const float *a;        /* [K pairs, out, r] */
    const float *b;        /* [K pairs, in, r] */
    int64_t a_stride, b_stride; /* floats between the noise of two pairs */
    float *c;              /* [S, r] */
} Matrix;

typedef struct {           /* a vector; noise NULL: it does not evolve */
    const float *value;    /* [size] */
    const float *noise;    /* [K pairs, size] */
    int64_t stride;        /* floats between the noise of two pairs */
} Vector;

/* A vector as a row has it: the value that all have, or the row's own in `room`. */
static inline const float *own(const Members *who, const Vector *vector, int64_t row, float *restrict room, int64_t size) {
    if (!vector->noise || !who->dense) return vector->value;
    const float *restrict value = vector->value, *restrict noise = vector->noise + who->pair[row] * vector->stride;
    float dense = who->dense[row];
    #pragma omp simd
    for (int64_t i = 0; i < size; i++) room[i] = value[i] + dense * noise[i];
    return room;
}

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

/* c of one row, in its row of scratch: coefficient * (x B) */
static inline void project(
    const Members *who, const Matrix *matrix, int64_t row, int64_t at, const float *x, int64_t size
) {
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
        matrix->c[at * who->rank + j] = who->coefficient[row] * sum;
    }
}

/* y += c A^T for one row */
static inline void perturb(
    const Members *who, const Matrix *matrix, int64_t row, int64_t at, float *restrict y, int64_t size
) {
    if (!matrix->a || !who->coefficient) return;
    const float *restrict a = matrix->a + who->pair[row] * matrix->a_stride;
    const float *c = matrix->c + at * who->rank;
    if (who->rank == 1) {
        #pragma omp simd
        for (int64_t i = 0; i < size; i++) y[i] += c[0] * a[i];
    } else {
        for (int64_t i = 0; i < size; i++)
            for (int64_t j = 0; j < who->rank; j++) y[i] += c[j] * a[i * who->rank + j];
    }
}

typedef struct {
    int64_t D;
    const int64_t *token;  /* [M] */
    const float *embedded; /* [V, D] */
    float *x;              /* [S, D] */
} Embed;

void embed(const void *arguments, const Part *part) {
    const Embed *e = arguments;
    for (int64_t n = 0; n < part->count; n++)
        memcpy(e->x + (part->at + n) * e->D, e->embedded + e->token[part->first + n] * e->D, e->D * sizeof(float));
}

typedef struct {
    int64_t I, O;
    const float *x;        /* [S, I] */
    const float *w;        /* [panels, I, WIDE] */
    float *y;              /* [S, O], or [M, O] where `whole` */
    int64_t whole;
} Product;

int64_t panel_width(void) { return WIDE; }

void product(const void *arguments, const Part *part) {
    const Product *p = arguments;
    int64_t panels = (p->O + WIDE - 1) / WIDE, last = part->to < panels ? part->to : panels;
    float *y = p->y + (p->whole ? part->first : part->at) * p->O;
    multiply(part->count, p->I, p->O, p->x + part->at * p->I, p->w, y, part->from, last);
}

typedef struct {
    const Members *who;
    int64_t S, D;
    float *x, *delta;      /* [S, D]; delta NULL: there is none */
    Matrix source;         /* what made delta */
    Vector norm_weight, norm_bias;
    float eps;
    float *shift;          /* [M, D]; NULL: nothing is mixed in */
    int64_t outputs;
    const float *mixes;    /* [outputs, D] */
    float *out;            /* [outputs, S, D] */
    int64_t matrices;
    const Matrix *matrix;  /* matrix m reads out_n with n = input[m] */
    const int64_t *input;
} Mix;

/* Residual, norm and token shift: x += delta; h = norm(x); out_n = h + (shift - h) * mix_n; shift = h. */
void mix(const void *arguments, const Part *part) {
    const Mix *k = arguments;
    const int64_t D = k->D;
    float room[2][D];
    for (int64_t n = 0; n < part->count; n++) {
        int64_t row = part->first + n, at = part->at + n;
        float *restrict xr = k->x + at * D;
        if (k->delta) {
            float *restrict dr = k->delta + at * D;
            perturb(k->who, &k->source, row, at, dr, D);
            #pragma omp simd
            for (int64_t i = 0; i < D; i++) xr[i] += dr[i];
        }
        float mean = 0.0f, square = 0.0f;
        #pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < D; i++) mean += xr[i];
        mean /= D;
        #pragma omp simd reduction(+ : square)
        for (int64_t i = 0; i < D; i++) square += (xr[i] - mean) * (xr[i] - mean);
        float scale = 1.0f / sqrtf(square / D + k->eps);
        const float *restrict weight = own(k->who, &k->norm_weight, row, room[0], D);
        const float *restrict bias = own(k->who, &k->norm_bias, row, room[1], D);
        if (k->shift) {
            float *restrict last = k->shift + row * D;
            for (int64_t o = 0; o < k->outputs; o++) {
                const float *restrict mu = k->mixes + o * D;
                float *restrict out = k->out + (o * k->S + at) * D;
                #pragma omp simd
                for (int64_t i = 0; i < D; i++) {
                    float h = (xr[i] - mean) * scale * weight[i] + bias[i];
                    out[i] = h + (last[i] - h) * mu[i];
                }
            }
            #pragma omp simd
            for (int64_t i = 0; i < D; i++) last[i] = (xr[i] - mean) * scale * weight[i] + bias[i];
        } else {
            float *restrict out = k->out + at * D;
            #pragma omp simd
            for (int64_t i = 0; i < D; i++) out[i] = (xr[i] - mean) * scale * weight[i] + bias[i];
        }
        for (int64_t m = 0; m < k->matrices; m++)
            project(k->who, k->matrix + m, row, at, k->out + (k->input[m] * k->S + at) * D, D);
    }
}

enum { IDENTITY, TANH, SIGMOID, SQUARED_RELU };

typedef struct {
    const Members *who;
    int64_t R;
    float *h;              /* [S, R] */
    int64_t kind;
    Matrix before, after;
} Activate;

/* After a matrix and before the next: h = activation(h), both of their perturbations included. */
void activate(const void *arguments, const Part *part) {
    const Activate *k = arguments;
    const int64_t R = k->R;
    for (int64_t n = 0; n < part->count; n++) {
        int64_t row = part->first + n, at = part->at + n;
        float *restrict hr = k->h + at * R;
        perturb(k->who, &k->before, row, at, hr, R);
        if (k->kind == TANH) {
            #pragma omp simd
            for (int64_t i = 0; i < R; i++) hr[i] = 1.0f - 2.0f / (exponential(2.0f * hr[i]) + 1.0f);
        } else if (k->kind == SIGMOID) {
            #pragma omp simd
            for (int64_t i = 0; i < R; i++) hr[i] = sigmoid(hr[i]);
        } else if (k->kind == SQUARED_RELU) {
            #pragma omp simd
            for (int64_t i = 0; i < R; i++) hr[i] = hr[i] > 0.0f ? hr[i] * hr[i] : 0.0f;
        }
        project(k->who, &k->after, row, at, hr, R);
    }
}

typedef struct {
    const Members *who;
    int64_t H, K;
    float *r, *k, *v, *decay, *rate, *gate, *value_mix; /* of the products [S, D], overwritten; value_mix NULL: the first layer */
    const float *k_k, *k_a, *r_k, *norm_weight, *norm_bias;
    Vector decay_bias, rate_bias, value_mix_bias;
    float eps;
    Matrix matrix[8];      /* of r, k, v, decay, rate, gate, value_mix and the output */
    float *state;          /* [M, H, K keys, K values] */
    float *v_first, *y;    /* [S, D] */
} TimeMix;

typedef struct { const float *decay, *rate, *value_mix; } Biases; /* [D], of one row */

static inline __attribute__((always_inline)) void head(
    const TimeMix *t, Biases bias, int64_t at, int64_t channel, int64_t K, float *restrict state, float *restrict v_first,
    float *restrict y
) {
    float a[K], b[K], w[K], k[K], r[K], v[K];
    float norm = 0.0f, bonus = 0.0f;
    #pragma omp simd reduction(+ : norm)
    for (int64_t i = 0; i < K; i++) {
        float kk = t->k[at + i] * t->k_k[channel + i];
        a[i] = kk;
        norm += kk * kk;
    }
    float inverse = norm > 1e-24f ? 1.0f / sqrtf(norm) : 1e12f;
    #pragma omp simd
    for (int64_t i = 0; i < K; i++) {
        float rate = sigmoid(t->rate[at + i] + bias.rate[channel + i]);
        a[i] *= -inverse;
        b[i] = -a[i] * rate;
        k[i] = t->k[at + i] * (1.0f + (rate - 1.0f) * t->k_a[channel + i]);
        w[i] = exponential(-0.606530660f * sigmoid(t->decay[at + i] + bias.decay[channel + i]));
        r[i] = t->r[at + i];
    }
    if (t->value_mix) {
        #pragma omp simd
        for (int64_t i = 0; i < K; i++) {
            float mixed = sigmoid(t->value_mix[at + i] + bias.value_mix[channel + i]);
            v[i] = t->v[at + i] + (v_first[at + i] - t->v[at + i]) * mixed;
        }
    } else {
        memcpy(v, t->v + at, K * sizeof(float));
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
        y[at + i] = (normed + bonus * v[i]) * t->gate[at + i];
    }
}

/* The recurrence of one layer, from the products to the input y of the output matrix; the state in place. */
void time_mix(const void *arguments, const Part *part) {
    const TimeMix *t = arguments;
    const int64_t H = t->H, K = t->K, D = H * K;
    float *const products[7] = { t->r, t->k, t->v, t->decay, t->rate, t->gate, t->value_mix };
    float room[3][D];
    for (int64_t n = 0; n < part->count; n++) {
        int64_t row = part->first + n, at = part->at + n;
        for (int64_t m = 0; m < 7; m++)
            if (products[m]) perturb(t->who, t->matrix + m, row, at, products[m] + at * D, D);
        Biases bias = {
            own(t->who, &t->decay_bias, row, room[0], D), own(t->who, &t->rate_bias, row, room[1], D),
            own(t->who, &t->value_mix_bias, row, room[2], D),
        };
        for (int64_t h = 0; h < H; h++) {
            int64_t place = at * D + h * K;
            float *s = t->state + (row * H + h) * K * K;
            if (K == 64) head(t, bias, place, h * K, 64, s, t->v_first, t->y);
            else if (K == 32) head(t, bias, place, h * K, 32, s, t->v_first, t->y);
            else head(t, bias, place, h * K, K, s, t->v_first, t->y);
        }
        project(t->who, t->matrix + 7, row, at, t->y + at * D, D);
    }
}

typedef struct {
    const Members *who;    /* of M rows, which share the prefixes */
    int64_t D, V;
    const float *x;        /* [S, D]: what the head reads */
    const float *read;     /* [M, V]: the head's product for each prefix */
    float *logits;         /* [M, V], of each row; may be `read` where each row has a prefix of its own */
    const int64_t *start;  /* rows start[u] to start[u + 1] of `row` have prefix u */
    const int64_t *row;    /* [M] */
    Matrix head;
} Answer;

/* The logits of all rows of each prefix: its own, and each row's perturbation of the head. */
void answer(const void *arguments, const Part *part) {
    const Answer *k = arguments;
    for (int64_t n = 0; n < part->count; n++) {
        int64_t prefix = part->first + n, at = part->at + n;
        const float *read = k->read + prefix * k->V;
        for (int64_t m = k->start[prefix]; m < k->start[prefix + 1]; m++) {
            float *logits = k->logits + k->row[m] * k->V;
            if (logits != read) memcpy(logits, read, k->V * sizeof(float));
            project(k->who, &k->head, k->row[m], at, k->x + at * k->D, k->D);
            perturb(k->who, &k->head, k->row[m], at, logits, k->V);
        }
    }
}
