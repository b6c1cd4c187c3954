/* An element of an image: a float, or a bfloat16, the upper half of a float. What is computed is floats in
 * either case. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* Small functions within loops over channels must not stop those from becoming vectors. */
#define INLINE inline __attribute__((always_inline))
/* An array that begins with a line of the cache. */
#define LINES __attribute__((aligned(64)))
/* A function of its own: within a larger one gcc keeps fewer sums in registers, and a convolution is slower where gcc
 * knows across functions that its bounds are constants. */
#if defined(__clang__)
#define ALONE static __attribute__((noinline))
#else
#define ALONE static __attribute__((noipa))
#endif
#if BFLOAT16
#include "instructions.h"
typedef uint16_t element;
/* Compilers name the same instruction differently. */
#if defined(__clang__)
#define SHUFFLED(type, above, below, ...) __builtin_shufflevector(above, below, __VA_ARGS__)
#else
#define SHUFFLED(type, above, below, ...) __builtin_shuffle(above, below, (type){__VA_ARGS__})
#endif
static INLINE float as_float(element x)
{
    union { uint32_t bits; float number; } value = {.bits = (uint32_t)x << 16};
    return value.number;
}
/* To the nearest, of two that are as near to the even one. */
static INLINE element rounded(float x)
{
    union { float number; uint32_t bits; } value = {.number = x};
    return (value.bits + 0x7fff + (value.bits >> 16 & 1)) >> 16;
}
/* So many numbers, 16 at a time. */
typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));
static INLINE void store_row(const float *restrict from, element *restrict to, int count)
{
    int u = 0;
    for (; u + 16 <= count; u += 16)
        STORE_16(from + u, to + u);
    for (; u < count; u++)
        to[u] = rounded(from[u]);
}
/* Where to put floats that `store_row` shall bring to `to`. */
static INLINE float *row_buffer(element *to, float *buffer) { (void)to; return buffer; }
#else
typedef float element;
static INLINE float as_float(element x) { return x; }
static INLINE element rounded(float x) { return x; }
/* Where to put what shall be at `to`: there. */
static INLINE float *row_buffer(element *to, float *buffer) { (void)buffer; return to; }
static INLINE void store_row(const float *from, element *to, int count) { (void)from, (void)to, (void)count; }
#endif

/* So many numbers as floats: in their place, or in `buffer`. */
static INLINE const float *floats_of(const element *x, int count, float *buffer)
{
    if (!BFLOAT16)
        return (const float *)x;
    for (int u = 0; u < count; u++)
        buffer[u] = as_float(x[u]);
    return buffer;
}
