/* One decoding step of a whole model, for one token of each of several sequences. Built and called by step.py.
 *
 * Weights are read where they are: in fp32, bf16 or tiles of NF4, and once for all tokens. Sums, norms, routers and
 * softmaxes are in fp32. No sum depends on the number of threads or on the other sequences, so that a step always gives
 * the same bits. Shape letters are declared in jetmoe/routing.py; H key-value heads, G query heads of each, C channels
 * per head, I the width inside an expert.
 *
 * A layer has up to seven stages: inputs (dense projections, and the router of the attention experts), queries of the
 * attention experts, attention, output, router, gate and up projections, down projections. */

#include <math.h>

#include "model.h"
#include "threads.h"

typedef struct Stage Stage;

typedef struct {
    const Model *model;
    Sequence *sequences;
    long tokens; /* one of each sequence */
    const Layer *layer;
    const Stage *stage;
    long turn;     /* number of stages begun, counting those of A */
    long routers;  /* number of routers that are done */
    bool inner;    /* whether units are of products with A of the adapters */
    float *logits; /* [tokens, vocabulary] */
    Groups whole;  /* one group of all tokens, for maps that are not of experts */
    Groups chosen; /* assignments of the last router */
    Product products[MAX_PRODUCTS];
    int count;
} Run;

struct Stage {
    void (*prepare)(Run *); /* what one thread does before the stage */
    long (*units)(const Run *);
    void (*unit)(Run *, long);
};

static int32_t NONE[1] = {0}, IN_ORDER[MAX_TOKENS] = {0, 1, 2, 3, 4, 5, 6, 7};
static const float WHOLE[MAX_TOKENS] = {1, 1, 1, 1, 1, 1, 1, 1};

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
    for (long t = 0; t < r->tokens; t++)
        rms_norm(m->hidden + t * m->D, weight, m->D, eps, m->normed.wide + t * m->D);
    narrow_into(m->normed, 0, r->tokens * m->D);
}

static Product *new_product(Run *r, const Linear *linear, Vector input)
{
    Product *p = r->products + r->count;
    *p = (Product){.linear = linear, .input = input, .inner = r->model->inner + r->count * r->model->inner_size};
    r->count++;
    return p;
}

/* Results of a token begin `stride` after those of the token before. */
static void add_product(Run *r, const Linear *linear, Vector input, float *result, long stride)
{
    if (linear->rows) {
        Product *p = new_product(r, linear, input);
        p->groups = &r->whole, p->per_token = 1, p->shared = true, p->result = result, p->stride = stride;
    }
}

static void add_expert_product(Run *r, const Linear *linear, Vector input, bool shared, float *result, long stride)
{
    Product *p = new_product(r, linear, input);
    p->groups = &r->chosen, p->per_token = r->model->K, p->shared = shared;
    p->result = result, p->stride = stride;
}

static void exchange(int32_t *first, int32_t *second)
{
    int32_t kept = *first;
    *first = *second;
    *second = kept;
}

/* Selects the K largest of a token's logits, the first of equal ones. */
static void select_experts(const Model *m, const Change *change, float *logits, int32_t *experts, float *gates)
{
    const uint8_t *forced = change->forced;
    float sum = 0.0f;
    if (change->biases)
        for (long e = 0; e < m->E; e++)
            logits[e] += change->biases[e];
    for (long k = 0; k < m->K; k++) {
        long best = -1;
        for (long e = 0; e < m->E; e++) {
            bool is_taken = false;
            for (long j = 0; j < k; j++)
                is_taken |= experts[j] == e;
            bool is_larger = best < 0 || logits[e] > logits[best];
            if (forced && best >= 0 && forced[e] != forced[best])
                is_larger = forced[e];
            if (!is_taken && is_larger)
                best = e;
        }
        experts[k] = (int32_t)best;
    }
    if (forced) /* the largest first */
        for (long i = 1; i < m->K; i++)
            for (long j = i; j > 0 && logits[experts[j]] > logits[experts[j - 1]]; j--)
                exchange(experts + j, experts + j - 1);
    for (long k = 0; k < m->K; k++)
        sum += gates[k] = expf(logits[experts[k]] - logits[experts[0]]);
    if (!m->gates_sum_to_one) {
        sum = 0.0f;
        for (long e = 0; e < m->E; e++)
            sum += expf(logits[e] - logits[experts[0]]);
    }
    for (long k = 0; k < m->K; k++)
        gates[k] /= sum;
    if (change->scales)
        for (long k = 0; k < m->K; k++)
            gates[k] *= change->scales[experts[k]];
}

