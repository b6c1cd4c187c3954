/* What both ways of multiplying bfloat16, in vectors and in tiles, ask for: numbers that follow one another in a
 * column, in pairs side by side. */
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ROUND_UP(multiple, count) (((count) + (multiple)-1) / (multiple) * (multiple))
enum { TILE = 16, DEPTH = 32 };
typedef uint32_t pairs __attribute__((vector_size(64), aligned(4)));

/* 16 channels of two neighbouring pixels, the first in the lower half of each number. */
static INLINE pairs paired(const element *first, const element *second)
{
    pairs low, high;
    WIDEN_LANES(low, *(const halves *)first);
    WIDEN_LANES(high, *(const halves *)second);
    return low | high << 16;
}

/* Pair so many pixels × CO: of an odd number the last one with zeros. */
static inline void pair(const element *restrict from, uint32_t *restrict to, int pixels)
{
    static const element zeros[TILE];
    for (int u = 0; u < pixels; u += 2)
        for (int group = 0; group < CO; group += TILE) {
            const element *first = from + u * CO + group;
            *(pairs *)(to + u / 2 * PADDED(CO) + group) = paired(first, u + 1 < pixels ? first + CO : zeros);
        }
}

/* A square of 2·size × 2·size numbers is transposed by squares of half its side that change places across the diagonal:
 * of row `above` the upper right one, of `below` the lower left one. Compilers name the same instruction differently. */
#if defined(__clang__)
#define SHUFFLED(above, below, ...) __builtin_shufflevector(above, below, __VA_ARGS__)
#else
#define SHUFFLED(above, below, ...) __builtin_shuffle(above, below, (pairs){__VA_ARGS__})
#endif
#define FROM(lane, size) ((lane) & (size) ? (lane) + TILE - (size) : (lane))
#define FROM_4(lane, size, more)                                                                               \
    FROM(lane, size) + (more), FROM((lane) + 1, size) + (more), FROM((lane) + 2, size) + (more),               \
        FROM((lane) + 3, size) + (more)
#define EXCHANGED(above, below, size, more)                                                                    \
    SHUFFLED(above, below, FROM_4(0, size, more), FROM_4(4, size, more), FROM_4(8, size, more),                \
             FROM_4(12, size, more))
#define EXCHANGE_SQUARES(row, size)                                                                            \
    _Pragma("GCC unroll 16") for (int r = 0; r < TILE; r++)                                                    \
        if (!(r & (size))) {                                                                                   \
            pairs above = row[r], below = row[r + (size)];                                                     \
            row[r] = EXCHANGED(above, below, size, 0);                                                         \
            row[r + (size)] = EXCHANGED(above, below, size, size);                                             \
        }

/* `x`, so many pixels × CI, the pixels a multiple of DEPTH, to a row of pixels for each of so many channels: what
 * comes after the last of CI is anything. */
static inline void transpose(const element *restrict x, element *restrict rows, int pixels, int channels)
{
    for (int group = 0; group < CI; group += TILE)
        for (int u = 0; u < pixels; u += DEPTH) {
            pairs row[TILE];
            for (int r = 0; r < TILE; r++) {
                const element *from = x + (u + 2 * r) * CI + group;
                row[r] = paired(from, from + CI);
            }
            EXCHANGE_SQUARES(row, 8)
            EXCHANGE_SQUARES(row, 4)
            EXCHANGE_SQUARES(row, 2)
            EXCHANGE_SQUARES(row, 1)
            for (int r = 0; r < TILE && group + r < channels; r++)
                memcpy(rows + (group + r) * pixels + u, &row[r], sizeof row[r]);
        }
}
