/* The three products of a 3×3 convolution of floats with fewer multiplications: see `block.c` and `vectors.h`.
 *
 * A square of 2×2 outputs depends on 4×4 inputs. Both, and the 3×3 weights, are taken to 4×4 places, sums of a few of
 * their numbers each; there an output's channel is a sum over input channels of one product a place: 16 for a square, not
 * 4 × 9 (F(2×2, 3×3): Winograd 1980; Lavin and Gray 2016, https://arxiv.org/abs/1509.09308). The gradients likewise.
 */
enum { PLACES = 16, ROWS = 2 };
/* Squares in a row of results; of an odd number of results the last square has one column, or row, that nobody asks
 * for. What it reads behind the image is anything, behind the frame zeros. */
#define SQUARES(results) (((results) + 1) / 2)
/* At a place, channels are in whole groups of vectors: those beyond are zeros. */
#define PLACE_ROW(channels) (GROUPS(VECTORS(channels)) * GROUP(VECTORS(channels)) * LANES)
enum { RESULT_WIDTH = OUT, RESULT_CHANNELS = CO, RESULT = ROWS * OUT * CO };
enum { READ = (SIDE * SIDE + OUT % 2 * (SIDE + 1)) * CI, FRAME_END = IMAGE_SIDE % 2 * (SIDE + 1) * CO };

/* For vectors of channels, of which the last may overlap the one before, the first channel. */
#define EACH_VECTOR_OF(in, channels)                                                                           \
    for (int v = 0, in = 0; v < VECTORS(channels);                                                             \
         v++, in = v * LANES < (channels)-LANES ? v * LANES : (channels)-LANES)
#define AT(pointer) (*(vector *)(pointer))
#define GIVEN(pointer) (*(const vector *)(pointer))

/* A square's columns, then its rows, go to four places each: four inputs, two gradients of outputs and three weights; and two
 * outputs and three gradients of weights come from four places. */
static INLINE vector input_at(const int place, vector d0, vector d1, vector d2, vector d3)
{
    return place == 0 ? d0 - d2 : place == 1 ? d1 + d2 : place == 2 ? d2 - d1 : d3 - d1;
}
static INLINE vector output_of(const int number, vector m0, vector m1, vector m2, vector m3)
{
    return number ? m1 - m2 + m3 : m0 + m1 + m2;
}
static INLINE vector gradient_to(const int place, vector a, vector b)
{
    if (place == 0 || place == 3)
        return place ? b : a;
    return place == 1 ? a + b : a - b;
}
static INLINE float weight_at(const int place, float g0, float g1, float g2)
{
    return place == 0 ? g0 : place == 3 ? g2 : 0.5f * (place == 1 ? g0 + g1 + g2 : g0 - g1 + g2);
}
static INLINE float weight_of(const int number, float u0, float u1, float u2, float u3)
{
    const float half = 0.5f * (number == 1 ? u1 - u2 : u1 + u2);
    return number == 0 ? u0 + half : number == 1 ? half : half + u3;
}

/* Weights at places × IN × PLACE_ROW(OUTPUTS). */
#define PACKED(IN, OUTPUTS) (PLACES * (IN) * PLACE_ROW(OUTPUTS))
#define DEFINE_PACK(NAME, IN, OUTPUTS, WEIGHT)                                                                 \
    static inline void NAME(const float *restrict weight, float *restrict packed)                              \
    {                                                                                                          \
        memset(packed, 0, sizeof(float) * PACKED(IN, OUTPUTS));                                                \
        for (int in = 0; in < (IN); in++)                                                                      \
            for (int out = 0; out < (OUTPUTS); out++) {                                                        \
                float lines[3][4];                                                                             \
                for (int row = 0; row < 3; row++)                                                              \
                    for (int place = 0; place < 4; place++)                                                    \
                        lines[row][place] = weight_at(place, WEIGHT(row, 0), WEIGHT(row, 1), WEIGHT(row, 2));  \
                for (int place = 0; place < PLACES; place++)                                                   \
                    packed[(place * (IN) + in) * PLACE_ROW(OUTPUTS) + out]                                     \
                        = weight_at(place / 4, lines[0][place % 4], lines[1][place % 4], lines[2][place % 4]); \
            }                                                                                                  \
    }
#define FORWARD_WEIGHT(row, column) weight[((out * 3 + row) * 3 + column) * CI + in]
#define BACKWARD_WEIGHT(row, column) weight[(in * TAPS + TAPS - 1 - row * 3 - column) * CI + out]
DEFINE_PACK(pack_forward, CI, CO, FORWARD_WEIGHT)
DEFINE_PACK(pack_backward, CO, CI, BACKWARD_WEIGHT)

