/* One block of a network, forward and backward, in as few passes over memory as its sums allow: valid
 * convolution → batch norm and ReLU in either order → dropout → max-pool. Images are N×H×W×C numbers, floats or
 * bfloat16; all that is not the convolution's products is computed in floats.
 *
 * `blocks.py` compiles this file for every shape, with the sizes as constants, so that the compiler
 * keeps a whole tile of results in registers: SIDE and CI, side and channels of the input; CO,
 * channels of the output; KERNEL, side of the kernel; RELU_FIRST, 1 for ReLU before batch norm, 0 for
 * after it; POOL, side of the max-pool's squares, 1 for none; BFLOAT16, 1 for images in bfloat16, and
 * MATRIX_UNIT, 1 for a processor that multiplies those in tiles. What differs between the two kinds of number is in
 * `numbers.h`; the convolution's products are in `vectors.h` and, by the matrix unit, in `tiles.h`.
 */
#include "numbers.h"
#include <math.h>
/* Rows of weights, and of their gradients, are as long as some multiple of 16. */
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
#include "pairs.h"
#endif
#if MATRIX_UNIT
#include "tiles.h"
#else
#include "vectors.h"
#endif

/* Image `i` of `x`, with as many numbers as are read of it: beyond its own end any numbers will do, those of the next
 * image, or zeros in a copy. */
enum { COPY = READ > SIDE * SIDE * CI ? READ : 1 };
static inline const stored *readable(const stored *x, int i, int images, stored *copy)
{
    const stored *image = x + (int64_t)i * SIDE * SIDE * CI;
    if (COPY == 1 || (i + 1 < images && 2 * SIDE * SIDE * CI >= READ))
        return image;
    memcpy(copy, image, sizeof(stored) * SIDE * SIDE * CI);
    memset(copy + SIDE * SIDE * CI, 0, sizeof(stored) * (COPY - SIDE * SIDE * CI));
    return copy;
}
/* NaN must stay NaN, so that a training that diverges is seen to. */
#define RELU(x) ((x) < 0 ? 0 : (x))
/* The channels of one pixel at once: left alone, compilers would rather take many pixels and gather. */
#define EACH_CHANNEL(c) _Pragma("omp simd") for (int c = 0; c < CO; c++)

/* Dropout: set numbers of a row of an image to zero with probability `limit` / 65536, the same ones for the same
 * `seed`: to the negative zero, which nothing else brings about. 32 random bits serve two numbers: a counter, mixed as
 * MurmurHash3 ends (A. Appleby), with a key in between. */
static inline void drop(float *restrict y, uint64_t seed, int image, int row, uint32_t limit)
{
    enum { HALF = (OUT * CO + 1) / 2 };
    const uint64_t key = (seed ^ ((uint64_t)image << 32 | (uint32_t)image)) * 0x9e3779b97f4a7c15;
    const uint32_t first = (uint32_t)(key >> 32) + row * HALF, second = (uint32_t)key;
#pragma omp simd
    for (uint32_t u = 0; u < HALF; u++) {
        uint32_t bits = first + u;
        bits = (bits ^ bits >> 16) * 0x85ebca6b + second;
        bits = (bits ^ bits >> 13) * 0xc2b2ae35;
        bits ^= bits >> 16;
        y[u] = (bits & 0xffff) < limit ? -0.0f : y[u];
        if (u + HALF < OUT * CO)
            y[u + HALF] = bits >> 16 < limit ? -0.0f : y[u + HALF];
    }
}

static ALWAYS int dropped(float x)
{
    union { float number; uint32_t bits; } it = {.number = x};
    return it.bits == 0x80000000;
}

/* The greatest of each square of POOL rows, and in `at` its place within the square: the first of equals, and none,
 * POOL × POOL, where it was dropped. */
static inline void pool(const float *restrict rows, float *restrict y, int32_t *restrict at)
{
    for (int u = 0; u < POOLED; u++) {
        float greatest[CO];
        int32_t place[CO] = {0};
        memcpy(greatest, rows + u * POOL * CO, sizeof greatest);
        for (int p = 1; p < POOL * POOL; p++) {
            const float *here = rows + (p / POOL * OUT + u * POOL + p % POOL) * CO;
            EACH_CHANNEL(c) {
                int better = here[c] > greatest[c] || here[c] != here[c];
                greatest[c] = better ? here[c] : greatest[c];
                place[c] = better ? p : place[c];
            }
        }
        EACH_CHANNEL(c) {
            y[u * CO + c] = greatest[c];
            at[u * CO + c] = dropped(greatest[c]) ? POOL * POOL : place[c];
        }
    }
}

