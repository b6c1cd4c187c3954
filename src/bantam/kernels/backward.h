/* The way back through a block, the rest of `block.c`: first the sums that batch norm asks for, then the gradients of
 * the weights and of the input, image by image. */
enum { WEIGHTS = TAPS * GRADIENT_INPUTS * PADDED(CO) };

/* What the gradient of the convolution's output is made of: by channel, factor and offset of batch norm, and from the
 * gradient behind it and the value in front of it by_gradient × gradient + by_value × value + constant. */
struct coefficients { float factor[CO], offset[CO], by_gradient[CO], by_value[CO], constant[CO]; };

/* The gradient of batch norm's output is changed by dropout and by a ReLU that comes last. Without pooling it is kept
 * after that, but for `dropout_scale`, where the gradient of the block's output is not it already. */
static inline int is_changed(const struct block_arguments *a)
{
    return POOL == 1 && (a->dropout_limit || !RELU_FIRST);
}

/* One row of the output: add each channel's gradients, and their products with the deviations from the mean. */
static inline void sum_row(const struct block_arguments *a, const struct coefficients *k, int i, int row, double *sums)
{
    const float *restrict mean = a->statistics, *restrict factor = k->factor, *restrict offset = k->offset;
    const int32_t *restrict argmax = a->argmax;
    int64_t to = ((int64_t)i * POOLED + row) * POOLED * CO;
    float sum[CO] = {0}, products[CO] = {0}, buffer[POOLED * CO];
    float *gradients = is_changed(a) ? row_buffer(a->grad_normalized + to, buffer) : buffer;
    const element *restrict grad_output = a->grad_output;
    for (int u = 0; u < POOLED * CO; u++)
        gradients[u] = as_float(grad_output[to + u]);
    if (POOL == 1 && a->dropout_limit)
        drop(gradients, a->dropout_seed, i, row, a->dropout_limit);
    float converted[POOL * OUT * CO];
    const element *rows = a->convolved + ((int64_t)i * OUT + row * POOL) * OUT * CO;
    const float *convolved = floats_of(rows, POOL * OUT * CO, converted);
    for (int u = 0; u < POOLED; u++) {
        float value[CO] = {0}; /* what the gradient is of */
        for (int p = 0; p < SQUARE; p++) {
            const float *pixel = convolved + (p / POOL * OUT + u * POOL + p % POOL) * CO;
            EACH_CHANNEL(c) value[c] = POOL == 1 || argmax[to + u * CO + c] == p ? pixel[c] : value[c];
        }
        EACH_CHANNEL(c) {
            int kept = POOL == 1 || argmax[to + u * CO + c] < SQUARE;
            kept = kept && (RELU_FIRST || value[c] * factor[c] + offset[c] > 0);
            float gradient = kept ? gradients[u * CO + c] : 0;
            sum[c] += gradient;
            products[c] += gradient * (value[c] - mean[c]);
            if (POOL == 1)
                gradients[u * CO + c] = gradient;
        }
    }
    if (is_changed(a))
        store_row(gradients, a->grad_normalized + to, OUT * CO);
    for (int c = 0; c < CO; c++) {
        sums[c] += sum[c];
        sums[CO + c] += products[c];
    }
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
    const element *restrict before = is_changed(a) ? a->grad_normalized : a->grad_output;
    const int32_t *restrict argmax = a->argmax;
    const float *restrict factor = k->factor, *restrict offset = k->offset;
    const float *restrict by_gradient = k->by_gradient, *restrict by_value = k->by_value;
    const float *restrict constant = k->constant;
    float buffer[OUT * CO], converted[OUT * CO], converted_gradients[OUT * CO], *values = row_buffer(to, buffer);
    const float *convolved = floats_of(a->convolved + ((int64_t)i * OUT + row) * OUT * CO, OUT * CO, converted);
    const int pooled_row = row / POOL < POOLED ? row / POOL : 0;
    const int64_t start = ((int64_t)i * POOLED + pooled_row) * POOLED * CO;
    const float *gradients = floats_of(before + start, POOLED * CO, converted_gradients);
    for (int u = 0; u < OUT; u++) {
        const int inside = row < POOLED * POOL && u < POOLED * POOL;
        const int p = inside ? row % POOL * POOL + u % POOL : -1;
        const int64_t from = inside ? start + u / POOL * CO : 0;
        const float *pixel = convolved + u * CO, *gradient_here = gradients + (inside ? u / POOL * CO : 0);
        EACH_CHANNEL(c) {
            float value = pixel[c], gradient = gradient_here[c];
            if (POOL > 1) {
                int kept = argmax[from + c] == p && (RELU_FIRST || value * factor[c] + offset[c] > 0);
                gradient = kept ? gradient : 0;
            }
            float sum = by_gradient[c] * gradient + by_value[c] * value + constant[c];
            values[u * CO + c] = RELU_FIRST && !(value > 0) ? 0 : sum;
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
        begin_products();
        EACH_IMAGE(i) {
            element frame[(FRAME_START + SIDE * SIDE) * CO + FRAME_END], copy[COPY];
            memset(frame, 0, sizeof frame);
            for (int row = 0; row < OUT; row++)
                frame_row(a, k, i, row, frame + (FRAME_START + row * SIDE) * CO);
            const element *image = readable_image(a->input, i, images, copy);
            weight_gradient(image, frame, thread_weights + (size_t)(i / SHARE) * WEIGHTS);
            if (a->grad_input)
                input_gradient(frame, packed, a->grad_input + (int64_t)i * SIDE * SIDE * CI);
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
