/* Kernels for 4-bit weights on a CPU. Built and called by cpu.py.
 *
 * jetmoe_nf4_chosen:   multiplies each row by its own expert, stored in tiles (see Parts.tile in parts.py), with
 *                      AVX512-BF16.
 * jetmoe_nf4_dequantize: dequantizes tiles to rows of bf16.
 * jetmoe_nf4_quantize: quantizes weights to codes and scales, bit for bit like bitsandbytes. */

#include "tile.h"

/* As in tile.h, for the product that reads bf16. */
#if defined(__AVX512BF16__) && defined(__AVX512BW__)

/* y[a] = W[experts[a]] x[a / repeat] for all assignments: x [assignments / repeat, columns], y [assignments, rows] */
void jetmoe_nf4_chosen(const uint16_t *x, const int64_t *experts, const uint8_t *codes, const uint16_t *absmax,
                       uint16_t *y, long assignments, long repeat, long rows, long columns)
{
    const long tiles = rows / TILE;
#pragma omp parallel for schedule(static)
    for (long i = 0; i < assignments * tiles; i++) {
        long a = i / tiles, tile = i % tiles, expert = experts[a];
        float sums[TILE];
        tile_product(NULL, x + a / repeat * columns, codes + (expert * rows + tile * TILE) * (columns / 2),
                     absmax + expert * rows * (columns / BLOCK) + tile * TILE, rows, columns, sums);
        for (int row = 0; row < TILE; row++)
            y[a * rows + tile * TILE + row] = narrow(sums[row]);
    }
}

/* Transposes sixteen rows of sixteen numbers by swapping blocks of 8, 4, 2 and 1. */
static inline void transpose(__m512i *rows)
{
#pragma GCC unroll 4
    for (int size = 8; size; size /= 2) {
        int32_t low[16], high[16];
        for (int j = 0; j < 16; j++) {
            low[j] = j & size ? 16 + j - size : j;
            high[j] = j & size ? 16 + j : j + size;
        }
        __m512i from_low = _mm512_loadu_si512(low), from_high = _mm512_loadu_si512(high);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            if (!(i & size)) {
                __m512i first = rows[i], second = rows[i + size];
                rows[i] = _mm512_permutex2var_epi32(first, from_low, second);
                rows[i + size] = _mm512_permutex2var_epi32(first, from_high, second);
            }
    }
}

/* Dequantizes a tile [columns / 2, 32] to rows of bf16 [32, columns], rounded once, like bitsandbytes. */
static void dequantize_tile(const uint8_t *codes, const uint16_t *scales, long stride, long columns, uint16_t *weights)
{
    const __m512 values = _mm512_loadu_ps(NF4_VALUES);
    uint16_t order[32];
    for (int i = 0; i < 32; i++)
        order[i] = (uint16_t)(i / 2 + (i & 1 ? 16 : 0));
    const __m512i interleave = _mm512_loadu_si512(order);
    for (long column = 0; column < columns; column += TILE, codes += TILE * TILE / 2)
        for (int half = 0; half < 2; half++) {
            const __m512 scale = widen_16(scales + column / BLOCK * stride + half * TILE / 2);
            __m512i rows[TILE / 2];
#pragma GCC unroll 16
            for (int pair = 0; pair < TILE / 2; pair++) {
                __m512i both = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(codes + pair * TILE)));
                __m512i first = _mm512_srli_epi32(both, half * 4), second = _mm512_srli_epi32(both, half * 4 + 8);
                __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_permutexvar_ps(second, values), scale),
                                                       _mm512_mul_ps(_mm512_permutexvar_ps(first, values), scale));
                rows[pair] = _mm512_permutexvar_epi16(interleave, (__m512i)rounded);
            }
            transpose(rows);
            for (int row = 0; row < TILE / 2; row++)
                _mm512_storeu_si512(weights + (half * TILE / 2 + row) * columns + column, rows[row]);
        }
}

/* Dequantizes an expert from tiles to rows of bf16 [rows, columns]. */
void jetmoe_nf4_dequantize(const uint8_t *codes, const uint16_t *absmax, uint16_t *weights, long rows, long columns)
{
#pragma omp parallel for schedule(static)
    for (long tile = 0; tile < rows; tile += TILE)
        dequantize_tile(codes + tile * (columns / 2), absmax + tile, rows, columns, weights + tile * columns);
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
