/* The three products of a block's convolution in float32, in vector registers: see `native.c`. */
#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 28
#elif defined(__AVX__)
#define LANES 8
#define REGISTERS 12
#else
#define LANES 4
#define REGISTERS 24
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
#define VECTORS(channels) (((channels) + LANES - 1) / LANES)
#define AT_LEAST_1(count) ((count) > 0 ? (count) : 1)

/* A vector may be read or written where only its first channels are wanted. */
enum { SLACK = LANES };
/* `convolve` brings so many rows at a time, as wide as they are in the output, their channels side by side. */
enum { ROWS = 1, RESULT_WIDTH = OUT, RESULT_CHANNELS = CO, RESULT = OUT * CO };
enum { GRADIENT_INPUTS = CI };

enum { COPY = 1 };
static inline const stored *readable(const stored *x, int i, int images, stored *copy)
{
    (void)images, (void)copy;
    return x + (int64_t)i * SIDE * SIDE * CI;
}

/* Weights for a convolution: kernel × kernel × IN × PADDED(OUTPUTS). */
#define PACKED(IN, OUTPUTS) (TAPS * (IN) * PADDED(OUTPUTS))
#define PLACE(IN, OUTPUTS, row, column, in, out) ((((row)*KERNEL + (column)) * (IN) + (in)) * PADDED(OUTPUTS) + (out))

/* Convolve IN channels to OUTPUTS: results of a row, TILE neighbours at a time, stay in registers. The last
 * tile of a row overlaps the one before where the row is no multiple of it. */
#define DEFINE_CONVOLUTION(NAME, IN, OUTPUTS, RESULTS)                                                        \
    enum { NAME##_fit = AT_LEAST_1(REGISTERS / VECTORS(OUTPUTS)) };                                            \
    enum { NAME##_most = NAME##_fit < 14 ? NAME##_fit : 14 };                                                  \
    enum { NAME##_tiles = (RESULTS + NAME##_most - 1) / NAME##_most };                                         \
    enum { NAME##_tile = (RESULTS + NAME##_tiles - 1) / NAME##_tiles };                                        \
    static inline void NAME(const float *restrict x, const float *restrict w, float *restrict y)               \
    {                                                                                                          \
        for (int part = 0; part < NAME##_tiles; part++) {                                                      \
            int at = part * NAME##_tile;                                                                       \
            if (at > RESULTS - NAME##_tile)                                                                    \
                at = RESULTS - NAME##_tile;                                                                    \
            vector sum[NAME##_tile][VECTORS(OUTPUTS)];                                                         \
            for (int u = 0; u < NAME##_tile; u++)                                                              \
                for (int v = 0; v < VECTORS(OUTPUTS); v++)                                                     \
                    sum[u][v] = (vector){0};                                                                   \
            for (int kh = 0; kh < KERNEL; kh++)                                                                \
                for (int kw = 0; kw < KERNEL; kw++) {                                                          \
                    const float *from = x + (kh * SIDE + kw + at) * (IN);                                      \
                    const float *row = w + (kh * KERNEL + kw) * (IN) * PADDED(OUTPUTS);                        \
                    for (int c = 0; c < (IN); c++)                                                             \
                        for (int v = 0; v < VECTORS(OUTPUTS); v++) {                                           \
                            vector weight = *(const vector *)(row + c * PADDED(OUTPUTS) + v * LANES);          \
                            _Pragma("GCC unroll 16") for (int u = 0; u < NAME##_tile; u++)                     \
                                sum[u][v] += from[u * (IN) + c] * weight;                                      \
                        }                                                                                      \
                }                                                                                              \
            for (int u = 0; u < NAME##_tile; u++)                                                              \
                for (int v = 0; v < VECTORS(OUTPUTS); v++)                                                     \
                    memcpy(y + (at + u) * (OUTPUTS) + v * LANES, &sum[u][v],                                   \
                           4 * ((OUTPUTS) - v * LANES < LANES ? (OUTPUTS) - v * LANES : LANES));               \
        }                                                                                                      \
    }

DEFINE_CONVOLUTION(forward_row, CI, CO, OUT)
DEFINE_CONVOLUTION(backward_row, CO, CI, SIDE)

/* ROWS rows of the convolution of image `x`, from `row` on. */
static inline void convolve(const stored *restrict x, const stored *restrict w, int row, float *restrict result)
{
    forward_row(x + row * SIDE * CI, w, result);
}

/* `gx`, the gradient of an image, from that of the convolution's output in its frame. */
static inline void turn_back(const stored *restrict frame, const stored *restrict w, stored *restrict gx)
{
    for (int row = 0; row < SIDE; row++)
        backward_row(frame + row * SIDE * CO, w, gx + row * SIDE * CI);
}

/* Add to the gradient of the weights, kernel × kernel × CI × PADDED(CO), what an image brings: BAND rows at a
 * time, so few that they stay in the first cache. */
enum { BAND = 6 };
static inline void weigh(const stored *restrict x, const stored *restrict frame, float *restrict gw)
{
    enum { SPAN = KERNEL * CI, MOST = AT_LEAST_1(REGISTERS / VECTORS(CO)) };
    enum { PARTS = (SPAN + MOST - 1) / MOST, PART = (SPAN + PARTS - 1) / PARTS };
    const float *g = frame + LEAD * CO;
    for (int top = 0; top < OUT; top += BAND)
        for (int kh = 0; kh < KERNEL; kh++)
            _Pragma("GCC unroll 64") for (int part = 0; part < PARTS; part++) {
                vector sum[PART][VECTORS(CO)];
                for (int c = 0; c < PART; c++)
                    for (int v = 0; v < VECTORS(CO); v++)
                        sum[c][v] = (vector){0};
                for (int row = top; row < (top + BAND < OUT ? top + BAND : OUT); row++)
                    for (int u = 0; u < OUT; u++) {
                        /* The columns of the kernel and their channels lie side by side in x. */
                        const float *from = x + ((row + kh) * SIDE + u) * CI + part * PART;
                        for (int v = 0; v < VECTORS(CO); v++) {
                            vector gradient = *(const vector *)(g + (row * SIDE + u) * CO + v * LANES);
                            _Pragma("GCC unroll 32") for (int c = 0; c < PART; c++)
                                if (part * PART + c < SPAN)
                                    sum[c][v] += from[c] * gradient;
                        }
                    }
                for (int c = 0; c < PART && part * PART + c < SPAN; c++)
                    for (int v = 0; v < VECTORS(CO); v++)
                        *(vector *)(gw + (kh * SPAN + part * PART + c) * PADDED(CO) + v * LANES) += sum[c][v];
            }
}

static inline void begin(void) {}
static inline void end(void) {}
