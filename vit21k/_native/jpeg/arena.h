#ifndef ARENA_H
#define ARENA_H
/* Memory that a thread keeps from image to image, laid out anew for each. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "jpeg.h"

typedef struct {
    uint8_t *bytes;
    size_t capacity, used; /* used: laid out; more than there is: what was taken is NULL */
} Arena;

#ifdef CHECK_ARENA /* for fuzzing: the address sanitizer reports accesses beyond the spare bytes */
#include <sanitizer/asan_interface.h>
enum { FORBIDDEN = 64 };
#define FORBID(bytes) __asan_poison_memory_region(bytes, FORBIDDEN)
#define PERMIT(bytes, size) __asan_unpoison_memory_region(bytes, size)
#else
enum { FORBIDDEN = 0 };
#define FORBID(bytes) (void)(bytes)
#define PERMIT(bytes, size) (void)(bytes)
#endif

/* Begin to lay out anew. */
static void empty(Arena *arena) {
    PERMIT(arena->bytes, arena->capacity);
    arena->used = 0;
}

/* The next *num_bytes*, with some to spare behind them. */
static void *take(Arena *arena, size_t num_bytes) {
    size_t place = arena->used;
    arena->used += ((num_bytes + 256 + 63) & ~(size_t)63) + FORBIDDEN;
    if (arena->used > arena->capacity) return NULL;
    FORBID(arena->bytes + arena->used - FORBIDDEN);
    return arena->bytes + place;
}

static void drop_arena(Arena *arena) {
    empty(arena);
    free(arena->bytes);
    *arena = (Arena){.bytes = NULL};
}

/* Have as much as was laid out, which has to be laid out again. */
static int enlarge(Arena *arena) {
    size_t capacity = arena->used + arena->used / 4;
    void *bytes = NULL;
    drop_arena(arena);
    if (posix_memalign(&bytes, 64, capacity)) return NO_MEMORY;
    *arena = (Arena){.bytes = bytes, .capacity = capacity};
    return DONE;
}

#endif
