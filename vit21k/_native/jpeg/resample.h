#ifndef RESAMPLE_H
#define RESAMPLE_H
/* Pixels -> the same image in another size, antialiased: torch's way for uint8, or Pillow's, to
 * the bit.
 *
 * Along rows first, then down columns, with rounding to 8 bits between the two.  The ways differ
 * in how many bits weights have.  Sums are of 32 bits and taken modulo 2**32, so their order does
 * not matter; what they stand for fits: weights of 22 bits add up to about 2**22, those of a
 * bicubic filter without their signs to less than 1.5 times that, and 255 * 1.5 * 2**22 < 2**31.
 *
 * Source: `upsample_avx_bilinear_bicubic_uint8` in aten/src/ATen/native/cpu/ of PyTorch, and
 * `ImagingResampleInner` in Pillow's Resample.c.
 *
 * A resampler is laid out, started, and given rows of pixels in order, ROWS_AT_ONCE with a
 * call; as soon as it has the rows that a row of the result is made of, it writes that.
 */
#include "arena.h"
#include "taps.h"

static void lay_out_taps(Arena *arena, Taps *taps, const Side *side, int is_bicubic) {
    taps->num_taps = num_taps_of(side, is_bicubic);
    taps->starts = take(arena, 4 * (size_t)side->count);
    taps->weights = take(arena, 4 * (size_t)side->count * (size_t)taps->num_taps);
}

/* Lay out the scratch numbers of make_taps. */
static double *lay_out_numbers(Arena *arena, const Taps *across, const Taps *down,
                               const Resize *resize) {
    size_t first = (size_t)resize->across.count * (size_t)across->num_taps;
    size_t second = (size_t)resize->down.count * (size_t)down->num_taps;
    return take(arena, 8 * (first > second ? first : second));
}

#if defined(USE_AVX2)
#include "resample_x86.h"
#else
#include "resample_portable.h"
#endif
#endif
