/* Runs one function of a C file, SOURCE, on a file: its arguments first, behind them what they point to. What the
 * function leaves there is written back. A second file tells where the pointers are, as 64-bit numbers: each of them
 * is a place in the first file. FUNCTIONS calls DO for every function by its name.
 *
 *     harness forward memory pointers
 */
#include SOURCE
#include <stdio.h>

static char *contents(const char *name, size_t *size)
{
    FILE *file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        exit(2);
    *size = (size_t)ftell(file);
    rewind(file);
    char *read = aligned_alloc(64, (*size + 64) / 64 * 64);
    if (!read || fread(read, 1, *size, file) != *size)
        exit(3);
    fclose(file);
    return read;
}

int main(int count, char **words)
{
    size_t size, bytes;
    if (count != 4)
        return 1;
    char *memory = contents(words[2], &size);
    const uint64_t *pointers = (const void *)contents(words[3], &bytes);
    for (size_t u = 0; u < bytes / sizeof *pointers; u++)
        *(uint64_t *)(memory + pointers[u]) += (uint64_t)memory;
#define DO(function) if (!strcmp(words[1], #function)) function((void *)memory);
    FUNCTIONS
    for (size_t u = 0; u < bytes / sizeof *pointers; u++)
        *(uint64_t *)(memory + pointers[u]) -= (uint64_t)memory;
    FILE *file = fopen(words[2], "wb");
    return !file || fwrite(memory, 1, size, file) != size || fclose(file);
}
