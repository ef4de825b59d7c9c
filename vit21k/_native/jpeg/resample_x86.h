#ifndef RESAMPLE_X86_H
#define RESAMPLE_X86_H
/* The two passes of resample.h with AVX2; the bits are the same.
 *
 * One instruction multiplies numbers of 16 bits and adds two neighbouring products.  So what is to
 * be summed is kept in pairs: pixels 2i and 2i + 1 of a row, rows 2i and 2i + 1 of a column; and
 * taps begin at an even place, with a weight of 0 if need be.  Four rows are resampled at once:
 *
 *   pixels of 4 rows -> blocks -> sums -> two row pairs, in a ring -> sums -> a row of 3 planes
 *
 * A block is pixels 2i and 2i + 1 of four rows, in numbers of 16 bits.  First of rows 0 and 1:
 *   colour 0 of row 0 (2i, 2i + 1), of row 1; colour 1 of row 0, of row 1; colours 2 and 3;
 * then of rows 2 and 3.  So the sums of pixels x and x + 1 of the result, packed to 16 bits, are
 * of each row pair:
 *   x: colour 0 (both rows), colour 1; x + 1: colours 0 and 1; x: colours 2 and 3; x + 1: the same.
 *
 * Weights of more than 16 bits, Pillow's, are taken in two parts: w * v is 512 * (w >> 9) * v and
 * (w & 511) * v.
 */
#include <immintrin.h>

#include "pairs.h"
#include "resample.h"

enum {
    ROWS_AT_ONCE = 4,
    BLOCK_BYTES = 64, /* two pixels of four rows */
    PAIR_BYTES = 16,  /* one pixel of two rows */
};

typedef struct {
    Taps taps_across, taps_down;
    Pairs across, down;
    double *numbers; /* while taps are made */
    uint8_t *blocks; /* of four rows */
    uint8_t *ring;   /* the latest row pairs, as wide as the result */
    size_t stride;   /* of those, in bytes */
    int32_t width, height, size, num_slots;
} Resampler;

/* Lay out what is needed to resize *width* x *height* pixels to *size* x *size*. */
static void lay_out_resampler(Resampler *resampler, Arena *arena, const Resize *resize,
                              int width, int height) {
    int size = resize->across.count;
    Taps *across = &resampler->taps_across, *down = &resampler->taps_down;
    *resampler = (Resampler){.width = width, .height = height, .size = size};
    lay_out_taps(arena, across, &resize->across, resize->is_bicubic);
    lay_out_taps(arena, down, &resize->down, resize->is_bicubic);
    resampler->numbers = lay_out_numbers(arena, across, down, resize);
    lay_out_pairs(arena, &resampler->across, across, size);
    lay_out_pairs(arena, &resampler->down, down, size);
    size_t num_blocks = in_steps(width) / 2 + (size_t)resampler->across.num_pairs;
    resampler->blocks = take(arena, BLOCK_BYTES * num_blocks);
    resampler->num_slots = resampler->down.num_pairs + 1;
    resampler->stride = PAIR_BYTES * in_steps(size);
    resampler->ring = take(arena, resampler->stride * (size_t)resampler->num_slots);
}

static void start_resampler(Resampler *resampler, const Resize *resize, int left, int top) {
    Taps *across = &resampler->taps_across, *down = &resampler->taps_down;
    int is_bicubic = resize->is_bicubic, precision = resize->precision, size = resampler->size;
    make_taps(across, &resize->across, is_bicubic, left, precision, resampler->numbers);
    make_taps(down, &resize->down, is_bicubic, top, precision, resampler->numbers);
    make_pairs(&resampler->across, across, size, resize->is_flipped && !resize->is_transposed);
    make_pairs(&resampler->down, down, size, 0);
}

/* How many rows of pixels there have to be for row y of the result. */
static int num_rows_for(const Resampler *resampler, int y) {
    int end = 2 * (resampler->down.starts[y] + resampler->down.num_pairs);
    return end < resampler->height ? end : resampler->height;
}

/* ---- sums ---- */

