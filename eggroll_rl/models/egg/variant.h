/* One variant of population.c: all that computes, in the instructions named there. */

/* ---- Noise ---- */

/* Elements of a stream for one pair: words of Philox-4x32-10 as trunc(16 N(0, 1)). */
static void draw(const Egg *egg, const Draw *key, uint32_t stream, int64_t pair, int64_t n, int8_t *out) {
    uint32_t words[4][64];
    for (int64_t start = 0; start < n; start += 4 * 64) {
        #pragma omp simd
        for (int lane = 0; lane < 64; lane++) {
            uint64_t c0 = (uint32_t)(start / 4 + lane), c1 = (uint32_t)pair, c2 = stream, c3 = key->epoch;
            philox_block(&c0, &c1, &c2, &c3, key->key0, key->key1);
            words[0][lane] = (uint32_t)c0;
            words[1][lane] = (uint32_t)c1;
            words[2][lane] = (uint32_t)c2;
            words[3][lane] = (uint32_t)c3;
        }
        int64_t some = n - start < 4 * 64 ? n - start : 4 * 64;
        for (int64_t i = 0; i < some; i++) {
            uint32_t word = words[i % 4][i / 4];
            int value = egg->first[word >> 20];
            while (word > egg->rises[value]) value++;
            out[start + i] = (int8_t)(value - egg->first[1 << 11]);
        }
    }
}

/* All noise of a pair: A and B of every matrix, one after the other; of every vector the products of two draws. */
static void draw_pair(const Egg *egg, const Draw *key, int64_t pair, int8_t *factors, int16_t *products, int8_t *scratch) {
    for (int64_t i = 0; i < matrices(egg); i++) {
        int64_t rows = rows_of(egg, i), columns = columns_of(egg, i);
        draw(egg, key, egg->matrix_streams[i], pair, rows, factors);
        draw(egg, key, egg->matrix_streams[i] + 1, pair, columns, factors + rows);
        factors += rows + columns;
    }
    int64_t D = egg->width;
    for (int64_t v = 0; v < vectors(egg); v++, products += D) {
        draw(egg, key, egg->vector_streams[v], pair, D, scratch);
        draw(egg, key, egg->vector_streams[v] + 1, pair, D, scratch + D);
        for (int64_t i = 0; i < D; i++) products[i] = (int16_t)(scratch[i] * scratch[D + i]);
    }
}

/* ---- Products ---- */

typedef OPERAND operand;

#if GROUP == 1

static void tile(const operand *x, int64_t stride, const int8_t *w, int64_t I, int32_t sums[ROWS][PANEL]) {
    for (int row = 0; row < ROWS; row++) {
        int32_t sum[PANEL] = {0};
        for (int64_t i = 0; i < I; i++)
            for (int o = 0; o < PANEL; o++) sum[o] += x[row * stride + i] * w[i * PANEL + o];
        memcpy(sums[row], sum, sizeof sum);
    }
}

#else

static void tile(const operand *x, int64_t stride, const int8_t *w, int64_t I, int32_t sums[ROWS][PANEL]) {
    REGISTER left[ROWS], right[ROWS];
    #pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) left[row] = right[row] = ZEROS;
    for (int64_t i = 0; i < I; i += GROUP, w += PANEL * GROUP) {
        REGISTER w0 = LOADED(w), w1 = LOADED(w + PANEL * GROUP / 2);
        #pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            int32_t group;
            memcpy(&group, x + row * stride + i, sizeof group);
            REGISTER inputs = REPEATED(group);
            left[row] = ADDED(left[row], w0, inputs);
            right[row] = ADDED(right[row], w1, inputs);
        }
    }
    #pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
        STORE(sums[row], left[row]);
        STORE(sums[row] + LANES, right[row]);
    }
}

#endif

static int64_t packed_bytes(const Egg *egg, int64_t i) { return up(rows_of(egg, i), PANEL) * columns_of(egg, i); }

/* Where the i-th matrix lies in `packed`; the embedding is in no product. */
static int64_t packed_at(const Egg *egg, int64_t i) {
    int64_t sum = 0;
    for (int64_t j = HEAD; j < i; j++) sum += packed_bytes(egg, j);
    return sum;
}

