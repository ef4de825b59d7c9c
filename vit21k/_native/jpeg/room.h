#ifndef ROOM_H
#define ROOM_H
/* Memory that a thread keeps from image to image, laid out anew for each. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "jpeg.h"

typedef struct {
    uint8_t *bytes;
    size_t capacity, used; /* used: laid out; more than there is: what was taken is NULL */
} Room;

#ifdef CHECK_ROOM /* for fuzzing: the address sanitizer reports accesses beyond the spare bytes */
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
static void empty(Room *room) {
    PERMIT(room->bytes, room->capacity);
    room->used = 0;
}

/* The next *num_bytes*, with some to spare behind them. */
static void *take(Room *room, size_t num_bytes) {
    size_t place = room->used;
    room->used += ((num_bytes + 256 + 63) & ~(size_t)63) + FORBIDDEN;
    if (room->used > room->capacity) return NULL;
    FORBID(room->bytes + room->used - FORBIDDEN);
    return room->bytes + place;
}

static void drop_room(Room *room) {
    empty(room);
    free(room->bytes);
    *room = (Room){.bytes = NULL};
}

/* Have as much as was laid out, which has to be laid out again. */
static int enlarge(Room *room) {
    size_t capacity = room->used + room->used / 4;
    void *bytes = NULL;
    drop_room(room);
    if (posix_memalign(&bytes, 64, capacity)) return NO_MEMORY;
    *room = (Room){.bytes = bytes, .capacity = capacity};
    return DONE;
}

#endif