static void record(const Run *r, long token)
{
    const Model *m = r->model;
    const Sequence *s = r->sequences + token;
    if (s->router_logits == NULL)
        return;
    memcpy(s->router_logits + r->routers * m->E, m->logits + token * m->E, (size_t)m->E * sizeof *m->logits);
    for (long k = 0; k < m->K; k++)
        s->router_experts[r->routers * m->K + k] = (uint8_t)m->experts[token * m->K + k];
}

static void group_by_expert(const Model *m, long tokens, Groups *groups)
{
    int32_t filled = 0;
    groups->count = 0;
    for (int32_t e = 0; e < m->E; e++) {
        groups->starts[groups->count] = filled;
        for (int32_t a = 0; a < tokens * m->K; a++)
            if (m->experts[a] == e)
                groups->order[filled++] = a;
        if (filled > groups->starts[groups->count])
            groups->experts[groups->count++] = e;
    }
    groups->starts[groups->count] = filled;
}

static void route(Run *r, const Change *change)
{
    const Model *m = r->model;
    for (long t = 0; t < r->tokens; t++) {
        select_experts(m, change, m->logits + t * m->E, m->experts + t * m->K, m->gates + t * m->K);
        record(r, t);
    }
    r->routers++;
    group_by_expert(m, r->tokens, &r->chosen);
}

static long heads_size(const Model *m)
{
    return (m->G + 2) * m->H * m->C;
}

static void prepare_inputs(Run *r)
{
    const Model *m = r->model;
    float *result = m->projected;
    norm_into_input(r, r->layer->attention_norm, m->layer_eps);
    if (r->layer->attention_router.rows) {
        add_product(r, &r->layer->attention_router, m->normed, m->logits, m->E);
        result += m->G * m->H * m->C; /* the queries are those of the attention experts */
    }
    for (int i = 0; i < MAX_PROJECTIONS; result += r->layer->projections[i++].rows)
        add_product(r, r->layer->projections + i, m->normed, result, heads_size(m));
}

static void prepare_queries(Run *r)
{
    if (r->layer->attention_router.rows) {
        const Model *m = r->model;
        route(r, &r->layer->attention_change);
        add_expert_product(r, &r->layer->query, m->normed, true, m->projected, heads_size(m));
    }
}

