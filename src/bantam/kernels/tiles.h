/* The three products of a block's convolution in bfloat16, by the matrix unit (AMX): see `block.c`.
 *
 * Its eight registers are tiles. A product adds 16×32 numbers times 32×16 numbers to 16×16 sums, which are
 * floats; of the second factor, two numbers that follow one another in a column lie side by side in memory.
 */
/* Columns that the kernel reaches over the end of a row bring results that nobody reads. */
enum { ROWS = MAX(4 * TILE / SIDE, 1), RESULT_WIDTH = SIDE, RESULT_CHANNELS = PADDED(CO) };
enum { RESULT = ROUND_UP(TILE, ROWS * SIDE) * PADDED(CO) };
#define REACH(channels)                                                                                        \
    ((ROUND_UP(4 * TILE, SIDE * SIDE) + BORDER * SIDE) * (channels) + ROUND_UP(DEPTH, KERNEL * (channels)))
/* The gradient of the weights takes so many pixels of the output, and so many of the input for them. */
enum { PIXELS = ROUND_UP(DEPTH, OUT * SIDE), COLUMNS = ROUND_UP(DEPTH, PIXELS + FRAME_START) };
enum { FRAME_END = MAX(REACH(CO), (FRAME_START + PIXELS) * CO + TILE) - (FRAME_START + SIDE * SIDE) * CO };
/* Whole tiles are read, also beyond an image's end: for the last ROWS of the output, and for the gradients. */
enum { LAST_ROWS = ((OUT - 1) / ROWS * ROWS + BORDER) * SIDE + ROUND_UP(TILE, ROWS * SIDE) };
enum { READ = MAX(LAST_ROWS * CI + ROUND_UP(DEPTH, KERNEL * CI), COLUMNS * CI + TILE) };

/* A tile of inputs has as many rows as there are channels, and else 16. */
enum { TILE_ROWS = CI < TILE ? CI : TILE, GRADIENT_INPUTS = ROUND_UP(TILE_ROWS, CI) };

/* A kernel's row, columns and channels side by side, takes so many steps of DEPTH numbers, the last of REST: an even
 * number. */
#define STEPS(channels) (ROUND_UP(DEPTH, KERNEL * (channels)) / DEPTH)
#define REST(channels) (ROUND_UP(2, KERNEL * (channels)) - (STEPS(channels) - 1) * DEPTH)

/* Tiles 0 to 3 are sums, 4 and 7 factors, 5 and 6 those of so many numbers in a last step. */
static inline void configure_pixels(int rest)
{
    struct tile_sizes sizes = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        sizes.bytes[t] = t == 5 ? 2 * rest : 4 * TILE;
        sizes.rows[t] = t == 6 ? rest / 2 : TILE;
    }
    CONFIGURE_TILES(sizes);
}

/* Tiles 0 to 5 are sums and 6 a factor, all with a row for each input, 7 the other factor. */
static inline void configure_weights(void)
{
    struct tile_sizes sizes = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        sizes.bytes[t] = 4 * TILE;
        sizes.rows[t] = t < 7 ? TILE_ROWS : TILE;
    }
    CONFIGURE_TILES(sizes);
}

/* What PyTorch's kernels left is put back, since they may believe that it is still there. */
static __thread struct tile_sizes before;
static inline void begin_products(void) { TILES_CONFIGURED(before); }
static inline void end_products(void)
{
    if (before.palette)
        CONFIGURE_TILES(before);
    else
        RELEASE_TILES();
}

/* Four tiles, 16 neighbouring pixels each, share one of weights; beyond PIXELS there is nothing to do. */
#define EACH_OF_FOUR(DO, CHANNELS, PIXELS)                                                                     \
    DO(0, CHANNELS, PIXELS) DO(1, CHANNELS, PIXELS) DO(2, CHANNELS, PIXELS) DO(3, CHANNELS, PIXELS)
#define CLEAR_PIXELS(T, IN, PIXELS) CLEAR_TILE(T);
#define ADD_PIXELS(T, IN, PIXELS)                                                                              \
    if (at + T * TILE < (PIXELS)) {                                                                            \
        LOAD_TILE(4, from + T * TILE * (IN), 2 * (IN));                                                        \
        MULTIPLY_TILES(T, 4, 7);                                                                               \
    }
#define ADD_REST(T, IN, PIXELS)                                                                                \
    if (at + T * TILE < (PIXELS)) {                                                                            \
        LOAD_TILE(5, from + T * TILE * (IN), 2 * (IN));                                                        \
        MULTIPLY_TILES(T, 5, 6);                                                                               \
    }
#define STORE_PIXELS(T, OUTPUTS, PIXELS)                                                                       \
    if (at + T * TILE < (PIXELS))                                                                              \
        STORE_TILE(T, y + (at + T * TILE) * PADDED(OUTPUTS) + group, 4 * PADDED(OUTPUTS));

/* Weights for a convolution: rows of the kernel × steps × groups × 16 × 16 × 2. A step is 32 numbers of a row, columns
 * and inputs side by side, and a group 16 outputs. */
#define PACKED(IN, OUTPUTS) (KERNEL * STEPS(IN) * DEPTH * PADDED(OUTPUTS))
#define PACKED_INDEX(IN, OUTPUTS, row, column, in, out)                                                        \
    PACKED_INDEX_IN_ROW((row)*STEPS(IN) * DEPTH * PADDED(OUTPUTS), OUTPUTS, (column) * (IN) + (in), out)
