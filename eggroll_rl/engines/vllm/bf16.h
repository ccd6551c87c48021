/* bfloat16 to float and back, and float to itself, so that a macro can name either. */
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float widen_bf16(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline bf16 narrow_bf16(float value) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float widen_float(float value) { return value; }
static inline float narrow_float(float value) { return value; }
