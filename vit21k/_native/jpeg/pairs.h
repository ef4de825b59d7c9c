#ifndef PAIRS_H
#define PAIRS_H
/* Weights of taps -> pairs of weights of 16 bits, as instructions take them that add two products.
 *
 * The taps of a pixel begin at an even place, with a weight of 0 if need be.
 */
#include "resample.h"

enum {
    STEP = 8,     /* pixels of a row that are made into blocks, or planes, at once */
    LOW_BITS = 9, /* of a weight in two parts; the high ones have 15 or fewer */
};

/* Of each pixel of the result: the pair of pixels that its taps begin with, and their weights in
 * pairs, num_pairs; then, if they have two parts, as many lower ones. */
typedef struct {
    int32_t *starts, num_pairs, precision, has_parts;
    uint32_t *weights;
} Pairs;

static size_t in_steps(int count) { return (size_t)(count + STEP - 1) / STEP * STEP; }

static void lay_out_pairs(Arena *arena, Pairs *pairs, const Taps *taps, int size) {
    pairs->num_pairs = taps->num_taps / 2 + 1; /* at most */
    pairs->starts = take(arena, 4 * in_steps(size));
    pairs->weights = take(arena, 8 * in_steps(size) * (size_t)pairs->num_pairs);
}

static uint32_t in_pair(int32_t first, int32_t second) {
    return (uint16_t)first | (uint32_t)second << 16;
}

/* Find how many pairs of weights each of the result needs, and of how many parts. */
static void measure_pairs(Pairs *pairs, const Taps *taps, int size) {
    pairs->num_pairs = 1, pairs->has_parts = 0, pairs->precision = taps->precision;
    for (int i = 0; i < size; i++) {
        const int32_t *weights = taps->weights + (size_t)i * (size_t)taps->num_taps;
        int end = taps->max_count;
        while (end > 1 && !weights[end - 1]) end--;
        int count = ((taps->starts[i] & 1) + end + 1) / 2;
        if (count > pairs->num_pairs) pairs->num_pairs = count;
        for (int k = 0; k < end; k++)
            if (weights[k] != (int16_t)weights[k]) pairs->has_parts = 1;
    }
}

/* Fill *pairs*, which is laid out, and behind *size* with zeros. */
static void make_pairs(Pairs *pairs, const Taps *taps, int size, int is_flipped) {
    measure_pairs(pairs, taps, size);
    int num_pairs = pairs->num_pairs, low = (1 << LOW_BITS) - 1;
    size_t step = (size_t)num_pairs * (pairs->has_parts ? 2 : 1);
    memset(pairs->weights, 0, 4 * step * in_steps(size));
    memset(pairs->starts, 0, 4 * in_steps(size));
    for (int i = 0; i < size; i++) {
        int place = is_flipped ? size - 1 - i : i, is_odd = taps->starts[i] & 1;
        const int32_t *from = taps->weights + (size_t)i * (size_t)taps->num_taps;
        uint32_t *to = pairs->weights + step * (size_t)place;
        pairs->starts[place] = taps->starts[i] >> 1;
        for (int k = 0; k < num_pairs; k++) {
            int at = 2 * k - is_odd;
            int32_t first = at >= 0 && at < taps->max_count ? from[at] : 0;
            int32_t second = at + 1 < taps->max_count ? from[at + 1] : 0;
            to[k] = in_pair(first, second);
            if (!pairs->has_parts) continue;
            to[k] = in_pair(first >> LOW_BITS, second >> LOW_BITS);
            to[num_pairs + k] = in_pair(first & low, second & low);
        }
    }
}
#endif
