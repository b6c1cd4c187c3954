/* The three products of a 3×3 convolution of floats with fewer multiplications: see `block.c` and `vectors.h`.
 *
 * A square of 2×2 outputs depends on 4×4 inputs. Both, and the 3×3 weights, are transformed to 4×4 sums of a few of
 * their numbers each; of these an output's channel is a sum over input channels of one product an element: 16 for a square,
 * not 4 × 9 (F(2×2, 3×3): Winograd 1980; Lavin and Gray 2016, https://arxiv.org/abs/1509.09308). The gradients likewise.
 *
 * Infinity at one input makes NaN, not infinity, of some outputs that depend on it; no other output is touched.
 */
enum { ELEMENTS = 16, ROWS = 2 };
/* Squares in a row of results. Of an odd number of results the last square has one column, or row, that nobody asks for.
 * It alone depends on what is read behind the image, which may be anything; behind the frame are zeros. */
#define SQUARES(results) (((results) + 1) / 2)
/* Of an element, channels are in whole groups of vectors: those beyond are zeros. */
#define ELEMENT_ROW(channels) (GROUPS(VECTORS(channels)) * GROUP(VECTORS(channels)) * LANES)
enum { RESULT_WIDTH = OUT, RESULT_CHANNELS = CO, RESULT = ROWS * OUT * CO };
enum { READ = (SIDE * SIDE + OUT % 2 * (SIDE + 1)) * CI, FRAME_END = IMAGE_SIDE % 2 * (SIDE + 1) * CO };

/* For vectors of channels, of which the last may overlap the one before, the first channel. Of 16 lanes one may be more than
 * there are channels: it is not full then. */
#define EACH_VECTOR_OF(in, channels)                                                                           \
    for (int v = 0, in = 0; v < VECTORS(channels);                                                             \
         v++, in = v * LANES < (channels)-LANES ? v * LANES : (channels)-LANES)
#define VECTOR_AT(pointer) (*(vector *)(pointer))
#define LOADED(pointer) (*(const vector *)(pointer))
#if LANES == 16
static INLINE vector channels_at(const float *from, const int channels)
{
    if (channels >= LANES)
        return LOADED(from);
    return __builtin_ia32_loadups512_mask((const void *)from, (vector){0}, (1 << channels) - 1);
}
static INLINE void put_channels(vector x, float *to, const int channels)
{
    if (channels >= LANES)
        VECTOR_AT(to) = x;
    else
        __builtin_ia32_storeups512_mask((void *)to, x, (1 << channels) - 1);
}
#else
static INLINE vector channels_at(const float *from, const int channels) { (void)channels; return LOADED(from); }
static INLINE void put_channels(vector x, float *to, const int channels) { (void)channels; VECTOR_AT(to) = x; }
#endif
/* From one square's transformed inputs to the next one's. */
#define INPUT_ROW(channels) ((channels) < LANES ? LANES : (channels))

/* The transforms take a square's columns, then its rows: four inputs, two gradients of outputs or three weights to one of four
 * elements, and four elements to one of two outputs or of three gradients of weights. */
static INLINE vector input_element(const int e, vector d0, vector d1, vector d2, vector d3)
{
    return e == 0 ? d0 - d2 : e == 1 ? d1 + d2 : e == 2 ? d2 - d1 : d3 - d1;
}
static INLINE vector output_of(const int number, vector m0, vector m1, vector m2, vector m3)
{
    return number ? m1 - m2 + m3 : m0 + m1 + m2;
}
static INLINE vector gradient_element(const int e, vector a, vector b)
{
    if (e == 0 || e == 3)
        return e ? b : a;
    return e == 1 ? a + b : a - b;
}
static INLINE float weight_element(const int e, float g0, float g1, float g2)
{
    return e == 0 ? g0 : e == 3 ? g2 : 0.5f * (e == 1 ? g0 + g1 + g2 : g0 - g1 + g2);
}
static INLINE float weight_of(const int number, float u0, float u1, float u2, float u3)
{
    const float half = 0.5f * (number == 1 ? u1 - u2 : u1 + u2);
    return number == 0 ? u0 + half : number == 1 ? half : half + u3;
}

