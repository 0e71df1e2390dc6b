/* Products with tiles of 4-bit weights: 32 rows side by side, see Parts.tile in parts.py. */

#ifndef JETMOE_TILE_H
#define JETMOE_TILE_H

#include <stdint.h>
#include <string.h>

/* Codes are fetched some bytes ahead, which makes products a fifth faster: weights rarely are in a cache. */
enum { TILE = 32, BLOCK = 64, AHEAD = 4096 };

static inline float widen(uint16_t bf16)
{
    uint32_t bits = (uint32_t)bf16 << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t narrow(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/* The sixteen values of NF4 (arXiv 2305.14314, appendix E). */
static const float NF4_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

/* tile_product computes 32 outputs from the codes of one tile [columns / 2, 32] and scales [columns / 64] of 32 each,
 * `stride` apart. x [columns] is given in fp32 and in bf16; processors that can multiply in bf16 read the latter.
 *
 * tile_products does so for several inputs, with the same bits: y [inputs, 32]. */

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>

static inline __m512i nf4_table(void)
{
    uint16_t table[32];
    for (int i = 0; i < 32; i++)
        table[i] = narrow(NF4_VALUES[i % 16]); /* repeated, so that the fifth index bit has no effect */
    return _mm512_loadu_si512(table);
}

static inline __m512 widen_16(const uint16_t *bf16)
{
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)bf16));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/* 7 instructions per 32 bytes of codes for one input, 3 for each other one that shares the unpacked codes: one core reads
 * 27 GB/s, memory delivers 35. Multiplies in bf16. */
static inline __attribute__((always_inline)) void products_of_inputs(const uint16_t *const *x, const int inputs,
                                                                     const uint8_t *codes, const uint16_t *scales,
                                                                     long stride, long columns, float *y)
{
    const __m512i values = nf4_table();
    __m512 low[4], high[4];
#pragma GCC unroll 4
    for (int i = 0; i < inputs; i++)
        low[i] = high[i] = _mm512_setzero_ps();
    for (long column = 0; column < columns; column += BLOCK, scales += stride) {
        __m512 sums[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < inputs; i++)
            sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = _mm512_setzero_ps();
/* Unrolled to keep the sums in registers; in memory, one core takes 1.7 times as long. */
#pragma GCC unroll 32
        for (int pair = 0; pair < BLOCK / 2; pair++, codes += TILE) {
            if (pair & 1)
                __builtin_prefetch(codes + AHEAD);
            __m512i one = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes));
            __m512bh first = (__m512bh)_mm512_permutexvar_epi16(one, values);
            __m512bh second = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(one, 4), values);
            int odd = pair & 1; /* four independent sums hide the latency of a product */
#pragma GCC unroll 4
            for (int i = 0; i < inputs; i++) {
                int32_t both;
                memcpy(&both, x[i] + column + 2 * pair, sizeof both);
                __m512bh pairs = (__m512bh)_mm512_set1_epi32(both);
                sums[i][odd] = _mm512_dpbf16_ps(sums[i][odd], first, pairs);
                sums[i][2 + odd] = _mm512_dpbf16_ps(sums[i][2 + odd], second, pairs);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < inputs; i++) {
            low[i] = _mm512_fmadd_ps(_mm512_add_ps(sums[i][0], sums[i][1]), widen_16(scales), low[i]);
            high[i] = _mm512_fmadd_ps(_mm512_add_ps(sums[i][2], sums[i][3]), widen_16(scales + TILE / 2), high[i]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < inputs; i++) {
        _mm512_storeu_ps(y + i * TILE, low[i]);
        _mm512_storeu_ps(y + i * TILE + TILE / 2, high[i]);
    }
}

static void tile_product(const float *wide, const uint16_t *x, const uint8_t *codes, const uint16_t *scales,
                         long stride, long columns, float *y)
{
    (void)wide;
    products_of_inputs(&x, 1, codes, scales, stride, columns, y);
}

static inline void tile_products(const float *const *wide, const uint16_t *const *x, long inputs,
                                 const uint8_t *codes, const uint16_t *scales, long stride, long columns, float *y)
{
    (void)wide;
    for (; inputs >= 4; inputs -= 4, x += 4, y += 4 * TILE)
        products_of_inputs(x, 4, codes, scales, stride, columns, y);
    for (; inputs >= 2; inputs -= 2, x += 2, y += 2 * TILE)
        products_of_inputs(x, 2, codes, scales, stride, columns, y);
    if (inputs)
        products_of_inputs(x, 1, codes, scales, stride, columns, y);
}

