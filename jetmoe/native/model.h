/* A model as Python describes it: sizes, and pointers to the weights where they are. Fields as in structs.py. */

#ifndef JETMOE_MODEL_H
#define JETMOE_MODEL_H

#include "products.h"

enum { MAX_PROJECTIONS = 3, MAX_PRODUCTS = 4 }; /* of a layer; of a stage */

/* What an intervention changes in a router; all NULL without one. */
typedef struct {
    const float *biases, *scales; /* [E], of logits and gates */
    const uint8_t *forced;        /* [E] */
} Change;

typedef struct {
    const float *attention_norm, *feed_forward_norm; /* [D] */
    const float *query_norm, *key_norm;              /* [H * G * C], [H * C], or NULL */
    Linear projections[MAX_PROJECTIONS];             /* of queries (unless experts have them), keys and values */
    Linear attention_router, query, output;          /* without attention experts: no rows in the first two */
    Linear router, gate_up, down;
    Change attention_change, change;
} Layer;

/* Cached keys and values of a layer. */
typedef struct {
    void *keys, *values; /* [H, cache_size, C] */
    int64_t *length;     /* filled positions */
} Cache;

/* A sequence and its next token. */
typedef struct {
    long token, position, cache_size;
    const Cache *caches;      /* [L] */
    const float *frequencies; /* [C / 2], of rotary embeddings */
    double rotary_scaling;
    float *router_logits;    /* [L * N, E], to be filled, or NULL */
    uint8_t *router_experts; /* [L * N, K] */
} Sequence;

typedef struct {
    long layers, D, H, G, C, E, K, I;
    long by_slot;          /* query heads are sorted [G, H] instead of [H, G] */
    long gates_sum_to_one; /* else gates are the probabilities among all experts */
    double layer_eps, norm_eps, clip;
    long embedding_kind, cache_kind;
    const void *embedding; /* [vocabulary, D] */
    const float *norm;     /* [D] */
    Linear head;
    Layer *layer;
    /* Scratch memory, for up to MAX_TOKENS tokens T; R is the largest rank. */
    float *hidden, *rotary;          /* [T, D]; cosine and sine [T, 2, C / 2] */
    Vector normed, attended, active; /* [T, D]; [T, G * H * C]; [T, K, I] */
    float *projected;                /* [T, (G + 2) * H * C], queries first */
    float *inner, *parts;            /* [MAX_PRODUCTS, T * K * R]; [T, K, D] */
    float *logits, *gates;           /* [T, E]; [T, K] */
    int32_t *experts;                /* [T, K] */
    int32_t *group_experts, *group_starts, *order; /* of Groups: [T * K]; [T * K + 1]; [T * K] */
    long inner_size;                 /* T * K * R */
} Model;

#endif
