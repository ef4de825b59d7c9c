#ifndef RESAMPLE_PORTABLE_H
#define RESAMPLE_PORTABLE_H
/* The two passes of resample.h for any processor. */
#include "resample.h"

enum { ROWS_AT_ONCE = 1, LANES = 64 };

typedef struct {
    Taps across, down;
    double *numbers;          /* while taps are made */
    int32_t *wide, *wide_out; /* a row before and after, a number for each byte */
    uint32_t *rows, *out;     /* rows as wide as the result, and one row of it */
    int32_t width, height, size, is_flipped;
} Resampler;

/* Lay out what is needed to resize *width* x *height* pixels to *size* x *size*. */
static void lay_out_resampler(Resampler *resampler, Arena *arena, const Resize *resize,
                              int width, int height) {
    size_t size = (size_t)resize->across.count;
    *resampler = (Resampler){.width = width, .height = height, .size = (int)size};
    lay_out_taps(arena, &resampler->across, &resize->across, resize->is_bicubic);
    lay_out_taps(arena, &resampler->down, &resize->down, resize->is_bicubic);
    resampler->numbers =
        lay_out_numbers(arena, &resampler->across, &resampler->down, resize);
    resampler->wide = take(arena, 16 * (size_t)(width + resampler->across.num_taps));
    resampler->wide_out = take(arena, 16 * size);
    resampler->rows = take(arena, 4 * size * (size_t)(height + resampler->down.num_taps));
    resampler->out = take(arena, 4 * size);
}

static void start_resampler(Resampler *resampler, const Resize *resize, int left, int top) {
    make_taps(&resampler->across, &resize->across, resize->is_bicubic, left, resize->precision,
              resampler->numbers);
    make_taps(&resampler->down, &resize->down, resize->is_bicubic, top, resize->precision,
              resampler->numbers);
    resampler->is_flipped = resize->is_flipped && !resize->is_transposed;
}

/* How many rows of pixels there have to be for row y of the result. */
static int num_rows_for(const Resampler *resampler, int y) {
    int end = resampler->down.starts[y] + resampler->down.max_count;
    return end < resampler->height ? end : resampler->height;
}

static inline uint8_t rounded(int32_t sum, int precision) {
    sum >>= precision; /* then two steps, which compilers make vectors of */
    sum = sum < 0 ? 0 : sum;
    sum = sum > 255 ? 255 : sum;
    return (uint8_t)sum;
}

/* Take row y, which is the only one of *rows*. */
static void take_rows(Resampler *resampler, const uint32_t *const *rows, int y) {
    typedef int32_t Four __attribute__((vector_size(16)));
    const Taps *taps = &resampler->across;
    int32_t precision = taps->precision, half = 1 << (precision - 1), count = taps->max_count;
    int width = resampler->width, size = resampler->size;
    const uint8_t *bytes = (const uint8_t *)rows[0];
    uint8_t *restrict out = (uint8_t *)(resampler->rows + (size_t)size * (size_t)y);
    int32_t *restrict wide = resampler->wide, *restrict sums = resampler->wide_out;
    for (int i = 0; i < 4 * width; i++) wide[i] = bytes[i];
    memset(wide + 4 * width, 0, 16 * (size_t)count); /* what has no weight */
    for (int x = 0; x < size; x++) {
        Four sum = {half, half, half, half};
        const Four *pixel = (const Four *)wide + taps->starts[x];
        const int32_t *weights = taps->weights + (size_t)x * (size_t)taps->num_taps;
        for (int k = 0; k < count; k++) sum += weights[k] * pixel[k];
        ((Four *)sums)[resampler->is_flipped ? size - 1 - x : x] = sum;
    }
    for (int i = 0; i < 4 * size; i++) out[i] = rounded(sums[i], precision);
}

/* Write row y of the result, of each of three planes; LANES bytes behind rows are read, and behind
 * the row written. */
static void write_planes(Resampler *resampler, int y, size_t plane, uint8_t *restrict planes) {
    const Taps *taps = &resampler->down;
    int size = resampler->size, precision = taps->precision, count = taps->max_count;
    size_t stride = 4 * (size_t)size;
    const uint8_t *first = (const uint8_t *)resampler->rows + stride * (size_t)taps->starts[y];
    const int32_t *weights = taps->weights + (size_t)y * (size_t)taps->num_taps;
    uint8_t *restrict out = (uint8_t *)resampler->out;
    for (int x = 0; x < 4 * size; x += LANES) {
        int32_t sums[LANES] __attribute__((aligned(64)));
        for (int i = 0; i < LANES; i++) sums[i] = 1 << (precision - 1);
        for (int k = 0; k < count; k++) {
            const uint8_t *bytes = first + stride * (size_t)k + x;
            for (int i = 0; i < LANES; i++) sums[i] += weights[k] * bytes[i];
        }
        for (int i = 0; i < LANES; i++) out[x + i] = rounded(sums[i], precision);
    }
    for (int x = 0; x < size; x++)
        for (int c = 0; c < 3; c++) planes[plane * (size_t)c + (size_t)x] = out[4 * x + c];
}
#endif
