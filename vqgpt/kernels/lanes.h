// Eight numbers side by side, for the C files: what a core computes at once, by the vectors of GCC and Clang.

#include <math.h>
#include <string.h>

typedef float lanes __attribute__((vector_size(32), aligned(4)));
typedef int bits __attribute__((vector_size(32)));
enum { LANES = 8 };

#define AT(array, index) (*(lanes *)((array) + (index)))

static inline float sum_of(lanes x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

static inline float largest(const float *x, long count) {
    lanes most = AT(x, 0);
    for (long i = LANES; i < count; i += LANES) {
        bits larger = AT(x, i) > most;
        most = (lanes)(((bits)AT(x, i) & larger) | ((bits)most & ~larger));
    }
    float result = most[0];
    for (int i = 1; i < LANES; i++) result = most[i] > result ? most[i] : result;
    return result;
}

// e^x for x <= 88, to 1e-7 of it: 2^n by the exponent's bits, times the Taylor series of the rest, below 0.35
static inline lanes exponential(lanes x) {
    bits possible = x > -87.0f;
    lanes shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the last bits become the rounded quotient
    lanes n = shifted - 12582912.0f, r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    lanes series = 1 + r * (1 + r * (1 / 2.0f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r / 720.0f)))));
    return (lanes)(((bits)series + ((bits)shifted << 23)) & possible);
}
