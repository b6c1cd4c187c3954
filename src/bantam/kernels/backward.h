/* The way back through a block, the rest of `block.c`: first the sums that batch norm asks for, then the gradients of
 * the weights and of the input, image by image. */
enum { WEIGHTS = TAPS * GRADIENT_INPUTS * PADDED(CO) };

/* What the gradient of the convolution's output is made of: by channel, factor and offset of batch norm, and from the
 * gradient behind it and the value in front of it by_gradient × gradient + by_value × value + constant. */
struct coefficients { float factor[CO], offset[CO], by_gradient[CO], by_value[CO], constant[CO]; };

/* Behind dropout, the side of what has a gradient, and of the squares one of whose elements has it: a max-pool gives
 * it to one of each square, an average to all. */
enum { GIVEN = AVERAGE ? OUT : POOLED, CHOICE = AVERAGE ? 1 : POOL };

/* One row of the gradient of an average's input: each element of a square has the same share. */
static inline void spread_row(const struct block_arguments *a, int i, int row, float *restrict to)
{
    float converted[POOLED * CO];
    const int pooled = row / POOL < POOLED ? row / POOL : 0; /* what is left over at the end has none */
    const element *from = a->grad_output + ((int64_t)i * POOLED + pooled) * POOLED * CO;
    const float *gradients = floats_of(from, POOLED * CO, converted), share = row / POOL < POOLED ? 1.0f / SQUARE : 0;
    for (int u = 0; u < OUT; u++)
        EACH_VECTOR(v) {
            const int inside = u / POOL < POOLED;
            channels gradient = GIVEN_CHANNELS(gradients + (inside ? u / POOL * CO : 0), v);
            CHANNELS_AT(to + u * CO, v) = gradient * (inside ? share : 0);
        }
}

/* One row of the gradient behind dropout as floats, without what that drops, but for `dropout_scale`: drawing its
 * numbers once more takes less time than keeping the gradient. */
static inline const float *gradient_row(const struct block_arguments *a, int i, int row, float *restrict buffer)
{
    const float *gradients = buffer;
    if (AVERAGE)
        spread_row(a, i, row, buffer);
    else
        gradients = floats_of(a->grad_output + ((int64_t)i * POOLED + row) * POOLED * CO, POOLED * CO, buffer);
    if (MAX_POOL || !a->dropout_limit)
        return gradients;
    if (!BFLOAT16 && !AVERAGE)
        memcpy(buffer, gradients, sizeof(float) * POOLED * CO);
    drop(buffer, a->dropout_seed, i, row, a->dropout_limit);
    return buffer;
}

/* One row of that gradient: add each channel's gradients, and their products with the deviations from the mean. Of a
 * sum in front of ReLU they are also what the other map gets. */
