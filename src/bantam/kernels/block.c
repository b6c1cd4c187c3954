/* One block of a network, forward and backward, in as few passes over memory as its sums allow: convolution → batch
 * norm and ReLU in either order → dropout → pooling. Images are N×H×W×C numbers, floats or bfloat16; all that is not
 * the convolution's products is computed in floats.
 *
 * `compiler.py` compiles this file for every shape, with the sizes as constants, so that the compiler keeps a whole tile
 * of results in registers: SIDE and CI, side and channels of the input; PADDING, how many pixels at each end of that side
 * are zeros which the images in memory do not have: the convolution is valid on a copy that has them; CO, channels of the
 * output; KERNEL, side of the kernel; STRIDE, by how many pixels it moves, 1 in bfloat16; DEPTHWISE, 1 for a convolution of
 * each of CO channels by itself, which is in floats; BIAS, 1 for one that has a bias; RELU_FIRST, 1 for ReLU before batch
 * norm, 0 for after it; RELU, 0 for none; SUM, 1 where another map is added behind batch norm, in front of ReLU, which is
 * in floats and has neither dropout nor a pool behind it; POOL, side of the pooled squares, 1 for none; AVERAGE, 1 for their average, 0 for
 * their maximum; BFLOAT16, 1 for images in bfloat16, and MATRIX_UNIT, 1 for a processor that multiplies those in tiles.
 * What has a default below or in `shape.h`, most blocks do not have.
 *
 * What differs between the two kinds of number is in `numbers.h`; the convolution's products are in `convolution_products.h`,
 * those of 3×3 and many channels in `winograd_products.h` and, by the matrix unit, in `tiles.h`; the way back is in `backward.h`.
 */
#include "numbers.h"
#include "arguments.h"
#include "shape.h"
#ifndef DEPTHWISE
#define DEPTHWISE 0
#endif
#ifndef RELU
#define RELU 1
#endif
#define RELU_LAST (RELU && !RELU_FIRST)
#ifndef SUM
#define SUM 0
#endif
#ifndef AVERAGE
#define AVERAGE 0
#endif
#define MAX_POOL (POOL > 1 && !AVERAGE)
/* In front of batch norm a bias only shifts the mean, which is subtracted: it is left out there. */
#define ADD_BIAS (BIAS && RELU_FIRST)
/* Rows of weights, and of their gradients, are as long as some multiple of 16. */
#define PADDED(channels) (((channels) + 15) / 16 * 16)
#define POOLED (OUT / POOL)
#define SQUARE (POOL * POOL)
/* An output's channel is made of so many of the input. */
#define INPUTS (DEPTHWISE ? 1 : CI)
#include "channels.h"
#include "dropout.h"
#include "statistics.h"
#if BFLOAT16
#include "pairs.h"
#endif
/* Fewer channels than lanes would not fill a vector, or half of one of 16; and what is transformed is to be small beside the
 * stack of a thread. */
#define ENOUGH(channels) ((channels) >= LANES || (LANES == 16 && (channels) > 8))
#define WINOGRAD                                                                                               \
    (!BFLOAT16 && !DEPTHWISE && KERNEL == 3 && STRIDE == 1 && ENOUGH(CI) && ENOUGH(CO) && OUT >= 4             \
     && OUT * (CI + CO) <= 4096)
#if DEPTHWISE
#include "depthwise_products.h"
#elif MATRIX_UNIT
#include "tiles.h"
#elif WINOGRAD
#include "vectors.h"
#include "winograd_products.h"
#else
#include "vectors.h"
#include "convolution_products.h"
#endif

/* The input's image `i` with its padding, and with as many numbers as are read of it: beyond its own end any numbers
 * will do, those of the next image, or zeros in a copy. */
