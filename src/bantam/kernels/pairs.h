/* What both ways of multiplying bfloat16, in vectors and in tiles, ask for: numbers that follow one another in a
 * column, in pairs side by side. */
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ROUND_UP(multiple, count) (((count) + (multiple)-1) / (multiple) * (multiple))
enum { TILE = 16, DEPTH = 32 };
typedef uint32_t pairs __attribute__((vector_size(64), aligned(4)));

/* 16 channels of two neighbouring pixels, the first in the lower half of each number. */
static INLINE pairs paired(const element *first, const element *second)
{
    return __builtin_convertvector(*(const halves *)first, pairs)
        | __builtin_convertvector(*(const halves *)second, pairs) << 16;
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

/* `x`, so many pixels × CI, the pixels a multiple of DEPTH, to a row of pixels for each of so many channels: what
 * comes after the last of CI is anything. */
static inline void transpose(const element *restrict x, element *restrict rows, int pixels, int channels)
{
    const pairs lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int group = 0; group < CI; group += TILE)
        for (int u = 0; u < pixels; u += DEPTH) {
            pairs row[TILE];
            for (int r = 0; r < TILE; r++) {
                const element *from = x + (u + 2 * r) * CI + group;
                row[r] = paired(from, from + CI);
            }
            /* Squares of 8×8, then of 4, 2 and 1, change places across the diagonal. */
            _Pragma("GCC unroll 4") for (int size = TILE / 2; size; size /= 2)
                _Pragma("GCC unroll 16") for (int r = 0; r < TILE; r++)
                    if (!(r & size)) {
                        pairs above = row[r], below = row[r + size];
                        pairs moved = lane + ((pairs)((lane & size) != 0) & (TILE - size));
                        row[r] = __builtin_shuffle(above, below, moved);
                        row[r + size] = __builtin_shuffle(above, below, moved + size);
                    }
            for (int r = 0; r < TILE && group + r < channels; r++)
                memcpy(rows + (group + r) * pixels + u, &row[r], sizeof row[r]);
        }
}
