/* Products of a few rows with linear maps and their LoRA adapters. */

#ifndef JETMOE_PRODUCTS_H
#define JETMOE_PRODUCTS_H

#include <stdbool.h>

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

/* Assignments of tokens to experts, grouped by expert, so that its weights are read once for all of them. */
typedef struct {
    long count;       /* of groups */
    int32_t *experts; /* [count] */
    int32_t *starts;  /* [count + 1], of the groups in `order` */
    int32_t *order;   /* [assignments] */
} Groups;

/* A linear map of each assignment's expert, applied to its input. Assignment a belongs to token a / per_token. */
typedef struct {
    const Linear *linear;
    const Groups *groups;
    long per_token;
    Vector input; /* [assignments, columns], or [tokens, columns] if `shared` */
    bool shared;
    float *inner;  /* [assignments, rank], A times the input */
    float *result; /* [tokens, stride], of which [per_token, rows] are used */
    long stride;
    bool weighted; /* a sum of the results is what counts, and it has the bias */
} Product;

enum { MAX_TOKENS = 8 };         /* of a step, and so of a group: a token chooses an expert once */
enum { ROWS = TILE, RANKS = 8 }; /* rows of a unit, and rows of A of a unit */

static void narrow_into(Vector v, long first, long count)
{
    for (long i = first; i < first + count; i++)
        v.narrow[i] = narrow(v.wide[i]);
}

/* The widest vectors of the processor, for gcc and clang. */
#if defined(__AVX512F__)
#include <immintrin.h>
enum { WIDTH = 64 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { WIDTH = 32 };
#else
enum { WIDTH = 16 };
#endif
typedef float Lanes __attribute__((vector_size(WIDTH)));
typedef float Four __attribute__((vector_size(16)));
enum { LANES = WIDTH / 4 };

#define INLINE static inline __attribute__((always_inline))

INLINE Lanes lanes_fp32(const float *x)
{
    Lanes lanes;
    memcpy(&lanes, x, sizeof lanes);
    return lanes;
}

INLINE Lanes lanes_bf16(const uint16_t *x)
{
#if defined(__AVX512F__) /* gcc splits a conversion of vectors into six instructions */
    return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
#elif defined(__AVX2__)
    return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x)), 16);
#else
    float wide[LANES];
    for (int i = 0; i < LANES; i++)
        wide[i] = widen(x[i]);
    return lanes_fp32(wide);
#endif
}

