/* The parts of a block by themselves, for `parts.py`: appended to `block.c`, so that they are the same code. Each does the
 * work of one pass over all images on one thread; what it brings is thrown away, or is what the block had there anyway. */

/* Compilers shall compute what nobody reads. */
#define KEEP(pointer) __asm__ volatile("" ::"r"(pointer) : "memory")

/* Multiplications for each of the four outputs of a square and each pair of channels, in quarters. */
int multiplications(void) { return WINOGRAD ? 16 : 4 * TAPS; }

void products_forward(const struct block_arguments *a)
{
    element *packed = aligned_alloc(64, sizeof(element) * PACKED(CI, CO));
    pack_forward(a->weight, packed);
    begin_products(1);
    for (int i = 0; i < a->images; i++) {
        float result[RESULT] LINES;
        element copy[COPY] LINES;
        const element *image = readable_image(a->input, i, a->images, copy);
        for (int row = 0; row < OUT; row += ROWS)
            convolve(image, packed, row, result);
        KEEP(result);
    }
    end_products();
    free(packed);
}

/* With the sums of batch norm, and the results put into memory. */
void convolution_and_sums(const struct block_arguments *a)
{
    element *packed = aligned_alloc(64, sizeof(element) * PACKED(CI, CO));
    double *thread_sums = calloc((size_t)a->threads * 2 * CO, sizeof(double));
    pack_forward(a->weight, packed);
    convolve_images(a, packed, thread_sums);
    free(thread_sums);
    free(packed);
}

void normalize_drop_pool(const struct block_arguments *a)
{
    float factor[CO], offset[CO];
    for (int c = 0; c < CO; c++)
        factor[c] = 1, offset[c] = 0;
    finish_images(a, factor, offset);
}

void normalize_pool(const struct block_arguments *a)
{
    struct block_arguments without = *a;
    without.dropout_limit = 0;
    normalize_drop_pool(&without);
}

void pack_weights(const struct block_arguments *a)
{
    element *packed = aligned_alloc(64, sizeof(element) * (PACKED(CI, CO) + PACKED(CO, CI)));
    pack_forward(a->weight, packed);
    pack_backward(a->weight, packed + PACKED(CI, CO));
    KEEP(packed);
    free(packed);
}

static struct coefficients some_coefficients(void)
{
    struct coefficients k;
    for (int c = 0; c < CO; c++) {
        k.factor[c] = k.by_gradient[c] = k.by_value[c] = 1;
        k.offset[c] = k.constant[c] = 0;
    }
    return k;
}

void sums_backward(const struct block_arguments *a)
{
    struct coefficients k = some_coefficients();
    double sums[2 * CO] = {0};
    for (int i = 0; i < a->images; i++)
        for (int row = 0; row < GIVEN; row++)
            sum_row(a, &k, i, row, sums);
    KEEP(sums);
}

void gradient_to_frame(const struct block_arguments *a)
{
    struct coefficients k = some_coefficients();
    double sums[2 * CO] = {0};
    for (int i = 0; i < a->images; i++) {
        element frame[(FRAME_START + SIDE * SIDE) * CO + FRAME_END] LINES;
        memset(frame, 0, sizeof frame);
        for (int row = 0; row < OUT; row++)
            frame_row(a, &k, i, row, frame + (FRAME_START + row * STRIDE * SIDE) * CO, sums);
        KEEP(frame);
    }
    KEEP(sums);
}

void products_weight_gradient(const struct block_arguments *a)
{
    float *weights = aligned_alloc(64, sizeof(float) * WEIGHTS);
    memset(weights, 0, sizeof(float) * WEIGHTS);
    element frame[(FRAME_START + SIDE * SIDE) * CO + FRAME_END] LINES;
    memset(frame, 0, sizeof frame);
    begin_products(0);
    for (int i = 0; i < a->images; i++) {
        element copy[COPY] LINES;
        weight_gradient(readable_image(a->input, i, a->images, copy), frame, weights);
    }
    end_products();
    KEEP(weights);
    free(weights);
}

void products_input_gradient(const struct block_arguments *a)
{
    element *packed = aligned_alloc(64, sizeof(element) * PACKED(CO, CI));
    element frame[(FRAME_START + SIDE * SIDE) * CO + FRAME_END] LINES;
    memset(frame, 0, sizeof frame);
    pack_backward(a->weight, packed);
    begin_products(0);
    for (int i = 0; i < a->images; i++)
        input_gradient(frame, packed, a->grad_input + (int64_t)i * IMAGE_SIDE * IMAGE_SIDE * CI);
    end_products();
    free(packed);
}
