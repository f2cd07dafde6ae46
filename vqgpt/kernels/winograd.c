// Winograd's transforms for 3x3 convolutions: F(4x4, 3x3) of Lavin and Gray 2015 (arXiv:1509.09308, section 4.3).
//
// A tile of 4 x 4 pixels of the output, and the 6 x 6 pixels of the input that it depends on, become 36 values per
// channel, between which the convolution is 36 matrix products. Images are (n, h, w, channels) float32 without gaps;
// channels are multiples of 16; pixels beyond the edges are 0.

#include "product.h"

typedef float vec __attribute__((vector_size(64), aligned(4)));
enum { VECTOR_WIDTH = 16 };
#ifdef __AVX512F__
typedef vec registers;
enum { PER_VECTOR = 1, ROWS = 12, FEW_ROWS = 8 };  // of a matrix product, which are summed in registers
#else
typedef float registers __attribute__((vector_size(32), aligned(4)));
enum { PER_VECTOR = 2, ROWS = 6, FEW_ROWS = 4 };
#endif
PRODUCT(rows_product, registers, ROWS, PER_VECTOR)
PRODUCT(few_rows_product, registers, FEW_ROWS, PER_VECTOR)
enum { BLOCK = 24 };  // tiles at once: their values stay in a core's cache
enum { SUMMED = 64 };  // tiles at once in the gradient by the kernels, whose sums are read and written for each block
enum { STRIDE = SUMMED + 1 };  // without the one, the 36 values of a pixel fall to the same places of a cache

#define AT(array, index) (*(vec *)((array) + (index)))
#define INSIDE(y, x) ((y) >= 0 && (y) < h && (x) >= 0 && (x) < w)
#define PIXEL(y, x, channels) (((i * h + (y)) * w + (x)) * (channels))
#define FOR_EACH(row, rows, column, columns) \
    for (int row = 0; row < (rows); row++)   \
        for (int column = 0; column < (columns); column++)

// The transforms of one line; its values are `s` apart.

// v = B^T d: 6 pixels -> 6 values
static inline void of_input(const vec *d, vec *v, int s) {
    vec a = d[4 * s] - 4 * d[2 * s], b = d[3 * s] - 4 * d[s], c = d[4 * s] - d[2 * s], e = d[3 * s] - d[s];
    v[0] = c + 4 * (d[0] - d[2 * s]);
    v[s] = a + b;
    v[2 * s] = a - b;
    v[3 * s] = c + 2 * e;
    v[4 * s] = c - 2 * e;
    v[5 * s] = d[5 * s] - d[3 * s] - 4 * e;
}

// d = B v: the transpose of `of_input`
static inline void of_input_transposed(const vec *v, vec *d, int s) {
    vec a = v[s] + v[2 * s], b = v[2 * s] - v[s], c = v[3 * s] + v[4 * s], e = v[4 * s] - v[3 * s];
    d[0] = 4 * v[0];
    d[s] = 4 * (b + v[5 * s]) + 2 * e;
    d[2 * s] = -5 * v[0] - 4 * a - c;
    d[3 * s] = -5 * v[5 * s] - b - 2 * e;
    d[4 * s] = v[0] + a + c;
    d[5 * s] = v[5 * s];
}

// y = A^T m: 6 values -> 4 pixels
static inline void of_output(const vec *m, vec *y, int s, int s_of_y) {
    vec a = m[s] + m[2 * s], b = m[s] - m[2 * s], c = m[3 * s] + m[4 * s], e = m[3 * s] - m[4 * s];
    y[0] = m[0] + a + c;
    y[s_of_y] = b + 2 * e;
    y[2 * s_of_y] = a + 4 * c;
    y[3 * s_of_y] = b + 8 * e + m[5 * s];
}