/* The i-th matrix panel by panel; outputs that fill a panel up are 0. */
static void pack(const Egg *egg, int64_t i) {
    int8_t *out = egg->packed + packed_at(egg, i);
    int64_t O = rows_of(egg, i), I = columns_of(egg, i);
    for (int64_t panel = 0; panel < O; panel += PANEL)
        for (int64_t group = 0; group < I; group += GROUP)
            for (int64_t o = panel; o < panel + PANEL; o++)
                for (int64_t k = group; k < group + GROUP; k++)
                    *out++ = (int8_t)((o < O ? egg->matrices[i][o * I + k] : 0) + OFFSET);
}

/* ---- A block of members ---- */

/* y [M, O] = clip8((x W^T + ((x . B) A >> (4 + shift))) / (16 sqrt I)), rounded down, for each member. */
static void product(const Egg *egg, const Block *block, int64_t i, const int8_t *x, int8_t *y) {
    int64_t M = block->members, O = rows_of(egg, i), I = columns_of(egg, i), at = factor(egg, i);
    int down = 4 + (int)block->shift, root = 4 + log2_of(I) / 2;
    const int8_t *w = egg->packed + packed_at(egg, i);
    int32_t inner[BLOCK], base[BLOCK];
    for (int64_t m = 0; m < M; m++) {
        const int8_t *restrict row = x + m * I, *restrict b = block->factors[m] + at + O;
        int32_t dot = 0, sum = 0;
        #pragma omp simd reduction(+ : dot, sum)
        for (int64_t k = 0; k < I; k++) {
            dot += row[k] * b[k];
            sum += row[k];
        }
        inner[m] = dot * block->sign[m];
        base[m] = -OFFSET * sum;
    }
    const operand *inputs = (const operand *)x;
    if (sizeof(operand) > 1) {
        operand *wide = block->wide;
        for (int64_t k = 0; k < up(M, ROWS) * I; k++) wide[k] = (operand)x[k];
        inputs = wide;
    }
    for (int64_t panel = 0; panel < O; panel += PANEL, w += PANEL * I) {
        int64_t outputs = O - panel < PANEL ? O - panel : PANEL;
        for (int64_t first = 0; first < M; first += ROWS) {
            int32_t sums[ROWS][PANEL];
            tile(inputs + first * I, I, w, I, sums);
            for (int64_t m = first; m < first + ROWS && m < M; m++) {
                const int32_t *restrict sum = sums[m - first];
                const int8_t *restrict a = block->factors[m] + at + panel;
                int8_t out[PANEL];
                if (outputs == PANEL) {
                    #pragma omp simd
                    for (int o = 0; o < PANEL; o++)
                        out[o] = (int8_t)clip8((sum[o] + base[m] + ((inner[m] * a[o]) >> down)) >> root);
                    memcpy(y + m * O + panel, out, PANEL);
                    continue;
                }
                for (int o = 0; o < outputs; o++)
                    y[m * O + panel + o] = (int8_t)clip8((sum[o] + base[m] + ((inner[m] * a[o]) >> down)) >> root);
            }
        }
    }
}

/* normed = clip8(x w / mean |x|), rounded down. The quotient is clipped before it is computed: of 255 a numerators
 * n = 127 a + x w, n * ceil(2^22 / a) >> 22 is exact, since n (a - 1) < 2^22. */
static void norm(const Egg *egg, const Block *block, int64_t v) {
    int64_t D = egg->width;
    for (int64_t m = 0; m < block->members; m++) {
        const int8_t *restrict x = block->x + m * D, *restrict w = own(egg, block, m, v);
        int8_t *restrict y = block->normed + m * D;
        int32_t sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < D; i++) sum += x[i] < 0 ? -x[i] : x[i];
        int32_t mean = sum >> log2_of(D);
        if (mean < 1) mean = 1;
        int32_t inverse = ((1 << 22) + mean - 1) / mean, lowest = -127 * mean, highest = 128 * mean - 1;
        #pragma omp simd
        for (int64_t i = 0; i < D; i++) {
            int32_t n = x[i] * w[i];
            n = n < lowest ? lowest : n > highest ? highest : n;
            y[i] = (int8_t)(((n - lowest) * inverse >> 22) - 127);
        }
    }
}

