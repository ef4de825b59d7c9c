#ifndef RESAMPLE_H
#define RESAMPLE_H
/* Pixels -> the same picture in another size, antialiased: torch's way for uint8, to the bit.
 *
 * Columns first, then rows, with weights of 15 bits and rounding to 8 bits between the two.
 * Source: `upsample_avx_bilinear_bicubic_uint8` and `_compute_indices_min_size_weights_aa` in
 * aten/src/ATen/native/cpu/ of PyTorch, whose source is Pillow's Resample.c.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PRECISION = 22, LANES = 64 };

/* What each pixel of the result is made of, along one side. */
typedef struct {
    int32_t *starts, *weights; /* weights: num_taps for each, of which max_count may be not 0 */
    int32_t num_taps, max_count, precision;
} Taps;

static double bilinear(double x) {
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

static int taps_of(int from, int to, int is_bicubic) {
    double scale = (double)from / to, support = is_bicubic ? 2 : 1;
    return (int)ceil(scale > 1 ? support * scale : support) * 2 + 1;
}

/* Fill *taps*, which has its room; numbers: more room, of to * num_taps. */
static void make_taps(Taps *taps, int from, int to, int is_bicubic, double *numbers) {
    double scale = (double)from / to, inverse = scale > 1 ? 1 / scale : 1, largest = 0;
    double support = (is_bicubic ? 2 : 1) * (scale > 1 ? scale : 1);
    int num_taps = taps->num_taps;
    taps->precision = taps->max_count = 0;
    for (int i = 0; i < to; i++) {
        double center = scale * (i + 0.5), total = 0, *row = numbers + (size_t)i * num_taps;
        int start = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        start = start < 0 ? 0 : start;
        int count = (end > from ? from : end) - start;
        count = count < 0 ? 0 : count > num_taps ? num_taps : count;
        taps->starts[i] = start;
        if (count > taps->max_count) taps->max_count = count;
        for (int k = 0; k < count; k++) {
            double at = (k + start - center + 0.5) * inverse;
            total += row[k] = is_bicubic ? bicubic(at) : bilinear(at);
        }
        for (int k = 0; k < count; k++) {
            if (total != 0) row[k] /= total;
            if (row[k] > largest) largest = row[k];
        }
        for (int k = count; k < num_taps; k++) row[k] = 0;
    }
    while (taps->precision < MAX_PRECISION &&
           (int)(0.5 + largest * (1 << (taps->precision + 1))) < 1 << 15)
        taps->precision++;
    for (int i = 0; i < to * num_taps; i++) {
        double weight = numbers[i] * (1 << taps->precision);
        taps->weights[i] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
}

static inline uint8_t rounded(int32_t sum, int precision) {
    sum >>= precision; /* then two steps, which compilers make vectors of */
    sum = sum < 0 ? 0 : sum;
    sum = sum > 255 ? 255 : sum;
    return (uint8_t)sum;
}

/* One row of *width* pixels to *size* pixels, from right to left if it is flipped.
 * wide, sums: room for 4 numbers of each pixel, before and after. */
static void resample_row(const Taps *taps, const uint32_t *pixels, int width, int size,
                         int is_flipped, int32_t *restrict wide, int32_t *restrict sums,
                         uint32_t *out) {
    typedef int32_t Four __attribute__((vector_size(16)));
    int32_t precision = taps->precision, half = 1 << (precision - 1), count = taps->max_count;
    const uint8_t *bytes = (const uint8_t *)pixels;
    uint8_t *restrict bytes_out = (uint8_t *)out;
    for (int i = 0; i < 4 * width; i++) wide[i] = bytes[i];
    memset(wide + 4 * width, 0, 16 * (size_t)count); /* what has no weight */
    for (int x = 0; x < size; x++) {
        Four sum = {half, half, half, half};
        const Four *pixel = (const Four *)wide + taps->starts[x];
        const int32_t *weights = taps->weights + (size_t)x * taps->num_taps;
        for (int k = 0; k < count; k++) sum += weights[k] * pixel[k];
        ((Four *)sums)[is_flipped ? size - 1 - x : x] = sum;
    }
    for (int i = 0; i < 4 * size; i++) bytes_out[i] = rounded(sums[i], precision);
}

/* Row y of the result, from rows of *size* pixels; LANES bytes behind them may be read, and
 * behind the result written. */
static void resample_column(const Taps *taps, const uint32_t *rows, size_t stride, int size, int y,
                            uint32_t *out) {
    const uint8_t *first = (const uint8_t *)(rows + stride * taps->starts[y]);
    const int32_t *weights = taps->weights + (size_t)y * taps->num_taps;
    int precision = taps->precision, count = taps->max_count;
    for (int x = 0; x < 4 * size; x += LANES) {
        int32_t sums[LANES] __attribute__((aligned(64)));
        for (int i = 0; i < LANES; i++) sums[i] = 1 << (precision - 1);
        for (int k = 0; k < count; k++) {
            const uint8_t *bytes = first + 4 * stride * (size_t)k + x;
            for (int i = 0; i < LANES; i++) sums[i] += weights[k] * bytes[i];
        }
        for (int i = 0; i < LANES; i++) ((uint8_t *)out)[x + i] = rounded(sums[i], precision);
    }
}

/* Pixels -> a row of each of three planes. */
static void split_colours(const uint32_t *restrict pixels, int size, size_t plane,
                          uint8_t *restrict out) {
    for (int x = 0; x < size; x++) {
        out[x] = (uint8_t)pixels[x];
        out[x + plane] = (uint8_t)(pixels[x] >> 8);
        out[x + 2 * plane] = (uint8_t)(pixels[x] >> 16);
    }
}
#endif
