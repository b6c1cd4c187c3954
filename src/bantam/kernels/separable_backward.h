/* The way back through a block, the rest of `separable.c`. A block gets the gradient of its batch norm's output and the
 * sums that batch norm asks for, and leaves both for the block before it. */
/* The gradient of the depthwise convolution's output lies in a frame of zeros, see `shape.h`. */
enum { FRAME_FIRST = FRAME_START * CI, FRAME = FRAME_FIRST + SIDE * SIDE * CI };
/* So many rows of the input get their gradient together: of up to 13 all, of more about half of them. */
enum { IN_PARTS = (IMAGE_SIDE + 12) / 13, MOST_INPUT_ROWS = (IMAGE_SIDE + IN_PARTS - 1) / IN_PARTS };
/* A thread's sums: the gradients of both weights, in whole lines of the cache. */
enum { ROOM = (WEIGHTS + TAPS * STEP + 15) / 16 * 16 };
/* What a thread works with. Zeros first: they stay where nothing is written, as in the padding. */
struct workspace {
    number read[READ_ROOM] LINES;
    number gradient[GRADIENT_ROOM] LINES;
    float image[CONVOLVED], frame[DEPTHWISE ? FRAME + LANES : 1];
};

/* By channel: by_gradient × gradient + by_value × value + constant is the gradient of the convolution's output. With a
 * weight of zero all results of a batch norm are equal: then all bits of `equal` are set. */
struct coefficients { float by_gradient[PADDED(CO)], by_value[PADDED(CO)], constant[PADDED(CO)]; int32_t equal[PADDED(CO)]; };

/* The last block: the gradient in front of its ReLU, and its sums. */
void begin_backward(const struct separable_arguments *a)
{
    const float *restrict mean = a->statistics, *restrict factor = a->factor, *restrict offset = a->offset;
    const int64_t pixels = POOLED * POOLED;
    double sums[2 * PADDED(CO)] = {0};
    for (int64_t i = 0; i < a->images; i++)
        for (int v = 0; v < VECTORS(CO); v++) {
            const int at = v * LANES;
            vector sum = {0}, products = {0};
            for (int64_t u = i * pixels * CO; u < (i + 1) * pixels * CO; u += CO) {
                const vector value = load_elements(a->pooled + u + at);
                const integers passes = value * load(factor + at) + load(offset + at) > 0;
                const vector gradient = (vector)((integers)load_part(a->grad_output + u, at, CO) & passes);
                store_elements_part(a->gradient + u, gradient, at, CO);
                sum += gradient;
                products += gradient * (value - load(mean + at));
            }
            add_doubles(sums + at, sum);
            add_doubles(sums + PADDED(CO) + at, products);
        }
    memcpy(a->sums, sums, sizeof(double) * CO);
    memcpy(a->sums + CO, sums + PADDED(CO), sizeof(double) * CO);
}

/* The gradients of batch norm's own weights, and the coefficients. */
static void norm_gradient(const struct separable_arguments *a, struct coefficients *k)
{
    const float *mean = a->statistics, *inverse = a->statistics + CO;
    const double n = (double)a->images * AREA, *sums = a->sums;
    for (int c = 0; c < CO; c++) {
        a->grad_beta[c] = (float)sums[c];
        a->grad_gamma[c] = (float)(sums[CO + c] * inverse[c]);
        k->by_gradient[c] = a->factor[c];
        k->by_value[c] = (float)(-a->factor[c] * inverse[c] * inverse[c] * sums[CO + c] / n);
        k->equal[c] = -(a->gamma[c] == 0);
        k->constant[c] = (float)(-a->factor[c] * sums[c] / n) - k->by_value[c] * mean[c];
    }
}

/* Add to the gradient of the depthwise weights, taps × STEP, what an image brings. */
ALONE void depthwise_gradient(const float *restrict active, const float *restrict frame, float *restrict sums)
{
    for (int v = 0; v < PERIOD; v++) {
        vector sum[TAPS];
        UNROLLED(tap, TAPS) sum[tap] = (vector){0};
        for (int u = v * LANES; u < OUT * CI; u += STEP) {
            vector gradient[KERNEL]; /* of the row, and of those above it */
            UNROLLED(kh, KERNEL) gradient[kh] = (vector){0};
            for (int row = 0; row < SIDE; row++) { /* below the last there are zeros in the frame */
                const float *from = active + row * SIDE * CI + u;
                UNROLLED(kh, BORDER) gradient[BORDER - kh] = gradient[BORDER - 1 - kh];
                gradient[0] = load(frame + FRAME_FIRST + row * SIDE * CI + u);
                UNROLLED(kw, KERNEL) {
                    const vector value = load(from + kw * CI);
                    UNROLLED(kh, KERNEL) sum[kh * KERNEL + kw] += gradient[kh] * value;
                }
            }
        }
        UNROLLED(tap, TAPS) {
            float *to = sums + tap * STEP + v * LANES;
            store(to, load(to) + sum[tap]);
        }
    }
}

