/* The three products of a depthwise convolution, which computes every channel by itself, in floats: a vector of channels
 * after another, with its sums in registers. See `block.c` and `depthwise.c`, which say what the sizes are. */
/* Of the input, the pixel under the kernel's first tap. */
#define UNDER(row, column) (((row) * SIDE + (column)) * STRIDE)
/* From there to the one under a tap. */
#define TAP_OFFSET(tap) ((tap) / KERNEL * SIDE + (tap) % KERNEL)
/* Pixels of one phase, the first of which is this one, are a stride apart and get their gradient from the same taps. */
#define PHASE(phase) (((phase) - PADDING % STRIDE + STRIDE) % STRIDE)

/* Of several pixels in one turn of a loop not all would stay in registers: gcc takes them together to load what they
 * have in common once, unless it does not know where the next one is. */
#define ONE_BY_ONE _Pragma("GCC unroll 1")
#define SOMEWHERE(pointer) __asm__("" : "+r"(pointer))

/* The gradients of so many rows of the kernel are summed together, as many as there are registers for. */
enum { TOGETHER = KERNEL > 11 ? 1 : 12 / KERNEL < KERNEL ? 12 / KERNEL : KERNEL, SUMS = TOGETHER * KERNEL };

/* Weights are taps × CO. */
static inline void pack_taps(const float *restrict weight, float *restrict packed)
{
    for (int tap = 0; tap < TAPS; tap++)
        for (int c = 0; c < CO; c++)
            packed[tap * CO + c] = weight[c * TAPS + tap];
}

/* A row of the convolution of an image, to which a bias is added where one is given. */
ALONE void convolve_row(const float *restrict image, const float *restrict packed, const float *restrict bias, int row,
                        float *restrict result)
{
    for (int v = 0; v < CHANNEL_VECTORS; v++) {
        const float *from = image + UNDER(row, 0) * CO + FIRST(v);
        channels weight[TAPS], start = {0};
        UNROLLED(tap, TAPS) weight[tap] = given_channels(packed + tap * CO + FIRST(v));
        if (bias)
            start = given_channels(bias + FIRST(v));
        float *to = result + FIRST(v);
        ONE_BY_ONE for (int u = 0; u < OUT; u++, to += CO, from += STRIDE * CO) {
            SOMEWHERE(from);
            channels sum = start;
            UNROLLED(tap, TAPS) sum += given_channels(from + TAP_OFFSET(tap) * CO) * weight[tap];
            set_channels(sum, to);
        }
    }
}

/* What an image brings to the gradient of the weights, taps × CO. */
ALONE void taps_gradient(const float *restrict image, const float *restrict frame, float *restrict to)
{
    for (int v = 0; v < CHANNEL_VECTORS; v++)
        UNROLLED(part, (KERNEL + TOGETHER - 1) / TOGETHER) {
            const int first = part * SUMS;
            channels sum[SUMS];
            UNROLLED(u, SUMS) sum[u] = (channels){0};
            for (int row = 0; row < OUT; row++) {
                const float *from = image + UNDER(row, 0) * CO + FIRST(v);
                const float *behind = frame + (FRAME_START + UNDER(row, 0)) * CO + FIRST(v);
                ONE_BY_ONE for (int column = 0; column < OUT; column++, from += STRIDE * CO, behind += STRIDE * CO) {
                    SOMEWHERE(from);
                    const channels gradient = given_channels(behind);
                    UNROLLED(u, SUMS)
                        if (first + u < TAPS)
                            sum[u] += gradient * given_channels(from + TAP_OFFSET(first + u) * CO);
                }
            }
            UNROLLED(u, SUMS) if (first + u < TAPS) set_channels(sum[u], to + (first + u) * CO + FIRST(v));
        }
}

/* Row `row` of the gradient of an image with padding, of which the padding's is left out. */
static INLINE void gradient_of_row(const float *restrict frame, const float *restrict packed, int row,
                                   const int row_phase, float *restrict to)
{
    for (int v = 0; v < CHANNEL_VECTORS; v++) {
        channels weight[TAPS];
        UNROLLED(tap, TAPS) weight[tap] = given_channels(packed + tap * CO + FIRST(v));
        UNROLLED(phase, STRIDE) {
            const float *from = frame + (FRAME_START + row * SIDE + PHASE(phase) + PADDING) * CO + FIRST(v);
            ONE_BY_ONE for (int u = PHASE(phase); u < IMAGE_SIDE; u += STRIDE, from += STRIDE * CO) {
                SOMEWHERE(from);
                channels sum = {0};
                UNROLLED(back, TAPS) { /* from the last tap on: in the order of the gradients in memory */
                    const int tap = TAPS - 1 - back, down = tap / KERNEL - row_phase, across = tap % KERNEL - phase;
                    if (down >= 0 && down % STRIDE == 0 && across >= 0 && across % STRIDE == 0)
                        sum += given_channels(from - TAP_OFFSET(tap) * CO) * weight[tap];
                }
                set_channels(sum, to + u * CO + FIRST(v));
            }
        }
    }
}

/* The gradient of an image from that of the convolution's output in its frame of zeros. */
ALONE void image_gradient(const float *restrict frame, const float *restrict packed, element *grad_input)
{
    UNROLLED(phase, STRIDE)
        for (int row = PHASE(phase); row < IMAGE_SIDE; row += STRIDE) {
            element *to = grad_input + row * IMAGE_SIDE * CO;
            float buffer[IMAGE_SIDE * CO], *values = row_buffer(to, buffer);
            gradient_of_row(frame, packed, row + PADDING, phase, values);
            store_row(values, to, IMAGE_SIDE * CO);
        }
}
