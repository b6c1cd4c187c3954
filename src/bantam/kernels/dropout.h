/* Dropout: which elements of a map are dropped, one bit each. The forward pass draws them, the backward pass reads them:
 * that takes less time than to draw them once more. A row of a map is two halves of so many bits, a multiple of what is
 * drawn at a time: there may be some at its end that belong to no element. */
enum { HALF = (OUT * CO + 31) / 32 * 16, ROW_OF_BITS = HALF / 4, BITS_BEYOND = 4 };
/* Four bytes are read and written at a time: beyond an image's last row there are as many that belong to no other. */
enum { IMAGE_OF_BITS = OUT * ROW_OF_BITS + BITS_BEYOND };
static INLINE uint8_t *row_of_bits(uint8_t *dropped, int image, int row)
{
    return dropped + (int64_t)image * IMAGE_OF_BITS + row * ROW_OF_BITS;
}

/* What a dropped element becomes: the negative zero, which nothing else brings about. */
#define NEGATIVE_ZERO ((channels){0} * -1.0f)

typedef int32_t lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
/* Only bytes that were written as they are read are quick to read soon. */
static INLINE uint32_t some_bits(const uint8_t *row, int at, int count, int whole)
{
    uint32_t bits = 0;
    memcpy(&bits, row + at / 8, whole ? count / 8 : 4);
    return whole ? bits : bits >> at % 8;
}
typedef uint16_t two_bytes __attribute__((aligned(1), may_alias));
static INLINE void add_bits(uint8_t *row, int at, int count, int whole, uint32_t bits)
{
    if (whole && count == 16) { /* volatile: gcc would gather them in vectors, which takes longer */
        *(volatile two_bytes *)(row + at / 8) = (uint16_t)bits;
        return;
    }
    bits = whole ? bits : some_bits(row, at & ~7, count, 0) | bits << at % 8;
    memcpy(row + at / 8, &bits, whole ? count / 8 : 4);
}

/* A bit for every lane whose lower, or upper, 16 bits are less than a limit below 65,536. */
#if defined(__AVX512F__)
static INLINE uint32_t less(words x, uint32_t limit)
{
    uint16_t bits;
    __asm__("vpcmpud $1, %2, %1, %0" : "=k"(bits) : "v"(x), "v"((words){0} + limit));
    return bits;
}
#define LOWER_LESS(x, limit) less((x) << 16, (limit) << 16)
#define UPPER_LESS(x, limit) less(x, (limit) << 16)
#else
static INLINE uint32_t less(words x, uint32_t limit)
{
    lanes compared = (lanes)x < (int32_t)limit;
#if defined(__AVX__)
    return (uint32_t)__builtin_ia32_movmskps256((__attribute__((vector_size(32))) float)compared);
#elif defined(__x86_64__)
    return (uint32_t)__builtin_ia32_movmskps((__attribute__((vector_size(16))) float)compared);
#else
    uint32_t bits = 0;
    UNROLLED(u, LANES) bits |= (uint32_t)(compared[u] & 1 << u);
    return bits;
#endif
}
#define LOWER_LESS(x, limit) less((x)&0xffff, limit)
#define UPPER_LESS(x, limit) less((x) >> 16, limit)
#endif

/* Drop elements of a row of an image with probability `limit` / 65536, the same ones for the same `seed`. 32 random bits
 * serve two elements: a counter, mixed as MurmurHash3 ends (A. Appleby), with a key in between. */
static inline void draw_dropped(uint8_t *restrict row_bits, uint64_t seed, int image, int row, uint32_t limit)
{
    enum { WHOLE = LANES % 8 == 0 };
    const uint64_t key = (seed ^ ((uint64_t)image << 32 | (uint32_t)image)) * 0x9e3779b97f4a7c15;
    const uint32_t first = (uint32_t)(key >> 32) + row * HALF, second = (uint32_t)key;
    words counter;
    UNROLLED(u, LANES) counter[u] = u;
    counter += first;
    if (!WHOLE)
        memset(row_bits, 0, ROW_OF_BITS);
    for (int u = 0; u < HALF; u += LANES, counter += LANES) {
        words random = (counter ^ counter >> 16) * 0x85ebca6b + second;
        random = (random ^ random >> 13) * 0xc2b2ae35;
        random ^= random >> 16;
        add_bits(row_bits, u, LANES, WHOLE, LOWER_LESS(random, limit));
        add_bits(row_bits, u + HALF, LANES, WHOLE, UPPER_LESS(random, limit));
    }
}

/* WIDTH elements of a row from `at` on; the dropped ones are `instead`. */
static INLINE channels without_dropped(channels x, const uint8_t *row, int at, channels instead)
{
    const uint32_t bits = some_bits(row, at, WIDTH, CO % WIDTH == 0 && WIDTH % 8 == 0);
#if defined(__AVX512F__) && (CO >= 16 || NOT_FULL)
    __asm__("vmovaps %1, %0%{%2%}" : "+v"(x) : "v"(instead), "Yk"((uint16_t)bits));
    return x;
#else
    numbers each;
    UNROLLED(u, WIDTH) each[u] = 1 << u;
    return WHERE(((int32_t)bits & each) != 0, instead, x);
#endif
}
