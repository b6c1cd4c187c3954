/* The shape of a convolution, from the sizes that `compiler.py` gives it; those with a default most do not have. */
#ifndef PADDING
#define PADDING 0
#endif
#ifndef STRIDE
#define STRIDE 1
#endif
#ifndef BIAS
#define BIAS 0
#endif
#define IMAGE_SIDE (SIDE - 2 * PADDING)
#define OUT ((SIDE - KERNEL) / STRIDE + 1)
#define SPREAD ((OUT - 1) * STRIDE + 1)
#define AREA (OUT * OUT)
#define BORDER (KERNEL - 1)
#define TAPS (KERNEL * KERNEL)
/* The gradient of an output lies in a frame of zeros: as wide as the input, so that the zeros at the end of a row
 * are before the next one too, with so many pixels before the first row. Pixels of it are a stride apart, SPREAD from
 * the first to the last. */
#define FRAME_START (BORDER * SIDE + BORDER)
