/* The channels of one pixel in vectors, for all that a block does beside the products of its convolution.
 *
 * A vector has as many lanes as the processor's, or the next smaller power of two that CO channels fill. Where they are no
 * multiple of it the last vector overlaps the one before: some are computed twice, in the same way. So no number of
 * channels takes longer than the next multiple, and nothing beyond a pixel's channels is read or written.
 */
#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 32
#elif defined(__AVX__)
#define LANES 8
#define REGISTERS 16
#elif defined(__x86_64__)
#define LANES 4
#define REGISTERS 16
#else
#define LANES 4
#define REGISTERS 32
#endif
/* What is indexed stays in registers only where all loops over it are unrolled. */
#define UNROLLED(i, count) _Pragma("GCC unroll 32") for (int i = 0; i < (count); i++)

enum { WIDTH = CO >= LANES ? LANES : CO >= 8 ? 8 : CO >= 4 ? 4 : CO >= 2 ? 2 : 1 };
enum { CHANNEL_VECTORS = (CO + WIDTH - 1) / WIDTH };
typedef float channels __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t numbers __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

/* For every vector `v` and its first channel. */
#define EACH_VECTOR(v) UNROLLED(v, CHANNEL_VECTORS)
#define FIRST(v) ((v) * WIDTH < CO - WIDTH ? (v) * WIDTH : CO - WIDTH)
#define CHANNELS_AT(pointer, v) (*(channels *)((pointer) + FIRST(v)))
#define GIVEN_CHANNELS(pointer, v) (*(const channels *)((pointer) + FIRST(v)))

/* A comparison is -1 in lanes where it is true and 0 in the others. */
#define ONLY_WHERE(condition, x) ((channels)((condition) & (numbers)(x)))
#define WHERE(condition, x, y) ((channels)(((condition) & (numbers)(x)) | (~(condition) & (numbers)(y))))
/* NaN must stay NaN, so that a training that diverges is detected. */
static INLINE channels relu(channels x) { return ONLY_WHERE(~(x < (channels){0}), x); }

/* Add to CO sums what is in vectors. */
static INLINE void add_channels(double *restrict sums, const channels *restrict x)
{
    for (int c = 0; c < CO; c++)
        sums[c] += x[c / WIDTH][c - FIRST(c / WIDTH)];
}