/* The recurrent unit: state [M, D] in place; x takes it in. */
static void recur(const Egg *egg, const Block *block, int64_t layer, int8_t *state) {
    int64_t D = egg->width;
    product(egg, block, matrix(layer, WF), block->normed, block->gate);
    product(egg, block, matrix(layer, UF), state, block->other);
    for (int64_t m = 0; m < block->members; m++) {
        int8_t *restrict f = block->gate + m * D, *restrict past = block->other + m * D;
        const int8_t *restrict s = state + m * D, *restrict bias = own(egg, block, m, vector(layer, BF));
        #pragma omp simd
        for (int64_t i = 0; i < D; i++) {
            f[i] = (int8_t)clip8(f[i] + past[i] + bias[i]);
            past[i] = (int8_t)(((f[i] + 127) * s[i]) >> 8);
        }
    }
    product(egg, block, matrix(layer, WH), block->normed, block->candidate);
    product(egg, block, matrix(layer, UH), block->other, block->normed);
    for (int64_t m = 0; m < block->members; m++) {
        const int8_t *restrict f = block->gate + m * D, *restrict h = block->candidate + m * D;
        const int8_t *restrict past = block->normed + m * D, *restrict bias = own(egg, block, m, vector(layer, BH));
        int8_t *restrict s = state + m * D, *restrict x = block->x + m * D;
        #pragma omp simd
        for (int64_t i = 0; i < D; i++) {
            int32_t candidate = clip8(h[i] + past[i] + bias[i]);
            s[i] = (int8_t)(s[i] + (((f[i] + 127) * (candidate - s[i])) >> 8));
            x[i] = (int8_t)clip8(x[i] + s[i]);
        }
    }
}

static void embed(const Egg *egg, const Block *block, int64_t m, uint8_t byte) {
    int64_t D = egg->width;
    const int8_t *restrict row = egg->matrices[EMB] + byte * D, *restrict b = block->factors[m] + BYTES;
    int32_t a = block->factors[m][byte] * block->sign[m];
    int8_t *restrict x = block->x + m * D;
    #pragma omp simd
    for (int64_t i = 0; i < D; i++) x[i] = (int8_t)clip8(row[i] + ((a * b[i]) >> (4 + block->shift)));
    if (byte == 0)
        for (int64_t layer = 0; layer < egg->layers; layer++) memset(block->state + (layer * BLOCK + m) * D, 0, (size_t)D);
}

static void add(int64_t n, int8_t *restrict x, const int8_t *restrict y) {
    #pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] = (int8_t)clip8(x[i] + y[i]);
}

/* Reads a byte in each member: x is there, logits come. */
static void step(const Egg *egg, const Block *block) {
    int64_t D = egg->width;
    for (int64_t layer = 0; layer < egg->layers; layer++) {
        norm(egg, block, vector(layer, LN1));
        recur(egg, block, layer, block->state + layer * BLOCK * D);
        norm(egg, block, vector(layer, LN2));
        product(egg, block, matrix(layer, W1), block->normed, block->hidden);
        product(egg, block, matrix(layer, W2), block->hidden, block->other);
        add(block->members * D, block->x, block->other);
    }
    norm(egg, block, 0);
    product(egg, block, HEAD, block->normed, block->logits);
}

/* Sum of the powers of all logits. A power is that of the last octave, shifted by octaves: sixteen numbers, for which
 * registers need no memory. */
static int32_t sum_of_powers(const Egg *egg, const int8_t *logits) {
    const int32_t *last = egg->powers + 15 * 16;
#if LANES == 16
    __m512i table = _mm512_loadu_si512(last), sum = _mm512_setzero_si512();
    for (int i = 0; i < BYTES; i += LANES) {
        __m512i y = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(logits + i)));
        __m512i octaves = _mm512_sub_epi32(_mm512_set1_epi32(7), _mm512_srai_epi32(y, 4));
        sum = _mm512_add_epi32(sum, _mm512_srlv_epi32(_mm512_permutexvar_epi32(y, table), octaves));
    }
    return _mm512_reduce_add_epi32(sum);
#elif LANES == 8
    __m256i low = _mm256_loadu_si256((const __m256i *)last), high = _mm256_loadu_si256((const __m256i *)(last + 8));
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < BYTES; i += LANES) {
        __m256i y = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(logits + i)));
        __m256i octaves = _mm256_sub_epi32(_mm256_set1_epi32(7), _mm256_srai_epi32(y, 4));
        __m256i upper = _mm256_srai_epi32(_mm256_slli_epi32(y, 28), 31); /* where bit 3 is set */
        __m256i power = _mm256_blendv_epi8(
            _mm256_permutevar8x32_epi32(low, y), _mm256_permutevar8x32_epi32(high, y), upper
        );
        sum = _mm256_add_epi32(sum, _mm256_srlv_epi32(power, octaves));
    }
    int32_t parts[LANES], total = 0;
    memcpy(parts, &sum, sizeof sum);
    for (int i = 0; i < LANES; i++) total += parts[i];
    return total;