INLINE float sum_of(Lanes lanes)
{
    Four parts[LANES / 4];
    memcpy(parts, &lanes, sizeof parts);
    for (int i = 1; i < LANES / 4; i++)
        parts[0] += parts[i];
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

/* Computes y [inputs, rows] = W x for each of some inputs; a row of y begins `stride` after the one before. Four rows
 * of W at a time, while the next four are fetched: a third faster than what processors fetch on their own. The last
 * four rows repeat the last one, so that equal rows give equal results wherever they are: tied experts stay tied.
 *
 * Up to four inputs share each number of W that was read. The order of a sum does not depend on how many they are, so
 * that a token has the same bits alone and in company. */
#define DEFINE_DENSE(NAME, TYPE, LOAD, WIDEN)                                                                         \
    INLINE void NAME##_rows(const TYPE *const *w, const float *const *x, const int inputs, long columns,              \
                            float sums[][4])                                                                          \
    {                                                                                                                 \
        Lanes lanes[4][4] = {0};                                                                                      \
        long whole = columns / LANES * LANES;                                                                         \
        for (long c = 0; c < whole; c += LANES) {                                                                     \
            Lanes weights[4] = {LOAD(w[0] + c), LOAD(w[1] + c), LOAD(w[2] + c), LOAD(w[3] + c)};                      \
            _Pragma("GCC unroll 4") for (int i = 0; i < inputs; i++)                                                  \
            {                                                                                                         \
                Lanes input = lanes_fp32(x[i] + c);                                                                   \
                _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++) lanes[i][r] += weights[r] * input;                \
            }                                                                                                         \
        }                                                                                                             \
        _Pragma("GCC unroll 4") for (int i = 0; i < inputs; i++)                                                      \
            _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++)                                                       \
        {                                                                                                             \
            sums[i][r] = sum_of(lanes[i][r]);                                                                         \
            for (long c = whole; c < columns; c++)                                                                    \
                sums[i][r] += WIDEN(w[r][c]) * x[i][c];                                                               \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    static void NAME(const TYPE *weight, const float *const *x, long inputs, long rows, long columns, float *y,       \
                     long stride)                                                                                     \
    {                                                                                                                 \
        for (long row = 0; row < rows; row += 4) {                                                                    \
            long last = rows - row - 1;                                                                               \
            const TYPE *w0 = weight + row * columns;                                                                  \
            const TYPE *w[4] = {w0, w0 + (last < 1 ? last : 1) * columns, w0 + (last < 2 ? last : 2) * columns,       \
                                w0 + (last < 3 ? last : 3) * columns};                                                \
            for (const char *line = (const char *)(w0 + 4 * columns), *end = (const char *)(w0 + 8 * columns);        \
                 line < end; line += 64)                                                                              \
                __builtin_prefetch(line);                                                                             \
            for (long i = 0, count; i < inputs; i += count) {                                                         \
                float sums[4][4];                                                                                     \
                count = inputs - i >= 4 ? 4 : inputs - i >= 2 ? 2 : 1;                                                \
                if (count == 4)                                                                                       \
                    NAME##_rows(w, x + i, 4, columns, sums);                                                          \
                else if (count == 2)                                                                                  \
                    NAME##_rows(w, x + i, 2, columns, sums);                                                          \
                else                                                                                                  \
                    NAME##_rows(w, x + i, 1, columns, sums);                                                          \
                for (long j = 0; j < count; j++)                                                                      \
                    memcpy(y + (i + j) * stride + row, sums[j], (size_t)(last < 3 ? last + 1 : 4) * sizeof *y);       \
            }                                                                                                         \
        }                                                                                                             \
    }

DEFINE_DENSE(dense_fp32, float, lanes_fp32, )
DEFINE_DENSE(dense_bf16, uint16_t, lanes_bf16, widen)

static void dense(long kind, const void *weight, long start, const float *const *x, long inputs, long rows,
                  long columns, float *y, long stride)
{
    if (kind == FP32)
        dense_fp32((const float *)weight + start, x, inputs, rows, columns, y, stride);
    else
        dense_bf16((const uint16_t *)weight + start, x, inputs, rows, columns, y, stride);
}

static const int32_t *members(const Product *p, long group, long *size)
{
    *size = p->groups->starts[group + 1] - p->groups->starts[group];
    return p->groups->order + p->groups->starts[group];
}

/* Finds the inputs of a group's assignments. */
static void inputs_of(const Product *p, const int32_t *assignments, long size, const float **wide,
                      const uint16_t **narrow)
{
    for (long i = 0; i < size; i++) {
        long row = p->shared ? assignments[i] / p->per_token : assignments[i];
        wide[i] = p->input.wide + row * p->linear->columns;
        narrow[i] = p->input.narrow + row * p->linear->columns;
    }
}

/* Computes some rows of the products of a group's assignments, with their adapters and without the bias. */
static void multiply(const Product *p, long group, long first, long count, float y[][ROWS])
{
    const Linear *linear = p->linear;
    const float *wide[MAX_TOKENS], *inner[MAX_TOKENS];
    const uint16_t *narrow[MAX_TOKENS];
    long size, expert = p->groups->experts[group], row = expert * linear->rows + first;
    const int32_t *assignments = members(p, group, &size);
    inputs_of(p, assignments, size, wide, narrow);
    if (linear->kind == NF4) /* sizes are multiples of a tile, which is a block of rows */
        tile_products(wide, narrow, size, (const uint8_t *)linear->weight + row * (linear->columns / 2),
                      linear->scales + expert * linear->rows * (linear->columns / BLOCK) + first, linear->rows,
                      linear->columns, y[0]);
    else
        dense(linear->kind, linear->weight, row * linear->columns, wide, size, count, linear->columns, y[0], ROWS);
    if (linear->rank) {
        float added[MAX_TOKENS][ROWS];
        for (long i = 0; i < size; i++)
            inner[i] = p->inner + assignments[i] * linear->rank;
        dense(linear->low_rank_kind, linear->B, row * linear->rank, inner, size, count, linear->rank, added[0], ROWS);
        for (long i = 0; i < size; i++)
            for (long j = 0; j < count; j++)
                y[i][j] += added[i][j];
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

/* Computes some rows of A times the inputs of a group, scaled. */
static void inner_block(const Product *p, long unit)
{
    const Linear *linear = p->linear;
    const float *wide[MAX_TOKENS];
    const uint16_t *narrow[MAX_TOKENS];
    long parts = blocks(linear->rank, RANKS), group = unit / parts, first = unit % parts * RANKS, size;
    long count = at_most(linear->rank - first, RANKS), row = p->groups->experts[group] * linear->rank + first;
    const int32_t *assignments = members(p, group, &size);
    float y[MAX_TOKENS][RANKS];
    inputs_of(p, assignments, size, wide, narrow);
    dense(linear->low_rank_kind, linear->A, row * linear->columns, wide, size, count, linear->columns, y[0], RANKS);
    for (long i = 0; i < size; i++)
        for (long j = 0; j < count; j++)
            p->inner[assignments[i] * linear->rank + first + j] = y[i][j] * (float)linear->scaling;
}

/* Stores some rows of the results of a group's assignments, with the bias. */
static void store_rows(const Product *p, long group, long first, long count)
{
    const Linear *linear = p->linear;
    float y[MAX_TOKENS][ROWS];
    long size;
    const int32_t *assignments = members(p, group, &size);
    multiply(p, group, first, count, y);
    for (long i = 0; i < size; i++) {
        long token = assignments[i] / p->per_token, slot = assignments[i] % p->per_token;
        float *result = p->result + token * p->stride + slot * linear->rows + first;
        for (long j = 0; j < count; j++)
            result[j] = y[i][j] + (linear->bias && !p->weighted ? linear->bias[first + j] : 0.0f);
    }
}

static void store_block(const Product *p, long unit)
{
    long parts = blocks(p->linear->rows, ROWS), first = unit % parts * ROWS;
    store_rows(p, unit / parts, first, at_most(p->linear->rows - first, ROWS));
}

/* Adds some rows of the bias, and of the sum over a token's assignments weighted by their gates [tokens, per_token],
 * to `hidden` [tokens, rows] of each token. Their order does not depend on the other tokens. */
static void add_block(const Product *p, const float *gates, float *hidden, long tokens, long unit)
{
    const Linear *linear = p->linear;
    long first = unit * ROWS, count = at_most(linear->rows - first, ROWS);
    for (long group = 0; group < p->groups->count; group++)
        store_rows(p, group, first, count);
    for (long t = 0; t < tokens; t++) {
        float total[ROWS];
        for (long i = 0; i < count; i++)
            total[i] = linear->bias ? linear->bias[first + i] : 0.0f;
        for (long k = 0; k < p->per_token; k++)
            for (long i = 0; i < count; i++)
                total[i] += gates[t * p->per_token + k] * p->result[t * p->stride + k * linear->rows + first + i];
        for (long i = 0; i < count; i++)
            hidden[t * linear->rows + first + i] += total[i];
    }
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

/* Stores silu(gate) * up for some channels of a group's assignments: rows of the first and the second half of the
 * map. */
static void activate_block(const Product *p, Vector result, long unit)
{
    long width = p->linear->rows / 2, parts = blocks(width, ROWS), group = unit / parts;
    long first = unit % parts * ROWS, count = at_most(width - first, ROWS), size;
    const int32_t *assignments = members(p, group, &size);
    float gate[MAX_TOKENS][ROWS], up[MAX_TOKENS][ROWS];
    multiply(p, group, first, count, gate);
    multiply(p, group, width + first, count, up);
    for (long i = 0; i < size; i++) {
        long start = assignments[i] * width + first;
        for (long j = 0; j < count; j++)
            result.wide[start + j] = gate[i][j] / (1.0f + power_of_e(-gate[i][j])) * up[i][j];
        narrow_into(result, start, count);
    }
}

#endif
