#ifndef INVERSE_H
#define INVERSE_H
/* Coefficients of a block -> samples: bit-identical to jidctint of libjpeg. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Of a block's coefficients.  libjpeg-turbo's vector code has 16 bits between its two passes; with
 * this, no number and no sum of two leaves them: 2 x 4 x 1.39 x 2900 < 32768. */
enum { MAX_COLUMN_SUM = 2900 };

typedef int32_t Lanes __attribute__((vector_size(32)));

/* Index of the coefficient at (x, y) in a block, as in a table of quantisers.  The transform
 * takes y and y + 4 as the two halves of a number of 32 bits, and so x and x + 4 after it has
 * transposed rows into columns: 8 numbers for y, those of x = 0, 4, 1, 5, 2, 6, 3, 7. */
static inline int place_of(int x, int y) {
    return (y & 3) * 16 + (x & 3) * 4 + (x >> 2) * 2 + (y >> 2);
}

#if defined(USE_AVX2)
#include "inverse_x86.h"
#else
#include "inverse_portable.h"
#endif

/* Write 8 x 8 samples.  Lanes of *too_large* are set where coefficients are.
 * block: not yet multiplied; set to zero again.  has_ac: more than DC is in it. */
static inline void to_samples(int16_t *block, const int16_t *quant, int has_ac, uint8_t *out,
                              int stride, Lanes *too_large) {
    if (has_ac) {
        transform_block(block, quant, out, stride, too_large);
        return;
    }
    int dc = block[0] * quant[0], sample = ((4 * dc + 16) >> 5) + 128; /* of both passes */
    for (int i = 0; i < 8; i++) (*too_large)[i] |= abs(dc) > MAX_COLUMN_SUM;
    sample = sample < 0 ? 0 : sample > 255 ? 255 : sample;
    block[0] = 0;
    for (int y = 0; y < 8; y++) memset(out + y * stride, sample, 8);
}

#endif