/* Weights of elements × IN × ELEMENT_ROW(OUTPUTS). */
#define PACKED(IN, OUTPUTS) (ELEMENTS * (IN) * ELEMENT_ROW(OUTPUTS))
#define DEFINE_PACK(NAME, IN, OUTPUTS, WEIGHT)                                                                 \
    static inline void NAME(const float *restrict weight, float *restrict packed)                              \
    {                                                                                                          \
        memset(packed, 0, sizeof(float) * PACKED(IN, OUTPUTS));                                                \
        for (int in = 0; in < (IN); in++)                                                                      \
            for (int out = 0; out < (OUTPUTS); out++) {                                                        \
                float lines[3][4];                                                                             \
                for (int row = 0; row < 3; row++)                                                              \
                    for (int e = 0; e < 4; e++)                                                                \
                        lines[row][e] = weight_element(e, WEIGHT(row, 0), WEIGHT(row, 1), WEIGHT(row, 2));     \
                for (int e = 0; e < ELEMENTS; e++)                                                             \
                    packed[(e * (IN) + in) * ELEMENT_ROW(OUTPUTS) + out]                                       \
                        = weight_element(e / 4, lines[0][e % 4], lines[1][e % 4], lines[2][e % 4]);            \
            }                                                                                                  \
    }
#define FORWARD_WEIGHT(row, column) weight[((out * 3 + row) * 3 + column) * CI + in]
#define BACKWARD_WEIGHT(row, column) weight[(in * TAPS + TAPS - 1 - row * 3 - column) * CI + out]
DEFINE_PACK(pack_forward, CI, CO, FORWARD_WEIGHT)
DEFINE_PACK(pack_backward, CO, CI, BACKWARD_WEIGHT)

/* What `squares` neighbours read of `channels`, in four rows of the input or the frame from `x` on, as elements × squares
 * × INPUT_ROW(channels). */
static INLINE void transform_inputs(const float *restrict x, float *restrict to, const int squares, const int channels)
{
    for (int square = 0; square < squares; square++)
        EACH_VECTOR_OF(c, channels) {
            const float *from = x + 2 * square * channels + c;
            UNROLLED(column, 4) {
                vector line[4];
                UNROLLED(row, 4) {
                    const float *d = from + row * SIDE * channels;
                    line[row] = input_element(column, channels_at(d, channels), channels_at(d + channels, channels),
                                              channels_at(d + 2 * channels, channels),
                                              channels_at(d + 3 * channels, channels));
                }
                UNROLLED(row, 4)
                    VECTOR_AT(to + ((4 * row + column) * squares + square) * INPUT_ROW(channels) + c)
                        = input_element(row, line[0], line[1], line[2], line[3]);
            }
        }
}

/* From sums, elements × squares × `row`, to two rows of results, `next` apart: as many columns as are left, and the second row
 * where there is one. */
static INLINE void transform_to_outputs(const float *restrict sums, float *restrict y, const int squares,
                                        const int channels, const int row, int next, int columns, int second_row)
{
    for (int square = 0; square < squares; square++)
        EACH_VECTOR_OF(c, channels) {
            const float *from = sums + square * row + c;
            UNROLLED(column, 2) {
                vector line[4];
                UNROLLED(r, 4) {
                    const float *m = from + 4 * r * squares * row;
                    line[r] = output_of(column, LOADED(m), LOADED(m + squares * row), LOADED(m + 2 * squares * row),
                                        LOADED(m + 3 * squares * row));
                }
                float *to = y + (2 * square + column) * channels + c;
                if (2 * square + column < columns) {
                    put_channels(output_of(0, line[0], line[1], line[2], line[3]), to, channels);
                    if (second_row)
                        put_channels(output_of(1, line[0], line[1], line[2], line[3]), to + next, channels);
                }
            }
        }
}

/* For every element WIDE × SEVERAL vectors of sums over so many steps, `y` = or, with ADD, += `x` × `w`; and how far apart
 * all of these are, in numbers. */
#define DEFINE_PRODUCTS(NAME, WIDE, SEVERAL, STEPS, X_APART, X_STEP, X_NEXT, W_STEP, W_NEXT, Y_APART, Y_NEXT, ADD) \
    ALONE void NAME(const float *restrict x, const float *restrict w, float *restrict y)                       \
    {                                                                                                          \
        enum { APART = X_APART };                                                                              \
        for (int e = 0; e < ELEMENTS; e++, x += X_NEXT, w += W_NEXT, y += Y_NEXT) {                            \
            vector sum[WIDE][SEVERAL];                                                                         \
            UNROLLED(u, WIDE)                                                                                  \
                UNROLLED(v, SEVERAL) sum[u][v] = ADD ? LOADED(y + u * (Y_APART) + v * LANES) : (vector){0};    \
            for (int step = 0; step < (STEPS); step++) {                                                       \
                const float *values = x + step * (X_STEP);                                                     \
                ADD_TILE(sum, WIDE, SEVERAL, w + step * (W_STEP), NEIGHBOUR, ALWAYS)                           \
            }                                                                                                  \
            UNROLLED(u, WIDE) UNROLLED(v, SEVERAL) VECTOR_AT(y + u * (Y_APART) + v * LANES) = sum[u][v];       \
        }                                                                                                      \
    }
