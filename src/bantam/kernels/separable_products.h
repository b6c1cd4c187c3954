/* The three products of a block's 1×1 convolution by vectors, of floats or of bfloat16: see `separable.c`. */
enum { READ_ROOM = FEW_ROWS * OUT * CI + LANES };
/* Numbers of results from one pixel to the next. */
enum { RESULT_ROW = CO, RESULT_ROOM = FEW_ROWS * OUT * CO + LANES };
/* Numbers of the gradient from one pixel to the next, zeros behind its channels. */
enum { GRADIENT_ROW = IN_STEPS(CO), GRADIENT_ROOM = FEW_ROWS * OUT * GRADIENT_ROW + LANES };
/* The gradient of the weights: inputs × outputs. */
enum { WEIGHTS_ROW = PADDED(CO), WEIGHTS = CI * WEIGHTS_ROW };

static inline void begin_forward_tiles(void) {}
static inline void begin_backward_tiles(void) {}
static inline void end_products(void) {}

/* Weights for a product, see PACKED_INDEX. Weight `number` to `output` is at number × by_number + output × by_output. */
#define PACKED_ROOM(numbers, outputs) (STEPS(numbers) * PADDED(outputs) * NUMBERS)
static INLINE void pack_weights(const float *weight, int by_number, int by_output, number *to, const int numbers,
                                const int outputs)
{
    memset(to, 0, sizeof(number) * PACKED_ROOM(numbers, outputs));
    for (int k = 0; k < numbers; k++)
        for (int c = 0; c < outputs; c++)
            to[PACKED_INDEX(k, c, outputs)] = as_number(weight[k * by_number + c * by_output]);
}
static inline void pack_forward(const float *weight, number *to) { pack_weights(weight, 1, CI, to, CI, CO); }
static inline void pack_backward(const float *weight, number *to) { pack_weights(weight, CI, 1, to, CO, CI); }

/* y = x × packed, of so many pixels. */
ALONE void forward_product(const number *restrict x, const number *restrict packed, float *restrict y, int pixels)
{
    product(x, packed, y, pixels, FEW_ROWS * OUT, CI, CO);
}

ALONE void input_product(const number *restrict x, const number *restrict packed, float *restrict y, int pixels)
{
    product(x, packed, y, pixels, FEW_ROWS * OUT, CO, CI);
}

/* So many rows of `gradient` × packed, each to its row in the frame. */
static INLINE void backward_product(const number *restrict gradient, const number *restrict packed,
                                    float *restrict frame, int rows)
{
    if (OUT % 8 == 0) { /* whole tiles: rows go where they belong */
        for (int r = 0; r < rows; r++)
            input_product(gradient + r * OUT * GRADIENT_ROW, packed, frame + r * SIDE * CI, OUT);
        return;
    }
    float values[FEW_ROWS * OUT * CI + LANES];
    input_product(gradient, packed, values, rows * OUT);
    for (int r = 0; r < rows; r++)
        memcpy(frame + r * SIDE * CI, values + r * OUT * CI, sizeof(float) * OUT * CI);
}

/* Of so many pixels: add to the gradient of the convolution's weights. */
#if BFLOAT16
/* Rows of as many pixels in steps: of an odd number the last one with zeros. */
ALONE void pair_rows(const number *restrict from, number *restrict to, int pixels, const int channels)
{
    static const number zeros[PADDED(CI > CO ? CI : CO)];
    for (int u = 0; u < pixels; u += 2, from += 2 * IN_STEPS(channels), to += 2 * channels)
        for (int c = 0; c < channels; c += LANES) {
            const number *second = u + 1 < pixels ? from + IN_STEPS(channels) : zeros;
            *(bits *)(to + 2 * c) = load_bits(from + c) | load_bits(second + c) << 16;
        }
}
ALONE void weight_gradient(const number *restrict x, const number *restrict gradient, float *restrict sums,
                           int pixels)
{
    number x_pairs[(FEW_ROWS * OUT + 1) * CI + 2 * LANES], pairs_of_gradient[(FEW_ROWS * OUT + 1) * CO + 2 * LANES];
    pair_rows(x, x_pairs, pixels, CI);
    pair_rows(gradient, pairs_of_gradient, pixels, CO);
    product_gradient(x_pairs, pairs_of_gradient, sums, STEPS(pixels), CI, CO);
}
#else
ALONE void weight_gradient(const number *restrict x, const number *restrict gradient, float *restrict sums,
                           int pixels)
{
    product_gradient(x, gradient, sums, pixels, CI, CO);
}
#endif
