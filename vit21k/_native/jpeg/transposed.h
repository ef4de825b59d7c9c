#ifndef TRANSPOSED_H
#define TRANSPOSED_H
/* Rows for columns: an image whose columns are to be resized first is resized transposed, and its
 * result is transposed back. */
#include <stddef.h>
#include <stdint.h>

#include "arena.h"

enum { TRANSPOSED_AT_ONCE = 16 }; /* rows, whose next bytes share a line of the cache */

typedef struct {
    uint32_t *pixels; /* of the region, column by column */
    size_t stride;    /* of those, in pixels */
    uint8_t *planes;  /* of the result */
} Transposed;

static void lay_out_transposed(Transposed *transposed, Arena *arena, int width, int height, int size) {
    transposed->stride = ((size_t)height + 15) & ~(size_t)15;
    transposed->pixels = take(arena, 4 * transposed->stride * (size_t)width);
    transposed->planes = take(arena, 3 * (size_t)size * (size_t)size);
}

/* Keep row y of a region. */
static void transpose_row(const Transposed *transposed, const uint32_t *row, int width, int y) {
    for (int x = 0; x < width; x++) transposed->pixels[transposed->stride * (size_t)x + (size_t)y] = row[x];
}

/* Turn the three planes of the result back, and flip them. */
static void transpose_back(const Transposed *transposed, int size, int is_flipped, uint8_t *out) {
    size_t plane = (size_t)size * (size_t)size;
    const uint8_t *from = transposed->planes;
    for (int c = 0; c < 3; c++, from += plane, out += plane)
        for (int first = 0; first < size; first += TRANSPOSED_AT_ONCE)
            for (int x = 0; x < size; x++) {
                int place = is_flipped ? size - 1 - x : x;
                const uint8_t *column = from + (size_t)size * (size_t)place;
                for (int y = first; y < size && y < first + TRANSPOSED_AT_ONCE; y++)
                    out[(size_t)size * (size_t)y + (size_t)x] = column[y];
            }
}
#endif
