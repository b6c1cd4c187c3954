/* The processor's instructions for bfloat16, which compilers do not choose by themselves. */
#ifndef INSTRUCTIONS
#define INSTRUCTIONS
#ifndef __AVX512BF16__
#error "this processor does not compute in bfloat16"
#endif
/* 16 floats at `from` to 16 bfloat16 at `to`. */
#define STORE_16(from, to)                                                                                     \
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(*(halves *)(to)) : "v"(*(const floats *)(from)))
/* sum += the two numbers at `from`, the same for every lane, times a pair of `factors`. */
#define ADD_PAIRS(sum, from, factors)                                                                          \
    __asm__("vdpbf16ps %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*(const one_pair *)(from)), "v"(factors))
/* As many numbers of 16 bits as a register has lanes to the lower halves of those: gcc would take six instructions. */
#define WIDEN_LANES(to, from) __asm__("vpmovzxwd %1, %0" : "=v"(to) : "m"(from))
/* Those in a mask, and zeros. */
#define WIDEN_SOME_LANES(to, from, mask)                                                                       \
    __asm__("vpmovzxwd %1, %0%{%2%}%{z%}" : "=v"(to) : "m"(from), "Yk"(mask))
/* A register of floats to one of as many bfloat16, and sum += pairs of `factors` times pairs of `values`. */
#define ROUND_LANES(to, values) __asm__("vcvtneps2bf16 %1, %0" : "=v"(to) : "v"(values))
#define ADD_PAIRS_OF(sum, values, factors)                                                                     \
    __asm__("vdpbf16ps %1, %2, %0" : "+v"(sum) : "v"(values), "v"(factors))

/* Tiles are not those of immintrin.h: GCC's do not say that they read and write memory, so that it may take for dead,
 * or move, what was stored for them. Registers are numbers, since the instructions have them built in. */
#define LOAD_TILE(t, from, stride)                                                                             \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define STORE_TILE(t, to, stride)                                                                              \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
#define CLEAR_TILE(t) __asm__ volatile("tilezero %%tmm" #t ::)
/* t += a × b */
#define MULTIPLY_TILES(t, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #t ::)

/* Bytes in a row of each tile, and rows, as the processor reads them. */
struct tile_sizes { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; };
#define CONFIGURE_TILES(sizes) __asm__ volatile("ldtilecfg %0" ::"m"(sizes))
#define TILES_CONFIGURED(sizes) __asm__ volatile("sttilecfg %0" : "=m"(sizes))
#define RELEASE_TILES() __asm__ volatile("tilerelease" ::)
#endif