enum { COPY = READ > SIDE * SIDE * CI ? READ : PADDING ? SIDE * SIDE * CI : 1 };
static inline const element *readable_image(const element *input, int i, int images, element *copy)
{
    enum { ROW = IMAGE_SIDE * CI, BETWEEN = 2 * PADDING * CI, BEFORE = PADDING * (SIDE + 1) * CI };
    enum { END = BEFORE + IMAGE_SIDE * (ROW + BETWEEN) };
    const element *image = input + (int64_t)i * IMAGE_SIDE * ROW;
    if (COPY == 1 || (!PADDING && i + 1 < images && 2 * SIDE * SIDE * CI >= READ))
        return image;
    memset(copy, 0, sizeof(element) * BEFORE);
    for (int row = 0; row < IMAGE_SIDE; row++) {
        element *to = copy + BEFORE + row * (ROW + BETWEEN);
        memcpy(to, image + row * ROW, sizeof(element) * ROW);
        memset(to + ROW, 0, sizeof(element) * BETWEEN);
    }
    memset(copy + END, 0, sizeof(element) * (COPY - END));
    return copy;
}
/* The maximum of each square of POOL rows, and in `argmax` its place within the square: the first of equals, and
 * none, SQUARE, where it was dropped. */
static inline void max_pool(const float *restrict rows, float *restrict output, uint8_t *restrict argmax)
{
    for (int u = 0; u < POOLED; u++)
        EACH_VECTOR(v) {
            channels maximum = GIVEN_CHANNELS(rows + u * POOL * CO, v);
            numbers index = {0};
            for (int p = 1; p < SQUARE; p++) {
                channels value = GIVEN_CHANNELS(rows + (p / POOL * OUT + u * POOL + p % POOL) * CO, v);
                numbers greater = (value > maximum) | (value != value);
                maximum = WHERE(greater, value, maximum);
                index = (greater & p) | (~greater & index);
            }
            numbers dropped = (numbers)maximum == INT32_MIN; /* the bits of the negative zero */
            SET_CHANNELS(output + u * CO, v, maximum);
            store_numbers((dropped & SQUARE) | (~dropped & index), argmax + u * CO + FIRST(v));
        }
}

/* The average of each square of POOL rows. */
static inline void average_pool(const float *restrict rows, float *restrict output)
{
    for (int u = 0; u < POOLED; u++)
        EACH_VECTOR(v) {
            channels sum = GIVEN_CHANNELS(rows + u * POOL * CO, v);
            for (int p = 1; p < SQUARE; p++)
                sum += GIVEN_CHANNELS(rows + (p / POOL * OUT + u * POOL + p % POOL) * CO, v);
            SET_CHANNELS(output + u * CO, v, sum * (1.0f / SQUARE));
        }
}

/* A thread has so many images, one after another, and `i / SHARE` is its number. */
#define SHARE ((images + threads - 1) / threads)
#define IN_THREADS _Pragma("omp parallel num_threads(threads)")
#define EACH_IMAGE(i) _Pragma("omp for schedule(static, SHARE) nowait") for (int i = 0; i < images; i++)

#if !DEPTHWISE && !WINOGRAD
/* Put a weight where the convolutions read it: of `row` and `column` of the kernel, from channel `in` to `out` of so
 * many; forward as it is, backward turned by 180°, inputs and outputs exchanged. */
#define DEFINE_PACK(NAME, IN, OUTPUTS, WEIGHT)                                                                 \
    static inline void NAME(const float *restrict weight, element *restrict packed)                            \
    {                                                                                                          \
        memset(packed, 0, sizeof(element) * PACKED(IN, OUTPUTS));                                              \
        for (int row = 0; row < KERNEL; row++)                                                                 \
            for (int column = 0; column < KERNEL; column++)                                                    \
                for (int in = 0; in < (IN); in++)                                                              \
                    for (int out = 0; out < (OUTPUTS); out++)                                                  \
                        for (int copy = 0; copy < COPIES(IN); copy++)                                          \
                            packed[PACKED_INDEX(IN, OUTPUTS, row, column, in, out, copy)] = rounded(WEIGHT);   \
    }
