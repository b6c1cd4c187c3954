/* One block of a network of separable convolutions, forward and backward, image by image: batch norm and ReLU of the
 * block before, depthwise convolution, 1×1 convolution, the sums that this block's own batch norm needs, and its
 * max-pool. Only what is in front of a batch norm goes through memory; all else stays in the cache.
 *
 * `compiler.py` compiles this file for every shape, with the sizes as constants: CI and CO, channels; KERNEL, side of the
 * kernel; SIDE, side of the input with its padding; PADDING, how many pixels at each end of it are zeros; POOL, side of the max-pool's squares, 1 for none; DEPTHWISE, 1 for these blocks, 0 for
 * the first one of a network: a dense convolution of the images as they are. Images are N×H×W×C floats. The way back is
 * in `separable_backward.h`.
 */
#include "numbers.h"
#include "arguments.h"
#include "shape.h"
#include "products.h"
#include "statistics.h"
#define INPUTS (DEPTHWISE ? CI : TAPS * CI)
#define POOLED (OUT / POOL)
#define SQUARE (POOL * POOL)
#define ROW (IMAGE_SIDE * CI)
#define IN_IMAGE (IMAGE_SIDE * ROW)
/* The first number of a row of the image, in one with padding. */
#define INSIDE(row) (((row) + PADDING) * SIDE * CI + PADDING * CI)
/* What is convolved takes so much room: an image with padding, or after batch norm and ReLU. */
enum { CONVOLVED = DEPTHWISE || PADDING ? SIDE * SIDE * CI : 1 };
#define RELU(x) ((x) < 0 ? 0 : (x)) /* NaN stays NaN */
#define EACH_CHANNEL(c, count) _Pragma("omp simd") for (int c = 0; c < (count); c++)
#define SHARE ((images + threads - 1) / threads)
#define IN_THREADS _Pragma("omp parallel num_threads(threads)")
#define EACH_IMAGE(i) _Pragma("omp for schedule(static, SHARE) nowait") for (int i = 0; i < images; i++)

/* Vectors run over the ends of pixels where those have no whole number of them: after PERIOD vectors, two pixels then,
 * both begin together again. */
enum { PERIOD = !DEPTHWISE ? 1 : CI % LANES ? CI / (LANES / 2) : CI / LANES, STEP = PERIOD * LANES };
/* So many rows of results are computed together that they stay in the first cache. */
enum { FEW_ROWS = OUT > 12 ? (POOL > 4 ? POOL : 4 / POOL * POOL) : OUT };
#define BANDS(row, rows) for (int row = 0, rows; rows = OUT - row < FEW_ROWS ? OUT - row : FEW_ROWS, row < OUT; row += rows)

/* `count` numbers, one a channel, as often as STEP has room for. */
static INLINE void repeat(const float *from, int stride, float *to)
{
    for (int u = 0; u < STEP; u++)
        to[u] = from[u % CI * stride];
}

/* Batch norm and ReLU of the block before. */
ALONE void activate(const struct separable_arguments *a, const float *restrict image, float *restrict to)
{
    float factors[STEP], offsets[STEP];
    repeat(a->in_factor, 1, factors);
    repeat(a->in_offset, 1, offsets);
    for (int row = 0; row < IMAGE_SIDE; row++)
        for (int v = 0; v < PERIOD; v++) {
            const vector factor = load(factors + v * LANES), offset = load(offsets + v * LANES);
            for (int u = v * LANES; u < ROW; u += STEP)
                store(to + INSIDE(row) + u, LARGER((vector){0}, load(image + row * ROW + u) * factor + offset));
        }
}

/* What is convolved of an image: in its place, or in a buffer. */
static INLINE const float *convolved_image(const struct separable_arguments *a, int i, float *buffer)
{
    const float *image = a->input + (int64_t)i * IN_IMAGE;
    if (!DEPTHWISE && !PADDING)
        return image;
    if (PADDING)
        memset(buffer, 0, sizeof(float) * SIDE * SIDE * CI);
    if (DEPTHWISE)
        activate(a, image, buffer);
    for (int row = 0; !DEPTHWISE && row < IMAGE_SIDE; row++)
        memcpy(buffer + INSIDE(row), image + row * ROW, sizeof(float) * ROW);
    return buffer;
}

/* Weights of the depthwise convolution as vectors read them: taps × STEP. */
static INLINE void repeat_weights(const float *weight, float *to)
{
    for (int tap = 0; tap < TAPS; tap++)
        repeat(weight + tap, TAPS, to + tap * STEP);
}