/* Share of a thread: images from the first to before the last. */
#define SHARE ((images + threads - 1) / threads)
#define IN_THREADS _Pragma("omp parallel num_threads(threads)")
#define EACH_IMAGE(i) _Pragma("omp for schedule(static, SHARE)") for (int i = 0; i < images; i++)

/* Put a weight where the convolutions read it: of `row` and `column` of the kernel, from channel `in` to `out` of so
 * many; forward as it is, backward turned by 180°, inputs and outputs exchanged. */
#define DEFINE_PACK(NAME, IN, OUTPUTS, WEIGHT)                                                                 \
    static inline void NAME(const float *restrict weight, stored *restrict w)                                  \
    {                                                                                                          \
        memset(w, 0, sizeof(stored) * PACKED(IN, OUTPUTS));                                                    \
        for (int row = 0; row < KERNEL; row++)                                                                 \
            for (int column = 0; column < KERNEL; column++)                                                    \
                for (int in = 0; in < (IN); in++)                                                              \
                    for (int out = 0; out < (OUTPUTS); out++)                                                  \
                        w[PLACE(IN, OUTPUTS, row, column, in, out)] = rounded(WEIGHT);                         \
    }
DEFINE_PACK(pack_forward, CI, CO, weight[((out * KERNEL + row) * KERNEL + column) * CI + in])
DEFINE_PACK(pack_backward, CO, CI, weight[(in * TAPS + TAPS - 1 - row * KERNEL - column) * CI + out])

/* y: the block's output; z: what the backward pass needs of it, the convolution's output, after ReLU where
 * that comes first. `weight`: outputs × kernel × kernel × inputs. `saved` gets mean and 1/deviation of each channel. What `seed` and
 * `limit` do not drop is multiplied by `scale`. `at`: what `pool` notes, unused without. */
void forward(const stored *restrict x, const float *restrict weight, const float *restrict gamma,
             const float *restrict beta, float *restrict mean, float *restrict variance, float momentum,
             float epsilon, stored *restrict z, stored *restrict y, float *restrict saved,
             int32_t *restrict at, uint64_t seed, uint32_t limit, float scale, int images, int threads)
{
    stored *w = aligned_alloc(64, sizeof(stored) * PACKED(CI, CO));
    pack_forward(weight, w);
    double total[2 * CO] = {0};
    double *part = calloc((size_t)threads * 2 * CO, sizeof(double));
    IN_THREADS {
        begin();
        EACH_IMAGE(i) {
        double *mine = part + (size_t)(i / SHARE) * 2 * CO;
        float result[RESULT], room[OUT * CO];
        stored copy[COPY];
        const stored *image = readable(x, i, images, copy);
        for (int row = 0; row < OUT; row++) {
            if (row % ROWS == 0)
                convolve(image, w, row, result);
            const float *from = result + row % ROWS * RESULT_WIDTH * RESULT_CHANNELS;
            stored *to = z + ((int64_t)i * OUT + row) * OUT * CO;
            float first[CO] = {0}, second[CO] = {0}, *its = line(to, room);
            for (int u = 0; u < OUT; u++)
                EACH_CHANNEL(c) {
                    float it = from[u * RESULT_CHANNELS + c];
                    it = RELU_FIRST ? RELU(it) : it;
                    its[u * CO + c] = it;
                    first[c] += it;
                    second[c] += it * it;
                }
            keep(its, to, OUT * CO);
            for (int c = 0; c < CO; c++) {
                mine[c] += first[c];
                mine[CO + c] += second[c];
            }
        }
        }
        end();
    }
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            total[c] += part[(size_t)t * 2 * CO + c];
    free(part);
    free(w);
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
    IN_THREADS EACH_IMAGE(i) {
        for (int top = 0; top < POOLED; top++) {
            int64_t to = ((int64_t)i * POOLED + top) * POOLED * CO;
            float room[POOLED * CO], *its = line(y + to, room), unpooled[POOL > 1 ? POOL * OUT * CO : 1];
            float *rows = POOL > 1 ? unpooled : its;
            for (int r = 0; r < POOL; r++) {
                float room_of_z[OUT * CO];
                const float *from = floats_of(z + ((int64_t)i * OUT + top * POOL + r) * OUT * CO, OUT * CO, room_of_z);
                for (int u = 0; u < OUT; u++)
                    EACH_CHANNEL(c) {
                        float it = from[u * CO + c] * factor[c] + offset[c];
                        rows[(r * OUT + u) * CO + c] = RELU_FIRST ? it : RELU(it);
                    }
                if (limit)
                    drop(rows + r * OUT * CO, seed, i, top * POOL + r, limit);
            }
            if (POOL > 1)
                pool(rows, its, at + to);
            keep(its, y + to, POOLED * CO);
        }
    }
}

