/* Products of a few rows with linear maps and their LoRA adapters. */

#ifndef JETMOE_PRODUCTS_H
#define JETMOE_PRODUCTS_H

#include "../nf4/tile.h"

enum Kind { FP32, BF16, NF4 };

/* `rows x columns` maps of one or several experts, side by side in memory. Fields as in structs.py. */
typedef struct {
    long kind, rows, columns;
    const void *weight;     /* [E, rows, columns]; NF4: codes in tiles */
    const uint16_t *scales; /* NF4: [E, columns / 64, rows] */
    const float *bias;      /* [rows] or NULL */
    long low_rank_kind, rank; /* of the adapters; rank 0 without */
    const void *A, *B;      /* [E, rank, columns] and [E, rows, rank] */
    double scaling;
} Linear;

/* Numbers in fp32, and the same in bf16 for the products that read them so. */
typedef struct {
    float *wide;
    uint16_t *narrow;
} Vector;

/* A linear map of each assignment's expert, applied to its input. */
typedef struct {
    const Linear *linear;
    const int32_t *experts; /* [assignments] */
    long assignments;
    Vector input; /* [assignments, columns], or [columns] if `shared` */
    long shared;
    float *inner;  /* [assignments, rank], A times the input */
    float *result; /* [assignments, rows] */
} Product;

enum { ROWS = TILE, RANKS = 8 }; /* rows of a unit, and rows of A of a unit */

static void narrow_into(Vector v, long first, long count)
{
    for (long i = first; i < first + count; i++)
        v.narrow[i] = narrow(v.wide[i]);
}

/* Computes y [rows] = W x, four rows at a time, while the next four are fetched: a third faster than what processors
 * fetch on their own. The last four rows repeat the last one, so that equal rows give equal results wherever they are:
 * tied experts stay tied. */
#define DEFINE_DENSE(NAME, TYPE, WIDE)                                                                                \
    static void NAME(const TYPE *weight, const float *x, long rows, long columns, float *y)                           \
    {                                                                                                                 \
        for (long row = 0; row < rows; row += 4) {                                                                    \
            long last = rows - row - 1;                                                                               \
            const TYPE *w0 = weight + row * columns, *w1 = w0 + (last < 1 ? last : 1) * columns;                      \
            const TYPE *w2 = w0 + (last < 2 ? last : 2) * columns, *w3 = w0 + (last < 3 ? last : 3) * columns;        \
            for (const char *line = (const char *)(w0 + 4 * columns), *end = (const char *)(w0 + 8 * columns);        \
                 line < end; line += 64)                                                                              \
                __builtin_prefetch(line);                                                                             \
            float sums[4], s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;                                                \
            _Pragma("omp simd reduction(+ : s0, s1, s2, s3)") for (long c = 0; c < columns; c++)                      \
            {                                                                                                         \
                s0 += WIDE(w0[c]) * x[c];                                                                             \
                s1 += WIDE(w1[c]) * x[c];                                                                             \
                s2 += WIDE(w2[c]) * x[c];                                                                             \
                s3 += WIDE(w3[c]) * x[c];                                                                             \
            }                                                                                                         \
            sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;                                                   \
            memcpy(y + row, sums, (size_t)(last < 3 ? last + 1 : 4) * sizeof *y);                                     \
        }                                                                                                             \
    }

DEFINE_DENSE(dense_fp32, float, )
DEFINE_DENSE(dense_bf16, uint16_t, widen)

static void dense(long kind, const void *weight, long start, const float *x, long rows, long columns, float *y)
{
    if (kind == FP32)
        dense_fp32((const float *)weight + start, x, rows, columns, y);
    else
        dense_bf16((const uint16_t *)weight + start, x, rows, columns, y);
}

