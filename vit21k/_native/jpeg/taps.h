#ifndef TAPS_H
#define TAPS_H
/* What each pixel of a resized image is made of: pixels and weights, along one side.
 *
 * Source: `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's Resample.c; and for weights
 * of 16 bits `_compute_indices_min_size_weights_aa` in aten/src/ATen/native/cpu/ of PyTorch, which
 * has the same pixels.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { MOST_BITS = 22 }; /* of a weight's fraction: Pillow's, and the most of torch's */

/* A side of *from* pixels that becomes *to*, of which *count* from *first* on are asked for. */
typedef struct {
    int32_t from, to, first, count;
} Side;

/* What is done to an image: both sides resized, then perhaps flipped from left to right.
 * Transposed: rows and columns are exchanged before, and back at the end; `across` is of its height. */
typedef struct {
    Side across, down;
    int32_t is_bicubic, is_flipped, is_transposed;
    int32_t precision; /* bits of a weight's fraction; 0: as torch has them, see make_taps */
} Resize;

typedef struct {
    int32_t *starts, *weights;      /* weights: num_taps for each pixel that is asked for */
    int32_t num_taps, max_count;    /* of num_taps, max_count may be not 0 */
    int32_t precision;              /* bits of a weight's fraction */
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

static double scale_of(const Side *side) { return (double)side->from / side->to; }

/* The reach of a pixel's taps, in pixels of the image. */
static double support_of(const Side *side, int is_bicubic) {
    double scale = scale_of(side);
    return (is_bicubic ? 2 : 1) * (scale > 1 ? scale : 1);
}

static int num_taps_of(const Side *side, int is_bicubic) {
    return (int)ceil(support_of(side, is_bicubic)) * 2 + 1;
}

/* The first pixel that number i of the whole side is made of. */
static int start_of(const Side *side, int i, double support) {
    int start = (int)(scale_of(side) * (i + 0.5) - support + 0.5);
    return start < 0 ? 0 : start;
}

/* The pixel behind the last that number i of the whole side is made of. */
static int end_of(const Side *side, int i, double support) {
    int end = (int)(scale_of(side) * (i + 0.5) + support + 0.5);
    return end > side->from ? side->from : end;
}

/* Write the weights of number i of the whole side; return how many there are. */
static int make_weights(const Side *side, int i, int is_bicubic, int num_taps, double *weights) {
    double scale = scale_of(side), center = scale * (i + 0.5), total = 0;
    double inverse = scale > 1 ? 1 / scale : 1, support = support_of(side, is_bicubic);
    int start = start_of(side, i, support), count = end_of(side, i, support) - start;
    count = count < 0 ? 0 : count > num_taps ? num_taps : count;
    for (int k = 0; k < count; k++) {
        double at = (k + start - center + 0.5) * inverse;
        total += weights[k] = is_bicubic ? bicubic(at) : bilinear(at);
    }
    for (int k = 0; k < count; k++)
        if (total != 0) weights[k] /= total;
    for (int k = count; k < num_taps; k++) weights[k] = 0;
    return count;
}

/* Fill *taps*, which is laid out; numbers: scratch, of side->count * num_taps.
 * skipped: the pixel that starts are counted from.
 * precision: 0: as many bits as let weights fit into 16 with their sign, which is torch's way, and
 * only for a side of which all is asked for. */
static void make_taps(Taps *taps, const Side *side, int is_bicubic, int skipped, int precision,
                      double *numbers) {
    double largest = 0, support = support_of(side, is_bicubic);
    size_t num_taps = (size_t)taps->num_taps, num_weights = num_taps * (size_t)side->count;
    taps->max_count = 0;
    for (int i = 0; i < side->count; i++) {
        double *weights = numbers + (size_t)i * num_taps;
        int count = make_weights(side, side->first + i, is_bicubic, taps->num_taps, weights);
        taps->starts[i] = start_of(side, side->first + i, support) - skipped;
        if (count > taps->max_count) taps->max_count = count;
        for (int k = 0; k < count; k++)
            if (weights[k] > largest) largest = weights[k];
    }
    if (!precision)
        while (precision < MOST_BITS && (int)(0.5 + largest * (1 << (precision + 1))) < 1 << 15)
            precision++;
    taps->precision = precision;
    for (size_t i = 0; i < num_weights; i++) {
        double weight = numbers[i] * (1 << precision);
        taps->weights[i] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
}
#endif
