/* The three products of a block's convolution in bfloat16, by the matrix unit (AMX): see `native.c`.
 *
 * Its eight registers are tiles. A product adds 16×32 numbers times 32×16 numbers to 16×16 sums, which are
 * floats; of the second factor, two numbers that follow one another in a column lie side by side in memory.
 */
#ifndef __AMX_BF16__
#error "this processor has no matrix unit for bfloat16"
#endif
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t stored;
static inline float value(stored x)
{
    union { uint32_t bits; float number; } it = {.bits = (uint32_t)x << 16};
    return it.number;
}
/* To the nearest, of two that are as near to the even one. */
static inline stored keep(float x)
{
    union { float number; uint32_t bits; } it = {.number = x};
    return (it.bits + 0x7fff + (it.bits >> 16 & 1)) >> 16;
}

#define UP_TO(multiple, count) (((count) + (multiple)-1) / (multiple) * (multiple))
enum { TILE = 16, DEPTH = 32 };
/* Columns that the kernel reaches over the end of a row bring results that nobody reads. */
enum { ROWS = OUT, RESULT_WIDTH = SIDE, RESULT_CHANNELS = PADDED(CO) };
enum { RESULT = UP_TO(TILE, OUT * SIDE) * PADDED(CO) };
#define REACH(channels) ((UP_TO(TILE, SIDE * SIDE) + BORDER * SIDE) * (channels) + UP_TO(DEPTH, KERNEL * (channels)))
/* The gradient of the weights takes so many pixels of the output, and so many of the input for them. */
enum { PIXELS = UP_TO(DEPTH, OUT * SIDE), COLUMNS = UP_TO(DEPTH, PIXELS + LEAD) };
#define GREATER(a, b) ((a) > (b) ? (a) : (b))
enum { SLACK = GREATER(REACH(CO), (LEAD + PIXELS) * CO + TILE) - (LEAD + SIDE * SIDE) * CO };
/* A tile of inputs has as many rows as there are channels, and else 16. */
enum { TILE_ROWS = CI < TILE ? CI : TILE, GRADIENT_INPUTS = UP_TO(TILE_ROWS, CI) };

/* Tiles 0 to 6 with so many rows. */
static inline void configure(int rows)
{
    struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } sizes = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        sizes.bytes[t] = 4 * TILE;
        sizes.rows[t] = t < 7 ? rows : TILE;
    }
    _tile_loadconfig(&sizes);
}

/* What PyTorch's kernels left is put back, since they may believe that it is still there. */
static __thread uint8_t before[64];
static inline void begin(void) { _tile_storeconfig(before); }
static inline void end(void)
{
    if (before[0])
        _tile_loadconfig(before);
    else
        _tile_release();
}

/* One of four tiles, 16 neighbouring pixels each, that share a tile of weights. */
#define PIXELS_OF_TILE(T, IN, PIXELS)                                                                          \
    if (at + T * TILE < (PIXELS)) {                                                                            \
        _tile_loadd(4, from + T * TILE * (IN), 2 * (IN));                                                      \
        _tile_dpbf16ps(T, 4, 7);                                                                               \
    }
#define STORE_TILE(T, OUTPUTS, PIXELS)                                                                         \
    if (at + T * TILE < (PIXELS))                                                                              \
        _tile_stored(T, y + (at + T * TILE) * PADDED(OUTPUTS) + group, 4 * PADDED(OUTPUTS));

/* Convolve IN channels to OUTPUTS, for so many pixels one after another. A row of the kernel lies side by side in `x`. `w`:
 * kernel × steps × groups × 16 × 16 × 2, of which a step is 32 numbers of a kernel's row and a group 16 outputs. */
#define DEFINE_CONVOLUTION(NAME, IN, OUTPUTS, PIXELS)                                                          \
    static inline void NAME(const stored *x, const stored *w, float *y)                                        \
    {                                                                                                          \
        enum { STEPS = UP_TO(DEPTH, KERNEL * (IN)) / DEPTH };                                                  \
        configure(TILE);                                                                                       \
        for (int group = 0; group < PADDED(OUTPUTS); group += TILE)                                            \
            for (int at = 0; at < (PIXELS); at += 4 * TILE) {                                                  \
                _tile_zero(0);                                                                                 \
                _tile_zero(1);                                                                                 \
                _tile_zero(2);                                                                                 \
                _tile_zero(3);                                                                                 \
                for (int kh = 0; kh < KERNEL; kh++)                                                            \
                    for (int step = 0; step < STEPS; step++) {                                                 \
                        const stored *from = x + (at + kh * SIDE) * (IN) + step * DEPTH;                       \
                        _tile_loadd(7, w + ((kh * STEPS + step) * PADDED(OUTPUTS) + group) * DEPTH, 64);       \
                        PIXELS_OF_TILE(0, IN, PIXELS)                                                          \
                        PIXELS_OF_TILE(1, IN, PIXELS)                                                          \
                        PIXELS_OF_TILE(2, IN, PIXELS)                                                          \
                        PIXELS_OF_TILE(3, IN, PIXELS)                                                          \
                    }                                                                                          \
                STORE_TILE(0, OUTPUTS, PIXELS)                                                                 \
                STORE_TILE(1, OUTPUTS, PIXELS)                                                                 \
                STORE_TILE(2, OUTPUTS, PIXELS)                                                                 \
                STORE_TILE(3, OUTPUTS, PIXELS)                                                                 \
            }                                                                                                  \
    }

