/* The way back through a block, the rest of `block.c`: first the sums that batch norm asks for, then the gradients of
 * the weights and of the input, image by image. */
enum { WEIGHTS = TAPS * GRADIENT_INPUTS * PADDED(CO) };

/* What the gradient of the convolution's output is made of: by channel, factor and offset of batch norm, and from the
 * gradient behind it and the value in front of it by_gradient × gradient + by_value × value + constant. */
struct coefficients { float factor[CO], offset[CO], by_gradient[CO], by_value[CO], constant[CO]; };

/* One row of the gradient of the block's output as floats, without what dropout drops, but for `dropout_scale`: drawing
 * its numbers once more takes less time than keeping the gradient. */
static inline const float *gradient_row(const struct block_arguments *a, int i, int row, float *restrict buffer)
{
    const float *gradients = floats_of(a->grad_output + ((int64_t)i * POOLED + row) * POOLED * CO, POOLED * CO, buffer);
    if (POOL > 1 || !a->dropout_limit)
        return gradients;
    if (!BFLOAT16)
        memcpy(buffer, gradients, sizeof(float) * POOLED * CO);
    drop(buffer, a->dropout_seed, i, row, a->dropout_limit);
    return buffer;
}

/* One row of the output: add each channel's gradients, and their products with the deviations from the mean. */
static inline void sum_row(const struct block_arguments *a, const struct coefficients *k, int i, int row, double *sums)
{
    const int64_t to = ((int64_t)i * POOLED + row) * POOLED * CO;
    float buffer[POOLED * CO], converted[POOL * OUT * CO];
    const float *gradients = gradient_row(a, i, row, buffer);
    const element *rows = a->convolved + ((int64_t)i * OUT + row * POOL) * OUT * CO;
    const float *convolved = floats_of(rows, POOL * OUT * CO, converted);
    channels sum[CHANNEL_VECTORS] = {{0}}, products[CHANNEL_VECTORS] = {{0}};
    for (int u = 0; u < POOLED; u++)
        EACH_VECTOR(v) {
            channels gradient = GIVEN_CHANNELS(gradients + u * CO, v);
            channels value = GIVEN_CHANNELS(convolved + u * POOL * CO, v); /* what the gradient is of */
            if (POOL > 1) {
                numbers index = *(const numbers *)(a->argmax + to + u * CO + FIRST(v));
                for (int p = 1; p < SQUARE; p++) {
                    const float *pixel = convolved + (p / POOL * OUT + u * POOL + p % POOL) * CO;
                    value = WHERE(index == p, GIVEN_CHANNELS(pixel, v), value);
                }
                gradient = ONLY_WHERE(index < SQUARE, gradient);
            }
            if (!RELU_FIRST) {
                channels normalized = value * GIVEN_CHANNELS(k->factor, v) + GIVEN_CHANNELS(k->offset, v);
                gradient = ONLY_WHERE(normalized > (channels){0}, gradient);
            }
            sum[v] += gradient;
            products[v] += gradient * (value - GIVEN_CHANNELS(a->statistics, v));
        }
    add_channels(sums, sum);
    add_channels(sums + CO, products);
}

/* The gradients of batch norm's own weights, and the coefficients, from the sums over all images. */
static inline void norm_gradient(const struct block_arguments *a, const double *sums, struct coefficients *k)
{
    const float *mean = a->statistics, *inverse = a->statistics + CO;
    double n = (double)a->images * AREA;
    for (int c = 0; c < CO; c++) {
        a->grad_beta[c] = (float)sums[c];
        a->grad_gamma[c] = (float)(sums[CO + c] * inverse[c]);
        k->by_gradient[c] = k->factor[c] * a->dropout_scale;
        k->by_value[c] = (float)(-k->factor[c] * inverse[c] * inverse[c] * sums[CO + c] / n);
        k->constant[c] = (float)(-k->factor[c] * sums[c] / n) - k->by_value[c] * mean[c];
    }
}

