/* What the fuzz targets and their driver share. */
#ifndef FUZZ_H
#define FUZZ_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Run the code under test on one input; return a digest of all results, which must be the same on
 * every processor. */
uint64_t run_input(const uint8_t *data, size_t size);

/* Stop with a message unless *condition* holds. */
#define REQUIRE(condition)                                                               \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);      \
            abort();                                                                     \
        }                                                                                \
    } while (0)

static inline uint64_t next_random(uint64_t *state) { /* SplitMix64 */
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* A value from 0 to below *end*, which is not 0. */
static inline size_t below(uint64_t *state, size_t end) { return (size_t)(next_random(state) % end); }

static inline uint64_t digest_of(uint64_t digest, const void *data, size_t size) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < size; i++) digest = (digest ^ bytes[i]) * 0x100000001B3u; /* FNV-1a */
    return digest;
}

enum { FIRST_DIGEST = 1469598103 };

static inline void *allocated(size_t size) {
    void *bytes = malloc(size ? size : 1);
    REQUIRE(bytes);
    return bytes;
}

/* A copy that ends where its memory ends, so that a sanitizer sees each read behind it. */
static inline uint8_t *copy_of(const void *data, size_t size) {
    uint8_t *copy = allocated(size);
    if (size) memcpy(copy, data, size);
    return copy;
}

#endif