DEFINE_CONVOLUTION(forward_pixels, CI, CO, OUT *SIDE)
DEFINE_CONVOLUTION(backward_pixels, CO, CI, SIDE *SIDE)

/* The convolution of image `x`, all of its rows. */
static inline void convolve(const stored *restrict x, const stored *restrict w, int row, float *restrict result)
{
    stored image[GREATER(REACH(CI), SIDE * SIDE * CI)];
    memcpy(image, x, sizeof(stored) * SIDE * SIDE * CI);
    memset(image + SIDE * SIDE * CI, 0, sizeof image - sizeof(stored) * SIDE * SIDE * CI);
    (void)row;
    forward_pixels(image, w, result);
}

/* `gx`, the gradient of an image, from that of the convolution's output in its frame. `w` as above, of the weights
 * turned by 180°. */
static inline void turn_back(const stored *restrict frame, const stored *restrict w, stored *restrict gx)
{
    float result[UP_TO(TILE, SIDE * SIDE) * PADDED(CI)];
    backward_pixels(frame, w, result);
    for (int u = 0; u < SIDE * SIDE; u++)
        for (int c = 0; c < CI; c++)
            gx[u * CI + c] = keep(result[u * PADDED(CI) + c]);
}

typedef uint32_t pairs __attribute__((vector_size(64), aligned(4)));
typedef uint16_t half __attribute__((vector_size(32), aligned(2)));

/* 16 channels of two neighbouring pixels, the first in the lower half of each number. */
static inline pairs paired(const stored *first, const stored *second)
{
    return __builtin_convertvector(*(const half *)first, pairs)
        | __builtin_convertvector(*(const half *)second, pairs) << 16;
}

/* `x`, COLUMNS pixels × CI, to GRADIENT_INPUTS rows of COLUMNS pixels. */
static inline void transpose(const stored *restrict x, stored *restrict rows)
{
    const pairs lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int group = 0; group < CI; group += TILE)
        for (int u = 0; u < COLUMNS; u += DEPTH) {
            pairs row[TILE];
            for (int r = 0; r < TILE; r++) {
                const stored *from = x + (u + 2 * r) * CI + group;
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
            for (int r = 0; r < TILE && group + r < GRADIENT_INPUTS; r++)
                memcpy(rows + (group + r) * COLUMNS + u, &row[r], sizeof row[r]);
        }
}

#define LOAD_SUM(T)                                                                                            \
    if (first + T < TAPS)                                                                                      \
        _tile_loadd(T, sums + T * GRADIENT_INPUTS * PADDED(CO), 4 * PADDED(CO));
#define STORE_SUM(T)                                                                                           \
    if (first + T < TAPS)                                                                                      \
        _tile_stored(T, sums + T * GRADIENT_INPUTS * PADDED(CO), 4 * PADDED(CO));
#define TAP_OF_TILE(T)                                                                                         \
    if (first + T < TAPS) {                                                                                    \
        _tile_loadd(6, from + (first + T) / KERNEL * SIDE + (first + T) % KERNEL, 2 * COLUMNS);                \
        _tile_dpbf16ps(T, 6, 7);                                                                               \
    }
#define EACH_OF_SIX(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

/* Add to the gradient of the weights, kernel × kernel × GRADIENT_INPUTS × PADDED(CO), what an image brings. */
static inline void weigh(const stored *restrict x, const stored *restrict frame, float *restrict gw)
{
    stored image[COLUMNS * CI + TILE], rows[CI > 1 ? GRADIENT_INPUTS * COLUMNS : 1];
    uint32_t gradient[PIXELS / 2 * PADDED(CO)];
    memcpy(image, x, sizeof(stored) * SIDE * SIDE * CI);
    memset(image + SIDE * SIDE * CI, 0, sizeof image - sizeof(stored) * SIDE * SIDE * CI);
    if (CI > 1)
        transpose(image, rows);
    for (int u = 0; u < PIXELS; u += 2)
        for (int group = 0; group < CO; group += TILE) {
            const stored *from = frame + (LEAD + u) * CO + group;
            *(pairs *)(gradient + u / 2 * PADDED(CO) + group) = paired(from, from + CO);
        }
    configure(TILE_ROWS);
    for (int input = 0; input < CI; input += TILE)
        for (int output = 0; output < CO; output += TILE)
            for (int first = 0; first < TAPS; first += 6) {
                float *sums = gw + (first * GRADIENT_INPUTS + input) * PADDED(CO) + output;
                EACH_OF_SIX(LOAD_SUM)
                for (int u = 0; u < PIXELS; u += DEPTH) {
                    const stored *from = (CI > 1 ? rows : image) + input * COLUMNS + u;
                    _tile_loadd(7, gradient + u / 2 * PADDED(CO) + output, 4 * PADDED(CO));
                    EACH_OF_SIX(TAP_OF_TILE)
                }
                EACH_OF_SIX(STORE_SUM)
            }
}
