/* Philox-4x32-10 (Salmon et al., SC 2011). */
#include <stdint.h>

/* The four words of a block in place of its counter. Each lies in 64 bits, the upper 32 empty, so that a product needs no
 * unpacking; four variables, not an array, so that a loop over blocks is vectorised. */
static inline void philox_block(
    uint64_t *c0, uint64_t *c1, uint64_t *c2, uint64_t *c3, uint32_t key0, uint32_t key1
) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = 0xD2511F53u * *c0, product1 = 0xCD9E8D57u * *c2;
        *c0 = (product1 >> 32) ^ *c1 ^ key0;
        *c1 = product1 & 0xFFFFFFFFu;
        *c2 = (product0 >> 32) ^ *c3 ^ key1;
        *c3 = product0 & 0xFFFFFFFFu;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}