#else
    int32_t sum = 0;
    for (int i = 0; i < BYTES; i++) sum += last[logits[i] & 15] >> (7 - (logits[i] >> 4));
    return sum;
#endif
}

/* Of the next byte, in 1/16 bits. */
static int32_t log_likelihood(const Egg *egg, const int8_t *logits, uint8_t next) {
    int32_t sum = sum_of_powers(egg, logits);
    int log = 16 * (log2_of(sum) - 4);
    while (sum >= egg->log_steps[log + 1]) log++;
    return logits[next] + 128 - log;
}

/* What a block of members needs of its noise: where each one's factors are, and its own vectors. */
static void perturb(const Egg *egg, Block *block, const int8_t *factors, int64_t stride, const int16_t *products, int64_t step) {
    int64_t D = egg->width, down = 4 + block->shift;
    for (int64_t m = 0; m < block->members; m++) {
        block->factors[m] = factors + m / 2 * stride;
        block->sign[m] = m % 2 ? -1 : 1;
        for (int64_t v = 0; v < vectors(egg); v++) {
            const int16_t *restrict e = products + m / 2 * step + v * D;
            const int8_t *restrict w = egg->vectors[v];
            int8_t *restrict out = block->vectors + (m * vectors(egg) + v) * D;
            for (int64_t i = 0; i < D; i++) out[i] = (int8_t)clip8(w[i] + ((block->sign[m] * e[i]) >> down));
        }
    }
}

/* T bytes in each member of a block, from and to state [M, L, D]; the arrays begin with the block's first member. */
static void read(
    const Egg *egg, const Block *block, int64_t T, const uint8_t *const *bytes, int8_t *state, int32_t *score,
    int32_t *likelihood, int8_t *logits
) {
    int64_t M = block->members, L = egg->layers, D = egg->width;
    for (int64_t m = 0; m < M; m++) {
        score[m] = 0;
        for (int64_t layer = 0; layer < L; layer++)
            memcpy(block->state + (layer * BLOCK + m) * D, state + (m * L + layer) * D, (size_t)D);
    }
    for (int64_t t = 0; t < T; t++) {
        for (int64_t m = 0; m < M; m++) embed(egg, block, m, bytes[m][t]);
        step(egg, block);
        for (int64_t m = 0; m < M; m++) {
            int32_t found = log_likelihood(egg, block->logits + m * BYTES, bytes[m][t + 1]);
            score[m] += found;
            if (likelihood) likelihood[m * T + t] = found;
        }
    }
    if (logits) memcpy(logits, block->logits, (size_t)(M * BYTES));
    for (int64_t m = 0; m < M; m++)
        for (int64_t layer = 0; layer < L; layer++)
            memcpy(state + (m * L + layer) * D, block->state + (layer * BLOCK + m) * D, (size_t)D);
}

/* ---- What Python calls ---- */

/* A thread's room, as the block that lies in it; with room 0 only its size comes out right. */
static int64_t lay_out(const Egg *egg, Block *block, int8_t *room, int8_t **factors, int16_t **products, int8_t **scratch) {
    int64_t D = egg->width, at = 0;
    #define TAKE(pointer, bytes) (pointer) = (void *)(room + at), at += up(bytes, 64)
    TAKE(block->x, BLOCK * D);
    TAKE(block->normed, BLOCK * D);
    TAKE(block->gate, BLOCK * D);
    TAKE(block->other, BLOCK * D);
    TAKE(block->candidate, BLOCK * D);
    TAKE(block->hidden, BLOCK * 4 * D);
    TAKE(block->logits, BLOCK * BYTES);
    TAKE(block->state, BLOCK * egg->layers * D);
    TAKE(block->vectors, BLOCK * vectors(egg) * D);
    TAKE(block->wide, BLOCK * 4 * D * (int64_t)sizeof(operand));
    TAKE(*factors, BLOCK / 2 * factor(egg, matrices(egg)));
    TAKE(*products, BLOCK / 2 * vectors(egg) * D * (int64_t)sizeof(int16_t));
    TAKE(*scratch, 2 * D);
    #undef TAKE
    return at;
}

