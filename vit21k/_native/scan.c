/* Names of the files of a chunk -> their sizes, times, hashes and image facts, in one call.
 *
 * Files are left to Python if they are not regular, are very large, change while they are read, or
 * are of a format that image_facts.h does not know: Python has the messages and reads them again.
 */
#define _GNU_SOURCE
#ifndef __linux__
#error "for Linux only: what other systems call times and advice differs"
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image_facts.h"

enum { PROBE_BYTES = 4096, ASKED_BYTES = 1 << 20 };
enum { WHOLE_BYTES = 32 << 20, MAX_BYTES = 48 << 20 }; /* of a file in memory; of all larger than a buffer */
enum { TO_DO = 0, DONE = 1 };

typedef struct {
    int folder, open_flags;
    int only_ends; /* of what is larger than both */
    uint8_t *buffer;
    int64_t capacity;
    TakeIn *take_in;
} Job;

static int64_t in_ns(struct timespec time) { return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec; }

static int read_fully(int descriptor, uint8_t *data, int64_t size) {
    int64_t done = 0;
    for (int64_t num_read = 1; num_read > 0 && done < size; done += num_read > 0 ? num_read : 0)
        num_read = read(descriptor, data + done, (size_t)(size - done));
    return done == size;
}

static int read_into(const Job *job, int descriptor, uint8_t *data, int64_t size, Row *row) {
    if (!read_fully(descriptor, data, size)) return 0;
    xxh3_128(data, (size_t)size, job->take_in, row->digest);
    row->flags |= HAS_DIGEST;
    return note_image(row, data, size, job->take_in, NULL);
}

static int64_t bytes_of_large_files; /* now in memory, of all threads */

static int read_large(const Job *job, int descriptor, int64_t size, Row *row) {
    int is_done = 0;
    if (__atomic_add_fetch(&bytes_of_large_files, size, __ATOMIC_RELAXED) <= MAX_BYTES) {
        uint8_t *data = malloc((size_t)size);
        is_done = data && read_into(job, descriptor, data, size, row);
        free(data);
    }
    __atomic_sub_fetch(&bytes_of_large_files, size, __ATOMIC_RELAXED);
    return is_done;
}

static int read_whole(const Job *job, int descriptor, int64_t size, Row *row) {
    if (size >= WHOLE_BYTES) return 0;
    if (size >= job->capacity) return read_large(job, descriptor, size, row);
    return read_into(job, descriptor, job->buffer, size, row);
}

/* Both ends; all of what is not a JPEG. */
static int read_ends(const Job *job, int descriptor, int64_t size, Row *row) {
    uint8_t *tail = job->buffer + PROBE_BYTES;
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM); /* else the kernel reads on */
    if (pread(descriptor, job->buffer, PROBE_BYTES, 0) != PROBE_BYTES) return 0;
    if (pread(descriptor, tail, PROBE_BYTES, size - PROBE_BYTES) != PROBE_BYTES) return 0;
    const int is_jpeg = begins_with(job->buffer, 0, size, "\xff\xd8\xff", 3);
    xxh3_128(job->buffer, 2 * PROBE_BYTES, job->take_in, row->probe);
    row->flags = HAS_PROBE;
    return is_jpeg || read_whole(job, descriptor, size, row);
}

static int is_same(const struct stat *one, const struct stat *other) {
    return one->st_size == other->st_size && in_ns(one->st_mtim) == in_ns(other->st_mtim) &&
           in_ns(one->st_ctim) == in_ns(other->st_ctim);
}

static int read_open(const Job *job, int descriptor, Row *row) {
    struct stat before, after;
    if (fstat(descriptor, &before) != 0 || !S_ISREG(before.st_mode)) return 0;
    const int64_t size = before.st_size;
    if (size <= 0) return 0;
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

static int read_one(const Job *job, const char *name, Row *row) {
    const int descriptor = openat(job->folder, name, job->open_flags);
    if (descriptor < 0) return 0;
    memset(row, 0, sizeof *row);
    const int is_done = read_open(job, descriptor, row);
    return close(descriptor) == 0 && is_done;
}

/* Fills the rows of files whose state is TO_DO, and sets it to DONE; leaves some to Python.
 *
 * names: each with a 0 at its end.  buffer: of *capacity* bytes, for this thread alone; at least
 * 2 * PROBE_BYTES. */
void read_files(int folder, const char *names, int64_t num_files, int open_flags, int only_ends, uint8_t *buffer,
                int64_t capacity, Row *rows, uint8_t *states) {
    const Job job = {folder, open_flags, only_ends, buffer, capacity, way_to_take_in(-1)};
    for (int64_t n = 0; n < num_files; n++, names += strlen(names) + 1)
        if (states[n] == TO_DO && read_one(&job, names, rows + n)) states[n] = DONE;
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
 * Returns their bytes; -1 where anything is unusual: there is something else than regular files, or a
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

/* The row of these bytes, without times: written to, and restored.  0 if Python has to make it. */
int describe_bytes(uint8_t *data, int64_t size, Row *row) {
    Saved saved;
    saved.more = NULL;
    saved.end = 0;
    TakeIn *take_in = way_to_take_in(-1);
    memset(row, 0, sizeof *row);
    row->num_bytes = size;
    row->flags = HAS_DIGEST;
    if (size > 0) xxh3_128(data, (size_t)size, take_in, row->digest);
    const int is_done = note_image(row, data, size, take_in, &saved);
    restore(&saved, data);
    return is_done;
}

/* Increased with each change of a function above or of Row; scan.py has the same number. */
int scan_version(void) { return 3; }
