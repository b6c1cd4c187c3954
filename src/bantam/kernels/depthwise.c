/* A valid convolution of every channel by itself, forward and backward.
 *
 * `blocks.py` compiles this file for every shape, with the sizes as constants: SIDE, side of the input; CHANNELS;
 * KERNEL, side of the kernel; BFLOAT16, 1 for images in bfloat16. Images are N×H×W×C numbers, weights
 * KERNEL×KERNEL×C floats.
 */
#include "numbers.h"
#define OUT (SIDE - KERNEL + 1)
#define TAPS (KERNEL * KERNEL)
#define EACH_CHANNEL(c) _Pragma("omp simd") for (int c = 0; c < CHANNELS; c++)
/* From the first pixel under the kernel to the one under `tap`. */
#define TO(tap) ((((tap) / KERNEL) * SIDE + (tap) % KERNEL) * CHANNELS)

enum { ROOM = BFLOAT16 ? SIDE * SIDE * CHANNELS : 1 };

void forward(const stored *restrict x, const float *restrict w, stored *restrict y, int images, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < images; i++) {
        float room[ROOM];
        const float *image = floats_of(x + (int64_t)i * SIDE * SIDE * CHANNELS, SIDE * SIDE * CHANNELS, room);
        for (int row = 0; row < OUT; row++) {
            stored *to = y + ((int64_t)i * OUT + row) * OUT * CHANNELS;
            float line_[OUT * CHANNELS], *its = line(to, line_);
            for (int u = 0; u < OUT; u++) {
                const float *from = image + (row * SIDE + u) * CHANNELS;
                float sum[CHANNELS] = {0};
                _Pragma("GCC unroll 9") for (int tap = 0; tap < TAPS; tap++)
                    EACH_CHANNEL(c) sum[c] += from[TO(tap) + c] * w[tap * CHANNELS + c];
                memcpy(its + u * CHANNELS, sum, sizeof sum);
            }
            keep(its, to, OUT * CHANNELS);
        }
    }
}

/* From `gy`, the gradient of y, to `gx`, that of x (none where that is null), and `gw`, that of w. */
void backward(const stored *restrict gy, const stored *restrict x, const float *restrict w, stored *restrict gx,
              float *restrict gw, int images, int threads)
{
    const int share = (images + threads - 1) / threads;
    float *part = calloc((size_t)threads * TAPS * CHANNELS, sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static, share)
    for (int i = 0; i < images; i++) {
        float weights[TAPS * CHANNELS] = {0}, gradient[SIDE * SIDE * CHANNELS], room[ROOM], room_of_g[ROOM];
        const float *image = floats_of(x + (int64_t)i * SIDE * SIDE * CHANNELS, SIDE * SIDE * CHANNELS, room);
        const float *gs = floats_of(gy + (int64_t)i * OUT * OUT * CHANNELS, OUT * OUT * CHANNELS, room_of_g);
        if (gx)
            memset(gradient, 0, sizeof gradient);
        for (int row = 0; row < OUT; row++)
            for (int u = 0; u < OUT; u++) {
                const float *g = gs + (row * OUT + u) * CHANNELS;
                const float *from = image + (row * SIDE + u) * CHANNELS;
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
        if (gx && BFLOAT16)
            keep(gradient, gx + (int64_t)i * SIDE * SIDE * CHANNELS, SIDE * SIDE * CHANNELS);
        else if (gx)
            memcpy(gx + (int64_t)i * SIDE * SIDE * CHANNELS, gradient, sizeof gradient);
    }
    memset(gw, 0, sizeof(float) * TAPS * CHANNELS);
    for (int t = 0; t < threads; t++)
        for (int k = 0; k < TAPS * CHANNELS; k++)
            gw[k] += part[(size_t)t * TAPS * CHANNELS + k];
    free(part);
}
