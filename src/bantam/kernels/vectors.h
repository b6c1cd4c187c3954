/* How a block's convolution keeps sums in vector registers: see `convolution_products.h` and `winograd_products.h`.
 *
 * A step adds NUMBERS products to each of LANES sums, which are floats: one of floats, or two of bfloat16 that lie
 * side by side in memory. A row of the kernel, columns and channels, lies side by side in an image.
 */
#if BFLOAT16
#define NUMBERS 2
#else
#define NUMBERS 1
#endif
/* A factor of several products stays in its register: gcc would load it from memory for each of them. */
#if defined(__AVX512F__)
#define IN_REGISTER(value) __asm__("" : "+v"(value))
#elif defined(__x86_64__)
#define IN_REGISTER(value) __asm__("" : "+x"(value))
#else
#define IN_REGISTER(value) (void)(value)
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
#define VECTORS(channels) (((channels) + LANES - 1) / LANES)
#define AT_LEAST_1(count) ((count) > 0 ? (count) : 1)
#define STEPS(channels) ((KERNEL * (channels) + NUMBERS - 1) / NUMBERS)

/* The NUMBERS at `from`, the same for every lane, and sum += these times factors. */
#if BFLOAT16
typedef uint32_t one_pair __attribute__((aligned(2), may_alias));
typedef const element *in_lanes;
#define IN_EVERY_LANE(value, from) (value) = (from)
#define ADD_PRODUCT(sum, value, factors) ADD_PAIRS(sum, value, factors)
#else
typedef vector in_lanes;
#define IN_EVERY_LANE(value, from)                                                                             \
    do {                                                                                                       \
        (value) = *(from) - (vector){0};                                                                       \
        IN_REGISTER(value);                                                                                    \
    } while (0)
#define ADD_PRODUCT(sum, value, factors) (sum) += (value) * (factors)
#endif

/* Where a product is not added by the same instruction, it takes a register too. */
#if defined(__x86_64__) && !defined(__FMA__) && !defined(__AVX512F__)
#define PRODUCTS 1
#else
#define PRODUCTS 0
#endif

/* Sums are tiles in registers, some numbers × some vectors. Beside them there must be room for the numbers or for the
 * vectors, whichever are fewer, and for one of the others: more would be stored and loaded in the innermost loop. Of many
 * vectors a tile takes a group. */
#define FITS(numbers, vectors)                                                                                 \
    ((numbers) * (vectors) + ((numbers) < (vectors) ? (numbers) : (vectors)) + 1 + PRODUCTS <= REGISTERS)
#define MOST(vectors)                                                                                          \
    (FITS(14, vectors)  ? 14                                                                                   \
     : FITS(10, vectors) ? 10                                                                                  \
     : FITS(7, vectors)  ? 7                                                                                   \
     : FITS(6, vectors)  ? 6                                                                                   \
     : FITS(5, vectors)  ? 5                                                                                   \
     : FITS(4, vectors)  ? 4                                                                                   \
     : FITS(3, vectors)  ? 3                                                                                   \
     : FITS(2, vectors)  ? 2                                                                                   \
                         : 1)
#define IN_ONE(vectors) ((vectors) == 1 || FITS(2, vectors))
#define GROUPS(vectors) (IN_ONE(vectors) ? 1 : ((vectors) + 3) / 4)
#define GROUP(vectors) (((vectors) + GROUPS(vectors) - 1) / GROUPS(vectors))

/* sum[u][v] += the numbers at VALUE(u) × the factors at `factors` + v vectors, for u < SOME where WANTED(u). */
#define ADD_TILE(sum, SOME, SEVERAL, factors, VALUE, WANTED)                                                   \
    if ((int)(SEVERAL) <= (int)(SOME)) {                                                                       \
        vector factor[SEVERAL];                                                                                \
        UNROLLED(v, SEVERAL) {                                                                                 \
            factor[v] = *(const vector *)((const float *)(factors) + v * LANES);                               \
            IN_REGISTER(factor[v]);                                                                            \
        }                                                                                                      \
        UNROLLED(u, SOME)                                                                                      \
            if (WANTED(u)) {                                                                                   \
                in_lanes value;                                                                                \
                IN_EVERY_LANE(value, VALUE(u));                                                                \
                UNROLLED(v, SEVERAL) ADD_PRODUCT(sum[u][v], value, factor[v]);                                 \
            }                                                                                                  \
    } else {                                                                                                   \
        in_lanes each[SOME];                                                                                   \
        UNROLLED(u, SOME) if (WANTED(u)) IN_EVERY_LANE(each[u], VALUE(u));                                     \
        UNROLLED(v, SEVERAL) {                                                                                 \
            vector factor = *(const vector *)((const float *)(factors) + v * LANES);                           \
            IN_REGISTER(factor);                                                                               \
            UNROLLED(u, SOME) if (WANTED(u)) ADD_PRODUCT(sum[u][v], each[u], factor);                           \
        }                                                                                                      \
    }
