/* One block of a network, forward and backward, in as few passes over memory as its sums allow: valid
 * convolution → batch norm and ReLU in either order → dropout → max-pool. Images are N×H×W×C floats.
 *
 * `native.py` compiles this file for every shape, with the sizes as constants, so that the compiler
 * keeps a whole tile of results in registers: SIDE and CI, side and channels of the input; CO,
 * channels of the output; KERNEL, side of the kernel; RELU_FIRST, 1 for ReLU before batch norm, 0 for
 * after it; POOL, side of the max-pool's squares, 1 for none.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 28
#elif defined(__AVX__)
#define LANES 8
#define REGISTERS 12
#else
#define LANES 4
#define REGISTERS 24
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
#define VECTORS(channels) (((channels) + LANES - 1) / LANES)
/* `native.py` lays weights out in rows of 16, whatever the processor's vectors are. */
#define PADDED(channels) (((channels) + 15) / 16 * 16)
#define AT_LEAST_1(count) ((count) > 0 ? (count) : 1)
/* NaN must stay NaN, so that a training that diverges is seen to. */
#define RELU(x) ((x) < 0 ? 0 : (x))
/* The channels of one pixel at once: left alone, compilers would rather take many pixels and gather. */
#define EACH_CHANNEL(c) _Pragma("omp simd") for (int c = 0; c < CO; c++)

#define OUT (SIDE - KERNEL + 1)
#define AREA (OUT * OUT)
#define BORDER (KERNEL - 1)
#define WIDE (OUT + 2 * BORDER)
#define POOLED (OUT / POOL)

/* Convolve IN channels to OUTPUTS: results of a row, TILE neighbours at a time, stay in registers. The last
 * tile of a row overlaps the one before where the row is no multiple of it. `w`: kernel × kernel ×
 * IN × PADDED(OUTPUTS). */
