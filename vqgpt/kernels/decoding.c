// A step of decoding with a key-value cache, in float32: what `GPT.forward` computes for the code at one position.
//
// Each row is computed by operations of its own, in an order that does not depend on the other rows. Widths are
// multiples of 16, those of heads of 8; positions are counted up to a multiple of 8, and those that are not there yet
// weigh 0. Weights lie one after the other in the order of their use: of a normalisation weight and bias (width,) each,
// of a linear layer the matrix in panels (out / 16, in, 16), and the bias (out,).

#include "vector.h"
#include "product.h"

enum { SUMS = 4 };  // how many are added up side by side, as an addition takes four cycles
enum { COLUMNS = 16 };  // of a panel
#ifdef __AVX512F__
typedef float registers __attribute__((vector_size(64), aligned(4)));
enum { PER_PANEL = 1, ROWS = 8 };  // ROWS of a matrix product are summed in registers
#else
typedef vec registers;
enum { PER_PANEL = 2, ROWS = 4 };
#endif
PRODUCT(rows_product, registers, ROWS, PER_PANEL)
enum { BLOCK = 32 };  // rows at once: what is computed of them stays in a core's cache

#define EPSILON 1e-5f  // of the normalisations

struct sizes {
    long rows, layers, heads, width, inside, codes, positions, llama;
};

static inline vec absolute(vec x) { return (vec)((bits)x & 0x7fffffff); }

// x (1 + erf(x / sqrt(2))) / 2, with erf to 2e-7 by Abramowitz and Stegun 1964, 7.1.26
static inline vec gelu(vec x) {
    vec u = absolute(x) * 0.707106781f, t = 1 / (1 + 0.3275911f * u);
    vec rest = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return 0.5f * (x + absolute(x) * (1 - rest * exponential(-u * u)));
}

// x / (1 + e^-x), by e^-|x|, which cannot overflow
static inline vec silu(vec x) {
    vec small = exponential(-absolute(x));
    return 0.5f * (x + absolute(x) + (x - absolute(x)) * small) / (1 + small);
}

// (rows, width) -> the same shape: layer normalisation, or that of the root mean square. Returns the next weights.
static const float *normalise(const float *x, const float *weight, float *y, const struct sizes *of, long rows) {
    long width = of->width;
    const float *bias = weight + width;
    for (long r = 0; r < rows; r++, x += width, y += width) {
        vec sum = {0}, squares = {0};
        for (long c = 0; c < width; c += VECTOR_WIDTH) sum += AT(x, c);
        float mean = of->llama ? 0 : sum_of(sum) / width;
        for (long c = 0; c < width; c += VECTOR_WIDTH) squares += (AT(x, c) - mean) * (AT(x, c) - mean);
        float scale = 1 / sqrtf(sum_of(squares) / width + EPSILON);
        for (long c = 0; c < width; c += VECTOR_WIDTH)
            AT(y, c) = (AT(x, c) - mean) * scale * AT(weight, c) + AT(bias, c);
    }
    return bias + width;
}

// ROWS of x (ROWS, in) times a panel (in, COLUMNS), plus the bias, and what is in y if `add`
static inline void product(const float *x, const float *panel, const float *bias, float *y, long in, long out, int add) {
    registers sum[ROWS][PER_PANEL] = {0};
    rows_product(x, in, 1, panel, COLUMNS, in, sum);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int s = 0; s < PER_PANEL; s++) {
            registers *to = (registers *)(y + r * out) + s, result = sum[r][s] + ((const registers *)bias)[s];
            *to = add ? *to + result : result;
        }
}

// x (rows, in) -> y (rows, out). There is room for a multiple of ROWS. Returns the next weights.
static const float *linear(const float *x, const float *weight, float *y, long rows, long in, long out, int add) {
    const float *bias = weight + in * out;
    for (long c = 0; c < out; c += COLUMNS)
        for (long r = 0; r < rows; r += ROWS)
            product(x + r * in, weight + c * in, bias + c, y + r * out + c, in, out, add);
    return bias + out;
}

// A query or key of all heads, normalised and rotated by the angles of a position, in place.
static void rotate(float *x, const float *cosines, const float *sines, const struct sizes *of) {
    long head = of->width / of->heads;
    float y[head];
    for (long h = 0; h < of->heads; h++, x += head) {
        float squares = 0;
        for (long d = 0; d < head; d++) squares += x[d] * x[d];
        float scale = 1 / sqrtf(squares / head + EPSILON);
        for (long d = 0; d < head; d++)
            y[d] = scale * (x[d] * cosines[d] + x[d < head / 2 ? d + head / 2 : d - head / 2] * sines[d]);
        memcpy(x, y, sizeof y);
    }
}

