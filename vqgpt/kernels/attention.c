// Causal attention with dropout, and its gradient, in float32: Dao et al. 2022, algorithms 2 and 4, without tiles of keys.
//
// Queries, keys and values lie as (images, positions, 3, heads, head), what the heads see as (images, positions, heads,
// head), where `head` is the width of one, a multiple of 8. Of each head 32 queries are computed at a time, with the keys
// up to the last of them: their weights stay in a core's cache, and are computed again for the gradient. A weight is
// dropped where its 16 bits of chance are below a threshold; the masks of an image lie in the order of the
// computation: for each block of queries, (heads, queries of the block, keys up to its last query).

#include "vector.h"
#include "product.h"

typedef short chance __attribute__((vector_size(16), aligned(2)));
enum { QUERIES = 32, COLUMNS = 16, ROWS = 4, TALL = 8 };
PRODUCT(wide_product, vec, ROWS, 2)  // to COLUMNS keys
PRODUCT(tall_product, vec, TALL, 1)  // to 8 features

struct sizes {
    long images, positions, heads, head, words, threshold;  // words: 16 bits of chance per image, from one to the next
};

static long least(long a, long b) { return a < b ? a : b; }
static long up_to(long number, long of) { return (number + of - 1) / of * of; }

// x with 0 where its bits of chance are below the threshold; the first `there` of its numbers have some.
static inline vec dropout(vec x, const short *drawn, long there, long threshold) {
    short last[VECTOR_WIDTH] = {0};  // the masks of the last head end with the memory
    if (there < VECTOR_WIDTH) drawn = memcpy(last, drawn, there * sizeof(short));
    chance stays = *(const chance *)drawn >= (short)threshold;
    return (vec)((bits)x & __builtin_convertvector(stays, bits));
}

// (rows, head), `stride` apart -> panels of its transpose (rows / 16, head, 16), with zeros after the last row
static void transpose(const float *x, long stride, long rows, long head, float *panels) {
    memset(panels, 0, up_to(rows, COLUMNS) * head * sizeof(float));
    for (long t = 0; t < rows; t++)
        for (long d = 0; d < head; d++) panels[(t / COLUMNS * head + d) * COLUMNS + t % COLUMNS] = x[t * stride + d];
}

// (rows, head) -> the same times a factor, with zeros up to QUERIES rows
static void scaled(const float *x, long stride, long rows, long head, float factor, float *y) {
    memset(y + rows * head, 0, (QUERIES - rows) * head * sizeof(float));
    for (long r = 0; r < rows; r++)
        for (long d = 0; d < head; d += VECTOR_WIDTH) AT(y, r * head + d) = AT(x, r * stride + d) * factor;
}

// x (QUERIES, head) times panels (keys / 16, head, 16) -> y (QUERIES, wide): what is after the query's key may be missing
static void scores(const float *x, const float *panels, long first, long rows, long head, float *y, long wide) {
    for (long r = 0; r < rows; r += ROWS)
        for (long c = 0; c < first + least(r + ROWS, rows); c += COLUMNS) {
            vec sum[ROWS][2] = {0};
            wide_product(x + r * head, head, 1, panels + c * head, COLUMNS, head, sum);
            for (int i = 0; i < ROWS; i++)
                for (int s = 0; s < 2; s++) AT(y, (r + i) * wide + c + s * VECTOR_WIDTH) = sum[i][s];
        }
}

// y (rows, head) = factors[row] * x (rows, keys) times z (keys, head), of the keys that a row of queries looks at
static void combine(const float *x, long wide, const float *z, long next, long first, long rows, long head,
                    const float *factors, float *y, long stride) {
    for (long c = 0; c < head; c += VECTOR_WIDTH)
        for (long r = 0; r < rows; r += TALL) {
            vec sum[TALL][1] = {0};
            tall_product(x + r * wide, wide, 1, z + c, next, first + least(r + TALL, rows), sum);
            for (long i = 0; i < least(TALL, rows - r); i++) AT(y, (r + i) * stride + c) = sum[i][0] * factors[r + i];
        }
}

// y (keys, head) += the transpose of x (QUERIES, keys), times z (QUERIES, head), of the queries that look at a key
static void collect(const float *x, long wide, const float *z, long first, long keys, long head, float *y) {
    for (long c = 0; c < head; c += VECTOR_WIDTH)
        for (long t = 0; t < keys; t += TALL) {
            long from = t > first ? t - first : 0;
            vec sum[TALL][1] = {0};
            tall_product(x + from * wide + t, 1, wide, z + from * head + c, head, QUERIES - from, sum);
            for (int i = 0; i < TALL; i++) AT(y, (t + i) * head + c) += sum[i][0];
        }
}

// Where the masks of a head begin, for a block of queries that begins at `first`.
static const short *masks_of(const short *drawn, const struct sizes *of, long image, long h, long first, long rows) {
    if (!drawn) return 0;
    long before = 0;  // of a head, in the blocks before
    for (long other = 0; other < first; other += QUERIES) before += QUERIES * (other + QUERIES);
    return drawn + image * of->words + before * of->heads + h * rows * (first + rows);
}

static float value_scale(const struct sizes *of, const short *drawn) {
    return drawn ? 65536.0f / (65536 - 32768 - of->threshold) : 1;
}

// What is called from outside.

long scratch_size(const struct sizes *of) {
    long wide = up_to(of->positions, QUERIES);
    return 2 * QUERIES * (wide + COLUMNS) + 2 * QUERIES * of->head + 4 * wide * of->head;
}

