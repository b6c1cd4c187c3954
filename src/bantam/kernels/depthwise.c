/* A depthwise convolution that is no part of a block, forward and backward.
 *
 * `compiler.py` compiles this file for every shape, with the sizes as constants: SIDE, side of the input with its padding;
 * PADDING, how many pixels at each end of that side are zeros which the images in memory do not have; CHANNELS; KERNEL,
 * side of the kernel; STRIDE, by how many pixels it moves; BIAS, 1 for a convolution that has one; BFLOAT16, 1 for
 * images in bfloat16. Images are N×H×W×C numbers.
 */
#include "numbers.h"
#include "arguments.h"
#include "shape.h"
#define CO CHANNELS
#include "channels.h"
#include "depthwise.h"
#define IMAGE (IMAGE_SIDE * IMAGE_SIDE * CO)
#define PADDED (SIDE * SIDE * CO)

/* An image takes so much room as floats with its padding. */
enum { CONVERTED = PADDING || BFLOAT16 ? PADDED : 1 };

/* An image as floats, with its padding. */
static inline const float *padded(const element *image, float *buffer)
{
    enum { ROW = IMAGE_SIDE * CO };
    if (!PADDING)
        return floats_of(image, IMAGE, buffer);
    memset(buffer, 0, sizeof(float) * PADDED);
    for (int row = 0; row < IMAGE_SIDE; row++)
        for (int u = 0; u < ROW; u++)
            buffer[((row + PADDING) * SIDE + PADDING) * CO + u] = as_float(image[row * ROW + u]);
    return buffer;
}

void forward(const struct depthwise_arguments *a)
{
    const int images = a->images;
    const element *restrict input = a->input;
    const float *restrict bias = a->bias;
    element *restrict output = a->output;
    float *packed = malloc(sizeof(float) * TAPS * CO);
    pack_taps(a->weight, packed);
#pragma omp parallel for num_threads(a->threads) schedule(static)
    for (int i = 0; i < images; i++) {
        float converted[CONVERTED];
        const float *image = padded(input + (int64_t)i * IMAGE, converted);
        for (int row = 0; row < OUT; row++) {
            element *to = output + ((int64_t)i * OUT + row) * OUT * CO;
            float buffer[OUT * CO], *values = row_buffer(to, buffer);
            convolve_row(image, packed, BIAS ? bias : NULL, row, values);
            store_row(values, to, OUT * CO);
        }
    }
    free(packed);
}

/* The gradient behind an image in a frame of zeros; its sums are the gradient of the bias. */
static inline void frame_gradient(const element *restrict gradients, float *restrict frame, float *restrict bias)
{
    memset(frame, 0, sizeof(float) * (FRAME_START + SIDE * SIDE) * CO);
    for (int row = 0; row < OUT; row++)
        for (int u = 0; u < OUT; u++)
            for (int c = 0; c < CO; c++) {
                const float gradient = as_float(gradients[(row * OUT + u) * CO + c]);
                frame[(FRAME_START + UNDER(row, u)) * CO + c] = gradient;
                if (BIAS)
                    bias[c] += gradient;
            }
}

void backward(const struct depthwise_arguments *a)
{
    enum { WEIGHTS = (TAPS + BIAS) * CO };
    const int images = a->images, threads = a->threads, share = (images + threads - 1) / threads;
    const element *restrict input = a->input, *restrict grad_output = a->grad_output;
    element *restrict grad_input = a->grad_input;
    float *thread_weights = calloc((size_t)threads * WEIGHTS, sizeof(float)), *packed = malloc(sizeof(float) * TAPS * CO);
    pack_taps(a->weight, packed);
#pragma omp parallel for num_threads(threads) schedule(static, share)
    for (int i = 0; i < images; i++) {
        float weights[WEIGHTS] = {0}, converted[CONVERTED], frame[(FRAME_START + SIDE * SIDE) * CO];
        const float *image = padded(input + (int64_t)i * IMAGE, converted);
        frame_gradient(grad_output + (int64_t)i * OUT * OUT * CO, frame, weights + TAPS * CO);
        taps_gradient(image, frame, weights);
        float *sums = thread_weights + (size_t)(i / share) * WEIGHTS;
        for (int k = 0; k < WEIGHTS; k++)
            sums[k] += weights[k];
        if (grad_input)
            image_gradient(frame, packed, grad_input + (int64_t)i * IMAGE);
    }
    for (int t = 1; t < threads; t++)
        for (int k = 0; k < WEIGHTS; k++)
            thread_weights[k] += thread_weights[(size_t)t * WEIGHTS + k];
    for (int tap = 0; tap < TAPS; tap++)
        for (int c = 0; c < CO; c++)
            a->grad_weight[c * TAPS + tap] = thread_weights[tap * CO + c];
    for (int c = 0; c < BIAS * CO; c++)
        a->grad_bias[c] = thread_weights[TAPS * CO + c];
    free(thread_weights);
    free(packed);
}
