/* The way back through a block, the rest of `block.c`: first the sums that batch norm asks for, then the gradients of
 * the weights and of the input, image by image. */
/* What the gradient of the convolution's output is made of: by channel, factor and offset of batch norm, and from the
 * gradient behind it and the value in front of it by_gradient × gradient + by_value × value + constant. */
struct coefficients { float factor[CO], offset[CO], by_gradient[CO], by_value[CO], constant[CO]; };

/* Behind dropout, the side of what has a gradient, and of the squares one of whose elements has it: a max-pool gives
 * it to one of each square, an average to all. */
enum { GIVEN = AVERAGE ? OUT : POOLED, CHOICE = AVERAGE ? 1 : POOL };

/* The gradient behind dropout of WIDTH channels of a pixel, without what that drops, but for `dropout_scale`. Each
 * element of an average's square has the same share. */
static INLINE channels gradient_at(const struct block_arguments *a, int i, int row, int u, int v)
{
    const int x = AVERAGE ? u / POOL : u, y = AVERAGE ? row / POOL : row, inside = x < POOLED && y < POOLED;
    const int64_t from = (((int64_t)i * POOLED + (inside ? y : 0)) * POOLED + (inside ? x : 0)) * CO + FIRST(v);
    channels gradient = channels_of(a->grad_output + from);
    if (AVERAGE) /* what is left over at the end of the map has none */
        gradient *= inside ? 1.0f / SQUARE : 0;
    if (MAX_POOL || !a->dropout_limit)
        return gradient;
    return without_dropped(gradient, row_of_bits(a->dropped, i, row), u * CO + FIRST(v), (channels){0});
}

/* One row of that gradient: add each channel's gradients, and their products with the deviations from the mean. Of a
 * sum in front of ReLU they are also what the other map gets. */
static inline void sum_row(const struct block_arguments *a, const struct coefficients *k, int i, int row, double *sums)
{
    const int64_t to = ((int64_t)i * GIVEN + row) * GIVEN * CO;
    const element *convolved = a->convolved + ((int64_t)i * OUT + row * CHOICE) * OUT * CO;
    channels sum[CHANNEL_VECTORS] = {{0}}, products[CHANNEL_VECTORS] = {{0}};
    for (int u = 0; u < GIVEN; u++)
        EACH_VECTOR(v) {
            channels gradient = gradient_at(a, i, row, u, v);
            channels value = channels_of(convolved + u * CHOICE * CO + FIRST(v)); /* what the gradient is of */
            if (MAX_POOL) {
                numbers index = numbers_of(a->argmax + to + u * CO + FIRST(v));
                for (int p = 1; p < SQUARE; p++) {
                    const element *pixel = convolved + (p / POOL * OUT + u * POOL + p % POOL) * CO;
                    value = WHERE(index == p, channels_of(pixel + FIRST(v)), value);
                }
                gradient = ONLY_WHERE(index < SQUARE, gradient);
            }
            if (RELU_LAST && SUM) {
                gradient = ONLY_WHERE(channels_of(a->output + to + u * CO + FIRST(v)) > (channels){0}, gradient);
                store_channels(gradient, a->grad_other + to + u * CO + FIRST(v));
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

/* The gradient of an element of the convolution's own output, from that behind dropout, for WIDTH channels of a pixel. */
static INLINE channels gradient_of_output(const struct coefficients *k, int v, channels value, channels gradient)
{
    if (RELU_LAST && !SUM) {
        channels normalized = value * GIVEN_CHANNELS(k->factor, v) + GIVEN_CHANNELS(k->offset, v);
        gradient = ONLY_WHERE(normalized > (channels){0}, gradient);
    }
    gradient = GIVEN_CHANNELS(k->by_value, v) * value + GIVEN_CHANNELS(k->by_gradient, v) * gradient
        + GIVEN_CHANNELS(k->constant, v);
    return RELU_FIRST ? ONLY_WHERE(value > (channels){0}, gradient) : gradient;
}

/* One row of that gradient, and in front of ReLU its sums, which are the bias's. */
static inline void frame_row(const struct block_arguments *a, const struct coefficients *k, int i, int row,
                             element *to, double *sums)
{
    const element *convolved = a->convolved + ((int64_t)i * OUT + row) * OUT * CO;
    const int given_row = row / CHOICE < GIVEN ? row / CHOICE : 0;
    const int64_t start = ((int64_t)i * GIVEN + given_row) * GIVEN * CO;
    channels sum[CHANNEL_VECTORS] = {{0}};
    for (int square = 0; square < (OUT + CHOICE - 1) / CHOICE; square++)
        EACH_VECTOR(v) {
            const int inside = row < GIVEN * CHOICE && square < GIVEN, given = inside ? square : 0;
            /* Of a sum in front of ReLU the gradient is there already, as what the other map gets. */
            channels gradient = RELU_LAST && SUM ? channels_of(a->grad_other + start + given * CO + FIRST(v))
                                                 : gradient_at(a, i, given_row, given, v);
            numbers index = {0};
            if (MAX_POOL)
                index = numbers_of(a->argmax + start + given * CO + FIRST(v));
            for (int c = 0; c < CHOICE && square * CHOICE + c < OUT; c++) {
                const int u = square * CHOICE + c, p = inside ? row % CHOICE * CHOICE + c : -1;
                channels value = channels_of(convolved + u * CO + FIRST(v));
                value = gradient_of_output(k, v, value, MAX_POOL ? ONLY_WHERE(index == p, gradient) : gradient);
                store_channels(value, to + u * STRIDE * CO + FIRST(v));
                sum[v] += value;
            }
        }
    if (ADD_BIAS)
        add_channels(sums, sum);
}

/* The gradients of the input, where it is asked for, of the weights: a thread's own WEIGHTS, and of the bias: the first
 * CO of a thread's own 2 × CO. */
static inline void convolution_gradient(const struct block_arguments *a, const struct coefficients *k,
                                        const element *packed, float *thread_weights, double *thread_sums)
{
    const int images = a->images, threads = a->threads;
    IN_THREADS {
        /* Every image writes all of the frame but its zeros. */
        element frame[(FRAME_START + SIDE * SIDE) * CO + FRAME_END] LINES, copy[COPY] LINES;
        memset(frame, 0, sizeof frame);
        begin_products(0);
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
    float *weights = aligned_alloc(64, sizeof(float) * threads * WEIGHTS);
    memset(weights, 0, sizeof(float) * threads * WEIGHTS);
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
#if WINOGRAD
    transform_to_weights(weights);
#endif
    for (int o = 0; o < CO; o++)
        for (int tap = 0; tap < TAPS; tap++)
            for (int c = 0; c < INPUTS; c++)
                a->grad_weight[(o * TAPS + tap) * INPUTS + c] = weights[WEIGHT_INDEX(tap, c, o)];
    free(thread_sums);
    free(weights);
    free(packed);
}
