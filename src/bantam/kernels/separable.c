/* One block of a network of separable convolutions, forward and backward, image by image: batch norm and ReLU of the
 * block before, depthwise convolution, 1×1 convolution, the sums that this block's own batch norm needs, and its
 * max-pool. Only what is in front of a batch norm goes through memory; all else stays in the cache.
 *
 * `compiler.py` compiles this file for every shape, with the sizes as constants: CI and CO, channels; KERNEL, side of the
 * kernel; SIDE, side of the input with its padding; PADDING, how many pixels at each end of it are zeros; POOL, side of
 * the max-pool's squares, 1 for none; DEPTHWISE, 1 for these blocks, 0 for the first one of a network: a dense convolution
 * of the images as they are; BFLOAT16, 1 where 1×1 convolutions multiply numbers of bfloat16, and maps are such numbers in
 * memory, and MATRIX_UNIT, 1 for a processor that multiplies those in tiles. All else is floats. Images are N×H×W×C.
 *
 * The products are in `separable_products.h`, by the matrix unit in `tiled_products.h`, of the first block in
 * `dense_products.h`; the way back is in `separable_backward.h`.
 */
#include "numbers.h"
#include "arguments.h"
#include "shape.h"
#ifndef MATRIX_UNIT
#define MATRIX_UNIT 0
#endif
/* Vectors run over the ends of pixels where those have no whole number of them: of so many pixels the ends meet. */
#define WHOLE(lanes) (CI % (lanes) == 0 || !DEPTHWISE ? 1 : CI % ((lanes) / 2) == 0 ? 2 : 4)
/* Vectors have 16 numbers where the processor does not compute them in halves, and where all that they run over is whole
 * numbers of them: rows of results, and images or, where they have padding, their rows. */
#if defined(__AVX512VL__) && !HALVES && ((SIDE - KERNEL + 1) % WHOLE(16)) == 0                                  \
    && ((PADDING ? IMAGE_SIDE : SIDE * SIDE) % WHOLE(16)) == 0
#define LANES 16
#endif
#include "products.h"
#include "statistics.h"
#define INPUTS (DEPTHWISE ? CI : TAPS * CI)
#define POOLED (OUT / POOL)
#define SQUARE (POOL * POOL)
#define ROW (IMAGE_SIDE * CI)
#define IN_IMAGE (IMAGE_SIDE * ROW)
/* What lies side by side in an image with padding: its rows, without padding all of them. */
#define RUN (PADDING ? ROW : IN_IMAGE)
#define RUNS (PADDING ? IMAGE_SIDE : 1)
/* The first number of a row of the image, in one with padding. */
#define INSIDE(row) (((row) + PADDING) * SIDE * CI + PADDING * CI)
/* What is convolved takes so much room: an image with padding, or after batch norm and ReLU. */
enum { CONVOLVED = DEPTHWISE || PADDING ? SIDE * SIDE * CI : 1 };
#define RELU(x) ((x) < 0 ? 0 : (x)) /* NaN stays NaN */
#define EACH_CHANNEL(c, count) _Pragma("omp simd") for (int c = 0; c < (count); c++)
#define SHARE ((images + threads - 1) / threads)
#define IN_THREADS _Pragma("omp parallel num_threads(threads)")
#define EACH_IMAGE(i) _Pragma("omp for schedule(static, SHARE) nowait") for (int i = 0; i < images; i++)

/* After PERIOD vectors a pixel begins with a vector again. */
enum { PERIOD = DEPTHWISE ? WHOLE(LANES) * CI / LANES : 1, STEP = PERIOD * LANES };
/* So many rows of results are computed together that they stay in the first cache. */
enum { MOST_ROWS = DEPTHWISE && MATRIX_UNIT ? 12 : 4 };
enum { FEW_ROWS = OUT > 12 ? (POOL > MOST_ROWS ? POOL : MOST_ROWS / POOL * POOL) : OUT };
#if !DEPTHWISE
#include "dense_products.h"
#elif MATRIX_UNIT
#include "tiled_products.h"
#else
#include "separable_products.h"
#endif
#define BANDS(row, rows) for (int row = 0, rows; rows = OUT - row < FEW_ROWS ? OUT - row : FEW_ROWS, row < OUT; row += rows)

/* While rows of an image are computed, the same ones of the next come nearer: memory is what the passes over maps wait
 * for, where vectors do not have 16 numbers: such processors fetch by themselves what comes next. Of `count` numbers of an
 * image those that belong to so many of all OUT rows. */
