#ifndef COLOUR_H
#define COLOUR_H
/* Samples -> rows of RGB pixels: chroma at full size by libjpeg's triangle filter, then colours. */
#include <stdint.h>
#include <string.h>

#include "header.h"

/* Samples of a component, of the blocks that the region needs. */
typedef struct {
    uint8_t *samples;
    int32_t stride;
    int32_t first_x, first_y; /* where they begin, in samples of the component */
    int32_t width, height;    /* of the whole component, in samples */
} Plane;

static int at_least(int value, int least) { return value < least ? least : value; }
static int at_most(int value, int most) { return value > most ? most : value; }

/* One row of chroma from *left* on, at full width, to *out*, before which one byte may be written
 * and behind which two.  sums: room for width / 2 + 4. */
static void upsample_row(const Plane *plane, const Component *luma, int y, int left, int width,
                         int16_t *restrict sums, uint8_t *restrict out) {
    int near = luma->v == 2 ? y >> 1 : y, far = near;
    if (luma->v == 2) far = at_most(at_least(near + (y & 1 ? 1 : -1), 0), plane->height - 1);
    const uint8_t *row = plane->samples + (size_t)(near - plane->first_y) * plane->stride;
    if (luma->h == 1) {
        memcpy(out, row + left - plane->first_x, (size_t)width);
        return;
    }
    /* sums[i] is of sample first - 1 + i; beside the picture, the last one is repeated. */
    int first = left >> 1, count = ((left + width - 1) >> 1) - first + 3;
    int low = first == 0, high = first + count - 2 == plane->width;
    int place = first - 1 - plane->first_x;
    const uint8_t *beside = plane->samples + (size_t)(far - plane->first_y) * plane->stride;
    int own = luma->v == 2 ? 3 : 1, other = luma->v == 2 ? 1 : 0;
    for (int i = low; i < count - high; i++)
        sums[i] = (int16_t)(own * row[place + i] + other * beside[place + i]);
    if (low) sums[0] = sums[1];
    if (high) sums[count - 1] = sums[count - 2];
    int bias = luma->v == 2 ? 8 : 1, next_bias = luma->v == 2 ? 7 : 2, shift = luma->v == 2 ? 4 : 2;
    uint8_t *restrict pairs = out - (left & 1);
    for (int i = 0; i < count - 2; i++) {
        pairs[2 * i] = (uint8_t)((3 * sums[i + 1] + sums[i] + bias) >> shift);
        pairs[2 * i + 1] = (uint8_t)((3 * sums[i + 1] + sums[i + 2] + next_bias) >> shift);
    }
}

static inline int clamped(int value) {
    value = value < 0 ? 0 : value;
    return value > 255 ? 255 : value;
}

/* A pixel is red, green, blue and nothing, from the lowest byte on. */
static void to_pixels(const uint8_t *luma, const uint8_t *blue, const uint8_t *red, int width,
                      uint32_t *restrict out) {
    for (int x = 0; x < width; x++) {
        int y = luma[x], cb = blue[x] - 128, cr = red[x] - 128;
        int r = clamped(y + ((91881 * cr + 32768) >> 16));
        int g = clamped(y + ((-22554 * cb - 46802 * cr + 32768) >> 16));
        int b = clamped(y + ((116130 * cb + 32768) >> 16));
        out[x] = (uint32_t)(r | g << 8 | b << 16);
    }
}

static void grey_to_pixels(const uint8_t *luma, int width, uint32_t *restrict out) {
    for (int x = 0; x < width; x++) out[x] = luma[x] * 0x010101u;
}
#endif
