/* A population of EGG models (arithmetic.py is the reference, to the last bit): the members of a block share each product
 * with the weights, and what is a member's own joins while the sums are clipped. Integers throughout: no order of
 * members, blocks or threads changes a result.
 *
 * The library holds one variant of everything for each kind of instructions, so that it is right on any processor of its
 * architecture: variant.h is included once for each, and kernel.py calls one by name, egg_read_avx2.
 *
 * M members, D width, L layers, O out, I in. Members 2k and 2k + 1 have the noise of pair k, with A and with -A. */

#include <stdint.h>
#include <string.h>

#include "../../es/philox.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define BYTES 256
#define BLOCK 64 /* members whose activations a thread holds at a time */

typedef struct {
    int64_t width, layers;
    const int8_t *const *matrices;  /* emb, head, then Wf, Uf, Wh, Uh, W1, W2 of each layer; [O, I] */
    const int8_t *const *vectors;   /* ln_out, then bf, bh, ln1, ln2 of each layer */
    const uint32_t *matrix_streams; /* of their noise, side A; side B is the next */
    const uint32_t *vector_streams;
    const uint32_t *rises;          /* sixteenths: the largest word of each value, in order */
    const int16_t *first;           /* of each upper 12 bits: how many rises are below them */
    const int32_t *powers, *log_steps;
    int8_t *packed;                 /* the matrices as products read them */
} Egg;

typedef struct { uint32_t key0, key1, epoch; } Draw;

enum { WF, UF, WH, UH, W1, W2, MATRICES };
enum { BF, BH, LN1, LN2, VECTORS };
enum { EMB, HEAD };

static int64_t matrix(int64_t layer, int which) { return 2 + layer * MATRICES + which; }
static int64_t vector(int64_t layer, int which) { return 1 + layer * VECTORS + which; }
static int64_t matrices(const Egg *egg) { return matrix(egg->layers, 0); }
static int64_t vectors(const Egg *egg) { return vector(egg->layers, 0); }

static int64_t rows_of(const Egg *egg, int64_t i) {
    return i < 2 ? BYTES : (i - 2) % MATRICES == W1 ? 4 * egg->width : egg->width;
}

static int64_t columns_of(const Egg *egg, int64_t i) {
    return i >= 2 && (i - 2) % MATRICES == W2 ? 4 * egg->width : egg->width;
}

/* Bytes of A and B of the matrices before the i-th; a pair's factors are those of all. */
static int64_t factor(const Egg *egg, int64_t i) {
    int64_t sum = 0;
    for (int64_t j = 0; j < i; j++) sum += rows_of(egg, j) + columns_of(egg, j);
    return sum;
}

static int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

static int log2_of(int64_t n) { return 63 - __builtin_clzll((uint64_t)n); }

static inline int32_t clip8(int32_t x) { return x > 127 ? 127 : x < -127 ? -127 : x; }

typedef struct {
    int64_t members, shift;
    const int8_t *factors[BLOCK];    /* of each member's pair */
    int32_t sign[BLOCK];
    int8_t *vectors;                 /* [M, vectors, D], each member's own */
    int8_t *x, *normed, *gate, *other, *candidate, *hidden, *logits, *state; /* [M, D], ..., state [L, M, D] */
    void *wide;                      /* inputs as products read them, where these are no int8 */
} Block;

static const int8_t *own(const Egg *egg, const Block *block, int64_t m, int64_t v) {
    return block->vectors + (m * vectors(egg) + v) * egg->width;
}

/* ---- Variants ----
 * Products are computed in tiles: sums [ROWS][PANEL] of ROWS inputs and PANEL outputs. The weights of a panel lie input by
 * input in groups of GROUP, so that one instruction multiplies and adds a group for the LANES outputs of a register, two
 * of which make a panel. */

#define JOIN(name, variant) name##_##variant
#define NAMED(name, variant) JOIN(name, variant)
#define OWN(name) NAMED(name, VARIANT)

#define draw OWN(draw)
#define draw_pair OWN(draw_pair)
#define operand OWN(operand)
#define tile OWN(tile)
#define packed_bytes OWN(packed_bytes)
#define packed_at OWN(packed_at)
#define pack OWN(pack)
#define product OWN(product)
#define norm OWN(norm)
#define recur OWN(recur)
#define embed OWN(embed)
#define add OWN(add)
#define step OWN(step)
#define sum_of_powers OWN(sum_of_powers)
#define log_likelihood OWN(log_likelihood)
#define perturb OWN(perturb)
#define read OWN(read)
#define read_share OWN(read_share)
#define count_votes OWN(count_votes)
#define move OWN(move)
#define multiply OWN(multiply)
#define lay_out OWN(lay_out)

#define VARIANT portable
#define LANES 1
#define ROWS 4
#define PANEL 16
#define GROUP 1
#define OFFSET 0
#define OPERAND int8_t
#include "variant.h"

#ifdef __x86_64__
#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define BEGIN(instructions) PRAGMA(clang attribute push(__attribute__((target(instructions))), apply_to = function))
#define END PRAGMA(clang attribute pop)
#else
#define BEGIN(instructions) PRAGMA(GCC push_options) PRAGMA(GCC target(instructions))
#define END PRAGMA(GCC pop_options)
#endif

#undef VARIANT
#undef GROUP
#undef OPERAND
#undef LANES
#define VARIANT avx2
#define LANES 8
#define GROUP 2
#define OPERAND int16_t /* products of pairs of int16: those of int8 would saturate */
#define REGISTER __m256i
#define ZEROS _mm256_setzero_si256()
#define STORE(place, sum) _mm256_storeu_si256((__m256i *)(place), sum)
#define LOADED(w) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w)))
#define REPEATED _mm256_set1_epi32
#define ADDED(sum, w, x) _mm256_add_epi32(sum, _mm256_madd_epi16(w, x))
BEGIN("avx2")
#include "variant.h"
END

#undef VARIANT
#undef ROWS
#undef PANEL
#undef REGISTER
#undef ZEROS
#undef STORE
#undef LOADED
#undef REPEATED
#undef ADDED
#undef LANES
#define VARIANT avx512
#define LANES 16
#define ROWS 8
#define PANEL 32
#define REGISTER __m512i
#define ZEROS _mm512_setzero_si512()
#define STORE _mm512_storeu_si512
#define LOADED(w) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(w)))
#define REPEATED _mm512_set1_epi32
#define ADDED(sum, w, x) _mm512_add_epi32(sum, _mm512_madd_epi16(w, x))
BEGIN("avx512f,avx512bw,avx512dq,avx512vl")
#include "variant.h"
END

#undef VARIANT
#undef GROUP
#undef OFFSET
#undef OPERAND
#undef LOADED
#undef ADDED
#define VARIANT vnni
#define GROUP 4
#define OFFSET 128 /* the instruction's left operand is unsigned: weights lie in memory plus 128 */
#define OPERAND int8_t
#define LOADED(w) _mm512_loadu_si512(w)
#define ADDED(sum, w, x) _mm512_dpbusd_epi32(sum, w, x)
BEGIN("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl")
#include "variant.h"
END

#endif

/* Whether this processor, and the system that it runs, have the instructions of a variant. */
int32_t egg_runs(const char *variant) {
#ifdef __x86_64__
    #define HAS(instructions) (__builtin_cpu_supports(instructions) != 0)
    int avx512 = HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl");
    if (!strcmp(variant, "avx2")) return HAS("avx2");
    if (!strcmp(variant, "avx512")) return avx512;
    if (!strcmp(variant, "vnni")) return avx512 && HAS("avx512vnni");
#endif
    return !strcmp(variant, "portable");
}