/* y as it is outside training: batch norm is factor × value + offset, and nothing is dropped. */
void score(const stored *restrict x, const float *restrict weight, const float *restrict factor,
           const float *restrict offset, stored *restrict y, int images, int threads)
{
    stored *w = aligned_alloc(64, sizeof(stored) * PACKED(CI, CO));
    pack_forward(weight, w);
    IN_THREADS {
        begin();
        EACH_IMAGE(i) {
        float rows[POOL * OUT * CO], result[RESULT], room[POOLED * CO];
        int32_t at[POOLED * CO];
        stored copy[COPY];
        const stored *image = readable(x, i, images, copy);
        for (int row = 0; row < OUT; row++) {
            if (row % ROWS == 0)
                convolve(image, w, row, result);
            const float *from = result + row % ROWS * RESULT_WIDTH * RESULT_CHANNELS;
            for (int u = 0; u < OUT; u++)
                EACH_CHANNEL(c) {
                    float it = from[u * RESULT_CHANNELS + c];
                    it = (RELU_FIRST ? RELU(it) : it) * factor[c] + offset[c];
                    rows[(row % POOL * OUT + u) * CO + c] = RELU_FIRST ? it : RELU(it);
                }
            if (row % POOL == POOL - 1) {
                stored *to = y + ((int64_t)i * POOLED + row / POOL) * POOLED * CO;
                float *its = line(to, room);
                if (POOL > 1)
                    pool(rows, its, at);
                else
                    memcpy(its, rows, sizeof rows);
                keep(its, to, POOLED * CO);
            }
        }
        }
        end();
    }
    free(w);
}

/* From `gy`, the gradient of y, to `gx`, that of the input (none where that is null), `gweight`, `ggamma` and
 * `gbeta`. `g` is room for as many numbers as z, for a block without pooling. */
