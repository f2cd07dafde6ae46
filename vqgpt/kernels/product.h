// The inner loop of a matrix product, for the C files.

#ifdef __AVX__
#define IN_REGISTER(x) __asm__("" : "+v"(x))  // GCC would read it from memory again for each row: half as fast
#else
#define IN_REGISTER(x)
#endif

// Adds to `sum` (rows, vectors of `type`): x (rows, in) times a panel (in, columns), which is as wide as the vectors.
// Rows of x lie `row` numbers apart, columns `column`; rows of the panel `next`. All sums are to fit into registers.
#define PRODUCT(name, type, rows, vectors)                                                                             \
    static inline __attribute__((always_inline)) void name(const float *x, long row, long column, const float *panel,  \
                                                           long next, long in, type sum[rows][vectors]) {              \
        for (long k = 0; k < in; k++) {                                                                                \
            type here[vectors];                                                                                        \
            _Pragma("GCC unroll 2") for (int s = 0; s < (vectors); s++) {                                              \
                here[s] = ((const type *)(panel + k * next))[s];                                                       \
                IN_REGISTER(here[s]);                                                                                  \
            }                                                                                                          \
            _Pragma("GCC unroll 12") for (int r = 0; r < (rows); r++)                                                  \
                _Pragma("GCC unroll 2") for (int s = 0; s < (vectors); s++) sum[r][s] +=                               \
                x[r * row + k * column] * here[s];                                                                     \
        }                                                                                                              \
    }
