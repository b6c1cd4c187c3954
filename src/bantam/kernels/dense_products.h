/* The convolution of the images in the first block of a chain, and the gradient of its weights, by vectors of floats: see
 * `separable.c`. What is under the kernel is read where it lies in the image. */
enum { READ_ROOM = 1, PADDED_CO = PADDED(CO) };
/* Numbers from one pixel to the next of results, in bfloat16 of a copy with room for whole vectors, and of their gradient. */
enum { RESULT_ROW = BFLOAT16 ? PADDED_CO : CO, RESULT_ROOM = FEW_ROWS * OUT * RESULT_ROW + LANES };
enum { GRADIENT_ROW = PADDED_CO, GRADIENT_ROOM = FEW_ROWS * OUT * GRADIENT_ROW };
/* The gradient of the weights: inputs × outputs. */
enum { WEIGHTS_ROW = PADDED_CO, WEIGHTS = INPUTS * WEIGHTS_ROW };
#define PACKED_ROOM(numbers, outputs) ((numbers)*PADDED(outputs))

static inline void begin_forward_tiles(void) {}
static inline void begin_backward_tiles(void) {}
static inline void end_products(void) {}

static inline void pack_forward(const float *weight, float *to)
{
    memset(to, 0, sizeof(float) * PACKED_ROOM(INPUTS, CO));
    for (int c = 0; c < CO; c++)
        for (int k = 0; k < INPUTS; k++)
            to[k * PADDED_CO + c] = weight[c * INPUTS + k];
}

/* The input that is under the kernel's number `tap`, behind the first one. */
enum { SPAN = KERNEL * CI };
#define UNDER(tap) ((tap) / SPAN * SIDE * CI + (tap) % SPAN)
/* Outputs are taken up to three vectors at a time: with so many pixels of a row, or so many inputs, that the sums stay in
 * registers. */
#if defined(__aarch64__) || defined(__AVX512VL__)
#define MOST(width) ((width) == 1 ? 14 : (width) == 2 ? 13 : 9)
#else
#define MOST(width) ((width) == 1 ? 12 : (width) == 2 ? 6 : 4)
#endif
#define PARTS(count, width) (((count) + MOST(width) - 1) / MOST(width))
#define PART(count, width) (((count) + PARTS(count, width) - 1) / PARTS(count, width))
enum { MOST_SUMS = 14, THREES_OF_CO = VECTORS(CO) / 3, REST_OF_CO = VECTORS(CO) % 3 };

/* A row of results, `width` vectors of its outputs. The last pixels may overlap those before. */
static INLINE void dense_row(const float *image, const float *packed, float *y, const int width, const int first)
{
    const int wide = PART(OUT, width);
    for (int part = 0; part < PARTS(OUT, width); part++) {
        const int start = part * wide < OUT - wide ? part * wide : OUT - wide;
        vector sum[MOST_SUMS][3] = {{{0}}};
        for (int kh = 0; kh < KERNEL; kh++)
            _Pragma("GCC unroll 1") for (int k = 0; k < SPAN; k++) {
                const float *from = image + kh * SIDE * CI + start * CI + k;
                vector weight[3];
                UNROLLED(v, width) {
                    weight[v] = load(packed + (kh * SPAN + k) * PADDED_CO + (first + v) * LANES);
                    KEEP(weight[v]);
                }
                UNROLLED(u, wide) UNROLLED(v, width) sum[u][v] += from[u * CI] * weight[v];
            }
        UNROLLED(u, wide) UNROLLED(v, width)
            store_part(y + (start + u) * RESULT_ROW, sum[u][v], (first + v) * LANES, RESULT_ROW);
    }
}

/* Results of so many rows, of the image from the first of them on. */
ALONE void dense_product(const float *restrict image, const float *restrict packed, float *restrict y, int rows)
{
    for (int row = 0; row < rows; row++, image += SIDE * CI, y += OUT * RESULT_ROW) {
        for (int group = 0; group < THREES_OF_CO; group++)
            dense_row(image, packed, y, 3, 3 * group);
        if (REST_OF_CO)
            dense_row(image, packed, y, REST_OF_CO, 3 * THREES_OF_CO);
    }
}

static INLINE void dense_gradient_group(const float *image, const float *gradient, float *sums, int rows, const int width,
                                        const int first)
{
    const int some = PART(INPUTS, width);
    for (int begin = 0; begin < INPUTS; begin += some) {
        vector sum[MOST_SUMS][3] = {{{0}}};
        for (int row = 0; row < rows; row++)
            for (int u = 0; u < OUT; u++) {
                const float *from = image + (row * SIDE + u) * CI;
                vector here[3];
                UNROLLED(v, width) {
                    here[v] = load(gradient + (row * OUT + u) * GRADIENT_ROW + (first + v) * LANES);
                    KEEP(here[v]);
                }
                UNROLLED(k, some)
                    if (begin + k < INPUTS)
                        UNROLLED(v, width) sum[k][v] += from[UNDER(begin + k)] * here[v];
            }
        UNROLLED(k, some)
            if (begin + k < INPUTS)
                UNROLLED(v, width) {
                    float *to = sums + (begin + k) * WEIGHTS_ROW + (first + v) * LANES;
                    store(to, load(to) + sum[k][v]);
                }
    }
}

/* Of so many rows: add to the gradient of the convolution's weights. */
ALONE void dense_gradient(const float *restrict image, const float *restrict gradient, float *restrict sums, int rows)
{
    for (int group = 0; group < THREES_OF_CO; group++)
        dense_gradient_group(image, gradient, sums, rows, 3, 3 * group);
    if (REST_OF_CO)
        dense_gradient_group(image, gradient, sums, rows, REST_OF_CO, 3 * THREES_OF_CO);
}
