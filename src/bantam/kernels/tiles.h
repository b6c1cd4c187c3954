/* The three products of a block's convolution in bfloat16, by the matrix unit (AMX): see `block.c`.
 *
 * Its eight registers are tiles. A product adds 16×32 numbers times 32×16 numbers to 16×16 sums, which are
 * floats; of the second factor, two numbers that follow one another in a column lie side by side in memory. It takes a
 * cycle for each row of the first factor, however long the rows are. A tile is loaded in half of that where its rows begin
 * with lines of the cache, and in three times that where all of them cross from one line to the next.
 */
enum { SQUARE_OF_TILE = TILE * DEPTH }; /* numbers in a tile */

/* Two pixels of 16 channels are as long as a row of a tile. They are convolved together, as one pixel of twice the channels
 * with twice the outputs, so that all rows begin with lines of the cache. */
#define TOGETHER(IN) ((IN) == TILE && KERNEL % 2 == 1 && SIDE % 2 == 0 ? 2 : 1)
/* A kernel's row, columns and channels side by side, takes so many steps of DEPTH numbers, the last of REST: an even
 * number. */
#define REACH(IN) ((KERNEL + TOGETHER(IN) - 1) * (IN))
#define STEPS(IN) (ROUND_UP(DEPTH, REACH(IN)) / DEPTH)
#define REST(IN) (ROUND_UP(2, REACH(IN)) - (STEPS(IN) - 1) * DEPTH)
/* Outputs in groups of 16, each with weights of its own. */
#define GROUPS(IN, OUTPUTS) (TOGETHER(IN) * PADDED(OUTPUTS) / TILE)
/* Whole tiles are computed, of so many pixels. */
#define IN_TILES(IN, pixels) ROUND_UP(TILE * TOGETHER(IN), pixels)

/* Rows are convolved so many at a time that their results stay in the first cache. Columns that the kernel reaches over
 * the end of a row bring results that nobody reads. */
enum { MOST_PIXELS = 160, FEW = SIDE < MOST_PIXELS ? MOST_PIXELS / SIDE : 1 };
enum { ROWS = FEW < OUT ? FEW : OUT, RESULT_WIDTH = SIDE, RESULT_CHANNELS = PADDED(CO) };
enum { RESULT = IN_TILES(CI, ROWS * SIDE) * PADDED(CO) };
/* The gradient of the input takes so many pixels at a time. */
enum { PIXELS = 4 * TILE };

/* The gradient of the weights takes so many pixels of the output at a time, and so many of the input for them, in
 * pairs. Of one channel it takes the input as it lies in memory, since the columns of the kernel are rows of a tile. */
#define BY_COLUMNS (CI == 1 && KERNEL <= 16)
enum { OUTPUT_PIXELS = ROUND_UP(DEPTH, OUT * SIDE), BAND = OUTPUT_PIXELS < 1024 ? OUTPUT_PIXELS : 1024 };
enum { PAIRS = (BAND + FRAME_START) / 2 + 1, BANDS = ROUND_UP(BAND, OUTPUT_PIXELS) };
#if !BY_COLUMNS
enum { READ_FOR_WEIGHTS = (BANDS - BAND + 2 * PAIRS + 1) * CI + TILE };
enum { WEIGHTS = TAPS * PADDED(CO) * PADDED(CI) };
#define WEIGHT_INDEX(tap, in, out) (((tap)*PADDED(CO) + (out)) * PADDED(CI) + (in))
#else
enum { READ_FOR_WEIGHTS = BANDS + FRAME_START + TILE };
enum { WEIGHTS = TAPS * PADDED(CO) };
#define WEIGHT_INDEX(tap, in, out) ((tap)*PADDED(CO) + (out))
#endif
/* Tiles reach beyond an image's end. */
enum { LAST = (OUT - 1) / ROWS * ROWS * SIDE, LAST_PIXELS = LAST + IN_TILES(CI, OUT * SIDE - LAST) + BORDER * SIDE };
enum { READ = MAX(LAST_PIXELS * CI + STEPS(CI) * DEPTH, READ_FOR_WEIGHTS) };
enum { FRAME_PIXELS = ROUND_UP(PIXELS, SIDE * SIDE) + BORDER * SIDE };
enum { FRAME_READ = MAX(FRAME_PIXELS * CO + STEPS(CO) * DEPTH, (FRAME_START + BANDS) * CO + TILE) };
enum { FRAME_END = FRAME_READ - (FRAME_START + SIDE * SIDE) * CO };

/* Bytes in a row of each tile, and rows: of all 64 and 16, but of tile 5 two for each of REST numbers, and 6 has a row for two of
 * those. The processor reads it from memory, slowly where it was just written. */
