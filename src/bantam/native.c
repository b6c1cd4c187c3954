/* One block of a network, forward and backward, in as few passes over memory as its sums allow: valid
 * convolution → batch norm and ReLU in either order → dropout → max-pool. Images are N×H×W×C numbers, floats or
 * bfloat16; all that is not the convolution's products is computed in floats.
 *
 * `native.py` compiles this file for every shape, with the sizes as constants, so that the compiler
 * keeps a whole tile of results in registers: SIDE and CI, side and channels of the input; CO,
 * channels of the output; KERNEL, side of the kernel; RELU_FIRST, 1 for ReLU before batch norm, 0 for
 * after it; POOL, side of the max-pool's squares, 1 for none; BFLOAT16, 1 for images in bfloat16. What differs
 * between the two kinds of number is in `float32.h` and `bfloat16.h`.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* `native.py` lays weights out in rows of 16, whatever the processor's vectors are. */
#define PADDED(channels) (((channels) + 15) / 16 * 16)
#define OUT (SIDE - KERNEL + 1)
#define AREA (OUT * OUT)
#define BORDER (KERNEL - 1)
#define TAPS (KERNEL * KERNEL)
#define POOLED (OUT / POOL)
/* The gradient of an output lies in a frame of zeros: as wide as the input, so that the zeros at the end of a row
 * are before the next one too, with so many pixels before the first row. */
#define LEAD (BORDER * SIDE + BORDER)
#if BFLOAT16
#include "bfloat16.h"
#else
#include "float32.h"
#endif
/* NaN must stay NaN, so that a training that diverges is seen to. */
#define RELU(x) ((x) < 0 ? 0 : (x))
/* The channels of one pixel at once: left alone, compilers would rather take many pixels and gather. */
#define EACH_CHANNEL(c) _Pragma("omp simd") for (int c = 0; c < CO; c++)

/* Dropout: of image `i`, set elements to zero with probability `limit` / 65536, the same ones for the same `seed`.
 * 32 random bits serve two elements: a counter, mixed as MurmurHash3 ends (A. Appleby), with a key in between. */
static inline void drop(float *restrict y, uint64_t seed, int i, uint32_t limit)
{
    enum { HALF = (AREA * CO + 1) / 2 };
    const uint64_t key = (seed ^ ((uint64_t)i << 32 | (uint32_t)i)) * 0x9e3779b97f4a7c15;
    const uint32_t first = (uint32_t)(key >> 32), second = (uint32_t)key;
#pragma omp simd
    for (uint32_t u = 0; u < HALF; u++) {
        uint32_t bits = first + u;
        bits = (bits ^ bits >> 16) * 0x85ebca6b + second;
        bits = (bits ^ bits >> 13) * 0xc2b2ae35;
        bits ^= bits >> 16;
        y[u] = (bits & 0xffff) < limit ? 0 : y[u];
        if (u + HALF < AREA * CO)
            y[u + HALF] = bits >> 16 < limit ? 0 : y[u + HALF];
    }
}

/* The greatest of each square of `x`, and in `at` its place within the square; the first of equals. */
static inline void pool(const float *restrict x, stored *restrict y, int32_t *restrict at)
{
    for (int row = 0; row < POOLED; row++)
        for (int u = 0; u < POOLED; u++) {
            float greatest[CO];
            int32_t place[CO] = {0};
            memcpy(greatest, x + (row * OUT + u) * POOL * CO, sizeof greatest);
            for (int p = 1; p < POOL * POOL; p++) {
                const float *here = x + ((row * POOL + p / POOL) * OUT + u * POOL + p % POOL) * CO;
                EACH_CHANNEL(c) {
                    int better = here[c] > greatest[c] || here[c] != here[c];
                    greatest[c] = better ? here[c] : greatest[c];
                    place[c] = better ? p : place[c];
                }
            }
            EACH_CHANNEL(c) y[(row * POOLED + u) * CO + c] = keep(greatest[c]);
            memcpy(at + (row * POOLED + u) * CO, place, sizeof place);
        }
}

/* Its backward pass: every gradient to the place that its value came from, times `scale`. */
static inline void spread(const stored *restrict gy, const int32_t *restrict at, float scale, float *restrict gx)
{
    if (OUT % POOL)
        memset(gx, 0, sizeof(float) * AREA * CO);
    for (int row = 0; row < POOLED; row++)
        for (int u = 0; u < POOLED; u++)
            for (int p = 0; p < POOL * POOL; p++) {
                const int from = (row * POOLED + u) * CO;
                float *here = gx + ((row * POOL + p / POOL) * OUT + u * POOL + p % POOL) * CO;
                EACH_CHANNEL(c) here[c] = at[from + c] == p ? value(gy[from + c]) * scale : 0;
            }
}