/* What `squares` neighbours read of `channels`, in four rows of the input or the frame from `x` on, at places × squares
 * × channels. */
static INLINE void take_to_places(const float *restrict x, float *restrict to, const int squares, const int channels)
{
    for (int square = 0; square < squares; square++)
        EACH_VECTOR_OF(c, channels) {
            const float *from = x + 2 * square * channels + c;
            UNROLLED(column, 4) {
                vector line[4];
                UNROLLED(row, 4) {
                    const float *d = from + row * SIDE * channels;
                    line[row] = input_at(column, GIVEN(d), GIVEN(d + channels), GIVEN(d + 2 * channels),
                                         GIVEN(d + 3 * channels));
                }
                UNROLLED(row, 4)
                    AT(to + ((4 * row + column) * squares + square) * channels + c)
                        = input_at(row, line[0], line[1], line[2], line[3]);
            }
        }
}

/* From sums at places × squares × `row` to two rows of results, `next` apart: as many columns as are left, and the second row
 * where there are two. */
static INLINE void take_from_places(const float *restrict sums, float *restrict y, const int squares,
                                    const int channels, const int row, int next, int columns, int two)
{
    for (int square = 0; square < squares; square++)
        EACH_VECTOR_OF(c, channels) {
            const float *from = sums + square * row + c;
            UNROLLED(column, 2) {
                vector line[4];
                UNROLLED(r, 4) {
                    const float *m = from + 4 * r * squares * row;
                    line[r] = output_of(column, GIVEN(m), GIVEN(m + squares * row), GIVEN(m + 2 * squares * row),
                                        GIVEN(m + 3 * squares * row));
                }
                float *to = y + (2 * square + column) * channels + c;
                if (2 * square + column < columns) {
                    AT(to) = output_of(0, line[0], line[1], line[2], line[3]);
                    if (two)
                        AT(to + next) = output_of(1, line[0], line[1], line[2], line[3]);
                }
            }
        }
}

/* At every place WIDE × SEVERAL vectors of sums over so many steps, `y` = or, with ADD, += `x` × `w`; how far apart all of these
 * are, in numbers. */
#define DEFINE_PLACES(NAME, WIDE, SEVERAL, STEPS, X_APART, X_STEP, X_PLACE, W_STEP, W_PLACE, Y_APART, Y_PLACE, ADD) \
    ALONE void NAME(const float *restrict x, const float *restrict w, float *restrict y)                       \
    {                                                                                                          \
        enum { APART = X_APART };                                                                              \
        for (int place = 0; place < PLACES; place++, x += X_PLACE, w += W_PLACE, y += Y_PLACE) {               \
            vector sum[WIDE][SEVERAL];                                                                         \
            UNROLLED(u, WIDE)                                                                                  \
                UNROLLED(v, SEVERAL) sum[u][v] = ADD ? GIVEN(y + u * (Y_APART) + v * LANES) : (vector){0};     \
            for (int step = 0; step < (STEPS); step++) {                                                       \
                const float *values = x + step * (X_STEP);                                                     \
                ADD_TILE(sum, WIDE, SEVERAL, w + step * (W_STEP), THAT_FAR, EVERY)                             \
            }                                                                                                  \
            UNROLLED(u, WIDE) UNROLLED(v, SEVERAL) AT(y + u * (Y_APART) + v * LANES) = sum[u][v];              \
        }                                                                                                      \
    }
#define THAT_FAR(u) (values + (u) * APART)
#define EVERY(u) 1

/* As few tiles as possible of so many sums side by side, the first ones wider than the others by one. */
#define MOST_OF(channels) MOST(GROUP(VECTORS(channels)))
#define TILES_OF(count, channels) (((count) + MOST_OF(channels) - 1) / MOST_OF(channels))
#define WIDE_OF(count, channels) (((count) + TILES_OF(count, channels) - 1) / TILES_OF(count, channels))
#define NARROW_OF(count, channels) AT_LEAST_1(WIDE_OF(count, channels) - 1)
#define WIDE_TILES(count, channels) ((count)-TILES_OF(count, channels) * (WIDE_OF(count, channels) - 1))

/* Neighbouring squares, from four rows at `x` to two at `y`. */
#define DEFINE_SQUARES(NAME, IN, OUTPUTS, WIDE)                                                                \
    DEFINE_PLACES(NAME##_places, WIDE, GROUP(VECTORS(OUTPUTS)), IN, IN, 1, (WIDE) * (IN), PLACE_ROW(OUTPUTS),  \
                  (IN)*PLACE_ROW(OUTPUTS), PLACE_ROW(OUTPUTS), (WIDE)*PLACE_ROW(OUTPUTS), 0)                   \
    static inline void NAME(const float *restrict x, const float *restrict w, float *restrict y, int next,     \
                            int columns, int two)                                                              \
    {                                                                                                          \
        float inputs[PLACES * (WIDE) * (IN)] LINES, sums[PLACES * (WIDE)*PLACE_ROW(OUTPUTS)] LINES;            \
        take_to_places(x, inputs, WIDE, IN);                                                                   \
        for (int out = 0; out < (OUTPUTS); out += GROUP(VECTORS(OUTPUTS)) * LANES)                             \
            NAME##_places(inputs, w + out, sums + out);                                                        \
        take_from_places(sums, y, WIDE, OUTPUTS, PLACE_ROW(OUTPUTS), next, columns, two);                      \
    }