static INLINE void fetch_rows(const void *image, int count, int bytes, int row, int rows)
{
    const char *all = (const char *)image;
    for (int at = count * row / OUT * bytes; LANES < 16 && at < count * (row + rows) / OUT * bytes; at += 64)
        __builtin_prefetch(all + at, 0, 2);
}
#define FETCH(next, count, row, rows) fetch_rows(next, count, sizeof *(next), row, rows)

/* `count` numbers, one a channel, as often as STEP has room for. */
static INLINE void repeat(const float *from, int stride, float *to)
{
    for (int u = 0; u < STEP; u++)
        to[u] = from[u % CI * stride];
}

/* Batch norm and ReLU of the block before. */
ALONE void activate(const struct separable_arguments *a, const element *restrict image, float *restrict to)
{
    float factors[STEP], offsets[STEP];
    repeat(a->in_factor, 1, factors);
    repeat(a->in_offset, 1, offsets);
    for (int run = 0; run < RUNS; run++)
        for (int v = 0; v < PERIOD; v++) {
            const vector factor = load(factors + v * LANES), offset = load(offsets + v * LANES);
            for (int u = v * LANES; u < RUN; u += STEP)
                store(to + INSIDE(run) + u,
                      larger((vector){0}, load_elements(image + run * RUN + u) * factor + offset));
        }
}

/* What is convolved of an image: in its place, or in a buffer whose padding is zeros. */
static INLINE const float *convolved_image(const struct separable_arguments *a, int i, float *buffer)
{
    if (DEPTHWISE) {
        activate(a, (const element *)a->input + (int64_t)i * IN_IMAGE, buffer);
        return buffer;
    }
    const float *image = (const float *)a->input + (int64_t)i * IN_IMAGE;
    if (!PADDING)
        return image;
    for (int row = 0; row < IMAGE_SIDE; row++)
        memcpy(buffer + INSIDE(row), image + row * ROW, sizeof(float) * ROW);
    return buffer;
}

/* Weights of the depthwise convolution as vectors read them: taps × STEP. */
static INLINE void repeat_weights(const float *weight, float *to)
{
    for (int tap = 0; tap < TAPS; tap++)
        repeat(weight + tap, TAPS, to + tap * STEP);
}

#if DEPTHWISE
/* Rows of the depthwise convolution. Of FEW_ROWS each row of the image is read once, for all that it is added to. */
ALONE void read_rows(const float *restrict image, const float *restrict taps, int row, int rows, number *restrict to)
{
    image += row * SIDE * CI;
    for (int v = 0; v < PERIOD; v++) {
        vector weight[TAPS];
        UNROLLED(tap, TAPS) weight[tap] = load(taps + tap * STEP + v * LANES);
        for (int u = v * LANES; u < OUT * CI; u += STEP) {
            if (rows == FEW_ROWS) {
                vector sum[FEW_ROWS] = {{0}};
                UNROLLED(r, FEW_ROWS + BORDER) {
                    vector values[KERNEL];
                    UNROLLED(kw, KERNEL) values[kw] = load(image + (r * SIDE + kw) * CI + u);
                    UNROLLED(kh, KERNEL)
                        if (r >= kh && r - kh < FEW_ROWS)
                            UNROLLED(kw, KERNEL) sum[r - kh] += values[kw] * weight[kh * KERNEL + kw];
                    if (r >= BORDER)
                        store_numbers(to + (r - BORDER) * OUT * CI + u, sum[r - BORDER]);
                }
                continue;
            }
            for (int r = 0; r < rows; r++) {
                vector sum = {0};
                UNROLLED(tap, TAPS)
                    sum += load(image + ((r + tap / KERNEL) * SIDE + tap % KERNEL) * CI + u) * weight[tap];
                store_numbers(to + r * OUT * CI + u, sum);
            }
        }
    }
}
#endif

/* Rows of results. */
static INLINE void convolve_rows(const float *image, const float *taps, const number *packed, int row, int rows, number *read,
                                 float *result)
{
#if DEPTHWISE
    read_rows(image, taps, row, rows, read);
    forward_product(read, packed, result, rows * OUT);
#else
    (void)taps, (void)read;
    dense_product(image + row * SIDE * CI, packed, result, rows);
#endif
}

static INLINE void add_doubles(double *to, vector values)
{
    typedef double doubles __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
    *(doubles *)to += __builtin_convertvector(values, doubles);
}

/* Of results, so many pixels × RESULT_ROW: add each channel's sum, and that of its squares, to 2 × PADDED(CO), and bring
 * them to `to` if they are not there. Neighbours are added separately where there would be few sums at a time. */