/* sizes: bytes of `packed`, of a thread's room, of a pair's factors. */
void OWN(egg_sizes)(const Egg *egg, int64_t *sizes) {
    Block block;
    int8_t *factors, *scratch;
    int16_t *products;
    sizes[0] = packed_at(egg, matrices(egg));
    sizes[1] = lay_out(egg, &block, 0, &factors, &products, &scratch);
    sizes[2] = factor(egg, matrices(egg));
}

/* The noise of some pairs: factors [K, ...] int8 and products [K, vectors, D] int16; scratch [K, 2 D]. */
void OWN(egg_noise)(
    const Egg *egg, uint32_t key0, uint32_t key1, uint32_t epoch, int64_t first_pair, int64_t pairs, int8_t *factors,
    int16_t *products, int8_t *scratch, int64_t threads
) {
    Draw key = {key0, key1, epoch};
    int64_t size = factor(egg, matrices(egg)), values = vectors(egg) * egg->width;
    #pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t k = 0; k < pairs; k++)
        draw_pair(egg, &key, first_pair + k, factors + k * size, products + k * values, scratch + k * 2 * egg->width);
}

/* The matrices as products read them: once for each update. */
void OWN(egg_pack)(const Egg *egg) {
    #pragma omp parallel for schedule(dynamic)
    for (int64_t i = HEAD; i < matrices(egg); i++) pack(egg, i);
}

/* What one thread does of egg_read: blocks of `size` members, from `taken` on, until none is left. */
static void read_share(
    const Egg *egg, const Draw *key, const int8_t *factors, int64_t stride, const int16_t *products, int64_t values_each,
    int64_t shift, int64_t first_member, int64_t members, int64_t group, int64_t T, const uint8_t *bytes, int8_t *state,
    int32_t *score, int32_t *likelihood, int8_t *logits, int8_t *room, int64_t size, int64_t *taken
) {
    int64_t L = egg->layers, D = egg->width, most = factor(egg, matrices(egg)), values = vectors(egg) * D;
    Block block = {.shift = shift};
    int8_t *drawn, *scratch;
    int16_t *drawn_products;
    lay_out(egg, &block, room, &drawn, &drawn_products, &scratch);
    for (;;) {
        int64_t first;
        #pragma omp atomic capture
        { first = *taken; *taken += size; }
        if (first >= members) break;
        block.members = members - first < size ? members - first : size;
        if (factors)
            perturb(egg, &block, factors + first / 2 * stride, stride, products + first / 2 * values_each, values_each);
        else {
            for (int64_t k = 0; k < (block.members + 1) / 2; k++) {
                int64_t pair = (first_member + first) / 2 + k;
                draw_pair(egg, key, pair, drawn + k * most, drawn_products + k * values, scratch);
            }
            perturb(egg, &block, drawn, most, drawn_products, values);
        }
        const uint8_t *streams[BLOCK];
        for (int64_t m = 0; m < block.members; m++) streams[m] = bytes + (first_member + first + m) / group * (T + 1);
        read(
            egg, &block, T, streams, state + first * L * D, score + first, likelihood ? likelihood + first * T : 0,
            logits ? logits + first * BYTES : 0
        );
    }
}

/* Reads T + 1 bytes of its stream in each of some members, `group` after another in one stream [streams, T + 1], the last
 * byte being only foretold. Their noise is drawn, or given for their pairs (stride and values_each: elements from pair to
 * pair, 0 where all have the same). state [members, L, D] is replaced; score [members], likelihood [members, T] or NULL in
 * 1/16 bits; logits [members, 256] after the last byte read, or NULL. */
void OWN(egg_read)(
    const Egg *egg, uint32_t key0, uint32_t key1, uint32_t epoch, const int8_t *factors, int64_t stride,
    const int16_t *products, int64_t values_each, int64_t shift, int64_t first_member, int64_t members, int64_t group,
    int64_t T, const uint8_t *bytes, int8_t *state, int32_t *score, int32_t *likelihood, int8_t *logits, int8_t *room,
    int64_t room_each, int64_t threads
) {
    Draw key = {key0, key1, epoch};
    int64_t share = up((members + threads - 1) / threads, ROWS), size = share < BLOCK ? share : BLOCK, taken = 0;
    #pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t thread = 0; thread < threads; thread++)
        read_share(
            egg, &key, factors, stride, products, values_each, shift, first_member, members, group, T, bytes, state,
            score, likelihood, logits, room + thread * room_each, size, &taken
        );
}