void backward(const stored *restrict gy, const stored *restrict x, const stored *restrict z,
              const float *restrict gamma, const float *restrict beta, const float *restrict saved,
              const float *restrict weight, stored *restrict gx, float *restrict gweight, float *restrict ggamma,
              float *restrict gbeta, const int32_t *restrict at, stored *restrict g, uint64_t seed,
              uint32_t limit, float scale, int images, int threads)
{
    enum { WEIGHTS = TAPS * GRADIENT_INPUTS * PADDED(CO) };
    stored *w = aligned_alloc(64, sizeof(stored) * PACKED(CO, CI));
    if (gx)
        pack_backward(weight, w);
    const float *m = saved, *inverse = saved + CO;
    float factor[CO], offset[CO];
    double total[2 * CO] = {0};
    double *part = calloc((size_t)threads * 2 * CO, sizeof(double));
    float *weights = calloc((size_t)threads * WEIGHTS, sizeof(float));
    for (int c = 0; c < CO; c++) {
        factor[c] = gamma[c] * inverse[c];
        offset[c] = beta[c] - m[c] * factor[c];
    }
    /* The gradient before dropout, and before ReLU where that comes last, but for `scale`. */
    const int changed = limit || !RELU_FIRST;
    const stored *before = POOL == 1 && changed ? g : gy;
    IN_THREADS EACH_IMAGE(i) {
        double *mine = part + (size_t)(i / SHARE) * 2 * CO;
        for (int row = 0; row < POOLED; row++) {
            int64_t to = ((int64_t)i * POOLED + row) * POOLED * CO;
            float first[CO] = {0}, second[CO] = {0};
            float room[POOLED * CO], *gradient = POOL == 1 && changed ? line(g + to, room) : room;
            for (int u = 0; u < POOLED * CO; u++)
                gradient[u] = value(gy[to + u]);
            if (POOL == 1 && limit)
                drop(gradient, seed, i, row, limit);
            float room_of_z[POOL * OUT * CO];
            const float *zs = floats_of(z + ((int64_t)i * OUT + row * POOL) * OUT * CO, POOL * OUT * CO, room_of_z);
            for (int u = 0; u < POOLED; u++) {
                /* What the gradient is of. */
                float it[CO] = {0};
                for (int p = 0; p < POOL * POOL; p++) {
                    const float *here = zs + (p / POOL * OUT + u * POOL + p % POOL) * CO;
                    EACH_CHANNEL(c) it[c] = POOL == 1 || at[to + u * CO + c] == p ? here[c] : it[c];
                }
                EACH_CHANNEL(c) {
                    int kept = POOL == 1 || at[to + u * CO + c] < POOL * POOL;
                    kept = kept && (RELU_FIRST || it[c] * factor[c] + offset[c] > 0);
                    float its = kept ? gradient[u * CO + c] : 0;
                    first[c] += its;
                    second[c] += its * (it[c] - m[c]);
                    if (POOL == 1)
                        gradient[u * CO + c] = its;
                }
            }
            if (POOL == 1 && changed)
                keep(gradient, g + to, OUT * CO);
            for (int c = 0; c < CO; c++) {
                mine[c] += first[c];
                mine[CO + c] += second[c];
            }
        }
    }
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            total[c] += scale * part[(size_t)t * 2 * CO + c];
    float by_g[CO], by_z[CO], constant[CO];
    double n = (double)images * AREA;
    for (int c = 0; c < CO; c++) {
        gbeta[c] = (float)total[c];
        ggamma[c] = (float)(total[CO + c] * inverse[c]);
        by_g[c] = factor[c] * scale;
        by_z[c] = (float)(-factor[c] * inverse[c] * inverse[c] * total[CO + c] / n);
        constant[c] = (float)(-factor[c] * total[c] / n) - by_z[c] * m[c];
    }
    IN_THREADS {
        begin();
        EACH_IMAGE(i) {
        /* The gradient of the convolution's own output, in its frame. */
        stored frame[(LEAD + SIDE * SIDE) * CO + SLACK], copy[COPY];
        memset(frame, 0, sizeof frame);
        for (int row = 0; row < OUT; row++) {
            stored *to = frame + (LEAD + row * SIDE) * CO;
            float room[OUT * CO], room_of_z[OUT * CO], room_of_g[OUT * CO], *its = line(to, room);
            const float *zs = floats_of(z + ((int64_t)i * OUT + row) * OUT * CO, OUT * CO, room_of_z);
            const int pooled_row = row / POOL < POOLED ? row / POOL : 0;
            const float *gs = floats_of(before + ((int64_t)i * POOLED + pooled_row) * POOLED * CO, POOLED * CO, room_of_g);
            for (int u = 0; u < OUT; u++) {
                const int inside = row < POOLED * POOL && u < POOLED * POOL;
                const int p = inside ? row % POOL * POOL + u % POOL : -1;
                const int64_t from = inside ? (((int64_t)i * POOLED + row / POOL) * POOLED + u / POOL) * CO : 0;
                const float *here = zs + u * CO, *g_here = gs + (inside ? u / POOL * CO : 0);
                EACH_CHANNEL(c) {
                    float it = here[c], gradient = g_here[c];
                    if (POOL > 1) {
                        int kept = at[from + c] == p && (RELU_FIRST || it * factor[c] + offset[c] > 0);
                        gradient = kept ? gradient : 0;
                    }
                    float whole = by_g[c] * gradient + by_z[c] * it + constant[c];
                    its[u * CO + c] = RELU_FIRST && !(it > 0) ? 0 : whole;
                }
            }
            keep(its, to, OUT * CO);
        }
        weigh(readable(x, i, images, copy), frame, weights + (size_t)(i / SHARE) * WEIGHTS);
        if (gx)
            turn_back(frame, w, gx + (int64_t)i * SIDE * SIDE * CI);
        }
        end();
    }
    for (int t = 1; t < threads; t++)
        for (int k = 0; k < WEIGHTS; k++)
            weights[k] += weights[(size_t)t * WEIGHTS + k];
    for (int o = 0; o < CO; o++)
        for (int tap = 0; tap < TAPS; tap++)
            for (int c = 0; c < CI; c++)
                gweight[(o * TAPS + tap) * CI + c] = weights[(tap * GRADIENT_INPUTS + c) * PADDED(CO) + o];
    free(part);
    free(weights);
    free(w);
}
