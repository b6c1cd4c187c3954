/* The numbers that images consist of, `stored`: floats, or bfloat16, the upper halves of floats. What is computed is
 * floats in either case. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* Small functions within loops over channels must not stop those from becoming vectors. */
#define ALWAYS inline __attribute__((always_inline))
#if BFLOAT16
#ifndef __AVX512BF16__
#error "this processor does not compute in bfloat16"
#endif
typedef uint16_t stored;
static ALWAYS float value(stored x)
{
    union { uint32_t bits; float number; } it = {.bits = (uint32_t)x << 16};
    return it.number;
}
/* To the nearest, of two that are as near to the even one. */
static ALWAYS stored rounded(float x)
{
    union { float number; uint32_t bits; } it = {.number = x};
    return (it.bits + 0x7fff + (it.bits >> 16 & 1)) >> 16;
}
/* So many numbers, 16 at a time. */
typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));
static ALWAYS void keep(const float *restrict from, stored *restrict to, int count)
{
    int u = 0;
    for (; u + 16 <= count; u += 16)
        __asm__("vcvtneps2bf16 %1, %0" : "=v"(*(halves *)(to + u)) : "v"(*(const floats *)(from + u)));
    for (; u < count; u++)
        to[u] = rounded(from[u]);
}
/* Where to put floats that `keep` shall bring to `to`. */
static ALWAYS float *line(stored *to, float *room) { (void)to; return room; }
#else
typedef float stored;
static ALWAYS float value(stored x) { return x; }
static ALWAYS stored rounded(float x) { return x; }
/* Where to put what shall be at `to`: there. */
static ALWAYS float *line(stored *to, float *room) { (void)room; return to; }
static ALWAYS void keep(const float *from, stored *to, int count) { (void)from, (void)to, (void)count; }
#endif

/* So many numbers as floats: in their place, or in `room`. */
static ALWAYS const float *floats_of(const stored *x, int count, float *room)
{
    if (!BFLOAT16)
        return (const float *)x;
    for (int u = 0; u < count; u++)
        room[u] = value(x[u]);
    return room;
}
