/* Products of small matrices whose sums stay in registers: pixels × inputs times inputs × outputs, and the gradient of
 * the second factor. Rows of outputs are read and written LANES at a time; of the last vector of a row whatever lies
 * beyond it may be read: `chain.py` leaves room for 16 numbers.
 *
 * A step adds NUMBERS products to each of LANES sums, which are floats: one of floats, or two of bfloat16 that lie side
 * by side in memory.
 */
#if defined(LANES)
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VECTORS(channels) (((channels) + LANES - 1) / LANES)
#define PADDED(channels) (VECTORS(channels) * LANES)
#define UNROLLED(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)
/* What is used several times stays in a register: gcc would rather read it from memory each time. */
#if defined(__AVX512VL__)
#define KEEP(value) __asm__("" : "+v"(value))
#elif defined(__AVX__)
#define KEEP(value) __asm__("" : "+x"(value))
#else
#define KEEP(value) (void)(value)
#endif
/* The larger of two numbers, the second where one of them is NaN. */
static INLINE vector larger(vector a, vector b)
{
#if LANES == 16
    vector found;
    __asm__("vmaxps %2, %1, %0" : "=v"(found) : "v"(a), "v"(b));
    return found;
#elif LANES == 8
    return __builtin_ia32_maxps256(a, b);
#else
    return (vector)(((integers)a & (a > b)) | ((integers)b & ~(a > b)));
#endif
}
static INLINE vector load(const float *from) { return *(const vector *)from; }
static INLINE void store(float *to, vector values) { *(vector *)to = values; }

#if BFLOAT16
typedef element elements __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
static INLINE bits load_bits(const element *from)
{
    bits found;
    WIDEN_LANES(found, *(const elements *)from);
    return found;
}
static INLINE vector load_elements(const element *from) { return (vector)(load_bits(from) << 16); }
static INLINE void store_elements(element *to, vector values)
{
    elements rounded_values;
    ROUND_LANES(rounded_values, values);
    *(elements *)to = rounded_values;
}
#else
static INLINE vector load_elements(const element *from) { return load(from); }
static INLINE void store_elements(element *to, vector values) { store(to, values); }
#endif

/* What is multiplied: a number, and the factor that every lane gets of it, or of two. */
#if BFLOAT16 && DEPTHWISE
enum { NUMBERS = 2 };
typedef element number;
typedef uint32_t factor __attribute__((aligned(2), may_alias));
typedef vector in_lanes;
static INLINE number as_number(float x) { return rounded(x); }
static INLINE void store_numbers(number *to, vector values) { store_elements(to, values); }
static INLINE in_lanes in_every_lane(factor value) { return (vector)((bits){0} + value); }
#define ADD_PRODUCT(sum, value, factors) ADD_PAIRS_OF(sum, value, factors)
#else
enum { NUMBERS = 1 };
typedef float number, factor, in_lanes;
static INLINE number as_number(float x) { return x; }
static INLINE void store_numbers(number *to, vector values) { store(to, values); }
static INLINE in_lanes in_every_lane(factor value) { return value; }
#define ADD_PRODUCT(sum, value, factors) (sum) += (value) * (factors)
#endif
/* Steps of so many numbers, and where of packed weights, steps × PADDED(outputs) × NUMBERS, one of them lies. */
#define STEPS(numbers) (((numbers) + NUMBERS - 1) / NUMBERS)
#define IN_STEPS(numbers) (STEPS(numbers) * NUMBERS)
#define PACKED_INDEX(number, output, outputs)                                                                  \
    (((number) / NUMBERS * PADDED(outputs) + (output)) * NUMBERS + (number) % NUMBERS)

/* Outputs are taken three vectors at a time, two where that leaves none or two for the last: with as many pixels as
 * there are registers for sums. */
#define WIDTH(vectors, first) ((vectors) - (first) == 4 || (vectors) - (first) == 2 ? 2 : (vectors) - (first) < 2 ? 1 : 3)

/* As much of a vector as a row of so many outputs has from `at` on. */
static INLINE vector load_part(const float *from, const int at, const int outputs)
{
    vector values = {0};
    if (outputs % LANES && at + LANES > outputs)
        memcpy(&values, from + at, sizeof(float) * (outputs % LANES));
    else
        values = load(from + at);
    return values;
}
static INLINE void store_part(float *to, vector values, const int at, const int outputs)
{
    if (outputs % LANES && at + LANES > outputs)
        memcpy(to + at, &values, sizeof(float) * (outputs % LANES));
    else
        store(to + at, values);
}
#if BFLOAT16
static INLINE vector load_elements_part(const element *from, const int at, const int outputs)
{
    element some[LANES] = {0};
    memcpy(some, from + at, sizeof(element) * (outputs % LANES && at + LANES > outputs ? outputs % LANES : LANES));
    return load_elements(some);
}
static INLINE void store_elements_part(element *to, vector values, const int at, const int outputs)
{
    element some[LANES];
    store_elements(some, values);
    if (outputs % LANES && at + LANES > outputs)
        memcpy(to + at, some, sizeof(element) * (outputs % LANES));
    else
        memcpy(to + at, some, sizeof some);
}
#else
#define load_elements_part load_part
#define store_elements_part store_part
#endif
#if BFLOAT16 && DEPTHWISE
#define store_numbers_part store_elements_part
#else
#define store_numbers_part store_part
#endif

/* A tile has so many rows of `count`: three vectors wide four, two wide as many as leave none over. NEON has twice as
 * many registers as AVX2, and so has AVX-512. */