#define PACKED_INDEX_IN_ROW(start, OUTPUTS, number, out)                                                       \
    ((start) + ((number) / DEPTH * PADDED(OUTPUTS) + (out) / TILE * TILE) * DEPTH + (number) % DEPTH / 2 * DEPTH\
     + (out) % TILE * 2 + (number) % 2)

/* Convolve IN channels to OUTPUTS, for so many pixels one after another. A row of the kernel lies side by side in `x`. */
#define DEFINE_CONVOLUTION(NAME, IN, OUTPUTS, PIXELS)                                                          \
    static inline void NAME(const element *x, const element *w, float *y)                                      \
    {                                                                                                          \
        for (int group = 0; group < PADDED(OUTPUTS); group += TILE)                                            \
            for (int at = 0; at < (PIXELS); at += 4 * TILE) {                                                  \
                EACH_OF_FOUR(CLEAR_PIXELS, IN, PIXELS)                                                         \
                for (int kh = 0; kh < KERNEL; kh++) {                                                          \
                    const element *from = x + (at + kh * SIDE) * (IN);                                         \
                    const element *weights = w + (kh * STEPS(IN) * PADDED(OUTPUTS) + group) * DEPTH;           \
                    for (int step = 1; step < STEPS(IN); step++) {                                             \
                        LOAD_TILE(7, weights, 64);                                                             \
                        EACH_OF_FOUR(ADD_PIXELS, IN, PIXELS)                                                   \
                        from += DEPTH;                                                                         \
                        weights += DEPTH * PADDED(OUTPUTS);                                                    \
                    }                                                                                          \
                    LOAD_TILE(6, weights, 64);                                                                 \
                    EACH_OF_FOUR(ADD_REST, IN, PIXELS)                                                         \
                }                                                                                              \
                EACH_OF_FOUR(STORE_PIXELS, OUTPUTS, PIXELS)                                                    \
            }                                                                                                  \
    }

DEFINE_CONVOLUTION(forward_pixels, CI, CO, ROWS *SIDE)
DEFINE_CONVOLUTION(backward_pixels, CO, CI, 4 * TILE)

/* ROWS rows of the convolution of image `x`, from `row` on. */
static inline void convolve(const element *restrict x, const element *restrict packed, int row,
                            float *restrict result)
{
    if (row == 0)
        configure_pixels(REST(CI));
    forward_pixels(x + row * SIDE * CI, packed, result);
}

/* The gradient of an image from that of the convolution's output in its frame. */
static inline void input_gradient(const element *restrict frame, const element *restrict packed,
                                  element *restrict grad_input)
{
    configure_pixels(REST(CO));
    for (int at = 0; at < SIDE * SIDE; at += 4 * TILE) {
        float result[4 * TILE * PADDED(CI)];
        backward_pixels(frame + at * CO, packed, result);
        const int pixels = at + 4 * TILE < SIDE * SIDE ? 4 * TILE : SIDE * SIDE - at;
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

#define LOAD_SUM(T)                                                                                            \
    if (first + T < TAPS)                                                                                      \
        LOAD_TILE(T, sums + T * GRADIENT_INPUTS * PADDED(CO), 4 * PADDED(CO));
#define STORE_SUM(T)                                                                                           \
    if (first + T < TAPS)                                                                                      \
        STORE_TILE(T, sums + T * GRADIENT_INPUTS * PADDED(CO), 4 * PADDED(CO));
#define TAP_OF_TILE(T)                                                                                         \
    if (first + T < TAPS) {                                                                                    \
        LOAD_TILE(6, from + (first + T) / KERNEL * SIDE + (first + T) % KERNEL, 2 * COLUMNS);                  \
        MULTIPLY_TILES(T, 6, 7);                                                                               \
    }
#define EACH_OF_SIX(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

/* Add to the gradient of the weights, kernel × kernel × GRADIENT_INPUTS × PADDED(CO), what an image brings. */
static inline void weight_gradient(const element *restrict x, const element *restrict frame,
                                   float *restrict grad_weight)
{
    element rows[CI > 1 ? GRADIENT_INPUTS * COLUMNS : 1];
    uint32_t gradient[PIXELS / 2 * PADDED(CO)];
    if (CI > 1)
        transpose(x, rows, COLUMNS, GRADIENT_INPUTS);
    pair(frame + FRAME_START * CO, gradient, PIXELS);
    configure_weights();
    for (int input = 0; input < CI; input += TILE)
        for (int output = 0; output < CO; output += TILE)
            for (int first = 0; first < TAPS; first += 6) {
                float *sums = grad_weight + (first * GRADIENT_INPUTS + input) * PADDED(CO) + output;
                EACH_OF_SIX(LOAD_SUM)
                for (int u = 0; u < PIXELS; u += DEPTH) {
                    const element *from = (CI > 1 ? rows : x) + input * COLUMNS + u;
                    LOAD_TILE(7, gradient + u / 2 * PADDED(CO) + output, 4 * PADDED(CO));
                    EACH_OF_SIX(TAP_OF_TILE)
                }
                EACH_OF_SIX(STORE_SUM)
            }
}