// m = A y: the transpose of `of_output`
static inline void of_output_transposed(const vec *y, vec *m, int s) {
    vec a = y[0] + y[2 * s], b = y[s] + y[3 * s], c = y[0] + 4 * y[2 * s], e = y[s] + 4 * y[3 * s];
    m[0] = y[0];
    m[s] = a + b;
    m[2 * s] = a - b;
    m[3 * s] = c + 2 * e;
    m[4 * s] = c - 2 * e;
    m[5 * s] = y[3 * s];
}

// v = G g: 3 weights -> 6 values
static inline void of_kernel(const vec *g, vec *v, int s) {
    vec a = (g[0] + g[2 * s]) / -6, b = g[s] / 6, c = g[0] / 24 + g[2 * s] / 6, e = g[s] / 12;
    v[0] = g[0] / 4;
    v[s] = a - b;
    v[2 * s] = a + b;
    v[3 * s] = c + e;
    v[4 * s] = c - e;
    v[5 * s] = g[2 * s];
}

// g = G^T v: the transpose of `of_kernel`
static inline void of_kernel_transposed(const vec *v, vec *g, int s) {
    vec a = (v[s] + v[2 * s]) / 6, b = v[3 * s] + v[4 * s];
    g[0] = v[0] / 4 - a + b / 24;
    g[s] = (v[2 * s] - v[s]) / 6 + (v[3 * s] - v[4 * s]) / 12;
    g[2 * s] = b / 6 - a + v[5 * s];
}

// The transforms of one tile at (4p, 4q) of image i, channels k to k + 15: rows, then columns.

static inline void of_input_tile(const float *images, vec *v, long i, long p, long q, long h, long w, long c) {
    vec d[36], half[36];
    FOR_EACH(y, 6, x, 6) {
        long row = 4 * p + y - 1, column = 4 * q + x - 1;
        d[6 * y + x] = INSIDE(row, column) ? AT(images, PIXEL(row, column, c)) : (vec){0};
    }
    for (int x = 0; x < 6; x++) of_input(d + x, half + x, 6);
    for (int y = 0; y < 6; y++) of_input(half + 6 * y, v + 6 * y, 1);
}

// Adds to `images`.
static inline void of_input_tile_transposed(const vec *v, float *images, long i, long p, long q, long h, long w,
                                            long c) {
    vec half[36], d[36];
    for (int x = 0; x < 6; x++) of_input_transposed(v + x, half + x, 6);
    for (int y = 0; y < 6; y++) of_input_transposed(half + 6 * y, d + 6 * y, 1);
    FOR_EACH(y, 6, x, 6) {
        long row = 4 * p + y - 1, column = 4 * q + x - 1;
        if (INSIDE(row, column)) AT(images, PIXEL(row, column, c)) += d[6 * y + x];
    }
}

static inline void of_output_tile(const vec *m, const float *bias, float *images, long i, long p, long q, long h,
                                  long w, long c) {
    vec half[24], pixels[16];
    for (int x = 0; x < 6; x++) of_output(m + x, half + x, 6, 6);
    for (int y = 0; y < 4; y++) of_output(half + 6 * y, pixels + 4 * y, 1, 1);
    FOR_EACH(y, 4, x, 4) {
        long row = 4 * p + y, column = 4 * q + x;
        if (INSIDE(row, column)) AT(images, PIXEL(row, column, c)) = pixels[4 * y + x] + AT(bias, 0);
    }
}

static inline void of_output_tile_transposed(const float *images, vec *m, long i, long p, long q, long h, long w,
                                             long c) {
    vec pixels[24], half[36];
    FOR_EACH(y, 4, x, 4) {
        long row = 4 * p + y, column = 4 * q + x;
        pixels[6 * y + x] = INSIDE(row, column) ? AT(images, PIXEL(row, column, c)) : (vec){0};
    }
    for (int x = 0; x < 4; x++) of_output_transposed(pixels + x, half + x, 6);
    for (int y = 0; y < 6; y++) of_output_transposed(half + 6 * y, m + 6 * y, 1);
}

