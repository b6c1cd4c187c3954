/* A step of Muon (`optimizers.py`) for small matrices, one after another: momentum, Newton-Schulz, decay, step.
 *
 * Of a matrix and its transpose the taller one is taken, as rows of whole vectors that end in zeros: those stay zeros.
 */
#include "numbers.h"
#include "arguments.h"
#include "products.h"
#include <math.h>
#define A 3.4445f
#define B -4.7750f
#define C 2.0315f

#define EACH_TILE(first, width, vectors) for (int first = 0, width; width = WIDTH(vectors, first), first < (vectors); first += width)
#define WITH_WIDTH(width, DO) if (width == 3) { DO(4, 3) } else if (width == 2) { DO(4, 2) } else { DO(4, 1) }

/* gram = xᵀ × x of so many rows. */
ALONE void gram_matrix(const float *restrict x, float *restrict gram, int rows, int columns)
{
    memset(gram, 0, sizeof(float) * columns * columns);
    EACH_TILE(first, width, columns / LANES)
        for (int k = 0; k < columns; k += 4) {
#define TILE(tall, wide) gradient_tile(x + k, x, gram + k * columns, rows, tall, wide, columns, columns, first);
            WITH_WIDTH(width, TILE)
#undef TILE
        }
}

/* y = x × factor, a square of `columns`. */
ALONE void multiply(const float *restrict x, const float *restrict factor, float *restrict y, int rows, int columns)
{
    EACH_TILE(first, width, columns / LANES) {
        int u = 0;
#define TILE(tall, wide) product_tile(x + u * columns, factor, y + u * columns, tall, wide, columns, columns, first);
        for (; u + 4 <= rows; u += 4)
            WITH_WIDTH(width, TILE)
#undef TILE
#define TILE(tall, wide) product_tile(x + u * columns, factor, y + u * columns, 1, wide, columns, columns, first);
        for (; u < rows; u++)
            WITH_WIDTH(width, TILE)
#undef TILE
    }
}

/* Bring the singular values of `x`, rows × columns, near 1. `room` has space for as much, and two squares. */
static void orthogonalise(float *restrict x, int rows, int columns, int steps, float *restrict room)
{
    float *gram = room, *square = gram + columns * columns, *y = square + columns * columns;
    double norm = 0;
    for (int u = 0; u < rows * columns; u++)
        norm += (double)x[u] * x[u];
    const float scale = (float)(1 / fmax(sqrt(norm), 1e-7));
    for (int u = 0; u < rows * columns; u++)
        x[u] *= scale;
    for (int step = 0; step < steps; step++) {
        gram_matrix(x, gram, rows, columns);
        multiply(gram, gram, square, columns, columns);
        for (int u = 0; u < columns * columns; u++)
            square[u] = B * gram[u] + C * square[u];
        multiply(x, square, y, rows, columns);
        for (int u = 0; u < rows * columns; u++)
            x[u] = A * x[u] + y[u];
    }
}

/* The step of one tensor, from its gradient and its momentum, in `direction`. */
static void accumulate(const struct muon_arguments *a, const struct muon_tensor *t, float *restrict direction)
{
    for (int u = 0; u < t->rows * t->columns; u++) {
        const float moved = t->momentum[u] * a->momentum + t->gradient[u];
        t->momentum[u] = moved;
        direction[u] = a->nesterov ? t->gradient[u] + a->momentum * moved : moved;
    }
}

void step(const struct muon_arguments *a)
{
    for (int i = 0; i < a->count; i++) {
        const struct muon_tensor *t = a->tensors + i;
        const int tall = t->rows > t->columns, rows = tall ? t->rows : t->columns, few = tall ? t->columns : t->rows;
        const int columns = PADDED(few), count = t->rows * t->columns;
        float *direction = malloc(sizeof(float) * (count + LANES + 2 * rows * columns + 2 * columns * columns));
        float *x = direction + count + LANES, scale = 1;
        accumulate(a, t, direction);
        if (a->steps) {
            memset(x, 0, sizeof(float) * rows * columns);
            for (int u = 0; u < rows; u++)
                for (int k = 0; k < few; k++)
                    x[u * columns + k] = direction[tall ? u * few + k : k * rows + u];
            orthogonalise(x, rows, columns, a->steps, x + rows * columns);
            for (int u = 0; u < rows; u++)
                for (int k = 0; k < few; k++)
                    direction[tall ? u * few + k : k * rows + u] = x[u * columns + k];
            scale = tall ? sqrtf((float)rows / few) : 1;
        }
        for (int u = 0; u < count; u++)
            t->weight[u] = t->weight[u] * a->decay - a->lr * scale * direction[u];
        free(direction);
    }
}
