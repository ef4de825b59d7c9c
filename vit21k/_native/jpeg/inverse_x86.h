#ifndef INVERSE_X86_H
#define INVERSE_X86_H
/* The inverse transform with AVX2: products of 16 bits, two to a sum. */
#include <immintrin.h>
#include <stdint.h>

#include "inverse.h"

/* Of each lane: its lower half times *low*, and its upper half times *high*. */
static inline __m256i products(__m256i pairs, int low, int high) {
    int32_t both = (int32_t)((uint32_t)(low & 0xFFFF) | (uint32_t)high << 16);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi32(both));
}

static inline __m256i plus(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
static inline __m256i minus(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }

/* One pass over columns; constants are jidctint's, multiplied out, which gives the same sums.
 * x[i]: rows i and i + 4.  bias: added to every sum. */
static inline void transform(const __m256i x[4], int bias, int shift, __m256i out[8]) {
    __m256i start = _mm256_set1_epi32(bias);
    __m256i t0 = plus(products(x[0], 8192, 8192), start);
    __m256i t1 = plus(products(x[0], 8192, -8192), start);
    __m256i t2 = products(x[2], 4433, -10704), t3 = products(x[2], 10703, 4433);
    __m256i e0 = plus(t0, t3), e3 = minus(t0, t3), e1 = plus(t1, t2), e2 = minus(t1, t2);
    __m256i o0 = plus(products(x[1], 2260, 9633), products(x[3], -6436, -11363));
    __m256i o1 = plus(products(x[1], 6437, 2261), products(x[3], -11362, 9633));
    __m256i o2 = plus(products(x[1], 9633, -11362), products(x[3], -2259, -6436));
    __m256i o3 = plus(products(x[1], 11363, 6437), products(x[3], 9633, 2260));
    out[0] = plus(e0, o3), out[7] = minus(e0, o3);
    out[1] = plus(e1, o2), out[6] = minus(e1, o2);
    out[2] = plus(e2, o1), out[5] = minus(e2, o1);
    out[3] = plus(e3, o0), out[4] = minus(e3, o0);
    for (int i = 0; i < 8; i++) out[i] = _mm256_srai_epi32(out[i], shift);
}

/* Of each 128 bits of a and b: numbers 0 and 2 of either, or 1 and 3. */
#define EVEN(a, b) _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88))
#define ODDS(a, b) _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD))

/* Rows, with columns as `place_of` has them -> x[i]: columns i and i + 4 of rows 0 to 7. */
static inline void transpose(const __m256i rows[8], __m256i x[4]) {
    __m256 two[4];
    for (int i = 0; i < 4; i++)
        two[i] = _mm256_castsi256_ps(_mm256_packs_epi32(rows[2 * i], rows[2 * i + 1]));
    __m256i even = EVEN(two[0], two[1]), even_below = EVEN(two[2], two[3]);
    __m256i odds = ODDS(two[0], two[1]), odd_below = ODDS(two[2], two[3]);
    x[0] = _mm256_permute2x128_si256(even, even_below, 0x20);
    x[2] = _mm256_permute2x128_si256(even, even_below, 0x31);
    x[1] = _mm256_permute2x128_si256(odds, odd_below, 0x20);
    x[3] = _mm256_permute2x128_si256(odds, odd_below, 0x31);
}

/* Four columns -> bytes, clamped: rows 0 to 3, then 4 to 7. */
static inline __m256i four_across(const __m256i x[4]) {
    const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256i left = _mm256_packs_epi32(x[0], x[1]), right = _mm256_packs_epi32(x[2], x[3]);
    __m256i bytes = _mm256_packus_epi16(left, right);
    return _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(transposed));
}

static inline void write_two_rows(__m128i rows, uint8_t *out, int stride) {
    _mm_storel_epi64((__m128i *)out, rows);
    _mm_storeh_pd((double *)(out + stride), _mm_castsi128_pd(rows));
}

static inline void write_columns(const __m256i x[8], uint8_t *out, int stride) {
    __m256i left = four_across(x), right = four_across(x + 4);
    __m256i first = _mm256_unpacklo_epi32(left, right); /* rows 0, 1, 4, 5 */
    __m256i second = _mm256_unpackhi_epi32(left, right);
    write_two_rows(_mm256_castsi256_si128(first), out, stride);
    write_two_rows(_mm256_castsi256_si128(second), out + 2 * stride, stride);
    write_two_rows(_mm256_extracti128_si256(first, 1), out + 4 * stride, stride);
    write_two_rows(_mm256_extracti128_si256(second, 1), out + 6 * stride, stride);
}

/* Coefficients -> products of 16 bits.  What such a product loses, or adds up to too much in a
 * column, shows in *too_large*. */
static inline void take_block(int16_t *block, const int16_t *quant, __m256i x[4],
                              Lanes *too_large) {
    __m256i sums = _mm256_setzero_si256(), lost = sums;
    for (int i = 0; i < 4; i++) {
        __m256i coefficients = _mm256_loadu_si256((const __m256i *)block + i);
        __m256i by = _mm256_loadu_si256((const __m256i *)quant + i);
        _mm256_storeu_si256((__m256i *)block + i, _mm256_setzero_si256());
        x[i] = _mm256_mullo_epi16(coefficients, by);
        __m256i sign = _mm256_srai_epi16(x[i], 15), upper = _mm256_mulhi_epi16(coefficients, by);
        lost = _mm256_or_si256(lost, _mm256_xor_si256(upper, sign));
        sums = _mm256_adds_epu16(sums, _mm256_abs_epi16(x[i]));
    }
    sums = plus(_mm256_srli_epi32(sums, 16), _mm256_and_si256(sums, _mm256_set1_epi32(0xFFFF)));
    __m256i is_more = _mm256_cmpgt_epi32(sums, _mm256_set1_epi32(MAX_COLUMN_SUM));
    *too_large |= (Lanes)_mm256_or_si256(lost, is_more);
}

static inline void transform_block(int16_t *block, const int16_t *quant, uint8_t *out, int stride,
                                   Lanes *too_large) {
    __m256i x[4], sums[8];
    take_block(block, quant, x, too_large);
    transform(x, 1 << 10, 11, sums);
    transpose(sums, x);
    transform(x, (1 << 17) + (128 << 18), 18, sums);
    write_columns(sums, out, stride);
}

#endif
