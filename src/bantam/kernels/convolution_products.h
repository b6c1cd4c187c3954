/* The three products of a block's convolution in vector registers, tap by tap, of floats or of bfloat16: see `block.c` and
 * `vectors.h`. `convolve` brings so many rows at a time, as wide as they are in the output, their channels side by side. */
enum { ROWS = 1, RESULT_WIDTH = OUT, RESULT_CHANNELS = CO, RESULT = OUT * CO };
enum { WEIGHTS = TAPS * CI * PADDED(CO) };
#define WEIGHT_INDEX(tap, in, out) (((tap)*CI + (in)) * PADDED(CO) + (out))

/* Weights for a convolution: rows of the kernel × steps × PADDED(OUTPUTS) × NUMBERS. */
#define PACKED(IN, OUTPUTS) (KERNEL * STEPS(IN) * PADDED(OUTPUTS) * NUMBERS)
#define COPIES(IN) 1
#define PACKED_INDEX(IN, OUTPUTS, row, column, in, out, copy)                                                  \
    ((((row)*STEPS(IN) + ((column) * (IN) + (in)) / NUMBERS) * PADDED(OUTPUTS) + (out)) * NUMBERS              \
     + ((column) * (IN) + (in)) % NUMBERS)

/* A tile of the convolution of IN channels to OUTPUTS: WIDE neighbours, and of their channels the first SEVERAL vectors,
 * with the kernel's rows from `first` to before `last`, one of EVERY so many. In the input neighbours are APART. */
#define DEFINE_TILE(NAME, IN, OUTPUTS, WIDE, SEVERAL, APART, EVERY)                                            \
    ALONE void NAME(const element *restrict x, const element *restrict w, float *restrict y, int first,        \
                    int last)                                                                                  \
    {                                                                                                          \
        enum { NEXT = (APART) * (IN) };                                                                        \
        vector sum[WIDE][SEVERAL];                                                                             \
        UNROLLED(u, WIDE) UNROLLED(v, SEVERAL) sum[u][v] = (vector){0};                                        \
        for (int kh = first; kh < last; kh += EVERY) {                                                         \
            const element *from = x + kh * SIDE * (IN), *row = w + kh * STEPS(IN) * PADDED(OUTPUTS) * NUMBERS; \
            for (int step = 0; step < STEPS(IN); step++) {                                                     \
                const element *values = from + step * NUMBERS;                                                 \
                ADD_TILE(sum, WIDE, SEVERAL, row + step * PADDED(OUTPUTS) * NUMBERS, NEIGHBOUR, ALWAYS)        \
            }                                                                                                  \
        }                                                                                                      \
        UNROLLED(u, WIDE)                                                                                      \
            UNROLLED(v, SEVERAL) {                                                                             \
                float *to = y + u * (OUTPUTS) + v * LANES;                                                     \
                const int left = (v + 1) * LANES > (OUTPUTS) ? ((WIDE)-u) * (OUTPUTS)-v * LANES : LANES;       \
                if (left >= LANES)                                                                             \
                    *(vector *)to = sum[u][v];                                                                 \
                else {                                                                                         \
                    vector result = sum[u][v];                                                                 \
                    memcpy(to, &result, 4 * AT_LEAST_1(left));                                                 \
                }                                                                                              \
            }                                                                                                  \
    }
#define NEIGHBOUR(u) (values + (u) * NEXT)
#define ALWAYS(u) 1

/* A row of RESULTS neighbours: as few tiles as possible, the first ones wider than the others by one. The last group of
 * channels overlaps the one before where they are no multiple of it. */