#define DEFINE_CONVOLUTION(NAME, IN, OUTPUTS, WIDTH, RESULTS)                                                 \
    enum { NAME##_fit = AT_LEAST_1(REGISTERS / VECTORS(OUTPUTS)) };                                            \
    enum { NAME##_most = NAME##_fit < 14 ? NAME##_fit : 14 };                                                  \
    enum { NAME##_tiles = (RESULTS + NAME##_most - 1) / NAME##_most };                                         \
    enum { NAME##_tile = (RESULTS + NAME##_tiles - 1) / NAME##_tiles };                                        \
    static inline void NAME(const float *restrict x, const float *restrict w, float *restrict y)               \
    {                                                                                                          \
        for (int part = 0; part < NAME##_tiles; part++) {                                                      \
            int at = part * NAME##_tile;                                                                       \
            if (at > RESULTS - NAME##_tile)                                                                    \
                at = RESULTS - NAME##_tile;                                                                    \
            vector sum[NAME##_tile][VECTORS(OUTPUTS)];                                                         \
            for (int u = 0; u < NAME##_tile; u++)                                                              \
                for (int v = 0; v < VECTORS(OUTPUTS); v++)                                                     \
                    sum[u][v] = (vector){0};                                                                   \
            for (int kh = 0; kh < KERNEL; kh++)                                                                \
                for (int kw = 0; kw < KERNEL; kw++) {                                                          \
                    const float *from = x + ((int64_t)kh * (WIDTH) + kw + at) * (IN);                          \
                    const float *row = w + (kh * KERNEL + kw) * (IN) * PADDED(OUTPUTS);                        \
                    for (int c = 0; c < (IN); c++)                                                             \
                        for (int v = 0; v < VECTORS(OUTPUTS); v++) {                                           \
                            vector weight = *(const vector *)(row + c * PADDED(OUTPUTS) + v * LANES);          \
                            _Pragma("GCC unroll 16") for (int u = 0; u < NAME##_tile; u++)                     \
                                sum[u][v] += from[u * (IN) + c] * weight;                                      \
                        }                                                                                      \
                }                                                                                              \
            for (int u = 0; u < NAME##_tile; u++)                                                              \
                for (int v = 0; v < VECTORS(OUTPUTS); v++)                                                     \
                    memcpy(y + (at + u) * (OUTPUTS) + v * LANES, &sum[u][v],                                   \
                           4 * ((OUTPUTS) - v * LANES < LANES ? (OUTPUTS) - v * LANES : LANES));               \
        }                                                                                                      \
    }

DEFINE_CONVOLUTION(forward_row, CI, CO, SIDE, OUT)
DEFINE_CONVOLUTION(backward_row, CO, CI, WIDE, SIDE)

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
static inline void pool(const float *restrict x, float *restrict y, int32_t *restrict at)
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
            memcpy(y + (row * POOLED + u) * CO, greatest, sizeof greatest);
            memcpy(at + (row * POOLED + u) * CO, place, sizeof place);
        }
}

/* Its backward pass: every gradient to the place that its value came from, times `scale`. */
static inline void spread(const float *restrict gy, const int32_t *restrict at, float scale, float *restrict gx)
{
    if (OUT % POOL)
        memset(gx, 0, sizeof(float) * AREA * CO);
    for (int row = 0; row < POOLED; row++)
        for (int u = 0; u < POOLED; u++)
            for (int p = 0; p < POOL * POOL; p++) {
                const int from = (row * POOLED + u) * CO;
                float *here = gx + ((row * POOL + p / POOL) * OUT + u * POOL + p % POOL) * CO;
                EACH_CHANNEL(c) here[c] = at[from + c] == p ? gy[from + c] * scale : 0;
            }
}

/* y: the block's output; z: what the backward pass needs of it, the convolution's output, after ReLU where
 * that comes first. `saved` gets mean and 1/deviation of each channel. What `seed` and
 * `limit` do not drop is multiplied by `scale`. `at`: what `pool` notes, unused without. */
void forward(const float *restrict x, const float *restrict w, const float *restrict gamma,
             const float *restrict beta, float *restrict mean, float *restrict variance, float momentum,
             float epsilon, float *restrict z, float *restrict y, float *restrict saved,
             int32_t *restrict at, uint64_t seed, uint32_t limit, float scale, int images, int threads)
{
    double total[2 * CO] = {0};
    double *part = calloc((size_t)threads * 2 * CO, sizeof(double));
#pragma omp parallel for num_threads(threads) schedule(static, (images + threads - 1) / threads)
    for (int i = 0; i < images; i++) {
        double *mine = part + (size_t)(i / ((images + threads - 1) / threads)) * 2 * CO;
        for (int row = 0; row < OUT; row++) {
            float *to = z + (int64_t)i * AREA * CO + row * OUT * CO;
            forward_row(x + (int64_t)i * SIDE * SIDE * CI + row * SIDE * CI, w, to);
            float first[CO] = {0}, second[CO] = {0};
            for (int u = 0; u < OUT; u++)
                EACH_CHANNEL(c) {
                    float value = to[u * CO + c];
                    if (RELU_FIRST)
                        to[u * CO + c] = value = RELU(value);
                    first[c] += value;
                    second[c] += value * value;
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
        float whole[POOL > 1 ? AREA * CO : 1];
        int64_t start = (int64_t)i * AREA * CO, pooled = (int64_t)i * POOLED * POOLED * CO;
        float *to = POOL > 1 ? whole : y + start;
        for (int u = 0; u < AREA; u++)
            EACH_CHANNEL(c) {
                float value = z[start + u * CO + c] * factor[c] + offset[c];
                to[u * CO + c] = RELU_FIRST ? value : RELU(value);
            }
        if (limit)
            drop(to, seed, i, limit);
        if (POOL > 1)
            pool(whole, y + pooled, at + pooled);
    }
}

/* y as it is outside training: batch norm is factor × value + offset, and nothing is dropped. */
void score(const float *restrict x, const float *restrict w, const float *restrict factor,
           const float *restrict offset, float *restrict y, int images, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static, (images + threads - 1) / threads)
    for (int i = 0; i < images; i++) {
        float whole[AREA * CO];
        int32_t at[POOLED * POOLED * CO];
        for (int row = 0; row < OUT; row++)
            forward_row(x + (int64_t)i * SIDE * SIDE * CI + row * SIDE * CI, w, whole + row * OUT * CO);
        for (int u = 0; u < AREA; u++)
            EACH_CHANNEL(c) {
                float value = whole[u * CO + c];
                value = (RELU_FIRST ? RELU(value) : value) * factor[c] + offset[c];
                whole[u * CO + c] = RELU_FIRST ? value : RELU(value);
            }
        float *to = y + (int64_t)i * POOLED * POOLED * CO;
        if (POOL > 1)
            pool(whole, to, at);
        else
            memcpy(to, whole, sizeof whole);
    }
}

/* The gradient before the pooling and dropout of image `i`, and before ReLU where that comes last. */
static inline void unpool(const float *restrict gy, const float *restrict z, const float *restrict factor,
                          const float *restrict offset, const int32_t *restrict at, uint64_t seed, uint32_t limit,
                          float scale, int i, float *restrict g)
{
    int64_t start = (int64_t)i * AREA * CO, pooled = (int64_t)i * POOLED * POOLED * CO;
    if (POOL > 1)
        spread(gy + pooled, at + pooled, scale, g);
    else
        for (int u = 0; u < AREA * CO; u++)
            g[u] = gy[start + u] * scale;
    if (limit)
        drop(g, seed, i, limit);
    if (!RELU_FIRST)
        for (int u = 0; u < AREA; u++)
            EACH_CHANNEL(c)
                g[u * CO + c] = z[start + u * CO + c] * factor[c] + offset[c] > 0 ? g[u * CO + c] : 0;
}

/* Add to the gradient of the weights, kernel × kernel × CI × PADDED(CO), what rows from `top` to `bottom` of an
 * image bring: so few that they stay in the first cache. `g` has rows of WIDE. */
enum { BAND = 6 };
static inline void weigh(const float *restrict x, const float *restrict g, float *restrict gw, int top, int bottom)
{
    enum { SPAN = KERNEL * CI, MOST = AT_LEAST_1(REGISTERS / VECTORS(CO)) };
    enum { PARTS = (SPAN + MOST - 1) / MOST, PART = (SPAN + PARTS - 1) / PARTS };
    for (int kh = 0; kh < KERNEL; kh++)
        _Pragma("GCC unroll 64") for (int part = 0; part < PARTS; part++) {
            vector sum[PART][VECTORS(CO)];
            for (int c = 0; c < PART; c++)
                for (int v = 0; v < VECTORS(CO); v++)
                    sum[c][v] = (vector){0};
            for (int row = top; row < bottom; row++)
                for (int u = 0; u < OUT; u++) {
                    /* The columns of the kernel and their channels lie side by side in x. */
                    const float *from = x + ((row + kh) * SIDE + u) * CI + part * PART;
                    for (int v = 0; v < VECTORS(CO); v++) {
                        vector gradient = *(const vector *)(g + (row * WIDE + u) * CO + v * LANES);
                        _Pragma("GCC unroll 32") for (int c = 0; c < PART; c++)
                            if (part * PART + c < SPAN)
                                sum[c][v] += from[c] * gradient;
                    }
                }
            for (int c = 0; c < PART && part * PART + c < SPAN; c++)
                for (int v = 0; v < VECTORS(CO); v++)
                    *(vector *)(gw + (kh * SPAN + part * PART + c) * PADDED(CO) + v * LANES) += sum[c][v];
        }
}

/* From `gy`, the gradient of y, to `gx`, that of the input (none where that is null), `gw` (kernel × kernel ×
 * CI × PADDED(CO)), `ggamma` and `gbeta`. `w`: kernel × kernel × CO × PADDED(CI), turned by 180°. */
void backward(const float *restrict gy, const float *restrict x, const float *restrict z,
              const float *restrict gamma, const float *restrict beta, const float *restrict saved,
              const float *restrict w, float *restrict gx, float *restrict gw, float *restrict ggamma,
              float *restrict gbeta, const int32_t *restrict at, uint64_t seed, uint32_t limit, float scale,
              int images, int threads)
{
    enum { WEIGHTS = KERNEL * KERNEL * CI * PADDED(CO) };
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
        const float *values = z + (int64_t)i * AREA * CO;
        float g[AREA * CO];
        unpool(gy, z, factor, offset, at, seed, limit, scale, i, g);
        for (int row = 0; row < OUT; row++) {
            float first[CO] = {0}, second[CO] = {0};
            for (int u = row * OUT; u < (row + 1) * OUT; u++)
                EACH_CHANNEL(c) {
                    first[c] += g[u * CO + c];
                    second[c] += g[u * CO + c] * (values[u * CO + c] - m[c]);
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
        /* The gradient of the convolution's own output in a frame of zeros, and room for a vector's end. */
        float g[AREA * CO], framed[WIDE * WIDE * CO + LANES];
        const float *values = z + (int64_t)i * AREA * CO;
        unpool(gy, z, factor, offset, at, seed, limit, scale, i, g);
        memset(framed, 0, sizeof framed);
        for (int row = 0; row < OUT; row++) {
            float *to = framed + ((row + BORDER) * WIDE + BORDER) * CO;
            for (int u = 0; u < OUT; u++)
                EACH_CHANNEL(c) {
                    float value = values[(row * OUT + u) * CO + c];
                    float whole = factor[c] * g[(row * OUT + u) * CO + c] + by_z[c] * value + constant[c];
                    to[u * CO + c] = RELU_FIRST && !(value > 0) ? 0 : whole;
                }
        }
        for (int top = 0; top < OUT; top += BAND)
            weigh(x + (int64_t)i * SIDE * SIDE * CI, framed + (BORDER * WIDE + BORDER) * CO,
                  weights + (size_t)(i / ((images + threads - 1) / threads)) * WEIGHTS, top,
                  top + BAND < OUT ? top + BAND : OUT);
        if (gx)
            for (int row = 0; row < SIDE; row++)
                backward_row(framed + row * WIDE * CO, w, gx + (int64_t)i * SIDE * SIDE * CI + row * SIDE * CI);
    }
    memset(gw, 0, sizeof(float) * WEIGHTS);
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < WEIGHTS; c++)
            gw[c] += weights[(size_t)t * WEIGHTS + c];
    free(part);
    free(weights);
}
