/* One decoding step of a whole model, for one sequence. Built and called by step.py.
 *
 * Weights are read where they are: in fp32, bf16 or tiles of NF4. Sums, norms, routers and softmaxes are in fp32. No
 * sum depends on the number of threads, so that a step always gives the same bits. Shape letters are declared in
 * jetmoe/routing.py; H key-value heads, G query heads of each, C channels per head, I the width inside an expert.
 *
 * A layer has up to seven stages: inputs (dense projections, and the router of the attention experts), queries of the
 * attention experts, attention, output, router, gate and up projections, down projections. */

#include <math.h>

#include "model.h"
#include "threads.h"

typedef struct Stage Stage;

typedef struct {
    const Model *model;
    const Layer *layer;
    const Stage *stage;
    long position, turn;     /* number of stages begun, counting those of A */
    bool inner;              /* whether units are of products with A of the adapters */
    float *logits;           /* [vocabulary] */
    float *router_logits;    /* [L * N, E], from the next router on, or NULL */
    uint8_t *router_experts; /* [L * N, K] */
    float *present_logits;   /* [E], of the last router */
    Product products[MAX_PRODUCTS];
    int count;
} Run;

struct Stage {
    void (*prepare)(Run *); /* what one thread does before the stage */
    long (*units)(const Run *);
    void (*unit)(Run *, long);
};

static const int32_t ONLY[1] = {0};
static const float WHOLE[1] = {1.0f};

static void rms_norm(const float *x, const float *weight, long size, double eps, float *y)
{
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < size; i++)
        squares += x[i] * x[i];
    float inverse = 1.0f / sqrtf(squares / (float)size + (float)eps);
    for (long i = 0; i < size; i++)
        y[i] = x[i] * inverse * weight[i];
}

static void norm_into_input(Run *r, const float *weight, double eps)
{
    const Model *m = r->model;
    rms_norm(m->hidden, weight, m->D, eps, m->normed.wide);
    narrow_into(m->normed, 0, m->D);
}

static void add_product(Run *r, const Linear *linear, Vector input, float *result)
{
    if (linear->rows) {
        float *inner = r->model->inner + r->count * r->model->inner_size;
        r->products[r->count++] = (Product){linear, ONLY, 1, input, 1, inner, result};
    }
}

static void add_expert_product(Run *r, const Linear *linear, Vector input, bool shared, float *result)
{
    const Model *m = r->model;
    r->products[r->count++] = (Product){linear, m->experts, m->K, input, shared, m->inner, result};
}

static void exchange(int32_t *first, int32_t *second)
{
    int32_t kept = *first;
    *first = *second;
    *second = kept;
}

/* Selects the K largest logits, the first of equal ones, and records them. */
static void select_experts(Run *r, const Change *change)
{
    const Model *m = r->model;
    const uint8_t *forced = change->forced;
    float *logits = r->present_logits, sum = 0.0f;
    if (change->biases)
        for (long e = 0; e < m->E; e++)
            logits[e] += change->biases[e];
    for (long k = 0; k < m->K; k++) {
        long best = -1;
        for (long e = 0; e < m->E; e++) {
            bool is_taken = false;
            for (long j = 0; j < k; j++)
                is_taken |= m->experts[j] == e;
            bool is_larger = best < 0 || logits[e] > logits[best];
            if (forced && best >= 0 && forced[e] != forced[best])
                is_larger = forced[e];
            if (!is_taken && is_larger)
                best = e;
        }
        m->experts[k] = (int32_t)best;
    }
    if (forced) /* the largest first */
        for (long i = 1; i < m->K; i++)
            for (long j = i; j > 0 && logits[m->experts[j]] > logits[m->experts[j - 1]]; j--)
                exchange(m->experts + j, m->experts + j - 1);
    for (long k = 0; k < m->K; k++)
        sum += m->gates[k] = expf(logits[m->experts[k]] - logits[m->experts[0]]);
    if (!m->gates_sum_to_one) {
        sum = 0.0f;
        for (long e = 0; e < m->E; e++)
            sum += expf(logits[e] - logits[m->experts[0]]);
    }
    for (long k = 0; k < m->K; k++)
        m->gates[k] /= sum;
    if (change->scales)
        for (long k = 0; k < m->K; k++)
            m->gates[k] *= change->scales[m->experts[k]];
    if (r->router_logits) {
        for (long k = 0; k < m->K; k++)
            r->router_experts[k] = (uint8_t)m->experts[k];
        r->router_logits += m->E;
        r->router_experts += m->K;
    }
}

static float *place_of_logits(Run *r)
{
    r->present_logits = r->router_logits ? r->router_logits : r->model->logits;
    return r->present_logits;
}