// Images -> the transformed tiles from `first` on, (36, stride, c), of which `count` are written.
static inline void transform_tiles(const float *images, float *transformed, long first, long count, long stride,
                                   long h, long w, long c, int transposed) {
    long rows = (h + 3) / 4, columns = (w + 3) / 4;
    for (long t = 0; t < count; t++) {
        long q = (first + t) % columns, p = (first + t) / columns % rows, i = (first + t) / columns / rows;
        for (long k = 0; k < c; k += VECTOR_WIDTH) {
            vec v[36];
            if (transposed) of_output_tile_transposed(images + k, v, i, p, q, h, w, c);
            else of_input_tile(images + k, v, i, p, q, h, w, c);
            for (long e = 0; e < 36; e++) AT(transformed, (e * stride + t) * c + k) = v[e];
        }
    }
}

// (count, c) times (c, VECTOR_WIDTH) -> (count, VECTOR_WIDTH), ROWS at a time, whose sums stay in registers; BLOCK is a
// multiple of ROWS
static inline void product(const float *v, const float *kernel, float *m, long count, long c) {
    for (long t = 0; t < count; t += ROWS, v += ROWS * c, m += ROWS * VECTOR_WIDTH) {
        registers sum[ROWS][PER_VECTOR] = {0};
        rows_product(v, c, 1, kernel, VECTOR_WIDTH, c, sum);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int s = 0; s < PER_VECTOR; s++) ((registers *)(m + r * VECTOR_WIDTH))[s] = sum[r][s];
    }
}

// `from` (n, h, w, c), convolved with the transformed kernels (d / 16, 36, c, 16) -> `to` (n, h, w, d); `scratch` holds
// 36 * BLOCK * (c + VECTOR_WIDTH).
static inline void compute(const float *from, const float *kernels, const float *bias, float *to, float *scratch, long n,
                           long h, long w, long c, long d, int transposed) {
    long rows = (h + 3) / 4, columns = (w + 3) / 4, tiles = n * rows * columns;
    float *v = scratch, *m = scratch + 36 * BLOCK * c;
    for (long first = 0; first < tiles; first += BLOCK) {
        long count = tiles - first < BLOCK ? tiles - first : BLOCK;
        transform_tiles(from, v, first, count, BLOCK, h, w, c, transposed);
        for (long k = 0; k < d; k += VECTOR_WIDTH) {
            for (long e = 0; e < 36; e++)
                product(v + e * BLOCK * c, kernels + (k / VECTOR_WIDTH * 36 + e) * c * VECTOR_WIDTH,
                        m + e * BLOCK * VECTOR_WIDTH, count, c);
            for (long t = 0; t < count; t++) {
                long q = (first + t) % columns, p = (first + t) / columns % rows, i = (first + t) / columns / rows;
                vec tile[36];
                for (long e = 0; e < 36; e++) tile[e] = AT(m, (e * BLOCK + t) * VECTOR_WIDTH);
                if (transposed) of_input_tile_transposed(tile, to + k, i, p, q, h, w, d);
                else of_output_tile(tile, bias + k, to + k, i, p, q, h, w, d);
            }
        }
    }
}

// Adds to `sums` (d, c) the transpose of (count, d) times (count, c).
static inline void add_product(const float *of_output, const float *input, float *sums, long count, long d, long c) {
    for (long k = 0; k < d; k += FEW_ROWS)
        for (long j = 0; j < c; j += VECTOR_WIDTH) {
            float *here = sums + k * c + j;
            registers sum[FEW_ROWS][PER_VECTOR];
#pragma GCC unroll 8
            for (int r = 0; r < FEW_ROWS; r++)
#pragma GCC unroll 2
                for (int s = 0; s < PER_VECTOR; s++) sum[r][s] = ((registers *)(here + r * c))[s];
            few_rows_product(of_output + k, 1, d, input + j, c, count, sum);
#pragma GCC unroll 8
            for (int r = 0; r < FEW_ROWS; r++)
#pragma GCC unroll 2
                for (int s = 0; s < PER_VECTOR; s++) ((registers *)(here + r * c))[s] = sum[r][s];
        }
}

