/* Kernels for 4-bit weights on a CPU. Built and called by cpu.py.
 *
 * jetmoe_nf4_chosen:   multiplies each row by its own expert, stored in tiles (see Parts.tile in parts.py), with
 *                      AVX512-BF16.
 * jetmoe_nf4_quantize: quantizes weights to codes and scales, bit for bit like bitsandbytes. */

#include "tile.h"

#ifdef __AVX512BF16__

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
