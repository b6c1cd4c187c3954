/* What both ways of multiplying bfloat16, in vectors and in tiles, ask for: numbers that follow one another in a
 * column, in pairs side by side. */
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ROUND_UP(multiple, count) (((count) + (multiple)-1) / (multiple) * (multiple))
enum { TILE = 16, DEPTH = 32 };
typedef uint32_t pairs __attribute__((vector_size(64), aligned(4)));

/* 16 channels of two neighbouring pixels, the first in the lower half of each number. */
static inline pairs paired(const element *first, const element *second)
{
    pairs low, high;
    WIDEN_LANES(low, *(const halves *)first);
    WIDEN_LANES(high, *(const halves *)second);
    return low | high << 16;
}
/* The same of pixels that have 16 channels: what lies side by side. */
typedef uint16_t two_pixels __attribute__((vector_size(64), aligned(2)));
static inline pairs paired_neighbours(const element *first)
{
    const two_pixels both = *(const two_pixels *)first;
    return (pairs)SHUFFLED(two_pixels, both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10,
                           26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* Pair so many pixels × channels, in rows of PADDED(channels): of an odd number the last one with zeros. */
static inline void pair(const element *restrict from, const int channels, uint32_t *restrict to, int pixels)
{
    static const element zeros[TILE];
    if (channels == TILE && pixels % 2 == 0)
        for (int u = 0; u < pixels / 2; u++)
            *(pairs *)(to + u * TILE) = paired_neighbours(from + 2 * u * TILE);
    else
        for (int u = 0; u < pixels; u += 2)
            for (int group = 0; group < channels; group += TILE) {
                const element *first = from + u * channels + group;
                *(pairs *)(to + u / 2 * PADDED(channels) + group) =
                    paired(first, u + 1 < pixels ? first + channels : zeros);
            }
}

/* A square of 2·size × 2·size numbers is transposed by squares of half its side that change places across the diagonal:
 * of row `above` the upper right one, of `below` the lower left one. */
#define FROM(lane, size) ((lane) & (size) ? (lane) + TILE - (size) : (lane))
#define FROM_4(lane, size, more)                                                                               \
    FROM(lane, size) + (more), FROM((lane) + 1, size) + (more), FROM((lane) + 2, size) + (more),               \
        FROM((lane) + 3, size) + (more)
#define EXCHANGED(above, below, size, more)                                                                    \
    SHUFFLED(pairs, above, below, FROM_4(0, size, more), FROM_4(4, size, more), FROM_4(8, size, more),                \
             FROM_4(12, size, more))
#define EXCHANGE_SQUARES(row, size)                                                                            \
    _Pragma("GCC unroll 16") for (int r = 0; r < TILE; r++)                                                    \
        if (!(r & (size))) {                                                                                   \
            pairs above = row[r], below = row[r + (size)];                                                     \
            row[r] = EXCHANGED(above, below, size, 0);                                                         \
            row[r + (size)] = EXCHANGED(above, below, size, size);                                             \
        }

/* `x`, so many pixels × channels, the pixels a multiple of DEPTH, to a row of pixels for each of the first `count`
 * channels: what comes after the last of them is anything. */
static inline void transpose(const element *restrict x, const int channels, element *restrict rows, int pixels,
                             const int count)
{
    for (int group = 0; group < channels; group += TILE)
        for (int u = 0; u < pixels; u += DEPTH) {
            pairs row[TILE];
            _Pragma("GCC unroll 16") for (int r = 0; r < TILE; r++) {
                const element *from = x + (u + 2 * r) * channels + group;
                row[r] = channels == TILE ? paired_neighbours(from) : paired(from, from + channels);
            }
            EXCHANGE_SQUARES(row, 8)
            EXCHANGE_SQUARES(row, 4)
            EXCHANGE_SQUARES(row, 2)
            EXCHANGE_SQUARES(row, 1)
            _Pragma("GCC unroll 16") for (int r = 0; r < TILE; r++)
                if (group + r < count)
                    memcpy(rows + (group + r) * pixels + u, &row[r], sizeof row[r]);
        }
}

#if MATRIX_UNIT
/* What PyTorch's kernels left is put back, since they may believe that it is still there. */
static __thread struct tile_sizes left_by_others;
static inline void begin_tiles(const struct tile_sizes *sizes)
{
    TILES_CONFIGURED(left_by_others);
    CONFIGURE_TILES(*sizes);
}
static inline void end_tiles(void)
{
    if (left_by_others.palette)
        CONFIGURE_TILES(left_by_others);
    else
        RELEASE_TILES();
}
#endif
