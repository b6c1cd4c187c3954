/* The channels of one pixel in vectors, for all that a block does beside the products of its convolution.
 *
 * A vector has as many lanes as the processor's, or the next smaller power of two that CO channels fill. Where they are no
 * multiple of it the last vector overlaps the one before: some are computed twice, in the same way. With vectors of 16 lanes
 * 9 to 15 channels are one that is not full: lanes beyond are loaded as zeros and not stored. So no number of channels
 * takes longer than the next multiple, and nothing beyond a pixel's channels is read or written.
 *
 * HALVES is 1 for a processor that computes 512 bits in two halves: vectors of 256 are as fast there, and more of them
 * share what they read. Pairs of bfloat16 it multiplies in 512.
 */
#if defined(__AVX512VL__) && HALVES && !BFLOAT16
#define LANES 8
#define REGISTERS 32
#elif defined(__AVX512F__)
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

#define NOT_FULL (LANES == 16 && CO > 8 && CO < 16)
enum { WIDTH = CO >= LANES || NOT_FULL ? LANES : CO >= 8 ? 8 : CO >= 4 ? 4 : CO >= 2 ? 2 : 1 };
enum { CHANNEL_VECTORS = (CO + WIDTH - 1) / WIDTH };
typedef float channels __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t numbers __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

/* For every vector `v` and its first channel. */
#define EACH_VECTOR(v) UNROLLED(v, CHANNEL_VECTORS)
#define FIRST(v) (NOT_FULL ? 0 : (v) * WIDTH < CO - WIDTH ? (v) * WIDTH : CO - WIDTH)

/* Those of floats at `from`, and back. */
#if NOT_FULL
#define MASK ((uint16_t)((1 << CO) - 1))
static INLINE channels given_channels(const float *from)
{
    return __builtin_ia32_loadups512_mask((const void *)from, (channels){0}, MASK);
}
static INLINE void set_channels(channels x, float *to) { __builtin_ia32_storeups512_mask((void *)to, x, MASK); }
#else
static INLINE channels given_channels(const float *from) { return *(const channels *)from; }
static INLINE void set_channels(channels x, float *to) { *(channels *)to = x; }
#endif
#define GIVEN_CHANNELS(pointer, v) given_channels((pointer) + FIRST(v))
#define SET_CHANNELS(pointer, v, x) set_channels(x, (pointer) + FIRST(v))

/* Those of elements of an image, likewise. */
#if BFLOAT16
typedef uint32_t bits_of_channels __attribute__((vector_size(4 * WIDTH)));
typedef element half_channels __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
static INLINE channels channels_of(const element *from)
{
    bits_of_channels bits;
#if NOT_FULL
    WIDEN_SOME_LANES(bits, *(const half_channels *)from, MASK);
#elif CO >= 8
    WIDEN_LANES(bits, *(const half_channels *)from);
#else
    bits = __builtin_convertvector(*(const half_channels *)from, bits_of_channels);
#endif
    return (channels)(bits << 16);
}
static INLINE void store_channels(channels x, element *to)
{
#if NOT_FULL
    enum { L = CO - 8 }; /* eight and the last eight, which overlap: with a mask AMD's processors take longer */
    half_channels half, last;
    ROUND_LANES(half, x);
    last = SHUFFLED(half_channels, half, half, L, L + 1, L + 2, L + 3, L + 4, L + 5, L + 6, L + 7, 0, 0, 0, 0, 0, 0, 0, 0);
    memcpy(to, &half, 8 * sizeof(element));
    memcpy(to + L, &last, 8 * sizeof(element));
#elif CO >= 8
    ROUND_LANES(*(half_channels *)to, x);
#else
    for (int c = 0; c < WIDTH; c++)
        to[c] = rounded(x[c]);
#endif
}
#else
static INLINE channels channels_of(const element *from) { return given_channels(from); }
static INLINE void store_channels(channels x, element *to) { set_channels(x, to); }
#endif
/* Small numbers that are bytes in memory. */
typedef uint8_t bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));
static INLINE numbers numbers_of(const uint8_t *from)
{
#if NOT_FULL
    numbers x;
    __asm__("vpmovzxbd %1, %0%{%2%}%{z%}" : "=v"(x) : "m"(*(const bytes *)from), "Yk"(MASK));
    return x;
#elif defined(__AVX2__) && CO >= 8
    numbers x; /* gcc takes five instructions for it */
    __asm__("vpmovzxbd %1, %0" : "=v"(x) : "m"(*(const bytes *)from));
    return x;
#else
    return __builtin_convertvector(*(const bytes *)from, numbers);
#endif
}
static INLINE void store_numbers(numbers x, uint8_t *to)
{
#if NOT_FULL
    __asm__("vpmovdb %1, %0%{%2%}" : "+m"(*(bytes *)to) : "v"(x), "Yk"(MASK));
#elif defined(__AVX2__) && !defined(__AVX512F__) && CO >= 8
    int32_t half __attribute__((vector_size(16)));
    __asm__("vextracti128 $1, %1, %0\n\tvpackusdw %0, %x1, %0\n\tvpackuswb %0, %0, %0" : "=&x"(half) : "x"(x));
    memcpy(to, &half, 8); /* likewise */
#else
    *(bytes *)to = __builtin_convertvector(x, bytes);
#endif
}

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