// The gradient by the transformed kernels (36, d, c) -> the gradient by the kernel (d, 3, 3, c)
static inline void transform_kernel_back(const float *transformed, float *kernel, long d, long c) {
    for (long i = 0; i < d; i++)
        for (long k = 0; k < c; k += VECTOR_WIDTH) {
            vec v[36], half[18], g[9];
            for (long e = 0; e < 36; e++) v[e] = AT(transformed, (e * d + i) * c + k);
            for (int x = 0; x < 6; x++) of_kernel_transposed(v + x, half + x, 6);
            for (int y = 0; y < 3; y++) of_kernel_transposed(half + 6 * y, g + 3 * y, 1);
            FOR_EACH(y, 3, x, 3) AT(kernel, (i * 9 + 3 * y + x) * c + k) = g[3 * y + x];
        }
}

// What is called from outside. Input has c channels, output d.

long scratch_size(long c) { return 36 * BLOCK * (c + VECTOR_WIDTH); }

long scratch_size_of_gradient(long c, long d) { return 36 * (STRIDE * (c + d) + d * c); }

// (c, 3, 3, d) -> (d / 16, 36, c, 16)
void transform_kernel(const float *kernel, float *transformed, long c, long d) {
    for (long k = 0; k < d; k += VECTOR_WIDTH)
        for (long i = 0; i < c; i++) {
            vec g[9], half[18], v[36];
            FOR_EACH(y, 3, x, 3) g[3 * y + x] = AT(kernel, (i * 9 + 3 * y + x) * d + k);
            for (int x = 0; x < 3; x++) of_kernel(g + x, half + x, 3);
            for (int y = 0; y < 6; y++) of_kernel(half + 3 * y, v + 6 * y, 1);
            for (long e = 0; e < 36; e++) AT(transformed, ((k / VECTOR_WIDTH * 36 + e) * c + i) * VECTOR_WIDTH) = v[e];
        }
}

// input (n, h, w, c), transformed kernels (d / 16, 36, c, 16), bias (d,) -> output (n, h, w, d)
void convolve(const float *input, const float *kernels, const float *bias, float *output, float *scratch, long n, long h,
              long w, long c, long d) {
    compute(input, kernels, bias, output, scratch, n, h, w, c, d, 0);
}

// The gradient by the output, and transformed kernels (c / 16, 36, d, 16) -> the gradient by the input, which must be 0.
void convolve_transposed(const float *output, const float *kernels, float *input, float *scratch, long n, long h, long w,
                         long c, long d) {
    compute(output, kernels, 0, input, scratch, n, h, w, d, c, 1);
}

// Input (n, h, w, c) and the gradient by the output (n, h, w, d) -> the gradient by the kernel (d, 3, 3, c)
void kernel_gradient(const float *input, const float *of_output, float *of_kernel, float *scratch, long n, long h, long w,
                     long c, long d) {
    long tiles = n * ((h + 3) / 4) * ((w + 3) / 4);
    float *v = scratch, *m = v + 36 * STRIDE * c, *sums = m + 36 * STRIDE * d;
    for (long i = 0; i < 36 * d * c; i++) sums[i] = 0;
    for (long first = 0; first < tiles; first += SUMMED) {
        long count = tiles - first < SUMMED ? tiles - first : SUMMED;
        transform_tiles(input, v, first, count, STRIDE, h, w, c, 0);
        transform_tiles(of_output, m, first, count, STRIDE, h, w, d, 1);
        for (long e = 0; e < 36; e++) add_product(m + e * STRIDE * d, v + e * STRIDE * c, sums + e * d * c, count, d, c);
    }
    transform_kernel_back(sums, of_kernel, d, c);
}