/* y: the block's output; z: what the backward pass needs of it, the convolution's output, after ReLU where
 * that comes first. `saved` gets mean and 1/deviation of each channel. What `seed` and
 * `limit` do not drop is multiplied by `scale`. `at`: what `pool` notes, unused without. */
void forward(const stored *restrict x, const stored *restrict w, const float *restrict gamma,
             const float *restrict beta, float *restrict mean, float *restrict variance, float momentum,
             float epsilon, stored *restrict z, stored *restrict y, float *restrict saved,
             int32_t *restrict at, uint64_t seed, uint32_t limit, float scale, int images, int threads)
{
    double total[2 * CO] = {0};
    double *part = calloc((size_t)threads * 2 * CO, sizeof(double));
#pragma omp parallel for num_threads(threads) schedule(static, (images + threads - 1) / threads)
    for (int i = 0; i < images; i++) {
        double *mine = part + (size_t)(i / ((images + threads - 1) / threads)) * 2 * CO;
        float result[RESULT];
        begin();
        for (int row = 0; row < OUT; row++) {
            if (row % ROWS == 0)
                convolve(x + (int64_t)i * SIDE * SIDE * CI, w, row, result);
            const float *from = result + row % ROWS * RESULT_WIDTH * RESULT_CHANNELS;
            stored *to = z + (int64_t)i * AREA * CO + row * OUT * CO;
            float first[CO] = {0}, second[CO] = {0};
            for (int u = 0; u < OUT; u++)
                EACH_CHANNEL(c) {
                    float it = from[u * RESULT_CHANNELS + c];
                    it = RELU_FIRST ? RELU(it) : it;
                    to[u * CO + c] = keep(it);
                    first[c] += it;
                    second[c] += it * it;
                }
            for (int c = 0; c < CO; c++) {
                mine[c] += first[c];
                mine[CO + c] += second[c];
            }
        }
        end();
    }
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            total[c] += part[(size_t)t * 2 * CO + c];
    free(part);
    float factor[CO], offset[CO];
    double n = (double)images * AREA;
    for (int c = 0; c < CO; c++) {
        double m = total[c] / n, v = total[CO + c] / n - m * m;
        v = v < 0 ? 0 : v;
        saved[c] = (float)m;
        saved[CO + c] = (float)(1 / sqrt(v + epsilon));
        mean[c] += momentum * ((float)m - mean[c]);
        variance[c] += momentum * ((float)(v * n / (n - 1)) - variance[c]);
        factor[c] = gamma[c] * saved[CO + c] * scale;
        offset[c] = beta[c] * scale - (float)m * factor[c];
    }
#pragma omp parallel for num_threads(threads) schedule(static, (images + threads - 1) / threads)
    for (int i = 0; i < images; i++) {
        float whole[AREA * CO];
        int64_t start = (int64_t)i * AREA * CO, pooled = (int64_t)i * POOLED * POOLED * CO;
        for (int u = 0; u < AREA; u++)
            EACH_CHANNEL(c) {
                float it = value(z[start + u * CO + c]) * factor[c] + offset[c];
                whole[u * CO + c] = RELU_FIRST ? it : RELU(it);
            }
        if (limit)
            drop(whole, seed, i, limit);
        if (POOL > 1)
            pool(whole, y + pooled, at + pooled);
        else
            for (int u = 0; u < AREA * CO; u++)
                y[start + u] = keep(whole[u]);
    }
}

/* y as it is outside training: batch norm is factor × value + offset, and nothing is dropped. */
void score(const stored *restrict x, const stored *restrict w, const float *restrict factor,
           const float *restrict offset, stored *restrict y, int images, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static, (images + threads - 1) / threads)
    for (int i = 0; i < images; i++) {
        float whole[AREA * CO], result[RESULT];
        int32_t at[POOLED * POOLED * CO];
        begin();
        for (int row = 0; row < OUT; row++) {
            if (row % ROWS == 0)
                convolve(x + (int64_t)i * SIDE * SIDE * CI, w, row, result);
            const float *from = result + row % ROWS * RESULT_WIDTH * RESULT_CHANNELS;
            for (int u = 0; u < OUT; u++)
                EACH_CHANNEL(c) {
                    float it = from[u * RESULT_CHANNELS + c];
                    it = (RELU_FIRST ? RELU(it) : it) * factor[c] + offset[c];
                    whole[(row * OUT + u) * CO + c] = RELU_FIRST ? it : RELU(it);
                }
        }
        end();
        stored *to = y + (int64_t)i * POOLED * POOLED * CO;
        if (POOL > 1)
            pool(whole, to, at);
        else
            for (int u = 0; u < AREA * CO; u++)
                to[u] = keep(whole[u]);
    }
}

