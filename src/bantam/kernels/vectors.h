/* The three products of a block's convolution in vector registers, of floats or of bfloat16: see `block.c`.
 *
 * A step adds NUMBERS products to each of LANES sums, which are floats: one of floats, or two of bfloat16 that lie
 * side by side in memory. A row of the kernel, columns and channels, lies side by side in an image.
 */
#if BFLOAT16
#define NUMBERS 2
#else
#define NUMBERS 1
#endif
#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 28
#elif defined(__AVX__)
#define LANES 8
#define REGISTERS 10 /* gcc 12 spills two of twelve */
#else
#define LANES 4
#define REGISTERS 24
#endif
/* gcc's optimisation across functions makes a convolution slower where it knows that `first` and `last` are constants. */
#if defined(__clang__)
#define ALONE static __attribute__((noinline))
#else
#define ALONE static __attribute__((noipa))
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
#define VECTORS(channels) (((channels) + LANES - 1) / LANES)
/* Sums stay in registers only where all loops over them are unrolled. */
#define UNROLLED(i, count) _Pragma("GCC unroll 32") for (int i = 0; i < (count); i++)
#define AT_LEAST_1(count) ((count) > 0 ? (count) : 1)
#define STEPS(channels) ((KERNEL * (channels) + NUMBERS - 1) / NUMBERS)

/* sum += the NUMBERS at `from`, the same for every lane, times `factors`. */
#if BFLOAT16
typedef uint32_t one_pair __attribute__((aligned(2), may_alias));
#define ADD_PRODUCT(sum, from, factors) ADD_PAIRS(sum, from, factors)
#else
#define ADD_PRODUCT(sum, from, factors) (sum) += *(from) * (factors)
#endif

/* `convolve` brings so many rows at a time, as wide as they are in the output, their channels side by side. */
enum { ROWS = 1, RESULT_WIDTH = OUT, RESULT_CHANNELS = CO, RESULT = OUT * CO };
enum { GRADIENT_INPUTS = CI };

/* Weights for a convolution: rows of the kernel × steps × PADDED(OUTPUTS) × NUMBERS. */
#define PACKED(IN, OUTPUTS) (KERNEL * STEPS(IN) * PADDED(OUTPUTS) * NUMBERS)
#define PACKED_INDEX(IN, OUTPUTS, row, column, in, out)                                                        \
    ((((row)*STEPS(IN) + ((column) * (IN) + (in)) / NUMBERS) * PADDED(OUTPUTS) + (out)) * NUMBERS              \
     + ((column) * (IN) + (in)) % NUMBERS)

/* Convolve IN channels to OUTPUTS, with the kernel's rows from `first` to before `last`: results of a row, TILE
 * neighbours at a time, stay in registers. The last tile of a row overlaps the one before where the row is no
 * multiple of it. */