/* Computes some rows of an assignment's product, with its adapters and without the bias. */
static void multiply(const Product *p, long assignment, long first, long count, float *y)
{
    const Linear *linear = p->linear;
    long expert = p->experts[assignment], start = p->shared ? 0 : assignment * linear->columns;
    Vector x = {p->input.wide + start, p->input.narrow + start};
    if (linear->kind == NF4) /* sizes are multiples of a tile, which is a block of rows */
        tile_product(x.wide, x.narrow,
                     (const uint8_t *)linear->weight + (expert * linear->rows + first) * (linear->columns / 2),
                     linear->scales + expert * linear->rows * (linear->columns / BLOCK) + first, linear->rows,
                     linear->columns, y);
    else
        dense(linear->kind, linear->weight, (expert * linear->rows + first) * linear->columns, x.wide, count,
              linear->columns, y);
    if (linear->rank) {
        float added[ROWS];
        dense(linear->low_rank_kind, linear->B, (expert * linear->rows + first) * linear->rank,
              p->inner + assignment * linear->rank, count, linear->rank, added);
        for (long i = 0; i < count; i++)
            y[i] += added[i];
    }
}

static long blocks(long rows, long size)
{
    return (rows + size - 1) / size;
}

static long at_most(long count, long limit)
{
    return count < limit ? count : limit;
}

/* Computes some rows of A times the input, scaled. */
static void inner_block(const Product *p, long unit)
{
    const Linear *linear = p->linear;
    long parts = blocks(linear->rank, RANKS), assignment = unit / parts, first = unit % parts * RANKS;
    long count = at_most(linear->rank - first, RANKS), start = p->shared ? 0 : assignment * linear->columns;
    float *inner = p->inner + assignment * linear->rank + first;
    dense(linear->low_rank_kind, linear->A, (p->experts[assignment] * linear->rank + first) * linear->columns,
          p->input.wide + start, count, linear->columns, inner);
    for (long i = 0; i < count; i++)
        inner[i] *= (float)linear->scaling;
}

/* Stores some rows of an assignment's result, with the bias. */
static void store_block(const Product *p, long unit)
{
    const Linear *linear = p->linear;
    long parts = blocks(linear->rows, ROWS), assignment = unit / parts, first = unit % parts * ROWS;
    long count = at_most(linear->rows - first, ROWS);
    float *y = p->result + assignment * linear->rows + first;
    multiply(p, assignment, first, count, y);
    for (long i = 0; i < count && linear->bias; i++)
        y[i] += linear->bias[first + i];
}

/* Adds some rows of the sum over all assignments, weighted by their gates, and the bias to `hidden`. */
static void add_block(const Product *p, const float *gates, float *hidden, long unit)
{
    const Linear *linear = p->linear;
    long first = unit * ROWS, count = at_most(linear->rows - first, ROWS);
    float total[ROWS], y[ROWS];
    for (long i = 0; i < count; i++)
        total[i] = linear->bias ? linear->bias[first + i] : 0.0f;
    for (long a = 0; a < p->assignments; a++) {
        multiply(p, a, first, count, y);
        for (long i = 0; i < count; i++)
            total[i] += gates[a] * y[i];
    }
    for (long i = 0; i < count; i++)
        hidden[first + i] += total[i];
}

/* Raises e to a power between -87 and 88, within 2e-7: a plain loop, so that compilers vectorize its callers. */
static inline float power_of_e(float x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float clipped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float whole = clipped * 1.44269504f + shift - shift;
    float rest = clipped - whole * 0.693359375f + whole * 2.12194440e-4f;
    float power = 1.0f + rest * (1.0f + rest * (0.5f + rest * (0.16666667f + rest * (0.041666668f
                  + rest * (0.0083333338f + rest * 0.0013888889f)))));
    int32_t bits = ((int32_t)whole + 127) * (1 << 23);
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return power * scale;
}

/* Stores silu(gate) * up for some channels of an assignment: rows of the first and the second half of the map. */
static void activate_block(const Product *p, Vector result, long unit)
{
    long width = p->linear->rows / 2, parts = blocks(width, ROWS), assignment = unit / parts;
    long first = unit % parts * ROWS, count = at_most(width - first, ROWS), start = assignment * width + first;
    float gate[ROWS], up[ROWS];
    multiply(p, assignment, first, count, gate);
    multiply(p, assignment, width + first, count, up);
    for (long i = 0; i < count; i++)
        result.wide[start + i] = gate[i] / (1.0f + power_of_e(-gate[i])) * up[i];
    narrow_into(result, start, count);
}

#endif
