/* Augmentation of whole batches: bytes to floats from 0 to 1, brightness and contrast, geometry; see `augmentation.py`.
 *
 * `compiler.py` compiles this file with the sizes as constants: CHANNELS of an image, HIGH rows and WIDE columns.
 */
#include "numbers.h"
#include "arguments.h"
#include "products.h"
/* An image lies in a frame of zeros, one before every row and column and two behind: outside of it is black. */
enum { PIXELS = HIGH * WIDE, ACROSS = WIDE + 3, FRAME = (HIGH + 3) * ACROSS, INSIDE = ACROSS + 1 };
#define EACH(x, count) _Pragma("omp simd") for (int x = 0; x < (count); x++)

/* Multiply, add so many times the mean, and clip to 0 … 1. */
ALONE void line(float *restrict image, float factor, float of_mean)
{
    vector sum = {0};
    float mean = 0;
    for (int u = 0; u < PIXELS / LANES * LANES; u += LANES)
        sum += load(image + u);
    for (int lane = 0; lane < LANES; lane++)
        mean += sum[lane];
    for (int u = PIXELS / LANES * LANES; u < PIXELS; u++)
        mean += image[u];
    const vector zero = {0}, offset = mean / PIXELS * of_mean - zero, one = zero - 1;
    for (int u = 0; u < PIXELS; u += LANES) /* what is computed behind the last pixel is not read */
        store(image + u, -larger(-larger(load(image + u) * factor + offset, zero), one));
}

/* Places in the frame and, between them and the next ones, how far to the right and below, of a row of the result.
 * `half` is added to them. Places outside are the nearest ones that are black. */
static INLINE void places(const float *across, const float *restrict mapping, int y, float half, int32_t *at,
                          float *right, float *below)
{
    const vector zero = {0}, last_x = zero - (WIDE + 1), last_y = zero - (HIGH + 1);
    const float down = y - (HIGH - 1) / 2.f;
    const float first_x = mapping[1] * down + mapping[2] + (WIDE + 1) / 2.f;
    const float first_y = mapping[4] * down + mapping[5] + (HIGH + 1) / 2.f;
    for (int x = 0; x < PADDED(WIDE); x += LANES) {
        const vector u = half - larger(-larger(load(across + x) * mapping[0] + first_x, zero), last_x);
        const vector v = half - larger(-larger(load(across + x) * mapping[3] + first_y, zero), last_y);
        const integers column = __builtin_convertvector(u, integers), row = __builtin_convertvector(v, integers);
        store(right + x, u - __builtin_convertvector(column, vector));
        store(below + x, v - __builtin_convertvector(row, vector));
        *(integers *)(at + x) = row * ACROSS + column;
    }
}

/* Every pixel of the result is the nearest one of the image, or between the four around its place. Rows take several
 * loops, since in the one that reads the image numbers are anywhere. */
ALONE void warp(const float *restrict frame, const float *restrict mapping, int nearest, float *restrict to)
{
    float across[PADDED(WIDE)], right[PADDED(WIDE)], below[PADDED(WIDE)];
    int32_t at[PADDED(WIDE)];
    struct pair { float left, right; } upper[PADDED(WIDE)], lower[PADDED(WIDE)];
    for (int x = 0; x < PADDED(WIDE); x++)
        across[x] = x - (WIDE - 1) / 2.f;
    for (int y = 0; y < HIGH; y++, to += WIDE) {
        places(across, mapping, y, nearest ? 0.5f : 0, at, right, below);
        if (nearest) {
            for (int x = 0; x < WIDE; x++)
                to[x] = frame[at[x]];
            continue;
        }
        for (int x = 0; x < WIDE; x++) {
            memcpy(&upper[x], frame + at[x], sizeof upper[x]);
            memcpy(&lower[x], frame + at[x] + ACROSS, sizeof lower[x]);
        }
        EACH(x, WIDE) {
            const float above = upper[x].left + right[x] * (upper[x].right - upper[x].left);
            const float under = lower[x].left + right[x] * (lower[x].right - lower[x].left);
            to[x] = above + below[x] * (under - above);
        }
    }
}

void augment(const struct augment_arguments *a)
{
    float frame[FRAME] = {0}, image[PIXELS + LANES];
    for (int64_t i = 0; i < (int64_t)a->images * CHANNELS; i++) {
        const uint8_t *restrict from = a->input + i * PIXELS;
        EACH(u, PIXELS) image[u] = from[u] / 255.f;
        if (a->light) { /* of images of one channel */
            line(image, a->light[i], a->light[a->step + i]);
            line(image, a->light[2 * a->step + i], a->light[3 * a->step + i]);
        }
        if (a->mapping) {
            for (int y = 0; y < HIGH; y++)
                memcpy(frame + INSIDE + y * ACROSS, image + y * WIDE, sizeof(float) * WIDE);
            warp(frame, a->mapping + i / CHANNELS * 6, a->nearest, a->output + i * PIXELS);
        } else
            memcpy(a->output + i * PIXELS, image, sizeof(float) * PIXELS);
    }
}