#define SIZES(REST)                                                                                            \
    {.palette = 1, .bytes = {64, 64, 64, 64, 64, 2 * (REST), 64, 64}, .rows = {16, 16, 16, 16, 16, 16, (REST) / 2, 16}}
static const struct tile_sizes whole_tiles = SIZES(DEPTH), tiles_forward = SIZES(REST(CI)), tiles_back = SIZES(REST(CO));
/* By columns the rows of the sums and of the first factor, tile 6, are those. */
#if BY_COLUMNS
static const struct tile_sizes tiles_of_columns = {
    .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {KERNEL, KERNEL, KERNEL, KERNEL, KERNEL, KERNEL, KERNEL, 16}};
#endif

static inline void begin_products(const int forward) { begin_tiles(forward ? &tiles_forward : &whole_tiles); }
static inline void end_products(void) { end_tiles(); }

/* Weights for a convolution: rows of the kernel × steps × groups × 16 × 16 × 2. A step is 32 numbers of a row, columns
 * and inputs side by side. For the second of two pixels together they are there a second time, a column further. */
#define PACKED(IN, OUTPUTS) (KERNEL * STEPS(IN) * GROUPS(IN, OUTPUTS) * SQUARE_OF_TILE)
#define COPIES(IN) TOGETHER(IN)
#define PACKED_INDEX(IN, OUTPUTS, row, column, in, out, copy)                                                  \
    PACKED_INDEX_IN_ROW((row)*STEPS(IN), GROUPS(IN, OUTPUTS), ((column) + (copy)) * (IN) + (in), (out) + (copy)*PADDED(OUTPUTS))
#define PACKED_INDEX_IN_ROW(steps, groups, number, out)                                                        \
    ((((steps) + (number) / DEPTH) * (groups) + (out) / TILE) * SQUARE_OF_TILE + (number) % DEPTH / 2 * DEPTH  \
     + (out) % TILE * 2 + (number) % 2)

/* Four tiles of sums, of neighbouring pixels, share one of weights; beyond `pixels` there is nothing to do. */
#define EACH_OF_FOUR(DO, CHANNELS) DO(0, CHANNELS) DO(1, CHANNELS) DO(2, CHANNELS) DO(3, CHANNELS)
#define CLEAR_PIXELS(T, IN) CLEAR_TILE(T);
#define ADD_PIXELS(T, IN)                                                                                      \
    if (at + T * TILE < pixels) {                                                                              \
        LOAD_TILE(4, from + T * TILE * (IN), 2 * (IN));                                                        \
        MULTIPLY_TILES(T, 4, 7);                                                                               \
    }
#define ADD_REST(T, IN)                                                                                        \
    if (at + T * TILE < pixels) {                                                                              \
        LOAD_TILE(5, from + T * TILE * (IN), 2 * (IN));                                                        \
        MULTIPLY_TILES(T, 5, 6);                                                                               \
    }
#define STORE_PIXELS(T, OUTPUTS)                                                                               \
    if (at + T * TILE < pixels)                                                                                \
        STORE_TILE(T, y + (at + T * TILE) * PADDED(OUTPUTS) + group * TILE, 4 * PADDED(OUTPUTS));

/* Or two tiles of pixels, or of two pixels together, and two groups of outputs share one another's factors. */
#define CONVOLVE_PAIRS(IN, OUTPUTS)                                                                            \
    for (int group = 0; group < GROUPS(IN, OUTPUTS); group += 2)                                               \
        for (int at = 0; at < pixels; at += 2 * TILE * TOGETHER(IN)) {                                         \
            const int two = at + TILE * TOGETHER(IN) < pixels;                                                 \
            float *to = y + at * PADDED(OUTPUTS) + group * TILE;                                               \
            EACH_OF_FOUR(CLEAR_PIXELS, IN)                                                                     \
            for (int kh = 0; kh < KERNEL; kh++)                                                                \
                for (int step = 0; step < STEPS(IN); step++) {                                                 \
                    enum { STRIDE_OF_ROWS = 2 * (IN)*TOGETHER(IN) };                                           \
                    const element *from = x + (at + kh * SIDE) * (IN) + step * DEPTH;                          \
                    const element *weights = w + ((kh * STEPS(IN) + step) * GROUPS(IN, OUTPUTS) + group) * SQUARE_OF_TILE; \
                    LOAD_TILE(6, weights, 64);                                                                 \
                    LOAD_TILE(7, weights + SQUARE_OF_TILE, 64);                                                \
                    LOAD_TILE(4, from, STRIDE_OF_ROWS);                                                        \
                    MULTIPLY_TILES(0, 4, 6);                                                                   \
                    MULTIPLY_TILES(1, 4, 7);                                                                   \
                    if (two) {                                                                                 \
                        LOAD_TILE(5, from + TILE * TOGETHER(IN) * (IN), STRIDE_OF_ROWS);                       \
                        MULTIPLY_TILES(2, 5, 6);                                                               \
                        MULTIPLY_TILES(3, 5, 7);                                                               \
                    }                                                                                          \
                }                                                                                              \
            enum { ROW_OF_SUMS = 4 * PADDED(OUTPUTS) * TOGETHER(IN) };                                         \
            STORE_TILE(0, to, ROW_OF_SUMS);                                                                    \
            STORE_TILE(1, to + TILE, ROW_OF_SUMS);                                                             \
            if (two) {                                                                                         \
                STORE_TILE(2, to + TILE * TOGETHER(IN) * PADDED(OUTPUTS), ROW_OF_SUMS);                        \
                STORE_TILE(3, to + TILE * TOGETHER(IN) * PADDED(OUTPUTS) + TILE, ROW_OF_SUMS);                 \
            }                                                                                                  \
        }

