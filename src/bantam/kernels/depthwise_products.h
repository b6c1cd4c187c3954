/* The three products of `depthwise.h`, as `block.c` calls those of a convolution: one row at a time, its channels side by
 * side. */
#include "depthwise.h"
enum { ROWS = 1, RESULT_WIDTH = OUT, RESULT_CHANNELS = CO, RESULT = OUT * CO };
enum { WEIGHTS = TAPS * PADDED(CO), FRAME_END = 0, READ = SIDE * SIDE * CO };
#define WEIGHT_INDEX(tap, in, out) ((tap)*PADDED(CO) + (out))
#define PACKED(IN, OUTPUTS) (TAPS * PADDED(CO))
static inline void pack_forward(const float *weight, float *packed) { pack_taps(weight, packed); }
static inline void pack_backward(const float *weight, float *packed) { pack_taps(weight, packed); }

static inline void convolve(const float *image, const float *packed, int row, float *result)
{
    convolve_row(image, packed, NULL, row, result);
}

/* Add to the gradient of the weights, taps × PADDED(CO), what an image brings. */
static inline void weight_gradient(const float *restrict image, const float *restrict frame, float *restrict grad_weight)
{
    float brought[TAPS * CO];
    taps_gradient(image, frame, brought);
    for (int tap = 0; tap < TAPS; tap++)
        for (int c = 0; c < CO; c++)
            grad_weight[tap * PADDED(CO) + c] += brought[tap * CO + c];
}

static inline void input_gradient(const float *frame, const float *packed, float *grad_input)
{
    image_gradient(frame, packed, grad_input);
}

static inline void begin_products(const int forward) { (void)forward; }
static inline void end_products(void) {}
