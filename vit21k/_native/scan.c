/* The names of a chunk -> size, times, digests and image facts of its files, in one call.
 *
 * Only the plain case is dealt with: a regular file of a size that fits the buffer, read by one
 * call, unchanged meanwhile, and a whole JPEG.  Whatever is odd in any way is left alone, and
 * Python does it from scratch: it has all the rules, the words, and the second tries.
 * `image_facts.py` and `file_digest.py` say what is made of a file, and why; the tests compare
 * the two.
 *
 * Files are hostile: every place in the buffer is checked against the bytes that were read.
 */
#define _GNU_SOURCE
#ifndef __linux__
#error "for Linux only: what other systems call times and advice differs"
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "xxh3_128.h"

enum { PROBE_BYTES = 4096, ASKED_BYTES = 1 << 20, SAVED_BYTES = 1 << 16 };
enum { TO_DO = 0, DONE = 1 };
enum { HAS_DIGEST = 1, HAS_CONTENT = 2, HAS_PROBE = 4, HAS_FACTS = 8, SAW_END = 16, LOOKED_FOR_END = 32 };
enum { NO_FORMAT = 0, JPEG = 1 };
enum { PLAIN, METADATA, FRAME, SCAN, PROFILE, NO_LENGTH, FILL };
enum { JFIF_BYTES = 18, GREY = 1, COLOUR = 3 };

/* What is known of a file; `file_rows.py` has the same layout. */
typedef struct __attribute__((packed)) {
    int64_t num_bytes, mtime_ns, ctime_ns;
    uint64_t inode;
    uint8_t digest[16], content_digest[16], probe[16];
    uint8_t format;
    uint32_t width, height;
    uint8_t components, flags;
} Row;

typedef struct {
    int folder, open_flags;
    int only_ends; /* of what is larger than both */
    uint8_t *buffer;
    int64_t capacity;
    TakeIn *take_in;
} Job;

/* What to do with a segment, by the second byte of its marker (ITU-T T.81, table B.1). */
static int kind_of(uint8_t marker) {
    if (marker == 0xE2) return PROFILE;
    if ((marker & 0xF0) == 0xE0 || marker == 0xFE) return METADATA;
    if (marker == 0xDA) return SCAN;
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD9)) return NO_LENGTH;
    if (marker == 0xFF) return FILL;
    const int is_table = marker == 0xC4 || marker == 0xC8 || marker == 0xCC;
    return (marker & 0xF0) == 0xC0 && !is_table ? FRAME : PLAIN;
}

static int begins_with(const uint8_t *data, int64_t place, int64_t size, const char *text, int64_t length) {
    return place + length <= size && memcmp(data + place, text, (size_t)length) == 0;
}

static int is_dropped(int kind, const uint8_t *data, int64_t place, int64_t size) {
    if (kind == PROFILE) return !begins_with(data, place + 4, size, "ICC_PROFILE", 12); /* with its 0 */
    return kind == METADATA || kind == FILL;
}

static void note_frame(Row *row, const uint8_t *data, int64_t place, int64_t size) {
    row->width = row->height = row->components = 0; /* unknown */
    if (place + 10 > size) return;
    row->height = (uint32_t)data[place + 5] << 8 | data[place + 6];
    row->width = (uint32_t)data[place + 7] << 8 | data[place + 8];
    row->components = data[place + 9];
}

/* Whether the first end marker after *place* is at the very end. */
static int ends_once(const uint8_t *data, int64_t place, int64_t size) {
    const uint8_t *at = data + place, *last = data + size - 2;
    while ((at = memchr(at, 0xFF, (size_t)(last - at + 1))) < last)
        if (*++at == 0xD9) return 0;
    return 1;
}

/* The first bytes of an image as they were, so that they can be restored. */
typedef struct {
    uint8_t *bytes;
    int64_t end, capacity;
} Saved;

static int save_up_to(Saved *saved, const uint8_t *data, int64_t end) {
    if (!saved) return 1;
    if (end > saved->capacity) return 0;
    if (end > saved->end) {
        memcpy(saved->bytes + saved->end, data + saved->end, (size_t)(end - saved->end));
        saved->end = end;
    }
    return 1;
}

/* Notes the facts of a JPEG of *size* bytes.  What is kept of its header is moved up against the
 * rest, so that its content digest is one call; *data* is spoilt by that, and *saved*, if there is
 * one, has what was there.  Returns 0 where it is no JPEG, has no scan, has junk between segments,
 * does not end in its only end marker, has a larger header than *saved* has room for, or where its
 * colours may be stored in another way than JFIF's. */