#if defined(__aarch64__) || defined(__AVX512VL__)
#define ROWS(width, count) ((count) >= 8 ? 8 : 4)
#else
#define ROWS(width, count) ((width) == 3 ? 4 : (width) == 1 ? 8 : (count) % 6 == 0 ? 6 : (count) % 5 == 0 ? 5 : 4)
#endif

/* `rows` rows of results, `width` vectors wide. */
static INLINE void product_tile(const number *x, const number *packed, float *y, const int rows, const int width,
                                const int inputs, const int outputs, const int first)
{
    vector sum[8][3] = {{{0}}};
    _Pragma("GCC unroll 1") for (int k = 0; k < STEPS(inputs); k++) {
        vector weight[3];
        UNROLLED(v, width) {
            weight[v] = *(const vector *)(packed + (k * PADDED(outputs) + (first + v) * LANES) * NUMBERS);
            KEEP(weight[v]);
        }
        UNROLLED(u, rows) {
            const in_lanes value = in_every_lane(*(const factor *)(x + (u * STEPS(inputs) + k) * NUMBERS));
            UNROLLED(v, width) ADD_PRODUCT(sum[u][v], value, weight[v]);
        }
    }
    UNROLLED(u, rows) UNROLLED(v, width) store_part(y + u * outputs, sum[u][v], (first + v) * LANES, outputs);
}

/* How many times three vectors are taken, how many times two, and once one. */
#define THREES(vectors) ((vectors) < 2 ? 0 : ((vectors) - 2 * TWOS(vectors)) / 3)
#define TWOS(vectors) ((vectors) < 2 ? 0 : (vectors) % 3 == 1 ? 2 : (vectors) % 3 == 2)

static INLINE void product_group(const number *x, const number *packed, float *y, int pixels, const int rows,
                                 const int width, const int inputs, const int outputs, const int first)
{
    int u = 0;
    for (; u + rows <= pixels; u += rows)
        product_tile(x + u * IN_STEPS(inputs), packed, y + u * outputs, rows, width, inputs, outputs, first);
    for (; rows > 4 && u + 4 <= pixels; u += 4)
        product_tile(x + u * IN_STEPS(inputs), packed, y + u * outputs, 4, width, inputs, outputs, first);
    for (; u + 2 <= pixels; u += 2)
        product_tile(x + u * IN_STEPS(inputs), packed, y + u * outputs, 2, width, inputs, outputs, first);
    for (; u < pixels; u++)
        product_tile(x + u * IN_STEPS(inputs), packed, y + u * outputs, 1, width, inputs, outputs, first);
}

/* y = x × packed, which has rows of PADDED(outputs) in steps; mostly of `most` pixels. Widths are written out: in a loop
 * over them gcc would not know them, and keep the sums in memory. */
static INLINE void product(const number *x, const number *packed, float *y, int pixels, const int most,
                           const int inputs, const int outputs)
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

static INLINE void gradient_tile(const number *x, const number *gradient, float *sums, int steps, const int rows,
                                 const int width, const int inputs, const int outputs, const int first)
{
    vector sum[8][3] = {{{0}}};
    UNROLLED(k, rows) UNROLLED(v, width) sum[k][v] = load(sums + k * PADDED(outputs) + (first + v) * LANES);
    for (int u = 0; u < steps; u++) {
        vector here[3];
        UNROLLED(v, width) {
            here[v] = *(const vector *)(gradient + (u * outputs + (first + v) * LANES) * NUMBERS);
            KEEP(here[v]);
        }
        UNROLLED(k, rows) {
            const in_lanes value = in_every_lane(*(const factor *)(x + (u * inputs + k) * NUMBERS));
            UNROLLED(v, width) ADD_PRODUCT(sum[k][v], value, here[v]);
        }
    }
    UNROLLED(k, rows) UNROLLED(v, width) store(sums + k * PADDED(outputs) + (first + v) * LANES, sum[k][v]);
}

static INLINE void gradient_group(const number *x, const number *gradient, float *sums, int steps, const int rows,
                                  const int width, const int inputs, const int outputs, const int first)
{
    int k = 0;
    for (; k + rows <= inputs; k += rows)
        gradient_tile(x + k * NUMBERS, gradient, sums + k * PADDED(outputs), steps, rows, width, inputs, outputs, first);
    for (; rows > 4 && k + 4 <= inputs; k += 4)
        gradient_tile(x + k * NUMBERS, gradient, sums + k * PADDED(outputs), steps, 4, width, inputs, outputs, first);
    for (; k < inputs; k++)
        gradient_tile(x + k * NUMBERS, gradient, sums + k * PADDED(outputs), steps, 1, width, inputs, outputs, first);
}

/* sums += xᵀ × gradient, both with pixels in steps: inputs × PADDED(outputs). */
static INLINE void product_gradient(const number *x, const number *gradient, float *sums, int steps, const int inputs,
                                    const int outputs)
{
    const int vectors = VECTORS(outputs);
    int first = 0;
    for (; first < 3 * THREES(vectors); first += 3)
        gradient_group(x, gradient, sums, steps, ROWS(3, inputs), 3, inputs, outputs, first);
    for (int group = 0; group < TWOS(vectors); group++, first += 2)
        gradient_group(x, gradient, sums, steps, ROWS(2, inputs), 2, inputs, outputs, first);
    if (vectors == 1)
        gradient_group(x, gradient, sums, steps, ROWS(1, inputs), 1, inputs, outputs, first);
}