// -> what the heads see, and the logarithm of the sum of each query's exponentials (images, heads, positions)
void attend(const struct sizes *of, const float *qkv, const short *drawn, float *seen, float *sums, float *scratch) {
    long positions = of->positions, head = of->head, width = of->heads * head, wide = up_to(positions, QUERIES) + COLUMNS;
    float *weights = scratch, *query = weights + QUERIES * wide, *panels = query + QUERIES * head, factors[QUERIES];
    for (long image = 0; image < of->images; image++)
        for (long h = 0; h < of->heads; h++) {
            const float *q = qkv + image * positions * 3 * width + h * head, *k = q + width, *v = k + width;
            transpose(k, 3 * width, positions, head, panels);
            for (long first = 0; first < positions; first += QUERIES) {
                long rows = least(QUERIES, positions - first), keys = first + rows;
                const short *mask = masks_of(drawn, of, image, h, first, rows);
                scaled(q + first * 3 * width, 3 * width, rows, head, 1 / sqrtf(head), query);
                scores(query, panels, first, rows, head, weights, wide);
                for (long r = 0; r < rows; r++) {
                    float *row = weights + r * wide;
                    long count = first + r + 1, full = up_to(count, VECTOR_WIDTH);
                    for (long t = count; t < full; t++) row[t] = -INFINITY;
                    float most = largest(row, full);
                    vec total = {0};
                    for (long t = 0; t < full; t += VECTOR_WIDTH) {
                        vec weight = exponential(AT(row, t) - most);
                        total += weight;
                        AT(row, t) = mask ? dropout(weight, mask + r * keys + t, keys - t, of->threshold) : weight;
                    }
                    for (long t = full; t < up_to(keys, COLUMNS); t += VECTOR_WIDTH) AT(row, t) = (vec){0};
                    factors[r] = value_scale(of, drawn) / sum_of(total);
                    sums[(image * of->heads + h) * positions + first + r] = most + logf(sum_of(total));
                }
                float *y = seen + (image * positions + first) * width + h * head;
                combine(weights, wide, v, 3 * width, first, rows, head, factors, y, width);
            }
        }
}

// The gradient by what the heads see -> the gradient by queries, keys and values.
void attend_backward(const struct sizes *of, const float *qkv, const short *drawn, const float *seen, const float *sums,
                     const float *of_seen, float *of_qkv, float *scratch) {
    long positions = of->positions, head = of->head, width = of->heads * head, stride = 3 * width;
    long wide = up_to(positions, QUERIES) + COLUMNS, panel = up_to(positions, QUERIES) * head;
    float *weights = scratch, *of_scores = weights + QUERIES * wide, *query = of_scores + QUERIES * wide;
    float *of_y = query + QUERIES * head, *keys_panels = of_y + QUERIES * head, *values_panels = keys_panels + panel;
    float *of_keys = values_panels + panel, *of_values = of_keys + panel, scale = 1 / sqrtf(head), factors[QUERIES];
    for (long r = 0; r < QUERIES; r++) factors[r] = scale;
    for (long image = 0; image < of->images; image++)
        for (long h = 0; h < of->heads; h++) {
            const float *q = qkv + image * positions * stride + h * head, *k = q + width, *v = k + width;
            float *of_q = of_qkv + image * positions * stride + h * head;
            transpose(k, stride, positions, head, keys_panels);
            transpose(v, stride, positions, head, values_panels);
            memset(of_keys, 0, 2 * panel * sizeof(float));
            for (long first = 0; first < positions; first += QUERIES) {
                long rows = least(QUERIES, positions - first), keys = first + rows;
                long place = (image * positions + first) * width + h * head;
                const short *mask = masks_of(drawn, of, image, h, first, rows);
                scaled(q + first * stride, stride, rows, head, scale, query);
                scaled(of_seen + place, width, rows, head, value_scale(of, drawn), of_y);
                scores(query, keys_panels, first, rows, head, weights, wide);
                scores(of_y, values_panels, first, rows, head, of_scores, wide);
                for (long r = 0; r < rows; r++) {
                    float *weight = weights + r * wide, *gradient = of_scores + r * wide;
                    float sum = sums[(image * of->heads + h) * positions + first + r];
                    long count = first + r + 1, full = up_to(count, VECTOR_WIDTH);
                    vec product = {0};
                    for (long d = 0; d < head; d += VECTOR_WIDTH)
                        product += AT(of_seen, place + r * width + d) * AT(seen, place + r * width + d);
                    float inner = sum_of(product);
                    for (long t = count; t < full; t++) weight[t] = -INFINITY, gradient[t] = 0;
                    for (long t = 0; t < full; t += VECTOR_WIDTH) {
                        vec share = exponential(AT(weight, t) - sum), by_share = AT(gradient, t);
                        if (mask) by_share = dropout(by_share, mask + r * keys + t, keys - t, of->threshold);
                        AT(gradient, t) = share * (by_share - inner);
                        AT(weight, t) = mask ? dropout(share, mask + r * keys + t, keys - t, of->threshold) : share;
                    }
                    for (long t = full; t < up_to(keys, COLUMNS); t += VECTOR_WIDTH)
                        AT(weight, t) = AT(gradient, t) = (vec){0};
                }
                for (long r = rows; r < QUERIES; r++)
                    for (long t = 0; t < up_to(keys, COLUMNS); t += VECTOR_WIDTH)
                        AT(weights, r * wide + t) = AT(of_scores, r * wide + t) = (vec){0};
                combine(of_scores, wide, k, stride, first, rows, head, factors, of_q + first * stride, stride);
                collect(of_scores, wide, query, first, keys, head, of_keys);
                collect(weights, wide, of_y, first, keys, head, of_values);
            }
            for (long t = 0; t < positions; t++)
                for (long d = 0; d < head; d += VECTOR_WIDTH) {
                    AT(of_q, t * stride + width + d) = AT(of_keys, t * head + d);
                    AT(of_q, t * stride + 2 * width + d) = AT(of_values, t * head + d);
                }
        }
}