// Attention of one row: query, key and value (3 * width) -> what the heads saw (width), at one position.
// Keys lie as (positions / 8, width, 8), values as (positions, width): both are read from the first to the last.
static void attend(const float *qkv, float *keys, float *values, float *seen, const struct sizes *of, long position) {
    long width = of->width, head = width / of->heads, count = (position / VECTOR_WIDTH + 1) * VECTOR_WIDTH;
    float scores[of->heads * count], scale = 1 / sqrtf(head);
    for (long c = 0; c < width; c++)
        keys[(position / VECTOR_WIDTH * width + c) * VECTOR_WIDTH + position % VECTOR_WIDTH] = qkv[width + c];
    memcpy(values + position * width, qkv + 2 * width, width * sizeof(float));
    for (long t = 0; t < count; t += VECTOR_WIDTH)
        for (long h = 0; h < of->heads; h++) {
            const float *query = qkv + h * head, *key = keys + t * width + h * head * VECTOR_WIDTH;
            vec sum[SUMS] = {0};
            for (long d = 0; d < head; d += SUMS)
                for (int s = 0; s < SUMS; s++) sum[s] += query[d + s] * AT(key, (d + s) * VECTOR_WIDTH);
            AT(scores, h * count + t) = (sum[0] + sum[1] + (sum[2] + sum[3])) * scale;
        }
    for (long h = 0; h < of->heads; h++) {
        float *shares = scores + h * count;
        for (long t = position + 1; t < count; t++) shares[t] = -INFINITY;
        float most = largest(shares, count);
        vec total = {0};
        for (long t = 0; t < count; t += VECTOR_WIDTH) total += AT(shares, t) = exponential(AT(shares, t) - most);
        for (long t = 0; t < count; t += VECTOR_WIDTH) AT(shares, t) /= sum_of(total);
    }
    memset(seen, 0, width * sizeof(float));
    for (long t = 0; t < count; t += VECTOR_WIDTH)
        for (long c = 0; c < width; c += VECTOR_WIDTH) {
            const float *share = scores + c / head * count + t, *value = values + t * width + c;
            vec sum = AT(seen, c);
#pragma GCC unroll 8
            for (int s = 0; s < VECTOR_WIDTH; s++) sum += share[s] * AT(value, s * width);
            AT(seen, c) = sum;
        }
}

// The non-linear part of the MLP, in place: (rows, inside), or (rows, 2 * inside) -> (rows, inside).
static void activate(float *x, const struct sizes *of, long rows) {
    long inside = of->inside;
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < inside; c += VECTOR_WIDTH)
            if (of->llama) AT(x, r * inside + c) = silu(AT(x, 2 * r * inside + c)) * AT(x, (2 * r + 1) * inside + c);
            else AT(x, r * inside + c) = gelu(AT(x, r * inside + c));
}

// What is called from outside.

long scratch_size(const struct sizes *of) { return BLOCK * (4 * of->width + 2 * of->inside); }

// Embedded tokens (rows, width), which are overwritten -> logits (rows, codes), at a position. There is room for a
// multiple of 8 rows. Keys and values are (layers, rows, positions * width), zeros at first; `rotations` (positions,
// layers, 2, 2, width of a head) are cosines and sines of queries and of keys, for llama.
void step(const struct sizes *of, const float *weights, const float *rotations, float *keys, float *values,
          float *stream, float *logits, float *scratch, long position) {
    long width = of->width, head = width / of->heads, cached = of->positions * width;
    float *normal = scratch, *qkv = normal + BLOCK * width, *inside = qkv + BLOCK * 3 * width;
    for (long first = 0; first < of->rows; first += BLOCK) {
        long rows = of->rows - first < BLOCK ? of->rows - first : BLOCK;
        float *x = stream + first * width;
        const float *w = weights;
        for (long layer = 0; layer < of->layers; layer++) {
            w = normalise(x, w, normal, of, rows);
            w = linear(normal, w, qkv, rows, width, 3 * width, 0);
            const float *angles = rotations + (position * of->layers + layer) * 4 * head;
            for (long r = 0; r < rows; r++) {
                float *row = qkv + r * 3 * width;
                if (of->llama) {
                    rotate(row, angles, angles + head, of);
                    rotate(row + width, angles + 2 * head, angles + 3 * head, of);
                }
                long place = (layer * of->rows + first + r) * cached;
                attend(row, keys + place, values + place, normal + r * width, of, position);
            }
            w = linear(normal, w, x, rows, width, width, 1);
            w = normalise(x, w, normal, of, rows);
            w = linear(normal, w, inside, rows, width, of->inside * (of->llama ? 2 : 1), 0);
            activate(inside, of, rows);
            w = linear(inside, w, x, rows, of->inside, width, 1);
        }
        w = normalise(x, w, normal, of, rows);
        linear(normal, w, logits + first * of->codes, rows, width, of->codes, 0);
    }
}