DEFINE_PACK(pack_forward, CI, CO, weight[((out * KERNEL + row) * KERNEL + column) * CI + in])
DEFINE_PACK(pack_backward, CO, CI, weight[(in * TAPS + TAPS - 1 - row * KERNEL - column) * CI + out])
#endif

/* Convolve all images, and add the sums of each channel, then those of its squares, to a thread's own 2 × CO. */
static inline void convolve_images(const struct block_arguments *a, const element *packed, double *thread_sums)
{
    const int images = a->images, threads = a->threads;
    const element *restrict input = a->input;
    element *restrict convolved = a->convolved;
    IN_THREADS {
        begin_products(1);
        EACH_IMAGE(i) {
            double *sums = thread_sums + (size_t)(i / SHARE) * 2 * CO;
            float result[RESULT] LINES;
            element copy[COPY] LINES;
            const element *image = readable_image(input, i, images, copy);
            for (int row = 0; row < OUT; row++) {
                if (row % ROWS == 0)
                    convolve(image, packed, row, result);
                const float *from = result + row % ROWS * RESULT_WIDTH * RESULT_CHANNELS;
                element *to = convolved + ((int64_t)i * OUT + row) * OUT * CO;
                channels sum[CHANNEL_VECTORS] = {{0}}, squares[CHANNEL_VECTORS] = {{0}};
                for (int u = 0; u < OUT; u++)
                    EACH_VECTOR(v) {
                        channels value = GIVEN_CHANNELS(from + u * RESULT_CHANNELS, v);
                        if (ADD_BIAS)
                            value += GIVEN_CHANNELS(a->bias, v);
                        value = RELU_FIRST ? relu(value) : value;
                        store_channels(value, to + u * CO + FIRST(v));
                        sum[v] += value;
                        squares[v] += value * value;
                    }
                add_channels(sums, sum);
                add_channels(sums + CO, squares);
            }
        }
        end_products();
    }
}

/* Mean and deviation of the batch, the running ones, and what the rest of the block multiplies by and adds. */
static inline void norm_factors(const struct block_arguments *a, const double *sums, float *factor, float *offset)
{
    const float *statistics = a->statistics;
    if (a->batches)
        ++*a->batches;
    batch_statistics(a->convolved, (int64_t)a->images * AREA, sums, BIAS && !RELU_FIRST ? a->bias : NULL, a->momentum,
                     a->epsilon, a->statistics, a->running_mean, a->running_variance);
    for (int c = 0; c < CO; c++) {
        factor[c] = a->gamma[c] * statistics[CO + c] * a->dropout_scale;
        offset[c] = a->beta[c] * a->dropout_scale - statistics[c] * factor[c];
    }
}

/* What comes after the convolution, and after the ReLU in front of batch norm. */
static inline void finish_images(const struct block_arguments *a, const float *factor, const float *offset)
{
    const int images = a->images, threads = a->threads;
    const uint32_t limit = a->dropout_limit;
    const element *restrict convolved = a->convolved;
    element *restrict output = a->output;
    uint8_t *restrict argmax = a->argmax;
    IN_THREADS EACH_IMAGE(i) {
        for (int top = 0; top < POOLED; top++) {
            int64_t to = ((int64_t)i * POOLED + top) * POOLED * CO;
            float buffer[POOLED * CO], *pooled = row_buffer(output + to, buffer), rows[POOL > 1 ? POOL * OUT * CO : 1];
            for (int r = 0; r < POOL; r++) {
                const element *from = convolved + ((int64_t)i * OUT + top * POOL + r) * OUT * CO;
                uint8_t own[ROW_OF_BITS + BITS_BEYOND], *bits = MAX_POOL ? own : row_of_bits(a->dropped, i, top * POOL + r);
                if (limit)
                    draw_dropped(bits, a->dropout_seed, i, top * POOL + r, limit);
                for (int u = 0; u < OUT; u++)
                    EACH_VECTOR(v) {
                        channels value = channels_of(from + u * CO + FIRST(v));
                        value = value * GIVEN_CHANNELS(factor, v) + GIVEN_CHANNELS(offset, v);
                        if (SUM)
                            value += channels_of(a->other + to + u * CO + FIRST(v));
                        value = RELU_LAST ? relu(value) : value;
                        if (limit)
                            value = without_dropped(value, bits, u * CO + FIRST(v), NEGATIVE_ZERO);
                        if (POOL > 1)
                            SET_CHANNELS(rows + (r * OUT + u) * CO, v, value);
                        else
                            store_channels(value, output + to + u * CO + FIRST(v));
                    }
            }
            if (MAX_POOL)
                max_pool(rows, pooled, argmax + to);
            else if (AVERAGE)
                average_pool(rows, pooled);
            if (POOL > 1)
                store_row(pooled, output + to, POOLED * CO);
        }
    }
}

