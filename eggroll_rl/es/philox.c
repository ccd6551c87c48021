/* Philox for a run of counters, in one pass. */
#include <stdint.h>

#include "philox.h"

#define CHUNK 2048 /* blocks of one row that a thread does at a time */

/* words [4, rows * columns] with `stride` elements between words: those of the blocks (first_column + column,
 * first_row + row, stream, epoch). */
void philox_words(
    int64_t rows, int64_t columns, int64_t first_row, int64_t first_column, int64_t stream, int64_t epoch,
    uint32_t key0, uint32_t key1, int64_t *words, int64_t stride
) {
    int64_t chunks = (columns + CHUNK - 1) / CHUNK;
    #pragma omp parallel for schedule(static) if (rows * columns > CHUNK)
    for (int64_t part = 0; part < rows * chunks; part++) {
        int64_t row = part / chunks, begin = part % chunks * CHUNK;
        int64_t end = begin + CHUNK < columns ? begin + CHUNK : columns;
        int64_t *restrict out = words + row * columns;
        #pragma omp simd
        for (int64_t column = begin; column < end; column++) {
            uint64_t c0 = (uint32_t)(first_column + column), c1 = (uint32_t)(first_row + row), c2 = (uint32_t)stream;
            uint64_t c3 = (uint32_t)epoch;
            philox_block(&c0, &c1, &c2, &c3, key0, key1);
            out[column] = (int64_t)c0;
            out[stride + column] = (int64_t)c1;
            out[2 * stride + column] = (int64_t)c2;
            out[3 * stride + column] = (int64_t)c3;
        }
    }
}