ALONE void finish_rows(const float *restrict values, int pixels, element *restrict to, double *sums)
{
    enum { TOGETHER = 4, SEVERAL = VECTORS(CO) <= 2 && OUT % 2 == 0 ? 2 : 1 };
    for (int first = 0; first < VECTORS(CO); first += TOGETHER) {
        vector sum[SEVERAL][TOGETHER] = {{{0}}}, squares[SEVERAL][TOGETHER] = {{{0}}};
        for (int u = 0; u < pixels; u += SEVERAL)
            UNROLLED(p, SEVERAL) UNROLLED(v, TOGETHER)
                if (first + v < VECTORS(CO)) {
                    const vector value = load(values + (u + p) * RESULT_ROW + (first + v) * LANES);
                    sum[p][v] += value;
                    squares[p][v] += value * value;
                    if (BFLOAT16)
                        store_elements_part(to + (u + p) * CO, value, (first + v) * LANES, CO);
                }
        UNROLLED(p, SEVERAL) UNROLLED(v, TOGETHER)
            if (first + v < VECTORS(CO)) {
                add_doubles(sums + (first + v) * LANES, sum[p][v]);
                add_doubles(sums + PADDED(CO) + (first + v) * LANES, squares[p][v]);
            }
    }
}

/* Max-pool of rows in front of batch norm, which turns them round where its weight is negative: the first of the
 * largest, or smallest. */
ALONE void pool_rows(const float *restrict rows, const float *restrict gamma, int count, element *restrict to)
{
    float signs[PADDED(CO)] = {0};
    for (int c = 0; c < CO; c++)
        signs[c] = gamma[c] > 0 ? 1 : gamma[c] < 0 ? -1 : 0;
    for (int row = 0; row + POOL <= count; row += POOL)
        for (int u = 0; u < POOLED; u++, to += CO)
            UNROLLED(v, VECTORS(CO)) {
                const float *from = rows + (row * OUT + u * POOL) * RESULT_ROW + v * LANES;
                const vector sign = load(signs + v * LANES);
                vector best = load(from);
                UNROLLED(p, SQUARE) {
                    const vector value = load(from + (p / POOL * OUT + p % POOL) * RESULT_ROW);
                    const integers better = value * sign > best * sign;
                    best = (vector)(((integers)value & better) | ((integers)best & ~better));
                }
                store_elements_part(to, best, v * LANES, CO);
            }
}

/* Mean and deviation of the batch, the running ones, and what batch norm multiplies by and adds. */
static void norm_factors(const struct separable_arguments *a, const double *sums)
{
    const float *statistics = a->statistics;
    if (a->batches)
        ++*a->batches;
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
    number packed[PACKED_ROOM(INPUTS, CO)] LINES;
    float taps[TAPS * STEP];
    double *thread_sums = calloc((size_t)threads * 2 * PADDED(CO), sizeof(double));
    pack_forward(a->weight, packed);
    if (DEPTHWISE)
        repeat_weights(a->depthwise, taps);
    IN_THREADS {
        float image_buffer[CONVOLVED], row_values[BFLOAT16 ? RESULT_ROOM : 1] LINES;
        number read[READ_ROOM] LINES;
        memset(image_buffer, 0, sizeof image_buffer);
        begin_forward_tiles();
        EACH_IMAGE(i) {
            const float *image = convolved_image(a, i, image_buffer);
            BANDS(row, rows) {
                element *convolved = a->convolved + ((int64_t)i * OUT + row) * OUT * CO;
                float *result = row_buffer(convolved, row_values);
                if (DEPTHWISE)
                    FETCH((const element *)a->input + (int64_t)(i + 1) * IN_IMAGE, IN_IMAGE, row, rows);
                convolve_rows(image, taps, packed, row, rows, read, result);
                finish_rows(result, rows * OUT, convolved, thread_sums + (size_t)(i / SHARE) * 2 * PADDED(CO));
                if (POOL > 1)
                    pool_rows(result, a->gamma, rows,
                              a->pooled + ((int64_t)i * POOLED + row / POOL) * POOLED * CO);
            }
        }
        end_products();
    }
    double sums[2 * CO] = {0};
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            sums[c] += thread_sums[(size_t)t * 2 * PADDED(CO) + c / CO * PADDED(CO) + c % CO];
    norm_factors(a, sums);
    free(thread_sums);
}

/* Batch norm and ReLU of the last block. */
void finish(const struct separable_arguments *a)
{
    const float *restrict factor = a->factor, *restrict offset = a->offset;
    const element *restrict from = a->pooled;
    float *restrict output = a->output;
    for (int64_t u = 0; u < (int64_t)a->images * POOLED * POOLED * CO; u += CO)
        EACH_CHANNEL(c, CO) {
            float value = as_float(from[u + c]) * factor[c] + offset[c];
            output[u + c] = RELU(value);
        }
}

#include "separable_backward.h"