static int note_image(Row *row, uint8_t *data, int64_t size, TakeIn *take_in, Saved *saved) {
    if (size < 4 || data[0] != 0xFF || data[1] != 0xD8 || data[2] != 0xFF) return 0;
    if (data[size - 2] != 0xFF || data[size - 1] != 0xD9) return 0;
    int64_t place = 2, start = 2, kept = 2; /* kept: end of what is kept of what lies before start */
    int is_jfif = 0;
    while (place + 4 <= size && data[place] == 0xFF) {
        const int kind = kind_of(data[place + 1]);
        if (data[place + 1] == 0) return 0;
        if (kind == SCAN) {
            if (row->components != GREY && !(row->components == COLOUR && is_jfif)) return 0;
            if (!ends_once(data, place, size)) return 0;
            if (!save_up_to(saved, data, start)) return 0;
            const int64_t first = start - (kept - 2);
            memmove(data + first, data + 2, (size_t)(kept - 2));
            xxh3_128(data + first, (size_t)(size - first), take_in, row->content_digest);
            row->format = JPEG;
            row->flags |= HAS_CONTENT | HAS_FACTS | SAW_END | LOOKED_FOR_END;
            return 1;
        }
        int64_t after = place + 2;
        if (kind == FILL) after = place + 1;
        else if (kind != NO_LENGTH) after += (int64_t)data[place + 2] << 8 | data[place + 3];
        if (kind != FILL && kind != NO_LENGTH && after < place + 4) return 0;
        if (data[place + 1] == 0xE0 && after - place >= JFIF_BYTES)
            is_jfif |= begins_with(data, place + 4, size, "JFIF", 5);
        if (kind == FRAME) note_frame(row, data, place, size);
        if (is_dropped(kind, data, place, size)) {
            if (!save_up_to(saved, data, place)) return 0;
            memmove(data + kept, data + start, (size_t)(place - start));
            kept += place - start;
            start = after;
        }
        place = after;
    }
    return 0;
}

static int64_t in_ns(struct timespec time) { return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec; }

static int read_whole(const Job *job, int descriptor, int64_t size, Row *row) {
    if (read(descriptor, job->buffer, (size_t)size) != size) return 0;
    xxh3_128(job->buffer, (size_t)size, job->take_in, row->digest);
    row->flags = HAS_DIGEST;
    return note_image(row, job->buffer, size, job->take_in, NULL);
}

static int read_ends(const Job *job, int descriptor, int64_t size, Row *row) {
    uint8_t *tail = job->buffer + PROBE_BYTES;
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM); /* else the kernel reads on */
    if (pread(descriptor, job->buffer, PROBE_BYTES, 0) != PROBE_BYTES) return 0;
    if (pread(descriptor, tail, PROBE_BYTES, size - PROBE_BYTES) != PROBE_BYTES) return 0;
    if (!begins_with(job->buffer, 0, size, "\xff\xd8\xff", 3)) return 0; /* to be read whole */
    xxh3_128(job->buffer, 2 * PROBE_BYTES, job->take_in, row->probe);
    row->format = NO_FORMAT;
    row->flags = HAS_PROBE;
    return 1;
}

static int is_same(const struct stat *one, const struct stat *other) {
    return one->st_size == other->st_size && in_ns(one->st_mtim) == in_ns(other->st_mtim) &&
           in_ns(one->st_ctim) == in_ns(other->st_ctim);
}

static int read_open(const Job *job, int descriptor, Row *row) {
    struct stat before, after;
    if (fstat(descriptor, &before) != 0 || !S_ISREG(before.st_mode)) return 0;
    const int64_t size = before.st_size;
    if (size <= 0 || size >= job->capacity) return 0;
    if (job->only_ends && size > 2 * PROBE_BYTES) {
        if (!read_ends(job, descriptor, size, row)) return 0;
    } else {
        if (!read_whole(job, descriptor, size, row)) return 0;
        if (job->only_ends) {
            memcpy(row->probe, row->digest, 16);
            row->flags |= HAS_PROBE;
        }
    }
    if (fstat(descriptor, &after) != 0 || !is_same(&before, &after)) return 0;
    row->num_bytes = size;
    row->mtime_ns = in_ns(after.st_mtim);
    row->ctime_ns = in_ns(after.st_ctim);
    row->inode = after.st_ino;
    return 1;
}

static int is_named_like_a_jpeg(const char *name, size_t length) {
    return (length > 4 && strcasecmp(name + length - 4, ".jpg") == 0) ||
           (length > 5 && strcasecmp(name + length - 5, ".jpeg") == 0);
}

static int read_one(const Job *job, const char *name, Row *row) {
    const int descriptor = openat(job->folder, name, job->open_flags);
    if (descriptor < 0) return 0;
    memset(row, 0, sizeof *row);
    const int is_done = read_open(job, descriptor, row);
    return close(descriptor) == 0 && is_done;
}