typedef struct {
    __m256i first, second; /* of a block: rows 0 and 1, 2 and 3; of a row pair: two pixels each */
} Sums;

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE Sums sums_of(int32_t value) {
    return (Sums){_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
}

ALWAYS_INLINE Sums plus_products(Sums sums, uint32_t weights, const uint8_t *values) {
    __m256i both = _mm256_set1_epi32((int32_t)weights);
    __m256i first = _mm256_loadu_si256((const __m256i *)values);
    __m256i second = _mm256_loadu_si256((const __m256i *)(values + 32));
    return (Sums){_mm256_add_epi32(sums.first, _mm256_madd_epi16(both, first)),
                  _mm256_add_epi32(sums.second, _mm256_madd_epi16(both, second))};
}

/* What 64 bytes from *values* on, and from each of num_pairs - 1 rows behind, come to. */
ALWAYS_INLINE Sums weighted(const Pairs *pairs, const uint32_t *weights, int num_pairs,
                            int has_parts, const uint8_t *values, size_t stride, int until_wrap,
                            size_t wrap) {
    int32_t half = 1 << (pairs->precision - 1);
    __m128i precision = _mm_cvtsi32_si128(pairs->precision);
    Sums sums = sums_of(has_parts ? 0 : half), low = sums_of(half);
    for (int k = 0; k < num_pairs; k++, values += stride) {
        if (k == until_wrap) values -= wrap;
        sums = plus_products(sums, weights[k], values);
        if (has_parts) low = plus_products(low, weights[num_pairs + k], values);
    }
    if (has_parts) {
        sums.first = _mm256_add_epi32(_mm256_slli_epi32(sums.first, LOW_BITS), low.first);
        sums.second = _mm256_add_epi32(_mm256_slli_epi32(sums.second, LOW_BITS), low.second);
    }
    return (Sums){_mm256_sra_epi32(sums.first, precision),
                  _mm256_sra_epi32(sums.second, precision)};
}

/* Call with num_pairs and has_parts as constants, where they are the usual ones. */
#define WITH_CONSTANTS(pairs, call)                            \
    switch (2 * (pairs)->num_pairs + (pairs)->has_parts) {     \
    case 2 * 1: call(1, 0); break;                             \
    case 2 * 2: call(2, 0); break;                             \
    case 2 * 3: call(3, 0); break;                             \
    case 2 * 4: call(4, 0); break;                             \
    case 2 * 2 + 1: call(2, 1); break;                         \
    case 2 * 3 + 1: call(3, 1); break;                         \
    case 2 * 4 + 1: call(4, 1); break;                         \
    case 2 * 5 + 1: call(5, 1); break;                         \
    default: call((pairs)->num_pairs, (pairs)->has_parts);     \
    }

/* ---- along rows ---- */

/* Four rows of pixels -> blocks.  Up to 31 bytes behind each row are read. */
static void make_blocks(const uint32_t *const *rows, int width, uint8_t *blocks) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));
    for (int x = 0; x < width; x += STEP, blocks += STEP / 2 * BLOCK_BYTES)
        for (int half = 0; half < 2; half++) {
            __m256i a = _mm256_loadu_si256((const __m256i *)(rows[2 * half] + x));
            __m256i b = _mm256_loadu_si256((const __m256i *)(rows[2 * half + 1] + x));
            __m256i even = _mm256_shuffle_epi8(_mm256_unpacklo_epi32(a, b), order);
            __m256i odds = _mm256_shuffle_epi8(_mm256_unpackhi_epi32(a, b), order);
            __m256i *out = (__m256i *)blocks + half;
            _mm256_storeu_si256(out, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(even)));
            _mm256_storeu_si256(out + 2, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(odds)));
            _mm256_storeu_si256(out + 4, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(even, 1)));
            _mm256_storeu_si256(out + 6, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(odds, 1)));
        }
}

/* Two pixels of two rows: 32 bits each -> 16, from 0 to 255. */
ALWAYS_INLINE void store_pixels(__m256i first, __m256i second, uint8_t *out) {
    __m256i both = _mm256_packus_epi32(first, second); /* 0 to 65535 */
    _mm256_storeu_si256((__m256i *)out, _mm256_min_epu16(both, _mm256_set1_epi16(255)));
}

