/* Products of small matrices whose sums stay in registers: pixels × inputs times inputs × outputs, and the gradient of
 * the second factor. Rows of outputs are read and written LANES at a time; of the last vector of a row whatever lies
 * beyond it may be read: `chain.py` leaves room for 8 numbers.
 */
#if defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VECTORS(channels) (((channels) + LANES - 1) / LANES)
#define PADDED(channels) (VECTORS(channels) * LANES)
#define UNROLLED(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)
/* What is used several times stays in a register: gcc would rather read it from memory each time. */
#if defined(__AVX__)
#define KEEP(value) __asm__("" : "+x"(value))
/* The larger of two numbers, the second where one of them is NaN. */
#define LARGER(a, b) __builtin_ia32_maxps256(a, b)
#else
#define KEEP(value) (void)(value)
#define LARGER(a, b) (vector)(((integers)(a) & ((a) > (b))) | ((integers)(b) & ~((a) > (b))))
#endif
static INLINE vector load(const float *from) { return *(const vector *)from; }
static INLINE void store(float *to, vector values) { *(vector *)to = values; }

/* Outputs are taken three vectors at a time, two where that leaves none or two for the last: with as many pixels as
 * there are registers for sums. */
#define WIDTH(vectors, first) ((vectors) - (first) == 4 || (vectors) - (first) == 2 ? 2 : (vectors) - (first) < 2 ? 1 : 3)

/* As much of a vector as a row of so many outputs has from `at` on. */
static INLINE void store_part(float *to, vector values, const int at, const int outputs)
{
    if (outputs % LANES && at + LANES > outputs)
        memcpy(to + at, &values, sizeof(float) * (outputs % LANES));
    else
        store(to + at, values);
}

/* A tile has so many rows of `count`: three vectors wide four, two wide as many as leave none over. NEON has twice as
 * many registers as AVX2. */
#if defined(__aarch64__)
#define ROWS(width, count) ((count) >= 8 ? 8 : 4)
#else
#define ROWS(width, count) ((width) == 3 ? 4 : (width) == 1 ? 8 : (count) % 6 == 0 ? 6 : (count) % 5 == 0 ? 5 : 4)
#endif

/* `rows` rows of results, `width` vectors wide. */
static INLINE void product_tile(const float *x, const float *packed, float *y, const int rows, const int width,
                                const int inputs, const int outputs, const int first)
{
    vector sum[8][3] = {{{0}}};
    _Pragma("GCC unroll 1") for (int k = 0; k < inputs; k++) {
        vector weight[3];
        UNROLLED(v, width) {
            weight[v] = load(packed + k * PADDED(outputs) + (first + v) * LANES);
            KEEP(weight[v]);
        }
        UNROLLED(u, rows) {
            const float value = x[u * inputs + k];
            UNROLLED(v, width) sum[u][v] += value * weight[v];
        }
    }
    UNROLLED(u, rows) UNROLLED(v, width) store_part(y + u * outputs, sum[u][v], (first + v) * LANES, outputs);
}

/* How many times three vectors are taken, how many times two, and once one. */
#define THREES(vectors) ((vectors) < 2 ? 0 : ((vectors) - 2 * TWOS(vectors)) / 3)
#define TWOS(vectors) ((vectors) < 2 ? 0 : (vectors) % 3 == 1 ? 2 : (vectors) % 3 == 2)

static INLINE void product_group(const float *x, const float *packed, float *y, int pixels, const int rows,
                                 const int width, const int inputs, const int outputs, const int first)
{
    int u = 0;
    for (; u + rows <= pixels; u += rows)
        product_tile(x + u * inputs, packed, y + u * outputs, rows, width, inputs, outputs, first);
    for (; u + 2 <= pixels; u += 2)
        product_tile(x + u * inputs, packed, y + u * outputs, 2, width, inputs, outputs, first);
    for (; u < pixels; u++)
        product_tile(x + u * inputs, packed, y + u * outputs, 1, width, inputs, outputs, first);
}

/* y = x × packed, which has rows of PADDED(outputs); mostly of `most` pixels. Widths are written out: in a loop over
 * them gcc would not know them, and keep the sums in memory. */
static INLINE void product(const float *x, const float *packed, float *y, int pixels, const int most, const int inputs,
                           const int outputs)
{
    const int vectors = VECTORS(outputs);
    int first = 0;
    for (; first < 3 * THREES(vectors); first += 3)
        product_group(x, packed, y, pixels, ROWS(3, most), 3, inputs, outputs, first);
    for (int group = 0; group < TWOS(vectors); group++, first += 2)
        product_group(x, packed, y, pixels, ROWS(2, most), 2, inputs, outputs, first);
    if (vectors == 1)
        product_group(x, packed, y, pixels, ROWS(1, most), 1, inputs, outputs, first);
}

static INLINE void gradient_tile(const float *x, const float *gradient, float *sums, int pixels, const int rows,
                                 const int width, const int inputs, const int outputs, const int first)
{
    vector sum[8][3] = {{{0}}};
    UNROLLED(k, rows) UNROLLED(v, width) sum[k][v] = load(sums + k * PADDED(outputs) + (first + v) * LANES);
    for (int u = 0; u < pixels; u++) {
        vector here[3];
        UNROLLED(v, width) {
            here[v] = load(gradient + u * outputs + (first + v) * LANES);
            KEEP(here[v]);
        }
        UNROLLED(k, rows) {
            const float value = x[u * inputs + k];
            UNROLLED(v, width) sum[k][v] += value * here[v];
        }
    }
    UNROLLED(k, rows) UNROLLED(v, width) store(sums + k * PADDED(outputs) + (first + v) * LANES, sum[k][v]);
}

static INLINE void gradient_group(const float *x, const float *gradient, float *sums, int pixels, const int rows,
                                  const int width, const int inputs, const int outputs, const int first)
{
    for (int k = 0; k <= inputs - rows; k += rows)
        gradient_tile(x + k, gradient, sums + k * PADDED(outputs), pixels, rows, width, inputs, outputs, first);
    for (int k = inputs - inputs % rows; k < inputs; k++)
        gradient_tile(x + k, gradient, sums + k * PADDED(outputs), pixels, 1, width, inputs, outputs, first);
}

/* sums += xᵀ × gradient: inputs × PADDED(outputs). */
static INLINE void product_gradient(const float *x, const float *gradient, float *sums, int pixels, const int inputs,
                                    const int outputs)
{
    const int vectors = VECTORS(outputs);
    int first = 0;
    for (; first < 3 * THREES(vectors); first += 3)
        gradient_group(x, gradient, sums, pixels, ROWS(3, inputs), 3, inputs, outputs, first);
    for (int group = 0; group < TWOS(vectors); group++, first += 2)
        gradient_group(x, gradient, sums, pixels, ROWS(2, inputs), 2, inputs, outputs, first);
    if (vectors == 1)
        gradient_group(x, gradient, sums, pixels, ROWS(1, inputs), 1, inputs, outputs, first);
}
