/* The noise of a wave of members, drawn and written into their slots in one pass: each pair is drawn once for all its
 * members, and no noise is held but in the slots. */
#include "../../es/normal.h"
#include "../../es/philox.h"
#include "bf16.h"

#define CHUNK 4096 /* numbers of one pair that are drawn at a time: they stay in the first cache */
#define BLOCKS (CHUNK / 4 + 2)

/* One factor of a matrix, A or B, and its place in the slots: element [row, j] of a member is `out[slot * slot_stride + row *
 * row_stride + j * rank_stride]`, and element `first + row * rank + j` of the stream `word`. */
typedef struct {
    int64_t out, word, first, rows, slot_stride, row_stride, rank_stride, is_scaled;
} Factor;

/* The numbers of `blocks` blocks of a stream, from block `first` on. */
static void draw(
    float *restrict out, int64_t first, int64_t blocks, int64_t pair, int64_t stream, int64_t epoch, uint32_t key0,
    uint32_t key1, int64_t is_normal
) {
    uint32_t words[4][BLOCKS];
    #pragma omp simd
    for (int64_t block = 0; block < blocks; block++) {
        uint64_t c0 = (uint32_t)(first + block), c1 = (uint32_t)pair, c2 = (uint32_t)stream, c3 = (uint32_t)epoch;
        philox_block(&c0, &c1, &c2, &c3, key0, key1);
        words[0][block] = (uint32_t)c0;
        words[1][block] = (uint32_t)c1;
        words[2][block] = (uint32_t)c2;
        words[3][block] = (uint32_t)c3;
    }
    if (is_normal) {
        #pragma omp simd
        for (int64_t block = 0; block < blocks; block++) {
            box_muller(words[0][block], words[1][block], &out[4 * block], &out[4 * block + 1]);
            box_muller(words[2][block], words[3][block], &out[4 * block + 2], &out[4 * block + 3]);
        }
    } else {
        #pragma omp simd
        for (int64_t block = 0; block < blocks; block++)
            for (int word = 0; word < 4; word++) out[4 * block + word] = sign_of(words[word][block]);
    }
}

/* Slots begin[k] to begin[k + 1] are of pair `first_pair + k`; coefficient of each slot. */
#define FILL_SLOTS(type)                                                                                               \
    void fill_slots_##type(                                                                                            \
        int64_t factors, const Factor *factor, int64_t pairs, const int64_t *begin, const float *coefficient,          \
        int64_t first_pair, int64_t rank, int64_t epoch, uint32_t key0, uint32_t key1, int64_t is_normal               \
    ) {                                                                                                                \
        int64_t step = CHUNK / rank;                                                                                   \
        _Pragma("omp parallel for collapse(2) schedule(dynamic, 8)") for (int64_t part = 0; part < factors; part++) {  \
            for (int64_t k = 0; k < pairs; k++) {                                                                      \
                Factor f = factor[part];                                                                               \
                float noise[4 * BLOCKS];                                                                               \
                for (int64_t row = 0; row < f.rows; row += step) {                                                     \
                    int64_t rows = row + step < f.rows ? step : f.rows - row, element = f.first + row * rank;          \
                    const float *drawn = noise + element % 4;                                                          \
                    int64_t blocks = (element % 4 + rows * rank + 3) / 4;                                              \
                    draw(noise, element / 4, blocks, first_pair + k, f.word, epoch, key0, key1, is_normal);            \
                    for (int64_t slot = begin[k]; slot < begin[k + 1]; slot++) {                                       \
                        float scale = f.is_scaled ? coefficient[slot] : 1.0f;                                          \
                        for (int64_t j = 0; j < rank; j++) {                                                           \
                            type *restrict out =                                                                       \
                                (type *)f.out + slot * f.slot_stride + row * f.row_stride + j * f.rank_stride;         \
                            for (int64_t i = 0; i < rows; i++)                                                         \
                                out[i * f.row_stride] = narrow_##type(scale * drawn[i * rank + j]);                    \
                        }                                                                                              \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

FILL_SLOTS(float)
FILL_SLOTS(bf16)
