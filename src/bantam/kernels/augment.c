/* Augmentation of whole batches: bytes to floats from 0 to 1, brightness and contrast, geometry; see `augmentation.py`.
 *
 * `compiler.py` compiles this file with the sizes as constants: CHANNELS, HIGH and WIDE of an image.
 */
#include "numbers.h"
#include "arguments.h"
#include "products.h"
/* An image lies in a frame of zeros, one before every row and column and two behind: outside of it is black. */
enum { ACROSS = WIDE + 3, FRAME = (HIGH + 3) * ACROSS, INSIDE = ACROSS + 1 };
#define EACH_PIXEL(y, x)                                                                                       \
    for (int y = 0; y < HIGH; y++)                                                                           \
        _Pragma("omp simd") for (int x = 0; x < WIDE; x++)
#define CLIPPED(value) ((value) > 0 ? (value) < 1 ? (value) : 1 : 0)

/* Multiply, add so many times the mean, and clip to 0 … 1. */
static void line(float *restrict inside, float factor, float of_mean)
{
    float sum = 0;
    for (int y = 0; y < HIGH; y++)
        _Pragma("omp simd reduction(+:sum)") for (int x = 0; x < WIDE; x++) sum += inside[y * ACROSS + x];
    const float offset = sum / (HIGH * WIDE) * of_mean;
    EACH_PIXEL(y, x) {
        const float value = inside[y * ACROSS + x] * factor + offset;
        inside[y * ACROSS + x] = CLIPPED(value);
    }
}

/* Every pixel of the result from the four around its place in the image; of places outside the nearest that is black.
 * Three loops for a row, since compilers do not turn one into vectors: in the second one numbers are anywhere. */
static void warp(const float *restrict frame, const float *restrict mapping, float *restrict to)
{
    float across[PADDED(WIDE)], right[PADDED(WIDE)], below[PADDED(WIDE)];
    int32_t at[PADDED(WIDE)];
    struct pair { float left, right; } upper[PADDED(WIDE)], lower[PADDED(WIDE)];
    const vector zero = {0}, last_x = zero - (WIDE + 1), last_y = zero - (HIGH + 1);
    for (int x = 0; x < PADDED(WIDE); x++)
        across[x] = x - (WIDE - 1) / 2.f;
    for (int y = 0; y < HIGH; y++, to += WIDE) {
        const float down = y - (HIGH - 1) / 2.f;
        const float first_x = mapping[1] * down + mapping[2] + (WIDE + 1) / 2.f;
        const float first_y = mapping[4] * down + mapping[5] + (HIGH + 1) / 2.f;
        for (int x = 0; x < PADDED(WIDE); x += LANES) {
            const vector u = -LARGER(-LARGER(load(across + x) * mapping[0] + first_x, zero), last_x);
            const vector v = -LARGER(-LARGER(load(across + x) * mapping[3] + first_y, zero), last_y);
            const integers column = __builtin_convertvector(u, integers), row = __builtin_convertvector(v, integers);
            store(right + x, u - __builtin_convertvector(column, vector));
            store(below + x, v - __builtin_convertvector(row, vector));
            *(integers *)(at + x) = row * ACROSS + column;
        }
        for (int x = 0; x < WIDE; x++) {
            memcpy(&upper[x], frame + at[x], sizeof upper[x]);
            memcpy(&lower[x], frame + at[x] + ACROSS, sizeof lower[x]);
        }
        _Pragma("omp simd") for (int x = 0; x < WIDE; x++) {
            const float above = upper[x].left + right[x] * (upper[x].right - upper[x].left);
            const float under = lower[x].left + right[x] * (lower[x].right - lower[x].left);
            to[x] = above + below[x] * (under - above);
        }
    }
}

void augment(const struct augment_arguments *a)
{
    float frame[FRAME] = {0};
    for (int64_t i = 0; i < a->images; i++)
        for (int c = 0; c < CHANNELS; c++) {
            const int64_t at = (i * CHANNELS + c) * HIGH * WIDE;
            const uint8_t *restrict from = a->input + at;
            float *restrict inside = frame + INSIDE, *restrict to = a->output + at;
            EACH_PIXEL(y, x) inside[y * ACROSS + x] = from[y * WIDE + x] / 255.f;
            if (a->light) {
                line(inside, a->light[i], a->light[a->step + i]);
                line(inside, a->light[2 * a->step + i], a->light[3 * a->step + i]);
            }
            if (a->mapping)
                warp(frame, a->mapping + i * 6, to);
            else
                EACH_PIXEL(y, x) to[y * WIDE + x] = inside[y * ACROSS + x];
        }
}
