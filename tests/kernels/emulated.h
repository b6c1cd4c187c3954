/* The instructions for bfloat16 in plain C, so that the code around them is tested on every processor: included
 * before everything else, in place of `instructions.h`. Sums may be rounded in another order than in the processor. */
#define INSTRUCTIONS
#include <stdint.h>
#include <string.h>

static __attribute__((noinline)) uint16_t emulated_rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static __attribute__((noinline)) float emulated_value(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static __attribute__((noinline)) void emulated_store(const float *from, uint16_t *to)
{
    for (int u = 0; u < 16; u++)
        to[u] = emulated_rounded(from[u]);
}
#define STORE_16(from, to) emulated_store(from, to)

static __attribute__((noinline)) void emulated_add_pairs(float *sum, const uint16_t *from, const uint16_t *factors, int lanes)
{
    for (int lane = 0; lane < lanes; lane++)
        for (int half = 1; half >= 0; half--)
            sum[lane] += emulated_value(from[half]) * emulated_value(factors[2 * lane + half]);
}
#define ADD_PAIRS(sum, from, factors)                                                                          \
    emulated_add_pairs((float *)&(sum), from, (const uint16_t *)&(factors), sizeof(sum) / sizeof(float))
#define WIDEN_LANES(to, from) ((to) = __builtin_convertvector(from, __typeof__(to)))
static __attribute__((noinline)) void emulated_widen(uint32_t *to, const uint16_t *from, int lanes, uint16_t mask)
{
    for (int lane = 0; lane < lanes; lane++)
        to[lane] = mask >> lane & 1 ? from[lane] : 0;
}
#define WIDEN_SOME_LANES(to, from, mask)                                                                       \
    emulated_widen((uint32_t *)&(to), (const uint16_t *)&(from), sizeof(to) / 4, mask)
static __attribute__((noinline)) void emulated_round_lanes(uint16_t *to, const float *from, int lanes)
{
    for (int lane = 0; lane < lanes; lane++)
        to[lane] = emulated_rounded(from[lane]);
}
#define ROUND_LANES(to, values) emulated_round_lanes((uint16_t *)&(to), (const float *)&(values), sizeof(to) / 2)
static __attribute__((noinline)) void emulated_add_products(float *sum, const uint16_t *values, const uint16_t *factors, int lanes)
{
    for (int lane = 0; lane < lanes; lane++)
        emulated_add_pairs(sum + lane, values + 2 * lane, factors + 2 * lane, 1);
}
#define ADD_PAIRS_OF(sum, values, factors)                                                                     \
    emulated_add_products((float *)&(sum), (const uint16_t *)&(values), (const uint16_t *)&(factors), LANES)

struct tile_sizes { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; };
static __thread struct tile_sizes emulated_sizes;
static __thread uint8_t emulated_tiles[8][16][64];

static __attribute__((noinline)) void emulated_configure(struct tile_sizes sizes)
{
    emulated_sizes = sizes;
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}
static __attribute__((noinline)) void emulated_load(int t, const void *from, int64_t stride)
{
    memset(emulated_tiles[t], 0, sizeof emulated_tiles[t]);
    for (int row = 0; row < emulated_sizes.rows[t]; row++)
        memcpy(emulated_tiles[t][row], (const char *)from + row * stride, emulated_sizes.bytes[t]);
}
static __attribute__((noinline)) void emulated_store_tile(int t, void *to, int64_t stride)
{
    for (int row = 0; row < emulated_sizes.rows[t]; row++)
        memcpy((char *)to + row * stride, emulated_tiles[t][row], emulated_sizes.bytes[t]);
}
static __attribute__((noinline)) void emulated_multiply(int t, int a, int b)
{
    if (emulated_sizes.bytes[a] != 4 * emulated_sizes.rows[b] || emulated_sizes.rows[a] != emulated_sizes.rows[t]
        || emulated_sizes.bytes[b] != emulated_sizes.bytes[t])
        __builtin_trap(); /* the processor refuses such a product too */
    for (int row = 0; row < emulated_sizes.rows[t]; row++)
        for (int step = 0; step < emulated_sizes.rows[b]; step++) {
            uint16_t left[2];
            memcpy(left, emulated_tiles[a][row] + 4 * step, 4);
            for (int column = 0; column < emulated_sizes.bytes[t] / 4; column++) {
                uint16_t right[2];
                float sum;
                memcpy(right, emulated_tiles[b][step] + 4 * column, 4);
                memcpy(&sum, emulated_tiles[t][row] + 4 * column, 4);
                for (int half = 0; half < 2; half++)
                    sum += emulated_value(left[half]) * emulated_value(right[half]);
                memcpy(emulated_tiles[t][row] + 4 * column, &sum, 4);
            }
        }
}
#define LOAD_TILE(t, from, stride) emulated_load(t, from, stride)
#define STORE_TILE(t, to, stride) emulated_store_tile(t, to, stride)
#define CLEAR_TILE(t) memset(emulated_tiles[t], 0, sizeof emulated_tiles[t])
#define MULTIPLY_TILES(t, a, b) emulated_multiply(t, a, b)
#define CONFIGURE_TILES(sizes) emulated_configure(sizes)
#define TILES_CONFIGURED(sizes) ((sizes) = emulated_sizes)
#define RELEASE_TILES() memset(&emulated_sizes, 0, sizeof emulated_sizes)