static void prepare_inputs(Run *r)
{
    const Model *m = r->model;
    float *result = m->projected;
    norm_into_input(r, r->layer->attention_norm, m->layer_eps);
    if (r->layer->attention_router.rows) {
        add_product(r, &r->layer->attention_router, m->normed, place_of_logits(r));
        result += m->G * m->H * m->C; /* the queries are those of the attention experts */
    }
    for (int i = 0; i < MAX_PROJECTIONS; result += r->layer->projections[i++].rows)
        add_product(r, r->layer->projections + i, m->normed, result);
}

static void prepare_queries(Run *r)
{
    if (r->layer->attention_router.rows) {
        select_experts(r, &r->layer->attention_change);
        add_expert_product(r, &r->layer->query, r->model->normed, true, r->model->projected);
    }
}

static void clip(float *x, long count, float limit)
{
    for (long i = 0; i < count; i++)
        x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

/* Channel i of the first half of a head pairs with channel i of the second half. */
static void rotate(const Model *m, float *head)
{
    long half = m->C / 2;
    for (long i = 0; i < half; i++) {
        float first = head[i], second = head[half + i];
        head[i] = first * m->rotary[i] - second * m->rotary[half + i];
        head[half + i] = second * m->rotary[i] + first * m->rotary[half + i];
    }
}

static void store_in_cache(const Model *m, void *cache, long position, const float *heads)
{
    for (long h = 0; h < m->H; h++) {
        long start = (h * m->cache_size + position) * m->C;
        for (long c = 0; c < m->C; c++)
            if (m->cache_kind == FP32)
                ((float *)cache)[start + c] = heads[h * m->C + c];
            else
                ((uint16_t *)cache)[start + c] = narrow(heads[h * m->C + c]);
    }
}

/* Completes queries, keys and values, and adds the position to the cache. */
static void prepare_attention(Run *r)
{
    const Model *m = r->model;
    const Layer *layer = r->layer;
    long queries = m->G * m->H * m->C, size = m->H * m->C;
    float *query = m->projected, *key = query + queries, *value = key + size;
    if (layer->query_norm)
        rms_norm(query, layer->query_norm, queries, m->layer_eps, query);
    if (layer->key_norm)
        rms_norm(key, layer->key_norm, size, m->layer_eps, key);
    if (m->clip > 0)
        clip(query, queries + 2 * size, (float)m->clip);
    for (long head = 0; head < (m->G + 1) * m->H; head++)
        rotate(m, query + head * m->C);
    store_in_cache(m, layer->keys, r->position, key);
    store_in_cache(m, layer->values, r->position, value);
    *layer->length = r->position + 1;
}

static long query_heads(const Run *r)
{
    return r->model->G * r->model->H;
}

/* total += the sum of values [count, C] with these weights */
#define DEFINE_ADD_VALUES(NAME, TYPE, WIDE)                                                                           \
    static void NAME(const TYPE *values, const float *weights, long count, long channels, float *total)               \
    {                                                                                                                 \
        for (long j = 0; j < count; j++, values += channels)                                                          \
            for (long c = 0; c < channels; c++)                                                                       \
                total[c] += weights[j] * WIDE(values[c]);                                                             \
    }

DEFINE_ADD_VALUES(add_values_fp32, float, )
DEFINE_ADD_VALUES(add_values_bf16, uint16_t, widen)

/* Attention of a query head over all positions, in blocks, with a running maximum of the scores. */
static void attend(Run *r, long index)
{
    enum { POSITIONS = 64 };
    const Model *m = r->model;
    long head = m->by_slot ? index % m->H : index / m->G, start = head * m->cache_size * m->C;
    float *query = m->projected + index * m->C, *total = m->attended.wide + index * m->C;
    float highest = -INFINITY, sum = 0.0f, scaling = 1.0f / sqrtf((float)m->C);
    memset(total, 0, (size_t)m->C * sizeof *total);
    for (long first = 0; first <= r->position; first += POSITIONS, start += POSITIONS * m->C) {
        long count = at_most(r->position + 1 - first, POSITIONS);
        float scores[POSITIONS], largest = highest;
        dense(m->cache_kind, r->layer->keys, start, query, count, m->C, scores);
        for (long j = 0; j < count; j++)
            largest = (scores[j] *= scaling) > largest ? scores[j] : largest;
        float kept = power_of_e(highest - largest);
        sum *= kept;
        for (long c = 0; c < m->C; c++)
            total[c] *= kept;
        for (long j = 0; j < count; j++)
            scores[j] = power_of_e(scores[j] - largest);
        for (long j = 0; j < count; j++)
            sum += scores[j];
        if (m->cache_kind == FP32)
            add_values_fp32((const float *)r->layer->values + start, scores, count, m->C, total);
        else
            add_values_bf16((const uint16_t *)r->layer->values + start, scores, count, m->C, total);
        highest = largest;
    }
    for (long c = 0; c < m->C; c++)
        total[c] /= sum;
    narrow_into(m->attended, index * m->C, m->C);
}

static void prepare_output(Run *r)
{
    if (r->layer->attention_router.rows)
        add_expert_product(r, &r->layer->output, r->model->attended, false, NULL);
    else
        add_product(r, &r->layer->output, r->model->attended, NULL);
}

static void output(Run *r, long unit)
{
    add_block(r->products, r->layer->attention_router.rows ? r->model->gates : WHOLE, r->model->hidden, unit);
}

static void prepare_router(Run *r)
{
    norm_into_input(r, r->layer->feed_forward_norm, r->model->layer_eps);
    add_product(r, &r->layer->router, r->model->normed, place_of_logits(r));
}

static void prepare_gate_up(Run *r)
{
    select_experts(r, &r->layer->change);
    add_expert_product(r, &r->layer->gate_up, r->model->normed, true, NULL);
}

static long active_units(const Run *r)
{
    return r->model->K * blocks(r->model->I, ROWS);
}

static void activate(Run *r, long unit)
{
    activate_block(r->products, r->model->active, unit);
}

static void prepare_down(Run *r)
{
    add_expert_product(r, &r->layer->down, r->model->active, false, NULL);
}

static void down(Run *r, long unit)
{
    add_block(r->products, r->model->gates, r->model->hidden, unit);
}

static long hidden_units(const Run *r)
{
    return blocks(r->model->D, ROWS);
}

static void prepare_head(Run *r)
{
    norm_into_input(r, r->model->norm, r->model->norm_eps);
    add_product(r, &r->model->head, r->model->normed, r->logits);
}

static long units_of(const Product *p, bool inner)
{
    return p->assignments * (inner ? blocks(p->linear->rank, RANKS) : blocks(p->linear->rows, ROWS));
}

static long product_units(const Run *r)
{
    long units = 0;
    for (int i = 0; i < r->count; i++)
        units += units_of(r->products + i, r->inner);
    return units;
}

static void product(Run *r, long unit)
{
    const Product *p = r->products;
    for (; unit >= units_of(p, r->inner); p++)
        unit -= units_of(p, r->inner);
    if (r->inner)
        inner_block(p, unit);
    else
        store_block(p, unit);
}

static const Stage LAYER_STAGES[] = {
    {prepare_inputs, product_units, product},  {prepare_queries, product_units, product},
    {prepare_attention, query_heads, attend},  {prepare_output, hidden_units, output},
    {prepare_router, product_units, product},  {prepare_gate_up, active_units, activate},
    {prepare_down, hidden_units, down},
};
static const Stage HEAD_STAGE = {prepare_head, product_units, product};
enum { STAGES = sizeof LAYER_STAGES / sizeof *LAYER_STAGES };

/* Prepares the next stage that has units. Every stage comes twice: first for the products with A of the adapters. */
static long next_stage(void *run)
{
    Run *r = run;
    for (;;) {
        long stage = ++r->turn / 2;
        if (stage > r->model->layers * STAGES)
            return 0;
        r->inner = r->turn % 2 == 0;
        if (r->inner) {
            r->layer = r->model->layer + stage / STAGES;
            r->stage = stage < r->model->layers * STAGES ? LAYER_STAGES + stage % STAGES : &HEAD_STAGE;
            r->count = 0;
            r->stage->prepare(r);
        }
        long units = r->inner ? product_units(r) : r->stage->units(r);
        if (units)
            return units;
    }
}

static void run_unit(void *run, long unit)
{
    Run *r = run;
    if (r->inner)
        product(r, unit);
    else
        r->stage->unit(r, unit);
}

static void start_from(const Model *m, long token, long position)
{
    for (long i = 0; i < m->D; i++)
        m->hidden[i] = m->embedding_kind == FP32 ? ((const float *)m->embedding)[token * m->D + i]
                                                 : widen(((const uint16_t *)m->embedding)[token * m->D + i]);
    for (long i = 0; i < m->C / 2; i++) {
        float angle = (float)position * m->frequencies[i];
        m->rotary[i] = cosf(angle) * (float)m->rotary_scaling;
        m->rotary[m->C / 2 + i] = sinf(angle) * (float)m->rotary_scaling;
    }
}

/* Writes the logits [vocabulary] after a token, its keys and values in the cache at `position`, and the routers'
 * logits [L * N, E] and experts [L * N, K], unless they are NULL. The caller checks all sizes. */
void jetmoe_step(Threads *threads, const Model *model, long token, long position, float *logits, float *router_logits,
                 uint8_t *router_experts)
{
    Run run = {.model = model, .position = position, .logits = logits, .router_logits = router_logits,
               .router_experts = router_experts, .turn = -1};
    start_from(model, token, position);
    run_work(threads, (Work){&run, run_unit, next_stage});
}