/* What is the same for every pixel of one vector of channels, and its sums. */
struct back { vector weight[TAPS], factor, offset, mean, sum, products; };

/* The gradient of so many rows of the depthwise convolution's input, from `u` on, passed back through ReLU of the block
 * before: each row of the frame is read once, for all that it is added to. The last vector of a row may be only a PART. */
static INLINE void input_rows(struct back *back, const float *from, const element *image, element *to, int u, const int rows,
                              const int part)
{
    vector sum[MOST_INPUT_ROWS] = {{0}};
    integers wanted;
    for (int lane = 0; lane < LANES; lane++)
        wanted[lane] = -(lane < ROW % LANES);
    UNROLLED(r, rows + BORDER) {
        vector values[KERNEL];
        UNROLLED(kw, KERNEL) values[kw] = load(from + ((r - BORDER) * SIDE - kw) * CI + u);
        UNROLLED(kh, KERNEL)
            if (r - BORDER + kh >= 0 && r - BORDER + kh < rows)
                UNROLLED(kw, KERNEL) sum[r - BORDER + kh] += values[kw] * back->weight[kh * KERNEL + kw];
        if (r < BORDER)
            continue;
        const element *row = image + (r - BORDER) * ROW;
        const vector value = part ? load_elements_part(row, u, ROW) : load_elements(row + u);
        integers passes = value * back->factor + back->offset > 0;
        if (part)
            passes &= wanted;
        const vector passed = (vector)((integers)sum[r - BORDER] & passes);
        if (part)
            store_elements_part(to + (r - BORDER) * ROW, passed, u, ROW);
        else
            store_elements(to + (r - BORDER) * ROW + u, passed);
        back->sum += passed;
        back->products += passed * (value - back->mean);
    }
}

static INLINE void input_columns(struct back *back, const float *frame, const element *image, element *to, int u,
                                 const int part)
{
    int row = 0;
    for (; row + MOST_INPUT_ROWS <= IMAGE_SIDE; row += MOST_INPUT_ROWS)
        input_rows(back, frame + FRAME_FIRST + INSIDE(row), image + row * ROW, to + row * ROW, u, MOST_INPUT_ROWS, part);
    for (; row < IMAGE_SIDE; row++)
        input_rows(back, frame + FRAME_FIRST + INSIDE(row), image + row * ROW, to + row * ROW, u, 1, part);
}

/* The gradient of the output of the block before, in front of its ReLU: of the depthwise convolution's input without its
 * padding. Adds to its sums, 2 × STEP. */
ALONE void input_gradient(const struct separable_arguments *a, const float *restrict frame, const float *restrict taps,
                          const element *restrict image, element *restrict to, double *sums)
{
    float factors[STEP], offsets[STEP], means[STEP];
    repeat(a->in_factor, 1, factors);
    repeat(a->in_offset, 1, offsets);
    repeat(a->in_statistics, 1, means);
    for (int v = 0; v < PERIOD; v++) {
        struct back back = {.factor = load(factors + v * LANES), .offset = load(offsets + v * LANES),
                            .mean = load(means + v * LANES)};
        UNROLLED(tap, TAPS) back.weight[tap] = load(taps + tap * STEP + v * LANES);
        int u = v * LANES;
        for (; u + LANES <= ROW; u += STEP)
            input_columns(&back, frame, image, to, u, 0);
        if (ROW % LANES && u < ROW)
            input_columns(&back, frame, image, to, u, 1);
        add_doubles(sums + v * LANES, back.sum);
        add_doubles(sums + STEP + v * LANES, back.products);
    }
}

/* Rows of the gradient of the convolution's output. What a max-pool took is found again: the first that is equal. */
ALONE void norm_rows(const struct separable_arguments *a, const struct coefficients *k, int image, int row, int rows,
                     number *restrict to)
{
    const element *restrict convolved = a->convolved + ((int64_t)image * OUT + row) * OUT * CO;
    const int64_t at = ((int64_t)image * POOLED + row / POOL) * POOLED * CO;
    const element *restrict gradient = a->gradient + at, *restrict pooled = a->pooled + at;
    if (POOL == 1 || OUT % POOL)
        for (int u = 0; u < rows * OUT; u++)
            UNROLLED(v, VECTORS(CO)) {
                const int at_vector = u * CO + v * LANES;
                vector value = load(k->by_value + v * LANES) * load_elements(convolved + at_vector)
                    + load(k->constant + v * LANES);
                if (POOL == 1)
                    value += load(k->by_gradient + v * LANES) * load_elements(gradient + at_vector);
                store_numbers_part(to + u * GRADIENT_ROW, value, v * LANES, GRADIENT_ROW);
            }
    if (POOL == 1)
        return;
    for (int u = 0; u < rows / POOL * POOLED; u++)
        UNROLLED(v, VECTORS(CO)) {
            const int first = (u / POOLED * OUT + u % POOLED) * POOL;
            const vector here = load(k->by_gradient + v * LANES) * load_elements(gradient + u * CO + v * LANES);
            const vector took = load_elements(pooled + u * CO + v * LANES);
            const integers equal = *(const integers *)(k->equal + v * LANES);
            integers open = ~(integers){0};
            UNROLLED(p, SQUARE) {
                const int pixel = first + p / POOL * OUT + p % POOL;
                const vector value = load_elements(convolved + pixel * CO + v * LANES);
                const integers taken = open & (equal | (value == took));
                vector sum = load(k->by_value + v * LANES) * value + load(k->constant + v * LANES);
                store_numbers_part(to + pixel * GRADIENT_ROW, sum + (vector)((integers)here & taken), v * LANES, GRADIENT_ROW);
                open &= ~taken;
            }
        }
}