/* A thread's part of egg_vote. */
static void count_votes(
    const Egg *egg, const Draw *key, int64_t first_pair, int64_t pairs, const int8_t *fitness, int32_t *votes,
    int8_t *factors, int16_t *products, int8_t *scratch
) {
    int64_t D = egg->width, most = factor(egg, matrices(egg)), values = vectors(egg) * D;
    #pragma omp for schedule(dynamic)
    for (int64_t k = 0; k < pairs; k++)
        if (fitness[k]) draw_pair(egg, key, first_pair + k, factors + k * most, products + k * values, scratch + k * 2 * D);
        else memset(factors + k * most, 0, (size_t)most);
    int32_t *z = votes;
    const int8_t *a = factors;
    for (int64_t i = 0; i < matrices(egg); i++) {
        int64_t O = rows_of(egg, i), I = columns_of(egg, i);
        #pragma omp for schedule(static) nowait
        for (int64_t o = 0; o < O; o++)
            for (int64_t k = 0; k < pairs; k += 2) { /* two products of int8 fit an int16 */
                int64_t other = k + 1 < pairs ? k + 1 : k;
                const int8_t *restrict b = a + k * most + O, *restrict c = a + other * most + O;
                int16_t left = (int16_t)(fitness[k] * a[k * most + o]);
                int16_t right = (int16_t)(other > k ? fitness[other] * a[other * most + o] : 0);
                int32_t *restrict row = z + o * I;
                #pragma omp simd
                for (int64_t j = 0; j < I; j++) row[j] += (int16_t)(left * b[j] + right * c[j]);
            }
        z += O * I;
        a += O + I;
    }
    #pragma omp for schedule(static)
    for (int64_t j = 0; j < values; j++)
        for (int64_t k = 0; k < pairs; k++)
            if (fitness[k]) z[j] += fitness[k] * products[k * values + j];
}

/* Adds f_k A_k B_k^T of some pairs to votes: of every matrix [O, I], then of every vector [D]. The rooms hold the noise of
 * all these pairs, scratch [K, 2 D]. */
void OWN(egg_vote)(
    const Egg *egg, uint32_t key0, uint32_t key1, uint32_t epoch, int64_t first_pair, int64_t pairs,
    const int8_t *fitness, int32_t *votes, int8_t *factors, int16_t *products, int8_t *scratch, int64_t threads
) {
    Draw key = {key0, key1, epoch};
    #pragma omp parallel num_threads(threads)
    count_votes(egg, &key, first_pair, pairs, fitness, votes, factors, products, scratch);
}

/* Moves each weight by one where its votes are at least `least`; returns how many differ afterwards. */
static int64_t move(int64_t n, int8_t *restrict weight, const int32_t *restrict votes, int32_t least) {
    int64_t sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        int32_t size = votes[i] < 0 ? -votes[i] : votes[i];
        int32_t after = clip8(weight[i] + (size < least ? 0 : votes[i] > 0 ? 1 : -1));
        sum += after != weight[i];
        weight[i] = (int8_t)after;
    }
    return sum;
}

void OWN(egg_move)(int64_t n, int8_t *weight, const int32_t *votes, int32_t least, int64_t *moved) {
    int64_t sum = 0, some = 1 << 14;
    #pragma omp parallel for schedule(static) reduction(+ : sum) if (n > 1 << 16)
    for (int64_t i = 0; i < n; i += some) sum += move(n - i < some ? n - i : some, weight + i, votes + i, least);
    *moved = sum;
}

/* A thread's part of egg_bare. */
static void multiply(int64_t times, int64_t rows, int64_t I, const operand *x, const int8_t *w) {
    for (int64_t time = 0; time < times; time++)
        for (int64_t row = 0; row < rows; row += ROWS) {
            int32_t sums[ROWS][PANEL];
            tile(x + row * I, I, w, I, sums);
            __asm__ volatile("" : : "r"(sums) : "memory"); /* the sums count as read */
        }
}

/* Bare products of `rows` inputs with a panel of weights that the caches hold, `times` over: what a processor can at most.
 * x [rows, I] of `operand`, w [I, PANEL]; returns how many products of numbers one time is. */
void OWN(egg_bare)(int64_t times, int64_t rows, int64_t I, const int8_t *x, const int8_t *w, int64_t threads, int64_t *count) {
    #pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t thread = 0; thread < threads; thread++) multiply(times, rows, I, (const operand *)x, w);
    *count = up(rows, ROWS) * I * PANEL;
}
