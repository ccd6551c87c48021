/* Noise from Philox words, as ``noise.py`` makes it: normals by Box-Muller in fp32, to a few units in the last place, or
 * signs. Logarithm, sine and cosine are polynomials (those of Cephes, S. Moshier), so that loops are vectorised. */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* log(x) of a normal positive x. */
static inline float log_of(float x) {
    int32_t bits, exponent;
    memcpy(&bits, &x, sizeof bits);
    exponent = (bits - 0x3f3504f3) >> 23; /* so that the mantissa is from sqrt(1/2) to sqrt(2) */
    bits -= exponent << 23;
    float m, e = (float)exponent;
    memcpy(&m, &bits, sizeof m);
    m -= 1.0f;
    float square = m * m, p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    return m + (p * m * square - 2.12194440e-4f * e - 0.5f * square) + 0.693359375f * e;
}

/* Cosine and sine of an angle from 0 to 2 pi. */
static inline void cosine_and_sine(float angle, float *cosine, float *sine) {
    int32_t quarter = (int32_t)(angle * 0.636619772f + 0.5f);
    float q = (float)quarter;
    float r = ((angle - q * 1.5703125f) - q * 4.837512969970703125e-4f) - q * 7.54978995489188216e-8f;
    float square = r * r;
    float s = ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f) * square * r + r;
    float c = (2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f;
    c = c * square * square - 0.5f * square + 1.0f;
    float across = quarter & 1 ? s : c, up = quarter & 1 ? c : s;
    *cosine = (quarter + 1) & 2 ? -across : across;
    *sine = quarter & 2 ? -up : up;
}

/* Two normals from two words. The radius comes from a number in (0, 1], so its logarithm is finite. */
static inline void box_muller(uint32_t first, uint32_t second, float *one, float *other) {
    float radius = sqrtf(-2.0f * log_of((float)first * 0x1p-32f + 0x1p-33f)), cosine, sine;
    cosine_and_sine((float)second * (float)(6.283185307179586 * 0x1p-32), &cosine, &sine);
    *one = radius * cosine;
    *other = radius * sine;
}

/* +1 or -1 by the lowest bit. */
static inline float sign_of(uint32_t word) { return word & 1 ? -1.0f : 1.0f; }