/* An image: add to the gradients of the weights, and leave the gradient of its input. */
static INLINE void image_gradient(const struct separable_arguments *a, const struct coefficients *k, int i,
                                  const number *packed, const float *taps, struct workspace *own, float *weights,
                                  double *in_sums)
{
    const float *image = convolved_image(a, i, own->image);
    BANDS(row, rows) {
        if (DEPTHWISE) {
            FETCH(a->convolved + (int64_t)(i + 1) * AREA * CO, AREA * CO, row, rows);
            FETCH(a->gradient + (int64_t)(i + 1) * POOLED * POOLED * CO, POOLED * POOLED * CO, row, rows);
            FETCH((const element *)a->input + (int64_t)(i + 1) * IN_IMAGE, IN_IMAGE, row, rows);
        }
        norm_rows(a, k, i, row, rows, own->gradient);
#if !DEPTHWISE
        (void)packed;
        dense_gradient(image + row * SIDE * CI, own->gradient, weights, rows);
#else
        read_rows(image, taps, row, rows, own->read);
        weight_gradient(own->read, own->gradient, weights, rows * OUT);
        backward_product(own->gradient, packed, own->frame + FRAME_FIRST + row * SIDE * CI, rows);
#endif
    }
    if (DEPTHWISE) {
        const element *input = (const element *)a->input + (int64_t)i * IN_IMAGE;
        depthwise_gradient(image, own->frame, weights + WEIGHTS);
        input_gradient(a, own->frame, taps, input, a->in_gradient + (int64_t)i * IN_IMAGE, in_sums);
    }
}

/* From `gradient` and its sums to the gradients of all weights, and to `in_gradient` and its sums. */
void backward(const struct separable_arguments *a)
{
    const int images = a->images, threads = a->threads;
    number packed[DEPTHWISE ? PACKED_ROOM(CO, CI) : 1] LINES;
    float taps[TAPS * STEP];
    float *weights = aligned_alloc(64, sizeof(float) * threads * ROOM);
    double *in_sums = calloc((size_t)threads * 2 * STEP, sizeof(double));
    /* Also behind the last channel: what lies there by chance may be numbers that a processor is slow to compute with. */
    struct coefficients k = {{0}, {0}, {0}, {0}};
    memset(weights, 0, sizeof(float) * threads * ROOM);
    norm_gradient(a, &k);
    if (DEPTHWISE) {
        repeat_weights(a->depthwise, taps);
#if DEPTHWISE
        pack_backward(a->weight, packed);
#endif
    }
    IN_THREADS {
        struct workspace own;
        memset(&own, 0, sizeof own);
        begin_backward_tiles();
        EACH_IMAGE(i)
            image_gradient(a, &k, i, packed, taps, &own, weights + (size_t)(i / SHARE) * ROOM,
                           in_sums + (size_t)(i / SHARE) * 2 * STEP);
        end_products();
    }
    for (int t = 1; t < threads; t++) {
        for (int w = 0; w < ROOM; w++)
            weights[w] += weights[(size_t)t * ROOM + w];
        for (int u = 0; u < 2 * STEP; u++)
            in_sums[u] += in_sums[(size_t)t * 2 * STEP + u];
    }
    for (int o = 0; o < CO; o++)
        for (int in = 0; in < INPUTS; in++)
            a->grad_weight[o * INPUTS + in] = weights[in * WEIGHTS_ROW + o];
    if (DEPTHWISE) {
        memset(a->grad_depthwise, 0, sizeof(float) * CI * TAPS);
        for (int tap = 0; tap < TAPS; tap++)
            for (int u = 0; u < STEP; u++)
                a->grad_depthwise[u % CI * TAPS + tap] += weights[WEIGHTS + tap * STEP + u];
        memset(a->in_sums, 0, sizeof(double) * 2 * CI);
        for (int u = 0; u < 2 * STEP; u++)
            a->in_sums[u / STEP * CI + u % STEP % CI] += in_sums[u];
    }
    free(weights);
    free(in_sums);
}