#define DEFINE_CONVOLUTION(NAME, IN, OUTPUTS, RESULTS)                                                         \
    enum { NAME##_fit = AT_LEAST_1(REGISTERS / VECTORS(OUTPUTS)) };                                            \
    enum { NAME##_most = NAME##_fit < 14 ? NAME##_fit : 14 };                                                  \
    enum { NAME##_tiles = (RESULTS + NAME##_most - 1) / NAME##_most };                                         \
    enum { NAME##_tile = (RESULTS + NAME##_tiles - 1) / NAME##_tiles };                                        \
    ALONE void NAME(const element *restrict x, const element *restrict w, float *restrict y, int first,        \
                    int last)                                                                                  \
    {                                                                                                          \
        for (int part = 0; part < NAME##_tiles; part++) {                                                      \
            int at = part * NAME##_tile;                                                                       \
            if (at > RESULTS - NAME##_tile)                                                                    \
                at = RESULTS - NAME##_tile;                                                                    \
            vector sum[NAME##_tile][VECTORS(OUTPUTS)];                                                         \
            UNROLLED(u, NAME##_tile) UNROLLED(v, VECTORS(OUTPUTS)) sum[u][v] = (vector){0};                    \
            for (int kh = first; kh < last; kh++) {                                                            \
                const element *from = x + (kh * SIDE + at) * (IN);                                             \
                const element *row = w + kh * STEPS(IN) * PADDED(OUTPUTS) * NUMBERS;                           \
                for (int step = 0; step < STEPS(IN); step++)                                                   \
                    UNROLLED(v, VECTORS(OUTPUTS)) {                                                            \
                        vector weight = *(const vector *)(row + (step * PADDED(OUTPUTS) + v * LANES) * NUMBERS);\
                        UNROLLED(u, NAME##_tile)                                                               \
                            ADD_PRODUCT(sum[u][v], from + u * (IN) + step * NUMBERS, weight);                  \
                    }                                                                                          \
            }                                                                                                  \
            UNROLLED(u, NAME##_tile)                                                                           \
                UNROLLED(v, VECTORS(OUTPUTS))                                                                  \
                    memcpy(y + (at + u) * (OUTPUTS) + v * LANES, &sum[u][v],                                   \
                           4 * ((OUTPUTS) - v * LANES < LANES ? (OUTPUTS) - v * LANES : LANES));               \
        }                                                                                                      \
    }

DEFINE_CONVOLUTION(forward_row, CI, CO, OUT)
DEFINE_CONVOLUTION(backward_row, CO, CI, SIDE)

/* ROWS rows of the convolution of image `x`, from `row` on. */
static inline void convolve(const element *restrict x, const element *restrict packed, int row,
                            float *restrict result)
{
    forward_row(x + row * SIDE * CI, packed, result, 0, KERNEL);
}

/* The gradient of an image from that of the convolution's output in its frame. */
static inline void input_gradient(const element *restrict frame, const element *restrict packed,
                                  element *restrict grad_input)
{
    for (int row = 0; row < SIDE; row++) {
        /* Rows of the frame above and below the gradient are zeros. */
        const int first = row < BORDER ? BORDER - row : 0, last = row < OUT ? KERNEL : KERNEL - 1 - (row - OUT);
        float buffer[SIDE * CI], *values = row_buffer(grad_input + row * SIDE * CI, buffer);
        backward_row(frame + row * SIDE * CO, packed, values, first, last);
        store_row(values, grad_input + row * SIDE * CI, SIDE * CI);
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
static inline void weight_gradient(const element *restrict x, const element *restrict frame,
                                   float *restrict grad_weight)
{
    enum { SPAN = KERNEL * CI, MOST_SUMS = AT_LEAST_1(REGISTERS / VECTORS(CO)) };
    /* Of a few channels all rows of the kernel at once, so that there are sums enough to be computed side by side. */
    enum { TOGETHER = KERNEL * SPAN <= MOST_SUMS ? KERNEL : 1, SUMS = TOGETHER * SPAN };
    enum { PARTS = (SUMS + MOST_SUMS - 1) / MOST_SUMS, PART = (SUMS + PARTS - 1) / PARTS };
    enum { GROUPS = (OUT + NUMBERS - 1) / NUMBERS };
#if BFLOAT16
    element rows[CI > 1 ? CI * COLUMNS : 1];
    uint32_t gradients[OUT * GROUPS * PADDED(CO)];
    if (CI > 1)
        transpose(x, rows, COLUMNS, CI);
    const element *inputs = CI > 1 ? rows : x;
    for (int row = 0; row < OUT; row++)
        pair(frame + (FRAME_START + row * SIDE) * CO, gradients + row * GROUPS * PADDED(CO), OUT);
#else
    const element *inputs = x;
#endif
    for (int top = 0; top < OUT; top += BAND)
        for (int kh = 0; kh < KERNEL; kh += TOGETHER)
            _Pragma("GCC unroll 64") for (int part = 0; part < PARTS; part++) {
                vector sum[PART][VECTORS(CO)];
                UNROLLED(c, PART) UNROLLED(v, VECTORS(CO)) sum[c][v] = (vector){0};
                for (int row = top; row < (top + BAND < OUT ? top + BAND : OUT); row++)
                    for (int u = 0; u < GROUPS; u++) {
                        const element *from = inputs + INPUT((row + kh) * SIDE + u * NUMBERS, 0);
                        UNROLLED(v, VECTORS(CO)) {
#if BFLOAT16
                            const uint32_t *pixels = gradients + (row * GROUPS + u) * PADDED(CO);
#else
                            const element *pixels = frame + (FRAME_START + row * SIDE + u) * CO;
#endif
                            vector gradient = *(const vector *)(pixels + v * LANES);
                            UNROLLED(c, PART) {
                                const int tap = part * PART + c;
                                if (tap < SUMS)
                                    ADD_PRODUCT(sum[c][v], from + INPUT(tap / SPAN * SIDE, tap % SPAN), gradient);
                            }
                        }
                    }
                UNROLLED(c, PART)
                    UNROLLED(v, VECTORS(CO))
                        if (part * PART + c < SUMS) {
                            float *to = grad_weight + (kh * SPAN + part * PART + c) * PADDED(CO) + v * LANES;
                            *(vector *)to += sum[c][v];
                        }
            }
}

static inline void begin_products(void) {}
static inline void end_products(void) {}
