#ifndef TURNED_H
#define TURNED_H
/* Rows for columns: an image whose columns are to be resized first is resized turned, and its
 * result is turned back. */
#include <stddef.h>
#include <stdint.h>

#include "room.h"

enum { TURNED_AT_ONCE = 16 }; /* rows, whose next bytes share a line of the cache */

typedef struct {
    uint32_t *pixels; /* of the region, column by column */
    size_t stride;    /* of those, in pixels */
    uint8_t *planes;  /* of the result */
} Turned;

static void lay_out_turned(Turned *turned, Room *room, int width, int height, int size) {
    turned->stride = ((size_t)height + 15) & ~(size_t)15;
    turned->pixels = take(room, 4 * turned->stride * (size_t)width);
    turned->planes = take(room, 3 * (size_t)size * (size_t)size);
}

/* Keep row y of a region. */
static void turn_row(const Turned *turned, const uint32_t *row, int width, int y) {
    for (int x = 0; x < width; x++) turned->pixels[turned->stride * (size_t)x + (size_t)y] = row[x];
}

/* Turn the three planes of the result back, and flip them. */
static void turn_back(const Turned *turned, int size, int is_flipped, uint8_t *out) {
    size_t plane = (size_t)size * (size_t)size;
    const uint8_t *from = turned->planes;
    for (int c = 0; c < 3; c++, from += plane, out += plane)
        for (int first = 0; first < size; first += TURNED_AT_ONCE)
            for (int x = 0; x < size; x++) {
                int place = is_flipped ? size - 1 - x : x;
                const uint8_t *column = from + (size_t)size * (size_t)place;
                for (int y = first; y < size && y < first + TURNED_AT_ONCE; y++)
                    out[(size_t)size * (size_t)y + (size_t)x] = column[y];
            }
}
#endif