/* One row of the gradient of the convolution's own output. */
static inline void frame_row(const struct block_arguments *a, const struct coefficients *k, int i, int row,
                             element *to)
{
    float buffer[OUT * CO], converted[OUT * CO], converted_gradients[OUT * CO], *values = row_buffer(to, buffer);
    const float *convolved = floats_of(a->convolved + ((int64_t)i * OUT + row) * OUT * CO, OUT * CO, converted);
    const int pooled_row = row / POOL < POOLED ? row / POOL : 0;
    const int64_t start = ((int64_t)i * POOLED + pooled_row) * POOLED * CO;
    const float *gradients = gradient_row(a, i, pooled_row, converted_gradients);
    for (int u = 0; u < OUT; u++) {
        const int inside = row < POOLED * POOL && u < POOLED * POOL;
        const int p = inside ? row % POOL * POOL + u % POOL : -1, pooled = inside ? u / POOL * CO : 0;
        EACH_VECTOR(v) {
            channels value = GIVEN_CHANNELS(convolved + u * CO, v), gradient = GIVEN_CHANNELS(gradients + pooled, v);
            if (POOL > 1) {
                numbers index = *(const numbers *)(a->argmax + start + pooled + FIRST(v));
                gradient = ONLY_WHERE(index == p, gradient);
            }
            if (!RELU_FIRST) {
                channels normalized = value * GIVEN_CHANNELS(k->factor, v) + GIVEN_CHANNELS(k->offset, v);
                gradient = ONLY_WHERE(normalized > (channels){0}, gradient);
            }
            channels sum = GIVEN_CHANNELS(k->by_value, v) * value + GIVEN_CHANNELS(k->by_gradient, v) * gradient
                + GIVEN_CHANNELS(k->constant, v);
            CHANNELS_AT(values + u * CO, v) = RELU_FIRST ? ONLY_WHERE(value > (channels){0}, sum) : sum;
        }
    }
    store_row(values, to, OUT * CO);
}

/* The gradients of the input, where it is asked for, and of the weights: a thread's own WEIGHTS. */
static inline void convolution_gradient(const struct block_arguments *a, const struct coefficients *k,
                                        const element *packed, float *thread_weights)
{
    const int images = a->images, threads = a->threads;
    IN_THREADS {
        /* Every image writes all of the frame but its zeros. */
        element frame[(FRAME_START + SIDE * SIDE) * CO + FRAME_END], copy[COPY];
        memset(frame, 0, sizeof frame);
        begin_products();
        EACH_IMAGE(i) {
            for (int row = 0; row < OUT; row++)
                frame_row(a, k, i, row, frame + (FRAME_START + row * SIDE) * CO);
            const element *image = readable_image(a->input, i, images, copy);
            weight_gradient(image, frame, thread_weights + (size_t)(i / SHARE) * WEIGHTS);
            if (a->grad_input)
                input_gradient(frame, packed, a->grad_input + (int64_t)i * IMAGE_SIDE * IMAGE_SIDE * CI);
        }
        end_products();
    }
}

/* From the gradient of the output to those of the input and of the weights. */
void backward(const struct block_arguments *a)
{
    const int images = a->images, threads = a->threads;
    element *packed = aligned_alloc(64, sizeof(element) * PACKED(CO, CI));
    double *thread_sums = calloc((size_t)threads * 2 * CO, sizeof(double));
    float *weights = calloc((size_t)threads * WEIGHTS, sizeof(float));
    if (a->grad_input)
        pack_backward(a->weight, packed);
    struct coefficients k;
    for (int c = 0; c < CO; c++) {
        k.factor[c] = a->gamma[c] * a->statistics[CO + c];
        k.offset[c] = a->beta[c] - a->statistics[c] * k.factor[c];
    }
    IN_THREADS EACH_IMAGE(i) {
        for (int row = 0; row < POOLED; row++)
            sum_row(a, &k, i, row, thread_sums + (size_t)(i / SHARE) * 2 * CO);
    }
    double sums[2 * CO] = {0};
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            sums[c] += a->dropout_scale * thread_sums[(size_t)t * 2 * CO + c];
    norm_gradient(a, sums, &k);
    convolution_gradient(a, &k, packed, weights);
    for (int t = 1; t < threads; t++)
        for (int w = 0; w < WEIGHTS; w++)
            weights[w] += weights[(size_t)t * WEIGHTS + w];
    for (int o = 0; o < CO; o++)
        for (int tap = 0; tap < TAPS; tap++)
            for (int c = 0; c < CI; c++)
                a->grad_weight[(o * TAPS + tap) * CI + c] = weights[(tap * GRADIENT_INPUTS + c) * PADDED(CO) + o];
    free(thread_sums);
    free(weights);
    free(packed);
}