/* Rows of what the 1×1 convolution reads: of the depthwise convolution or, of the images, what is under the kernel. */
ALONE void read_rows(const float *restrict image, const float *restrict taps, int row, int rows,
                             float *restrict to)
{
    if (!DEPTHWISE) {
        for (int r = row; r < row + rows; r++)
            for (int u = 0; u < OUT; u++, to += INPUTS)
                UNROLLED(kh, KERNEL)
                    for (int k = 0; k < KERNEL * CI; k++)
                        to[kh * KERNEL * CI + k] = image[((r + kh) * SIDE + u) * CI + k];
        return;
    }
    for (int v = 0; v < PERIOD; v++) {
        vector weight[TAPS];
        UNROLLED(tap, TAPS) weight[tap] = load(taps + tap * STEP + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int u = v * LANES; u < OUT * CI; u += STEP) {
                const float *from = image + (row + r) * SIDE * CI + u;
                vector sum = {0};
                UNROLLED(tap, TAPS) sum += load(from + (tap / KERNEL * SIDE + tap % KERNEL) * CI) * weight[tap];
                store(to + r * OUT * CI + u, sum);
            }
    }
}

ALONE void forward_product(const float *restrict x, const float *restrict packed, float *restrict y, int pixels)
{
    product(x, packed, y, pixels, FEW_ROWS * OUT, INPUTS, CO);
}

/* Add each channel's sum, and that of its squares, to 2 × CO. */
ALONE void add_statistics(const float *restrict values, int pixels, double *sums)
{
    UNROLLED(v, VECTORS(CO)) {
        vector sum = {0}, squares = {0};
        for (int u = 0; u < pixels; u++) {
            vector value = load(values + u * CO + v * LANES);
            sum += value;
            squares += value * value;
        }
        for (int lane = 0; lane < LANES && v * LANES + lane < CO; lane++) {
            sums[v * LANES + lane] += sum[lane];
            sums[CO + v * LANES + lane] += squares[lane];
        }
    }
}

/* Max-pool of rows in front of batch norm, which turns them round where its weight is negative: the first of the
 * largest, or smallest. */
ALONE void pool_rows(const float *restrict rows, const float *restrict gamma, int count, float *restrict to)
{
    for (int row = 0; row + POOL <= count; row += POOL)
        for (int u = 0; u < POOLED; u++, to += CO)
            EACH_CHANNEL(c, CO) {
                const float *from = rows + (row * OUT + u * POOL) * CO + c;
                const float sign = gamma[c] > 0 ? 1 : gamma[c] < 0 ? -1 : 0;
                float best = from[0];
                for (int p = 1; p < SQUARE; p++) {
                    float value = from[(p / POOL * OUT + p % POOL) * CO];
                    best = value * sign > best * sign ? value : best;
                }
                to[c] = best;
            }
}

/* Mean and deviation of the batch, the running ones, and what batch norm multiplies by and adds. */
static void norm_factors(const struct separable_arguments *a, const double *sums)
{
    const float *statistics = a->statistics;
    batch_statistics(a->convolved, (int64_t)a->images * AREA, sums, NULL, a->momentum, a->epsilon, a->statistics,
                     a->running_mean, a->running_variance);
    for (int c = 0; c < CO; c++) {
        a->factor[c] = a->gamma[c] * statistics[CO + c];
        a->offset[c] = a->beta[c] - statistics[c] * a->factor[c];
    }
}

/* From the input to `convolved`, its statistics, the factors and offsets of its batch norm, and the running ones. */
void forward(const struct separable_arguments *a)
{
    const int images = a->images, threads = a->threads;
    float packed[INPUTS * PADDED(CO)] = {0}, taps[TAPS * STEP];
    double *thread_sums = calloc((size_t)threads * 2 * CO, sizeof(double));
    for (int k = 0; k < INPUTS; k++)
        for (int c = 0; c < CO; c++)
            packed[k * PADDED(CO) + c] = a->weight[c * INPUTS + k];
    if (DEPTHWISE)
        repeat_weights(a->depthwise, taps);
    IN_THREADS EACH_IMAGE(i) {
        float buffer[CONVOLVED], read[FEW_ROWS * OUT * INPUTS];
        const float *image = convolved_image(a, i, buffer);
        BANDS(row, rows) {
            float *result = a->convolved + ((int64_t)i * OUT + row) * OUT * CO;
            read_rows(image, taps, row, rows, read);
            forward_product(read, packed, result, rows * OUT);
            add_statistics(result, rows * OUT, thread_sums + (size_t)(i / SHARE) * 2 * CO);
            if (POOL > 1)
                pool_rows(result, a->gamma, rows, a->pooled + ((int64_t)i * POOLED + row / POOL) * POOLED * CO);
        }
    }
    double sums[2 * CO] = {0};
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            sums[c] += thread_sums[(size_t)t * 2 * CO + c];
    norm_factors(a, sums);
    free(thread_sums);
}

/* Batch norm and ReLU of the last block. */
void finish(const struct separable_arguments *a)
{
    const float *restrict factor = a->factor, *restrict offset = a->offset, *restrict from = a->pooled;
    float *restrict output = a->output;
    for (int64_t u = 0; u < (int64_t)a->images * POOLED * POOLED * CO; u += CO)
        EACH_CHANNEL(c, CO) {
            float value = from[u + c] * factor[c] + offset[c];
            output[u + c] = RELU(value);
        }
}

#include "separable_backward.h"