/* The gradient before the pooling and dropout of image `i`, and before ReLU where that comes last. */
static inline void unpool(const stored *restrict gy, const stored *restrict z, const float *restrict factor,
                          const float *restrict offset, const int32_t *restrict at, uint64_t seed, uint32_t limit,
                          float scale, int i, float *restrict g)
{
    int64_t start = (int64_t)i * AREA * CO, pooled = (int64_t)i * POOLED * POOLED * CO;
    if (POOL > 1)
        spread(gy + pooled, at + pooled, scale, g);
    else
        for (int u = 0; u < AREA * CO; u++)
            g[u] = value(gy[start + u]) * scale;
    if (limit)
        drop(g, seed, i, limit);
    if (!RELU_FIRST)
        for (int u = 0; u < AREA; u++)
            EACH_CHANNEL(c)
                g[u * CO + c] = value(z[start + u * CO + c]) * factor[c] + offset[c] > 0 ? g[u * CO + c] : 0;
}

/* From `gy`, the gradient of y, to `gx`, that of the input (none where that is null), `gw` (kernel × kernel ×
 * GRADIENT_INPUTS × PADDED(CO)), `ggamma` and `gbeta`. `w`: the weights turned by 180°, inputs and outputs exchanged. */
void backward(const stored *restrict gy, const stored *restrict x, const stored *restrict z,
              const float *restrict gamma, const float *restrict beta, const float *restrict saved,
              const stored *restrict w, stored *restrict gx, float *restrict gw, float *restrict ggamma,
              float *restrict gbeta, const int32_t *restrict at, uint64_t seed, uint32_t limit, float scale,
              int images, int threads)
{
    enum { WEIGHTS = TAPS * GRADIENT_INPUTS * PADDED(CO) };
    const float *m = saved, *inverse = saved + CO;
    float factor[CO], offset[CO];
    double total[2 * CO] = {0};
    double *part = calloc((size_t)threads * 2 * CO, sizeof(double));
    float *weights = calloc((size_t)threads * WEIGHTS, sizeof(float));
    for (int c = 0; c < CO; c++) {
        factor[c] = gamma[c] * inverse[c];
        offset[c] = beta[c] - m[c] * factor[c];
    }
#pragma omp parallel for num_threads(threads) schedule(static, (images + threads - 1) / threads)
    for (int i = 0; i < images; i++) {
        double *mine = part + (size_t)(i / ((images + threads - 1) / threads)) * 2 * CO;
        const stored *values = z + (int64_t)i * AREA * CO;
        float g[AREA * CO];
        unpool(gy, z, factor, offset, at, seed, limit, scale, i, g);
        for (int row = 0; row < OUT; row++) {
            float first[CO] = {0}, second[CO] = {0};
            for (int u = row * OUT; u < (row + 1) * OUT; u++)
                EACH_CHANNEL(c) {
                    first[c] += g[u * CO + c];
                    second[c] += g[u * CO + c] * (value(values[u * CO + c]) - m[c]);
                }
            for (int c = 0; c < CO; c++) {
                mine[c] += first[c];
                mine[CO + c] += second[c];
            }
        }
    }
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            total[c] += part[(size_t)t * 2 * CO + c];
    float by_z[CO], constant[CO];
    double n = (double)images * AREA;
    for (int c = 0; c < CO; c++) {
        gbeta[c] = (float)total[c];
        ggamma[c] = (float)(total[CO + c] * inverse[c]);
        by_z[c] = (float)(-factor[c] * inverse[c] * inverse[c] * total[CO + c] / n);
        constant[c] = (float)(-factor[c] * total[c] / n) - by_z[c] * m[c];
    }
#pragma omp parallel for num_threads(threads) schedule(static, (images + threads - 1) / threads)
    for (int i = 0; i < images; i++) {
        /* The gradient of the convolution's own output, in its frame. */
        float g[AREA * CO];
        stored frame[(LEAD + SIDE * SIDE) * CO + SLACK];
        const stored *values = z + (int64_t)i * AREA * CO;
        unpool(gy, z, factor, offset, at, seed, limit, scale, i, g);
        memset(frame, 0, sizeof frame);
        for (int row = 0; row < OUT; row++) {
            stored *to = frame + (LEAD + row * SIDE) * CO;
            for (int u = 0; u < OUT; u++)
                EACH_CHANNEL(c) {
                    float it = value(values[(row * OUT + u) * CO + c]);
                    float whole = factor[c] * g[(row * OUT + u) * CO + c] + by_z[c] * it + constant[c];
                    to[u * CO + c] = keep(RELU_FIRST && !(it > 0) ? 0 : whole);
                }
        }
        begin();
        weigh(x + (int64_t)i * SIDE * SIDE * CI, frame,
              weights + (size_t)(i / ((images + threads - 1) / threads)) * WEIGHTS);
        if (gx)
            turn_back(frame, w, gx + (int64_t)i * SIDE * SIDE * CI);
        end();
    }
    memset(gw, 0, sizeof(float) * WEIGHTS);
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < WEIGHTS; c++)
            gw[c] += weights[(size_t)t * WEIGHTS + c];
    free(part);
    free(weights);
}
