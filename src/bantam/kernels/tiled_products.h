/* The three products of a block's 1×1 convolution in bfloat16 by the matrix unit (AMX): see `separable.c`, and
 * `tiles.h` for what a product of tiles is.
 *
 * A product takes as long as its first factor has rows, whatever else its size, and a tile is loaded fastest where each of
 * its rows is in one line of the cache. So rows have room for whole tiles, and zeros in it.
 */
#include "pairs.h"

/* Tiles that make up so many columns, their width, and where one begins: the last may overlap the one before. */
#define TILES(columns) (((columns) + TILE - 1) / TILE)
#define WIDE(columns) ((columns) < TILE ? (columns) : TILE)
#define START(tile, columns) ((tile)*TILE < (columns) - WIDE(columns) ? (tile)*TILE : (columns) - WIDE(columns))
#define TILE_STEPS(numbers) (((numbers) + DEPTH - 1) / DEPTH)

/* Numbers from one pixel to the next of what the depthwise convolution has brought, of results and of their gradient. */
enum { READ_ROW = CI, RESULT_ROW = ROUND_UP(TILE, CO), GRADIENT_ROW = ROUND_UP(DEPTH, CO) };
/* Room for whole tiles: of pixels, and to transpose them. */
enum { ROOM_PIXELS = ROUND_UP(DEPTH, FEW_ROWS * OUT) };
enum { READ_ROOM = ROOM_PIXELS * READ_ROW + TILE, GRADIENT_ROOM = ROOM_PIXELS * GRADIENT_ROW };
enum { RESULT_ROOM = ROOM_PIXELS * RESULT_ROW };
/* The gradient of the weights, inputs × outputs, both in whole tiles. */
enum { WEIGHTS_ROW = ROUND_UP(TILE, CO), WEIGHTS = TILES(CI) * WIDE(CI) * WEIGHTS_ROW };

/* Weights for a product: tiles of outputs × steps × 16 × 16 × 2. */
#define PACKED_ROOM(numbers, outputs) (TILES(outputs) * TILE_STEPS(numbers) * TILE * DEPTH)
#define PACKED_TILE(tile, step, numbers) (((tile) * TILE_STEPS(numbers) + (step)) * TILE * DEPTH)
/* Weight `number` to `output` is at number × by_number + output × by_output; results have rows of so many outputs. */
static INLINE void pack_weights(const float *weight, int by_number, int by_output, number *to, const int numbers,
                                const int outputs, const int row)
{
    memset(to, 0, sizeof(number) * PACKED_ROOM(numbers, row));
    for (int tile = 0; tile < TILES(row); tile++)
        for (int k = 0; k < numbers; k++)
            for (int c = 0; c < WIDE(row) && START(tile, row) + c < outputs; c++)
                to[PACKED_TILE(tile, k / DEPTH, numbers) + k % DEPTH / 2 * DEPTH + 2 * c + k % 2]
                    = rounded(weight[k * by_number + (START(tile, row) + c) * by_output]);
}
static inline void pack_forward(const float *weight, number *to) { pack_weights(weight, 1, CI, to, CI, CO, RESULT_ROW); }
static inline void pack_backward(const float *weight, number *to) { pack_weights(weight, CI, 1, to, CO, CI, CI); }

/* Forward, tiles 0 to 3 are sums; 4 and 7 factors, 5 and 6 those of the last step, which has so many numbers. */
enum { LAST_STEP = CI - (TILE_STEPS(CI) - 1) * DEPTH };
static const struct tile_sizes forward_tiles = {
    .palette = 1,
    .bytes = {64, 64, 64, 64, 64, 2 * LAST_STEP, 64, 64},
    .rows = {TILE, TILE, TILE, TILE, TILE, TILE, LAST_STEP / 2, TILE},
};
static inline void begin_forward_tiles(void) { begin_tiles(&forward_tiles); }

#define EACH_OF_FOUR(DO) DO(0) DO(1) DO(2) DO(3)
#define CLEAR_OUTPUTS(T)                                                                                       \
    if (first + T < TILES(CO))                                                                                 \
        CLEAR_TILE(T);
#define ADD_STEP(T)                                                                                            \
    if (first + T < TILES(CO)) {                                                                               \
        LOAD_TILE(7, packed + PACKED_TILE(first + T, step, CI), 2 * DEPTH);                                    \
        MULTIPLY_TILES(T, 4, 7);                                                                               \
    }
#define ADD_LAST_STEP(T)                                                                                       \
    if (first + T < TILES(CO)) {                                                                               \
        LOAD_TILE(6, packed + PACKED_TILE(first + T, TILE_STEPS(CI) - 1, CI), 2 * DEPTH);                      \
        MULTIPLY_TILES(T, 5, 6);                                                                               \
    }
#define STORE_OUTPUTS(T)                                                                                       \
    if (first + T < TILES(CO))                                                                                 \
        STORE_TILE(T, y + u * RESULT_ROW + (first + T) * TILE, 4 * RESULT_ROW);

/* y = x × packed, of so many pixels; whatever is behind them is multiplied too, to the end of a tile. */
ALONE void forward_product(const number *restrict x, const number *restrict packed, float *restrict y, int pixels)
{
    for (int u = 0; u < pixels; u += TILE)
        for (int first = 0; first < TILES(CO); first += 4) {
            const number *from = x + u * READ_ROW;
            EACH_OF_FOUR(CLEAR_OUTPUTS)
            for (int step = 0; step < TILE_STEPS(CI) - 1; step++) {
                LOAD_TILE(4, from + step * DEPTH, 2 * READ_ROW);
                EACH_OF_FOUR(ADD_STEP)
            }
            LOAD_TILE(5, from + (TILE_STEPS(CI) - 1) * DEPTH, 2 * READ_ROW);
            EACH_OF_FOUR(ADD_LAST_STEP)
            EACH_OF_FOUR(STORE_OUTPUTS)
        }
}