/* Fills the rows of those files whose state is TO_DO, and sets it to DONE, as far as that is plain.
 *
 * names: each with a 0 at its end.  buffer: of *capacity* bytes, for this thread alone; at least
 * 2 * PROBE_BYTES. */
void read_files(int folder, const char *names, int64_t num_files, int open_flags, int only_ends, uint8_t *buffer,
                int64_t capacity, Row *rows, uint8_t *states) {
    const Job job = {folder, open_flags, only_ends, buffer, capacity, way_to_take_in(-1)};
    for (int64_t n = 0; n < num_files; n++) {
        const size_t length = strlen(names);
        const int may_be_plain = states[n] == TO_DO && is_named_like_a_jpeg(names, length);
        if (may_be_plain && read_one(&job, names, rows + n)) states[n] = DONE;
        names += length + 1;
    }
}

/* Sets the state of those files whose state is TO_DO to DONE that are as their rows say.
 *
 * by_all: look at inode and status-change time, too. */
void check_files(int folder, const char *names, int64_t num_files, int open_flags, int by_all, const Row *rows,
                 uint8_t *states) {
    const int flags = open_flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0;
    for (int64_t n = 0; n < num_files; n++, names += strlen(names) + 1) {
        struct stat now;
        const Row *row = rows + n;
        if (states[n] != TO_DO || fstatat(folder, names, &now, flags) != 0) continue;
        if (now.st_size != row->num_bytes || in_ns(now.st_mtim) != row->mtime_ns) continue;
        if (by_all && (in_ns(now.st_ctim) != row->ctime_ns || now.st_ino != row->inode)) continue;
        states[n] = DONE;
    }
}

static void ask_for_one(int folder, const char *name, int open_flags, int only_ends) {
    struct stat status;
    const int descriptor = openat(folder, name, open_flags);
    if (descriptor < 0) return; /* reading it will say why */
    if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode)) {
        const int64_t last = status.st_size > PROBE_BYTES ? status.st_size - PROBE_BYTES : 0;
        posix_fadvise(descriptor, 0, only_ends ? PROBE_BYTES : ASKED_BYTES, POSIX_FADV_WILLNEED);
        if (only_ends) posix_fadvise(descriptor, last, PROBE_BYTES, POSIX_FADV_WILLNEED);
    }
    close(descriptor);
}

/* Has the system fetch those files whose state is TO_DO, or both ends of them; does not wait. */
void ask_for_files(int folder, const char *names, int64_t num_files, int open_flags, int only_ends,
                   const uint8_t *states) {
    for (int64_t n = 0; n < num_files; n++, names += strlen(names) + 1)
        if (states[n] == TO_DO) ask_for_one(folder, names, open_flags, only_ends);
}

/* Puts the names in a folder side by side, each with a 0 at its end.
 *
 * Returns their bytes; -1 where anything is odd: there is something else than regular files, or a
 * name that may be an archive's, or more names than *capacity* bytes hold, or an error. */
int64_t list_files(const char *path, char *names, int64_t capacity) {
    DIR *folder = opendir(path);
    if (!folder) return -1;
    int64_t end = 0;
    const struct dirent *entry;
    while (end >= 0 && (errno = 0, entry = readdir(folder))) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        const int64_t length = (int64_t)strlen(name);
        const int may_be_archive = strchr("rRzZ", name[length - 1]) != NULL; /* .tar, .gz, .tgz */
        if (entry->d_type != DT_REG || may_be_archive || length >= capacity - end) {
            end = -1;
        } else {
            memcpy(names + end, name, (size_t)length + 1);
            end += length + 1;
        }
    }
    if (errno != 0) end = -1;
    closedir(folder);
    return end;
}

/* For tests: the digest of *size* bytes in the way of this *number*, or else the quickest. */
void digest_bytes(const uint8_t *data, int64_t size, int number, uint8_t *digest) {
    xxh3_128(data, (size_t)size, way_to_take_in(number), digest);
}

/* The row of these bytes, without times: written to, and restored.  0 where they are not plain. */
int describe_bytes(uint8_t *data, int64_t size, Row *row) {
    uint8_t bytes[SAVED_BYTES];
    Saved saved = {bytes, 0, SAVED_BYTES};
    TakeIn *take_in = way_to_take_in(-1);
    memset(row, 0, sizeof *row);
    row->num_bytes = size;
    row->flags = HAS_DIGEST;
    if (size > 0) xxh3_128(data, (size_t)size, take_in, row->digest);
    const int is_plain = note_image(row, data, size, take_in, &saved);
    memcpy(data, saved.bytes, (size_t)saved.end);
    return is_plain;
}

/* Increased with each change of a function above or of Row; scan.py has the same number. */
int scan_version(void) { return 2; }