/* From the input to the output, in training: also to `convolved`, `statistics` and `argmax`, which the backward pass
 * needs, and to the running mean and variance. */
void forward(const struct block_arguments *a)
{
    element *packed = aligned_alloc(64, sizeof(element) * PACKED(CI, CO));
    double *thread_sums = calloc((size_t)a->threads * 2 * CO, sizeof(double));
    pack_forward(a->weight, packed);
    convolve_images(a, packed, thread_sums);
    double sums[2 * CO] = {0};
    for (int t = 0; t < a->threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            sums[c] += thread_sums[(size_t)t * 2 * CO + c];
    float factor[CO], offset[CO];
    norm_factors(a, sums, factor, offset);
    finish_images(a, factor, offset);
    free(thread_sums);
    free(packed);
}

/* From the input to the output outside training: batch norm is factor × value + offset, and nothing is dropped. */
void score(const struct block_arguments *a)
{
    const int images = a->images, threads = a->threads;
    const element *restrict input = a->input;
    const float *restrict factor = a->factor, *restrict offset = a->offset;
    element *restrict output = a->output;
    element *packed = aligned_alloc(64, sizeof(element) * PACKED(CI, CO));
    pack_forward(a->weight, packed);
    IN_THREADS {
        begin_products(1);
        EACH_IMAGE(i) {
            float rows[POOL * OUT * CO], result[RESULT] LINES, buffer[POOLED * CO];
            uint8_t argmax[POOLED * CO];
            element copy[COPY] LINES;
            const element *image = readable_image(input, i, images, copy);
            for (int row = 0; row < OUT; row++) {
                if (row % ROWS == 0)
                    convolve(image, packed, row, result);
                const float *from = result + row % ROWS * RESULT_WIDTH * RESULT_CHANNELS;
                for (int u = 0; u < OUT; u++)
                    EACH_VECTOR(v) {
                        channels value = GIVEN_CHANNELS(from + u * RESULT_CHANNELS, v);
                        if (ADD_BIAS)
                            value += GIVEN_CHANNELS(a->bias, v);
                        value = RELU_FIRST ? relu(value) : value;
                        value = value * GIVEN_CHANNELS(factor, v) + GIVEN_CHANNELS(offset, v);
                        if (SUM)
                            value += channels_of(a->other + (((int64_t)i * OUT + row) * OUT + u) * CO + FIRST(v));
                        value = RELU_LAST ? relu(value) : value;
                        if (POOL > 1)
                            SET_CHANNELS(rows + (row % POOL * OUT + u) * CO, v, value);
                        else
                            store_channels(value, output + (((int64_t)i * OUT + row) * OUT + u) * CO + FIRST(v));
                    }
                if (POOL > 1 && row % POOL == POOL - 1) {
                    element *to = output + ((int64_t)i * POOLED + row / POOL) * POOLED * CO;
                    float *pooled = row_buffer(to, buffer);
                    if (MAX_POOL)
                        max_pool(rows, pooled, argmax);
                    else if (AVERAGE)
                        average_pool(rows, pooled);
                    store_row(pooled, to, POOLED * CO);
                }
            }
        }
        end_products();
    }
    free(packed);
}

#include "backward.h"