/* Backward, of the input's gradient tiles 0 and 1 are sums, pixels of a row × inputs, 2 and 3 factors; of the weights'
 * gradient 4 and 5 are sums, inputs × outputs, 6 and 7 factors. */
enum { IN_PIXELS = WIDE(OUT), IN_INPUTS = WIDE(CI), OF_INPUTS = 4 * WIDE(CI), OF_OUTPUTS = 4 * WIDE(CO) };
static const struct tile_sizes backward_tiles = {
    .palette = 1,
    .bytes = {OF_INPUTS, OF_INPUTS, 2 * DEPTH, OF_INPUTS, OF_OUTPUTS, OF_OUTPUTS, 2 * DEPTH, OF_OUTPUTS},
    .rows = {IN_PIXELS, IN_PIXELS, IN_PIXELS, TILE, IN_INPUTS, IN_INPUTS, IN_INPUTS, TILE},
};
static inline void begin_backward_tiles(void) { begin_tiles(&backward_tiles); }
static inline void end_products(void) { end_tiles(); }

/* So many rows of `gradient` × packed, each to its row in the frame. */
ALONE void backward_product(const number *restrict gradient, const number *restrict packed, float *restrict frame,
                            int rows)
{
    for (int row = 0; row < rows; row++)
        for (int tile = 0; tile < TILES(OUT); tile++)
            for (int input = 0; input < TILES(CI); input += 2) {
                const int two = input + 1 < TILES(CI);
                const number *from = gradient + (row * OUT + START(tile, OUT)) * GRADIENT_ROW;
                float *to = frame + (row * SIDE + START(tile, OUT)) * CI;
                CLEAR_TILE(0);
                if (two)
                    CLEAR_TILE(1);
                for (int step = 0; step < TILE_STEPS(CO); step++) {
                    LOAD_TILE(2, from + step * DEPTH, 2 * GRADIENT_ROW);
                    LOAD_TILE(3, packed + PACKED_TILE(input, step, CO), 2 * DEPTH);
                    MULTIPLY_TILES(0, 2, 3);
                    if (two) {
                        LOAD_TILE(3, packed + PACKED_TILE(input + 1, step, CO), 2 * DEPTH);
                        MULTIPLY_TILES(1, 2, 3);
                    }
                }
                STORE_TILE(0, to + START(input, CI), 4 * CI);
                if (two)
                    STORE_TILE(1, to + START(input + 1, CI), 4 * CI);
            }
}

/* Pairs of neighbouring pixels × WEIGHTS_ROW; zeros behind the last. */
static INLINE void pair_gradient(const number *restrict gradient, uint32_t *restrict to, int pixels)
{
    static const number zeros[WEIGHTS_ROW];
    for (int u = 0; u < pixels; u += 2)
        for (int group = 0; group < WEIGHTS_ROW; group += TILE) {
            const number *first = gradient + u * GRADIENT_ROW + group;
            *(pairs *)(to + u / 2 * WEIGHTS_ROW + group)
                = paired(first, u + 1 < pixels ? first + GRADIENT_ROW : zeros + group);
        }
    const int done = (pixels + 1) / 2;
    memset(to + done * WEIGHTS_ROW, 0, sizeof *to * (ROOM_PIXELS / 2 - done) * WEIGHTS_ROW);
}

/* Of so many pixels: add to the gradient of the convolution's weights. Behind them `x` has numbers that are finite. */
ALONE void weight_gradient(const number *restrict x, const number *restrict gradient, float *restrict sums,
                           int pixels)
{
    number rows[TILES(CI) * IN_INPUTS * ROOM_PIXELS] LINES;
    uint32_t paired_pixels[ROOM_PIXELS / 2 * WEIGHTS_ROW] LINES;
    transpose(x, CI, rows, ROOM_PIXELS, TILES(CI) * IN_INPUTS);
    pair_gradient(gradient, paired_pixels, pixels);
    for (int input = 0; input < TILES(CI); input++)
        for (int output = 0; output < WEIGHTS_ROW; output += 2 * TILE) {
            const int two = output + TILE < WEIGHTS_ROW;
            float *to = sums + input * TILE * WEIGHTS_ROW + output;
            LOAD_TILE(4, to, 4 * WEIGHTS_ROW);
            if (two)
                LOAD_TILE(5, to + TILE, 4 * WEIGHTS_ROW);
            for (int u = 0; u < ROOM_PIXELS; u += DEPTH) {
                const uint32_t *from = paired_pixels + u / 2 * WEIGHTS_ROW + output;
                LOAD_TILE(6, rows + input * TILE * ROOM_PIXELS + u, 2 * ROOM_PIXELS);
                LOAD_TILE(7, from, 4 * WEIGHTS_ROW);
                MULTIPLY_TILES(4, 6, 7);
                if (two) {
                    LOAD_TILE(7, from + TILE, 4 * WEIGHTS_ROW);
                    MULTIPLY_TILES(5, 6, 7);
                }
            }
            STORE_TILE(4, to, 4 * WEIGHTS_ROW);
            if (two)
                STORE_TILE(5, to + TILE, 4 * WEIGHTS_ROW);
        }
}
