// Vectors of eight numbers, which a core computes at once, for the C files: the vector extensions of GCC and Clang.

#include <math.h>
#include <string.h>

typedef float vec __attribute__((vector_size(32), aligned(4)));
typedef int bits __attribute__((vector_size(32)));
enum { VECTOR_WIDTH = 8 };

#define AT(array, index) (*(vec *)((array) + (index)))

static inline float sum_of(vec x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

static inline float largest(const float *x, long count) {
    vec most = AT(x, 0);
    for (long i = VECTOR_WIDTH; i < count; i += VECTOR_WIDTH) {
        bits larger = AT(x, i) > most;
        most = (vec)(((bits)AT(x, i) & larger) | ((bits)most & ~larger));
    }
    float result = most[0];
    for (int i = 1; i < VECTOR_WIDTH; i++) result = most[i] > result ? most[i] : result;
    return result;
}

// e^x for x <= 88, to 1e-7 of it: 2^n by the exponent's bits, times the Taylor series of the rest, below 0.35
static inline vec exponential(vec x) {
    bits possible = x > -87.0f;
    vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the last bits become the rounded quotient
    vec n = shifted - 12582912.0f, r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    vec series = 1 + r * (1 + r * (1 / 2.0f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r / 720.0f)))));
    return (vec)(((bits)series + ((bits)shifted << 23)) & possible);
}