#define NEIGHBOUR(u) (values + (u) * APART)
#define ALWAYS(u) 1

/* As few tiles as possible of so many sums side by side, the first ones wider than the others by one. */
#define MOST_BESIDE(channels) MOST(GROUP(VECTORS(channels)))
#define TILES_OF(count, channels) (((count) + MOST_BESIDE(channels) - 1) / MOST_BESIDE(channels))
#define WIDE_OF(count, channels) (((count) + TILES_OF(count, channels) - 1) / TILES_OF(count, channels))
#define NARROW_OF(count, channels) AT_LEAST_1(WIDE_OF(count, channels) - 1)
#define WIDE_TILES(count, channels) ((count)-TILES_OF(count, channels) * (WIDE_OF(count, channels) - 1))

/* Neighbouring squares, from four rows at `x` to two at `y`. */
#define DEFINE_SQUARES(NAME, IN, OUTPUTS, WIDE)                                                                \
    DEFINE_PRODUCTS(NAME##_products, WIDE, GROUP(VECTORS(OUTPUTS)), IN, INPUT_ROW(IN), 1, (WIDE)*INPUT_ROW(IN), ELEMENT_ROW(OUTPUTS), \
                  (IN)*ELEMENT_ROW(OUTPUTS), ELEMENT_ROW(OUTPUTS), (WIDE)*ELEMENT_ROW(OUTPUTS), 0)             \
    static inline void NAME(const float *restrict x, const float *restrict w, float *restrict y, int next,     \
                            int columns, int second_row)                                                       \
    {                                                                                                          \
        float inputs[ELEMENTS * (WIDE)*INPUT_ROW(IN)] LINES, sums[ELEMENTS * (WIDE)*ELEMENT_ROW(OUTPUTS)] LINES; \
        transform_inputs(x, inputs, WIDE, IN);                                                                 \
        for (int out = 0; out < (OUTPUTS); out += GROUP(VECTORS(OUTPUTS)) * LANES)                             \
            NAME##_products(inputs, w + out, sums + out);                                                      \
        transform_to_outputs(sums, y, WIDE, OUTPUTS, ELEMENT_ROW(OUTPUTS), next, columns, second_row);         \
    }
