/* Attention of a single position over the cached keys and values and its own. Built and called by single_query.py.
 *
 * bf16 input and output, fp32 sums. Reads only the filled part of the cache, and each key and value once for all
 * slots. */

#include <math.h>
#include <stdint.h>
#include <string.h>

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

static float dot(const float *query, const uint16_t *key, long channels)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (long c = 0; c < channels; c++)
        sum += query[c] * widen(key[c]);
    return sum;
}

static void add(float *total, float weight, const uint16_t *value, long channels)
{
#pragma omp simd
    for (long c = 0; c < channels; c++)
        total[c] += weight * widen(value[c]);
}

/* Turns scores [length + 1] into weights that sum to 1. The last score is that of the position itself. */
static void softmax(float *scores, const uint8_t *visible, long length)
{
    float highest = scores[length], sum = 0.0f;
    for (long j = 0; j < length; j++)
        if (visible[j] && scores[j] > highest)
            highest = scores[j];
    for (long j = 0; j <= length; j++) {
        scores[j] = j == length || visible[j] ? expf(scores[j] - highest) : 0.0f;
        sum += scores[j];
    }
    for (long j = 0; j <= length; j++)
        scores[j] /= sum;
}

/* query, result [batch, slots, heads, channels]; keys, values [batch, heads, size, channels] with `length` filled
 * positions; key, value [batch, heads, channels] of the position itself; visible [batch, size]; scores [batch, heads,
 * slots, size + 1] is scratch memory. */
void jetmoe_attend(const uint16_t *query, const uint16_t *keys, const uint16_t *values, const uint16_t *key,
                   const uint16_t *value, const uint8_t *visible, float *scores, uint16_t *result, long batch,
                   long slots, long heads, long size, long channels, long length, float scaling)
{
#pragma omp parallel for schedule(static)
    for (long i = 0; i < batch * heads; i++) {
        const uint16_t *own_keys = keys + i * size * channels, *own_values = values + i * size * channels;
        long b = i / heads, first = (b * slots * heads + i % heads) * channels, stride = heads * channels;
        float *weights = scores + i * slots * (size + 1), total[slots * channels];
        for (long n = 0; n < slots * channels; n++)
            total[n] = widen(query[first + n / channels * stride + n % channels]) * scaling;
        for (long j = 0; j <= length; j++)
            for (long k = 0; k < slots; k++)
                weights[k * (size + 1) + j] =
                    dot(total + k * channels, j < length ? own_keys + j * channels : key + i * channels, channels);
        for (long k = 0; k < slots; k++)
            softmax(weights + k * (size + 1), visible + b * size, length);
        memset(total, 0, sizeof total);
        for (long j = 0; j <= length; j++)
            for (long k = 0; k < slots; k++)
                add(total + k * channels, weights[k * (size + 1) + j],
                    j < length ? own_values + j * channels : value + i * channels, channels);
        for (long n = 0; n < slots * channels; n++)
            result[first + n / channels * stride + n % channels] = narrow(total[n]);
    }
}
