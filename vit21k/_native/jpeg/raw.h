#ifndef RAW_H
#define RAW_H
/* Images that `vit21k pack --raw` wrote: PPM, three bytes a pixel behind a header of one form. */
#include <stdint.h>
#include <string.h>

#include "header.h"
#if defined(USE_AVX2)
#include <immintrin.h>
#endif

static int is_raw(const uint8_t *content, size_t num_bytes) {
    return num_bytes > 3 && !memcmp(content, "P6\n", 3);
}

/* Read up to six digits and what is behind them; return where that ends, or NULL. */
static const uint8_t *read_number(const uint8_t *at, const uint8_t *end, uint8_t behind,
                                  int32_t *number) {
    int count = 0;
    for (*number = 0; at < end && count < 6 && *at >= '0' && *at <= '9'; at++, count++)
        *number = 10 * *number + (*at - '0');
    return count && at < end && *at == behind ? at + 1 : NULL;
}

/* Fill *header*, in which an image without components is raw. */
static int read_raw_header(Header *header, const uint8_t *content, size_t num_bytes) {
    const uint8_t *at = content + 3, *end = content + num_bytes;
    memset(header, 0, sizeof *header);
    header->components[0].h = header->components[0].v = 1;
    if (!(at = read_number(at, end, ' ', &header->width))) return UNSUPPORTED;
    if (!(at = read_number(at, end, '\n', &header->height))) return UNSUPPORTED;
    if (end - at < 4 || memcmp(at, "255\n", 4)) return UNSUPPORTED;
    header->scan_start = (size_t)(at + 4 - content);
    if (header->width > UINT16_MAX || header->height > UINT16_MAX) return UNSUPPORTED;
    size_t num_pixels = (size_t)header->width * (size_t)header->height;
    return num_pixels && num_bytes - header->scan_start == 3 * num_pixels ? DONE : UNSUPPORTED;
}

/* *width* pixels of three bytes -> as many of four. */
static void raw_to_pixels(const uint8_t *bytes, int width, uint32_t *restrict out) {
    int x = 0;
#if defined(USE_AVX2)
    const __m256i order = _mm256_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1,
                                           0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    for (; x + 10 <= width; x += 8) { /* 28 bytes are read, for 24 */
        __m128i low = _mm_loadu_si128((const __m128i *)(bytes + 3 * x));
        __m128i high = _mm_loadu_si128((const __m128i *)(bytes + 3 * x + 12));
        __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        _mm256_storeu_si256((__m256i *)(out + x), _mm256_shuffle_epi8(both, order));
    }
#endif
    for (; x < width; x++)
        out[x] = (uint32_t)(bytes[3 * x] | bytes[3 * x + 1] << 8 | bytes[3 * x + 2] << 16);
}
#endif