ALWAYS_INLINE void resample_blocks(const Resampler *resampler, int num_pairs, int has_parts,
                                   uint8_t *upper, uint8_t *lower) {
    const Pairs *pairs = &resampler->across;
    size_t step = (size_t)num_pairs * (has_parts ? 2 : 1);
    for (size_t x = 0; x < in_steps(resampler->size); x += 2) {
        Sums sums[2];
        for (size_t i = 0; i < 2; i++)
            sums[i] = weighted(pairs, pairs->weights + step * (x + i), num_pairs, has_parts,
                               resampler->blocks + BLOCK_BYTES * (size_t)pairs->starts[x + i],
                               BLOCK_BYTES, -1, 0);
        store_pixels(sums[0].first, sums[1].first, upper + PAIR_BYTES * x);
        store_pixels(sums[0].second, sums[1].second, lower + PAIR_BYTES * x);
    }
}

/* Take rows y to y + 3; behind the last one, any may stand for another. */
static void take_rows(Resampler *resampler, const uint32_t *const *rows, int y) {
    int num_slots = resampler->num_slots, pair = y / 2;
    uint8_t *upper = resampler->ring + resampler->stride * (size_t)(pair % num_slots);
    uint8_t *lower = resampler->ring + resampler->stride * (size_t)((pair + 1) % num_slots);
    make_blocks(rows, resampler->width, resampler->blocks);
#define CALL(num_pairs, has_parts) resample_blocks(resampler, num_pairs, has_parts, upper, lower)
    WITH_CONSTANTS(&resampler->across, CALL)
#undef CALL
}

/* ---- down columns ---- */

/* Eight pixels, four of each sums -> three planes, *count* of them. */
ALWAYS_INLINE void store_planes(Sums a, Sums b, int count, size_t plane, uint8_t *out) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(a.first, a.second),
                                        _mm256_packs_epi32(b.first, b.second));
    bytes = _mm256_shuffle_epi8(bytes, order);
    __m128i first_two = _mm256_castsi256_si128(bytes), third = _mm256_extracti128_si256(bytes, 1);
    uint8_t some[3 * STEP], *to = count < STEP ? some : out;
    size_t stride = count < STEP ? STEP : plane;
    _mm_storeu_si64(to, first_two);
    _mm_storeu_si64(to + stride, _mm_unpackhi_epi64(first_two, first_two));
    _mm_storeu_si64(to + 2 * stride, third);
    if (count < STEP)
        for (size_t c = 0; c < 3; c++) memcpy(out + plane * c, some + STEP * c, (size_t)count);
}

ALWAYS_INLINE void resample_ring(const Resampler *resampler, int num_pairs, int has_parts, int y,
                                 size_t plane, uint8_t *out) {
    const Pairs *pairs = &resampler->down;
    int slot = pairs->starts[y] % resampler->num_slots, until_wrap = resampler->num_slots - slot;
    size_t stride = resampler->stride, wrap = stride * (size_t)resampler->num_slots;
    const uint8_t *first = resampler->ring + stride * (size_t)slot;
    const uint32_t *weights = pairs->weights + (size_t)num_pairs * (has_parts ? 2 : 1) * (size_t)y;
    for (int x = 0; x < resampler->size; x += STEP, first += PAIR_BYTES * STEP) {
        Sums sums[2];
        for (size_t i = 0; i < 2; i++)
            sums[i] = weighted(pairs, weights, num_pairs, has_parts, first + i * 64, stride,
                               until_wrap, wrap);
        store_planes(sums[0], sums[1], resampler->size - x, plane, out + x);
    }
}

/* Write row y of the result, of each of three planes. */
static void write_planes(Resampler *resampler, int y, size_t plane, uint8_t *out) {
#define CALL(num_pairs, has_parts) resample_ring(resampler, num_pairs, has_parts, y, plane, out)
    WITH_CONSTANTS(&resampler->down, CALL)
#undef CALL
}
#endif
