/* Kernels for 4-bit weights on a CPU. Built and called by cpu.py.
 *
 * jetmoe_nf4_chosen:   multiplies each row by its own expert, stored in tiles (see Parts.tile in parts.py), with
 *                      AVX512-BF16. 7 instructions per 32 bytes of codes: one core reads 27 GB/s, memory delivers 35.
 * jetmoe_nf4_quantize: quantizes weights to codes and scales, bit for bit like bitsandbytes. */

#include <stdint.h>
#include <string.h>

enum { TILE = 32, BLOCK = 64 };

#ifdef __AVX512BF16__
#include <immintrin.h>

static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/* The sixteen values of NF4 (arXiv 2305.14314, appendix E), rounded to bf16. */
static __m512i nf4_values(void)
{
    static const float values[16] = {
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
        -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
        0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
        0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
    };
    uint16_t table[32];
    for (int i = 0; i < 32; i++)
        table[i] = to_bf16(values[i % 16]); /* repeated, so that the fifth index bit has no effect */
    return _mm512_loadu_si512(table);
}

static __m512 widen(const uint16_t *bf16)
{
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)bf16));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/* Computes 32 outputs from the codes of one tile [columns / 2, 32] and scales [columns / 64] of 32 each, `stride`
 * apart. */
static void tile_product(const uint16_t *x, const uint8_t *codes, const uint16_t *absmax, long stride, long columns,
                         __m512i values, uint16_t *y)
{
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (long column = 0; column < columns; column += BLOCK, absmax += stride) {
        __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
/* Unrolled to keep the sums in registers; in memory, one core takes 1.7 times as long. */
#pragma GCC unroll 32
        for (int pair = 0; pair < BLOCK / 2; pair++, codes += TILE) {
            int32_t both;
            memcpy(&both, x + column + 2 * pair, sizeof both);
            __m512bh inputs = (__m512bh)_mm512_set1_epi32(both);
            __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes));
            __m512bh first = (__m512bh)_mm512_permutexvar_epi16(wide, values);
            __m512bh second = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(wide, 4), values);
            int odd = pair & 1; /* four independent sums hide the latency of a product */
            sums[odd] = _mm512_dpbf16_ps(sums[odd], first, inputs);
            sums[2 + odd] = _mm512_dpbf16_ps(sums[2 + odd], second, inputs);
        }
        low = _mm512_fmadd_ps(_mm512_add_ps(sums[0], sums[1]), widen(absmax), low);
        high = _mm512_fmadd_ps(_mm512_add_ps(sums[2], sums[3]), widen(absmax + TILE / 2), high);
    }
    __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
    memcpy(y, &rounded, TILE * sizeof *y);
}

/* y[a] = W[experts[a]] x[a / repeat] for all assignments: x [assignments / repeat, columns], y [assignments, rows] */
void jetmoe_nf4_chosen(const uint16_t *x, const int64_t *experts, const uint8_t *codes, const uint16_t *absmax,
                       uint16_t *y, long assignments, long repeat, long rows, long columns)
{
    const __m512i values = nf4_values();
    const long tiles = rows / TILE;
#pragma omp parallel for schedule(static)
    for (long i = 0; i < assignments * tiles; i++) {
        long a = i / tiles, tile = i % tiles, expert = experts[a];
        tile_product(x + a / repeat * columns, codes + (expert * rows + tile * TILE) * (columns / 2),
                     absmax + expert * rows * (columns / BLOCK) + tile * TILE, rows, columns, values,
                     y + a * rows + tile * TILE);
    }
}

#endif

/* Quantizes bf16 weights in blocks of 64 to codes [blocks, 32] and absmax [blocks]. A code is the number of the 15
 * bounds that are below the scaled weight. */
void jetmoe_nf4_quantize(const uint16_t *weights, const float *bounds, uint8_t *codes, float *absmax, long blocks)
{
#pragma omp parallel for schedule(static)
    for (long block = 0; block < blocks; block++) {
        float values[BLOCK], largest = 0.0f;
        for (int i = 0; i < BLOCK; i++) {
            uint32_t bits = (uint32_t)weights[block * BLOCK + i] << 16;
            memcpy(&values[i], &bits, sizeof bits);
            float size = values[i] < 0 ? -values[i] : values[i];
            largest = size > largest ? size : largest;
        }
        float scale = 1.0f / (largest > 1e-38f ? largest : 1e-38f);
        uint8_t below[BLOCK] = {0};
        for (int b = 0; b < 15; b++)
            for (int i = 0; i < BLOCK; i++)
                below[i] += values[i] * scale > bounds[b];
        for (int i = 0; i < BLOCK / 2; i++)
            codes[block * (BLOCK / 2) + i] = (uint8_t)(below[2 * i] << 4 | below[2 * i + 1]);
        absmax[block] = largest;
    }
}
