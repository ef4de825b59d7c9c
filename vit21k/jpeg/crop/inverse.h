#ifndef INVERSE_H
#define INVERSE_H
/* The inverse transform: jidctint of libjpeg, for eight columns or rows at a time. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Of a block's coefficients.  libjpeg-turbo's vector code has 16 bits between its two passes; with
 * this, no number and no sum of two leaves them: 2 x 4 x 1.39 x 2900 < 32768. */
enum { MAX_COLUMN_SUM = 2900 };

typedef int32_t Lanes __attribute__((vector_size(32)));

static inline Lanes splat(int32_t v) { return (Lanes){v, v, v, v, v, v, v, v}; }

/* One pass over columns: constants are those of jidctint.c, times 2^13. */
static inline void transform(Lanes x[8], int shift) {
    Lanes half = splat(1 << (shift - 1));
    Lanes z1 = (x[2] + x[6]) * 4433, t2 = z1 - x[6] * 15137, t3 = z1 + x[2] * 6270;
    Lanes t0 = (x[0] + x[4]) << 13, t1 = (x[0] - x[4]) << 13;
    Lanes e0 = t0 + t3 + half, e3 = t0 - t3 + half, e1 = t1 + t2 + half, e2 = t1 - t2 + half;
    Lanes z3 = x[7] + x[3], z4 = x[5] + x[1], z5 = (z3 + z4) * 9633;
    z1 = (x[7] + x[1]) * -7373;
    Lanes z2 = (x[5] + x[3]) * -20995;
    z3 = z3 * -16069 + z5, z4 = z4 * -3196 + z5;
    Lanes o0 = x[7] * 2446 + z1 + z3, o1 = x[5] * 16819 + z2 + z4;
    Lanes o2 = x[3] * 25172 + z2 + z3, o3 = x[1] * 12299 + z1 + z4;
    x[0] = (e0 + o3) >> shift, x[7] = (e0 - o3) >> shift;
    x[1] = (e1 + o2) >> shift, x[6] = (e1 - o2) >> shift;
    x[2] = (e2 + o1) >> shift, x[5] = (e2 - o1) >> shift;
    x[3] = (e3 + o0) >> shift, x[4] = (e3 - o0) >> shift;
}

#ifdef __clang__
#define PAIR(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PAIR(a, b, ...) __builtin_shuffle(a, b, (Lanes){__VA_ARGS__})
#endif

static inline void transpose(Lanes x[8]) {
    Lanes a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = PAIR(x[2 * i], x[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        a[2 * i + 1] = PAIR(x[2 * i], x[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + j] = PAIR(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + j + 2] = PAIR(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        x[i] = PAIR(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        x[i + 4] = PAIR(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* block, in natural order, is set to zero again.  Lanes of *too_large* are set where it is. */
static void to_samples(int32_t *block, int last, uint8_t *out, int stride, Lanes *too_large) {
    Lanes x[8], sum = splat(0);
    if (!last) {
        int sample = ((4 * block[0] + 16) >> 5) + 128; /* both passes, of a DC alone */
        *too_large |= splat(abs(block[0])) > MAX_COLUMN_SUM;
        sample = sample < 0 ? 0 : sample > 255 ? 255 : sample;
        block[0] = 0;
        for (int y = 0; y < 8; y++) memset(out + y * stride, sample, 8);
        return;
    }
    memcpy(x, block, sizeof x);
    memset(block, 0, sizeof x);
    for (int y = 0; y < 8; y++) sum += (x[y] ^ x[y] >> 31) - (x[y] >> 31);
    *too_large |= sum > MAX_COLUMN_SUM;
    transform(x, 11);
    transpose(x);
    transform(x, 18);
    transpose(x);
    for (int y = 0; y < 8; y++) {
        typedef uint8_t Eight __attribute__((vector_size(8)));
        Lanes v = x[y] + 128;
        v &= ~(v < 0);
        v = (v & ~(v > 255)) | ((v > 255) & 255);
        Eight bytes = __builtin_convertvector(v, Eight);
        memcpy(out + y * stride, &bytes, 8);
    }
}

#endif