#define CONVOLVE_FOUR(IN, OUTPUTS)                                                                             \
    for (int group = 0; group < GROUPS(IN, OUTPUTS); group++)                                                  \
        for (int at = 0; at < pixels; at += 4 * TILE) {                                                        \
            EACH_OF_FOUR(CLEAR_PIXELS, IN)                                                                     \
            for (int kh = 0; kh < KERNEL; kh++) {                                                              \
                const element *from = x + (at + kh * SIDE) * (IN);                                             \
                const element *weights = w + (kh * STEPS(IN) * GROUPS(IN, OUTPUTS) + group) * SQUARE_OF_TILE;  \
                for (int step = 1; step < STEPS(IN); step++) {                                                 \
                    LOAD_TILE(7, weights, 64);                                                                 \
                    EACH_OF_FOUR(ADD_PIXELS, IN)                                                               \
                    from += DEPTH;                                                                             \
                    weights += GROUPS(IN, OUTPUTS) * SQUARE_OF_TILE;                                           \
                }                                                                                              \
                LOAD_TILE(6, weights, 64);                                                                     \
                EACH_OF_FOUR(ADD_REST, IN)                                                                     \
            }                                                                                                  \
            EACH_OF_FOUR(STORE_PIXELS, OUTPUTS)                                                                \
        }

/* Convolve IN channels to OUTPUTS, for so many pixels one after another. A row of the kernel lies side by side in `x`. */
#define DEFINE_CONVOLUTION(NAME, IN, OUTPUTS)                                                                  \
    static inline void NAME(const element *x, const element *w, float *y, const int pixels)                    \
    {                                                                                                          \
        if (GROUPS(IN, OUTPUTS) % 2 == 0 && REST(IN) == DEPTH) {                                               \
            CONVOLVE_PAIRS(IN, OUTPUTS)                                                                        \
        } else {                                                                                               \
            CONVOLVE_FOUR(IN, OUTPUTS)                                                                         \
        }                                                                                                      \
    }

DEFINE_CONVOLUTION(forward_pixels, CI, CO)
DEFINE_CONVOLUTION(backward_pixels, CO, CI)

/* ROWS rows of the convolution of image `x`, from `row` on, or those that are left. */
static inline void convolve(const element *restrict x, const element *restrict packed, int row,
                            float *restrict result)
{
    forward_pixels(x + row * SIDE * CI, packed, result, (row + ROWS < OUT ? ROWS : OUT - row) * SIDE);
}

/* The gradient of an image from that of the convolution's output in its frame. */
static inline void input_gradient(const element *restrict frame, const element *restrict packed,
                                  element *restrict grad_input)
{
    if (BY_COLUMNS || REST(CO) != DEPTH)
        CONFIGURE_TILES(tiles_back);
    for (int at = 0; at < SIDE * SIDE; at += PIXELS) {
        float result[PIXELS * PADDED(CI)] LINES;
        const int pixels = at + PIXELS < SIDE * SIDE ? PIXELS : SIDE * SIDE - at;
        backward_pixels(frame + at * CO, packed, result, pixels);
        if (CI == PADDED(CI) && !PADDING)
            store_row(result, grad_input + at * CI, pixels * CI);
        else
            for (int u = 0; u < pixels; u++) { /* nobody asks for that of the padding */
                const unsigned row = (at + u) / SIDE - PADDING, column = (at + u) % SIDE - PADDING;
                if (row < IMAGE_SIDE && column < IMAGE_SIDE)
                    store_row(result + u * PADDED(CI), grad_input + (row * IMAGE_SIDE + column) * CI, CI);
            }
    }
}

