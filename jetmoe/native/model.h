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
    void *keys, *values; /* [H, cache_size, C] */
    int64_t *length;     /* filled positions of the cache */
} Layer;

typedef struct {
    long layers, D, H, G, C, E, K, I;
    long by_slot;          /* query heads are sorted [G, H] instead of [H, G] */
    long gates_sum_to_one; /* else gates are the probabilities among all experts */
    double layer_eps, norm_eps, clip, rotary_scaling;
    long embedding_kind, cache_kind, cache_size;
    const void *embedding; /* [vocabulary, D] */
    const float *norm;     /* [D] */
    Linear head;
    const float *frequencies; /* [C / 2] */
    Layer *layer;
    /* Scratch memory. */
    float *hidden, *rotary;            /* [D]; cosine and sine [2, C / 2] */
    Vector normed, attended, active;   /* [D]; [G * H * C]; [K, I] */
    float *projected, *inner, *logits; /* [(G + 2) * H * C], queries first; [MAX_PRODUCTS, K, R]; [E] */
    int32_t *experts;                  /* [K] */
    float *gates;                      /* [K] */
    long inner_size;                   /* K * R of the largest rank R */
} Model;

#endif