static void clip(float *x, long count, float limit)
{
    for (long i = 0; i < count; i++)
        x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

/* Channel i of the first half of a head pairs with channel i of the second half. */
static void rotate(const Model *m, const float *rotary, float *head)
{
    long half = m->C / 2;
    for (long i = 0; i < half; i++) {
        float first = head[i], second = head[half + i];
        head[i] = first * rotary[i] - second * rotary[half + i];
        head[half + i] = second * rotary[i] + first * rotary[half + i];
    }
}

static void store_in_cache(const Model *m, const Sequence *s, void *cache, const float *heads)
{
    for (long h = 0; h < m->H; h++) {
        long start = (h * s->cache_size + s->position) * m->C;
        for (long c = 0; c < m->C; c++)
            if (m->cache_kind == FP32)
                ((float *)cache)[start + c] = heads[h * m->C + c];
            else
                ((uint16_t *)cache)[start + c] = narrow(heads[h * m->C + c]);
    }
}

/* Completes queries, keys and values of a token, and adds its position to the cache. */
static void complete_heads(const Run *r, long token)
{
    const Model *m = r->model;
    const Layer *layer = r->layer;
    const Sequence *s = r->sequences + token;
    const Cache *cache = s->caches + (layer - m->layer);
    long queries = m->G * m->H * m->C, size = m->H * m->C;
    float *query = m->projected + token * heads_size(m), *key = query + queries, *value = key + size;
    if (layer->query_norm)
        rms_norm(query, layer->query_norm, queries, m->layer_eps, query);
    if (layer->key_norm)
        rms_norm(key, layer->key_norm, size, m->layer_eps, key);
    if (m->clip > 0)
        clip(query, queries + 2 * size, (float)m->clip);
    for (long head = 0; head < (m->G + 1) * m->H; head++)
        rotate(m, m->rotary + token * m->C, query + head * m->C);
    store_in_cache(m, s, cache->keys, key);
    store_in_cache(m, s, cache->values, value);
    *cache->length = s->position + 1;
}

static void prepare_attention(Run *r)
{
    for (long t = 0; t < r->tokens; t++)
        complete_heads(r, t);
}

static long query_heads(const Run *r)
{
    return r->tokens * r->model->G * r->model->H;
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

/* Attention of a query head of a token over all positions, in blocks, with a running maximum of the scores. */
static void attend(Run *r, long unit)
{
    enum { POSITIONS = 64 };
    const Model *m = r->model;
    long token = unit / (m->G * m->H), index = unit % (m->G * m->H);
    const Sequence *s = r->sequences + token;
    const Cache *cache = s->caches + (r->layer - m->layer);
    long head = m->by_slot ? index % m->H : index / m->G, start = head * s->cache_size * m->C;
    const float *query = m->projected + token * heads_size(m) + index * m->C;
    float *total = m->attended.wide + unit * m->C;
    float highest = -INFINITY, sum = 0.0f, scaling = 1.0f / sqrtf((float)m->C);
    memset(total, 0, (size_t)m->C * sizeof *total);
    for (long first = 0; first <= s->position; first += POSITIONS, start += POSITIONS * m->C) {
        long count = at_most(s->position + 1 - first, POSITIONS);
        float scores[POSITIONS], largest = highest;
        dense(m->cache_kind, cache->keys, start, &query, 1, count, m->C, scores, POSITIONS);
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
            add_values_fp32((const float *)cache->values + start, scores, count, m->C, total);
        else
            add_values_bf16((const uint16_t *)cache->values + start, scores, count, m->C, total);
        highest = largest;
    }
    for (long c = 0; c < m->C; c++)
        total[c] /= sum;
    narrow_into(m->attended, unit * m->C, m->C);
}

/* A product whose weighted sum over the assignments of a token is added to its hidden state. */
static void add_weighted(Run *r, const Linear *linear, Vector input, bool of_experts)
{
    const Model *m = r->model;
    if (of_experts)
        add_expert_product(r, linear, input, false, m->parts, m->K * m->D);
    else
        add_product(r, linear, input, m->parts, m->D);
    r->products->weighted = true;
}

static void prepare_output(Run *r)
{
    add_weighted(r, &r->layer->output, r->model->attended, r->layer->attention_router.rows);
}

static void output(Run *r, long unit)
{
    add_block(r->products, r->layer->attention_router.rows ? r->model->gates : WHOLE, r->model->hidden, r->tokens, unit);
}

static void prepare_router(Run *r)
{
    norm_into_input(r, r->layer->feed_forward_norm, r->model->layer_eps);
    add_product(r, &r->layer->router, r->model->normed, r->model->logits, r->model->E);
}

static void prepare_gate_up(Run *r)
{
    route(r, &r->layer->change);
    add_expert_product(r, &r->layer->gate_up, r->model->normed, true, NULL, 0);
}

static long active_units(const Run *r)
{
    return r->chosen.count * blocks(r->model->I, ROWS);
}

static void activate(Run *r, long unit)
{
    activate_block(r->products, r->model->active, unit);
}

static void prepare_down(Run *r)
{
    add_weighted(r, &r->layer->down, r->model->active, true);
}

static void down(Run *r, long unit)
{
    add_block(r->products, r->model->gates, r->model->hidden, r->tokens, unit);
}

static long hidden_units(const Run *r)
{
    return blocks(r->model->D, ROWS);
}

static void prepare_head(Run *r)
{
    norm_into_input(r, r->model->norm, r->model->norm_eps);
    add_product(r, &r->model->head, r->model->normed, r->logits, r->model->head.rows);
}

static long units_of(const Product *p, bool inner)
{
    return p->groups->count * (inner ? blocks(p->linear->rank, RANKS) : blocks(p->linear->rows, ROWS));
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

static void start_from(const Model *m, const Sequence *s, float *hidden, float *rotary)
{
    for (long i = 0; i < m->D; i++)
        hidden[i] = m->embedding_kind == FP32 ? ((const float *)m->embedding)[s->token * m->D + i]
                                              : widen(((const uint16_t *)m->embedding)[s->token * m->D + i]);
    for (long i = 0; i < m->C / 2; i++) {
        float angle = (float)s->position * s->frequencies[i];
        rotary[i] = cosf(angle) * (float)s->rotary_scaling;
        rotary[m->C / 2 + i] = sinf(angle) * (float)s->rotary_scaling;
    }
}

/* Writes the logits [tokens, vocabulary] after a token of each sequence, 1 to MAX_TOKENS, its keys and values in the
 * cache, and its routing where that is recorded. The caller checks all sizes. */
void jetmoe_step(Threads *threads, const Model *model, Sequence *sequences, long tokens, float *logits)
{
    int32_t bounds[2] = {0, (int32_t)tokens};
    Run run = {.model = model, .sequences = sequences, .tokens = tokens, .logits = logits, .turn = -1,
               .whole = {1, NONE, bounds, IN_ORDER}, .chosen = {0, model->group_experts, model->group_starts, model->order}};
    for (long t = 0; t < tokens; t++)
        start_from(model, sequences + t, model->hidden + t * model->D, model->rotary + t * model->C);
    run_work(threads, (Work){&run, run_unit, next_stage});
}