#define DEFINE_CONVOLUTION(NAME, IN, OUTPUTS, RESULTS, APART, EVERY)                                           \
    enum { NAME##_group = GROUP(VECTORS(OUTPUTS)), NAME##_most = MOST(NAME##_group) };                         \
    enum { NAME##_tiles = (RESULTS + NAME##_most - 1) / NAME##_most };                                         \
    enum { NAME##_wide = (RESULTS + NAME##_tiles - 1) / NAME##_tiles, NAME##_narrow = NAME##_wide - 1 };       \
    enum { NAME##_wide_tiles = RESULTS - NAME##_tiles * NAME##_narrow };                                       \
    DEFINE_TILE(NAME##_wide_tile, IN, OUTPUTS, NAME##_wide, NAME##_group, APART, EVERY)                        \
    DEFINE_TILE(NAME##_narrow_tile, IN, OUTPUTS, AT_LEAST_1(NAME##_narrow), NAME##_group, APART, EVERY)        \
    static inline void NAME(const element *restrict x, const element *restrict w, float *restrict y,           \
                            int first, int last)                                                               \
    {                                                                                                          \
        for (int group = 0; group < GROUPS(VECTORS(OUTPUTS)); group++) {                                       \
            int channel = group * NAME##_group * LANES;                                                        \
            if (group > 0 && channel > (OUTPUTS) - NAME##_group * LANES)                                       \
                channel = (OUTPUTS) - NAME##_group * LANES;                                                    \
            const element *weights = w + channel * NUMBERS;                                                    \
            for (int tile = 0, at = 0; tile < NAME##_tiles; tile++) {                                          \
                const int wide = tile < NAME##_wide_tiles;                                                     \
                (wide ? NAME##_wide_tile : NAME##_narrow_tile)(x + at * (APART) * (IN), weights,               \
                                                               y + at * (OUTPUTS) + channel, first, last);     \
                at += wide ? NAME##_wide : NAME##_narrow;                                                      \
            }                                                                                                  \
        }                                                                                                      \
    }

DEFINE_CONVOLUTION(forward_row, CI, CO, OUT, STRIDE, 1)
DEFINE_CONVOLUTION(backward_row, CO, CI, IMAGE_SIDE, 1, STRIDE)

/* ROWS rows of the convolution of image `x`, from `row` on. */
static inline void convolve(const element *restrict x, const element *restrict packed, int row,
                            float *restrict result)
{
    forward_row(x + row * STRIDE * SIDE * CI, packed, result, 0, KERNEL);
}

/* The gradient of an image from that of the convolution's output in its frame; nobody asks for that of the padding. */
static inline void input_gradient(const element *restrict frame, const element *restrict packed,
                                  element *restrict grad_input)
{
    for (int row = PADDING; row < SIDE - PADDING; row++) {
        /* Rows of the frame above and below the gradient are zeros, and so are those between its own. */
        const int first = row < BORDER ? BORDER - row : (STRIDE - (row - BORDER) % STRIDE) % STRIDE;
        const int last = row < SPREAD ? KERNEL : KERNEL - 1 - (row - SPREAD);
        element *to = grad_input + (row - PADDING) * IMAGE_SIDE * CI;
        float buffer[IMAGE_SIDE * CI], *values = row_buffer(to, buffer);
        backward_row(frame + (row * SIDE + PADDING) * CO, packed, values, first, last);
        store_row(values, to, IMAGE_SIDE * CI);
    }
}

/* The gradient of the weights takes inputs of a channel side by side where a step is of more than one, and the
 * gradient of the outputs in steps too. */
#if BFLOAT16
enum { COLUMNS = ROUND_UP(DEPTH, SIDE * SIDE + 1), READ = COLUMNS * CI + TILE };
#define INPUT(pixel, tap) ((pixel) + (tap) % CI * COLUMNS + (tap) / CI)
#else
enum { READ = SIDE * SIDE * CI };
#define INPUT(pixel, tap) ((pixel)*CI + (tap))
#endif
/* A vector may be read where only its first channels are wanted. */
enum { FRAME_END = LANES * NUMBERS };

/* Add to the gradient of the weights, kernel × kernel × CI × PADDED(CO), what an image brings: BAND rows at a
 * time, so few that they stay in the first cache. */
enum { BAND = 6 };
#define TAP(u) (from + INPUT((part * PART + (u)) / SPAN * SIDE, (part * PART + (u)) % SPAN))
#define IS_TAP(u) (part * PART + (u) < SUMS)
static inline void weight_gradient(const element *restrict x, const element *restrict frame,
                                   float *restrict grad_weight)
{
    enum { SPAN = KERNEL * CI, GROUP = GROUP(VECTORS(CO)), MOST_SUMS = MOST(GROUP) };
    /* Of a few channels all rows of the kernel at once, so that there are sums enough to be computed side by side. */
    enum { TOGETHER = 2 * SPAN <= MOST_SUMS ? KERNEL : 1, SUMS = TOGETHER * SPAN };
    enum { PARTS = (SUMS + MOST_SUMS - 1) / MOST_SUMS, PART = (SUMS + PARTS - 1) / PARTS };
    enum { COUNT = (OUT + NUMBERS - 1) / NUMBERS };
#if BFLOAT16
    element rows[CI > 1 ? CI * COLUMNS : 1];
    uint32_t gradients[OUT * COUNT * PADDED(CO)];
    if (CI > 1)
        transpose(x, CI, rows, COLUMNS, CI);
    const element *inputs = CI > 1 ? rows : x;
    for (int row = 0; row < OUT; row++)
        pair(frame + (FRAME_START + row * SIDE) * CO, CO, gradients + row * COUNT * PADDED(CO), OUT);
#else
    const element *inputs = x;
#endif
    for (int top = 0; top < OUT; top += BAND)
        for (int kh = 0; kh < KERNEL; kh += TOGETHER)
            for (int done = 0, vectors; done < VECTORS(CO); done += GROUP) {
                vectors = done < VECTORS(CO) - GROUP ? done : VECTORS(CO) - GROUP;
                _Pragma("GCC unroll 64") for (int part = 0; part < PARTS; part++) {
                    vector sum[PART][GROUP];
                    UNROLLED(u, PART) UNROLLED(v, GROUP) sum[u][v] = (vector){0};
                    for (int row = top; row < (top + BAND < OUT ? top + BAND : OUT); row++)
                        for (int column = 0; column < COUNT; column++) {
                            const element *from = inputs + INPUT((row * STRIDE + kh) * SIDE + column * STRIDE * NUMBERS, 0);
#if BFLOAT16
                            const uint32_t *pixels = gradients + (row * COUNT + column) * PADDED(CO);
#else
                            const element *pixels = frame + (FRAME_START + (row * SIDE + column) * STRIDE) * CO;
#endif
                            ADD_TILE(sum, PART, GROUP, pixels + vectors * LANES, TAP, IS_TAP)
                        }
                    UNROLLED(u, PART)
                        UNROLLED(v, GROUP)
                            if (IS_TAP(u) && vectors + v >= done) {
                                float *to = grad_weight + (kh * SPAN + part * PART + u) * PADDED(CO);
                                *(vector *)(to + (vectors + v) * LANES) += sum[u][v];
                            }
                }
            }
}

static inline void begin_products(const int forward) { (void)forward; }
static inline void end_products(void) {}