#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

/* Looks up the low and the high bytes of sixteen bf16 values. */
static inline void nf4_tables(__m256i *low, __m256i *high)
{
    uint8_t bytes[2][16];
    for (int i = 0; i < 16; i++) {
        bytes[0][i] = (uint8_t)narrow(NF4_VALUES[i]);
        bytes[1][i] = (uint8_t)(narrow(NF4_VALUES[i]) >> 8);
    }
    *low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes[0]));
    *high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes[1]));
}

/* Adds first * x[0] + second * x[1] for eight rows, whose two bf16 values are side by side. */
static inline __m256 add_pairs(__m256 sum, __m256i pairs, const float *x)
{
    const __m256i upper = _mm256_set1_epi32((int)0xFFFF0000);
    sum = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), _mm256_broadcast_ss(x), sum);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(pairs, upper)), _mm256_broadcast_ss(x + 1), sum);
}

static void tile_product(const float *x, const uint16_t *rounded, const uint8_t *codes, const uint16_t *scales,
                         long stride, long columns, float *y)
{
    /* In sum 2 * n + m, rows 16 * n + 4 * m + (0 to 3 and 8 to 11), the order in which bytes are unpacked. */
    static const int first_row[4] = {0, 4, 16, 20};
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i low, high;
    nf4_tables(&low, &high);
    memset(y, 0, TILE * sizeof *y);
    (void)rounded;
    for (long column = 0; column < columns; column += BLOCK, scales += stride) {
        __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int pair = 0; pair < BLOCK / 2; pair++, codes += TILE) {
            if (pair & 1)
                __builtin_prefetch(codes + AHEAD);
            __m256i both = _mm256_loadu_si256((const __m256i *)codes);
            for (int n = 0; n < 2; n++, both = _mm256_srli_epi16(both, 4)) {
                __m256i index = _mm256_and_si256(both, nibble);
                __m256i lower = _mm256_shuffle_epi8(low, index), upper = _mm256_shuffle_epi8(high, index);
                const float *inputs = x + column + 2 * pair;
                sums[2 * n] = add_pairs(sums[2 * n], _mm256_unpacklo_epi8(lower, upper), inputs);
                sums[2 * n + 1] = add_pairs(sums[2 * n + 1], _mm256_unpackhi_epi8(lower, upper), inputs);
            }
        }
        for (int n = 0; n < 4; n++) {
            float parts[8];
            _mm256_storeu_ps(parts, sums[n]);
            for (int i = 0; i < 8; i++) {
                int row = first_row[n] + i + (i < 4 ? 0 : 4);
                y[row] += parts[i] * widen(scales[row]);
            }
        }
    }
}

#else

static void tile_product(const float *x, const uint16_t *rounded, const uint8_t *codes, const uint16_t *scales,
                         long stride, long columns, float *y)
{
    memset(y, 0, TILE * sizeof *y);
    (void)rounded;
    for (long column = 0; column < columns; column += BLOCK, scales += stride) {
        float sums[TILE] = {0};
        for (int pair = 0; pair < BLOCK / 2; pair++, codes += TILE)
            for (int row = 0; row < TILE / 2; row++) {
                uint8_t first = codes[2 * row], second = codes[2 * row + 1];
                const float *inputs = x + column + 2 * pair;
                sums[row] += NF4_VALUES[first & 15] * inputs[0] + NF4_VALUES[second & 15] * inputs[1];
                sums[row + TILE / 2] += NF4_VALUES[first >> 4] * inputs[0] + NF4_VALUES[second >> 4] * inputs[1];
            }
        for (int row = 0; row < TILE; row++)
            y[row] += sums[row] * widen(scales[row]);
    }
}

#endif

#if !defined(__AVX512BF16__) || !defined(__AVX512BW__)

/* The codes stay in a cache between two inputs. */
static inline void tile_products(const float *const *wide, const uint16_t *const *x, long inputs,
                                 const uint8_t *codes, const uint16_t *scales, long stride, long columns, float *y)
{
    for (long i = 0; i < inputs; i++)
        tile_product(wide[i], x[i], codes, scales, stride, columns, y + i * TILE);
}

#endif

#endif
