/* A valid convolution of every channel by itself, forward and backward.
 *
 * `native.py` compiles this file for every shape, with the sizes as constants: SIDE, side of the input; CHANNELS;
 * KERNEL, side of the kernel. Images are N×H×W×C floats, weights KERNEL×KERNEL×C.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define OUT (SIDE - KERNEL + 1)
#define TAPS (KERNEL * KERNEL)
#define EACH_CHANNEL(c) _Pragma("omp simd") for (int c = 0; c < CHANNELS; c++)
/* From the first pixel under the kernel to the one under `tap`. */
#define TO(tap) ((((tap) / KERNEL) * SIDE + (tap) % KERNEL) * CHANNELS)

void forward(const float *restrict x, const float *restrict w, float *restrict y, int images, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < images; i++)
        for (int row = 0; row < OUT; row++)
            for (int u = 0; u < OUT; u++) {
                const float *from = x + (((int64_t)i * SIDE + row) * SIDE + u) * CHANNELS;
                float sum[CHANNELS] = {0};
                _Pragma("GCC unroll 9") for (int tap = 0; tap < TAPS; tap++)
                    EACH_CHANNEL(c) sum[c] += from[TO(tap) + c] * w[tap * CHANNELS + c];
                memcpy(y + (((int64_t)i * OUT + row) * OUT + u) * CHANNELS, sum, sizeof sum);
            }
}

/* From `gy`, the gradient of y, to `gx`, that of x (none where that is null), and `gw`, that of w. */
void backward(const float *restrict gy, const float *restrict x, const float *restrict w, float *restrict gx,
              float *restrict gw, int images, int threads)
{
    const int share = (images + threads - 1) / threads;
    float *part = calloc((size_t)threads * TAPS * CHANNELS, sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static, share)
    for (int i = 0; i < images; i++) {
        float weights[TAPS * CHANNELS] = {0}, gradient[SIDE * SIDE * CHANNELS];
        if (gx)
            memset(gradient, 0, sizeof gradient);
        for (int row = 0; row < OUT; row++)
            for (int u = 0; u < OUT; u++) {
                const float *g = gy + (((int64_t)i * OUT + row) * OUT + u) * CHANNELS;
                const float *from = x + (((int64_t)i * SIDE + row) * SIDE + u) * CHANNELS;
                float *to = gradient + (row * SIDE + u) * CHANNELS;
                _Pragma("GCC unroll 9") for (int tap = 0; tap < TAPS; tap++)
                    EACH_CHANNEL(c) weights[tap * CHANNELS + c] += g[c] * from[TO(tap) + c];
                if (gx)
                    _Pragma("GCC unroll 9") for (int tap = 0; tap < TAPS; tap++)
                        EACH_CHANNEL(c) to[TO(tap) + c] += g[c] * w[tap * CHANNELS + c];
            }
        float *mine = part + (size_t)(i / share) * TAPS * CHANNELS;
        for (int k = 0; k < TAPS * CHANNELS; k++)
            mine[k] += weights[k];
        if (gx)
            memcpy(gx + (int64_t)i * SIDE * SIDE * CHANNELS, gradient, sizeof gradient);
    }
    memset(gw, 0, sizeof(float) * TAPS * CHANNELS);
    for (int t = 0; t < threads; t++)
        for (int k = 0; k < TAPS * CHANNELS; k++)
            gw[k] += part[(size_t)t * TAPS * CHANNELS + k];
    free(part);
}