#define DEFINE_ROWS(NAME, IN, OUTPUTS, RESULTS)                                                                \
    DEFINE_SQUARES(NAME##_wide, IN, OUTPUTS, WIDE_OF(SQUARES(RESULTS), OUTPUTS))                               \
    DEFINE_SQUARES(NAME##_narrow, IN, OUTPUTS, NARROW_OF(SQUARES(RESULTS), OUTPUTS))                           \
    static inline void NAME(const float *restrict x, const float *restrict w, float *restrict y, int second_row) \
    {                                                                                                          \
        for (int tile = 0, at = 0; tile < TILES_OF(SQUARES(RESULTS), OUTPUTS); tile++) {                       \
            const int wide = tile < WIDE_TILES(SQUARES(RESULTS), OUTPUTS);                                     \
            (wide ? NAME##_wide : NAME##_narrow)(x + 2 * at * (IN), w, y + 2 * at * (OUTPUTS),                 \
                                                 (RESULTS) * (OUTPUTS), (RESULTS)-2 * at, second_row);         \
            at += wide ? WIDE_OF(SQUARES(RESULTS), OUTPUTS) : NARROW_OF(SQUARES(RESULTS), OUTPUTS);            \
        }                                                                                                      \
    }
DEFINE_ROWS(forward_rows, CI, CO, OUT)
DEFINE_ROWS(backward_rows, CO, CI, IMAGE_SIDE)

/* ROWS rows of the convolution of image `x`, from `row` on. */
static inline void convolve(const float *restrict x, const float *restrict packed, int row, float *restrict result)
{
    forward_rows(x + row * SIDE * CI, packed, result, row + 1 < OUT);
}

/* The gradient of an image from that of the convolution's output in its frame; nobody asks for that of the padding. */
static inline void input_gradient(const float *restrict frame, const float *restrict packed, float *restrict grad_input)
{
    for (int row = 0; row < IMAGE_SIDE; row += ROWS)
        backward_rows(frame + ((row + PADDING) * SIDE + PADDING) * CO, packed, grad_input + row * IMAGE_SIDE * CI,
                      row + 1 < IMAGE_SIDE);
}

/* Two rows of gradients in squares of 2×2, as elements × squares × ELEMENT_ROW(CO). */
static inline void transform_gradients(const float *restrict from, float *restrict to)
{
    enum { ROW = ELEMENT_ROW(CO) };
    for (int square = 0; square < SQUARES(OUT); square++)
        EACH_VECTOR_OF(c, CO) {
            const float *a = from + 2 * square * CO + c, *b = a + SIDE * CO;
            UNROLLED(column, 4) {
                vector above = gradient_element(column, channels_at(a, CO), channels_at(a + CO, CO));
                vector below = gradient_element(column, channels_at(b, CO), channels_at(b + CO, CO));
                UNROLLED(row, 4)
                    VECTOR_AT(to + ((4 * row + column) * SQUARES(OUT) + square) * ROW + c) = gradient_element(row, above, below);
            }
        }
}

/* The gradient of the weights, elements × CI × ELEMENT_ROW(CO), and in their front at last taps × CI × ELEMENT_ROW(CO). */
enum { WEIGHTS = ELEMENTS * CI * ELEMENT_ROW(CO) };
#define WEIGHT_INDEX(tap, in, out) (((tap)*CI + (in)) * ELEMENT_ROW(CO) + (out))
#define DEFINE_GRADIENT(NAME, WIDE)                                                                            \
    DEFINE_PRODUCTS(NAME, WIDE, GROUP(VECTORS(CO)), SQUARES(OUT), 1, INPUT_ROW(CI), SQUARES(OUT) * INPUT_ROW(CI), ELEMENT_ROW(CO), \
                  SQUARES(OUT) * ELEMENT_ROW(CO), ELEMENT_ROW(CO), CI *ELEMENT_ROW(CO), 1)
DEFINE_GRADIENT(wide_gradient, WIDE_OF(CI, CO))
DEFINE_GRADIENT(narrow_gradient, NARROW_OF(CI, CO))

/* Add to that gradient what an image brings. */
static inline void weight_gradient(const float *restrict x, const float *restrict frame, float *restrict grad_weight)
{
    float inputs[ELEMENTS * SQUARES(OUT) * INPUT_ROW(CI)] LINES, gradients[ELEMENTS * SQUARES(OUT) * ELEMENT_ROW(CO)] LINES;
    if (ELEMENT_ROW(CO) > CO)
        memset(gradients, 0, sizeof gradients);
    for (int row = 0; row < OUT; row += ROWS) {
        transform_inputs(x + row * SIDE * CI, inputs, SQUARES(OUT), CI);
        transform_gradients(frame + (FRAME_START + row * SIDE) * CO, gradients);
        for (int out = 0; out < CO; out += GROUP(VECTORS(CO)) * LANES)
            for (int tile = 0, in = 0; tile < TILES_OF(CI, CO); tile++) {
                const int wide = tile < WIDE_TILES(CI, CO);
                (wide ? wide_gradient : narrow_gradient)(inputs + in, gradients + out,
                                                         grad_weight + in * ELEMENT_ROW(CO) + out);
                in += wide ? WIDE_OF(CI, CO) : NARROW_OF(CI, CO);
            }
    }
}

/* From elements to the nine taps. */
static inline void transform_to_weights(float *weights)
{
    for (int in = 0; in < CI; in++)
        for (int out = 0; out < CO; out++) {
            float lines[4][3];
            for (int row = 0; row < 4; row++) {
                const float *u = weights + WEIGHT_INDEX(4 * row, in, out);
                for (int column = 0; column < 3; column++)
                    lines[row][column] = weight_of(column, u[0], u[WEIGHT_INDEX(1, 0, 0)], u[WEIGHT_INDEX(2, 0, 0)],
                                                   u[WEIGHT_INDEX(3, 0, 0)]);
            }
            for (int tap = 0; tap < 9; tap++)
                weights[WEIGHT_INDEX(tap, in, out)] = weight_of(tap / 3, lines[0][tap % 3], lines[1][tap % 3],
                                                                lines[2][tap % 3], lines[3][tap % 3]);
        }
}

static inline void begin_products(const int forward) { (void)forward; }
static inline void end_products(void) {}