#define EACH_OF_SIX(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#if !BY_COLUMNS
/* Six taps of the kernel share a tile of outputs × pixels, and each takes pairs of pixels × inputs: those that begin with an
 * even pixel, or with an odd one. */
#define SUM_OF(T) (sums + (int64_t)(first + T) * PADDED(CO) * PADDED(CI))
#define LOAD_SUM(T)                                                                                            \
    if (first + T < TAPS)                                                                                      \
        LOAD_TILE(T, SUM_OF(T), 4 * PADDED(CI));
#define STORE_SUM(T)                                                                                           \
    if (first + T < TAPS)                                                                                      \
        STORE_TILE(T, SUM_OF(T), 4 * PADDED(CI));
#define OFFSET(T) ((first + T) / KERNEL * SIDE + (first + T) % KERNEL)
#define TAP_OF_TILE(T)                                                                                         \
    if (first + T < TAPS) {                                                                                    \
        LOAD_TILE(7, pairs_from[OFFSET(T) % 2] + (u + OFFSET(T)) / 2 * PADDED(CI) + input, 4 * PADDED(CI));    \
        MULTIPLY_TILES(T, 6, 7);                                                                               \
    }

/* Add to the gradient of the weights, kernel × kernel × PADDED(CO) × PADDED(CI), what an image brings. */
static inline void weight_gradient(const element *restrict x, const element *restrict frame,
                                   float *restrict grad_weight)
{
    element outputs[PADDED(CO) * BAND] LINES;
    uint32_t pairs_from[2][PAIRS * PADDED(CI)] LINES;
    if (REST(CO) != DEPTH)
        CONFIGURE_TILES(whole_tiles);
    for (int band = 0; band < OUTPUT_PIXELS; band += BAND) {
        transpose(frame + (FRAME_START + band) * CO, CO, outputs, BAND, PADDED(CO));
        pair(x + band * CI, CI, pairs_from[0], 2 * PAIRS);
        pair(x + (band + 1) * CI, CI, pairs_from[1], 2 * PAIRS);
        for (int input = 0; input < CI; input += TILE)
            for (int output = 0; output < CO; output += TILE)
                UNROLLED(part, (TAPS + 5) / 6) {
                    const int first = 6 * part;
                    float *sums = grad_weight + output * PADDED(CI) + input;
                    EACH_OF_SIX(LOAD_SUM)
                    for (int u = 0; u < BAND; u += DEPTH) {
                        LOAD_TILE(6, outputs + output * BAND + u, 2 * BAND);
                        EACH_OF_SIX(TAP_OF_TILE)
                    }
                    EACH_OF_SIX(STORE_SUM)
                }
    }
}
#else
/* A row of the kernel, whose columns lie one number apart in memory, takes a tile of sums. */
#define LOAD_SUM(T)                                                                                            \
    if (first + T < KERNEL)                                                                                    \
        LOAD_TILE(T, sums + (first + T) * KERNEL * PADDED(CO), 4 * PADDED(CO));
#define STORE_SUM(T)                                                                                           \
    if (first + T < KERNEL)                                                                                    \
        STORE_TILE(T, sums + (first + T) * KERNEL * PADDED(CO), 4 * PADDED(CO));
#define ROW_OF_TAPS(T)                                                                                         \
    if (first + T < KERNEL) {                                                                                  \
        LOAD_TILE(6, x + band + u + (first + T) * SIDE, 2);                                                    \
        MULTIPLY_TILES(T, 6, 7);                                                                               \
    }

/* Add to the gradient of the weights, kernel × kernel × PADDED(CO), what an image brings. */
static inline void weight_gradient(const element *restrict x, const element *restrict frame,
                                   float *restrict grad_weight)
{
    uint32_t outputs[BAND / 2 * PADDED(CO)] LINES;
    CONFIGURE_TILES(tiles_of_columns);
    for (int band = 0; band < OUTPUT_PIXELS; band += BAND) {
        pair(frame + (FRAME_START + band) * CO, CO, outputs, BAND);
        for (int output = 0; output < CO; output += TILE)
            for (int first = 0; first < KERNEL; first += 6) {
                float *sums = grad_weight + output;
                EACH_OF_SIX(LOAD_SUM)
                for (int u = 0; u < BAND; u += DEPTH) {
                    LOAD_TILE(7, outputs + u / 2 * PADDED(CO) + output, 4 * PADDED(CO));
                    EACH_OF_SIX(ROW_OF_TAPS)
                }
                EACH_OF_SIX(STORE_SUM)
            }
    }
}
#endif