static inline void sum_row(const struct block_arguments *a, const struct coefficients *k, int i, int row, double *sums)
{
    const int64_t to = ((int64_t)i * GIVEN + row) * GIVEN * CO;
    float buffer[GIVEN * CO], converted[CHOICE * OUT * CO];
    const float *gradients = gradient_row(a, i, row, buffer);
    const element *rows = a->convolved + ((int64_t)i * OUT + row * CHOICE) * OUT * CO;
    const float *convolved = floats_of(rows, CHOICE * OUT * CO, converted);
    channels sum[CHANNEL_VECTORS] = {{0}}, products[CHANNEL_VECTORS] = {{0}};
    for (int u = 0; u < GIVEN; u++)
        EACH_VECTOR(v) {
            channels gradient = GIVEN_CHANNELS(gradients + u * CO, v);
            channels value = GIVEN_CHANNELS(convolved + u * CHOICE * CO, v); /* what the gradient is of */
            if (MAX_POOL) {
                numbers index = *(const numbers *)(a->argmax + to + u * CO + FIRST(v));
                for (int p = 1; p < SQUARE; p++) {
                    const float *pixel = convolved + (p / POOL * OUT + u * POOL + p % POOL) * CO;
                    value = WHERE(index == p, GIVEN_CHANNELS(pixel, v), value);
                }
                gradient = ONLY_WHERE(index < SQUARE, gradient);
            }
            if (RELU_LAST && SUM) {
                gradient = ONLY_WHERE(GIVEN_CHANNELS(a->output + to + u * CO, v) > (channels){0}, gradient);
                CHANNELS_AT(a->grad_other + to + u * CO, v) = gradient;
            } else if (RELU_LAST) {
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

/* One row of the gradient of the convolution's own output, and in front of ReLU its sums, which are the bias's. */
static inline void frame_row(const struct block_arguments *a, const struct coefficients *k, int i, int row,
                             element *to, double *sums)
{
    float buffer[OUT * CO], converted[OUT * CO], converted_gradients[OUT * CO], *values = row_buffer(to, buffer);
    const float *convolved = floats_of(a->convolved + ((int64_t)i * OUT + row) * OUT * CO, OUT * CO, converted);
    const int given_row = row / CHOICE < GIVEN ? row / CHOICE : 0;
    const int64_t start = ((int64_t)i * GIVEN + given_row) * GIVEN * CO;
    /* Of a sum in front of ReLU it is there already, as what the other map gets. */
    const int summed = RELU_LAST && SUM;
    const float *gradients = summed ? (const float *)(a->grad_other + start)
                                    : gradient_row(a, i, given_row, converted_gradients);
    channels sum[CHANNEL_VECTORS] = {{0}};
    for (int u = 0; u < OUT; u++) {
        const int inside = row < GIVEN * CHOICE && u < GIVEN * CHOICE;
        const int p = inside ? row % CHOICE * CHOICE + u % CHOICE : -1, given = inside ? u / CHOICE * CO : 0;
        EACH_VECTOR(v) {
            channels value = GIVEN_CHANNELS(convolved + u * CO, v), gradient = GIVEN_CHANNELS(gradients + given, v);
            if (MAX_POOL) {
                numbers index = *(const numbers *)(a->argmax + start + given + FIRST(v));
                gradient = ONLY_WHERE(index == p, gradient);
            }
            if (RELU_LAST && !SUM) {
                channels normalized = value * GIVEN_CHANNELS(k->factor, v) + GIVEN_CHANNELS(k->offset, v);
                gradient = ONLY_WHERE(normalized > (channels){0}, gradient);
            }
            gradient = GIVEN_CHANNELS(k->by_value, v) * value + GIVEN_CHANNELS(k->by_gradient, v) * gradient
                + GIVEN_CHANNELS(k->constant, v);
            gradient = RELU_FIRST ? ONLY_WHERE(value > (channels){0}, gradient) : gradient;
            CHANNELS_AT(values + u * STRIDE * CO, v) = gradient;
            sum[v] += gradient;
        }
    }
    if (ADD_BIAS)
        add_channels(sums, sum);
    store_row(values, to, OUT * CO);
}

/* The gradients of the input, where it is asked for, of the weights: a thread's own WEIGHTS, and of the bias: the first
 * CO of a thread's own 2 × CO. */
static inline void convolution_gradient(const struct block_arguments *a, const struct coefficients *k,
                                        const element *packed, float *thread_weights, double *thread_sums)
{
    const int images = a->images, threads = a->threads;
    IN_THREADS {
        /* Every image writes all of the frame but its zeros. */
        element frame[(FRAME_START + SIDE * SIDE) * CO + FRAME_END], copy[COPY];
        memset(frame, 0, sizeof frame);
        begin_products();
        EACH_IMAGE(i) {
            for (int row = 0; row < OUT; row++)
                frame_row(a, k, i, row, frame + (FRAME_START + row * STRIDE * SIDE) * CO,
                          thread_sums + (size_t)(i / SHARE) * 2 * CO);
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
        for (int row = 0; row < GIVEN; row++)
            sum_row(a, &k, i, row, thread_sums + (size_t)(i / SHARE) * 2 * CO);
    }
    double sums[2 * CO] = {0};
    for (int t = 0; t < threads; t++)
        for (int c = 0; c < 2 * CO; c++)
            sums[c] += a->dropout_scale * thread_sums[(size_t)t * 2 * CO + c];
    norm_gradient(a, sums, &k);
    memset(thread_sums, 0, sizeof(double) * threads * 2 * CO);
    convolution_gradient(a, &k, packed, weights, thread_sums);
    for (int c = 0; c < BIAS * CO; c++) {
        double sum = 0; /* exactly what it is in front of batch norm */
        for (int t = 0; t < threads; t++)
            sum += thread_sums[(size_t)t * 2 * CO + c];
        a->grad_bias[c] = (float)sum;
    }
    for (int t = 1; t < threads; t++)
        for (int w = 0; w < WEIGHTS; w++)
            weights[w] += weights[(size_t)t * WEIGHTS + w];
    for (int o = 0; o < CO; o++)
        for (int tap = 0; tap < TAPS; tap++)
            for (int c = 0; c < INPUTS; c++)
                a->grad_weight[(o * TAPS + tap) * INPUTS + c] = weights[(tap * GRADIENT_INPUTS + c) * PADDED(CO) + o];
    free(thread_sums);
    free(weights);
    free(packed);
}