#define DEFINE_ROWS(NAME, IN, OUTPUTS, RESULTS)                                                                \
    DEFINE_SQUARES(NAME##_wide, IN, OUTPUTS, WIDE_OF(SQUARES(RESULTS), OUTPUTS))                               \
    DEFINE_SQUARES(NAME##_narrow, IN, OUTPUTS, NARROW_OF(SQUARES(RESULTS), OUTPUTS))                           \
    static inline void NAME(const float *restrict x, const float *restrict w, float *restrict y, int two)      \
    {                                                                                                          \
        for (int tile = 0, at = 0; tile < TILES_OF(SQUARES(RESULTS), OUTPUTS); tile++) {                       \
            const int wide = tile < WIDE_TILES(SQUARES(RESULTS), OUTPUTS);                                     \
            (wide ? NAME##_wide : NAME##_narrow)(x + 2 * at * (IN), w, y + 2 * at * (OUTPUTS),                 \
                                                 (RESULTS) * (OUTPUTS), (RESULTS)-2 * at, two);                \
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

/* Two rows of gradients in squares of 2×2, at places × squares × PLACE_ROW(CO). */
static inline void gradients_to_places(const float *restrict from, float *restrict to)
{
    enum { ROW = PLACE_ROW(CO) };
    for (int square = 0; square < SQUARES(OUT); square++)
        EACH_VECTOR_OF(c, CO) {
            const float *a = from + 2 * square * CO + c, *b = a + SIDE * CO;
            UNROLLED(column, 4) {
                vector above = gradient_to(column, GIVEN(a), GIVEN(a + CO));
                vector below = gradient_to(column, GIVEN(b), GIVEN(b + CO));
                UNROLLED(row, 4)
                    AT(to + ((4 * row + column) * SQUARES(OUT) + square) * ROW + c) = gradient_to(row, above, below);
            }
        }
}

/* The gradient of the weights at places × CI × PLACE_ROW(CO), and in their front at last as taps × CI × PLACE_ROW(CO). */
enum { WEIGHTS = PLACES * CI * PLACE_ROW(CO) };
#define WEIGHT_INDEX(tap, in, out) (((tap)*CI + (in)) * PLACE_ROW(CO) + (out))
#define DEFINE_GRADIENT(NAME, WIDE)                                                                            \
    DEFINE_PLACES(NAME, WIDE, GROUP(VECTORS(CO)), SQUARES(OUT), 1, CI, SQUARES(OUT) * CI, PLACE_ROW(CO),       \
                  SQUARES(OUT) * PLACE_ROW(CO), PLACE_ROW(CO), CI *PLACE_ROW(CO), 1)
DEFINE_GRADIENT(wide_gradient, WIDE_OF(CI, CO))
DEFINE_GRADIENT(narrow_gradient, NARROW_OF(CI, CO))

/* Add to that gradient what an image brings. */
static inline void weight_gradient(const float *restrict x, const float *restrict frame, float *restrict grad_weight)
{
    float inputs[PLACES * SQUARES(OUT) * CI] LINES, gradients[PLACES * SQUARES(OUT) * PLACE_ROW(CO)] LINES;
    if (PLACE_ROW(CO) > CO)
        memset(gradients, 0, sizeof gradients);
    for (int row = 0; row < OUT; row += ROWS) {
        take_to_places(x + row * SIDE * CI, inputs, SQUARES(OUT), CI);
        gradients_to_places(frame + (FRAME_START + row * SIDE) * CO, gradients);
        for (int out = 0; out < CO; out += GROUP(VECTORS(CO)) * LANES)
            for (int tile = 0, in = 0; tile < TILES_OF(CI, CO); tile++) {
                const int wide = tile < WIDE_TILES(CI, CO);
                (wide ? wide_gradient : narrow_gradient)(inputs + in, gradients + out,
                                                         grad_weight + in * PLACE_ROW(CO) + out);
                in += wide ? WIDE_OF(CI, CO) : NARROW_OF(CI, CO);
            }
    }
}

/* From places to the nine taps. */
static inline void weights_from_places(float *weights)
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
