/* A valid depthwise convolution, which computes every channel by itself, forward and backward.
 *
 * `compiler.py` compiles this file for every shape, with the sizes as constants: SIDE, side of the input; CHANNELS;
 * KERNEL, side of the kernel; BFLOAT16, 1 for images in bfloat16. Images are N×H×W×C numbers, weights
 * KERNEL×KERNEL×C floats.
 */
#include "numbers.h"
#include "arguments.h"
#define OUT (SIDE - KERNEL + 1)
#define TAPS (KERNEL * KERNEL)
#define IMAGE (SIDE * SIDE * CHANNELS)
#define EACH_CHANNEL(c) _Pragma("omp simd") for (int c = 0; c < CHANNELS; c++)
/* From the first pixel under the kernel to the one under `tap`. */
#define TAP_OFFSET(tap) ((((tap) / KERNEL) * SIDE + (tap) % KERNEL) * CHANNELS)

/* An image converted to floats takes so much room. */
enum { CONVERTED = BFLOAT16 ? IMAGE : 1 };

void forward(const struct depthwise_arguments *a)
{
    const int images = a->images;
    const element *restrict input = a->input;
    const float *restrict weight = a->weight;
    element *restrict output = a->output;
#pragma omp parallel for num_threads(a->threads) schedule(static)
    for (int i = 0; i < images; i++) {
        float converted[CONVERTED];
        const float *image = floats_of(input + (int64_t)i * IMAGE, IMAGE, converted);
        for (int row = 0; row < OUT; row++) {
            element *to = output + ((int64_t)i * OUT + row) * OUT * CHANNELS;
            float buffer[OUT * CHANNELS], *values = row_buffer(to, buffer);
            for (int u = 0; u < OUT; u++) {
                const float *from = image + (row * SIDE + u) * CHANNELS;
                float sum[CHANNELS] = {0};
                _Pragma("GCC unroll 9") for (int tap = 0; tap < TAPS; tap++)
                    EACH_CHANNEL(c) sum[c] += from[TAP_OFFSET(tap) + c] * weight[tap * CHANNELS + c];
                memcpy(values + u * CHANNELS, sum, sizeof sum);
            }
            store_row(values, to, OUT * CHANNELS);
        }
    }
}

void backward(const struct depthwise_arguments *a)
{
    const int images = a->images, threads = a->threads, share = (images + threads - 1) / threads;
    const element *restrict input = a->input, *restrict grad_output = a->grad_output;
    const float *restrict weight = a->weight;
    element *restrict grad_input = a->grad_input;
    float *restrict grad_weight = a->grad_weight;
    float *thread_weights = calloc((size_t)threads * TAPS * CHANNELS, sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static, share)
    for (int i = 0; i < images; i++) {
        float weights[TAPS * CHANNELS] = {0}, gradient[IMAGE], converted[CONVERTED], converted_gradients[CONVERTED];
        const float *image = floats_of(input + (int64_t)i * IMAGE, IMAGE, converted);
        const element *behind = grad_output + (int64_t)i * OUT * OUT * CHANNELS;
        const float *gradients = floats_of(behind, OUT * OUT * CHANNELS, converted_gradients);
        if (grad_input)
            memset(gradient, 0, sizeof gradient);
        for (int row = 0; row < OUT; row++)
            for (int u = 0; u < OUT; u++) {
                const float *g = gradients + (row * OUT + u) * CHANNELS;
                const float *from = image + (row * SIDE + u) * CHANNELS;
                float *to = gradient + (row * SIDE + u) * CHANNELS;
                _Pragma("GCC unroll 9") for (int tap = 0; tap < TAPS; tap++)
                    EACH_CHANNEL(c) weights[tap * CHANNELS + c] += g[c] * from[TAP_OFFSET(tap) + c];
                if (grad_input)
                    _Pragma("GCC unroll 9") for (int tap = 0; tap < TAPS; tap++)
                        EACH_CHANNEL(c) to[TAP_OFFSET(tap) + c] += g[c] * weight[tap * CHANNELS + c];
            }
        float *sums = thread_weights + (size_t)(i / share) * TAPS * CHANNELS;
        for (int k = 0; k < TAPS * CHANNELS; k++)
            sums[k] += weights[k];
        if (grad_input && BFLOAT16)
            store_row(gradient, grad_input + (int64_t)i * IMAGE, IMAGE);
        else if (grad_input)
            memcpy(grad_input + (int64_t)i * IMAGE, gradient, sizeof gradient);
    }
    memset(grad_weight, 0, sizeof(float) * TAPS * CHANNELS);
    for (int t = 0; t < threads; t++)
        for (int k = 0; k < TAPS * CHANNELS; k++)
            grad_weight[k] += thread_weights[(size_t)t * TAPS * CHANNELS + k];
    free(thread_weights);
}
