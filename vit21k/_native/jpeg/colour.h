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

typedef uint16_t TwoBytes __attribute__((aligned(1), may_alias));

/* Sums of samples -> twice as many, each nearer to one of two sums by 3 : 1. */
static inline void interpolate(const uint16_t *restrict sums, size_t count, int bias, int next_bias,
                               int shift, TwoBytes *restrict out) {
    for (size_t i = 0; i < count; i++) {
        uint16_t near = (uint16_t)(3 * sums[i + 1]);
        uint16_t left = (uint16_t)((uint16_t)(near + sums[i] + bias) >> shift);
        uint16_t right = (uint16_t)((uint16_t)(near + sums[i + 2] + next_bias) >> shift);
        out[i] = (uint16_t)(left | right << 8);
    }
}

/* One row of chroma from *left* on, at full width, to *out*, before which one byte may be written
 * and behind which two.  sums: scratch of width / 2 + 4. */
static void upsample_row(const Plane *plane, const Component *luma, int y, int left, int width,
                         uint16_t *restrict sums, uint8_t *restrict out) {
    int near = luma->v == 2 ? y >> 1 : y, far = near;
    if (luma->v == 2) far = at_most(at_least(near + (y & 1 ? 1 : -1), 0), plane->height - 1);
    const uint8_t *row = plane->samples + (size_t)(near - plane->first_y) * plane->stride;
    if (luma->h == 1) {
        memcpy(out, row + left - plane->first_x, (size_t)width);
        return;
    }
    /* sums[i] is of sample first - 1 + i; outside the image, the last one is repeated. */
    int first = left >> 1, count = ((left + width - 1) >> 1) - first + 3;
    int low = first == 0, high = first + count - 2 == plane->width;
    size_t inner = (size_t)(count - high - low);
    row += first - 1 - plane->first_x + low;
    const uint8_t *next_row = row + (ptrdiff_t)(far - near) * plane->stride;
    uint16_t *restrict to = sums + low;
    if (luma->v == 2)
        for (size_t i = 0; i < inner; i++) to[i] = (uint16_t)(3 * row[i] + next_row[i]);
    else
        for (size_t i = 0; i < inner; i++) to[i] = row[i];
    if (low) sums[0] = sums[1];
    if (high) sums[count - 1] = sums[count - 2];
    TwoBytes *pairs = (TwoBytes *)(out - (left & 1));
    if (luma->v == 2) interpolate(sums, (size_t)count - 2, 8, 7, 4, pairs);
    else interpolate(sums, (size_t)count - 2, 1, 2, 2, pairs);
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
